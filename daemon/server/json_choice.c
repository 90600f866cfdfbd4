// SPDX-License-Identifier: Apache-2.0
// Who is asked: "teacher": "name", or "mixture": {"rule": "mean", "members": [{"teacher": "name", "weight": 0.7}, ...]}.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/error.h"
#include "daemon/server/json_internal.h"
#include "daemon/teacher/choice.h"

static int read_name(const json_t *v, const char *name, char to[TEACHER_NAME_BYTES], struct error *err)
{
	if (!json_is_string(v))
		return json_wrong_type(v, name, "a string", err);
	size_t n = json_string_length(v);
	if (!n || n >= TEACHER_NAME_BYTES)
		return error_set(err, ERROR_INVALID, name, "a name of %zu bytes, expected 1 to %d", n, TEACHER_NAME_BYTES - 1);
	memcpy(to, json_string_value(v), n + 1);
	return 0;
}

static int check_first(const struct choice_query *q, struct error *err)
{
	return q->n_members ? error_set(err, ERROR_INVALID, "mixture", "give either teacher or mixture") : 0;
}

int json_read_teacher(void *to, const json_t *v, const char *name, struct error *err)
{
	struct choice_query *q = to;
	int r = check_first(q, err);
	q->n_members = 1;
	return r ? r : read_name(v, name, q->members[0].name, err);
}

static int read_member_teacher(void *to, const json_t *v, const char *name, struct error *err)
{
	return read_name(v, name, ((struct choice_member *)to)->name, err);
}

static int read_member_weight(void *to, const json_t *v, const char *name, struct error *err)
{
	((struct choice_member *)to)->weight = json_number_value(v);
	return json_is_number(v) ? 0 : json_wrong_type(v, name, "a number", err);
}

static int read_rule(void *to, const json_t *v, const char *name, struct error *err)
{
	static const char *const words[] = {"logits", "mean", NULL};
	int i = 0;
	int r = json_read_word(v, name, words, &i, err);
	((struct choice_query *)to)->rule = i ? HEAD_MEAN : HEAD_SUM;
	return r;
}

static int read_members(void *to, const json_t *v, const char *name, struct error *err)
{
	static const struct json_field fields[] = {{"teacher", read_member_teacher, true, 0}, {"weight", read_member_weight, false, 0}};
	struct choice_query *q = to;
	size_t n = json_array_size(v);
	if (!json_is_array(v))
		return json_wrong_type(v, name, "an array of teachers and weights", err);
	if (!n || n > CHOICE_MAX_MEMBERS)
		return error_set(err, n ? ERROR_TOO_LARGE : ERROR_INVALID, name, "%zu members, expected 1 to %d", n, CHOICE_MAX_MEMBERS);
	for (size_t i = 0; i < n; i++) {
		char prefix[JSON_NAME_BYTES];
		snprintf(prefix, sizeof prefix, "%s[%zu]", name, i);
		const json_t *member = json_array_get(v, i);
		if (!json_is_object(member))
			return json_wrong_type(member, prefix, "an object with teacher and weight", err);
		snprintf(prefix, sizeof prefix, "%s[%zu].", name, i);
		q->members[i].weight = 1;
		int r = json_read_object(member, prefix, fields, 2, &q->members[i], err);
		if (r)
			return r;
	}
	q->n_members = (uint32_t)n;
	return 0;
}

int json_read_mixture(void *to, const json_t *v, const char *name, struct error *err)
{
	static const struct json_field fields[] = {{"rule", read_rule, true, 0}, {"members", read_members, true, 0}};
	struct choice_query *q = to;
	char prefix[JSON_NAME_BYTES];
	int r = check_first(q, err);
	if (r)
		return r;
	if (!json_is_object(v))
		return json_wrong_type(v, name, "an object with rule and members", err);
	snprintf(prefix, sizeof prefix, "%s.", name);
	q->is_mixture = true;
	return json_read_object(v, prefix, fields, 2, q, err);
}
