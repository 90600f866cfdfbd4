// SPDX-License-Identifier: Apache-2.0
#include "daemon/worker/student.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "common/error.h"
#include "common/record.h"
#include "daemon/model/forward.h"
#include "daemon/model/head.h"
#include "daemon/model/weights.h"
#include "kernels/backend.h"

// One position of the packed micro-batch: its teacher row and its label.
struct position {
	const struct record_rows *teacher;
	uint32_t row;                  // of the teacher's rows
	uint32_t label;
};

struct student {
	struct student_options options;
	struct backend *backend;
	struct weights *weights;
	struct activations *activations;
	struct head *head;
	struct act *dfinal;            // (max_rows, C)
	char device[160];
	// One packed micro-batch; arrays are for max_rows = micro_batch * L.
	struct layout layout;
	uint32_t *tokens, *places, *starts;
	uint32_t *rows;                // (n_rows) packed row of each listed position
	struct position *positions;    // (n_rows)
	struct sweep_row *swept;       // (n_rows)
	uint32_t n_rows;
	float temperatures[2];         // 1 and, when it is another, T
	uint32_t n_temperatures;
	uint32_t *gather, *top_ids, *correction_ids;           // (max_rows, k + 1), (max_rows), (max_rows, k + 1)
	double *gathered, *lse, *top_logits, *corrections;     // (max_rows, k + 1), (max_rows, 2), (max_rows), (max_rows, k + 1)
	struct loss_storage *storage;  // (max_rows)
	struct student_sums *sums;     // of the call in progress
};

static int arrays_new(struct student *s, struct error *err)
{
	size_t n = (size_t)s->options.micro_batch * s->options.sequence_length, wide = s->options.top_k + (size_t)1;
	s->tokens = calloc(n, sizeof *s->tokens);
	s->places = calloc(n, sizeof *s->places);
	s->starts = calloc((size_t)s->options.micro_batch + 1, sizeof *s->starts);
	s->rows = calloc(n, sizeof *s->rows);
	s->positions = calloc(n, sizeof *s->positions);
	s->swept = calloc(n, sizeof *s->swept);
	s->gather = reallocarray(NULL, n, wide * sizeof *s->gather);
	s->correction_ids = reallocarray(NULL, n, wide * sizeof *s->correction_ids);
	s->gathered = reallocarray(NULL, n, wide * sizeof *s->gathered);
	s->corrections = reallocarray(NULL, n, wide * sizeof *s->corrections);
	s->top_ids = calloc(n, sizeof *s->top_ids);
	s->top_logits = calloc(n, sizeof *s->top_logits);
	s->lse = calloc(n, 2 * sizeof *s->lse);
	s->storage = calloc(n, sizeof *s->storage);
	if (!s->tokens || !s->places || !s->starts || !s->rows || !s->positions || !s->swept || !s->gather || !s->correction_ids ||
	    !s->gathered || !s->corrections || !s->top_ids || !s->top_logits || !s->lse || !s->storage)
		return error_set(err, ERROR_MEMORY, NULL, "no memory for a micro-batch of %zu positions", n);
	return 0;
}

// Everything device_open will make.
static int need_of(const struct student *s, const struct architecture *a, struct backend_need *need, struct error *err)
{
	uint32_t max_rows = s->options.micro_batch * s->options.sequence_length;
	int r = weights_need(a, s->options.sequence_length, true, need, err);
	r = r ? r : activations_need(a, max_rows, true, need, err);
	r = r ? r : head_need(a, max_rows, true, false, need, err);
	need->parts[BACKEND_PART_TRAINING].n_act += (uint64_t)max_rows * a->width;
	need->parts[BACKEND_PART_TRAINING].n_arrays++;
	return r;
}

static int device_open(struct student *s, const struct architecture *a, const struct tensor_source *source, struct error *err)
{
	const struct student_options *o = &s->options;
	uint32_t max_rows = o->micro_batch * o->sequence_length;
	struct backend_options b = {.n_threads = o->n_threads, .max_rows = max_rows};
	int r = need_of(s, a, &b.need, err);
	r = r ? r : backend_open(o->device, &b, &s->backend, err);
	r = r ? r : weights_new_trainable(s->backend, a, o->seed, o->sequence_length, &s->weights, err);
	if (r == 0 && source)
		r = weights_fill(s->weights, source, err);
	r = r ? r : activations_new(s->weights, max_rows, true, &s->activations, err);
	r = r ? r : head_open(s->weights, max_rows, &s->head, err);
	if (r)
		return r;
	s->dfinal = s->backend->ops->act_new(s->backend, (size_t)max_rows * a->width, err);
	if (!s->dfinal)
		return error_errno(ERROR_MEMORY);
	snprintf(s->device, sizeof s->device, "%s, %s, %s", s->backend->ops->name, s->backend->numeric, s->backend->description);
	return 0;
}

int student_open(const struct student_options *options, const struct architecture *a, const struct tensor_source *source,
		 struct student **ret, struct error *err)
{
	struct student *s = calloc(1, sizeof *s);
	if (!s)
		return error_set(err, ERROR_MEMORY, NULL, "out of memory");
	s->options = *options;
	s->temperatures[s->n_temperatures++] = 1;
	if ((float)options->loss.temperature != 1)
		s->temperatures[s->n_temperatures++] = (float)options->loss.temperature;
	s->options.loss.temperature = (double)(float)options->loss.temperature;
	s->options.loss.vocab_size = a->vocab_size;
	int r = arrays_new(s, err);
	r = r ? r : device_open(s, a, source, err);
	if (r) {
		student_close(s);
		return r;
	}
	*ret = s;
	return 0;
}

struct student *student_close(struct student *s)
{
	if (!s)
		return NULL;
	if (s->dfinal)
		s->backend->ops->act_free(s->backend, s->dfinal);
	head_close(s->head);
	activations_free(s->activations);
	weights_free(s->weights);
	backend_close(s->backend);
	free(s->tokens), free(s->places), free(s->starts), free(s->rows), free(s->positions), free(s->swept);
	free(s->gather), free(s->correction_ids), free(s->gathered), free(s->corrections);
	free(s->top_ids), free(s->top_logits), free(s->lse), free(s->storage);
	free(s);
	return NULL;
}

struct weights *student_weights(struct student *s)
{
	return s->weights;
}

const char *student_device(const struct student *s)
{
	return s->device;
}

static int teacher_check(const struct student *s, const struct record_rows *t, struct error *err)
{
	if (t->sequence.n_tokens > s->options.sequence_length || t->query.top_k > s->options.top_k)
		return error_set(err, ERROR_INTERNAL, NULL, "the teacher's answer is larger than the question");
	if (t->vocab_size != s->options.loss.vocab_size)
		return error_set(err, ERROR_CONFLICT, "student", "the teacher has %u tokens in its vocabulary, the student %u", t->vocab_size,
				 s->options.loss.vocab_size);
	return 0;
}

// What to read from one row of the student's logits: lse at each temperature, the logits at the teacher's ids and at the label.
static void row_ask(struct student *s, uint32_t i, const struct position *p, bool best)
{
	size_t wide = s->options.top_k + (size_t)1;
	uint32_t k = p->teacher->query.top_k, *gather = s->gather + i * wide;
	for (uint32_t j = 0; j < k; j++)
		gather[j] = p->teacher->ids[(size_t)p->row * k + j];
	gather[k] = p->label;
	s->swept[i] = (struct sweep_row){.top_k = best, .n_temperatures = s->n_temperatures, .temperatures = s->temperatures, .n_gather = k + 1,
					 .gather = gather, .lse = s->lse + 2 * (size_t)i, .ids = s->top_ids + i, .logits = s->top_logits + i,
					 .gathered = s->gathered + i * wide};
	s->storage[i] = (struct loss_storage){.ids = s->correction_ids + i * wide, .corrections = s->corrections + i * wide};
}

// Lists the positions of one sequence that can be learned from: answered, and with a token that follows.
static uint32_t sequence_list(struct student *s, const struct record_rows *t, uint32_t start, bool best)
{
	uint32_t n_masked = 0;
	for (uint32_t row = 0; row < t->n_rows; row++) {
		uint32_t at = (uint32_t)t->query.first + row;
		if (at + 1 >= t->sequence.n_tokens)
			break;
		if (t->status[row] != ROW_OK) {
			n_masked++;
			continue;
		}
		struct position p = {t, row, t->sequence.tokens[at + 1]};
		s->rows[s->n_rows] = start + at;
		s->positions[s->n_rows] = p;
		row_ask(s, s->n_rows++, &p, best);
	}
	return n_masked;
}

static int batch_pack(struct student *s, const struct record_rows *const *sequences, uint32_t n, bool best, uint64_t *n_masked,
		      struct error *err)
{
	uint32_t T = 0;
	s->n_rows = 0;
	for (uint32_t i = 0; i < n; i++) {
		const struct record_rows *t = sequences[i];
		int r = teacher_check(s, t, err);
		if (r)
			return r;
		s->starts[i] = T;
		*n_masked += sequence_list(s, t, T, best);
		for (uint32_t k = 0; k < t->sequence.n_tokens; k++, T++) {
			s->tokens[T] = t->sequence.tokens[k];
			s->places[T] = k;
		}
	}
	s->starts[n] = T;
	s->layout = (struct layout){.n_positions = T, .n_sequences = n, .tokens = s->tokens, .positions = s->places, .starts = s->starts};
	return 0;
}

static double lse_of(const struct record_rows *t, uint32_t row, float temperature)
{
	for (uint32_t i = 0; i < t->query.n_temperatures; i++)
		if (t->query.temperatures[i] == temperature)
			return (double)t->lse[(size_t)row * t->query.n_temperatures + i];
	return NAN;                    // was not asked for: the loss is then not finite, and that is refused
}

static void row_sides(const struct student *s, uint32_t i, const struct sweep_row *swept, float temperature,
		      struct loss_teacher *ret_teacher, struct loss_student *ret_student)
{
	const struct position *p = &s->positions[i];
	uint32_t k = p->teacher->query.top_k;
	*ret_teacher = (struct loss_teacher){.k = k, .ids = k ? p->teacher->ids + (size_t)p->row * k : NULL,
					     .logits = k ? p->teacher->logits + (size_t)p->row * k : NULL,
					     .lse = lse_of(p->teacher, p->row, temperature)};
	bool other = temperature != 1;
	*ret_student = (struct loss_student){.logits = swept->gathered, .lse_kd = swept->lse[other], .lse = swept->lse[0],
					     .label_logit = swept->gathered[k]};
}

static int row_not_finite(struct error *err)
{
	return error_set(err, ERROR_NOT_FINITE, NULL, "the student's logits are not finite: training has diverged (try a lower learning-rate)");
}

static int tile_loss(void *arg, uint32_t first, uint32_t n, const struct sweep_row *swept, struct softmax_grad_row *ret_grad,
		     struct error *err)
{
	struct student *s = arg;
	const struct loss_options *o = &s->options.loss;
	for (uint32_t i = 0; i < n; i++) {
		struct loss_teacher teacher;
		struct loss_student student;
		if (swept[i].not_finite)
			return row_not_finite(err);
		row_sides(s, first + i, &swept[i], (float)o->temperature, &teacher, &student);
		struct loss_value v = loss_position(o, &teacher, &student, s->positions[first + i].label, &s->storage[first + i], &ret_grad[i]);
		if (!isfinite(v.total))
			return row_not_finite(err);
		s->sums->kd += v.kd;
		s->sums->ce += v.ce;
		s->sums->total += v.total;
	}
	return 0;
}

int student_train(struct student *s, const struct record_rows *const *sequences, uint32_t n, struct student_sums *sums, struct error *err)
{
	int r = batch_pack(s, sequences, n, false, &sums->n_masked, err);
	if (r || s->n_rows == 0)
		return r;
	s->sums = sums;
	struct act *final = forward(s->weights, s->activations, &s->layout);
	r = head_train(s->head, final, s->rows, s->n_rows, s->layout.n_positions, s->swept, tile_loss, s, s->dfinal, err);
	if (r)
		return r;
	backward(s->weights, s->activations, &s->layout, s->dfinal);
	sums->n_positions += s->n_rows;
	return backend_sync(s->backend, err);
}

static int row_evaluate(const struct student *s, uint32_t i, struct student_evaluation *sums, struct error *err)
{
	const struct position *p = &s->positions[i];
	const struct record_rows *t = p->teacher;
	const struct sweep_row *swept = &s->swept[i];
	struct loss_teacher teacher;
	struct loss_student student;
	if (swept->not_finite)
		return row_not_finite(err);
	row_sides(s, i, swept, 1, &teacher, &student);
	sums->kl += loss_bucket_kl(&teacher, student.logits, student.lse, 1, s->options.loss.vocab_size);
	sums->ce += student.lse - student.label_logit;
	sums->agreement += teacher.k > 0 && teacher.ids[0] == swept->ids[0];
	sums->teacher_ce += t->own_logit ? teacher.lse - (double)t->own_logit[p->row] : NAN;
	sums->n_positions++;
	return isfinite(sums->kl) && isfinite(sums->ce) ? 0 : row_not_finite(err);
}

int student_evaluate(struct student *s, const struct record_rows *const *sequences, uint32_t n, struct student_evaluation *ret,
		     struct error *err)
{
	struct student_evaluation sums = {0};
	for (uint32_t first = 0; first < n; first += s->options.micro_batch) {
		uint32_t some = n - first < s->options.micro_batch ? n - first : s->options.micro_batch;
		uint64_t n_masked = 0;
		int r = batch_pack(s, sequences + first, some, true, &n_masked, err);
		if (r)
			return r;
		head_score(s->head, forward(s->weights, s->activations, &s->layout), s->rows, s->n_rows, s->swept);
		r = backend_sync(s->backend, err);
		for (uint32_t i = 0; r == 0 && i < s->n_rows; i++)
			r = row_evaluate(s, i, &sums, err);
		if (r)
			return r;
	}
	if (sums.n_positions == 0)
		return error_set(err, ERROR_INVALID, "corpus", "no held-out position could be evaluated");
	double n_positions = (double)sums.n_positions;
	*ret = (struct student_evaluation){sums.kl / n_positions, sums.ce / n_positions, sums.agreement / n_positions,
					   sums.teacher_ce / n_positions, sums.n_positions};
	return 0;
}
