// SPDX-License-Identifier: Apache-2.0
// Twenty steps of training by token losses against PyTorch with automatic differentiation: losses equal to 4 digits. The worker's own path,
// from a line of configuration through the question, the answer and the student to the optimizer; make_losses.py and
// make_quantised.py (students on a grid) say what the files hold.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/error.h"
#include "common/record.h"
#include "daemon/model/weights.h"
#include "tests/golden/training.h"

#define MAX_SEQUENCES 8

struct lessons {
	uint32_t n_sequences, length, V, n_steps, n_draws;
	struct optimizer_options optimizer;
	uint32_t *tokens;              // (n_sequences, length)
	double *logits;                // (n_sequences, length - 1, V) the teacher's
	uint32_t **drawn, **counts, *n_drawn;  // of each row
};

static void lessons_read(struct lessons *l, struct golden_file *g)
{
	uint32_t *header[] = {&l->n_sequences, &l->length, &l->V, &l->n_steps};
	struct optimizer_options *o = &l->optimizer;
	double *numbers[] = {&o->learning_rate, &o->beta1, &o->beta2, &o->epsilon, &o->weight_decay, &o->clip};
	for (int i = 0; i < 4; i++)
		*header[i] = reader_u32(&g->reader);
	for (int i = 0; i < 6; i++)
		*numbers[i] = reader_f64(&g->reader);
	assert_in_range(l->n_sequences, 1, MAX_SEQUENCES);
	o->min_ratio = 1;              // the rate stays
	o->steps = 1000;
	uint32_t n_rows = l->n_sequences * (l->length - 1);
	l->tokens = golden_u32s(g, l->n_sequences * l->length);
	l->logits = golden_f32s(g, (size_t)n_rows * l->V);
	l->n_draws = reader_u32(&g->reader);
	l->n_drawn = golden_array(n_rows, sizeof *l->n_drawn);
	l->drawn = golden_array(n_rows, sizeof *l->drawn);
	l->counts = golden_array(n_rows, sizeof *l->counts);
	for (uint32_t i = 0; i < n_rows; i++) {
		l->n_drawn[i] = reader_u32(&g->reader);
		l->drawn[i] = golden_u32s(g, l->n_drawn[i]);
		l->counts[i] = golden_u32s(g, l->n_drawn[i]);
	}
}

static void lessons_done(struct lessons *l)
{
	for (uint32_t i = 0; i < l->n_sequences * (l->length - 1); i++)
		free(l->drawn[i]), free(l->counts[i]);
	free(l->drawn), free(l->counts), free(l->n_drawn), free(l->tokens), free(l->logits);
}

static double lse(const double *z, uint32_t V, double T)
{
	double sum = 0;
	for (uint32_t j = 0; j < V; j++)
		sum += exp(z[j] / T);
	return log(sum);
}

static void top_fill(struct record_rows *r, uint32_t row, const double *z)
{
	uint32_t k = r->query.top_k;
	for (uint32_t i = 0; i < k; i++) {
		uint32_t best = UINT32_MAX;
		for (uint32_t j = 0; j < r->vocab_size; j++) {
			bool taken = false;
			for (uint32_t n = 0; n < i; n++)
				taken |= r->ids[row * k + n] == j;
			if (!taken && (best == UINT32_MAX || z[j] > z[best]))
				best = j;
		}
		r->ids[row * k + i] = best;
		r->logits[row * k + i] = (float)z[best];
	}
}

static void draws_fill(struct record_rows *r, uint32_t row, const struct lessons *l, uint32_t at)
{
	uint32_t start = r->draw_starts[row], n = l->n_drawn[at];
	assert_int_equal(record_rows_reserve_draws(r, start + n, NULL), 0);
	memcpy(r->draw_ids + start, l->drawn[at], n * sizeof *r->draw_ids);
	memcpy(r->draw_counts + start, l->counts[at], n * sizeof *r->draw_counts);
	r->draw_starts[row + 1] = start + n;
}

// What a teacher with these logits says to the question.
static void row_fill(struct record_rows *r, uint32_t row, const struct lessons *l, uint32_t at)
{
	const double *z = l->logits + (size_t)at * l->V;
	uint32_t n_gather = 0;
	const uint32_t *ids = r->query.gather.n_lists ? record_gather_ids(r, row, &n_gather) : NULL;
	for (uint32_t i = 0; i < r->query.n_temperatures; i++)
		r->lse[row * r->query.n_temperatures + i] = (float)lse(z, l->V, (double)r->query.temperatures[i]);
	top_fill(r, row, z);
	for (uint32_t i = 0; i < n_gather; i++)
		r->gathered[record_gather_at(r, row) + i] = (float)z[ids[i]];
	for (uint32_t j = 0; r->entropy && j < l->V; j++) {
		double log_p = z[j] - lse(z, l->V, 1);
		r->entropy[row] -= (float)(exp(log_p) * log_p);
	}
	if (r->query.draws.n)
		draws_fill(r, row, l, at);
}

static struct record_rows *answer(const struct lessons *l, const struct objective *o, uint64_t step, uint32_t i, const uint32_t *own)
{
	struct query q;
	struct query_limits limits = {
		.max_tokens = l->length, .max_top_k = l->V, .max_gather = l->V, .max_draws = 1000, .vocab_size = l->V};
	struct sequence s = {l->tokens + (size_t)i * l->length, l->length};
	struct content_id teacher = {{1}};
	struct record_rows *r = NULL;
	uint32_t k = objective_any_own_k(o), n_rows = l->length - 1, *offsets = golden_array(l->length, sizeof *offsets);
	struct error err = {0};
	query_init(&q);
	q.last = -2;
	objective_query(o, 0, step, 1, l->V, &q);
	for (uint32_t row = 0; row < l->length; row++)
		offsets[row] = row * k;
	if (k)
		q.gather = (struct id_lists){n_rows, offsets, (uint32_t *)(uintptr_t)(own + (size_t)i * n_rows * k)};
	if (query_check(&q, &s, &limits, NULL, &err) || record_rows_new(&teacher, l->V, &s, &q, &r, &err))
		fail_msg("%s", err.message);
	for (uint32_t row = 0; row < n_rows; row++)
		row_fill(r, row, l, i * n_rows + row);
	free(offsets);
	return r;
}

static double step_take(const struct lessons *l, struct student *student, struct optimizer *optimizer, struct objective *o, uint64_t step)
{
	struct record_rows *answers[MAX_SEQUENCES];
	struct sequence sequences[MAX_SEQUENCES];
	struct student_sums sums;
	struct error err = {0};
	uint32_t k = objective_any_own_k(o), *own = golden_array((size_t)l->n_sequences * l->length * (k + 1), sizeof *own);
	objective_step(o, step);
	for (uint32_t i = 0; i < l->n_sequences; i++)
		sequences[i] = (struct sequence){l->tokens + (size_t)i * l->length, l->length};
	if (k && student_likeliest(student, sequences, l->n_sequences, k, own, &err))
		fail_msg("%s", err.message);
	for (uint32_t i = 0; i < l->n_sequences; i++)
		answers[i] = answer(l, o, step, i, own);
	double loss = golden_train(student, optimizer, answers, l->n_sequences, step, l->n_sequences * (l->length - 1), &sums);
	objective_end_step(o, &sums.objective);
	free(own);
	return loss;
}

static struct objective *objective_read(const struct lessons *l, struct golden_file *g, char *ret_first, size_t room)
{
	struct objective *o = golden_objective(g, "losses.bin", ret_first, room);
	assert_int_equal(objective_begin(o, l->n_steps, l->V), 0);
	return o;
}

// bits: of the grid that the student's matrices lie on; 0 = none. On a grid the student is in double precision: a matrix that rounds to
// another point of it is no rounding error any more.
static void method_compare(const struct lessons *l, struct golden_file *g, struct model_file *file, uint32_t bits)
{
	char first[128];
	const char *device = bits ? "ref" : DEVICE;
	struct optimizer_options optimizing = l->optimizer;
	struct error err = {0};
	struct objective *o = objective_read(l, g, first, sizeof first);
	optimizing.bits = bits;
	struct tensor_source source = model_file_source(file);
	struct student_options options = {.device = device, .n_threads = 1, .sequence_length = l->length, .micro_batch = l->n_sequences,
					  .top_k = l->V < 8 ? l->V : 8, .seed = 1, .objective = o,
					  .n_arrays = optimizer_n_arrays(&optimizing)};
	struct student *student = NULL;
	struct optimizer *optimizer = NULL;
	double worst = 0, last = 0;
	if (student_open(&options, model_file_architecture(file), &source, &student, &err) ||
	    optimizer_new(&optimizing, student_weights(student), &optimizer, &err))
		fail_msg("%s", err.message);
	for (uint32_t i = 0; i < l->n_steps; i++) {
		double want = reader_f64(&g->reader);
		last = step_take(l, student, optimizer, o, i);
		if (!(fabs(last - want) <= 5e-5 * fabs(want)))
			fail_msg("%s, step %u: %.9g, PyTorch %.9g", first, i + 1, last, want);
		worst = fmax(worst, fabs(last - want) / fabs(want));
	}
	printf("# %s%s: after %u steps %.6f, largest relative difference %.1e\n", first, bits == 8 ? " on int8" : bits ? " on int4" : "",
		l->n_steps, last, worst);
	optimizer_free(optimizer);
	student_close(student);
	objective_free(o);
}

static void file_compare(const char *name, const char *magic, uint32_t n_least)
{
	struct golden_file g;
	struct lessons l = {0};
	struct model_file *file = NULL;
	struct error err = {0};
	char path[4096];
	bool grids = strcmp(magic, "KDGQ") == 0;
	golden_open(&g, name, magic);
	lessons_read(&l, &g);
	golden_path(path, sizeof path, "models/train");
	if (model_file_open(path, &file, &err))
		fail_msg("%s", err.message);
	uint32_t n_methods = reader_u32(&g.reader);
	assert_in_range(n_methods, n_least, 100);
	for (uint32_t i = 0; i < n_methods; i++)
		method_compare(&l, &g, file, grids ? reader_u32(&g.reader) : 0);
	model_file_close(file);
	golden_close(&g);
	lessons_done(&l);
}

static void losses_are_those_of_pytorch(void **state)
{
	(void)state;
	file_compare("losses.bin", "KDGL", 5);
}

static void losses_on_a_grid_are_those_of_pytorch(void **state)
{
	(void)state;
	file_compare("quantised.bin", "KDGQ", 2);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(losses_are_those_of_pytorch),
		cmocka_unit_test(losses_on_a_grid_are_those_of_pytorch),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
