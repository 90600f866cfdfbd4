// SPDX-License-Identifier: Apache-2.0
// Which sections a question calls for, and how large they can become.
#include <float.h>
#include <math.h>

#include "common/record_layout.h"
#include "common/record_values.h"

#define COLUMN_AT(member) offsetof(struct record_rows, member)
const struct column columns[N_COLUMNS] = {
	{SECTION_MAX_LOGIT, COLUMN_AT(max_logit), -FLT_MAX, FLT_MAX, "max_logit"},
	{SECTION_LSE, COLUMN_AT(lse), -FLT_MAX, FLT_MAX, "lse"},
	{SECTION_ENTROPY, COLUMN_AT(entropy), -FLT_MAX, FLT_MAX, "entropy"},
	{SECTION_MAX_PROB, COLUMN_AT(max_prob), 0, 1, "max_prob"},
	{SECTION_SUM_SQUARES, COLUMN_AT(sum_squares), 0, 1, "sum_squares"},
	{SECTION_TAIL, COLUMN_AT(tail), -INFINITY, 0, "tail"},
};

const struct column *column_find(enum section_tag tag)
{
	for (size_t i = 0; i < N_COLUMNS; i++)
		if (columns[i].tag == tag)
			return &columns[i];
	return NULL;
}

bool column_asked(const struct query *q, enum section_tag tag)
{
	switch (tag) {
	case SECTION_MAX_LOGIT:
	case SECTION_LSE: return query_has_rows(q);
	case SECTION_ENTROPY: return q->entropy;
	case SECTION_MAX_PROB: return q->max_prob;
	case SECTION_SUM_SQUARES: return q->sum_squares;
	case SECTION_TAIL: return q->tail;
	default: return false;
	}
}

bool query_has_status(const struct query *q)
{
	return query_has_rows(q) || (q->n_features && q->pooling == QUERY_POOLING_NONE);
}

uint32_t query_vocabulary(const struct query *q, uint32_t vocab_size)
{
	return q->n_keep ? q->n_keep : vocab_size;
}

uint32_t feature_rows(const struct query *q, uint32_t n_rows)
{
	return q->pooling == QUERY_POOLING_NONE ? n_rows : 1;
}

uint64_t feature_bytes(const struct query *q, uint32_t n_rows, uint32_t width)
{
	uint64_t numbers = size_times(feature_rows(q, n_rows), width);
	return size_plus(4, size_times(q->feature_values == QUERY_FEATURE_F32 ? 4 : 2, numbers));
}

static uint64_t gathered_total(const struct query *q, uint32_t n_rows)
{
	return q->gather.n_lists == 1 ? size_times(n_rows, q->gather.offsets[1]) : q->gather.offsets[q->gather.n_lists];
}

struct section_maker { struct section *sections; unsigned n; };

static void fixed(struct section_maker *m, bool asked, enum section_tag tag, uint64_t n_bytes)
{
	if (asked)
		m->sections[m->n++] = (struct section){.tag = tag, .n_bytes = n_bytes};
}

static void variable(struct section_maker *m, bool asked, enum section_tag tag, uint32_t feature)
{
	if (asked)
		m->sections[m->n++] = (struct section){.tag = tag, .variable = true, .feature = feature};
}

unsigned section_list(const struct query *q, uint32_t n_rows, uint32_t vocab_size, struct section ret_sections[N_SECTIONS_MAX])
{
	struct section_maker m = {ret_sections, 0};
	uint64_t rows = n_rows, column = 4 * rows;
	fixed(&m, query_has_status(q), SECTION_STATUS, rows);
	fixed(&m, query_has_rows(q), SECTION_MAX_LOGIT, column);
	fixed(&m, query_has_rows(q), SECTION_LSE, column * q->n_temperatures);
	variable(&m, q->top_mass != 0, SECTION_TOP_COUNTS, 0);
	variable(&m, q->top_k, SECTION_TOP_IDS, 0);
	if (q->top_mass != 0)
		variable(&m, true, SECTION_TOP_VALUES, 0);
	else
		fixed(&m, q->top_k, SECTION_TOP_VALUES, values_bytes(q->values, rows, rows * q->top_k));    // below 2^31 * 2^24
	fixed(&m, q->dense, SECTION_DENSE, values_bytes(q->values, rows, rows * query_vocabulary(q, vocab_size)));
	fixed(&m, q->own, SECTION_OWN, column);
	fixed(&m, q->entropy, SECTION_ENTROPY, column);
	fixed(&m, q->max_prob, SECTION_MAX_PROB, column);
	fixed(&m, q->argmax, SECTION_ARGMAX, column);
	fixed(&m, q->sum_squares, SECTION_SUM_SQUARES, column);
	fixed(&m, q->tail, SECTION_TAIL, column);
	if (q->gather.n_lists)
		fixed(&m, true, SECTION_GATHERED, values_bytes(q->values, rows, gathered_total(q, n_rows)));
	variable(&m, q->draws.n, SECTION_DRAWS, 0);
	variable(&m, q->draws.n && q->draws.tau != 1, SECTION_DRAW_RATIOS, 0);
	fixed(&m, q->n_spans, SECTION_SPANS, 4 * (uint64_t)q->n_spans);
	for (uint32_t i = 0; i < q->n_features; i++)
		variable(&m, true, SECTION_FEATURE, i);
	return m.n;
}

static uint64_t distinct_draws(const struct query *q, const struct query_limits *limits)
{
	uint32_t vocabulary = query_vocabulary(q, limits->vocab_size);
	return q->draws.n < vocabulary ? q->draws.n : vocabulary;
}

// Bits of one row's gaps are at most k (b + 1) + (V >> b) for each b, and the encoder takes the best b.
static uint64_t max_row_bits(uint64_t k, uint64_t vocab_size)
{
	uint64_t best = UINT64_MAX;
	for (unsigned b = 0; b < 24; b++) {
		uint64_t bits = k * (b + 1) + (vocab_size >> b);
		best = bits < best ? bits : best;
	}
	return best;
}

// n bits for each row, after the parameter's byte.
static uint64_t stream_bytes(uint64_t rows, uint64_t bits)
{
	uint64_t all = size_times(rows, bits);
	return all == UINT64_MAX ? all : 2 + all / 8;
}

// The counts of a row sum to n, and the code of a count c has 2 floor(log2 c) + 1 < 2 c bits.
static uint64_t variable_bytes(const struct query *q, const struct section *s, uint64_t rows, const struct query_limits *limits)
{
	uint32_t vocabulary = query_vocabulary(q, limits->vocab_size);
	uint64_t distinct = distinct_draws(q, limits);
	switch (s->tag) {
	case SECTION_TOP_COUNTS: return stream_bytes(rows, max_row_bits(1, q->top_k));
	case SECTION_TOP_IDS: return stream_bytes(rows, max_row_bits(q->top_k, vocabulary));
	case SECTION_TOP_VALUES: return values_bytes(q->values, rows, rows * q->top_k);
	case SECTION_DRAWS: return stream_bytes(rows, max_row_bits(distinct, vocabulary) + 2 * (uint64_t)q->draws.n);
	case SECTION_DRAW_RATIOS: return size_times(4 * rows, distinct);
	case SECTION_FEATURE: return feature_bytes(q, (uint32_t)rows, query_feature_width(&q->features[s->feature], limits));
	default: return 0;
	}
}

uint64_t record_max_bytes(const struct query *canonical, uint32_t n_tokens, const struct query_limits *limits)
{
	struct section sections[N_SECTIONS_MAX];
	uint32_t n_rows = query_rows(canonical);
	unsigned n = section_list(canonical, n_rows, limits->vocab_size, sections);
	uint64_t total = size_plus(RECORD_HEADER_BYTES + 4 * (uint64_t)n_tokens, query_bytes(canonical));
	for (unsigned i = 0; i < n; i++) {
		uint64_t bytes = sections[i].variable ? variable_bytes(canonical, &sections[i], n_rows, limits) : sections[i].n_bytes;
		total = size_plus(total, size_plus(SECTION_HEADER_BYTES, bytes));
	}
	return total;
}

static void add_numbers(struct record_numbers *to, uint64_t values, uint64_t integers, uint64_t offsets)
{
	to->values = size_plus(to->values, values);
	to->integers = size_plus(to->integers, integers);
	to->offsets = size_plus(to->offsets, offsets);
}

static void add_section(struct record_numbers *to, const struct query *q, const struct section *s, uint64_t rows,
			const struct query_limits *limits)
{
	uint64_t drawn = size_times(rows, distinct_draws(q, limits));
	switch (s->tag) {
	case SECTION_LSE: add_numbers(to, rows * q->n_temperatures, 0, 0); break;
	case SECTION_TOP_COUNTS: add_numbers(to, 0, 0, 2 * (rows + 1)); break;
	case SECTION_TOP_IDS: add_numbers(to, 0, rows * q->top_k, 0); break;
	case SECTION_TOP_VALUES: add_numbers(to, rows * q->top_k, 0, 0); break;
	case SECTION_DENSE: add_numbers(to, rows * query_vocabulary(q, limits->vocab_size), 0, 0); break;
	case SECTION_GATHERED: add_numbers(to, gathered_total(q, (uint32_t)rows), 0, rows + 1); break;
	case SECTION_DRAWS: add_numbers(to, drawn, size_times(2, drawn), 3 * (rows + 1)); break;      // weights; ids and counts
	case SECTION_DRAW_RATIOS: add_numbers(to, drawn, 0, 0); break;
	case SECTION_SPANS: add_numbers(to, q->n_spans, 0, 0); break;
	case SECTION_FEATURE:
		add_numbers(to, size_times(feature_rows(q, (uint32_t)rows), query_feature_width(&q->features[s->feature], limits)), 0, 0);
		break;
	case SECTION_STATUS:
	case SECTION_ARGMAX: add_numbers(to, 0, rows, 0); break;
	default: add_numbers(to, rows, 0, 0);      // a column
	}
}

void record_max_numbers(const struct query *canonical, const struct query_limits *limits, struct record_numbers *ret)
{
	struct section sections[N_SECTIONS_MAX];
	uint32_t n_rows = query_rows(canonical);
	*ret = (struct record_numbers){.n_arrays = section_list(canonical, n_rows, limits->vocab_size, sections)};
	for (unsigned i = 0; i < ret->n_arrays; i++)
		add_section(ret, canonical, &sections[i], n_rows, limits);
}
