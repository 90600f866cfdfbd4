// SPDX-License-Identifier: Apache-2.0
// A run's course, read back thinned; and drawn.
#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>
#include <jansson.h>

#include "clients/kdctl/curve.h"
#include "daemon/train/history.h"

static char path[] = "/tmp/kdserved-history-XXXXXX";

static FILE *file_new(void)
{
	FILE *f = fopen(path, "w");
	assert_non_null(f);
	return f;
}

static json_t *history(void)
{
	json_t *points = NULL;
	assert_int_equal(history_read(path, &points, NULL), 0);
	double before = -1;
	size_t i;
	const json_t *p;
	assert_true(json_array_size(points) <= HISTORY_POINTS);
	json_array_foreach(points, i, p) {
		double step = json_number_value(json_object_get(p, "step"));
		assert_true(step > before);
		before = step;
	}
	return points;
}

static double number(const json_t *points, size_t i, const char *key)
{
	return json_number_value(json_object_get(json_array_get(points, i), key));
}

static void a_short_run_is_told_whole(void **state)
{
	(void)state;
	FILE *f = file_new();
	for (int i = 0; i < 50; i++)
		fprintf(f, "{\"step\":%d,\"loss\":%g}\n", i, 5.0 - i * .1);
	fclose(f);
	json_t *points = history();
	assert_int_equal(json_array_size(points), 50);
	assert_float_equal(number(points, 49, "loss"), 0.1, 1e-9);
	json_decref(points);
}

static void a_long_run_is_thinned_and_keeps_its_end(void **state)
{
	(void)state;
	FILE *f = file_new();
	for (int i = 0; i < 100000; i++)
		fprintf(f, "{\"step\":%d,\"loss\":%d,\"filler\":\"%0*d\"}\n", i, 2 * i, i % 150 + 1, 0);
	fclose(f);
	json_t *points = history();
	size_t n = json_array_size(points);
	assert_true(n > HISTORY_POINTS / 2 - 2);
	assert_int_equal((int)number(points, n - 1, "step"), 99999);
	for (size_t i = 1; i < n; i++) {
		assert_true(number(points, i, "step") - number(points, i - 1, "step") < 600);
		assert_true(number(points, i, "loss") == 2 * number(points, i, "step"));
	}
	json_decref(points);
}

static void between_a_screen_and_a_megabyte_every_second_one_goes(void **state)
{
	(void)state;
	FILE *f = file_new();
	for (int i = 0; i < 2500; i++)
		fprintf(f, "{\"step\":%d}\n", i);
	fclose(f);
	json_t *points = history();
	assert_int_equal(json_array_size(points), 625);
	assert_int_equal((int)number(points, 624, "step"), 2499);
	json_decref(points);
}

static void what_a_resumed_run_repeats_counts_as_said_last(void **state)
{
	(void)state;
	FILE *f = file_new();
	for (int i = 1; i <= 20; i++)
		fprintf(f, "{\"step\":%d,\"loss\":1}\n", i);
	for (int i = 11; i <= 15; i++)
		fprintf(f, "{\"step\":%d,\"loss\":2}\n", i);
	fclose(f);
	json_t *points = history();
	assert_int_equal(json_array_size(points), 15);
	assert_float_equal(number(points, 9, "loss"), 1, 0);
	assert_float_equal(number(points, 10, "loss"), 2, 0);
	json_decref(points);
}

static void what_is_no_report_is_passed_over(void **state)
{
	(void)state;
	FILE *f = file_new();
	fputs("{\"step\":1}\nnonsense\n[1]\n{\"loss\":3}\n\n{\"step\":2}\n{\"step\":3", f);
	fclose(f);
	json_t *points = history();
	assert_int_equal(json_array_size(points), 2);
	json_decref(points);
	f = file_new();
	for (int i = 0; i < 3 << 20; i++)
		fputc('x', f);
	fclose(f);
	points = history();
	assert_int_equal(json_array_size(points), 0);
	json_decref(points);
	fclose(file_new());
	points = history();
	assert_int_equal(json_array_size(points), 0);
	json_decref(points);
	assert_int_equal(history_read("/nonexistent/metrics.jsonl", &points, NULL), 0);
	assert_int_equal(json_array_size(points), 0);
	json_decref(points);
}

static void ticks_are_round_numbers(void **state)
{
	(void)state;
	double t[8];
	assert_int_equal(range_ticks((struct range){0.13, 1.02}, 5, t), 5);
	assert_float_equal(t[0], 0.2, 1e-12);
	assert_float_equal(t[4], 1, 1e-12);
	size_t n = range_ticks((struct range){-3e-5, 7e-5}, 5, t);
	assert_true(n >= 4 && n <= 5);
	assert_true(range_ticks((struct range){5, 5.0001}, 8, t) <= 8);
}

static void a_number_said_again_is_one_point(void **state)
{
	(void)state;
	json_t *points = json_loads("[{\"step\":1,\"a\":3},{\"step\":2,\"a\":3},{\"step\":3},{\"step\":4,\"a\":0},{\"step\":5,\"a\":\"x\"},"
				    "{\"step\":6,\"a\":2}]", 0, NULL);
	struct curve c;
	assert_int_equal(curve_init(&c, points, "a", false), 0);
	assert_int_equal(c.n, 3);
	assert_float_equal(c.x[1], 4, 0);
	curve_done(&c);
	assert_int_equal(curve_init(&c, points, "a", true), 0);
	assert_int_equal(c.n, 2);
	curve_done(&c);
	assert_int_equal(curve_init(&c, points, "b", false), 0);
	assert_int_equal(c.n, 0);
	curve_done(&c);
	json_decref(points);
}

// A falling line: the first column's dot is in the first row, the last one's in the last.
static void a_curve_is_drawn_from_corner_to_corner(void **state)
{
	(void)state;
	json_t *points = json_loads("[{\"step\":0,\"a\":10},{\"step\":100,\"a\":0}]", 0, NULL);
	struct curve c;
	char *text = NULL;
	size_t n = 0, lines = 0;
	assert_int_equal(curve_init(&c, points, "a", false), 0);
	FILE *to = open_memstream(&text, &n);
	assert_int_equal(curve_draw(&c, 20, 6, to), 0);
	fclose(to);
	for (char *at = text; (at = strchr(at, '\n')); at++)
		lines++;
	assert_int_equal(lines, 6);
	assert_memory_not_equal(text + 10, "\xe2\xa0\x80", 3);                           // first row, first cell: some dot
	assert_memory_not_equal(text + n - 4, "\xe2\xa0\x80", 3);                        // last row, last cell
	assert_memory_equal(strchr(text, '\n') - 3, "\xe2\xa0\x80", 3);                  // first row, last cell: none
	free(text);
	curve_done(&c);
	json_decref(points);
}

static void one_point_is_a_curve_too(void **state)
{
	(void)state;
	json_t *points = json_loads("[{\"step\":0,\"a\":0}]", 0, NULL);
	struct curve c;
	char *text = NULL;
	size_t n = 0;
	assert_int_equal(curve_init(&c, points, "a", false), 0);
	FILE *to = open_memstream(&text, &n);
	assert_int_equal(curve_draw(&c, 4, 3, to), 0);
	curves_draw_svg("a<b>&c", &c, 1, to);
	fclose(to);
	assert_null(strstr(text, "nan"));
	assert_null(strstr(text, "inf"));
	assert_non_null(strstr(text, "a&lt;b&gt;&amp;c"));
	free(text);
	curve_done(&c);
	json_decref(points);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_short_run_is_told_whole), cmocka_unit_test(a_long_run_is_thinned_and_keeps_its_end),
		cmocka_unit_test(between_a_screen_and_a_megabyte_every_second_one_goes),
		cmocka_unit_test(what_a_resumed_run_repeats_counts_as_said_last), cmocka_unit_test(what_is_no_report_is_passed_over),
		cmocka_unit_test(ticks_are_round_numbers), cmocka_unit_test(a_number_said_again_is_one_point),
		cmocka_unit_test(a_curve_is_drawn_from_corner_to_corner), cmocka_unit_test(one_point_is_a_curve_too),
	};
	int fd = mkstemp(path);
	if (fd < 0)
		return 1;
	close(fd);
	int failed = cmocka_run_group_tests(tests, NULL, NULL);
	unlink(path);
	return failed;
}
