// SPDX-License-Identifier: Apache-2.0
// What each item is worth, by method: from the answers that kdctl score wrote, or from the text itself.
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "clients/kdctl/choice.h"
#include "clients/kdctl/ngrams.h"
#include "clients/kdctl/select.h"

int values_append(struct kdctl *k, struct values *values, double v)
{
	if (values->n == values->capacity) {
		size_t capacity = values->capacity ? 2 * values->capacity : 1024;
		double *larger = reallocarray(values->v, capacity, sizeof *larger);
		if (!larger)
			return kdctl_fail(k, "no memory for %zu values", capacity);
		values->v = larger;
		values->capacity = capacity;
	}
	values->v[values->n++] = v;
	return 0;
}

void values_done(struct values *values)
{
	free(values->v);
	*values = (struct values){0};
}

int line_sum(struct kdctl *k, uint64_t number, const json_t *line, double *ret_sum, uint64_t *ret_tokens)
{
	const json_t *spans = json_object_get(line, "spans"), *sum = json_array_get(spans, 0);
	size_t n = json_array_size(json_object_get(line, "tokens"));
	if (json_array_size(spans) != 1 || !(json_is_number(sum) || json_is_null(sum)))
		return lines_fail(k, number, "spans: one sum is expected (kdctl score --sum)");
	if (n < 2)
		return lines_fail(k, number, "tokens: at least two are expected");
	*ret_sum = json_is_number(sum) ? json_number_value(sum) : NAN;
	*ret_tokens = n - 1;
	return 0;
}

// ---- difference: MiniPLM

struct difference {
	struct kdctl *k;
	struct values *values;           // the reference's losses; then the differences
	struct values ids;               // the first 52 bits of each sequence's id
	size_t n;
};

static double short_id(const json_t *line)
{
	const char *id = json_string_value(json_object_get(line, "id"));
	char head[14] = "";
	strncpy(head, id ? id : "", sizeof head - 1);
	return (double)strtoull(head, NULL, 16);
}

static int mean_loss(struct kdctl *k, uint64_t number, const json_t *line, double *ret)
{
	uint64_t n = 1;
	int status = line_sum(k, number, line, ret, &n);
	*ret = -*ret / (double)n;
	return status;
}

static int take_reference(void *arg, uint64_t number, const json_t *line)
{
	struct difference *d = arg;
	double loss = NAN;
	int status = mean_loss(d->k, number, line, &loss);
	status = status ? status : values_append(d->k, d->values, loss);
	return status ? status : values_append(d->k, &d->ids, short_id(line));
}

static int take_teacher(void *arg, uint64_t number, const json_t *line)
{
	struct difference *d = arg;
	double loss = NAN;
	if (number >= d->values->n)
		return lines_fail(d->k, number, "the reference has fewer items");
	if (short_id(line) != d->ids.v[number])
		return lines_fail(d->k, number, "id: the reference was asked about other tokens here");
	int status = mean_loss(d->k, number, line, &loss);
	d->values->v[number] -= loss;
	d->n++;
	return status;
}

int values_difference(struct kdctl *k, const struct select_options *o, struct values *ret)
{
	struct difference d = {.k = k, .values = ret};
	if (!o->reference_path)
		return kdctl_usage(k, "difference: --reference FILE is needed: the small model's scores");
	int status = lines_each(k, o->reference_path, take_reference, &d);
	status = status ? status : lines_each(k, o->path, take_teacher, &d);
	if (!status && d.n < ret->n)
		status = kdctl_fail(k, "%s: it has %zu items, the reference %zu", o->path, d.n, ret->n);
	values_done(&d.ids);
	return status;
}

// ---- dsir

struct dsir {
	struct kdctl *k;
	const struct select_options *options;
	struct values *values;           // NULL: count
	struct ngrams ngrams;
	uint64_t target[NGRAMS_BUCKETS], raw[NGRAMS_BUCKETS], *counts;
	double ratios[NGRAMS_BUCKETS];
};

static int take_text(void *arg, uint64_t number, const json_t *line)
{
	struct dsir *d = arg;
	const json_t *text = json_object_get(line, "text");
	if (!json_is_string(text))
		return lines_fail(d->k, number, "text: a string is expected");
	d->ngrams = (struct ngrams){0};
	if (ngrams_add(&d->ngrams, json_string_value(text), json_string_length(text)))
		return kdctl_fail(d->k, "no memory");
	for (uint32_t b = 0; !d->values && b < NGRAMS_BUCKETS; b++)
		d->counts[b] += d->ngrams.counts[b];
	if (!d->values)
		return 0;
	double weight = d->ngrams.n_words < d->options->min_words ? NAN : ngrams_log_weight(&d->ngrams, d->ratios);
	return values_append(d->k, d->values, weight + (d->options->top ? 0 : choice_gumbel(d->options->seed, number)));
}

int values_dsir(struct kdctl *k, const struct select_options *o, struct values *ret)
{
	struct dsir *d = calloc(1, sizeof *d);
	if (!d)
		return kdctl_fail(k, "no memory");
	d->k = k;
	d->options = o;
	d->counts = d->target;
	int status = o->n_targets ? 0 : kdctl_usage(k, "dsir: --target FILE is needed: texts of the kind that is wanted");
	if (!status && ngrams_init())
		status = kdctl_fail(k, "dsir: this system has no C.UTF-8 locale");
	for (size_t i = 0; !status && i < o->n_targets; i++)
		status = lines_each(k, o->targets[i], take_text, d);
	d->counts = d->raw;
	status = status ? status : lines_each(k, o->path, take_text, d);
	if (!status) {
		ngrams_log_ratios(d->target, d->raw, d->ratios);
		d->values = ret;
		status = lines_each(k, o->path, take_text, d);
	}
	free(d);
	return status;
}

// ---- queries: robust active distillation

struct queries { struct kdctl *k; struct values *values; };

// 1 - (p_first - p_second), mean over the rows: p_second = p_first e^(difference of the logits)
static int take_gain(void *arg, uint64_t number, const json_t *line)
{
	struct queries *q = arg;
	const json_t *rows = json_object_get(line, "rows"), *row;
	double sum = 0;
	size_t i, n = 0;
	json_array_foreach(rows, i, row) {
		const json_t *logits = json_object_get(row, "logits"), *p = json_object_get(row, "max_prob");
		const char *state = json_string_value(json_object_get(row, "status"));
		if (state && strcmp(state, "ok") != 0)
			continue;
		if (json_array_size(logits) < 2 || !json_is_number(p))
			return lines_fail(q->k, number, "rows: two logits and max_prob are expected (kdctl score --top-k 2 --max-prob)");
		double gap = json_number_value(json_array_get(logits, 1)) - json_number_value(json_array_get(logits, 0));
		sum += 1 - json_number_value(p) * (1 - exp(gap));
		n++;
	}
	return values_append(q->k, q->values, n ? sum / (double)n : NAN);
}

int values_queries(struct kdctl *k, const struct select_options *o, struct values *ret)
{
	struct queries q = {k, ret};
	double value = 0;
	int status = lines_each(k, o->path, take_gain, &q);
	double *p = status ? NULL : reallocarray(NULL, ret->n, sizeof *p);
	if (!status && (!p || choice_queries(ret->v, ret->n, o->bad, p, &value)))
		status = kdctl_fail(k, "no memory for %zu values", ret->n);
	if (!status && value == 0)
		status = kdctl_fail(k, "queries: with --bad %" PRIu64 " there is nothing worth asking about", o->bad);
	for (size_t i = 0; !status && i < ret->n; i++)
		ret->v[i] = p[i] > 0 ? log(p[i]) + (o->top ? 0 : choice_gumbel(o->seed, i)) : NAN;
	free(p);
	return status;
}
