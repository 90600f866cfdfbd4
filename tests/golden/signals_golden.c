// SPDX-License-Identifier: Apache-2.0
#include "tests/golden/signals_golden.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const float signal_temperatures[SIGNAL_TEMPERATURES] = {0.5f, 1, 2, 15};

void signal_row_read(struct signal_row *row, struct golden_file *g, uint32_t top_k)
{
	for (int t = 0; t < SIGNAL_TEMPERATURES; t++)
		row->lse[t] = reader_f64(&g->reader);
	row->entropy = reader_f64(&g->reader);
	row->max_prob = reader_f64(&g->reader);
	row->sum_squares = reader_f64(&g->reader);
	row->tail = reader_f64(&g->reader);
	row->top = golden_u32s(g, top_k);
}

static void sequence_read(struct signals *s, struct signal_sequence *q, struct golden_file *g)
{
	uint32_t n = reader_u32(&g->reader);
	assert_in_range(n, 1, 1024);
	q->sequence = (struct sequence){golden_u32s(g, n), n};
	q->rows = golden_array(n, sizeof *q->rows);
	for (uint32_t i = 0; i < n; i++) {
		signal_row_read(&q->rows[i], g, s->top_k);
		q->rows[i].keep_lse = reader_f64(&g->reader);
		q->rows[i].own = reader_f64(&g->reader);
	}
	for (uint32_t i = 0; i <= s->n_layers; i++)
		q->hidden[i] = golden_f32s(g, (size_t)n * s->width);
	q->final = golden_f32s(g, (size_t)n * s->width);
	for (uint32_t i = 0; i < s->n_layers; i++) {
		q->q[i] = golden_f32s(g, (size_t)n * s->q_width);
		q->k[i] = golden_f32s(g, (size_t)n * s->kv_width);
		q->v[i] = golden_f32s(g, (size_t)n * s->kv_width);
	}
}

static void logits_read(struct signals *s, const char *model)
{
	char name[256];
	struct golden_file g;
	snprintf(name, sizeof name, "models/%s/golden.bin", model);
	golden_open(&g, name, "KDGM");
	assert_int_equal(reader_u32(&g.reader), s->n_sequences);
	assert_int_equal(reader_u32(&g.reader), s->V);
	for (uint32_t i = 0; i < s->n_sequences; i++) {
		struct signal_sequence *q = &s->sequences[i];
		assert_int_equal(reader_u32(&g.reader), q->sequence.n_tokens);
		uint32_t *tokens = golden_u32s(&g, q->sequence.n_tokens);
		assert_memory_equal(tokens, q->sequence.tokens, q->sequence.n_tokens * sizeof *tokens);
		free(tokens);
		q->logits = golden_f32s(&g, (size_t)q->sequence.n_tokens * s->V);
	}
	golden_close(&g);
}

void signals_open(struct signals *s, const char *model)
{
	char name[256];
	struct golden_file g;
	snprintf(name, sizeof name, "models/%s/signals.bin", model);
	golden_open(&g, name, "KDGS");
	*s = (struct signals){.n_sequences = reader_u32(&g.reader)};
	uint32_t *fields[] = {&s->V, &s->width, &s->n_layers, &s->q_width, &s->kv_width, &s->top_k, &s->n_keep};
	for (size_t i = 0; i < sizeof fields / sizeof *fields; i++)
		*fields[i] = reader_u32(&g.reader);
	assert_in_range(s->n_sequences, 1, SIGNAL_MAX_SEQUENCES);
	assert_in_range(s->n_layers, 1, SIGNAL_MAX_LAYERS);
	s->keep = golden_u32s(&g, s->n_keep);
	for (uint32_t i = 0; i < s->n_sequences; i++)
		sequence_read(s, &s->sequences[i], &g);
	golden_close(&g);
	logits_read(s, model);
}

static void sequence_free(struct signals *s, struct signal_sequence *q)
{
	for (uint32_t i = 0; i < q->sequence.n_tokens; i++)
		free(q->rows[i].top);
	for (uint32_t i = 0; i <= s->n_layers; i++)
		free(q->hidden[i]);
	for (uint32_t i = 0; i < s->n_layers; i++) {
		free(q->q[i]);
		free(q->k[i]);
		free(q->v[i]);
	}
	free(q->rows);
	free(q->logits);
	free(q->final);
	free(q->sequence.tokens);
}

void signals_close(struct signals *s)
{
	for (uint32_t i = 0; i < s->n_sequences; i++)
		sequence_free(s, &s->sequences[i]);
	free(s->keep);
	*s = (struct signals){0};
}
