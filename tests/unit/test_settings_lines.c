// SPDX-License-Identifier: Apache-2.0
// What a resumed run must repeat: each setting of the table is compared, or is known to leave the numbers alone.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "common/error.h"
#include "daemon/train/settings.h"

// A new setting that changes no number is named here and in settings_lines.c; any other is compared.
static const char *const free_keys[] = {
	"teacher", "server", "ca", "server-name", "teacher-id", "other-teacher", "token-file", "patience", "store", "missing", "tokenizer",
	"corpus", "held-out", "held-out-max", "student", "student-tokenizer", "student-type", "gradient-checkpointing",
	"gradient-checkpointing-layers", "steps", "epochs", "evaluate-every", "early-stop", "checkpoint-every", "keep", "threads", "device",
	"precision", "guard", "guard-fit", "guard-checks",
};
#define N_FREE (sizeof free_keys / sizeof *free_keys)

static void settings_make(struct run_settings *s, const char *text)
{
	size_t n;
	struct error err = {0};
	const struct config_option *table = settings_table(&n);
	assert_int_equal(settings_init(s, &err), 0);
	if (config_read_text(table, n, s, text, strlen(text), "test", &err))
		fail_msg("%s", err.message);
}

static char *lines_of(const char *text)
{
	struct run_settings s;
	char *lines = NULL;
	size_t n;
	FILE *f = open_memstream(&lines, &n);
	settings_make(&s, text);
	settings_print_lines(f, &s);
	fclose(f);
	settings_done(&s);
	return lines;
}

static void assert_differs(const char *began, const char *now, const char *key)
{
	struct error err = {0};
	char *a = lines_of(began), *b = lines_of(now);
	int r = settings_compare_lines(a, b, &err);
	if (key) {
		assert_int_equal(r, error_errno(ERROR_CONFLICT));
		assert_string_equal(err.field, key);
	} else if (r) {
		fail_msg("%s: %s", err.field, err.message);
	}
	free(a), free(b);
}

// Another value than `fallback`, within the row's limits.
static void other_value(const struct config_option *o, char *ret, size_t room)
{
	const char *second = strchr(o->choices, '|');
	double v = strtod(o->fallback, NULL);
	switch (o->type) {
	case CONFIG_INTEGER:
		snprintf(ret, room, "%.0f", v + 1 <= o->max ? v + 1 : v - 1);
		break;
	case CONFIG_REAL:
		snprintf(ret, room, "%.17g", v + 0.25 <= o->max ? v + 0.25 : v / 2);
		break;
	case CONFIG_BOOL:
		snprintf(ret, room, "%s", strcmp(o->fallback, "no") == 0 ? "yes" : "no");
		break;
	case CONFIG_CHOICE:
		snprintf(ret, room, "%s", strncmp(o->choices, o->fallback, strlen(o->fallback)) == 0 ? second + 1 : o->choices);
		ret[strcspn(ret, "|")] = '\0';
		break;
	case CONFIG_DURATION:
		snprintf(ret, room, "17min");
		break;
	default:
		snprintf(ret, room, "linear:0.125:0.5");
	}
}

static void each_setting_is_compared_or_known_to_change_nothing(void **state)
{
	(void)state;
	static const char base[] = "rollouts = 0.5\nmlm = yes\n";      // so that what belongs to them counts
	size_t n, n_free = 0;
	const struct config_option *table = settings_table(&n);
	for (size_t i = 0; i < n; i++) {
		char value[128], now[256];
		bool expected = true, based = strstr(base, table[i].name) == base || strcmp(table[i].name, "mlm") == 0;
		for (size_t k = 0; k < N_FREE; k++)
			expected = expected && strcmp(table[i].name, free_keys[k]) != 0;
		n_free += !expected;
		other_value(&table[i], value, sizeof value);
		if (strcmp(table[i].name, "mlm") == 0)
			snprintf(value, sizeof value, "no");
		snprintf(now, sizeof now, "%s%s = %s\n", based ? (strcmp(table[i].name, "mlm") == 0 ? "rollouts = 0.5\n" : "mlm = yes\n")
			 : base, table[i].name, value);
		assert_differs(base, now, expected ? table[i].name : NULL);
	}
	assert_int_equal(n_free, N_FREE);              // each of them is a setting
}

static void what_is_written_otherwise_is_the_same(void **state)
{
	(void)state;
	assert_differs("learning-rate = 0.0006\nloss = jsd   beta=0.5\nloss = taid\n",
		"loss = jsd beta=0.5\nloss = taid\nlearning-rate = 6e-4\n", NULL);
	assert_differs("loss = jsd\nloss = taid\n", "loss = taid\nloss = jsd\n", "loss");
	assert_differs("loss = jsd\nloss = taid\n", "loss = jsd\n", "loss");
	assert_differs("corpus-field = text\n", "corpus-field = other\n", "corpus-field");
}

static void what_has_no_part_in_the_run_is_not_compared(void **state)
{
	(void)state;
	assert_differs("rollout-tokens = 3\nmlm-probability = 0.2\nevaluate-every = 3\n", "", NULL);
	assert_differs("rollouts = 1\nrollout-tokens = 3\n", "rollouts = 1\n", "rollout-tokens");
	assert_differs("rollouts = adaptive\nevaluate-every = 3\n", "rollouts = adaptive\n", "evaluate-every");
	assert_differs("student = /a\nstudent-width = 64\n", "student = /b\n", NULL);
	assert_differs("student-width = 64\n", "", "student-width");
}

static void lines_of_another_build_are_compared_where_both_have_them(void **state)
{
	(void)state;
	struct error err = {0};
	assert_int_equal(settings_compare_lines("new-key = 1\nseed = 1\n", "old-key = 3\nseed = 1\n", &err), 0);
	assert_int_equal(settings_compare_lines("see = 2\nseed = 1", "seed = 2", &err), error_errno(ERROR_CONFLICT));
	assert_string_equal(err.field, "seed");
	assert_string_equal(err.message, "is \"2\", this run began with \"1\": it cannot be resumed");
	assert_int_equal(settings_compare_lines("", "seed = 2", &err), 0);
	assert_int_equal(settings_compare_lines("\n\nno line\nseed =\n", "seed = 2\nno line\n\n", &err), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(each_setting_is_compared_or_known_to_change_nothing),
		cmocka_unit_test(what_is_written_otherwise_is_the_same),
		cmocka_unit_test(what_has_no_part_in_the_run_is_not_compared),
		cmocka_unit_test(lines_of_another_build_are_compared_where_both_have_them),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
