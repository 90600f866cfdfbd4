// SPDX-License-Identifier: Apache-2.0
// How much of each domain to train on next (DDK): from a student's and a teacher's scores of the same held-out items.
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "clients/kdctl/select.h"
#include "common/domain.h"
#include "daemon/jansson.h"

#define DOMAINS_MAX 1024

struct domain { char *name; double sums[2]; uint64_t n_tokens[2]; };       // [0] of the student, [1] of the teacher

struct domains {
	struct kdctl *k;
	struct domain list[DOMAINS_MAX];
	size_t n;
	struct values numbers;           // domain of each item
	uint64_t n_lines;
	int side;
};

static int take_domain(void *arg, uint64_t number, const json_t *line)
{
	struct domains *d = arg;
	const char *name = json_string_value(json_object_get(line, "domain"));
	size_t i = 0;
	if (!name)
		return lines_fail(d->k, number, "domain: a name is expected");
	while (i < d->n && strcmp(d->list[i].name, name) != 0)
		i++;
	if (i == DOMAINS_MAX)
		return lines_fail(d->k, number, "domain: there are more than 1024");
	if (i == d->n && !(d->list[d->n++].name = strdup(name)))
		return kdctl_fail(d->k, "no memory");
	return values_append(d->k, &d->numbers, (double)i);
}

static int take_score(void *arg, uint64_t number, const json_t *line)
{
	struct domains *d = arg;
	double sum = NAN;
	uint64_t n = 0;
	if (number >= d->numbers.n)
		return lines_fail(d->k, number, "there are more scores than items");
	int status = line_sum(d->k, number, line, &sum, &n);
	if (status)
		return status;
	struct domain *to = &d->list[(size_t)d->numbers.v[number]];
	to->sums[d->side] += sum;
	to->n_tokens[d->side] += n;
	d->n_lines++;
	return 0;
}

static int read_side(struct domains *d, const char *path, int side)
{
	d->side = side;
	d->n_lines = 0;
	int status = lines_each(d->k, path, take_score, d);
	if (!status && d->n_lines != d->numbers.n)
		status = kdctl_fail(d->k, "%s: it has %" PRIu64 " scores, but there are %zu items", path, d->n_lines, d->numbers.n);
	return status;
}

// The weights that an earlier call printed, in the order of our domains.
static int read_previous(struct domains *d, const char *path, double *ret)
{
	size_t n;
	char *text = read_text_file(d->k, path, &n);
	bool starved = false;
	json_t *j = text ? jansson_load(text, n, JSON_REJECT_DUPLICATES, NULL, &starved) : NULL;
	int status = starved ? kdctl_fail(d->k, "%s: no memory", path) : text ? 0 : 1;
	for (size_t i = 0; !status && i < d->n; i++) {
		const json_t *w = json_object_get(json_object_get(j, "weights"), d->list[i].name);
		ret[i] = json_number_value(w);
		if (!json_is_number(w) || ret[i] < 0)
			status = kdctl_fail(d->k, "%s: weights: there is none for domain %s", path, d->list[i].name);
	}
	json_decref(j);
	free(text);
	return status;
}

static int print(struct domains *d, const double *perplexities /*(2, n)*/, const double *weights)
{
	json_t *w = json_object(), *p = json_object();
	for (size_t i = 0; i < d->n; i++) {
		if (!isfinite(weights[i])) {
			json_decref(w);
			json_decref(p);
			return kdctl_fail(d->k, "domain %s: its scores are not finite", d->list[i].name);
		}
		json_object_set_new(w, d->list[i].name, json_real(weights[i]));
		json_object_set_new(p, d->list[i].name, json_pack("[f, f]", perplexities[i], perplexities[d->n + i]));
	}
	json_t *j = json_pack("{s:o, s:o}", "weights", w, "perplexities", p);
	kdctl_print_json(j);
	json_decref(j);
	return 0;
}

static int weigh(struct domains *d, const struct select_options *o)
{
	double *numbers = calloc(d->n, 4 * sizeof *numbers), *perplexities = numbers, *previous = numbers + 2 * d->n,
		*weights = previous + d->n;
	int status = numbers ? 0 : kdctl_fail(d->k, "no memory");
	for (size_t i = 0; !status && i < 2 * d->n; i++) {
		const struct domain *from = &d->list[i % d->n];
		size_t who = i / d->n;
		perplexities[i] = exp(-from->sums[who] / (double)from->n_tokens[who]);
	}
	if (!status && o->previous_path)
		status = read_previous(d, o->previous_path, previous);
	if (!status) {
		domain_shares(perplexities, perplexities + d->n, o->previous_path ? previous : NULL, d->n, o->alpha, weights);
		status = print(d, perplexities, weights);
	}
	free(numbers);
	return status;
}

int select_domains(struct kdctl *k, const struct select_options *o)
{
	if (!o->student_path || !o->items_path)
		return kdctl_usage(k, "domains: --student FILE and --items FILE are needed");
	struct domains *d = calloc(1, sizeof *d);
	if (!d)
		return kdctl_fail(k, "no memory");
	d->k = k;
	int status = lines_each(k, o->items_path, take_domain, d);
	status = status ? status : read_side(d, o->student_path, 0);
	status = status ? status : read_side(d, o->path, 1);
	status = status ? status : weigh(d, o);
	for (size_t i = 0; i < d->n; i++)
		free(d->list[i].name);
	values_done(&d->numbers);
	free(d);
	return status;
}
