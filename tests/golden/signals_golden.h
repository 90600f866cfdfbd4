// SPDX-License-Identifier: Apache-2.0
// What transformers says of the tiny models: models/NAME/signals.bin (make_golden.py, signals()) with the logits of golden.bin beside it.
#pragma once

#include "common/sequence.h"
#include "tests/golden/golden.h"

#define SIGNAL_TEMPERATURES 4            // 0.5, 1, 2, 15
#define SIGNAL_MAX_SEQUENCES 8
#define SIGNAL_MAX_LAYERS 4

struct signal_row {
	double lse[SIGNAL_TEMPERATURES], entropy, max_prob, sum_squares, tail, keep_lse, own;    // own: ln p, NaN where nothing follows
	uint32_t *top;                   // (top_k)
};

struct signal_sequence {
	struct sequence sequence;
	struct signal_row *rows;         // (n_tokens)
	double *logits;                  // (n_tokens, V)
	double *hidden[SIGNAL_MAX_LAYERS + 1], *final, *q[SIGNAL_MAX_LAYERS], *k[SIGNAL_MAX_LAYERS], *v[SIGNAL_MAX_LAYERS];
};

struct signals {
	uint32_t n_sequences, V, width, n_layers, q_width, kv_width, top_k, n_keep, *keep;
	struct signal_sequence sequences[SIGNAL_MAX_SEQUENCES];
};

extern const float signal_temperatures[SIGNAL_TEMPERATURES];

void signals_open(struct signals *s, const char *model);
void signals_close(struct signals *s);
// The numbers of a row as make_golden.py's row_numbers writes them.
void signal_row_read(struct signal_row *row, struct golden_file *g, uint32_t top_k);
