// SPDX-License-Identifier: Apache-2.0
// What one micro-batch adds: the same sums and gradients however positions are spread over calls, masked rows counted and left out, and
// a teacher that is the student itself costing nothing. On the ref device (double precision).
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "common/error.h"
#include "common/record.h"
#include "daemon/model/weights.h"
#include "daemon/worker/student.h"
#include "kernels/backend.h"

#define L 6
#define V 11
#define K 3

static const struct architecture architecture = {
	.name = "llama", .n_layers = 1, .width = 8, .ffn_width = 12, .n_heads = 2, .n_kv_heads = 1, .head_size = 4, .vocab_size = V,
	.context_length = 16, .norm_epsilon = 1e-5f, .rope_theta = 10000, .tied_head = true, .bos_id = -1, .eos_id = -1,
};

static struct objective *objective;

static int objective_done(void **state)
{
	(void)state;
	objective = objective_free(objective);
	return 0;
}

static struct student *student_new(const char *first, const char *second)
{
	struct student *s = NULL;
	struct error err = {0};
	objective_free(objective);
	assert_int_equal(objective_new(&objective), 0);
	assert_int_equal(objective_add(objective, first, "test", NULL), 0);
	if (second)
		assert_int_equal(objective_add(objective, second, "test", NULL), 0);
	assert_int_equal(objective_begin(objective, 10, V), 0);
	struct student_options o = {.device = "ref", .n_threads = 1, .sequence_length = L, .micro_batch = 3, .top_k = K, .seed = 5,
				    .objective = objective};
	if (student_open(&o, &architecture, NULL, &s, &err))
		fail_msg("%s", err.message);
	return s;
}

static uint32_t pseudo_random(uint32_t *state)
{
	*state = *state * 1664525u + 1013904223u;
	return *state >> 16;
}

// A made-up answer about n tokens: K descending logits and an lse that leaves some mass to the others.
static struct record_rows *rows_of(uint32_t seed, uint32_t n, uint32_t vocab_size)
{
	uint32_t tokens[L];
	struct content_id teacher = {{1}};
	struct query q;
	for (uint32_t i = 0; i < n; i++)
		tokens[i] = pseudo_random(&seed) % V;
	struct sequence s = {tokens, n};
	struct query_limits limits = {.max_tokens = L, .max_top_k = K, .vocab_size = V};
	query_init(&q);
	q.top_k = K;
	q.n_temperatures = 2;
	q.temperatures[0] = 1;
	q.temperatures[1] = 2;
	q.last = -2;
	assert_int_equal(query_check(&q, &s, &limits, NULL, NULL), 0);
	struct record_rows *r = NULL;
	assert_int_equal(record_rows_new(&teacher, vocab_size, &s, &q, &r, NULL), 0);
	assert_int_equal(r->n_rows, n - 1);
	for (uint32_t i = 0; i < r->n_rows; i++) {
		for (uint32_t j = 0; j < K; j++) {
			r->ids[i * K + j] = (pseudo_random(&seed) % 3) * K + j;
			r->logits[i * K + j] = 2.f - (float)j;
		}
		r->lse[2 * i] = 3.2f;
		r->lse[2 * i + 1] = 2.9f;
		r->max_logit[i] = 2;
	}
	return r;
}

static struct record_rows *rows_new(uint32_t seed, uint32_t vocab_size)
{
	return rows_of(seed, L, vocab_size);
}

static double *gradient_take(struct student *s)
{
	struct weights *w = student_weights(s);
	double *g = malloc(w->parameters->n_values * sizeof *g);
	w->backend->ops->real_read(w->backend, g, w->parameters->gradient, w->parameters->n_values);
	w->backend->ops->real_zero(w->backend, w->parameters->gradient, w->parameters->n_values);
	return g;
}

static void sums_and_gradients_do_not_depend_on_the_split(void **state)
{
	(void)state;
	struct student *s = student_new("forward-kl temperature=2 top-k=3", "cross-entropy weight=0.5");
	size_t n_values = student_weights(s)->parameters->n_values;
	struct record_rows *r[3] = {rows_new(1, V), rows_new(2, V), rows_new(3, V)};
	const struct record_rows *const *view = (const struct record_rows *const *)r;
	struct student_sums whole = {0}, parts = {0};
	assert_int_equal(student_train(s, view, 3, &whole, NULL), 0);
	double *a = gradient_take(s), largest = 0;
	for (int i = 0; i < 3; i++)
		assert_int_equal(student_train(s, view + i, 1, &parts, NULL), 0);
	double *b = gradient_take(s);
	assert_int_equal(whole.n_positions, 3 * (L - 1));
	assert_int_equal(parts.n_positions, whole.n_positions);
	const double *values = whole.objective.values;
	assert_true(fabs(whole.objective.total - parts.objective.total) < 1e-10);
	assert_true(fabs(whole.objective.total - (values[0] + .5 * values[1])) < 1e-10);
	for (size_t i = 0; i < n_values; i++) {
		largest = fmax(largest, fabs(a[i]));
		assert_true(fabs(a[i] - b[i]) < 1e-10);
	}
	assert_true(largest > 1e-3);
	free(a), free(b);
	for (int i = 0; i < 3; i++)
		record_rows_free(r[i]);
	student_close(s);
}

static void gradient_is_the_change_of_the_total(void **state)
{
	(void)state;
	struct student *s = student_new("forward-kl temperature=2 top-k=3", "cross-entropy weight=0.5");
	struct weights *w = student_weights(s);
	struct record_rows *r = rows_new(9, V);
	const struct record_rows *const view[1] = {r};
	struct student_sums sums = {0};
	assert_int_equal(student_train(s, view, 1, &sums, NULL), 0);
	double *g = gradient_take(s), value;
	for (size_t i = 0; i < w->parameters->n_values; i += 37) {
		struct real *at = w->backend->ops->real_at(w->parameters->value, i);
		double total[2];
		w->backend->ops->real_read(w->backend, &value, at, 1);
		for (int k = 0; k < 2; k++) {
			float moved = (float)value + (k ? -1e-3f : 1e-3f);
			struct student_sums moved_sums = {0};
			w->backend->ops->real_write(w->backend, at, &moved, 1);
			weights_refresh(w);
			assert_int_equal(student_train(s, view, 1, &moved_sums, NULL), 0);
			total[k] = moved_sums.objective.total;
		}
		w->backend->ops->real_write(w->backend, at, &(float){(float)value}, 1);
		double step = (double)((float)value + 1e-3f) - (double)((float)value - 1e-3f);
		assert_true(fabs((total[0] - total[1]) / step - g[i]) < 1e-4 * (1 + fabs(g[i])));
	}
	free(g);
	record_rows_free(r);
	student_close(s);
}

static void masked_rows_are_counted_and_teach_nothing(void **state)
{
	(void)state;
	struct student *s = student_new("forward-kl top-k=3", NULL);
	struct record_rows *r = rows_new(4, V);
	const struct record_rows *const view[1] = {r};
	struct student_sums clean = {0}, masked = {0}, none = {0};
	assert_int_equal(student_train(s, view, 1, &clean, NULL), 0);
	r->status[1] = ROW_NOT_FINITE;
	for (int j = 0; j < K; j++)
		r->logits[K + j] = NAN;
	assert_int_equal(student_train(s, view, 1, &masked, NULL), 0);
	assert_int_equal(masked.n_masked, 1);
	assert_int_equal(masked.n_positions, L - 2);
	assert_true(isfinite(masked.objective.total) && masked.objective.total < clean.objective.total);
	free(gradient_take(s));
	memset(r->status, ROW_NOT_FINITE, r->n_rows);
	assert_int_equal(student_train(s, view, 1, &none, NULL), 0);
	assert_int_equal(none.n_positions, 0);
	double *g = gradient_take(s);
	for (size_t i = 0; i < student_weights(s)->parameters->n_values; i++)
		assert_true(g[i] == 0);
	free(g);
	record_rows_free(r);
	student_close(s);
}

// Eight sequences of 2 or 3 tokens in the places of three: each gives what it gives alone, and what one more token would need is refused.
static void packed_documents_stay_apart(void **state)
{
	(void)state;
	struct student *s = student_new("forward-kl temperature=2 top-k=3", "cross-entropy weight=0.5");
	size_t n_values = student_weights(s)->parameters->n_values;
	struct record_rows *r[9];
	const struct record_rows *const *view = (const struct record_rows *const *)r;
	struct student_sums packed = {0}, apart = {0}, none = {0};
	struct student_evaluation e;
	struct error err = {0};
	for (uint32_t i = 0; i < 9; i++)
		r[i] = rows_of(i, i < 2 ? 3 : 2, V);
	assert_int_equal(student_train(s, view, 8, &packed, NULL), 0);
	double *a = gradient_take(s);
	for (int i = 0; i < 8; i++)
		assert_int_equal(student_train(s, view + i, 1, &apart, NULL), 0);
	double *b = gradient_take(s);
	assert_int_equal(packed.n_positions, 10);
	assert_int_equal(apart.n_positions, 10);
	assert_true(packed.objective.total > 0 && fabs(packed.objective.total - apart.objective.total) < 1e-12);
	for (size_t i = 0; i < n_values; i++)
		assert_true(fabs(a[i] - b[i]) < 1e-12);
	assert_int_equal(student_train(s, view, 9, &none, &err), error_errno(ERROR_INTERNAL));
	assert_int_equal(student_evaluate(s, view, 9, &e, NULL), 0);      // as many at a time as there is room for
	assert_int_equal(e.n_positions, 11);
	free(a), free(b);
	for (int i = 0; i < 9; i++)
		record_rows_free(r[i]);
	student_close(s);
}

static void another_vocabulary_is_refused(void **state)
{
	(void)state;
	struct student *s = student_new("forward-kl top-k=3", NULL);
	struct record_rows *r = rows_new(4, V + 1);
	const struct record_rows *const view[1] = {r};
	struct student_sums sums = {0};
	struct error err = {0};
	assert_int_equal(student_train(s, view, 1, &sums, &err), error_errno(ERROR_CONFLICT));
	assert_string_equal(err.field, "student");
	record_rows_free(r);
	student_close(s);
}

static void evaluation_is_at_temperature_one_and_moves_nothing(void **state)
{
	(void)state;
	struct student *hot = student_new("forward-kl temperature=2 top-k=3", NULL);
	struct record_rows *r[4] = {rows_new(1, V), rows_new(2, V), rows_new(3, V), rows_new(4, V)};
	const struct record_rows *const *view = (const struct record_rows *const *)r;
	struct student_evaluation a, b;
	struct student_sums sums = {0};
	assert_int_equal(student_evaluate(hot, view, 4, &a, NULL), 0);       // more than one micro-batch of 3
	double *g = gradient_take(hot);
	for (size_t i = 0; i < student_weights(hot)->parameters->n_values; i++)
		assert_true(g[i] == 0);
	free(g);
	student_close(hot);
	struct student *plain = student_new("forward-kl top-k=3", "cross-entropy");
	assert_int_equal(student_evaluate(plain, view, 4, &b, NULL), 0);
	assert_int_equal(a.n_positions, 4 * (L - 1));
	assert_true(a.kl == b.kl && a.ce == b.ce && a.agreement == b.agreement && isnan(a.teacher_ce));
	assert_int_equal(student_train(plain, view, 3, &sums, NULL), 0);
	assert_int_equal(student_train(plain, view + 3, 1, &sums, NULL), 0);
	double n = (double)sums.n_positions;
	assert_true(fabs(sums.objective.values[0] / n - a.kl) < 1e-12 && fabs(sums.objective.values[1] / n - a.ce) < 1e-12);
	for (int i = 0; i < 4; i++)
		record_rows_free(r[i]);
	student_close(plain);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(sums_and_gradients_do_not_depend_on_the_split),
		cmocka_unit_test(gradient_is_the_change_of_the_total),
		cmocka_unit_test(masked_rows_are_counted_and_teach_nothing),
		cmocka_unit_test(packed_documents_stay_apart),
		cmocka_unit_test(another_vocabulary_is_refused),
		cmocka_unit_test(evaluation_is_at_temperature_one_and_moves_nothing),
	};
	return cmocka_run_group_tests(tests, NULL, objective_done);
}
