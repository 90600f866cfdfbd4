// SPDX-License-Identifier: Apache-2.0
// The question as an object: what it owns, when two are one, its content key. The validator is query_check.c, the bytes query_codec.c.
#include "common/query.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/cursor.h"

void query_init(struct query *q)
{
	*q = (struct query){.last = -1, .draws.tau = 1};
}

// NULL for nothing, and where there is no memory: then *failed is set.
static void *array_copy(const void *from, size_t n, size_t size, bool *failed)
{
	size_t bytes;
	if (!n)
		return NULL;
	void *to = __builtin_mul_overflow(n, size, &bytes) ? NULL : malloc(bytes);
	if (to)
		memcpy(to, from, bytes);
	else
		*failed = true;
	return to;
}

static uint32_t lists_total(const struct id_lists *l)
{
	return l->n_lists ? l->offsets[l->n_lists] : 0;
}

int query_copy(struct query *to, const struct query *from)
{
	bool failed = false;
	const struct id_lists *g = &from->gather;
	*to = *from;
	to->gather.offsets = array_copy(g->offsets, g->n_lists ? (size_t)g->n_lists + 1 : 0, sizeof *g->offsets, &failed);
	to->gather.ids = array_copy(g->ids, lists_total(g), sizeof *g->ids, &failed);
	to->keep = array_copy(from->keep, from->n_keep, sizeof *from->keep, &failed);
	to->spans = array_copy(from->spans, from->n_spans, sizeof *from->spans, &failed);
	if (!failed)
		return 0;
	query_done(to);
	return -ENOMEM;
}

void query_done(struct query *q)
{
	if (!q)
		return;
	free(q->gather.offsets);
	free(q->gather.ids);
	free(q->keep);
	free(q->spans);
	*q = (struct query){0};
}

void query_part_done(struct query_part *part)
{
	free(part->gather.offsets);
	free(part->gather.ids);
	free(part->spans);
	*part = (struct query_part){0};
}

void query_take_part(struct query *q, struct query_part *part)
{
	if (part->has_rows) {
		q->first = part->first;
		q->last = part->last;
	}
	if (part->gather.n_lists) {
		free(q->gather.offsets);
		free(q->gather.ids);
		q->gather = part->gather;
		part->gather = (struct id_lists){0};
	}
	if (part->n_spans) {
		free(q->spans);
		q->spans = part->spans;
		q->n_spans = part->n_spans;
		part->spans = NULL;
	}
	query_part_done(part);
}

static bool same(const void *a, const void *b, size_t n, size_t size)
{
	return !n || memcmp(a, b, n * size) == 0;
}

static bool lists_equal(const struct id_lists *a, const struct id_lists *b)
{
	return a->n_lists == b->n_lists && (!a->n_lists || (same(a->offsets, b->offsets, (size_t)a->n_lists + 1, sizeof *a->offsets) &&
							    same(a->ids, b->ids, lists_total(a), sizeof *a->ids)));
}

static bool features_equal(const struct query *a, const struct query *b)
{
	bool equal = a->n_features == b->n_features && a->pooling == b->pooling && a->feature_values == b->feature_values;
	for (uint32_t i = 0; equal && i < a->n_features; i++)
		equal = a->features[i].kind == b->features[i].kind && a->features[i].layer == b->features[i].layer;
	return equal;
}

bool query_equal(const struct query *a, const struct query *b)
{
	return a->top_k == b->top_k && same(&a->top_mass, &b->top_mass, 1, sizeof a->top_mass) && a->dense == b->dense &&
	       a->n_temperatures == b->n_temperatures && same(a->temperatures, b->temperatures, a->n_temperatures, sizeof(float)) &&
	       a->own == b->own && a->entropy == b->entropy && a->max_prob == b->max_prob && a->argmax == b->argmax &&
	       a->sum_squares == b->sum_squares && a->tail == b->tail && a->first == b->first && a->last == b->last &&
	       a->values == b->values && a->draws.n == b->draws.n && same(&a->draws.tau, &b->draws.tau, 1, sizeof(float)) &&
	       a->draws.seed == b->draws.seed && a->draws.tail == b->draws.tail && lists_equal(&a->gather, &b->gather) &&
	       a->n_keep == b->n_keep && same(a->keep, b->keep, a->n_keep, sizeof *a->keep) && a->n_spans == b->n_spans &&
	       same(a->spans, b->spans, a->n_spans, sizeof *a->spans) && features_equal(a, b);
}

bool query_has_rows(const struct query *q)
{
	return q->top_k || q->dense || q->n_temperatures || q->own || q->entropy || q->max_prob || q->argmax || q->sum_squares || q->tail ||
	       q->gather.n_lists || q->draws.n;
}

uint32_t query_feature_width(const struct query_feature *f, const struct query_limits *limits)
{
	return f->kind <= QUERY_FEATURE_FINAL ? limits->width : f->kind == QUERY_FEATURE_Q ? limits->q_width : limits->kv_width;
}

uint32_t query_rows(const struct query *canonical)
{
	return (uint32_t)(canonical->last - canonical->first) + 1;
}

size_t query_bytes(const struct query *q)
{
	struct writer count = writer_init(NULL, 0);
	query_encode(q, &count);
	return count.position;
}

struct question {
	const struct content_id *teacher;
	const struct sequence *sequence;
	const struct query *query;
};

static void write_question(const void *arg, struct writer *w)
{
	static const char label[] = "kdserved key 1\n";
	const struct question *a = arg;
	struct content_id id = sequence_id(a->sequence);
	writer_bytes(w, label, sizeof label - 1);
	writer_bytes(w, a->teacher->bytes, sizeof a->teacher->bytes);
	writer_bytes(w, id.bytes, sizeof id.bytes);
	query_encode(a->query, w);
}

struct content_id query_key(const struct content_id *teacher, const struct sequence *s, const struct query *canonical)
{
	return content_id_of_written(write_question, &(struct question){teacher, s, canonical});
}
