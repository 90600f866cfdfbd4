// SPDX-License-Identifier: Apache-2.0
// What is seen in forward is what backward takes a gradient for: a loss on hidden rows, q, k, v rows and the final rows of every family,
// against differences on ref. And parameters beside a model, which leave the model as it is.
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "common/error.h"
#include "daemon/model/checkpoint.h"
#include "daemon/model/forward.h"
#include "daemon/model/weights.h"

#define V 13
#define T 7
#define C 8
#define STEP 3e-6

static const uint32_t tokens[T] = {3, 9, 1, 1, 12, 0, 5}, places[T] = {0, 1, 2, 3, 0, 1, 2}, starts[] = {0, 4, 7};
static const struct layout layout = {.n_positions = T, .n_sequences = 2, .tokens = tokens, .positions = places, .starts = starts};

static const struct architecture llama = {
	.name = "qwen3", .n_layers = 2, .width = C, .ffn_width = 12, .n_heads = 2, .n_kv_heads = 1, .head_size = 4, .vocab_size = V,
	.context_length = 16, .norm_epsilon = 1e-3f, .rope_theta = 10000, .tied_head = true, .qk_norm = true, .bos_id = -1, .eos_id = -1,
};
static const struct architecture gpt2 = {
	.name = "gpt2", .n_layers = 2, .width = C, .ffn_width = 12, .n_heads = 2, .n_kv_heads = 2, .head_size = 4, .vocab_size = V,
	.context_length = 16, .norm_epsilon = 1e-3f, .norm = NORM_LAYER, .activation = ACTIVATION_GELU_TANH,
	.out_bias = true, .ffn_bias = true,
	.learned_positions = true, .tied_head = true, .qkv_bias = true, .bos_id = -1, .eos_id = -1,
};
static const struct architecture bert = {
	.name = "bert", .n_layers = 2, .width = C, .ffn_width = 12, .n_heads = 2, .n_kv_heads = 2, .head_size = 4, .vocab_size = V,
	.context_length = 16, .norm_epsilon = 1e-3f, .norm = NORM_LAYER, .activation = ACTIVATION_GELU_ERF, .post_norm = true,
	.out_bias = true, .ffn_bias = true, .learned_positions = true,
	.n_token_types = 2, .masked = true, .tied_head = true, .qkv_bias = true,
	.bos_id = -1, .eos_id = -1,
};

struct model {
	struct backend *be;
	struct weights *weights;
	struct activations *activations;
	struct act *dfinal;
	enum forward_tap what;         // the one place where a loss is taken
	uint32_t layer;
	double loss;
	uint32_t n_seen, n_back;
};

// A fixed direction for each number: loss = sum of c y.
static double c_at(size_t i)
{
	return sin(1.7 * (double)i + 0.3);
}

static size_t width_of(const struct model *m)
{
	const struct architecture *a = &m->weights->architecture;
	return m->what == FORWARD_QKV ? (a->n_heads + 2 * (size_t)a->n_kv_heads) * a->head_size : a->width;
}

static void seen(void *arg, enum forward_tap what, uint32_t layer, const struct real *x, const struct act *y)
{
	struct model *m = arg;
	double values[T * 3 * C];
	m->n_seen++;
	if (what != m->what || layer != m->layer)
		return;
	assert_true((x != NULL) == (what == FORWARD_HIDDEN));
	if (x)
		m->be->ops->real_read(m->be, values, x, T * width_of(m));
	else
		m->be->ops->act_read(m->be, values, y, T * width_of(m));
	for (size_t i = 0; i < T * width_of(m); i++)
		m->loss += c_at(i) * values[i];
}

// ref's arrays are doubles.
static void back(void *arg, enum forward_tap what, uint32_t layer, struct real *dx, struct act *dy)
{
	struct model *m = arg;
	double *to = dx ? (double *)dx : (double *)dy;
	m->n_back++;
	for (size_t i = 0; what == m->what && layer == m->layer && i < T * width_of(m); i++)
		to[i] += c_at(i);
}

static void model_open(struct model *m, const struct architecture *a, uint32_t recompute)
{
	struct error err = {0};
	struct backend_options options = {.n_threads = 1, .max_rows = T};
	*m = (struct model){0};
	if (backend_open("ref", &options, &m->be, &err) < 0 || weights_new_trainable(m->be, a, 1, 16, &m->weights, &err) < 0 ||
	    activations_new(m->weights, T, true, recompute, &m->activations, &err) < 0)
		fail_msg("%s", err.message);
	m->dfinal = m->be->ops->act_new(m->be, T * C, &err);
	assert_non_null(m->dfinal);
	double *value = (double *)m->weights->parameters->value;
	for (size_t i = 0; i < m->weights->parameters->n_values; i++)
		value[i] = value[i] * 5 + 0.2 * sin((double)i);
	weights_refresh(m->weights);
	activations_tap(m->activations, seen, m);
	activations_tap_back(m->activations, back, m);
}

static void model_close(struct model *m)
{
	m->be->ops->act_free(m->be, m->dfinal);
	activations_free(m->activations);
	weights_free(m->weights);
	backend_close(m->be);
}

static double loss_of(struct model *m)
{
	m->loss = 0;
	weights_refresh(m->weights);
	forward(m->weights, m->activations, &layout);
	return m->loss;
}

static void assert_place(struct model *m, enum forward_tap what, uint32_t layer)
{
	const struct parameters *p = m->weights->parameters;
	double *value = (double *)p->value, *gradient = (double *)p->gradient, largest = 0;
	m->what = what;
	m->layer = layer;
	memset(gradient, 0, p->n_values * sizeof *gradient);
	memset(m->dfinal, 0, T * C * sizeof *gradient);
	loss_of(m);
	backward(m->weights, m->activations, &layout, m->dfinal);
	for (size_t i = 0; i < p->n_values; i++)
		largest = fmax(largest, fabs(gradient[i]));
	assert_true(largest > 1e-2);
	for (size_t i = 0; i < p->n_values; i += 3) {
		double kept = value[i];
		value[i] = kept + STEP;
		double up = loss_of(m);
		value[i] = kept - STEP;
		double difference = (up - loss_of(m)) / (2 * STEP);
		value[i] = kept;
		if (!(fabs(difference - gradient[i]) <= 1e-6 * largest))
			fail_msg("%s, place %d of layer %u: [%zu] %.9g, by differences %.9g", m->weights->architecture.name, (int)what,
				 layer, i, gradient[i], difference);
	}
}

static void every_place_takes_the_gradient_of_what_it_shows(void **state)
{
	(void)state;
	const struct architecture *const families[] = {&llama, &gpt2, &bert};
	for (int i = 0; i < 6; i++) {
		struct model m;
		model_open(&m, families[i % 3], i / 3);
		for (uint32_t layer = 0; layer <= 2; layer++)
			assert_place(&m, FORWARD_HIDDEN, layer);
		assert_place(&m, FORWARD_QKV, 0);
		assert_place(&m, FORWARD_QKV, 1);
		assert_place(&m, FORWARD_FINAL, 0);
		m.n_seen = m.n_back = 0;
		loss_of(&m);
		backward(m.weights, m.activations, &layout, m.dfinal);
		assert_int_equal(m.n_seen, 6);
		assert_int_equal(m.n_back, 6);
		model_close(&m);
	}
}

static void parameters_beside_a_model_leave_it_as_it_is(void **state)
{
	(void)state;
	static const struct parameter_beside list[] = {{"projection.a.weight", 3, C}, {"projection.a.bias", 3, 0}};
	const struct parameters_beside beside = {2, list};
	struct backend_options options = {.n_threads = 1, .max_rows = T};
	struct backend *be = NULL;
	struct weights *plain = NULL, *more = NULL;
	struct checkpoint_tensor *tensors = NULL;
	size_t n = 0;
	assert_int_equal(backend_open("ref", &options, &be, NULL), 0);
	assert_int_equal(weights_new_trainable(be, &llama, 7, 16, &plain, NULL), 0);
	assert_int_equal(weights_new_beside(be, &llama, &beside, 7, 16, &more, NULL), 0);
	struct parameters *a = plain->parameters, *b = more->parameters;
	assert_int_equal(a->n_model, a->n_parameters);
	assert_int_equal(b->n_model, a->n_parameters);
	assert_int_equal(b->n_parameters, a->n_parameters + 2);
	assert_int_equal(b->n_model_values, a->n_values);
	assert_int_equal(b->n_values, a->n_values + 3 * C + 3);
	assert_memory_equal(a->value, b->value, a->n_values * sizeof(double));
	assert_non_null(more->beside[0]);
	assert_null(more->beside[1]);
	const double *value = (const double *)b->value + b->n_model_values;
	for (int i = 0; i < 3 * C; i++)
		assert_true(value[i] != 0 && fabs(value[i]) < 0.2);
	for (int i = 3 * C; i < 3 * C + 3; i++)
		assert_true(value[i] == 0);
	assert_int_equal(weights_export(more, b->value, DTYPE_F32, &tensors, &n, NULL), 0);
	assert_int_equal(n, b->n_parameters);
	assert_string_equal(tensors[b->n_model].name, "projection.a.weight");
	weights_export_free(tensors, n);
	struct backend_need need = {0}, need_more = {0};
	assert_int_equal(weights_need(&llama, 16, 4, &need, NULL), 0);
	need_more = need;
	weights_need_beside(&beside, 4, &need_more);
	const struct backend_count *x = &need.parts[BACKEND_PART_TRAINING], *y = &need_more.parts[BACKEND_PART_TRAINING];
	assert_int_equal(y->n_real - x->n_real, 4 * (3 * C + 3));
	assert_int_equal(y->n_view - x->n_view, 3 * C);
	weights_free(plain);
	weights_free(more);
	backend_close(be);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_place_takes_the_gradient_of_what_it_shows),
		cmocka_unit_test(parameters_beside_a_model_leave_it_as_it_is),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
