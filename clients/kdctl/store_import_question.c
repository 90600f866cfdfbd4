// SPDX-License-Identifier: Apache-2.0
// A question in JSON, under the names of /v1/score; gather is always a list of lists, one for all rows or one for each.
#include <stdlib.h>
#include <string.h>

#include "clients/kdctl/pull.h"
#include "clients/kdctl/store_transfer.h"

static unsigned read_word(struct pull *t, const char *const *words, unsigned n)
{
	char text[16];
	unsigned i = 0;
	pull_string(t, text, sizeof text);
	while (i < n && strcmp(words[i], text) != 0)
		i++;
	if (i == n)
		pull_fail(t, "a word that is none of those known");
	return i < n ? i : 0;
}

static void read_draws(struct pull *t, struct query_draws *d)
{
	char name[8];
	pull_open(t, '{');
	while (pull_next_member(t, name, sizeof name)) {
		if (strcmp(name, "n") == 0)
			d->n = (uint32_t)pull_u64(t, UINT32_MAX);
		else if (strcmp(name, "tau") == 0)
			d->tau = pull_f32(t);
		else if (strcmp(name, "seed") == 0)
			d->seed = pull_u64(t, UINT64_MAX);
		else if (strcmp(name, "tail") == 0)
			d->tail = pull_bool(t);
		else
			pull_fail(t, "an unknown member of draws");
	}
	if (!t->failed && !d->n)
		pull_fail(t, "draws without n");
}

// Takes the list's memory; an empty one is refused, as everywhere.
static uint32_t *take_ids(struct pull *t, struct pull_ids *list, uint32_t *ret_n)
{
	if (!list->n)
		pull_fail(t, "an empty list");
	*ret_n = (uint32_t)list->n;
	return list->ids;
}

static void read_gather(struct pull *t, struct id_lists *lists)
{
	struct pull_ids ids = {0}, ends = {0};
	pull_append_id(t, &ends, 0);
	pull_open(t, '[');
	while (pull_next(t)) {
		pull_id_list(t, &ids, UINT32_MAX);
		pull_append_id(t, &ends, (uint32_t)ids.n);
	}
	if (ends.n < 2)
		pull_fail(t, "an empty list");
	lists->n_lists = t->failed ? 0 : (uint32_t)ends.n - 1;
	lists->offsets = ends.ids;
	lists->ids = ids.ids;
}

static void read_spans(struct pull *t, struct query *q)
{
	struct pull_ids ends = {0};
	pull_open(t, '[');
	while (pull_next(t)) {
		size_t before = ends.n;
		pull_id_list(t, &ends, UINT32_MAX);
		if (ends.n != before + 2)
			pull_fail(t, "a span is [begin,end]");
	}
	q->spans = malloc((ends.n / 2 + 1) * sizeof *q->spans);
	if (!q->spans || !ends.n)
		pull_fail(t, q->spans ? "an empty list" : "no memory");
	for (size_t i = 0; q->spans && !t->failed && i < ends.n / 2; i++)
		q->spans[i] = (struct query_span){ends.ids[2 * i], ends.ids[2 * i + 1]};
	q->n_spans = t->failed ? 0 : (uint32_t)(ends.n / 2);
	free(ends.ids);
}

static void read_features(struct pull *t, struct query *q)
{
	char name[8];
	pull_open(t, '[');
	while (pull_next(t)) {
		struct query_feature f = {0};
		pull_open(t, '{');
		while (pull_next_member(t, name, sizeof name)) {
			if (strcmp(name, "kind") == 0)
				f.kind = (uint8_t)read_word(t, question_kinds, 5);
			else if (strcmp(name, "layer") == 0)
				f.layer = (uint16_t)pull_u64(t, UINT16_MAX);
			else
				pull_fail(t, "an unknown member of a feature");
		}
		if (q->n_features == QUERY_MAX_FEATURES)
			pull_fail(t, "more features than a question may have");
		else
			q->features[q->n_features++] = f;
	}
}

static void read_temperatures(struct pull *t, struct query *q)
{
	pull_open(t, '[');
	while (pull_next(t)) {
		if (q->n_temperatures == QUERY_MAX_TEMPERATURES)
			pull_fail(t, "more temperatures than a question may have");
		else
			q->temperatures[q->n_temperatures++] = pull_f32(t);
	}
}

static int32_t read_position(struct pull *t)
{
	int64_t v = pull_i64(t);
	if (v < INT32_MIN || v > INT32_MAX)
		pull_fail(t, "a position that is too large");
	return t->failed ? 0 : (int32_t)v;
}

static bool read_flag(struct pull *t, const char *name, struct query *q)
{
	for (size_t i = 0; i < N_QUESTION_FLAGS; i++)
		if (strcmp(question_flags[i].name, name) == 0) {
			*(bool *)((char *)q + question_flags[i].at) = pull_bool(t);
			return true;
		}
	return false;
}

static void read_keep(struct pull *t, struct query *q)
{
	struct pull_ids list = {0};
	pull_id_list(t, &list, UINT32_MAX);
	q->keep = take_ids(t, &list, &q->n_keep);
}

enum question_member { Q_FIRST, Q_LAST, Q_TOP_K, Q_TOP_MASS, Q_TEMPERATURES, Q_DRAWS, Q_GATHER, Q_KEEP, Q_SPANS, Q_FEATURES, Q_POOLING,
	Q_FEATURE_VALUES, Q_VALUES, N_QUESTION_MEMBERS };
static const char *const question_names[N_QUESTION_MEMBERS] = {"first", "last", "top_k", "top_mass", "temperatures", "draws", "gather",
	"keep", "spans", "features", "pooling", "feature_values", "values"};

static void read_question_member(struct pull *t, enum question_member m, struct query *q)
{
	switch (m) {
	case Q_FIRST: q->first = read_position(t); break;
	case Q_LAST: q->last = read_position(t); break;
	case Q_TOP_K: q->top_k = (uint32_t)pull_u64(t, UINT32_MAX); break;
	case Q_TOP_MASS: q->top_mass = pull_f32(t); break;
	case Q_TEMPERATURES: read_temperatures(t, q); break;
	case Q_DRAWS: read_draws(t, &q->draws); break;
	case Q_GATHER: read_gather(t, &q->gather); break;
	case Q_KEEP: read_keep(t, q); break;
	case Q_SPANS: read_spans(t, q); break;
	case Q_FEATURES: read_features(t, q); break;
	case Q_POOLING: q->pooling = read_word(t, question_poolings, 3); break;
	case Q_FEATURE_VALUES: q->feature_values = read_word(t, question_feature_values, 3); break;
	case Q_VALUES: q->values = read_word(t, question_values, 3); break;
	case N_QUESTION_MEMBERS: break;
	}
}

// Every member is known or refused: one left out would be another question.
void line_decode_question(struct pull *t, struct query *q)
{
	uint32_t seen = 0;
	char name[24];
	pull_open(t, '{');
	while (pull_next_member(t, name, sizeof name)) {
		enum question_member m = 0;
		if (read_flag(t, name, q))
			continue;
		while (m < N_QUESTION_MEMBERS && strcmp(question_names[m], name) != 0)
			m++;
		if (m == N_QUESTION_MEMBERS || seen >> m & 1) {
			pull_fail(t, "a member of the question that is unknown or occurs twice");
			return;
		}
		seen |= 1u << m;
		read_question_member(t, m, q);
	}
}
