// SPDX-License-Identifier: Apache-2.0
// state.json of a checkpoint: where the run is, as JSON and back; and whether another run could go on from there.
#include "daemon/worker/snapshot_internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define SNAPSHOT_VERSION 4

static json_t *evaluation_to_json(const struct student_evaluation *e)
{
	return json_pack("{s:f, s:f, s:f, s:f, s:f, s:f, s:I}", "kl", e->kl, "ce", e->ce, "agreement", e->agreement, "teacher_ce",
			 isfinite(e->teacher_ce) ? e->teacher_ce : -1.0, "bits_per_byte",
			 isfinite(e->bits_per_byte) ? e->bits_per_byte : -1.0, "teacher_bits_per_byte",
			 isfinite(e->teacher_bits_per_byte) ? e->teacher_bits_per_byte : -1.0, "n_positions", (json_int_t)e->n_positions);
}

static json_t *adaptive_to_json(const struct snapshot_state *s)
{
	json_t *list = json_array();
	for (uint64_t i = 0; i < s->n_adaptive; i++)
		if (json_array_append_new(list, json_real(s->adaptive[i]))) {
			json_decref(list);
			return NULL;
		}
	return list;
}

// Checkpoints of before there were any have none.
static bool adaptive_from_json(const json_t *j, struct snapshot_state *s)
{
	const json_t *list = json_object_get(j, "adaptive");
	s->n_adaptive = json_array_size(list);
	if ((list && !json_is_array(list)) || s->n_adaptive > SNAPSHOT_MAX_ADAPTIVE)
		return false;
	for (size_t i = 0; i < s->n_adaptive; i++) {
		s->adaptive[i] = json_number_value(json_array_get(list, i));
		if (!json_is_number(json_array_get(list, i)))
			return false;
	}
	return true;
}

_Static_assert(sizeof(struct guard_state) == 11 * sizeof(double), "guard_state holds doubles alone");

static json_t *guard_to_json(const struct guard_state *g)
{
	double values[GUARD_N_STATE];
	json_t *list = json_array();
	int bad = !list;
	memcpy(values, g, sizeof values);
	for (size_t i = 0; !bad && i < GUARD_N_STATE; i++)
		bad = json_array_append_new(list, json_real(values[i]));
	if (bad)
		json_decref(list);
	return bad ? NULL : list;
}

static bool guard_from_json(const json_t *list, struct guard_state *ret)
{
	double values[GUARD_N_STATE];
	if (json_array_size(list) != GUARD_N_STATE)
		return false;
	for (size_t i = 0; i < GUARD_N_STATE; i++) {
		values[i] = json_number_value(json_array_get(list, i));
		if (!json_is_number(json_array_get(list, i)))
			return false;
	}
	memcpy(ret, values, sizeof values);
	return true;
}

static json_t *domains_to_json(const struct dataset_domains *d)
{
	json_t *shares = json_array(), *taken = json_array();
	int bad = !shares || !taken;
	for (uint64_t i = 0; i < d->n; i++) {
		bad |= json_array_append_new(shares, json_real(d->shares[i]));
		bad |= json_array_append_new(taken, json_integer((json_int_t)d->taken[i]));
	}
	if (bad) {
		json_decref(shares);
		json_decref(taken);
		return NULL;
	}
	return json_pack("{s:I, s:o, s:o}", "position", (json_int_t)d->position, "shares", shares, "taken", taken);
}

// None: the run has no domains.
static bool domains_from_json(const json_t *j, struct dataset_domains *d)
{
	const json_t *shares = json_object_get(j, "shares"), *taken = json_object_get(j, "taken");
	if (!j)
		return true;
	d->n = json_array_size(shares);
	if (d->n == 0 || d->n > DATASET_MAX_DOMAINS || json_array_size(taken) != d->n || !snapshot_integer(j, "position", &d->position))
		return false;
	for (size_t i = 0; i < d->n; i++) {
		const json_t *share = json_array_get(shares, i), *n = json_array_get(taken, i);
		if (!json_is_number(share) || !json_is_integer(n) || json_integer_value(n) < 0)
			return false;
		d->shares[i] = json_number_value(share);
		d->taken[i] = (uint64_t)json_integer_value(n);
	}
	return true;
}

json_t *snapshot_state_encode(const struct snapshot_state *s)
{
	char teacher[CONTENT_ID_HEX], dataset[CONTENT_ID_HEX];
	content_id_to_hex(&s->teacher, teacher);
	content_id_to_hex(&s->dataset, dataset);
	json_t *j = json_pack("{s:I, s:I, s:I, s:I, s:I, s:f, s:s, s:s, s:I, s:I, s:I, s:I, s:I, s:I}",
			      "version", (json_int_t)SNAPSHOT_VERSION, "step", (json_int_t)s->step, "position", (json_int_t)s->position,
			      "n_positions", (json_int_t)s->n_positions, "n_masked", (json_int_t)s->n_masked, "seconds", s->seconds,
			      "teacher", teacher, "dataset", dataset, "seed", (json_int_t)s->seed,
			      "sequence_length", (json_int_t)s->sequence_length, "batch", (json_int_t)s->batch,
			      "n_held_out", (json_int_t)s->n_held_out, "sequential", (json_int_t)s->sequential,
			      "n_evaluations", (json_int_t)s->n_evaluations);
	int bad = j ? json_object_set_new(j, "adaptive", adaptive_to_json(s)) : 0;
	if (j && !bad)
		bad = json_object_set_new(j, "rollout_chance", json_real(s->rollout_chance)) |
		      json_object_set_new(j, "rollout_reference", json_real(s->rollout_reference)) |
		      json_object_set_new(j, "guard", guard_to_json(&s->guard));
	if (j && !bad && s->domains.n)
		bad = json_object_set_new(j, "domains", domains_to_json(&s->domains));
	if (bad) {
		json_decref(j);
		return NULL;
	}
	if (!j || !s->n_evaluations)
		return j;
	bad = json_object_set_new(j, "before", evaluation_to_json(&s->before));
	bad |= json_object_set_new(j, "last", evaluation_to_json(&s->last));
	bad |= json_object_set_new(j, "best", evaluation_to_json(&s->best));
	bad |= json_object_set_new(j, "best_evaluation", json_integer((json_int_t)s->best_evaluation));
	if (bad) {
		json_decref(j);
		return NULL;
	}
	return j;
}

bool snapshot_integer(const json_t *j, const char *key, uint64_t *ret)
{
	const json_t *v = json_object_get(j, key);
	if (!json_is_integer(v) || json_integer_value(v) < 0)
		return false;
	*ret = (uint64_t)json_integer_value(v);
	return true;
}

static bool number_of(const json_t *j, const char *key, double *ret)
{
	const json_t *v = json_object_get(j, key);
	*ret = json_number_value(v);
	return json_is_number(v);
}

static bool evaluation_from_json(const json_t *j, struct student_evaluation *e)
{
	bool good = number_of(j, "kl", &e->kl) && number_of(j, "ce", &e->ce) && number_of(j, "agreement", &e->agreement) &&
		    number_of(j, "teacher_ce", &e->teacher_ce) && snapshot_integer(j, "n_positions", &e->n_positions);
	bool bits = number_of(j, "bits_per_byte", &e->bits_per_byte) && number_of(j, "teacher_bits_per_byte", &e->teacher_bits_per_byte);
	if (e->teacher_ce < 0)
		e->teacher_ce = NAN;
	if (!bits || e->bits_per_byte < 0)             // older checkpoints have none
		e->bits_per_byte = NAN;
	if (!bits || e->teacher_bits_per_byte < 0)
		e->teacher_bits_per_byte = NAN;
	return good;
}

static bool id_of(const json_t *j, const char *key, struct content_id *ret)
{
	const char *hex = json_string_value(json_object_get(j, key));
	return hex && content_id_from_hex(hex, ret) == 0;
}

bool snapshot_state_decode(const json_t *j, struct snapshot_state *s)
{
	uint64_t version;
	*s = (struct snapshot_state){0};
	if (!snapshot_integer(j, "version", &version) || version != SNAPSHOT_VERSION)
		return false;
	bool good = snapshot_integer(j, "step", &s->step) && snapshot_integer(j, "position", &s->position) &&
		    snapshot_integer(j, "n_positions", &s->n_positions) && snapshot_integer(j, "n_masked", &s->n_masked) &&
		    number_of(j, "seconds", &s->seconds) && id_of(j, "teacher", &s->teacher) && id_of(j, "dataset", &s->dataset) &&
		    snapshot_integer(j, "seed", &s->seed) && snapshot_integer(j, "sequence_length", &s->sequence_length) &&
		    snapshot_integer(j, "batch", &s->batch) && snapshot_integer(j, "n_held_out", &s->n_held_out) &&
		    snapshot_integer(j, "sequential", &s->sequential) && adaptive_from_json(j, s) &&
		    domains_from_json(json_object_get(j, "domains"), &s->domains) && number_of(j, "rollout_chance", &s->rollout_chance) &&
		    number_of(j, "rollout_reference", &s->rollout_reference) && guard_from_json(json_object_get(j, "guard"), &s->guard) &&
		    snapshot_integer(j, "n_evaluations", &s->n_evaluations);
	if (good && s->n_evaluations)
		good = evaluation_from_json(json_object_get(j, "before"), &s->before) &&
		       evaluation_from_json(json_object_get(j, "last"), &s->last) &&
		       evaluation_from_json(json_object_get(j, "best"), &s->best) &&
		       snapshot_integer(j, "best_evaluation", &s->best_evaluation);
	return good;
}

json_t *snapshot_settings_encode(const char *lines)
{
	json_t *list = json_array();
	int bad = !list;
	while (!bad && *lines) {
		size_t n = strcspn(lines, "\n");
		bad = json_array_append_new(list, json_stringn(lines, n));
		lines += n + (lines[n] == '\n');
	}
	if (bad)
		json_decref(list);
	return bad ? NULL : list;
}

char *snapshot_settings_decode(const json_t *list)
{
	size_t room = 1, i;
	const json_t *line;
	json_array_foreach(list, i, line)
		room += json_string_length(line) + 1;
	char *text = json_is_array(list) ? malloc(room) : NULL, *to = text;
	if (!text)
		return NULL;
	json_array_foreach(list, i, line) {
		size_t n = json_string_length(line);
		if (n)
			memcpy(to, json_string_value(line), n);
		to[n] = '\n';
		to += n + 1;
	}
	*to = '\0';
	return text;
}

const char *snapshot_difference(const struct snapshot_state *a, const struct snapshot_state *b)
{
	return memcmp(&a->teacher, &b->teacher, sizeof a->teacher)         ? "teacher"
		: memcmp(&a->dataset, &b->dataset, sizeof a->dataset)      ? "corpus"
		: a->seed != b->seed                                       ? "seed"
		: a->sequence_length != b->sequence_length                 ? "sequence-length"
		: a->batch != b->batch                                     ? "micro-batch"
		: a->n_held_out != b->n_held_out                           ? "held-out"
		: a->sequential != b->sequential                           ? "order"
		: a->n_adaptive != b->n_adaptive                           ? "loss"
		: a->domains.n != b->domains.n                             ? "domains"
									    : NULL;
}

int snapshot_compare(const struct snapshot_state *saved, const struct snapshot_state *now, struct error *err)
{
	const char *what = snapshot_difference(saved, now);
	if (!what)
		return 0;
	if (strcmp(what, "teacher") == 0)
		return error_set(err, ERROR_CONFLICT, what, "the teacher is another one than this run began with");
	return error_set(err, ERROR_CONFLICT, what, "%s differs from what this run began with: it cannot be resumed", what);
}
