// SPDX-License-Identifier: Apache-2.0
// Feature losses: values worked out by hand in double precision, every gradient against differences, rows that are left out; layer maps.
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "daemon/loss/feature.h"
#include "daemon/loss/layer_map.h"

#define STEP 1e-5
#define ROOM 4096

static double scratch[ROOM];

static void assert_value(double got, double want)
{
	if (!(fabs(got - want) < 1e-6))
		fail_msg("%.9f, expected %.6f", got, want);
}

// One row of each side, no gradient.
static double of_rows(feature_fn *fn, const double *s, const double *t, uint32_t width, const double *x)
{
	static const uint32_t starts[] = {0, 1};
	struct feature_view v = {.n_sequences = 1, .starts = starts,
				 .parts = {{s, t, width, width, NULL}}, .scale = 1};
	return fn(&v, x);
}

static void rows_have_the_values_worked_out(void **state)
{
	(void)state;
	const double t[] = {1, -2, .5, 1.5}, s[] = {.8, -1, .1, 2};
	assert_value(of_rows(feature_hidden_mse, s, t, 4, (double[]){0, 0}), .362500);
	assert_value(of_rows(feature_hidden_mse, s, t, 4, (double[]){0, 1}), 4 * .362500);
	assert_value(of_rows(feature_hidden_cosine, s, t, 4, NULL), .101328);
	assert_value(of_rows(feature_hidden_mse, s, t, 4, (double[]){1, 1}), .202657);
	assert_value(of_rows(feature_hidden_mse, s, t, 4, (double[]){1, 0}), .050664);
}

static void a_margin_is_a_difference_of_scores(void **state)
{
	(void)state;
	const double s[] = {1, 1.2, -.4}, t[] = {1, 2, .5};
	static const uint32_t starts[] = {0, 1, 2, 3};
	struct feature_view v = {.n_sequences = 3, .starts = starts, .pooled = true, .parts = {{s, t, 1, 1, NULL}}, .scale = 1};
	assert_value(feature_margin_mse(&v, (double[]){0, 1}), .010000);
	// Of all triples, one by one.
	double sum = 0;
	for (int i = 0; i < 3; i++) {
		int j = (i + 1) % 3, k = (i + 2) % 3;
		double margin = s[i] * s[j] - s[i] * s[k] - (t[i] * t[j] - t[i] * t[k]);
		sum += margin * margin / 3;
	}
	assert_value(feature_margin_mse(&v, (double[]){0, 0}), sum);
}

static double relation_of(const double *s, const double *t, bool causal)
{
	static const uint32_t starts[] = {0, 2};
	const double zero[4] = {0};
	struct feature_view v = {.n_sequences = 1, .starts = starts, .causal = causal, .n_heads = 1, .scratch = scratch, .scale = 1,
				 .parts = {{s, t, 2, 2, NULL}, {zero, zero, 2, 2, NULL}, {zero, zero, 2, 2, NULL}}};
	return feature_relations(&v, (double[]){0});
}

static void relations_have_the_values_worked_out(void **state)
{
	(void)state;
	const double t[] = {1, 0, .5, .5}, s[] = {.8, .2, .3, .9};
	assert_value(relation_of(s, t, false), .008926);
	assert_value(relation_of(s, t, true), .007166);
	assert_value(relation_of(t, t, false), 0);
}

// Three sequences of 1, 4 and 2 rows; with one row each when pooled.
struct lesson {
	feature_fn *fn;
	double x[2];
	bool pooled, causal;
	uint32_t n_heads, student[FEATURE_PARTS], teacher[FEATURE_PARTS], n_parts;
};

static double number(uint32_t *seed)
{
	*seed = *seed * 1664525u + 1013904223u;
	return (double)(*seed >> 8) / (1 << 23) - 1;
}

static void assert_gradient(const struct lesson *l)
{
	static const uint32_t packed[] = {0, 1, 5, 7}, single[] = {0, 1, 2, 3, 4, 5, 6};
	double s[FEATURE_PARTS][80], t[FEATURE_PARTS][80], g[FEATURE_PARTS][80] = {{0}}, largest = 0;
	struct feature_view v = {.n_sequences = l->pooled ? 6 : 3, .starts = l->pooled ? single : packed, .pooled = l->pooled,
				 .causal = l->causal, .n_heads = l->n_heads, .scale = 0.7, .scratch = scratch};
	uint32_t seed = 3, n_rows = v.starts[v.n_sequences];
	for (uint32_t i = 0; i < l->n_parts; i++) {
		for (uint32_t k = 0; k < 80; k++)
			s[i][k] = number(&seed), t[i][k] = number(&seed);
		v.parts[i] = (struct feature_part){s[i], t[i], l->student[i], l->teacher[i], g[i]};
	}
	if (l->pooled && l->fn != feature_margin_mse)
		t[0][0] = NAN;
	double value = l->fn(&v, l->x);
	assert_true(value > 1e-3);
	for (uint32_t i = 0; i < l->n_parts; i++)
		v.parts[i].gradient = NULL;
	for (uint32_t i = 0; i < l->n_parts; i++)
		for (uint32_t k = 0; k < n_rows * l->student[i]; k++) {
			double kept = s[i][k];
			s[i][k] = kept + STEP;
			double up = l->fn(&v, l->x);
			s[i][k] = kept - STEP;
			double want = 0.7 * (up - l->fn(&v, l->x)) / (2 * STEP);
			s[i][k] = kept;
			largest = fmax(largest, fabs(g[i][k]));
			if (!(fabs(g[i][k] - want) < 1e-8))
				fail_msg("part %u [%u]: %.10f, by differences %.10f", i, k, g[i][k], want);
		}
	assert_true(largest > 1e-3);
	assert_true(l->fn(&v, l->x) == value);         // wanting a gradient changes no value
}

static void every_gradient_is_the_change_of_its_value(void **state)
{
	(void)state;
	const struct lesson lessons[] = {
		{.fn = feature_hidden_mse, .student = {5}, .teacher = {5}, .n_parts = 1},
		{.fn = feature_hidden_mse, .x = {0, 1}, .pooled = true, .student = {5}, .teacher = {5}, .n_parts = 1},
		{.fn = feature_hidden_mse, .x = {1, 0}, .student = {5}, .teacher = {5}, .n_parts = 1},
		{.fn = feature_hidden_mse, .x = {1, 1}, .pooled = true, .student = {5}, .teacher = {5}, .n_parts = 1},
		{.fn = feature_hidden_cosine, .student = {5}, .teacher = {5}, .n_parts = 1},
		{.fn = feature_margin_mse, .x = {0, 0}, .pooled = true, .student = {5}, .teacher = {3}, .n_parts = 1},
		{.fn = feature_margin_mse, .x = {1, 0}, .pooled = true, .student = {5}, .teacher = {3}, .n_parts = 1},
		{.fn = feature_margin_mse, .x = {0, 1}, .pooled = true, .student = {5}, .teacher = {3}, .n_parts = 1},
		{.fn = feature_margin_mse, .x = {1, 1}, .pooled = true, .student = {5}, .teacher = {3}, .n_parts = 1},
		{.fn = feature_relations, .n_heads = 2, .student = {8, 4, 4}, .teacher = {6, 6, 2}, .n_parts = 3},
		{.fn = feature_relations, .n_heads = 2, .causal = true, .student = {8, 4, 4}, .teacher = {6, 6, 2}, .n_parts = 3},
		// v1: two q heads of the student share a head of k and v, the teacher's do not
		{.fn = feature_relations, .x = {1}, .n_heads = 4, .causal = true, .student = {8, 4, 4}, .teacher = {4, 4, 4}, .n_parts = 3},
		{.fn = feature_relations, .x = {1}, .n_heads = 2, .student = {8, 8, 8}, .teacher = {6, 3, 3}, .n_parts = 3},
	};
	for (size_t i = 0; i < sizeof lessons / sizeof *lessons; i++)
		assert_gradient(&lessons[i]);
}

static void rows_that_are_not_known_cost_nothing(void **state)
{
	(void)state;
	static const uint32_t starts[] = {0, 1, 2, 3, 4, 5, 6};
	double s[] = {1, 1.2, -.4, .3, .2, .9}, t[] = {1, 2, .5, NAN, .1, .2}, g[6] = {0};
	struct feature_view v = {.n_sequences = 6, .starts = starts, .pooled = true, .parts = {{s, t, 1, 1, g}}, .scale = 1};
	assert_value(feature_margin_mse(&v, (double[]){0, 1}), .010000);       // the first three alone
	assert_true(g[0] != 0 && g[3] == 0 && g[4] == 0 && g[5] == 0);
	memset(g, 0, sizeof g);
	assert_true(isfinite(feature_margin_mse(&v, (double[]){0, 0})));
	assert_true(g[3] == 0 && g[4] != 0);
	for (int i = 0; i < 6; i++)
		t[i] = NAN;
	assert_true(feature_margin_mse(&v, (double[]){0, 0}) == 0 && feature_margin_mse(&v, (double[]){0, 1}) == 0);
	assert_true(feature_hidden_mse(&v, (double[]){0, 0}) == 0);
}

static void assert_map(const char *text, uint32_t m, uint32_t M, bool blocks, const char *want)
{
	struct layer_map map;
	char got[512] = "", why[200];
	if (layer_map_parse(text, &map))
		fail_msg("%s", text);
	const char *bad = layer_map_resolve(&map, m, M, blocks, why, sizeof why);
	if (bad)
		fail_msg("%s: %s", text, bad);
	for (uint32_t i = 0; i < map.n; i++)
		sprintf(got + strlen(got), "%s%u:%u", i ? "," : "", map.pairs[i].student, map.pairs[i].teacher);
	assert_string_equal(got, want);
}

static void layer_maps_name_pairs(void **state)
{
	(void)state;
	assert_map("last", 6, 12, false, "6:12");
	assert_map("final", 6, 12, false, "0:0");
	assert_map("uniform", 3, 12, false, "0:0,1:4,2:8,3:12");
	assert_map("uniform", 3, 12, true, "1:4,2:8,3:12");
	assert_map("skip:2", 6, 12, false, "1:2,2:4,3:6,4:8,5:10");
	assert_map("skip:3", 6, 12, false, "1:3,2:6,3:9");
	assert_map("tail", 6, 12, false, "1:7,2:8,3:9,4:10,5:11");
	assert_map("0:0,2:12", 6, 0, false, "0:0,2:12");
	assert_map("6:12", 6, 12, true, "6:12");
}

static void bad_layer_maps_are_refused(void **state)
{
	(void)state;
	static const char *const words[] = {
		"", "lastly", "skip", "skip:", "skip:0", "skip:2,", "1", "1:", "1:2,", "1:2;3:4", "a:b", "-1:2",
		"1:99999", "uniform:3"};
	struct layer_map map;
	for (size_t i = 0; i < sizeof words / sizeof *words; i++)
		if (layer_map_parse(words[i], &map) == 0)
			fail_msg("\"%s\" was taken", words[i]);
	static const struct { const char *text; uint32_t m, M; bool blocks; const char *why; } maps[] = {
		{"final", 6, 12, true, "no q, k and v"}, {"last", 6, 0, false, "teacher-layers"},
		{"uniform", 5, 12, false, "do not divide"}, {"tail", 12, 6, false, "do not divide"}, {"skip:12", 6, 12, false, "0 pairs"},
		{"uniform", 80, 160, false, "81 pairs"}, {"7:12", 6, 12, false, "out of range"}, {"6:13", 6, 12, false, "out of range"},
		{"0:1", 6, 12, true, "out of range"},
	};
	for (size_t i = 0; i < sizeof maps / sizeof *maps; i++) {
		char why[200];
		assert_int_equal(layer_map_parse(maps[i].text, &map), 0);
		const char *bad = layer_map_resolve(&map, maps[i].m, maps[i].M, maps[i].blocks, why, sizeof why);
		if (!bad || !strstr(bad, maps[i].why))
			fail_msg("%s: %s", maps[i].text, bad ? bad : "was taken");
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(rows_have_the_values_worked_out),
		cmocka_unit_test(a_margin_is_a_difference_of_scores),
		cmocka_unit_test(relations_have_the_values_worked_out),
		cmocka_unit_test(every_gradient_is_the_change_of_its_value),
		cmocka_unit_test(rows_that_are_not_known_cost_nothing),
		cmocka_unit_test(layer_maps_name_pairs),
		cmocka_unit_test(bad_layer_maps_are_refused),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
