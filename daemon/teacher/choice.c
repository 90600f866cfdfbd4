// SPDX-License-Identifier: Apache-2.0
#include "daemon/teacher/choice.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "common/error.h"

bool choice_name_is_valid(const char *name)
{
	static const char characters[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-";
	size_t n = strlen(name);
	return n > 0 && n < TEACHER_NAME_BYTES && strspn(name, characters) == n;
}

bool choice_equal(const struct choice *a, const struct choice *b)
{
	return memcmp(&a->fingerprint, &b->fingerprint, sizeof a->fingerprint) == 0;
}

int choice_find(const char *name, const char *field, const struct teacher_info *teachers, uint32_t n_teachers, uint32_t *ret,
		struct error *err)
{
	char names[160] = "", id[CONTENT_ID_HEX];
	size_t at = 0;
	for (uint32_t i = 0; i < n_teachers; i++) {
		content_id_to_hex(&teachers[i].fingerprint, id);
		if (strcmp(teachers[i].name, name) == 0 || strcmp(id, name) == 0) {
			*ret = i;
			return 0;
		}
		if (at < sizeof names)
			at += (size_t)snprintf(names + at, sizeof names - at, "%s%s", i ? ", " : "", teachers[i].name);
	}
	return error_set(err, ERROR_NOT_FOUND, field, "no teacher is called \"%s\"; there %s %s", name,
		n_teachers == 1 ? "is" : "are", names);
}

static int check_member(const struct choice_query *q, uint32_t i, const struct choice *c, struct error *err)
{
	double w = q->members[i].weight;
	char field[64];
	snprintf(field, sizeof field, "mixture.members[%" PRIu32 "].weight", i);
	if (!(fabs(w) <= CHOICE_MAX_WEIGHT) || w == 0)        // NaN fails the first
		return error_set(err, ERROR_INVALID, field, "%g is not a weight from %g to %g other than 0", w, -CHOICE_MAX_WEIGHT,
				 CHOICE_MAX_WEIGHT);
	if (q->rule == HEAD_MEAN && w < 0)
		return error_set(err, ERROR_INVALID, field, "%g: in a mean of probabilities weights are above 0", w);
	snprintf(field, sizeof field, "mixture.members[%" PRIu32 "].teacher", i);
	for (uint32_t j = 0; j < i; j++)
		if (c->members[j] == c->members[i])
			return error_set(err, ERROR_INVALID, field, "\"%s\" is a member already", q->members[i].name);
	return 0;
}

static void encode_u64(uint8_t *to, uint64_t v)
{
	for (int i = 0; i < 8; i++)
		to[i] = (uint8_t)(v >> 8 * i);
}

// SHA-256("kdserved mixture 1\n", rule u8, then of each member: its fingerprint, its weight f64 little-endian).
static struct content_id fingerprint_of(const struct choice *c, const struct teacher_info *teachers)
{
	static const char label[] = "kdserved mixture 1\n";
	uint8_t bytes[sizeof label + CHOICE_MAX_MEMBERS * (CONTENT_ID_BYTES + 8)];
	size_t n = sizeof label - 1;
	memcpy(bytes, label, n);
	bytes[n++] = (uint8_t)c->rule;
	for (uint32_t i = 0; i < c->n_members; i++, n += CONTENT_ID_BYTES + 8) {
		uint64_t bits;
		memcpy(&bits, &c->weights[i], sizeof bits);
		memcpy(bytes + n, &teachers[c->members[i]].fingerprint, CONTENT_ID_BYTES);
		encode_u64(bytes + n + CONTENT_ID_BYTES, bits);
	}
	return content_id_of(bytes, n);
}

static int resolve_mixture(const struct choice_query *q, const struct teacher_info *teachers, uint32_t n_teachers, struct choice *c,
			   struct error *err)
{
	double sum = 0;
	if (!q->n_members || q->n_members > CHOICE_MAX_MEMBERS)
		return error_set(err, q->n_members ? ERROR_TOO_LARGE : ERROR_INVALID, "mixture.members",
				 "%" PRIu32 " members, expected 1 to %d", q->n_members, CHOICE_MAX_MEMBERS);
	for (uint32_t i = 0; i < q->n_members; i++) {
		char field[64];
		snprintf(field, sizeof field, "mixture.members[%" PRIu32 "].teacher", i);
		int r = choice_find(q->members[i].name, field, teachers, n_teachers, &c->members[i], err);
		if (!r)
			r = check_member(q, i, c, err);
		if (!r && teachers[c->members[i]].architecture.masked != teachers[c->members[0]].architecture.masked)
			r = error_set(err, ERROR_INVALID, field,
				"a teacher that names masked tokens and one that names the next do not mix");
		if (r)
			return r;
		c->weights[i] = q->members[i].weight;
		sum += c->weights[i];
	}
	for (uint32_t i = 0; i < q->n_members && q->rule == HEAD_MEAN; i++)
		c->weights[i] /= sum;
	c->fingerprint = fingerprint_of(c, teachers);
	return 0;
}

int choice_resolve(const struct choice_query *q, const struct teacher_info *teachers, uint32_t n_teachers, struct choice *ret,
		   struct error *err)
{
	struct choice c = {.is_mixture = q->is_mixture, .rule = q->rule, .n_members = q->is_mixture ? q->n_members : 1};
	int r = 0;
	if (q->is_mixture)
		r = resolve_mixture(q, teachers, n_teachers, &c, err);
	else if (q->n_members)
		r = choice_find(q->members[0].name, "teacher", teachers, n_teachers, &c.members[0], err);
	if (r)
		return r;
	if (!q->is_mixture)
		c.fingerprint = teachers[c.members[0]].fingerprint;
	*ret = c;
	return 0;
}
