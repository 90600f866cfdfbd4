// SPDX-License-Identifier: Apache-2.0
#include "daemon/worker/hearing.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/error.h"
#include "common/record.h"
#include "daemon/worker/bridge.h"
#include "daemon/worker/support.h"
#include "kernels/backend.h"

// A voice of the objective at the position in hand.
struct hearing {
	struct objective_voice voice;
	struct support support;
	double temperatures[OBJECTIVE_MAX_TERMS + 1], teacher_lse[OBJECTIVE_MAX_TERMS + 1];
};

int hearings_init(struct hearings *h, const struct objective *objective, uint32_t vocab_size, uint32_t max_sequences, uint32_t top_k)
{
	uint32_t trained = objective_top_k(objective, 0), more = top_k > trained ? top_k - trained : 0;
	*h = (struct hearings){.objective = objective, .vocab_size = vocab_size, .n_voices = objective_n_voices(objective),
			       .n_teachers = objective_n_teachers(objective)};
	h->n_ranks = objective_ranks(objective);
	h->n_ranks = h->n_ranks < vocab_size ? h->n_ranks : vocab_size;
	h->list = calloc(h->n_voices, sizeof *h->list);
	h->heard = calloc(h->n_voices, sizeof *h->heard);
	h->teacher_ce = calloc(h->n_teachers, max_sequences * sizeof *h->teacher_ce);
	int r = h->list && h->heard && h->teacher_ce ? 0 : -ENOMEM;
	for (uint32_t i = 0; r == 0 && i < h->n_voices; i++) {
		uint32_t room = objective_voice_width(objective, i, UINT32_MAX) + (i == 0 ? more : 0);
		room = room < vocab_size ? room : vocab_size;
		h->wide += room + (i < h->n_teachers ? h->n_ranks : 0);
		r = support_init(&h->list[i].support, vocab_size, room);
	}
	return r;
}

void hearings_done(struct hearings *h)
{
	for (uint32_t i = 0; h->list && i < h->n_voices; i++)
		support_done(&h->list[i].support);
	free(h->list), free(h->heard), free(h->teacher_ce);
	*h = (struct hearings){0};
}

static bool has_temperature(const struct record_rows *t, float temperature)
{
	for (uint32_t i = 0; i < t->query.n_temperatures; i++)
		if (t->query.temperatures[i] == temperature)
			return true;
	return false;
}

double hearings_lse(const struct record_rows *t, uint32_t row, float temperature)
{
	for (uint32_t i = 0; i < t->query.n_temperatures; i++)
		if (t->query.temperatures[i] == temperature)
			return (double)t->lse[(size_t)row * t->query.n_temperatures + i];
	return NAN;                    // nobody looks at it there: rows_check has seen to it
}

static int rows_check(const struct hearings *h, const struct record_rows *t, uint32_t teacher, uint32_t sequence_length, struct error *err)
{
	uint32_t vocab_size = h->bridge ? h->bridge->teacher_vocab : h->vocab_size;
	if (!h->bridge && t->sequence.n_tokens > sequence_length)
		return error_set(err, ERROR_INTERNAL, NULL, "the teacher's answer is larger than the question");
	if (t->vocab_size != vocab_size)
		return error_set(err, ERROR_CONFLICT, "student", "the teacher has %u tokens in its vocabulary, the student %u",
				 t->vocab_size, vocab_size);
	for (uint32_t i = 0; i < h->n_temperatures; i++)
		if (!has_temperature(t, h->temperatures[i]) && (i == 0 || objective_asks_at(h->objective, teacher, h->temperatures[i])))
			return error_set(err, ERROR_INTERNAL, NULL, "the teacher was not asked at temperature %g",
				(double)h->temperatures[i]);
	return 0;
}

// The teacher's own mean loss on the tokens that follow, over the rows that it answered; 0 where it was not asked for their logits.
static double label_loss(const struct record_rows *t)
{
	double sum = 0;
	uint32_t n = 0;
	for (uint32_t row = 0; t->own_logit && row < t->n_rows; row++) {
		if (t->status[row] != ROW_OK || (uint32_t)t->query.first + row + 1 >= t->sequence.n_tokens)
			continue;
		sum += hearings_lse(t, row, 1) - (double)t->own_logit[row];
		n++;
	}
	return n ? sum / n : 0;
}

int hearings_begin(struct hearings *h, const struct record_rows *const *rows, uint32_t n, uint32_t sequence_length, bool evaluation,
		   struct error *err)
{
	uint32_t n_teachers = evaluation ? 1 : h->n_teachers;
	int r = 0;
	h->rows = rows;
	h->evaluating = evaluation;
	h->n_sequences = n;
	h->temperatures[0] = 1;
	h->n_temperatures = 1 + (evaluation ? 0 : objective_temperatures(h->objective, h->temperatures + 1));
	for (uint32_t i = 0; i < h->n_voices; i++) {
		objective_voice(h->objective, i, &h->list[i].voice);
		h->list[i].support.bridge = h->bridge;
	}
	for (uint32_t i = 0; r == 0 && i < n_teachers * n; i++) {
		if (i >= n && !rows[i])
			continue;
		r = rows_check(h, rows[i], i / n, sequence_length, err);
		h->teacher_ce[i] = r ? 0 : label_loss(rows[i]);
	}
	return r;
}

static const struct record_rows *teacher_rows(const struct hearings *h, const struct position *p, uint32_t teacher)
{
	return !p->teachers || (h->evaluating && teacher) ? NULL : p->teachers[(size_t)teacher * h->n_sequences];
}

bool hearings_complete(const struct hearings *h, const struct position *p)
{
	bool all = true;
	for (uint32_t i = 0; i < h->n_teachers; i++) {
		const struct record_rows *t = teacher_rows(h, p, i);
		all &= !t || t->status[p->row] == ROW_OK;
	}
	return all;
}

static uint32_t ranks_room(const struct hearings *h, uint32_t voice)
{
	return h->evaluating || voice >= h->n_teachers ? 0 : h->n_ranks;
}

static int mean_hear(struct hearings *h, struct hearing *one, const struct position *p, struct error *err)
{
	const struct support *members[OBJECTIVE_MAX_TEACHERS];
	double lse[OBJECTIVE_MAX_TEACHERS];
	float temperature = h->temperatures[1 + one->voice.temperature];
	for (uint32_t i = 0; i < one->voice.n; i++) {
		uint32_t teacher = one->voice.members[i];
		members[i] = &h->list[teacher].support;
		lse[i] = hearings_lse(teacher_rows(h, p, teacher), p->row, temperature);
	}
	return support_make_mean(&one->support, members, lse, &one->voice, (double)temperature, err);
}

// Voices that are silent have no ids.
static int position_hear(struct hearings *h, const struct position *p, uint32_t *ret_n, struct error *err)
{
	int r = 0;
	*ret_n = 0;
	for (uint32_t i = 0; r == 0 && i < h->n_voices; i++) {
		struct hearing *one = &h->list[i];
		const struct record_rows *t = i < h->n_teachers ? teacher_rows(h, p, i) : NULL;
		one->support.n = 0;
		if (t)
			r = support_make(&one->support, t, p->row, p->label, err);
		else if (i == 0)
			r = support_make_label(&one->support, p->label, err);
		else if (i >= h->n_teachers && !h->evaluating && one->voice.active && p->teachers)
			r = mean_hear(h, one, p, err);
		*ret_n += one->support.n + ranks_room(h, i);
	}
	return r;
}

int hearings_ask(struct hearings *h, const struct position *p, uint32_t *ret_ids, uint32_t *ret_n, struct error *err)
{
	int r = position_hear(h, p, ret_n, err);
	for (uint32_t i = 0; r == 0 && i < h->n_voices; i++) {
		const struct support *s = &h->list[i].support;
		memcpy(ret_ids, s->ids, s->n * sizeof *ret_ids);
		ret_ids += s->n;
		for (uint32_t k = 0; k < ranks_room(h, i); k++)
			*ret_ids++ = p->label;
	}
	return r;
}

// `at`: where its ids begin among all. A mean's logits are T ln p, so that its lse is 0.
static void one_make(struct hearings *h, uint32_t voice, const struct position *p, const struct sweep_row *swept, uint32_t first,
		     uint32_t at)
{
	struct hearing *one = &h->list[voice];
	struct loss_position *x = &h->heard[voice];
	const struct record_rows *t = voice < h->n_teachers ? teacher_rows(h, p, voice) : NULL;
	support_position(&one->support, t, p->row, x);
	x->at = at;
	x->n_temperatures = h->n_temperatures - first;
	for (uint32_t k = 0; k < x->n_temperatures; k++) {
		one->temperatures[k] = (double)h->temperatures[first + k];
		one->teacher_lse[k] = t ? hearings_lse(t, p->row, h->temperatures[first + k]) : 0;
	}
	x->temperatures = one->temperatures;
	x->teacher_lse = one->teacher_lse;
	x->teacher_ce = t ? h->teacher_ce[(size_t)voice * h->n_sequences + (size_t)(p->teachers - h->rows)] : 0;
	x->student = swept->gathered + at;
	x->student_lse = swept->lse + first;
	x->student_lse_1 = swept->lse[0];
	x->student_mean = swept->want_mean ? swept->mean : NAN;
	x->n_rewards = p->n_rewards;
	x->rewards = p->rewards;
	x->drawn_logprob = p->drawn_logprob;
	x->log_teacher_factor = p->log_teacher_factor;
	x->log_student_factor = p->log_student_factor;
	x->label_pull = p->pull;
}

int hearings_make(struct hearings *h, const struct position *p, const struct sweep_row *swept, uint32_t first, uint32_t *ids,
		  uint32_t *ret_n, struct error *err)
{
	uint32_t at = 0;
	int r = position_hear(h, p, ret_n, err);
	for (uint32_t i = 0; r == 0 && i < h->n_voices; i++) {
		struct support *s = &h->list[i].support;
		uint32_t n = s->n, room = ranks_room(h, i);
		if (n && room)
			r = support_add_ranks(s, swept->ids, swept->logits, swept->top_k, ids + at, swept->gathered + at, err);
		one_make(h, i, p, swept, first, at);
		at += n + room;
	}
	return r;
}
