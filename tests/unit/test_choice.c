// SPDX-License-Identifier: Apache-2.0
// Who is asked: names, weights, and fingerprints that tell mixtures apart.
#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "common/error.h"
#include "daemon/teacher/choice.h"

static struct teacher_info teachers[3] = {
	{.name = "a", .fingerprint = {{1}}}, {.name = "b", .fingerprint = {{2}}}, {.name = "c", .fingerprint = {{3}}}};

static struct choice_query mixture(enum head_rule rule, const char *x, double wx, const char *y, double wy)
{
	struct choice_query q = {.is_mixture = true, .rule = rule, .n_members = 2, .members = {{.weight = wx}, {.weight = wy}}};
	strcpy(q.members[0].name, x);
	strcpy(q.members[1].name, y);
	return q;
}

static struct choice resolved(const struct choice_query *q)
{
	struct error err = {0};
	struct choice c;
	if (choice_resolve(q, teachers, 3, &c, &err))
		fail_msg("%s: %s", err.field, err.message);
	return c;
}

static void a_name_is_a_teacher_and_none_is_the_first(void **state)
{
	(void)state;
	struct choice_query q = {0};
	struct choice c = resolved(&q);
	assert_true(!c.is_mixture && c.n_members == 1 && c.members[0] == 0);
	assert_memory_equal(&c.fingerprint, &teachers[0].fingerprint, sizeof c.fingerprint);
	q = (struct choice_query){.n_members = 1, .members = {{"c", 0}}};
	c = resolved(&q);
	assert_int_equal(c.members[0], 2);
	assert_memory_equal(&c.fingerprint, &teachers[2].fingerprint, sizeof c.fingerprint);
	content_id_to_hex(&teachers[1].fingerprint, q.members[0].name);
	c = resolved(&q);
	assert_int_equal(c.members[0], 1);
}

static void weights_of_a_mean_sum_to_one(void **state)
{
	(void)state;
	struct choice_query q = mixture(HEAD_MEAN, "b", 3, "a", 1), same = mixture(HEAD_MEAN, "b", 0.75, "a", 0.25);
	struct choice c = resolved(&q), d = resolved(&same);
	assert_true(c.weights[0] == 0.75 && c.weights[1] == 0.25);
	assert_int_equal(c.members[0], 1);
	assert_int_equal(c.members[1], 0);
	assert_true(choice_equal(&c, &d));
	q = mixture(HEAD_SUM, "b", 3, "a", -1);
	c = resolved(&q);
	assert_true(c.weights[0] == 3 && c.weights[1] == -1);
}

static void mixtures_that_differ_have_fingerprints_that_differ(void **state)
{
	(void)state;
	const struct choice_query all[] = {
		mixture(HEAD_MEAN, "a", 0.5, "b", 0.5), mixture(HEAD_SUM, "a", 0.5, "b", 0.5), mixture(HEAD_SUM, "a", 0.5, "b", -0.5),
		mixture(HEAD_SUM, "a", 1, "b", -0.5), mixture(HEAD_SUM, "a", 0.5, "c", 0.5), mixture(HEAD_MEAN, "a", 0.5, "c", 0.5),
		{.is_mixture = true, .rule = HEAD_SUM, .n_members = 1, .members = {{"a", 0.5}}}, {.n_members = 1, .members = {{"a", 0}}}};
	for (size_t i = 0; i < sizeof all / sizeof *all; i++)
		for (size_t j = 0; j < i; j++) {
			struct choice x = resolved(&all[i]), y = resolved(&all[j]);
			assert_false(choice_equal(&x, &y));
		}
}

static void refused(const struct choice_query *q, int result, const char *field, const char *message)
{
	struct error err = {0};
	struct choice c;
	assert_int_equal(choice_resolve(q, teachers, 3, &c, &err), result);
	assert_string_equal(err.field, field);
	if (!strstr(err.message, message))
		fail_msg("\"%s\" does not say \"%s\"", err.message, message);
}

static void faults_are_named(void **state)
{
	(void)state;
	struct choice_query q = {.n_members = 1, .members = {{"d", 0}}};
	refused(&q, -ENOENT, "teacher", "no teacher is called \"d\"; there are a, b, c");
	q = mixture(HEAD_MEAN, "a", 1, "d", 1);
	refused(&q, -ENOENT, "mixture.members[1].teacher", "\"d\"");
	q = mixture(HEAD_MEAN, "a", 1, "a", 1);
	refused(&q, -EINVAL, "mixture.members[1].teacher", "member already");
	q = mixture(HEAD_MEAN, "a", 1, "b", -1);
	refused(&q, -EINVAL, "mixture.members[1].weight", "above 0");
	static const double bad[] = {0, NAN, INFINITY, -INFINITY, 10001, -10001};
	for (int i = 0; i < 6; i++) {
		q = mixture(HEAD_SUM, "a", bad[i], "b", 1);
		refused(&q, -EINVAL, "mixture.members[0].weight", "not a weight");
	}
	q.n_members = 0;
	refused(&q, -EINVAL, "mixture.members", "0 members");
	q.n_members = CHOICE_MAX_MEMBERS + 1;
	refused(&q, -E2BIG, "mixture.members", "9 members");
}

static void names_have_no_spaces_and_no_slashes(void **state)
{
	(void)state;
	char longest[TEACHER_NAME_BYTES + 1];
	memset(longest, 'x', sizeof longest);
	longest[TEACHER_NAME_BYTES] = 0;
	assert_false(choice_name_is_valid(longest));
	longest[TEACHER_NAME_BYTES - 1] = 0;
	assert_true(choice_name_is_valid(longest));
	assert_true(choice_name_is_valid("Qwen3-0.6B_q8"));
	static const char *const bad[] = {"", "a b", "a/b", "a=b", "\xc3\xa9"};
	for (int i = 0; i < 5; i++)
		assert_false(choice_name_is_valid(bad[i]));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_name_is_a_teacher_and_none_is_the_first),
		cmocka_unit_test(weights_of_a_mean_sum_to_one),
		cmocka_unit_test(mixtures_that_differ_have_fingerprints_that_differ),
		cmocka_unit_test(faults_are_named),
		cmocka_unit_test(names_have_no_spaces_and_no_slashes),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
