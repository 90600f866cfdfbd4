// SPDX-License-Identifier: Apache-2.0
// Twenty steps of training on a teacher with another tokenizer, against PyTorch with automatic differentiation: losses equal to 4 digits.
// The worker's own path: the teacher's tokens become the student's, both meet at shared bytes, spans are merged. make_vocabulary.py says
// what the file holds.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/error.h"
#include "common/record.h"
#include "daemon/model/tokenizer.h"
#include "daemon/model/weights.h"
#include "daemon/worker/bridge.h"
#include "tests/golden/training.h"

#define MAX_SEQUENCES 8
#define LENGTH 64                      // tokens of the longest sequence, on either side

struct lessons {
	uint32_t n_sequences, V, n_steps;
	struct optimizer_options optimizer;
	struct { uint32_t n, *tokens; double *logits; } list[MAX_SEQUENCES];
	struct tokenizer *teacher, *student;
	struct bridge bridge;
	struct model_file *file;
};

static struct tokenizer *tokenizer_of(const char *name)
{
	struct tokenizer *t = NULL;
	struct error err = {0};
	char path[4096];
	golden_path(path, sizeof path, name);
	if (tokenizer_open_path(path, &t, &err))
		fail_msg("%s", err.message);
	return t;
}

// How the student reads each sequence is what `tokenizers` made of the text.
static void sequences_read(struct lessons *l, struct golden_file *g)
{
	struct bridged bridged = {0};
	struct error err = {0};
	for (uint32_t i = 0; i < l->n_sequences; i++) {
		uint32_t n = l->list[i].n = reader_u32(&g->reader);
		assert_in_range(n, 2, LENGTH);
		l->list[i].tokens = golden_u32s(g, n);
		l->list[i].logits = golden_f32s(g, (size_t)n * l->V);
		if (bridge_sequence(&l->bridge, l->list[i].tokens, n, LENGTH, &bridged, &err))
			fail_msg("%s", err.message);
		assert_int_equal(bridged.n, reader_u32(&g->reader));
		assert_int_equal(bridged.n_boundaries, reader_u32(&g->reader));
	}
	bridged_done(&bridged);
}

static void lessons_read(struct lessons *l, struct golden_file *g)
{
	struct optimizer_options *o = &l->optimizer;
	double *numbers[] = {&o->learning_rate, &o->beta1, &o->beta2, &o->epsilon, &o->weight_decay, &o->clip};
	struct error err = {0};
	char path[4096];
	l->n_sequences = reader_u32(&g->reader);
	l->V = reader_u32(&g->reader);
	l->n_steps = reader_u32(&g->reader);
	for (int i = 0; i < 6; i++)
		*numbers[i] = reader_f64(&g->reader);
	assert_in_range(l->n_sequences, 1, MAX_SEQUENCES);
	o->min_ratio = 1;              // the rate stays
	o->steps = 1000;
	l->teacher = tokenizer_of("vocabulary/teacher.json");
	l->student = tokenizer_of("vocabulary/student.json");
	golden_path(path, sizeof path, "models/train");
	if (model_file_open(path, &l->file, &err) ||
	    bridge_open(&l->bridge, l->teacher, l->V, l->student, model_file_architecture(l->file)->vocab_size, &err))
		fail_msg("%s", err.message);
	sequences_read(l, g);
}

static void lessons_done(struct lessons *l)
{
	for (uint32_t i = 0; i < l->n_sequences; i++)
		free(l->list[i].tokens), free(l->list[i].logits);
	bridge_done(&l->bridge);
	tokenizer_close(l->teacher);
	tokenizer_close(l->student);
	model_file_close(l->file);
}

static double lse(const double *z, uint32_t V, double T)
{
	double sum = 0;
	for (uint32_t j = 0; j < V; j++)
		sum += exp(z[j] / T);
	return log(sum);
}

// What a teacher with these logits says to the question: insertion into the k likeliest.
static void row_fill(struct record_rows *r, uint32_t row, const double *z, uint32_t next)
{
	uint32_t k = r->query.top_k, V = r->vocab_size;
	for (uint32_t i = 0; i < r->query.n_temperatures; i++)
		r->lse[row * r->query.n_temperatures + i] = (float)lse(z, V, (double)r->query.temperatures[i]);
	for (uint32_t j = 0; j < V; j++) {
		uint32_t at = j < k ? j : k, *ids = r->ids + row * k;
		for (; at > 0 && z[ids[at - 1]] < z[j]; at--)
			if (at < k)
				ids[at] = ids[at - 1];
		if (at < k)
			ids[at] = j;
	}
	for (uint32_t i = 0; i < k; i++)
		r->logits[row * k + i] = (float)z[r->ids[row * k + i]];
	if (r->own_logit)
		r->own_logit[row] = (float)z[next];
}

static struct record_rows *answer(const struct lessons *l, const struct objective *o, uint64_t step, uint32_t i)
{
	uint32_t n = l->list[i].n;
	struct query_limits limits = {.max_tokens = LENGTH, .max_top_k = l->V, .vocab_size = l->V};
	struct sequence s = {l->list[i].tokens, n};
	struct content_id teacher = {{1}};
	struct record_rows *r = NULL;
	struct error err = {0};
	struct query q;
	query_init(&q);
	q.last = -2;
	objective_query(o, 0, step, 1, l->V, &q);
	if (query_check(&q, &s, &limits, NULL, &err) || record_rows_new(&teacher, l->V, &s, &q, &r, &err))
		fail_msg("%s", err.message);
	for (uint32_t row = 0; row < n - 1; row++)
		row_fill(r, row, l->list[i].logits + (size_t)row * l->V, l->list[i].tokens[row + 1]);
	return r;
}

static double step_take(const struct lessons *l, struct student *student, struct optimizer *optimizer, struct objective *o, uint64_t step,
			uint32_t n_positions)
{
	struct record_rows *answers[MAX_SEQUENCES];
	struct student_sums sums;
	objective_step(o, step);
	for (uint32_t i = 0; i < l->n_sequences; i++)
		answers[i] = answer(l, o, step, i);
	return golden_train(student, optimizer, answers, l->n_sequences, step, n_positions, &sums);
}

static struct objective *objective_read(const struct lessons *l, struct golden_file *g, char *ret_first, size_t room)
{
	struct objective *o = golden_objective(g, "vocabulary.bin", ret_first, room);
	struct error err = {0};
	if (objective_check_foreign(o, &err))
		fail_msg("%s", err.message);
	assert_int_equal(objective_begin(o, l->n_steps, l->bridge.student_vocab), 0);
	return o;
}

static void method_compare(const struct lessons *l, struct golden_file *g)
{
	char first[128];
	struct error err = {0};
	struct objective *o = objective_read(l, g, first, sizeof first);
	struct tensor_source source = model_file_source(l->file);
	struct student_options options = {.device = DEVICE, .n_threads = 1, .sequence_length = LENGTH, .micro_batch = l->n_sequences,
					  .top_k = 8, .seed = 1, .objective = o, .n_arrays = optimizer_n_arrays(&l->optimizer),
					  .bridge = &l->bridge};
	uint32_t n_positions = reader_u32(&g->reader);
	struct student *student = NULL;
	struct optimizer *optimizer = NULL;
	double worst = 0, last = 0;
	if (student_open(&options, model_file_architecture(l->file), &source, &student, &err) ||
	    optimizer_new(&l->optimizer, student_weights(student), &optimizer, &err))
		fail_msg("%s", err.message);
	for (uint32_t i = 0; i < l->n_steps; i++) {
		double want = reader_f64(&g->reader);
		last = step_take(l, student, optimizer, o, i, n_positions);
		if (!(fabs(last - want) <= 5e-5 * fabs(want)))
			fail_msg("%s, step %u: %.9g, PyTorch %.9g", first, i + 1, last, want);
		worst = fmax(worst, fabs(last - want) / fabs(want));
	}
	printf("# %s: after %u steps %.6f, largest relative difference %.1e\n", first, l->n_steps, last, worst);
	optimizer_free(optimizer);
	student_close(student);
	objective_free(o);
}

static void losses_between_tokenizers_are_those_of_pytorch(void **state)
{
	(void)state;
	struct golden_file g;
	struct lessons l = {0};
	golden_open(&g, "vocabulary.bin", "KDGV");
	lessons_read(&l, &g);
	uint32_t n_methods = reader_u32(&g.reader);
	assert_in_range(n_methods, 5, 100);
	for (uint32_t i = 0; i < n_methods; i++)
		method_compare(&l, &g);
	golden_close(&g);
	lessons_done(&l);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(losses_between_tokenizers_are_those_of_pytorch),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
