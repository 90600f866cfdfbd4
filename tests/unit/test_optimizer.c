// SPDX-License-Identifier: Apache-2.0
// The learning-rate schedule, and one AdamW step of a tiny student on the ref device worked out by hand.
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "common/error.h"
#include "daemon/model/weights.h"
#include "daemon/worker/optimizer.h"

static const struct optimizer_options options = {
	.learning_rate = 1e-3, .min_ratio = .1, .warmup = 10, .steps = 110, .beta1 = .9, .beta2 = .95, .epsilon = 1e-8,
	.weight_decay = .1, .clip = 1,
};

static void rate_rises_then_falls_to_the_floor(void **state)
{
	(void)state;
	assert_true(fabs(optimizer_rate(&options, 1) - 1e-4) < 1e-15);
	assert_true(fabs(optimizer_rate(&options, 10) - 1e-3) < 1e-15);
	assert_true(fabs(optimizer_rate(&options, 60) - 5.5e-4) < 1e-15);
	assert_true(fabs(optimizer_rate(&options, 110) - 1e-4) < 1e-15);
	assert_true(fabs(optimizer_rate(&options, 1000) - 1e-4) < 1e-15);
	for (uint64_t i = 11; i <= 110; i++)
		assert_true(optimizer_rate(&options, i) < optimizer_rate(&options, i - 1));
}

static void rate_without_warmup_or_longer_than_the_run(void **state)
{
	(void)state;
	struct optimizer_options o = options;
	o.warmup = 0;
	assert_true(optimizer_rate(&o, 1) < 1e-3 && optimizer_rate(&o, 1) > 9.9e-4);
	o.warmup = 200;
	assert_true(fabs(optimizer_rate(&o, 110) - 1e-3 * 110 / 200) < 1e-15);
}

static struct weights *student_new(struct backend **ret_backend)
{
	struct architecture a = {.name = "llama", .n_layers = 1, .width = 8, .ffn_width = 12, .n_heads = 2, .n_kv_heads = 1, .head_size = 4,
				 .vocab_size = 11, .context_length = 16, .norm_epsilon = 1e-5f, .rope_theta = 10000, .tied_head = true,
				 .bos_id = -1, .eos_id = -1};
	struct backend_options o = {.n_threads = 1, .max_rows = 16};
	struct weights *w = NULL;
	struct error err = {0};
	if (backend_open("ref", &o, ret_backend, &err) || weights_new_trainable(*ret_backend, &a, 3, 16, &w, &err))
		fail_msg("%s", err.message);
	return w;
}

static struct optimizer *optimizer_make(const struct optimizer_options *o, struct weights *w)
{
	struct optimizer *opt = NULL;
	struct error err = {0};
	if (optimizer_new(o, w, &opt, &err))
		fail_msg("%s: %s", err.field, err.message);
	return opt;
}

static double *read_all(const struct weights *w, const struct real *from)
{
	double *to = malloc(w->parameters->n_values * sizeof *to);
	w->backend->ops->real_read(w->backend, to, from, w->parameters->n_values);
	return to;
}

static void one_step_clips_the_mean_and_decays_only_matrices(void **state)
{
	(void)state;
	struct backend *be = NULL;
	struct weights *w = student_new(&be);
	struct parameters *p = w->parameters;
	double *before = read_all(w, p->value), norm = 0, expected = 0;
	float *g = malloc(p->n_values * sizeof *g);
	for (size_t i = 0; i < p->n_values; i++) {
		g[i] = (float)(i % 7) - 3;
		expected += (double)g[i] * g[i];
	}
	struct optimizer *o = optimizer_make(&options, w);
	be->ops->real_write(be, p->gradient, g, p->n_values);
	assert_int_equal(optimizer_step(o, 1, 4, &norm, NULL), 0);
	assert_true(fabs(norm - sqrt(expected) / 4) < 1e-9);
	double *after = read_all(w, p->value), *left = read_all(w, p->gradient);
	for (size_t k = 0; k < p->n_parameters; k++)
		for (size_t i = p->list[k].offset; i < p->list[k].offset + p->list[k].n; i++) {
			double gradient = g[i] / 4 / norm;     // clip = 1
			double lr = 1e-4, decay = p->list[k].decay ? lr * .1 * before[i] : 0;
			double update = gradient / (fabs(gradient) + 1e-8);      // step 1: both moments are bias-corrected to the gradient
			assert_true(fabs(after[i] - (before[i] - decay - lr * update)) < 1e-9);
			assert_true(left[i] == 0);
			assert_int_equal(p->list[k].decay, p->list[k].n_dims == 2);
		}
	free(before), free(after), free(left), free(g);
	optimizer_free(o);
	weights_free(w);
	backend_close(be);
}

static void a_gradient_that_is_not_finite_changes_nothing(void **state)
{
	(void)state;
	struct backend *be = NULL;
	struct weights *w = student_new(&be);
	struct parameters *p = w->parameters;
	double *before = read_all(w, p->value), norm = -1;
	struct optimizer *o = optimizer_make(&options, w);
	be->ops->real_write(be, p->gradient, &(float){NAN}, 1);
	assert_int_equal(optimizer_step(o, 1, 4, &norm, NULL), error_errno(ERROR_NOT_FINITE));
	double *after = read_all(w, p->value);
	assert_memory_equal(before, after, p->n_values * sizeof *before);
	assert_true(norm == -1);
	free(before), free(after);
	optimizer_free(o);
	weights_free(w);
	backend_close(be);
}

// One step with a gradient of `value` everywhere; positions 1.
static void step(struct optimizer *o, struct weights *w, float value, uint64_t number)
{
	struct backend *be = w->backend;
	size_t n = w->parameters->n_values;
	float *g = malloc(n * sizeof *g);
	double norm;
	for (size_t i = 0; i < n; i++)
		g[i] = i % 2 ? value : -value;
	be->ops->real_write(be, w->parameters->gradient, g, n);
	assert_int_equal(optimizer_step(o, number, 1, &norm, NULL), 0);
	free(g);
}

static void lion_steps_by_signs_and_keeps_one_moment(void **state)
{
	(void)state;
	struct backend *be = NULL;
	struct weights *w = student_new(&be);
	struct optimizer_options how = {
		.kind = OPTIMIZER_LION, .learning_rate = .01, .min_ratio = 1, .steps = 9, .beta1 = .9, .beta2 = .99};
	struct optimizer *o = optimizer_make(&how, w);
	struct optimizer_array arrays[OPTIMIZER_MAX_ARRAYS];
	double *before = read_all(w, w->parameters->value);
	step(o, w, 3, 1);
	double *after = read_all(w, w->parameters->value);
	assert_int_equal(optimizer_arrays(o, arrays), 1);
	double *moment = read_all(w, arrays[0].array);
	for (size_t i = 0; i < w->parameters->n_values; i++) {
		assert_true(fabs(after[i] - before[i] - (i % 2 ? -.01 : .01)) < 1e-12);
		assert_true(fabs(moment[i] - (i % 2 ? .03 : -.03)) < 1e-12);
	}
	free(before), free(after), free(moment);
	optimizer_free(o);
	weights_free(w);
	backend_close(be);
}

static void groups_have_their_own_rate_and_decay(void **state)
{
	(void)state;
	struct backend *be = NULL;
	struct weights *w = student_new(&be);
	struct group groups[3];
	assert_int_equal(group_parse("model.layers.*  weight-decay=0 learning-rate=2", &groups[0], NULL), 0);
	assert_int_equal(group_parse("model.layers.0.self_attn.* learning-rate=0", &groups[1], NULL), 0);
	assert_int_equal(group_parse("*norm.weight weight-decay=0.5", &groups[2], NULL), 0);
	struct optimizer_options how = {.kind = OPTIMIZER_LION, .learning_rate = .01, .min_ratio = 1, .steps = 9, .weight_decay = .1,
					    .groups = groups, .n_groups = 3};
	struct optimizer *o = optimizer_make(&how, w);
	double *before = read_all(w, w->parameters->value);
	step(o, w, 1, 1);
	double *after = read_all(w, w->parameters->value);
	for (size_t k = 0; k < w->parameters->n_parameters; k++) {
		const struct parameter *p = &w->parameters->list[k];
		bool norm = strstr(p->name, "norm"), layer = strstr(p->name, "layers."), attention = strstr(p->name, "self_attn");
		double rate = norm ? .01 : attention ? 0 : layer ? .02 : .01, decay = norm ? .5 : layer ? 0 : .1;
		for (size_t i = p->offset; i < p->offset + p->n; i++)
			assert_true(fabs(after[i] - (before[i] * (1 - rate * decay) + (i % 2 ? -rate : rate))) < 1e-12);
	}
	free(before), free(after);
	optimizer_free(o);
	weights_free(w);
	backend_close(be);
}

static void a_group_without_parameters_is_an_error(void **state)
{
	(void)state;
	struct backend *be = NULL;
	struct weights *w = student_new(&be);
	struct group groups[2];
	struct optimizer *o = NULL;
	struct error err = {0};
	assert_int_equal(group_parse("model.layers.0.* learning-rate=2", &groups[0], NULL), 0);
	assert_int_equal(group_parse("model.layers.* learning-rate=3", &groups[1], NULL), 0);
	struct optimizer_options how = {.learning_rate = .01, .steps = 9, .groups = groups, .n_groups = 2};
	assert_int_equal(optimizer_new(&how, w, &o, &err), error_errno(ERROR_INVALID));
	assert_non_null(strstr(err.message, "model.layers.0.*"));
	weights_free(w);
	backend_close(be);
}

static void lines_that_are_no_groups_are_refused(void **state)
{
	(void)state;
	static const char *const bad[] = {
		"", "x", "learning-rate=1", "x learning-rate", "x learning-rate=", "x learning-rate=-1",
		"x learning-rate=nan", "x weight-decay=11", "x momentum=1", "x learning-rate=1e9"};
	struct group g;
	for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
		struct error err = {0};
		if (group_parse(bad[i], &g, &err) != error_errno(ERROR_INVALID))
			fail_msg("'%s' was taken", bad[i]);
		assert_string_equal(err.field, "parameters");
	}
	assert_int_equal(group_parse("x learning-rate=0", &g, NULL), 0);
	assert_true(g.learning_rate == 0 && isnan(g.weight_decay));
}

static void the_average_follows_and_gives_the_place_back(void **state)
{
	(void)state;
	struct backend *be = NULL;
	struct weights *w = student_new(&be);
	struct parameters *p = w->parameters;
	struct optimizer_options how = {.kind = OPTIMIZER_LION, .learning_rate = .01, .min_ratio = 1, .steps = 9, .average = .75};
	struct optimizer *o = optimizer_make(&how, w);
	double *first = read_all(w, p->value);
	step(o, w, 1, 1);
	step(o, w, 1, 2);
	double *now = read_all(w, p->value);
	optimizer_swap_average(o);
	double *average = read_all(w, p->value);
	optimizer_swap_average(o);
	double *again = read_all(w, p->value), *gradient = read_all(w, p->gradient);
	for (size_t i = 0; i < p->n_values; i++) {
		double d = i % 2 ? -.01 : .01;
		assert_true(fabs(average[i] - (first[i] + .25 * .75 * d + .25 * 2 * d)) < 1e-12);
		assert_true(again[i] == now[i] && gradient[i] == 0);
	}
	free(first), free(now), free(average), free(again), free(gradient);
	optimizer_free(o);
	weights_free(w);
	backend_close(be);
}

// The matrices of layers lie on the grid of their largest value while the master moves by less than a step of it.
static void on_a_grid_the_master_moves_and_the_student_snaps(void **state)
{
	(void)state;
	struct backend *be = NULL;
	struct weights *w = student_new(&be);
	struct parameters *p = w->parameters;
	struct optimizer_options how = {
		.kind = OPTIMIZER_LION, .learning_rate = 1e-5, .min_ratio = 1, .steps = 9, .bits = 4, .average = .5};
	double *start = read_all(w, p->value);
	struct optimizer *o = optimizer_make(&how, w);
	struct optimizer_array arrays[OPTIMIZER_MAX_ARRAYS];
	assert_int_equal(optimizer_arrays(o, arrays), 3);
	assert_string_equal(arrays[2].name, "master");
	for (int swapped = 0; swapped < 2; swapped++) {
		step(o, w, 1, (uint64_t)swapped + 1);
		double *master = read_all(w, arrays[2].array);
		if (swapped)
			optimizer_swap_average(o);
		double *value = read_all(w, p->value);
		for (size_t k = 0; k < p->n_parameters; k++) {
			const struct parameter *one = &p->list[k];
			bool grid = one->n_dims == 2 && strstr(one->name, "layers.");
			for (size_t row = 0; row < one->n; row += one->dims[one->n_dims - 1]) {
				double max = 0, scale;
				for (size_t i = 0; i < one->dims[one->n_dims - 1]; i++)
					max = fmax(max, fabs(value[one->offset + row + i]));
				scale = max / 7;
				for (size_t i = one->offset + row; i < one->offset + row + one->dims[one->n_dims - 1]; i++) {
					double level = value[i] / scale;
					assert_true(grid ? fabs(level - rint(level)) < 1e-9 && fabs(value[i] - master[i]) < scale * .51
							 : fabs(value[i] - master[i]) < 1e-5);
					assert_true(fabs(fabs(master[i] - start[i]) - 1e-5 * (swapped + 1)) < 1e-12);
				}
			}
		}
		free(master), free(value);
		if (swapped)
			optimizer_swap_average(o);
	}
	free(start);
	optimizer_free(o);
	weights_free(w);
	backend_close(be);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(rate_rises_then_falls_to_the_floor),
		cmocka_unit_test(rate_without_warmup_or_longer_than_the_run),
		cmocka_unit_test(one_step_clips_the_mean_and_decays_only_matrices),
		cmocka_unit_test(a_gradient_that_is_not_finite_changes_nothing),
		cmocka_unit_test(lion_steps_by_signs_and_keeps_one_moment),
		cmocka_unit_test(groups_have_their_own_rate_and_decay),
		cmocka_unit_test(a_group_without_parameters_is_an_error),
		cmocka_unit_test(lines_that_are_no_groups_are_refused),
		cmocka_unit_test(the_average_follows_and_gives_the_place_back),
		cmocka_unit_test(on_a_grid_the_master_moves_and_the_student_snaps),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
