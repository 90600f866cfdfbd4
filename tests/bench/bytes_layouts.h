// SPDX-License-Identifier: Apache-2.0
// Ways to keep a teacher's row, each with what it costs and what comes back. Private to bytes_per_token.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define MAX_K 128
#define MAX_KEPT 256             // of one row

// The truth about n positions of one sequence.
struct batch {
	uint32_t n, vocab_size;
	const uint32_t *tokens;          // (n)
	const float *teacher;            // (n, vocab_size) logits
	double *log_p, *log_q;           // (n, vocab_size) of teacher and student
	float *max_logit;                // (n)
	double *lse, *entropy, *kl;      // (n) of the teacher; KL(teacher; student)
	uint32_t *top;                   // (n, MAX_K) ids by descending logit
};

// What is known of a row afterwards.
struct kept {
	uint32_t n;
	uint32_t ids[MAX_KEPT];
	double p[MAX_KEPT];              // of the ids: probabilities, or weights whose expectation is the probability
	bool weights;                    // drawn: the cross-entropy is -sum w ln q, and the KL that less the row's entropy,
	                                 // which a student does not need; else the tail is one bucket
};

enum layout_kind { LAYOUT_PLAIN, LAYOUT_DISTILLKIT, LAYOUT_RECORD, LAYOUT_DRAWS_24 };

struct layout {
	const char *name;
	enum layout_kind kind;
	uint32_t k, n_draws;             // n_draws of each row, with k > 0 outside the top-k
	int values;                      // of records: enum query_values
	uint32_t exact, n_terms;         // DistillKit: values kept as they are, and terms of the curve through the others
	bool exact_f32, root, delta;     // exact values as f32 (else bf16); the last term is sqrt(t); differences are kept
};

// Summed over positions; disk_bytes and times of records alone.
struct cost { double bytes, disk_bytes, entries, encode_s, decode_s; };

// Keeps the batch and reads it back: ret_kept is (n).
int layout_keep(const struct layout *l, const struct batch *b, uint64_t seed, struct kept *ret_kept, struct cost *add);
