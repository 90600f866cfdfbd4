// SPDX-License-Identifier: Apache-2.0
#include "daemon/worker/student_internal.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/error.h"
#include "common/record.h"
#include "daemon/loss/divergence.h"
#include "daemon/model/head.h"
#include "daemon/model/weights.h"
#include "daemon/worker/features.h"
#include "daemon/worker/passage.h"
#include "daemon/worker/rollout.h"

static int arrays_new(struct student *s, uint32_t vocab_size, struct error *err)
{
	size_t n = (size_t)s->options.micro_batch * s->options.sequence_length;
	if (hearings_init(&s->hearings, s->options.objective, vocab_size, (uint32_t)n, s->options.top_k))
		return error_set(err, ERROR_MEMORY, NULL, "no memory for what the teachers say");
	s->hearings.bridge = s->options.bridge;
	size_t wide = s->hearings.wide, n_top = s->hearings.n_ranks ? s->hearings.n_ranks : 1;
	s->n_top = (uint32_t)n_top;
	s->tokens = calloc(n, sizeof *s->tokens);
	s->places = calloc(n, sizeof *s->places);
	s->starts = calloc(n + 1, sizeof *s->starts);
	s->rows = calloc(n, sizeof *s->rows);
	s->positions = calloc(n, sizeof *s->positions);
	s->swept = calloc(n, sizeof *s->swept);
	s->rewards = calloc(n, sizeof *s->rewards);
	s->gather = reallocarray(NULL, n, wide * sizeof *s->gather);
	s->gathered = reallocarray(NULL, n, wide * sizeof *s->gathered);
	s->corrections = reallocarray(NULL, n, wide * sizeof *s->corrections);
	s->label_logs = calloc(n, sizeof *s->label_logs);
	s->top_ids = reallocarray(NULL, n, n_top * sizeof *s->top_ids);
	s->top_logits = reallocarray(NULL, n, n_top * sizeof *s->top_logits);
	s->lse = calloc(n, (OBJECTIVE_MAX_TERMS + 1) * sizeof *s->lse);
	s->softmax_temperatures = calloc(n, OBJECTIVE_MAX_SOFTMAX * sizeof *s->softmax_temperatures);
	s->softmax_lse = calloc(n, OBJECTIVE_MAX_SOFTMAX * sizeof *s->softmax_lse);
	s->softmax_scales = calloc(n, OBJECTIVE_MAX_SOFTMAX * sizeof *s->softmax_scales);
	s->position_losses = calloc(n, sizeof *s->position_losses);
	s->sequence_losses = calloc(n, sizeof *s->sequence_losses);
	bool good = s->tokens && s->places && s->starts && s->rows && s->positions && s->swept && s->rewards && s->gather && s->gathered &&
		    s->corrections && s->label_logs && s->top_ids && s->top_logits && s->lse && s->softmax_temperatures && s->softmax_lse &&
		    s->softmax_scales && s->position_losses && s->sequence_losses;
	if (!good || pair_init(&s->pair, (uint32_t)wide + 1))
		return error_set(err, ERROR_MEMORY, NULL, "no memory for a micro-batch of %zu positions", n);
	return 0;
}

// Everything device_open will make.
static int need_of(struct student *s, const struct architecture *a, struct backend_need *need, struct error *err)
{
	uint32_t max_rows = s->options.micro_batch * s->options.sequence_length;
	int r = weights_need(a, s->options.sequence_length, 2 + s->options.n_arrays, need, err);
	struct backend_count *training = &need->parts[BACKEND_PART_TRAINING], before = *training;
	r = r ? r : activations_need(a, max_rows, true, s->options.recompute, need, err);
	s->activations_count = (struct backend_count){.n_real = training->n_real - before.n_real, .n_act = training->n_act - before.n_act};
	r = r ? r : head_need(a, max_rows, true, false, need, err);
	features_need(s->options.features, need);
	weights_need_beside(features_beside(s->options.features), 2 + s->options.n_arrays, need);
	r = r || !s->options.rollout ? r : rollout_need(a, s->options.rollout, need, err);
	training->n_act += (uint64_t)max_rows * a->width;
	training->n_arrays++;
	return r;
}

static int device_open(struct student *s, const struct architecture *a, const struct tensor_source *source, struct error *err)
{
	const struct student_options *o = &s->options;
	uint32_t max_rows = o->micro_batch * o->sequence_length;
	struct backend_options b = {.n_threads = o->n_threads, .numeric = o->numeric, .max_rows = max_rows};
	int r = need_of(s, a, &b.need, err);
	r = r ? r : backend_open(o->device, &b, &s->backend, err);
	r = r ? r : weights_new_beside(s->backend, a, features_beside(o->features), o->seed, o->sequence_length, &s->weights, err);
	if (r == 0 && source)
		r = weights_fill(s->weights, source, err);
	r = r ? r : activations_new(s->weights, max_rows, true, o->recompute, &s->activations, err);
	r = r ? r : head_open(s->weights, max_rows, &s->head, err);
	if (r == 0 && o->features)
		r = features_open(o->features, s->weights, s->activations, err);
	if (r)
		return r;
	s->dfinal = s->backend->ops->act_new(s->backend, (size_t)max_rows * a->width, err);
	if (!s->dfinal)
		return error_errno(ERROR_MEMORY);
	snprintf(s->device, sizeof s->device, "%s, %s, %s", s->backend->ops->name, s->backend->view_numeric, s->backend->description);
	return 0;
}

int student_open(const struct student_options *options, const struct architecture *a, const struct tensor_source *source,
		 struct student **ret, struct error *err)
{
	struct student *s = calloc(1, sizeof *s);
	if (!s)
		return error_set(err, ERROR_MEMORY, NULL, "out of memory");
	s->options = *options;
	int r = arrays_new(s, a->vocab_size, err);
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
	features_close(s->options.features);
	activations_free(s->activations);
	weights_free(s->weights);
	backend_close(s->backend);
	free(s->tokens), free(s->places), free(s->starts), free(s->rows), free(s->positions), free(s->swept), free(s->rewards);
	free(s->gather), free(s->gathered), free(s->corrections), free(s->top_ids), free(s->top_logits), free(s->lse);
	free(s->softmax_temperatures), free(s->softmax_lse), free(s->softmax_scales), free(s->position_losses), free(s->sequence_losses);
	hearings_done(&s->hearings);
	bridged_done(&s->bridged);
	free(s->label_logs);
	pair_done(&s->pair);
	free(s);
	return NULL;
}

struct weights *student_weights(struct student *s)
{
	return s->weights;
}

struct head *student_head(struct student *s)
{
	return s->head;
}

void student_passages(struct student *s, const struct passage *passages)
{
	s->passages = passages;
}

const char *student_device(const struct student *s)
{
	return s->device;
}

uint64_t student_activation_bytes(const struct student *s)
{
	const char *device = s->backend->ops->name;
	uint64_t real_bytes = strcmp(device, "ref") == 0 ? 8 : 4, act_bytes = strcmp(device, "cuda") == 0 ? 2 : real_bytes;
	return s->activations_count.n_real * real_bytes + s->activations_count.n_act * act_bytes;
}

int student_not_finite(struct error *err)
{
	return error_set(err, ERROR_NOT_FINITE, NULL,
		"the student's logits are not finite: training has diverged (try a lower learning-rate)");
}

static struct gradient gradient_of(struct student *s, uint32_t i, uint32_t n)
{
	size_t at = (size_t)i * OBJECTIVE_MAX_SOFTMAX;
	struct gradient g = {0, s->softmax_temperatures + at, s->softmax_lse + at, s->softmax_scales + at,
		s->corrections + i * s->hearings.wide};
	memset(g.corrections, 0, n * sizeof *g.corrections);
	return g;
}

// What the teacher and the student as it is now think of a token that the student drew.
static void drawn_add(struct student *s, const struct position *p, const struct loss_position *x)
{
	struct student_drawn *d = &s->sums->drawn;
	assert(p->teachers);        // there are no rewards without what a teacher said
	double log_p = (double)p->teachers[0]->own_logit[p->row] - hearings_lse(p->teachers[0], p->row, 1);
	double lr = log_p - (x->student[x->label] - x->student_lse_1);
	d->n++;
	d->k1 -= lr;
	d->k2 += lr * lr / 2;
	d->k3 += expm1(lr) - lr;
}

// Ln of the student's probability of the labels of the span that begins at position i, but for its first.
static double span_log(const struct student *s, uint32_t i)
{
	double sum = 0;
	for (uint32_t k = i + 1; k <= i + s->positions[i].n_span; k++)
		sum += s->label_logs[k];
	return sum;
}

static int tile_note(void *arg, uint32_t first, uint32_t n, const struct sweep_row *swept, struct softmax_grad_row *ret_grad,
		     struct error *err)
{
	struct student *s = arg;
	(void)ret_grad;
	for (uint32_t i = 0; i < n; i++) {
		uint32_t label = 0;
		if (swept[i].not_finite)
			return student_not_finite(err);
		while (swept[i].gather[label] != s->positions[first + i].label)
			label++;                       // it is among them: support_make
		s->label_logs[first + i] = swept[i].gathered[label] - swept[i].lse[0];
	}
	return 0;
}

// Losses that merge the rows of a span multiply one position by what the student says at the next ones, and so teach those too. They are
// read once more for it: first what is said everywhere, then what each span asks of its later positions.
static int spans_merge(struct student *s, const struct act *final, struct error *err)
{
	if (!objective_merges(s->options.objective) || !s->options.bridge)
		return 0;
	int r = head_train(s->head, final, s->rows, s->n_rows, s->layout.n_positions, s->swept, tile_note, s, NULL, err);
	for (uint32_t i = 0; r == 0 && i < s->n_rows; i++) {
		struct objective_sums sums = {0};
		uint32_t n_ids;
		if (!s->positions[i].teachers || s->positions[i].n_span == 0)
			continue;
		s->positions[i].log_student_factor = span_log(s, i);
		r = student_position_make(s, i, &s->swept[i], 1, &n_ids, err);
		if (r == 0)
			objective_position(s->options.objective, s->hearings.heard, &sums, NULL);
		for (uint32_t k = i + 1; r == 0 && k <= i + s->positions[i].n_span; k++)
			s->positions[k].pull += sums.pull;
	}
	return r;
}

// What a position adds to the total and to the gradients, so many times.
static void position_weigh(struct student *s, double factor, double before, struct gradient *g, uint32_t n_ids)
{
	s->sums->objective.total = before + factor * (s->sums->objective.total - before);
	for (uint32_t i = 0; i < g->n_terms; i++)
		g->scales[i] *= factor;
	for (uint32_t i = 0; i < n_ids; i++)
		g->corrections[i] *= factor;
}

static int tile_loss(void *arg, uint32_t first, uint32_t n, const struct sweep_row *swept, struct softmax_grad_row *ret_grad,
		     struct error *err)
{
	struct student *s = arg;
	for (uint32_t i = 0; i < n; i++) {
		uint32_t n_ids = 0;
		int r = swept[i].not_finite ? student_not_finite(err) : student_position_make(s, first + i, &swept[i], 1, &n_ids, err);
		if (r)
			return r;
		struct gradient g = gradient_of(s, first + i, n_ids);
		double before = s->sums->objective.total;
		if (s->positions[first + i].teachers)
			objective_position(s->options.objective, s->hearings.heard, &s->sums->objective, &g);
		else
			objective_label(s->options.objective, &s->hearings.heard[0], &s->sums->objective, &g);
		if (s->reweight)
			position_weigh(s, s->position_losses[first + i], before, &g, n_ids);
		if (s->hearings.heard[0].n_rewards)
			drawn_add(s, &s->positions[first + i], &s->hearings.heard[0]);
		if (!isfinite(s->sums->objective.total))
			return student_not_finite(err);
		struct loss_position all = {.n = n_ids, .ids = s->gather + (first + i) * s->hearings.wide};
		gradient_finish(&g, &all, &ret_grad[i]);
	}
	return 0;
}

// Losses and the gradient of what the head reads. Without losses on tokens no logit is wanted.
static int losses_take(struct student *s, const struct record_rows *const *rows, uint32_t n, struct act *final, struct error *err)
{
	uint32_t T = s->layout.n_positions;
	const struct features_batch batch = {n, s->n_rows, rows, s->starts, s->rows};
	int r = s->options.features ? features_learn(s->options.features, &batch, &s->sums->objective, err) : 0;
	if (r)
		return r;
	r = spans_merge(s, final, err);
	if (r == 0 && s->reweight)
		r = student_weigh(s, final, n, err);
	if (r)
		return r;
	if (objective_has_rows(s->options.objective))
		return head_train(s->head, final, s->rows, s->n_rows, T, s->swept, tile_loss, s, s->dfinal, err);
	s->backend->ops->put_rows(s->backend, s->dfinal, s->dfinal, NULL, 0, T, s->weights->architecture.width);
	return 0;
}

int student_train(struct student *s, const struct record_rows *const *rows, uint32_t n, struct student_sums *sums, struct error *err)
{
	int r = student_batch_pack(s, rows, n, false, &sums->n_masked, err);
	if (r || s->n_rows == 0)
		return r;
	s->sums = sums;
	features_watch(s->options.features, s->layout.n_positions);
	r = losses_take(s, rows, n, forward(s->weights, s->activations, &s->layout), err);
	if (r == 0)
		backward(s->weights, s->activations, &s->layout, s->dfinal);
	features_unwatch(s->options.features);
	if (r)
		return r;
	sums->n_positions += s->n_rows;
	for (uint32_t i = 0; s->passages && i < n; i++)
		sums->drawn.n_passages += s->passages[i].logprobs != NULL;
	return backend_sync(s->backend, err);
}

// Every position but the last of each sequence, asking for the k likeliest ids.
static void likeliest_ask(struct student *s, const struct sequence *sequences, uint32_t n, uint32_t k, uint32_t *ids, double *logits)
{
	static const float one = 1;
	uint32_t T = 0;
	s->n_rows = 0;
	for (uint32_t i = 0; i < n; i++) {
		s->starts[i] = T;
		for (uint32_t at = 0; at + 1 < sequences[i].n_tokens; at++) {
			size_t row = s->n_rows++;
			s->rows[row] = T + at;
			s->swept[row] = (struct sweep_row){.top_k = k, .n_temperatures = 1, .temperatures = &one, .lse = s->lse + row,
							   .ids = ids + row * k, .logits = logits + row * k};
		}
		student_tokens_pack(s, sequences[i].tokens, sequences[i].n_tokens, &T);
	}
	student_layout_make(s, n, T);
}

int student_likeliest(struct student *s, const struct sequence *sequences, uint32_t n, uint32_t k, uint32_t *ret_ids, struct error *err)
{
	double *logits = reallocarray(NULL, (size_t)s->options.micro_batch * s->options.sequence_length, k * sizeof *logits);
	if (!logits)
		return error_set(err, ERROR_MEMORY, NULL, "no memory for the student's likeliest ids");
	likeliest_ask(s, sequences, n, k, ret_ids, logits);
	head_score(s->head, forward(s->weights, s->activations, &s->layout), s->rows, s->n_rows, s->swept);
	int r = backend_sync(s->backend, err);
	for (uint32_t i = 0; r == 0 && i < s->n_rows; i++)
		r = s->swept[i].not_finite ? student_not_finite(err) : 0;
	free(logits);
	return r;
}

static const struct pair_view bucket_view = {.support = LOSS_SUPPORT_TEACHER, .form = LOSS_FORM_GHOST, .top_k = UINT32_MAX};

struct evaluation_sums {
	double kl, ce, agreement, teacher_ce;
	uint64_t n_rows, n_labels, n_teacher, n_bytes, n_teacher_bytes;
};

static int row_evaluate(struct student *s, uint32_t i, struct evaluation_sums *sums, struct error *err)
{
	const struct position *p = &s->positions[i];
	const struct sweep_row *swept = &s->swept[i];
	const struct loss_position *x = &s->hearings.heard[0];
	struct divergence d = {.slope = s->corrections};
	uint32_t n_ids;
	int r = swept->not_finite ? student_not_finite(err) : student_position_make(s, i, swept, 0, &n_ids, err);
	if (r)
		return r;
	sums->ce += x->student_lse_1 - x->student[x->label];
	sums->n_bytes += p->bytes;
	sums->n_labels++;
	if (!p->teachers)
		return isfinite(sums->ce) ? 0 : student_not_finite(err);
	pair_make(&s->pair, x, &bucket_view);
	if (s->pair.n)
		divergence_forward_kl(&s->pair, NULL, &d);
	sums->kl += d.value;
	sums->agreement += x->n_top > 0 && x->teacher_matched[0] && x->ids[0] == swept->ids[0];
	sums->n_rows++;
	if (!s->options.bridge) {
		const struct record_rows *t = p->teachers[0];
		sums->teacher_ce += t->own_logit ? x->teacher_lse[0] - (double)t->own_logit[p->row] : NAN;
		sums->n_teacher++;
		sums->n_teacher_bytes += p->bytes;
	}
	return isfinite(sums->kl) && isfinite(sums->ce) ? 0 : student_not_finite(err);
}

// What the teacher itself says of its own tokens, which are not the student's.
static void teacher_evaluate(const struct student *s, const struct record_rows *t, struct evaluation_sums *sums)
{
	for (uint32_t row = 0; row < t->n_rows; row++) {
		uint32_t at = (uint32_t)t->query.first + row;
		if (at + 1 >= t->sequence.n_tokens || t->status[row] != ROW_OK)
			continue;
		double own = t->own_logit ? (double)t->own_logit[row] : NAN;
		if (t->query.n_keep && isnan(own))             // the token is none of those it was asked about
			continue;
		sums->teacher_ce += hearings_lse(t, row, 1) - own;
		sums->n_teacher++;
		sums->n_teacher_bytes += s->options.id_bytes ? s->options.id_bytes[t->sequence.tokens[at + 1]] : 0;
	}
}

static double bits(double nats, uint64_t n_bytes)
{
	return n_bytes ? nats / (M_LN2 * (double)n_bytes) : NAN;
}

// At least one: too long a one is refused later. How long they become over a bridge is known to be L at most.
static uint32_t sequences_that_fit(const struct student *s, const struct record_rows *const *sequences, uint32_t n)
{
	uint64_t room = (uint64_t)s->options.micro_batch * s->options.sequence_length, n_tokens = sequences[0]->sequence.n_tokens;
	uint32_t i = 1;
	if (s->options.bridge)
		return n < s->options.micro_batch ? n : s->options.micro_batch;
	for (; i < n && n_tokens + sequences[i]->sequence.n_tokens <= room; i++)
		n_tokens += sequences[i]->sequence.n_tokens;
	return i;
}

int student_evaluate(struct student *s, const struct record_rows *const *sequences, uint32_t n, struct student_evaluation *ret,
		     struct error *err)
{
	struct evaluation_sums sums = {0};
	for (uint32_t first = 0, some; first < n; first += some) {
		some = sequences_that_fit(s, sequences + first, n - first);
		uint64_t n_masked = 0;
		const struct passage *all = s->passages;
		s->passages = all ? all + first : NULL;
		int r = student_batch_pack(s, sequences + first, some, true, &n_masked, err);
		s->passages = all;
		if (r)
			return r;
		head_score(s->head, forward(s->weights, s->activations, &s->layout), s->rows, s->n_rows, s->swept);
		r = backend_sync(s->backend, err);
		for (uint32_t i = 0; r == 0 && i < s->n_rows; i++)
			r = row_evaluate(s, i, &sums, err);
		for (uint32_t i = 0; r == 0 && s->options.bridge && i < some; i++)
			teacher_evaluate(s, sequences[first + i], &sums);
		if (r)
			return r;
	}
	double n_rows = (double)sums.n_rows;
	*ret = (struct student_evaluation){sums.kl / n_rows, sums.ce / (double)sums.n_labels, sums.agreement / n_rows,
					   sums.teacher_ce / (double)sums.n_teacher, bits(sums.ce, sums.n_bytes),
					   bits(sums.teacher_ce, sums.n_teacher_bytes), sums.n_rows, sums.n_labels, sums.n_teacher,
					   sums.n_bytes, sums.n_teacher_bytes};
	return 0;
}
