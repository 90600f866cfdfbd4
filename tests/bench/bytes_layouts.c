// SPDX-License-Identifier: Apache-2.0
#include "tests/bench/bytes_layouts.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/error.h"
#include "common/half.h"
#include "common/record.h"
#include "common/record_short.h"

#define REPEATS 5                // of encoding and decoding, for their times
#define MAX_TERMS 6

static uint32_t id_bits(uint32_t vocab_size)
{
	return 32 - (uint32_t)__builtin_clz(vocab_size - 1);
}

static double log_p(const struct batch *b, uint32_t row, uint32_t id)
{
	return b->log_p[(size_t)row * b->vocab_size + id];
}

// ---- plain top-k: log-probabilities as f16, ids in as many bits as the vocabulary needs

static void keep_plain(const struct layout *l, const struct batch *b, struct kept *kept, struct cost *add)
{
	for (uint32_t row = 0; row < b->n; row++) {
		kept[row].n = l->k;
		for (uint32_t i = 0; i < l->k; i++) {
			uint32_t id = kept[row].ids[i] = b->top[row * MAX_K + i];
			kept[row].p[i] = exp((double)half_to_float(half_from_float((float)log_p(b, row, id))));
		}
		add->bytes += 2 * l->k + (l->k * id_bits(b->vocab_size) + 7) / 8;
		add->entries += l->k;
	}
}

// ---- DistillKit (github.com/arcee-ai/DistillKit at a61c2e7, distillkit/compression/config.py and monotonic_logprobs.py): the top-k by
// descending log-probability; the first exact_k as they are; through the others, at t = 0, 1, .., a least-squares curve whose terms are
// powers of t and sqrt(t), its coefficients as f32; ids bit-packed. total_bits() there is the size here. The fit is done in binary64.

// Gaussian elimination with pivoting: solves a x = y for n <= MAX_TERMS unknowns, in place.
static void solve(double a[MAX_TERMS][MAX_TERMS], double y[MAX_TERMS], uint32_t n)
{
	for (uint32_t c = 0; c < n; c++) {
		uint32_t best = c;
		for (uint32_t r = c + 1; r < n; r++)
			best = fabs(a[r][c]) > fabs(a[best][c]) ? r : best;
		for (uint32_t j = 0; j < n; j++) {
			double swap = a[c][j];
			a[c][j] = a[best][j];
			a[best][j] = swap;
		}
		double swap = y[c];
		y[c] = y[best];
		y[best] = swap;
		for (uint32_t r = 0; r < n; r++) {
			double factor = r == c ? 0 : a[r][c] / a[c][c];
			for (uint32_t j = c; j < n; j++)
				a[r][j] -= factor * a[c][j];
			y[r] -= factor * y[c];
		}
	}
	for (uint32_t c = 0; c < n; c++)
		y[c] /= a[c][c];
}

// Powers of t / (n - 1): the same curves, better conditioned.
static double term(const struct layout *l, uint32_t i, uint32_t t, uint32_t n)
{
	double x = n > 1 ? (double)t / (n - 1) : 0;
	return l->root && i == l->n_terms - 1 ? sqrt(x) : pow(x, i);
}

static void fit(const struct layout *l, double *values, uint32_t n)
{
	double a[MAX_TERMS][MAX_TERMS] = {{0}}, y[MAX_TERMS] = {0}, terms[MAX_TERMS];
	for (uint32_t t = 0; t < n; t++) {
		for (uint32_t i = 0; i < l->n_terms; i++)
			terms[i] = term(l, i, t, n);
		for (uint32_t i = 0; i < l->n_terms; i++) {
			y[i] += terms[i] * values[t];
			for (uint32_t j = 0; j < l->n_terms; j++)
				a[i][j] += terms[i] * terms[j];
		}
	}
	solve(a, y, l->n_terms);
	for (uint32_t t = 0; t < n; t++) {
		values[t] = 0;
		for (uint32_t i = 0; i < l->n_terms; i++)
			values[t] += (double)(float)y[i] * term(l, i, t, n);
	}
}

static double exact(const struct layout *l, double v)
{
	return (double)(l->exact_f32 ? (float)v : bfloat_to_float(bfloat_from_float((float)v)));
}

static void keep_distillkit(const struct layout *l, const struct batch *b, struct kept *kept, struct cost *add)
{
	double values[MAX_K];
	for (uint32_t row = 0; row < b->n; row++) {
		kept[row].n = l->k;
		for (uint32_t i = 0; i < l->k; i++) {
			kept[row].ids[i] = b->top[row * MAX_K + i];
			values[i] = log_p(b, row, kept[row].ids[i]);
		}
		for (uint32_t i = l->k; l->delta && --i;)
			values[i] -= values[i - 1];
		for (uint32_t i = 0; i < l->exact; i++)
			values[i] = exact(l, values[i]);
		fit(l, values + l->exact, l->k - l->exact);
		for (uint32_t i = 1; l->delta && i < l->k; i++)
			values[i] += values[i - 1];
		for (uint32_t i = 0; i < l->k; i++)
			kept[row].p[i] = exp(values[i]);
		add->bytes += l->exact * (l->exact_f32 ? 4 : 2) + 4 * l->n_terms + (l->k * id_bits(b->vocab_size) + 7) / 8;
		add->entries += l->k;
	}
}

// ---- draws

static double uniform(uint64_t *state)
{
	uint64_t x = *state += UINT64_C(0x9e3779b97f4a7c15);
	x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
	x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
	return (double)((x ^ x >> 31) >> 11) * 0x1p-53;
}

static int compare_doubles(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;
	return x < y ? -1 : x > y;
}

static bool in_top(const struct batch *b, uint32_t row, uint32_t k, uint32_t id)
{
	for (uint32_t i = 0; i < k; i++)
		if (b->top[row * MAX_K + i] == id)
			return true;
	return false;
}

// n ids with replacement from the row outside its first k; distinct ones ascend. One walk along the vocabulary meets sorted thresholds.
static uint32_t draw(const struct batch *b, uint32_t row, uint32_t k, uint32_t n, uint64_t *state, uint32_t *ids, uint32_t *counts)
{
	double at[MAX_KEPT], sum = 0, mass = 1;
	uint32_t n_ids = 0, next = 0, last = 0;
	for (uint32_t i = 0; i < k; i++)
		mass -= exp(log_p(b, row, b->top[row * MAX_K + i]));
	for (uint32_t i = 0; i < n; i++)
		at[i] = uniform(state) * mass;
	qsort(at, n, sizeof *at, compare_doubles);
	for (uint32_t id = 0; id < b->vocab_size && next < n; id++) {
		if (k && in_top(b, row, k, id))
			continue;
		sum += exp(log_p(b, row, id));
		last = id;
		uint32_t before = next;
		while (next < n && at[next] < sum)
			next++;
		if (next > before) {
			ids[n_ids] = id;
			counts[n_ids++] = next - before;
		}
	}
	if (next < n) {                  // the sum's rounding
		if (!n_ids || ids[n_ids - 1] != last) {
			ids[n_ids] = last;
			counts[n_ids++] = 0;
		}
		counts[n_ids - 1] += n - next;
	}
	return n_ids;
}

// The published way of random sampling KD (arXiv 2503.16870): 17 bits of id and 7 of count.
static void keep_draws_24(const struct layout *l, const struct batch *b, uint64_t seed, struct kept *kept, struct cost *add)
{
	uint32_t counts[MAX_KEPT];
	for (uint32_t row = 0; row < b->n; row++) {
		kept[row].n = draw(b, row, 0, l->n_draws, &seed, kept[row].ids, counts);
		kept[row].weights = true;
		for (uint32_t i = 0; i < kept[row].n; i++)
			kept[row].p[i] = (double)counts[i] / l->n_draws;
		add->bytes += 3 * kept[row].n;
		add->entries += kept[row].n;
	}
}

// ---- records

static int new_rows(const struct layout *l, const struct batch *b, struct record_rows **ret, struct error *err)
{
	struct sequence s = {(uint32_t *)b->tokens, b->n};
	struct content_id teacher = {{0}};
	struct query q;
	struct query_limits limits = {.max_tokens = b->n, .max_top_k = MAX_K, .max_draws = MAX_KEPT, .vocab_size = b->vocab_size};
	query_init(&q);
	q.top_k = l->k;
	q.values = (enum query_values)(l->k ? l->values : QUERY_VALUES_F32);
	q.draws = l->n_draws ? (struct query_draws){.n = l->n_draws, .tau = 1, .seed = 1, .tail = l->k > 0} : q.draws;
	int r = query_check(&q, &s, &limits, NULL, err);
	r = r ? r : record_rows_new(&teacher, b->vocab_size, &s, &q, ret, err);
	query_done(&q);
	return r;
}

static int fill_rows(const struct layout *l, const struct batch *b, uint64_t seed, struct record_rows *rows, struct error *err)
{
	uint32_t n = 0;
	int r = l->n_draws ? record_rows_reserve_draws(rows, b->n * l->n_draws, err) : 0;
	for (uint32_t row = 0; !r && row < b->n; row++) {
		double tail = 1;
		rows->max_logit[row] = b->max_logit[row];
		rows->lse[row] = (float)b->lse[row];
		for (uint32_t i = 0; i < l->k; i++) {
			uint32_t id = rows->ids[(size_t)row * l->k + i] = b->top[row * MAX_K + i];
			rows->logits[(size_t)row * l->k + i] = b->teacher[(size_t)row * b->vocab_size + id];
			tail -= exp(log_p(b, row, id));
		}
		if (!l->n_draws)
			continue;
		if (l->k)
			rows->tail[row] = (float)log(tail);
		n += draw(b, row, l->k, l->n_draws, &seed, rows->draw_ids + n, rows->draw_counts + n);
		rows->draw_starts[row + 1] = n;
	}
	return r;
}

static void read_rows(const struct layout *l, const struct record_rows *rows, struct kept *kept, struct cost *add)
{
	for (uint32_t row = 0; row < rows->n_rows; row++) {
		struct kept *k = &kept[row];
		k->weights = l->n_draws > 0;
		for (; k->n < l->k; k->n++) {
			k->ids[k->n] = rows->ids[(size_t)row * l->k + k->n];
			k->p[k->n] = exp((double)rows->logits[(size_t)row * l->k + k->n] - (double)rows->lse[row]);
		}
		double mass = l->k && l->n_draws ? exp((double)rows->tail[row]) : 1;
		for (uint32_t i = l->n_draws ? rows->draw_starts[row] : 0; l->n_draws && i < rows->draw_starts[row + 1]; i++) {
			k->ids[k->n] = rows->draw_ids[i];
			k->p[k->n++] = mass * rows->draw_counts[i] / l->n_draws;
		}
		add->entries += k->n;
	}
}

static double seconds(void)
{
	struct timespec t;
	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
	return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static int keep_record(const struct layout *l, const struct batch *b, uint64_t seed, struct kept *kept, struct cost *add, struct error *err)
{
	struct record_rows *rows = NULL, *back = NULL;
	struct record *record = NULL;
	size_t n = 0;
	int r = new_rows(l, b, &rows, err);
	r = r ? r : fill_rows(l, b, seed, rows, err);
	for (int i = 0; !r && i < REPEATS; i++) {
		record = record_unref(record);
		back = record_rows_free(back);
		double begin = seconds();
		r = record_encode(rows, &record, err);
		double middle = seconds();
		r = r ? r : record_decode(record, &back, err);
		add->encode_s += (middle - begin) / REPEATS;
		add->decode_s += (seconds() - middle) / REPEATS;
	}
	if (!r) {
		(void)record_bytes(record, &n);
		add->bytes += (double)record_short_bytes(record);
		add->disk_bytes += (double)n;
		read_rows(l, back, kept, add);
	}
	record_unref(record);
	record_rows_free(back);
	record_rows_free(rows);
	return r;
}

int layout_keep(const struct layout *l, const struct batch *b, uint64_t seed, struct kept *kept, struct cost *add)
{
	struct error err = {0};
	int r = 0;
	for (uint32_t row = 0; row < b->n; row++) {
		kept[row].n = 0;
		kept[row].weights = false;
	}
	switch (l->kind) {
	case LAYOUT_PLAIN: keep_plain(l, b, kept, add); break;
	case LAYOUT_DISTILLKIT: keep_distillkit(l, b, kept, add); break;
	case LAYOUT_DRAWS_24: keep_draws_24(l, b, seed, kept, add); break;
	case LAYOUT_RECORD: r = keep_record(l, b, seed, kept, add, &err); break;
	}
	if (r)
		fprintf(stderr, "%s: %s: %s\n", l->name, err.field, err.message);
	return r;
}
