// SPDX-License-Identifier: Apache-2.0
// The transformer on ref: the gradient of the whole model against differences, training and inference passes alike, the head's tiles.
#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "common/error.h"
#include "daemon/model/forward.h"
#include "daemon/model/head.h"
#include "daemon/model/weights.h"

#define V 31
#define T 11
#define STEP 1e-5

static const uint32_t starts[] = {0, 7, 8, 11};    // lengths 7, 1, 3
#define N_SEQUENCES 3

struct model {
	struct backend *be;
	struct weights *weights;
	struct activations *activations;
	struct head *head;
	struct act *dhidden;
	uint32_t tokens[T], positions[T], rows[T], labels[T], n_rows;
	struct layout layout;
	struct sweep_row out[T];
	double lse[T], gathered[T], corrections[T];
	uint32_t n_calls;
	double loss;
};

static const float one = 1;
static const double scale = 0.125;    // of each row in the loss

// Rows that have a label, last first: the order of rows is the caller's.
static void model_layout(struct model *m)
{
	for (uint32_t s = 0; s < N_SEQUENCES; s++) {
		for (uint32_t t = starts[s]; t < starts[s + 1]; t++) {
			m->tokens[t] = t * 13 % V;
			m->positions[t] = t - starts[s];
		}
	}
	for (uint32_t s = N_SEQUENCES; s-- > 0;) {
		for (uint32_t t = starts[s + 1] - 1; t-- > starts[s];) {
			m->labels[m->n_rows] = m->tokens[t + 1];
			m->rows[m->n_rows++] = t;
		}
	}
	for (uint32_t i = 0; i < m->n_rows; i++)
		m->out[i] = (struct sweep_row){.n_temperatures = 1, .temperatures = &one, .lse = &m->lse[i], .n_gather = 1,
					       .gather = &m->labels[i], .gathered = &m->gathered[i]};
	m->layout = (struct layout){.n_positions = T, .n_sequences = N_SEQUENCES, .tokens = m->tokens,
					.positions = m->positions, .starts = starts};
}

static void model_open(struct model *m, bool tied, bool qkv_bias, bool qk_norm)
{
	struct error err = {0};
	struct backend_options options = {.n_threads = 1, .max_rows = T};
	struct architecture a = {.name = "llama", .n_layers = 2, .width = 16, .ffn_width = 24, .n_heads = 4, .n_kv_heads = 2,
				 .head_size = 6, .vocab_size = V, .context_length = 64, .norm_epsilon = 1e-3f, .rope_theta = 10000,
				 .tied_head = tied, .qkv_bias = qkv_bias, .qk_norm = qk_norm, .bos_id = -1, .eos_id = -1};
	*m = (struct model){0};
	if (backend_open("ref", &options, &m->be, &err) < 0 || weights_new_trainable(m->be, &a, 1, 64, &m->weights, &err) < 0 ||
	    activations_new(m->weights, T, true, 0, &m->activations, &err) < 0 || head_open(m->weights, T, &m->head, &err) < 0)
		fail_msg("%s", err.message);
	m->dhidden = m->be->ops->act_new(m->be, T * 16, &err);
	assert_non_null(m->dhidden);
	// Larger values than a model starts with: attention must be far from uniform for its gradient to count.
	const struct parameters *p = m->weights->parameters;
	double *value = (double *)p->value;
	for (size_t i = 0; i < p->n_parameters; i++) {
		bool norm = p->list[i].n_dims == 1 && strstr(p->list[i].name, "norm");
		for (size_t j = p->list[i].offset; j < p->list[i].offset + p->list[i].n; j++)
			value[j] = 0.5 * sin((double)j * 12.9898 + 78.233) + norm;
	}
	weights_refresh(m->weights);
	model_layout(m);
}

static void model_close(struct model *m)
{
	m->be->ops->act_free(m->be, m->dhidden);
	head_close(m->head);
	activations_free(m->activations);
	weights_free(m->weights);
	backend_close(m->be);
}

static int cross_entropy(void *arg, uint32_t first, uint32_t n, const struct sweep_row *swept, struct softmax_grad_row *ret_grad,
			 struct error *err)
{
	struct model *m = arg;
	m->n_calls++;
	for (uint32_t i = 0; i < n; i++) {
		if (swept[i].not_finite)
			return error_set(err, ERROR_NOT_FINITE, NULL, "row %u", first + i);
		m->loss += scale * (swept[i].lse[0] - swept[i].gathered[0]);
		m->corrections[first + i] = -scale;
		ret_grad[i] = (struct softmax_grad_row){1, &one, swept[i].lse, &scale, 1, swept[i].gather, &m->corrections[first + i]};
	}
	return 0;
}

static double model_loss(struct model *m, bool gradients)
{
	struct act *hidden = forward(m->weights, m->activations, &m->layout);
	m->loss = 0;
	int r = head_train(m->head, hidden, m->rows, m->n_rows, T, m->out, cross_entropy, m, gradients ? m->dhidden : NULL, NULL);
	assert_int_equal(r, 0);
	if (gradients)
		backward(m->weights, m->activations, &m->layout, m->dhidden);
	assert_int_equal(backend_sync(m->be, NULL), 0);
	return m->loss;
}

static void assert_parameter_gradient(struct model *m, const struct parameter *p)
{
	double *value = (double *)m->weights->parameters->value + p->offset;
	const double *gradient = (const double *)m->weights->parameters->gradient + p->offset;
	double largest = 0;
	for (size_t i = 0; i < p->n; i++)
		largest = fmax(largest, fabs(gradient[i]));
	if (!(largest > 1e-4))
		fail_msg("%s: no gradient", p->name);
	for (size_t i = 0; i < p->n; i++) {
		double kept = value[i];
		value[i] = kept + STEP;
		double up = model_loss(m, false);
		value[i] = kept - STEP;
		double difference = (up - model_loss(m, false)) / (2 * STEP);
		value[i] = kept;
		if (!(fabs(difference - gradient[i]) <= 1e-6 * largest + 1e-9))
			fail_msg("%s[%zu]: backward %.10g, differences %.10g (largest %.3g)", p->name, i, gradient[i], difference, largest);
	}
}

static void assert_gradients(bool tied, bool qkv_bias, bool qk_norm)
{
	struct model m;
	model_open(&m, tied, qkv_bias, qk_norm);
	model_loss(&m, true);
	for (size_t i = 0; i < m.weights->parameters->n_parameters; i++)
		assert_parameter_gradient(&m, &m.weights->parameters->list[i]);
	model_close(&m);
}

static void gradient_of_an_untied_model(void **state)
{
	(void)state;
	assert_gradients(false, false, false);
}

static void gradient_of_a_tied_model(void **state)
{
	(void)state;
	assert_gradients(true, false, false);
}

static void gradient_with_qkv_bias(void **state)
{
	(void)state;
	assert_gradients(false, true, false);
}

static void gradient_with_query_and_key_norm(void **state)
{
	(void)state;
	assert_gradients(true, false, true);
}

static void gradients_add_up(void **state)
{
	(void)state;
	struct model m;
	model_open(&m, true, true, true);
	size_t n = m.weights->parameters->n_values;
	double *once = calloc(n, sizeof *once);
	assert_non_null(once);
	model_loss(&m, true);
	memcpy(once, m.weights->parameters->gradient, n * sizeof *once);
	model_loss(&m, true);
	for (size_t i = 0; i < n; i++)
		assert_true(fabs(((double *)m.weights->parameters->gradient)[i] - 2 * once[i]) <= 1e-12 * (1 + fabs(once[i])));
	free(once);
	model_close(&m);
}

static void evaluation_touches_no_gradient(void **state)
{
	(void)state;
	struct model m;
	model_open(&m, false, false, false);
	double trained = model_loss(&m, true);
	m.be->ops->real_zero(m.be, m.weights->parameters->gradient, m.weights->parameters->n_values);
	assert_true(model_loss(&m, false) == trained);
	assert_true(m.be->ops->sum_squares(m.be, m.weights->parameters->gradient, m.weights->parameters->n_values) == 0);
	model_close(&m);
}

static void inference_gives_the_rows_of_training(void **state)
{
	(void)state;
	for (int i = 0; i < 2; i++) {
		struct model m;
		struct activations *inference;
		double want[T * 16], got[T * 16];
		model_open(&m, true, i, i);
		assert_int_equal(activations_new(m.weights, T, false, 0, &inference, NULL), 0);
		m.be->ops->act_read(m.be, want, forward(m.weights, m.activations, &m.layout), T * 16);
		m.be->ops->act_read(m.be, got, forward(m.weights, inference, &m.layout), T * 16);
		assert_memory_equal(got, want, sizeof want);
		assert_true(isfinite(got[T * 16 - 1]) && got[T * 16 - 1] != 0);
		activations_free(inference);
		model_close(&m);
	}
}

// 150 rows make three tiles, the last of them short; each row must be that of its own position.
static void head_tiles_cover_every_row(void **state)
{
	(void)state;
	enum { n = 150 };
	struct model m;
	uint32_t rows[n], ids[n];
	double lse[n], logits[n], first_lse[T];
	struct sweep_row out[n];
	model_open(&m, false, false, false);
	for (uint32_t i = 0; i < n; i++) {
		rows[i] = i * 7 % T;
		out[i] = (struct sweep_row){.top_k = 1, .n_temperatures = 1, .temperatures = &one, .lse = &lse[i], .ids = &ids[i],
			.logits = &logits[i]};
	}
	struct act *hidden = forward(m.weights, m.activations, &m.layout);
	head_score(m.head, hidden, rows, n, out);
	assert_int_equal(backend_sync(m.be, NULL), 0);
	for (uint32_t i = 0; i < T; i++)
		first_lse[rows[i]] = lse[i];
	for (uint32_t i = 0; i < n; i++) {
		assert_true(lse[i] == first_lse[rows[i]] && logits[i] < lse[i] && ids[i] < V);
		assert_true(i == 0 || rows[i] == rows[i - 1] || lse[i] != lse[i - 1]);
	}
	model_close(&m);
}

// What forward showed: one line of text per look, and the values.
struct looks { struct backend *be; char order[128]; uint32_t n; double values[16][T * 48]; };

static void look(void *arg, enum forward_tap what, uint32_t layer, const struct real *x, const struct act *y)
{
	struct looks *l = arg;
	char one_look[] = {"hqf"[what], (char)('0' + layer), 0};
	strcat(l->order, one_look);
	assert_true(!x != !y && l->n < 16);
	if (x)
		l->be->ops->real_read(l->be, l->values[l->n++], x, T * 16);
	else
		l->be->ops->act_read(l->be, l->values[l->n++], y, what == FORWARD_FINAL ? T * 16 : T * 48);
}

static void looks_show_the_same_in_training_and_inference(void **state)
{
	(void)state;
	for (int i = 0; i < 2; i++) {
		struct model m;
		struct activations *inference;
		struct looks *want = calloc(1, sizeof *want), *got = calloc(1, sizeof *got);
		double final[T * 16];
		assert_true(want && got);
		model_open(&m, true, i, i);
		want->be = got->be = m.be;
		assert_int_equal(activations_new(m.weights, T, false, 0, &inference, NULL), 0);
		activations_tap(m.activations, look, want);
		activations_tap(inference, look, got);
		forward(m.weights, m.activations, &m.layout);
		struct act *rows = forward(m.weights, inference, &m.layout);
		assert_string_equal(got->order, "h0q0h1q1h2f0");
		assert_memory_equal(got, want, sizeof *got);
		m.be->ops->act_read(m.be, final, rows, T * 16);
		assert_memory_equal(got->values[5], final, sizeof final);
		for (int j = 1; j < 6; j++)
			assert_memory_not_equal(got->values[j], got->values[j - 1], T * 16 * sizeof(double));
		activations_tap(inference, NULL, NULL);
		forward(m.weights, inference, &m.layout);
		assert_int_equal(got->n, 6);
		activations_free(inference);
		model_close(&m);
		free(want);
		free(got);
	}
}

static void kept_columns_lie_beside_the_logits(void **state)
{
	(void)state;
	enum { n = T / 2, n_keep = 4 };
	static const uint32_t keep[n_keep] = {0, 7, 8, V - 1};
	struct model m;
	double logits[n * V], kept[n * n_keep], again[n * V];
	model_open(&m, false, false, false);
	struct act *hidden = forward(m.weights, m.activations, &m.layout);
	assert_int_equal(head_tile_rows(m.head), T);
	struct real *z = head_logits(m.head, hidden, m.rows, n);
	m.be->ops->real_read(m.be, logits, z, n * V);
	m.be->ops->real_read(m.be, kept, head_keep(m.head, keep, n_keep, n), n * n_keep);
	m.be->ops->real_read(m.be, again, z, n * V);
	for (int i = 0; i < n * n_keep; i++)
		assert_true(kept[i] == logits[i / n_keep * V + keep[i % n_keep]]);
	assert_memory_equal(again, logits, sizeof logits);
	model_close(&m);
}

static int refuse(void *arg, uint32_t first, uint32_t n, const struct sweep_row *swept, struct softmax_grad_row *ret_grad,
		  struct error *err)
{
	(void)first, (void)n, (void)swept, (void)ret_grad;
	((struct model *)arg)->n_calls++;
	return error_set(err, ERROR_NOT_FINITE, NULL, "refused");
}

static void an_error_of_the_loss_ends_the_pass(void **state)
{
	(void)state;
	struct model m;
	struct error err = {0};
	model_open(&m, false, false, false);
	struct act *hidden = forward(m.weights, m.activations, &m.layout);
	assert_int_equal(head_train(m.head, hidden, m.rows, m.n_rows, T, m.out, refuse, &m, m.dhidden, &err), -EDOM);
	assert_string_equal(err.message, "refused");
	assert_int_equal(m.n_calls, 1);
	assert_true(m.be->ops->sum_squares(m.be, m.weights->parameters->gradient, m.weights->parameters->n_values) == 0);
	model_close(&m);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(gradient_of_an_untied_model),
		cmocka_unit_test(gradient_of_a_tied_model),
		cmocka_unit_test(gradient_with_qkv_bias),
		cmocka_unit_test(gradient_with_query_and_key_norm),
		cmocka_unit_test(gradients_add_up),
		cmocka_unit_test(evaluation_touches_no_gradient),
		cmocka_unit_test(inference_gives_the_rows_of_training),
		cmocka_unit_test(head_tiles_cover_every_row),
		cmocka_unit_test(looks_show_the_same_in_training_and_inference),
		cmocka_unit_test(kept_columns_lie_beside_the_logits),
		cmocka_unit_test(an_error_of_the_loss_ends_the_pass),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
