// SPDX-License-Identifier: Apache-2.0
// Backward and five AdamW steps against PyTorch: hard cross-entropy mixed with forward KL on a fixed sparse teacher, ids outside the
// support as one symbol (methods.md sections 2 and 3.2), gradients clipped to a maximal norm.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/error.h"
#include "tests/golden/golden.h"

#define MAX_TOKENS 64
#define MAX_SUPPORT 8

// `after`: a row's label is so many tokens after it (a masked model: 0, its own).
struct training { uint32_t after; double w_ce, w_kd, temperature, rate, beta1, beta2, epsilon, decay, max_norm; uint32_t n_support;
	struct real *moments[2]; };

// One step: the batch, and for each row that has a label what the teacher said.
struct step {
	const struct training *training;
	uint32_t tokens[MAX_TOKENS], positions[MAX_TOKENS], starts[9], rows[MAX_TOKENS], n_sequences, n_rows;
	struct layout layout;
	uint32_t ids[MAX_TOKENS][MAX_SUPPORT + 1];            // the support, then the label
	double p[MAX_TOKENS][MAX_SUPPORT];
	double loss, want_loss, want_norm;
	// what the sweep gives and what the loss gives back
	float temperatures[2];
	double lse[MAX_TOKENS][2], gathered[MAX_TOKENS][MAX_SUPPORT + 1], scales[MAX_TOKENS][2], corrections[MAX_TOKENS][MAX_SUPPORT + 1];
	struct sweep_row out[MAX_TOKENS];
};

static void step_read(struct step *s, const struct training *training, struct golden_file *g)
{
	*s = (struct step){.training = training, .temperatures = {1, (float)training->temperature}};
	s->n_sequences = reader_u32(&g->reader);
	assert_in_range(s->n_sequences, 1, 8);
	for (uint32_t i = 0; i < s->n_sequences; i++) {
		uint32_t n = reader_u32(&g->reader), start = s->starts[i];
		assert_in_range(n, 2, MAX_TOKENS - start);
		for (uint32_t t = 0; t < n; t++) {
			s->tokens[start + t] = reader_u32(&g->reader);
			s->positions[start + t] = t;
			if (t + training->after < n)
				s->rows[s->n_rows++] = start + t;
		}
		s->starts[i + 1] = start + n;
	}
	s->layout = (struct layout){.n_positions = s->starts[s->n_sequences], .n_sequences = s->n_sequences, .tokens = s->tokens,
					.positions = s->positions, .starts = s->starts};
	assert_int_equal(reader_u32(&g->reader), s->n_rows);
	for (uint32_t i = 0; i < s->n_rows; i++) {
		for (uint32_t k = 0; k < training->n_support; k++)
			s->ids[i][k] = reader_u32(&g->reader);
		for (uint32_t k = 0; k < training->n_support; k++)
			s->p[i][k] = reader_f64(&g->reader);
		s->ids[i][training->n_support] = s->tokens[s->rows[i] + training->after];
		s->out[i] = (struct sweep_row){.n_temperatures = 2, .temperatures = s->temperatures, .lse = s->lse[i],
					       .n_gather = training->n_support + 1, .gather = s->ids[i], .gathered = s->gathered[i]};
	}
	s->want_loss = reader_f64(&g->reader);
	s->want_norm = reader_f64(&g->reader);
}

// loss = w_ce (lse_1 - z_y) + w_kd T^2 [sum p log(p/q) + p_tail log(p_tail/q_tail)]; its gradient is
// w_ce softmax(z) + w_kd T (1 - p_tail/q_tail) softmax(z/T), and on the support w_kd T (q p_tail/q_tail - p), on the label - w_ce.
static double row_loss(struct step *s, uint32_t i)
{
	const struct training *t = s->training;
	uint32_t K = t->n_support;
	double T = t->temperature, p_tail = 1, q_tail = 1, q[MAX_SUPPORT], kl = 0;
	for (uint32_t k = 0; k < K; k++) {
		double log_q = s->gathered[i][k] / T - s->lse[i][1];
		q[k] = exp(log_q);
		p_tail -= s->p[i][k];
		q_tail -= q[k];
		kl += s->p[i][k] * (log(s->p[i][k]) - log_q);
	}
	kl += p_tail * log(p_tail / q_tail);
	s->scales[i][0] = t->w_ce / s->n_rows;
	s->scales[i][1] = t->w_kd * T * (1 - p_tail / q_tail) / s->n_rows;
	for (uint32_t k = 0; k < K; k++)
		s->corrections[i][k] = t->w_kd * T * (q[k] * p_tail / q_tail - s->p[i][k]) / s->n_rows;
	s->corrections[i][K] = -t->w_ce / s->n_rows;
	return t->w_ce * (s->lse[i][0] - s->gathered[i][K]) + t->w_kd * T * T * kl;
}

static int mixed_loss(void *arg, uint32_t first, uint32_t n, const struct sweep_row *swept, struct softmax_grad_row *ret_grad,
		      struct error *err)
{
	struct step *s = arg;
	(void)err;
	for (uint32_t i = first; i < first + n; i++) {
		assert_false(swept[i - first].not_finite);
		s->loss += row_loss(s, i) / s->n_rows;
		ret_grad[i - first] = (struct softmax_grad_row){2, s->temperatures, s->lse[i], s->scales[i], s->training->n_support + 1,
								s->ids[i], s->corrections[i]};
	}
	return 0;
}

static void update(struct golden_model *m, const struct training *t, double norm, uint64_t number)
{
	struct parameters *p = m->weights->parameters;
	const struct backend_ops *ops = m->backend->ops;
	struct adamw a = {t->rate, t->beta1, t->beta2, t->epsilon, 0, fmin(1, t->max_norm / (norm + 1e-6)), number};
	for (size_t i = 0; i < p->n_parameters; i++) {
		size_t at = p->list[i].offset;
		a.weight_decay = p->list[i].decay ? t->decay : 0;
		ops->adamw(m->backend, ops->real_at(p->value, at), ops->real_at(t->moments[0], at), ops->real_at(t->moments[1], at),
			   ops->real_at(p->gradient, at), p->list[i].n, &a);
	}
	weights_refresh(m->weights);
}

static double take_step(struct golden_model *m, struct step *s)
{
	struct parameters *p = m->weights->parameters;
	const struct backend_ops *ops = m->backend->ops;
	struct error err = {0};
	uint32_t T = s->layout.n_positions;
	struct act *dhidden = ops->act_new(m->backend, (size_t)T * m->weights->architecture.width, NULL);
	assert_non_null(dhidden);
	ops->real_zero(m->backend, p->gradient, p->n_values);
	struct act *hidden = forward(m->weights, m->activations, &s->layout);
	if (head_train(m->head, hidden, s->rows, s->n_rows, T, s->out, mixed_loss, s, dhidden, &err) < 0)
		fail_msg("%s", err.message);
	backward(m->weights, m->activations, &s->layout, dhidden);
	double norm = sqrt(ops->sum_squares(m->backend, p->gradient, p->n_values));
	if (backend_sync(m->backend, &err) < 0)
		fail_msg("%s", err.message);
	ops->act_free(m->backend, dhidden);
	return norm;
}

static double *read_all(struct golden_model *m, const struct real *array)
{
	double *x = golden_array(m->weights->parameters->n_values, sizeof *x);
	m->backend->ops->real_read(m->backend, x, array, m->weights->parameters->n_values);
	return x;
}

static const struct parameter *parameter_named(const struct golden_model *m, const char *name)
{
	const struct parameters *p = m->weights->parameters;
	for (size_t i = 0; i < p->n_parameters; i++)
		if (strcmp(p->list[i].name, name) == 0)
			return &p->list[i];
	fail_msg("no parameter %s", name);
	return NULL;
}

// p's numbers as we keep them: the file has transposed matrices as transformers has them.
static double *golden_parameter(struct golden_file *g, const struct parameter *p)
{
	double *stored = golden_f32s(g, p->n);
	if (!p->transposed)
		return stored;
	double *turned = golden_array(p->n, sizeof *turned);
	for (size_t n = 0; n < p->dims[0]; n++)
		for (size_t k = 0; k < p->dims[1]; k++)
			turned[n * p->dims[1] + k] = stored[k * p->dims[0] + n];
	free(stored);
	return turned;
}

// Relative: of the loss and the gradient's norm at every step, of each tensor's first gradient, and of its move in all steps.
struct bounds { double loss, norm, gradient, move; };

// A bias of all keys shifts a row's scores alike and the softmax takes it out: its gradient is 0, and PyTorch's is rounding, which AdamW
// blows up to the size of the rate. Such numbers must be as small here; they are then not compared, nor are their moves.
#define ROUNDING 1e-12

// Makes moves of values; returns how many are left to compare.
static size_t take_moves(const struct parameter *p, double *want_gradient, double *gradient, double *want, double *got, const double *start,
			 double limit)
{
	size_t n = p->n;
	for (size_t j = 0; j < p->n; j++) {
		bool rounding = want_gradient[j] != 0 && fabs(want_gradient[j]) < ROUNDING;
		if (rounding && fabs(gradient[j]) > limit)
			fail_msg("%s[%zu]: gradient %.3g where PyTorch's is rounding", p->name, j, gradient[j]);
		want[j] -= start[j];
		got[j] -= start[j];
		if (!rounding)
			continue;
		want_gradient[j] = gradient[j] = want[j] = got[j] = 0;
		n--;
	}
	return n;
}

// Gradients of the first step, and how far five steps moved each parameter (its start is subtracted: the start alone would pass).
static void assert_parameters(struct golden_model *m, struct golden_file *g, const double *start, double *gradient,
			      const struct bounds *b)
{
	double *value = read_all(m, m->weights->parameters->value), worst_gradient = 0, worst_move = 0;
	uint32_t n_parameters = reader_u32(&g->reader);
	assert_int_equal(n_parameters, m->weights->parameters->n_parameters);
	for (uint32_t i = 0; i < n_parameters; i++) {
		char name[96] = {0};
		uint32_t n_name = reader_u32(&g->reader);
		assert_in_range(n_name, 1, sizeof name - 1);
		reader_copy(&g->reader, name, n_name);
		const struct parameter *p = parameter_named(m, name);
		assert_int_equal(reader_u32(&g->reader), p->n);
		double *want_gradient = golden_parameter(g, p), *want_value = golden_parameter(g, p);
		size_t n = take_moves(p, want_gradient, gradient + p->offset, want_value, value + p->offset, start + p->offset,
				      b->gradient / 10);
		double gradient_error = n ? relative_error(gradient + p->offset, want_gradient, p->n) : 0;
		double move_error = n ? relative_error(value + p->offset, want_value, p->n) : 0;
		if (!(gradient_error <= b->gradient && move_error <= b->move))
			fail_msg("%s: gradient error %.3g, error of the move %.3g", name, gradient_error, move_error);
		worst_gradient = fmax(worst_gradient, gradient_error);
		worst_move = fmax(worst_move, move_error);
		free(want_gradient);
		free(want_value);
	}
	printf("# worst tensor: gradient error %.2g, error of the move in five steps %.2g\n", worst_gradient, worst_move);
	free(value);
}

static void compare(const char *name, const char *device, enum backend_numeric numeric, struct bounds b)
{
	char path[4096], what[64];
	struct golden_file g;
	struct golden_model m;
	struct training t = {0};
	snprintf(what, sizeof what, "%s.bin", name);
	golden_open(&g, what, "KDGB");
	uint32_t n_steps = reader_u32(&g.reader);
	t.n_support = reader_u32(&g.reader);
	assert_in_range(t.n_support, 1, MAX_SUPPORT);
	double *numbers[] = {&t.w_ce, &t.w_kd, &t.temperature, &t.rate, &t.beta1, &t.beta2, &t.epsilon, &t.decay, &t.max_norm};
	for (int i = 0; i < 9; i++)
		*numbers[i] = reader_f64(&g.reader);
	snprintf(what, sizeof what, "models/%s", name);
	golden_path(path, sizeof path, what);
	golden_model_open(&m, path, device, numeric, true, MAX_TOKENS);
	t.after = !m.weights->architecture.masked;
	double *start = read_all(&m, m.weights->parameters->value), *gradient = NULL;
	struct step *s = golden_array(1, sizeof *s);
	for (int i = 0; i < 2; i++)
		assert_non_null(t.moments[i] = m.backend->ops->real_new(m.backend, m.weights->parameters->n_values, NULL));
	for (uint32_t i = 1; i <= n_steps; i++) {
		step_read(s, &t, &g);
		double norm = take_step(&m, s);
		printf("# %s on %s step %u: loss %.9f (PyTorch %.9f), gradient norm %.6f (%.6f)\n", name, device, i, s->loss, s->want_loss,
		       norm, s->want_norm);
		assert_true(fabs(s->loss - s->want_loss) <= b.loss * fabs(s->want_loss));
		assert_true(fabs(norm - s->want_norm) <= b.norm * s->want_norm);
		if (i == 1)
			gradient = read_all(&m, m.weights->parameters->gradient);
		update(&m, &t, norm, i);
	}
	assert_parameters(&m, &g, start, gradient, &b);
	for (int i = 0; i < 2; i++)
		m.backend->ops->real_free(m.backend, t.moments[i]);
	golden_model_close(&m);
	golden_close(&g);
	free(s);
	free(start);
	free(gradient);
}

static const char *const names[] = {"train", "train-gpt2", "train-bert", "train-mistral", "train-bias"};
#define N_NAMES (sizeof names / sizeof *names)
// Of a bias of keys next to no gradient is left (the softmax takes out what shifts a row's scores alike), and AdamW moves by its sign,
// which products of bfloat16 may miss; so it may be with one of the few elements of another bias.
static struct bounds bf16_bounds(const char *name)
{
	return (struct bounds){1e-2, 5e-2, 0.1, strstr(name, "bias") ? 0.8 : 0.5};
}

static const struct bounds float_bounds = {5e-6, 1e-4, 1e-4, 1e-3};    // five digits of the loss

static void ref_trains_as_pytorch(void **state)
{
	(void)state;
	for (size_t i = 0; i < N_NAMES; i++)
		compare(names[i], "ref", BACKEND_NUMERIC_F32, float_bounds);
}

static void f32_trains_as_pytorch(void **state)
{
	(void)state;
	for (size_t i = 0; i < N_NAMES; i++)
		compare(names[i], DEVICE, BACKEND_NUMERIC_F32, float_bounds);
}

// Where products round to bfloat16 the losses still follow; AdamW's first steps have the size of the rate whatever a gradient's size, so a
// small one's rounding shows in full in the move.
static void the_fast_path_trains_alike(void **state)
{
	(void)state;
	for (size_t i = 0; i < N_NAMES; i++)
		compare(names[i], DEVICE, BACKEND_NUMERIC_AUTO, bf16_bounds(names[i]));
}

// Loss of the first step of a device's numeric form.
static double first_loss(const char *name, enum backend_numeric numeric)
{
	struct golden_file g;
	struct golden_model m;
	struct training t = {0};
	char path[4096], what[64];
	snprintf(what, sizeof what, "%s.bin", name);
	golden_open(&g, what, "KDGB");
	(void)reader_u32(&g.reader);
	t.n_support = reader_u32(&g.reader);
	double *numbers[] = {&t.w_ce, &t.w_kd, &t.temperature, &t.rate, &t.beta1, &t.beta2, &t.epsilon, &t.decay, &t.max_norm};
	for (int i = 0; i < 9; i++)
		*numbers[i] = reader_f64(&g.reader);
	snprintf(what, sizeof what, "models/%s", name);
	golden_path(path, sizeof path, what);
	golden_model_open(&m, path, DEVICE, numeric, true, MAX_TOKENS);
	t.after = !m.weights->architecture.masked;
	struct step *s = golden_array(1, sizeof *s);
	step_read(s, &t, &g);
	take_step(&m, s);
	double loss = s->loss;
	golden_model_close(&m);
	free(s);
	free(g.bytes);
	return loss;
}

// Mixed precision: products of bfloat16, all else float. It follows f32, and is not f32.
static void bf16_follows_f32(void **state)
{
	(void)state;
	for (size_t i = 0; i < N_NAMES; i++) {
		double f32 = first_loss(names[i], BACKEND_NUMERIC_F32), bf16 = first_loss(names[i], BACKEND_NUMERIC_BF16);
		assert_true(fabs(bf16 - f32) > 1e-7 * f32);
		compare(names[i], DEVICE, BACKEND_NUMERIC_BF16, bf16_bounds(names[i]));
	}
}

int main(void)
{
	if (!golden_device_found())
		return 77;
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(ref_trains_as_pytorch),
		cmocka_unit_test(f32_trains_as_pytorch),
		cmocka_unit_test(the_fast_path_trains_alike),
		cmocka_unit_test(bf16_follows_f32),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
