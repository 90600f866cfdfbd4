// SPDX-License-Identifier: Apache-2.0
// Settings: the table, the manual page and the example file say the same, and the checks that need several rows.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "common/error.h"
#include "daemon/options.h"

static char *read_source(const char *name)
{
	char path[4096];
	const char *top = getenv("top_srcdir");
	snprintf(path, sizeof path, "%s/%s", top ? top : ".", name);
	FILE *f = fopen(path, "r");
	assert_non_null(f);
	char *text = calloc(1, 1 << 20);
	assert_true(fread(text, 1, (1 << 20) - 1, f) > 0);
	fclose(f);
	return text;
}

static char *printed(void (*print)(FILE *, const struct config_option *, size_t))
{
	char *text = NULL;
	size_t n = 0;
	FILE *f = open_memstream(&text, &n);
	print(f, options_table, options_count);
	fclose(f);
	return text;
}

static void the_example_file_is_what_the_table_says(void **state)
{
	(void)state;
	char *text = printed(config_print_example), *file = read_source("etc/kdserved.conf");
	assert_non_null(strstr(file, text));    // mend: kdserved --print-config >etc/kdserved.conf
	free(text);
	free(file);
}

static void the_manual_page_is_what_the_table_says(void **state)
{
	(void)state;
	char *text = printed(config_print_man), *file = read_source("man/kdserved.conf.5");
	assert_non_null(strstr(file, text));    // mend: put the output of kdserved --print-man between the page's markers
	free(text);
	free(file);
}

static int check(const char *text, struct error *err)
{
	struct options o;
	assert_int_equal(options_init(&o, err), 0);
	assert_int_equal(config_read_text(options_table, options_count, &o, text, strlen(text), "test", err), 0);
	int r = options_check(&o, err);
	options_done(&o);
	return r;
}

static void defaults_need_only_a_teacher(void **state)
{
	(void)state;
	struct error err = {0};
	assert_true(check("", &err) < 0);
	assert_string_equal(err.field, "teacher");
	assert_int_equal(check("teacher = x", &err), 0);
}

static int names(const char *text, struct teacher_source ret[OPTIONS_MAX_TEACHERS], struct options *o, struct error *err)
{
	assert_int_equal(options_init(o, err), 0);
	assert_int_equal(config_read_text(options_table, options_count, o, text, strlen(text), "test", err), 0);
	return options_teachers(o, ret, err);
}

static void teachers_have_names(void **state)
{
	(void)state;
	static const struct { const char *line, *name, *path; } cases[] = {
		{"big=/models/x.gguf", "big", "/models/x.gguf"}, {"/models/x.gguf", "x.gguf", "/models/x.gguf"},
		{"dir/model//", "model", "dir/model//"}, {"x", "x", "x"}, {"a=b=c", "a", "b=c"}, {"./a=b", "a=b", "./a=b"},
		{"not a name=x", "not a name=x", "not a name=x"}, {"/", "/", "/"},
	};
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		struct teacher_source s[OPTIONS_MAX_TEACHERS];
		struct options o;
		struct error err = {0};
		char text[256];
		snprintf(text, sizeof text, "teacher = %s\n", cases[i].line);
		assert_int_equal(names(text, s, &o, &err), 0);
		assert_string_equal(s[0].name, cases[i].name);
		assert_string_equal(s[0].path, cases[i].path);
		options_done(&o);
	}
}

static void teachers_of_one_name_are_refused(void **state)
{
	(void)state;
	static const char *const bad[] = {
		"teacher = a/x\nteacher = b/x\n", "teacher = x=a\nteacher = y=b\nteacher = x=c\n", "teacher = x=\n"};
	for (int i = 0; i < 3; i++) {
		struct error err = {0};
		assert_int_equal(check(bad[i], &err), error_errno(ERROR_INVALID));
		assert_string_equal(err.field, "teacher");
	}
	struct error err = {0};
	char many[8192] = "";
	assert_int_equal(check("teacher = x=a/m\nteacher = y=b/m\nteacher = m\n", &err), 0);
	for (int i = 0; i <= OPTIONS_MAX_TEACHERS; i++) {
		assert_int_equal(i ? check(many, &err) : 0, 0);
		snprintf(many + strlen(many), sizeof many - strlen(many), "teacher = t%d=x\n", i);
	}
	assert_int_equal(check(many, &err), error_errno(ERROR_TOO_LARGE));
}

static void addresses_are_checked(void **state)
{
	(void)state;
	static const struct { const char *line, *field;
	} bad[] = {
		{"http = 0.0.0.0:80", "http"},   {"http = 10.0.0.1:80", "http"},        {"http = [::]:80", "http"},
		{"http = 127.0.0.1", "http"},    {"http = 127.0.0.1:65536", "http"},    {"http = example.org:80", "http"},
		{"http = 127.0.0.1:-1", "http"}, {"socket = unix:relative", "socket"},  {"socket = tcp:192.168.0.1:5", "socket"},
		{"socket =\nhttp =", "http"},    {"socket =\nruns = /tmp/x", "socket"},
		{"allow-remote = yes\nhttp = 0.0.0.0:80", "http"},       {"tokens = x\nhttp = [::]:80", "http"},
		{"allow-remote = yes\nsocket = tcp:[fe80::1]:5", "socket"}, {"tokens = x\nsocket = tcp:10.0.0.1:5", "socket"},
		{"tls-certificate = c\ntls-key = k\nhttp = 0.0.0.0:80", "http"}, {"tls-key = k", "tls-certificate"},
		{"tls-certificate = c", "tls-key"}, {"tls-certificate = c\ntls-key = k\nsocket = tcp:10.0.0.1:5", "socket"},
	};
	static const char *const good[] = {"http = [::1]:80", "http = localhost:0",       "http = 127.9.9.9:1",
					   "http =",          "socket = tcp:127.0.0.1:5",
					   "tokens = x\nallow-remote = yes\nhttp = 0.0.0.0:80",
					   "tokens = x\ntls-certificate = c\ntls-key = k\nhttp = 0.0.0.0:80",
					   "tokens = x\ntls-certificate = c\ntls-key = k\nsocket = tcp:10.0.0.1:5",
					   "tokens = x\nallow-remote = yes\nsocket = tcp:10.0.0.1:5"};
	for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
		struct error err = {0};
		char text[256];
		snprintf(text, sizeof text, "teacher = x\n%s\n", bad[i].line);
		assert_int_equal(check(text, &err), error_errno(ERROR_INVALID));
		assert_string_equal(err.field, bad[i].field);
	}
	for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
		struct error err = {0};
		char text[256];
		snprintf(text, sizeof text, "teacher = x\n%s\n", good[i]);
		assert_int_equal(check(text, &err), 0);
	}
}

// Both lines of settings that are at odds.
static void contradictions_name_both_lines(void **state)
{
	(void)state;
	static const struct { const char *text, *first, *second; } cases[] = {
		{"teacher = x\nruns = /r\nsocket =\n", "test:2: ", "(test:3)"}, {"teacher = x\nhttp =\nsocket =\n", "test:2: ", "(test:3)"},
		{"queue-tokens = 10\nteacher = x\nmax-tokens = 20\n", "test:3: ", "(test:1)"},
		{"teacher = x\ncredits = 9\nqueue-requests = 8\n", "test:2: ", "(test:3)"},
		{"teacher = x\ntls-key = k\n", "test:2: ", "go together"}, {"teacher = x\n\nhttp = 0.0.0.0:80\n", "test:3: ", "set tokens"},
		{"teacher = x\nstore-compression = lzma\n", "test:2: ", "lzma"}};
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		struct error err = {0};
		assert_int_equal(check(cases[i].text, &err), error_errno(ERROR_INVALID));
		if (strncmp(err.message, cases[i].first, strlen(cases[i].first)) != 0 || !strstr(err.message, cases[i].second))
			fail_msg("%s", err.message);
	}
}

static void every_contradiction_is_told(void **state)
{
	(void)state;
	struct options o;
	struct config_errors all = {0};
	static const char text[] = "runs = /r\nsocket =\nhttp = 0.0.0.0:80\ntls-key = k\nstore-max-age = 1d\nstore-max-bytes = 1M\n";
	assert_int_equal(options_init(&o, NULL), 0);
	assert_int_equal(config_read_text(options_table, options_count, &o, text, strlen(text), "test", NULL), 0);
	options_check_all(&o, &all);
	assert_int_equal(all.n, 4);                // no teacher, runs, the key alone, the address
	config_errors_done(&all);
	options_warn(&o, &all);
	assert_int_equal(all.n, 2);
	config_errors_done(&all);
	options_done(&o);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_example_file_is_what_the_table_says), cmocka_unit_test(the_manual_page_is_what_the_table_says),
		cmocka_unit_test(defaults_need_only_a_teacher), cmocka_unit_test(addresses_are_checked),
		cmocka_unit_test(teachers_have_names), cmocka_unit_test(teachers_of_one_name_are_refused),
		cmocka_unit_test(contradictions_name_both_lines), cmocka_unit_test(every_contradiction_is_told),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
