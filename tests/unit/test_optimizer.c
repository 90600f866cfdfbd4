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
	be->ops->real_write(be, p->gradient, g, p->n_values);
	assert_int_equal(optimizer_step(&options, w, 1, 4, &norm, NULL), 0);
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
	be->ops->real_write(be, p->gradient, &(float){NAN}, 1);
	assert_int_equal(optimizer_step(&options, w, 1, 4, &norm, NULL), error_errno(ERROR_NOT_FINITE));
	double *after = read_all(w, p->value);
	assert_memory_equal(before, after, p->n_values * sizeof *before);
	assert_true(norm == -1);
	free(before), free(after);
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
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
