// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "common/error.h"
#include "daemon/config.h"

struct settings {
	char *text;
	struct config_list list;
	int64_t integer;
	uint64_t size, duration;
	double real;
	struct config_amount amount;
	bool flag;
	int choice;
};

static const struct config_option table[] = {
	{"text", CONFIG_STRING, 0, 0, "hello", "", "", "some text", offsetof(struct settings, text), 0, false},
	{"socket", CONFIG_LIST, 0, 0, "unix:/a", "", "ADDRESS", "where", offsetof(struct settings, list), 0, false},
	{"max-top-k", CONFIG_INTEGER, -5, 100, "7", "", "ids", "how many", offsetof(struct settings, integer), 0, false},
	{"max-body", CONFIG_SIZE, 1024, 1 << 30, "32M", "", "bytes", "how big", offsetof(struct settings, size), 0, false},
	{"timeout", CONFIG_DURATION, 100, 3600000, "10s", "", "", "how long", offsetof(struct settings, duration), 0, false},
	{"rate", CONFIG_REAL, 0, 1, "0.5", "", "", "how fast", offsetof(struct settings, real), 0, false},
	{"memory", CONFIG_AMOUNT, 1024, 1 << 30, "", "", "bytes", "how much", offsetof(struct settings, amount), 0, false},
	{"flag", CONFIG_BOOL, 0, 0, "no", "", "", "whether", offsetof(struct settings, flag), 0, false},
	{"device", CONFIG_CHOICE, 0, 0, "auto", "auto|cpu|cuda|ref", "", "which", offsetof(struct settings, choice), 0, false},
};
#define N_TABLE (sizeof table / sizeof *table)

static int start(void **state)
{
	struct settings *s = calloc(1, sizeof *s);
	assert_int_equal(config_init(table, N_TABLE, s, NULL), 0);
	*state = s;
	return 0;
}

static int stop(void **state)
{
	config_done(table, N_TABLE, *state);
	free(*state);
	return 0;
}

static int set(struct settings *s, const char *name, const char *value, struct error *err)
{
	return config_set(table, N_TABLE, s, name, value, "test:1", err);
}

static int read_text(struct settings *s, const char *text, struct error *err)
{
	return config_read_text(table, N_TABLE, s, text, strlen(text), "test.conf", err);
}

static void an_amount_is_a_size_or_a_share(void **state)
{
	struct settings *s = *state;
	assert_true(s->amount.bytes == 0 && s->amount.share == 0);
	assert_int_equal(set(s, "memory", "0.9", NULL), 0);
	assert_true(s->amount.bytes == 0 && s->amount.share == 0.9);
	assert_int_equal(set(s, "memory", "512M", NULL), 0);
	assert_true(s->amount.bytes == 512 << 20 && s->amount.share == 0);
	assert_int_equal(set(s, "memory", "1.0", NULL), 0);
	assert_true(s->amount.share == 1);
	assert_int_equal(set(s, "memory", "", NULL), 0);
	assert_true(s->amount.bytes == 0 && s->amount.share == 0);
}

static void defaults_are_the_rows(void **state)
{
	struct settings *s = *state;
	assert_string_equal(s->text, "hello");
	assert_int_equal(s->list.n, 1);
	assert_int_equal(s->integer, 7);
	assert_int_equal(s->size, 32u << 20);
	assert_int_equal(s->duration, 10000);
	assert_true(s->real == 0.5);
	assert_false(s->flag);
	assert_int_equal(s->choice, 0);
}

static void a_file_sets_every_type(void **state)
{
	struct settings *s = *state;
	struct error err;
	assert_int_equal(read_text(s, "# comment\n\n text =  a b # tail\r\nmax-top-k=-3\nmax-body = 2 K\ntimeout = 250ms\nrate=1e-3\n"
				   "flag = yes\ndevice = cuda", &err), 0);
	assert_string_equal(s->text, "a b");
	assert_int_equal(s->integer, -3);
	assert_int_equal(s->size, 2048);
	assert_int_equal(s->duration, 250);
	assert_true(s->real == 1e-3);
	assert_true(s->flag);
	assert_int_equal(s->choice, 2);
}

static void plain_durations_are_seconds(void **state)
{
	struct settings *s = *state;
	assert_int_equal(set(s, "timeout", "3", NULL), 0);
	assert_int_equal(s->duration, 3000);
	assert_int_equal(set(s, "timeout", "2min", NULL), 0);
	assert_int_equal(s->duration, 120000);
}

static void lists_add_up_and_command_lines_replace_files(void **state)
{
	struct settings *s = *state;
	assert_int_equal(read_text(s, "socket = one\nsocket = two\n", NULL), 0);
	assert_int_equal(s->list.n, 2);
	assert_string_equal(s->list.items[0], "one");
	assert_string_equal(s->list.where[1], "test.conf:2");
	assert_int_equal(config_set(table, N_TABLE, s, "socket", "three", "--socket", NULL), 0);
	assert_int_equal(config_set(table, N_TABLE, s, "socket", "four", "--socket", NULL), 0);
	assert_int_equal(s->list.n, 2);
	assert_string_equal(s->list.items[1], "four");
	assert_int_equal(config_set(table, N_TABLE, s, "socket", "", "--socket", NULL), 0);
	assert_int_equal(s->list.n, 0);
}

static void an_empty_string_unsets(void **state)
{
	struct settings *s = *state;
	assert_int_equal(read_text(s, "text =\n", NULL), 0);
	assert_null(s->text);
}

static void bad_values_name_their_key_and_line(void **state)
{
	static const struct { const char *text, *field, *words;
	} cases[] = {
		{"max-top-k = 101", "max-top-k", "above the maximum 100"},
		{"max-top-k = -6", "max-top-k", "below the minimum"},
		{"max-top-k = 1.5", "max-top-k", "whole number"},
		{"max-top-k = 99999999999999999999", "max-top-k", "whole number"},
		{"max-top-k =", "max-top-k", "whole number"},
		{"max-top-k = - 3", "max-top-k", "whole number"},
		{"max-body = 1", "max-body", "below the minimum"},
		{"max-body = 5X", "max-body", "size"},
		{"max-body = -5", "max-body", "size"},
		{"max-body = 99999999999T", "max-body", "size"},
		{"timeout = 1 day", "timeout", "or d)"},
		{"rate = nan", "rate", "number"},
		{"memory = 1.5", "memory", "share"},
		{"memory = 0.0", "memory", "share"},
		{"memory = -0.5", "memory", "share"},
		{"memory = 0", "memory", "share"},
		{"memory = 0.9G", "memory", "share"},
		{"memory = 1", "memory", "below"},
		{"memory = 2G", "memory", "above"},
		{"rate = 0x1", "rate", "number"},
		{"rate = 2", "rate", "above"},
		{"rate = 1.5.2", "rate", "number"},
		{"flag = maybe", "flag", "yes or no"},
		{"device = gpu", "device", "auto|cpu|cuda|ref"},
		{"device = ", "device", "one of"},
		{"device = auto|cpu", "device", "one of"},
		{"flag = yes\nflag = no", "flag", "set twice"},
		{"nonsense", "", "key = value"},
		{"max-topk = 3", "max-topk", "did you mean \"max-top-k\""},
		{"zzzzzzzzzzzz = 3", "zzzzzzzzzzzz", "unknown setting"},
	};
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		struct error err = {0};
		assert_int_equal(read_text(*state, cases[i].text, &err), error_errno(ERROR_INVALID));
		assert_string_equal(err.field, cases[i].field);
		assert_non_null(strstr(err.message, cases[i].words));
		assert_non_null(strstr(err.message, "test.conf:"));
	}
}

static void a_long_path_does_not_hide_the_line(void **state)
{
	char source[400] = "/";
	struct error err = {0};
	while (strlen(source) + sizeof "deep/" < sizeof source - sizeof "kdserved.conf")
		strcat(source, "deep/");
	strcat(source, "kdserved.conf");
	const char *text = "\n\nmax-top-k = 101\n";
	assert_true(config_read_text(table, N_TABLE, *state, text, strlen(text), source, &err) < 0);
	if (!strstr(err.message, "deep/kdserved.conf:3: max-top-k = 101 is above the maximum 100"))
		fail_msg("%s", err.message);
}

static void zero_bytes_are_refused(void **state)
{
	assert_true(config_read_text(table, N_TABLE, *state, "flag = \0yes", 11, "x", NULL) < 0);
}

static void a_failed_set_leaves_the_old_value(void **state)
{
	struct settings *s = *state;
	assert_true(set(s, "max-top-k", "1000", NULL) < 0);
	assert_int_equal(s->integer, 7);
}

static void a_missing_file_is_named(void **state)
{
	struct error err;
	assert_true(config_read_file(table, N_TABLE, *state, "/nonexistent/kdserved.conf", &err) < 0);
	assert_int_equal(err.code, ERROR_NOT_FOUND);
	assert_non_null(strstr(err.message, "/nonexistent/kdserved.conf"));
}

static void the_example_reads_back_as_the_defaults(void **state)
{
	struct settings *s = *state;
	char *text = NULL, *uncommented;
	size_t n = 0;
	FILE *f = open_memstream(&text, &n);
	config_print_example(f, table, N_TABLE);
	fclose(f);
	assert_int_equal(read_text(s, text, NULL), 0);    // as shipped: all comments
	uncommented = calloc(1, n + 1);
	char *to = uncommented;
	for (char *p = text; *p; p++)
		if (!(*p == '#' && (p == text || p[-1] == '\n') && p[1] != ' '))
			*to++ = *p;
	assert_int_equal(read_text(s, uncommented, NULL), 0);
	assert_string_equal(s->text, "hello");
	assert_int_equal(s->integer, 7);
	free(text);
	free(uncommented);
}

static void help_names_every_option(void **state)
{
	(void)state;
	char *text = NULL;
	size_t n = 0;
	FILE *f = open_memstream(&text, &n);
	config_print_help(f, table, N_TABLE);
	fclose(f);
	for (size_t i = 0; i < N_TABLE; i++) {
		assert_non_null(strstr(text, table[i].name));
		assert_non_null(strstr(text, table[i].help));
	}
	free(text);
}

static int check_whole(struct settings *s, const char *text, struct config_errors *all)
{
	char path[] = "/tmp/kdserved-test-config-XXXXXX";
	int fd = mkstemp(path);
	assert_true(fd >= 0);
	assert_int_equal(write(fd, text, strlen(text)), strlen(text));
	close(fd);
	int r = config_check_file(table, N_TABLE, s, path, all);
	unlink(path);
	return r;
}

static void every_error_of_a_file_is_told(void **state)
{
	static const char *const expected[] = {
		":1: unknown setting \"max-topk\"; did you mean \"max-top-k\"?", ":2: max-body = 12Q: expected a size",
		":4: timeout is set twice (before in line 3)", ":5: rate = 7 is above the maximum 1", ":6: expected \"key = value\"",
		":8: device = gpu: expected one of auto|cpu|cuda|ref"};
	struct config_errors all = {0};
	int r = check_whole(*state,
		"max-topk = 3\nmax-body = 12Q\ntimeout = 5s\ntimeout = 6s\nrate = 7\nnonsense\nmax-top-k = 9\ndevice = gpu\n", &all);
	assert_int_equal(r, -EINVAL);
	assert_int_equal(all.n, 6);
	for (size_t i = 0; i < all.n; i++)
		if (!strstr(all.items[i].message, expected[i]))
			fail_msg("%s is not %s", all.items[i].message, expected[i]);
	struct settings *s = *state;
	assert_int_equal(s->integer, 9);           // good lines among them count
	config_errors_done(&all);
}

static void more_errors_than_anybody_reads_are_counted(void **state)
{
	char text[4096] = "";
	struct config_errors all = {0};
	for (int i = 0; i < CONFIG_MAX_ERRORS + 20; i++)
		strcat(text, "nonsense\n");
	assert_true(check_whole(*state, text, &all) < 0);
	assert_int_equal(all.n, CONFIG_MAX_ERRORS);
	assert_int_equal(all.n_more, 20);
	config_errors_done(&all);
	assert_true(config_check_file(table, N_TABLE, *state, "/nonexistent/kdserved.conf", &all) < 0);
	assert_int_equal(all.n, 1);
	config_errors_done(&all);
}

static void values_are_said_as_a_file_would(void **state)
{
	static const struct { const char *name, *value, *said; } cases[] = {
		{"text", "a b", "a b"}, {"text", "", ""}, {"max-top-k", "-3", "-3"}, {"max-body", "2097152", "2M"},
		{"max-body", "1500", "1500"}, {"timeout", "90", "90s"}, {"timeout", "120000ms", "2min"}, {"timeout", "150ms", "150ms"},
		{"rate", "0.25", "0.25"}, {"memory", "4K", "4K"}, {"memory", "0.5", "0.5"}, {"flag", "on", "yes"},
		{"device", "cuda", "cuda"}, {"socket", "unix:/b", "unix:/b"}};
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		char said[64];
		assert_int_equal(config_set(table, N_TABLE, *state, cases[i].name, cases[i].value, "x:1", NULL), 0);
		config_format(config_find(table, N_TABLE, cases[i].name), *state, said, sizeof said);
		assert_string_equal(said, cases[i].said);
		assert_int_equal(config_set(table, N_TABLE, *state, cases[i].name, said, "x:2", NULL), 0);      // and is read back
	}
}

static void settings_are_compared_and_exchanged(void **state)
{
	static const struct { const char *name, *value; } other[] = {
		{"text", "x"}, {"socket", "unix:/c"}, {"max-top-k", "8"}, {"max-body", "1M"}, {"timeout", "1s"}, {"rate", "0.1"},
		{"memory", "0.5"}, {"flag", "yes"}, {"device", "cpu"}};
	struct settings s = {0};
	for (size_t i = 0; i < N_TABLE; i++) {
		assert_int_equal(config_init(table, N_TABLE, &s, NULL), 0);
		for (size_t j = 0; j < N_TABLE; j++)
			assert_true(config_is_same(&table[j], &s, *state));
		assert_int_equal(config_set(table, N_TABLE, &s, other[i].name, other[i].value, "x:1", NULL), 0);
		for (size_t j = 0; j < N_TABLE; j++)
			assert_int_equal(config_is_same(&table[j], &s, *state), i != j);
		config_swap(&table[i], &s, *state);
		config_swap(&table[i], &s, *state);
		assert_false(config_is_same(&table[i], &s, *state));
		config_done(table, N_TABLE, &s);
	}
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, start, stop)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(defaults_are_the_rows), TEST(an_amount_is_a_size_or_a_share), TEST(a_file_sets_every_type),
		TEST(plain_durations_are_seconds), TEST(lists_add_up_and_command_lines_replace_files), TEST(an_empty_string_unsets),
		TEST(bad_values_name_their_key_and_line), TEST(zero_bytes_are_refused),
		TEST(a_long_path_does_not_hide_the_line), TEST(a_failed_set_leaves_the_old_value),
		TEST(a_missing_file_is_named), TEST(the_example_reads_back_as_the_defaults), TEST(help_names_every_option),
		TEST(every_error_of_a_file_is_told), TEST(more_errors_than_anybody_reads_are_counted),
		TEST(values_are_said_as_a_file_would), TEST(settings_are_compared_and_exchanged),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
