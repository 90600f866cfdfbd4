// SPDX-License-Identifier: Apache-2.0
// The question part of POST /v1/score: every field of struct query. Its one complication is gather and spans, which are one for all
// sequences or one for each, told apart by how deep their arrays lie.
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/error.h"
#include "daemon/server/json_internal.h"

int json_read_top_k(void *to, const json_t *v, const char *name, struct error *err)
{
	int64_t k = 0;
	int r = json_read_integer(v, 1, UINT32_MAX, name, &k, err);
	*(uint32_t *)to = (uint32_t)k;
	return r;
}

int json_read_row(void *to, const json_t *v, const char *name, struct error *err)
{
	int64_t i = 0;
	int r = json_read_integer(v, INT32_MIN, INT32_MAX, name, &i, err);
	*(int32_t *)to = (int32_t)i;
	return r;
}

static int read_float(void *to, const json_t *v, const char *name, struct error *err)
{
	if (!json_is_number(v))
		return json_wrong_type(v, name, "a number", err);
	*(float *)to = (float)json_number_value(v);
	return 0;
}

int json_read_mass(void *to, const json_t *v, const char *name, struct error *err)
{
	int r = read_float(to, v, name, err);
	if (!r && *(float *)to == 0)     // in struct query that is "not asked"
		r = error_set(err, ERROR_INVALID, name, "0 is not a probability above 0, at most 1");
	return r;
}

int json_read_temperatures(void *to, const json_t *v, const char *name, struct error *err)
{
	struct query *q = to;
	size_t n = json_array_size(v);
	int r = 0;
	if (!json_is_array(v))
		return json_wrong_type(v, name, "an array of numbers", err);
	if (!n || n > QUERY_MAX_TEMPERATURES)
		return error_set(err, n ? ERROR_TOO_LARGE : ERROR_INVALID, name, "%zu temperatures, expected 1 to %d", n,
				 QUERY_MAX_TEMPERATURES);
	for (size_t i = 0; i < n && !r; i++) {
		char item[JSON_NAME_BYTES];
		snprintf(item, sizeof item, "%s[%zu]", name, i);
		r = read_float(&q->temperatures[i], json_array_get(v, i), item, err);
	}
	q->n_temperatures = (uint32_t)n;
	return r;
}

int json_read_values(void *to, const json_t *v, const char *name, struct error *err)
{
	static const char *const words[] = {"f32", "f16", "u8", NULL};
	int i = 0;
	int r = json_read_word(v, name, words, &i, err);
	*(enum query_values *)to = (enum query_values)i;
	return r;
}

int json_read_pooling(void *to, const json_t *v, const char *name, struct error *err)
{
	static const char *const words[] = {"none", "mean", "last", NULL};
	int i = 0;
	int r = json_read_word(v, name, words, &i, err);
	*(enum query_pooling *)to = (enum query_pooling)i;
	return r;
}

int json_read_feature_values(void *to, const json_t *v, const char *name, struct error *err)
{
	static const char *const words[] = {"f32", "f16", "bf16", NULL};
	int i = 0;
	int r = json_read_word(v, name, words, &i, err);
	*(enum query_feature_values *)to = (enum query_feature_values)i;
	return r;
}

// ---- draws

static int read_n(void *to, const json_t *v, const char *name, struct error *err)
{
	return json_read_top_k(to, v, name, err);
}

static int read_seed(void *to, const json_t *v, const char *name, struct error *err)
{
	int64_t seed = 0;
	int r = json_read_integer(v, 0, INT64_MAX, name, &seed, err);
	*(uint64_t *)to = (uint64_t)seed;
	return r;
}

int json_read_draws(void *to, const json_t *v, const char *name, struct error *err)
{
	static const struct json_field fields[] = {
		{"n", read_n, true, offsetof(struct query_draws, n)}, {"tau", read_float, false, offsetof(struct query_draws, tau)},
		{"seed", read_seed, true, offsetof(struct query_draws, seed)},
		{"tail", json_field_bool, false, offsetof(struct query_draws, tail)},
	};
	if (!json_is_object(v))
		return json_wrong_type(v, name, "an object", err);
	return json_read_object(v, "draws.", fields, sizeof fields / sizeof *fields, to, err);
}

// ---- features

static int read_kind(void *to, const json_t *v, const char *name, struct error *err)
{
	static const char *const words[] = {"hidden", "final", "q", "k", "v", NULL};
	int i = 0;
	int r = json_read_word(v, name, words, &i, err);
	*(uint8_t *)to = (uint8_t)i;
	return r;
}

static int read_layer(void *to, const json_t *v, const char *name, struct error *err)
{
	int64_t i = 0;
	int r = json_read_integer(v, 0, UINT16_MAX, name, &i, err);
	*(uint16_t *)to = (uint16_t)i;
	return r;
}

int json_read_features(void *to, const json_t *v, const char *name, struct error *err)
{
	static const struct json_field fields[] = {
		{"kind", read_kind, true, offsetof(struct query_feature, kind)},
		{"layer", read_layer, false, offsetof(struct query_feature, layer)},
	};
	struct query *q = to;
	size_t n = json_array_size(v);
	int r = 0;
	if (!json_is_array(v))
		return json_wrong_type(v, name, "an array of objects", err);
	if (!n || n > QUERY_MAX_FEATURES)
		return error_set(err, n ? ERROR_TOO_LARGE : ERROR_INVALID, name, "%zu features, expected 1 to %d", n, QUERY_MAX_FEATURES);
	for (size_t i = 0; i < n && !r; i++) {
		char item[JSON_NAME_BYTES];
		const json_t *one = json_array_get(v, i);
		snprintf(item, sizeof item, "%s[%zu].", name, i);
		r = json_is_object(one) ? json_read_object(one, item, fields, 2, &q->features[i], err)
			: json_wrong_type(one, item, "an object with kind and layer", err);
	}
	q->n_features = (uint32_t)n;
	return r;
}

// ---- ids

static int read_id(const json_t *v, const char *name, size_t i, uint32_t *ret, struct error *err)
{
	char item[JSON_NAME_BYTES];
	int64_t id = 0;
	snprintf(item, sizeof item, "%.40s[%zu]", name, i);
	int r = json_read_integer(v, 0, UINT32_MAX, item, &id, err);
	*ret = (uint32_t)id;
	return r;
}

int json_read_keep(void *to, const json_t *v, const char *name, struct error *err)
{
	struct query *q = to;
	struct sequence ids = {0};
	int r = json_read_tokens(v, name, &ids, err);
	if (!r && !ids.n_tokens)
		r = error_set(err, ERROR_INVALID, name, "there are none");
	if (r) {
		sequence_done(&ids);
		return r;
	}
	q->keep = ids.tokens;
	q->n_keep = ids.n_tokens;
	return 0;
}

static bool is_flat(const json_t *v)
{
	return !json_is_array(json_array_get(v, 0));
}

static int fill_list(const json_t *v, const char *name, struct id_lists *to, struct error *err)
{
	uint32_t at = to->offsets[to->n_lists];
	int r = json_is_array(v) ? 0 : json_wrong_type(v, name, "an array of ids", err);
	for (size_t i = 0; i < json_array_size(v) && !r; i++)
		r = read_id(json_array_get(v, i), name, i, &to->ids[at++], err);
	to->offsets[++to->n_lists] = at;
	return r;
}

// One list of ids, or one for each row. The body, hence every count, is far below 2^32.
static int read_lists(const json_t *v, const char *name, struct id_lists *ret, struct error *err)
{
	size_t n_lists = is_flat(v) ? 1 : json_array_size(v), n_ids = is_flat(v) ? json_array_size(v) : 0;
	struct id_lists lists = {0};
	char item[JSON_NAME_BYTES];
	int r = 0;
	for (size_t i = 0; i < n_lists && !is_flat(v); i++)
		n_ids += json_array_size(json_array_get(v, i));
	lists.offsets = calloc(n_lists + 1, sizeof *lists.offsets);
	lists.ids = calloc(n_ids + 1, sizeof *lists.ids);
	if (!lists.offsets || !lists.ids)
		r = error_set(err, ERROR_MEMORY, name, "no memory for %zu ids", n_ids);
	if (!r && is_flat(v))
		r = fill_list(v, name, &lists, err);
	for (size_t i = 0; i < n_lists && !is_flat(v) && !r; i++) {
		snprintf(item, sizeof item, "%.40s[%zu]", name, i);
		r = fill_list(json_array_get(v, i), item, &lists, err);
	}
	if (r) {
		free(lists.offsets);
		free(lists.ids);
	} else {
		*ret = lists;
	}
	return r;
}

int json_read_gather(const json_t *v, struct request *to, struct error *err)
{
	char name[JSON_NAME_BYTES] = "gather";
	size_t n = json_array_size(v);
	int r = 0;
	if (!json_is_array(v))
		return json_wrong_type(v, name, "an array of ids, or one for each sequence", err);
	if (!n)
		return error_set(err, ERROR_INVALID, name, "there are none");
	if (is_flat(v))
		return read_lists(v, name, &to->query.gather, err);
	if (n != to->n_items)
		return error_set(err, ERROR_INVALID, name, "%zu items for %" PRIu32 " sequences", n, to->n_items);
	for (uint32_t i = 0; i < n && !r; i++) {
		const json_t *one = json_array_get(v, i);
		snprintf(name, sizeof name, "gather[%" PRIu32 "]", i);
		if (!json_is_array(one))
			r = json_wrong_type(one, name, "an array of ids, or one for each row", err);
		else if (json_array_size(one))
			r = read_lists(one, name, &to->items[i].part.gather, err);
	}
	return r;
}

// ---- spans

static int read_span(const json_t *v, const char *name, struct query_span *ret, struct error *err)
{
	int r = json_is_array(v) && json_array_size(v) == 2 ? 0 : error_set(err, ERROR_INVALID, name, "expected [begin, end]");
	if (!r)
		r = read_id(json_array_get(v, 0), name, 0, &ret->begin, err);
	return r ? r : read_id(json_array_get(v, 1), name, 1, &ret->end, err);
}

static int read_spans(const json_t *v, const char *name, struct query_span **ret_spans, uint32_t *ret_n, struct error *err)
{
	size_t n = json_array_size(v);
	struct query_span *spans = calloc(n ? n : 1, sizeof *spans);
	int r = spans ? 0 : error_set(err, ERROR_MEMORY, name, "no memory for %zu spans", n);
	for (size_t i = 0; i < n && !r; i++) {
		char item[JSON_NAME_BYTES];
		snprintf(item, sizeof item, "%.40s[%zu]", name, i);
		r = read_span(json_array_get(v, i), item, &spans[i], err);
	}
	if (r || !n) {
		free(spans);
		return r;
	}
	*ret_spans = spans;
	*ret_n = (uint32_t)n;
	return 0;
}

int json_read_spans(const json_t *v, struct request *to, struct error *err)
{
	char name[JSON_NAME_BYTES] = "spans";
	size_t n = json_array_size(v);
	int r = 0;
	if (!json_is_array(v))
		return json_wrong_type(v, name, "an array of [begin, end], or one for each sequence", err);
	if (!n)
		return error_set(err, ERROR_INVALID, name, "there are none");
	if (is_flat(json_array_get(v, 0)) && json_array_size(json_array_get(v, 0)))
		return read_spans(v, name, &to->query.spans, &to->query.n_spans, err);
	if (n != to->n_items)
		return error_set(err, ERROR_INVALID, name, "%zu items for %" PRIu32 " sequences", n, to->n_items);
	for (uint32_t i = 0; i < n && !r; i++) {
		const json_t *one = json_array_get(v, i);
		snprintf(name, sizeof name, "spans[%" PRIu32 "]", i);
		r = json_is_array(one) ? read_spans(one, name, &to->items[i].part.spans, &to->items[i].part.n_spans, err)
			: json_wrong_type(one, name, "an array of [begin, end]", err);
	}
	return r;
}

// One span over all of each sequence that something comes before.
int json_span_whole(struct request *to, struct error *err)
{
	for (uint32_t i = 0; i < to->n_items; i++) {
		struct query_part *part = &to->items[i].part;
		char name[JSON_NAME_BYTES];
		snprintf(name, sizeof name, "sequences[%" PRIu32 "]", i);
		if (to->items[i].sequence.n_tokens < 2)
			return error_set(err, ERROR_INVALID, name, "has nothing to sum: nothing comes before its only token");
		part->spans = malloc(sizeof *part->spans);
		if (!part->spans)
			return error_set(err, ERROR_MEMORY, name, "no memory for a span");
		part->spans[0] = (struct query_span){1, to->items[i].sequence.n_tokens};
		part->n_spans = 1;
	}
	return 0;
}
