// SPDX-License-Identifier: Apache-2.0
// Twenty steps of training by losses on features against PyTorch with automatic differentiation: losses equal to 4 digits. The worker's own
// path, from a line of configuration through the question, the answer and the student to the optimizer; make_features.py says what the file
// holds.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/error.h"
#include "common/record.h"
#include "daemon/model/weights.h"
#include "daemon/worker/features.h"
#include "tests/golden/training.h"

#define MAX_SEQUENCES 8
#define MAX_LAYERS 8

struct lessons {
	uint32_t n_sequences, length, V, n_steps, n_layers;
	struct feature_widths widths;
	struct optimizer_options optimizer;
	uint32_t *tokens;              // (n_sequences, length)
	double *hidden[MAX_LAYERS];    // (n_layers + 2) each (rows, C), the last after the norm
	double *parts[3];              // q, k, v of the last block
};

static void lessons_read(struct lessons *l, struct golden_file *g)
{
	uint32_t *header[] = {&l->n_sequences, &l->length, &l->V, &l->n_steps, &l->n_layers, &l->widths.hidden,
		&l->widths.q, &l->widths.kv};
	struct optimizer_options *o = &l->optimizer;
	double *numbers[] = {&o->learning_rate, &o->beta1, &o->beta2, &o->epsilon, &o->weight_decay, &o->clip};
	for (int i = 0; i < 8; i++)
		*header[i] = reader_u32(&g->reader);
	for (int i = 0; i < 6; i++)
		*numbers[i] = reader_f64(&g->reader);
	assert_in_range(l->n_sequences, 1, MAX_SEQUENCES);
	assert_in_range(l->n_layers, 1, MAX_LAYERS - 2);
	o->min_ratio = 1;              // the rate stays
	o->steps = 1000;
	size_t n_rows = l->n_sequences * (l->length - 1);
	l->tokens = golden_u32s(g, l->n_sequences * l->length);
	for (uint32_t i = 0; i < l->n_layers + 2; i++)
		l->hidden[i] = golden_f32s(g, n_rows * l->widths.hidden);
	for (int i = 0; i < 3; i++)
		l->parts[i] = golden_f32s(g, n_rows * (i ? l->widths.kv : l->widths.q));
}

static void lessons_done(struct lessons *l)
{
	for (uint32_t i = 0; i < l->n_layers + 2; i++)
		free(l->hidden[i]);
	for (int i = 0; i < 3; i++)
		free(l->parts[i]);
	free(l->tokens);
}

// The teacher's rows from `at` on, as a question names them; their width.
static const double *rows_of(const struct lessons *l, struct query_feature f, uint32_t at, uint32_t *ret_width)
{
	if (f.kind >= QUERY_FEATURE_Q) {
		assert_int_equal(f.layer, l->n_layers - 1);
		*ret_width = f.kind == QUERY_FEATURE_Q ? l->widths.q : l->widths.kv;
		return l->parts[f.kind - QUERY_FEATURE_Q] + (size_t)at * *ret_width;
	}
	*ret_width = l->widths.hidden;
	return l->hidden[f.kind == QUERY_FEATURE_FINAL ? l->n_layers + 1 : f.layer] + (size_t)at * *ret_width;
}

static void feature_fill(const struct lessons *l, struct record_rows *r, uint32_t i, uint32_t at)
{
	uint32_t width, n = r->n_rows;
	const double *rows = rows_of(l, r->query.features[i], at, &width);
	assert_int_equal(record_rows_add_feature(r, i, width, NULL), 0);
	for (uint32_t row = 0; row < n; row++)
		for (uint32_t k = 0; k < width; k++) {
			double x = rows[(size_t)row * width + k];
			if (r->query.pooling == QUERY_POOLING_NONE)
				r->features[i][(size_t)row * width + k] = (float)x;
			else if (r->query.pooling == QUERY_POOLING_MEAN)
				r->features[i][k] += (float)(x / n);
			else if (row == n - 1)
				r->features[i][k] = (float)x;
		}
}

static struct record_rows *answer(const struct lessons *l, const struct objective *o, uint64_t step, uint32_t i)
{
	struct query q;
	struct query_limits limits = {.max_tokens = l->length, .max_top_k = l->V, .vocab_size = l->V, .n_layers = l->n_layers};
	struct sequence s = {l->tokens + (size_t)i * l->length, l->length};
	struct content_id teacher = {{1}};
	struct record_rows *r = NULL;
	struct error err = {0};
	query_init(&q);
	q.last = -2;
	objective_query(o, 0, step, 1, l->V, &q);
	if (query_check(&q, &s, &limits, NULL, &err) || record_rows_new(&teacher, l->V, &s, &q, &r, &err))
		fail_msg("%s", err.message);
	assert_true(q.n_features > 0);
	for (uint32_t k = 0; k < q.n_features; k++)
		feature_fill(l, r, k, i * r->n_rows);
	return r;
}

static double step_take(const struct lessons *l, struct student *student, struct optimizer *optimizer, struct objective *o, uint64_t step)
{
	struct record_rows *answers[MAX_SEQUENCES];
	struct student_sums sums;
	objective_step(o, step);
	for (uint32_t i = 0; i < l->n_sequences; i++)
		answers[i] = answer(l, o, step, i);
	return golden_train(student, optimizer, answers, l->n_sequences, step, l->n_sequences * (l->length - 1), &sums);
}

static struct objective *objective_read(const struct lessons *l, struct golden_file *g, uint32_t n_layers, char *ret_first, size_t room)
{
	struct objective *o = golden_objective(g, "features.bin", ret_first, room);
	struct error err = {0};
	if (objective_resolve(o, n_layers, l->n_layers, &err))
		fail_msg("%s", err.message);
	assert_int_equal(objective_begin(o, l->n_steps, l->V), 0);
	return o;
}

// Projections start where PyTorch's did.
static void projections_set(struct student *student, struct golden_file *g)
{
	struct weights *w = student_weights(student);
	const struct parameters *p = w->parameters;
	uint32_t n = reader_u32(&g->reader);
	assert_int_equal(n, p->n_values - p->n_model_values);
	double *start = golden_f32s(g, n);
	float *values = golden_array(n + 1, sizeof *values);
	for (uint32_t i = 0; i < n; i++)
		values[i] = (float)start[i];
	w->backend->ops->real_write(w->backend, w->backend->ops->real_at(p->value, p->n_model_values), values, n);
	weights_refresh(w);
	free(start);
	free(values);
}

static struct student *student_new(const struct lessons *l, struct model_file *file, struct objective *o, struct features **ret,
	uint32_t recompute)
{
	char device[] = DEVICE;
	struct error err = {0};
	struct tensor_source source = model_file_source(file);
	const struct architecture *a = model_file_architecture(file);
	struct features_options features = {.objective = o, .student = a, .teacher = l->widths, .sequence_length = l->length,
					    .micro_batch = l->n_sequences};
	struct student_options options = {.device = device, .n_threads = 1, .sequence_length = l->length, .micro_batch = l->n_sequences,
					  .top_k = 8, .seed = 1, .objective = o, .recompute = recompute,
					  .n_arrays = optimizer_n_arrays(&l->optimizer)};
	struct student *student = NULL;
	if (features_new(&features, ret, &err))
		fail_msg("%s", err.message);
	options.features = *ret;
	if (student_open(&options, a, &source, &student, &err))
		fail_msg("%s", err.message);
	return student;
}

static void method_compare(const struct lessons *l, struct golden_file *g, struct model_file *file, uint32_t recompute)
{
	char first[128];
	struct error err = {0};
	struct objective *o = objective_read(l, g, model_file_architecture(file)->n_layers, first, sizeof first);
	struct features *features = NULL;
	struct student *student = student_new(l, file, o, &features, recompute);
	struct optimizer *optimizer = NULL;
	double worst = 0, last = 0;
	projections_set(student, g);
	if (optimizer_new(&l->optimizer, student_weights(student), &optimizer, &err))
		fail_msg("%s", err.message);
	for (uint32_t i = 0; i < l->n_steps; i++) {
		double want = reader_f64(&g->reader);
		last = step_take(l, student, optimizer, o, i);
		if (!(fabs(last - want) <= 5e-5 * fabs(want)))
			fail_msg("%s, step %u: %.9g, PyTorch %.9g", first, i + 1, last, want);
		worst = fmax(worst, fabs(last - want) / fabs(want));
	}
	printf("# %s: after %u steps %.6f, largest relative difference %.1e\n", first, l->n_steps, last, worst);
	optimizer_free(optimizer);
	student_close(student);
	features_free(features);
	objective_free(o);
}

static void compare_all(uint32_t recompute)
{
	struct golden_file g;
	struct lessons l = {0};
	struct model_file *file = NULL;
	struct error err = {0};
	char path[4096];
	golden_open(&g, "features.bin", "KDGH");
	lessons_read(&l, &g);
	golden_path(path, sizeof path, "models/train");
	if (model_file_open(path, &file, &err))
		fail_msg("%s", err.message);
	uint32_t n_methods = reader_u32(&g.reader);
	assert_in_range(n_methods, 6, 100);
	for (uint32_t i = 0; i < n_methods; i++)
		method_compare(&l, &g, file, recompute);
	model_file_close(file);
	golden_close(&g);
	lessons_done(&l);
}

static void losses_are_those_of_pytorch(void **state)
{
	(void)state;
	compare_all(0);
}

static void gradient_checkpointing_does_not_change_them(void **state)
{
	(void)state;
	compare_all(1);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(losses_are_those_of_pytorch),
		cmocka_unit_test(gradient_checkpointing_does_not_change_them),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
