// SPDX-License-Identifier: Apache-2.0
#include "daemon/worker/support.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/error.h"
#include "common/record.h"
#include "daemon/loss/objective.h"
#include "daemon/worker/bridge.h"

int support_init(struct support *s, uint32_t vocab_size, uint32_t room)
{
	*s = (struct support){.vocab_size = vocab_size, .room = room};
	s->ids = calloc(room, sizeof *s->ids);
	s->own = calloc(room, sizeof *s->own);
	s->drawn = calloc(room, sizeof *s->drawn);
	s->teacher = calloc(room, sizeof *s->teacher);
	s->weights = calloc(room, sizeof *s->weights);
	s->ranks = calloc(room, sizeof *s->ranks);
	s->student_ranks = calloc(room, sizeof *s->student_ranks);
	s->matched = calloc(room, sizeof *s->matched);
	s->student_matched = calloc(room, sizeof *s->student_matched);
	s->slots = calloc(vocab_size, sizeof *s->slots);
	s->marks = calloc(vocab_size, sizeof *s->marks);
	bool good = s->ids && s->own && s->drawn && s->teacher && s->weights && s->ranks && s->student_ranks && s->matched &&
		    s->student_matched && s->slots && s->marks;
	return good ? 0 : -ENOMEM;
}

void support_done(struct support *s)
{
	free(s->ids), free(s->own), free(s->drawn), free(s->teacher), free(s->weights), free(s->slots), free(s->marks);
	free(s->ranks), free(s->student_ranks), free(s->matched), free(s->student_matched);
	*s = (struct support){0};
}

// The id's slot, a new one if need be; UINT32_MAX when there is no room.
static uint32_t slot_of(struct support *s, uint32_t id)
{
	if (s->marks[id] == s->mark)
		return s->slots[id];
	if (s->n == s->room)
		return UINT32_MAX;
	s->marks[id] = s->mark;
	s->ids[s->n] = id;
	s->teacher[s->n] = NAN;
	return s->slots[id] = s->n++;
}

static void begin(struct support *s)
{
	s->n = s->n_top = s->n_own = s->n_drawn = s->n_ranks = s->n_student_ranks = 0;
	if (++s->mark == 0) {                                  // once in 2^32 positions every old mark must go
		memset(s->marks, 0, s->vocab_size * sizeof *s->marks);
		s->mark = 1;
	}
}

static bool top_add(struct support *s, const struct record_rows *r, uint32_t row)
{
	uint32_t k = r->query.top_k, n = r->n_top ? r->n_top[row] : k;
	for (uint32_t i = 0; i < n; i++) {
		uint32_t id = r->ids[(size_t)row * k + i], mine = s->bridge ? s->bridge->match[id] : id;
		double logit = (double)r->logits[(size_t)row * k + i];
		if (s->n_ranks < s->room) {
			s->ranks[s->n_ranks] = logit;
			s->matched[s->n_ranks++] = mine != BRIDGE_NONE;
		}
		if (mine == BRIDGE_NONE)
			continue;
		uint32_t slot = slot_of(s, mine);
		if (slot == UINT32_MAX)
			return false;
		s->teacher[slot] = logit;
	}
	s->n_top = s->n;
	return true;
}

static bool own_add(struct support *s, const struct record_rows *r, uint32_t row)
{
	uint32_t n = 0;
	const uint32_t *ids = r->query.gather.n_lists ? record_gather_ids(r, row, &n) : NULL;
	const float *logits = n ? r->gathered + record_gather_at(r, row) : NULL;
	for (uint32_t i = 0; i < n && s->n_own < s->room; i++) {
		uint32_t slot = slot_of(s, ids[i]);
		if (slot == UINT32_MAX)
			return false;
		s->teacher[slot] = (double)logits[i];
		s->own[s->n_own++] = slot;
	}
	return true;
}

// Weight of an id: its count over the number of draws, times p over the proposal (with draws from the tail: times the tail's mass).
static bool drawn_add(struct support *s, const struct record_rows *r, uint32_t row)
{
	if (!r->query.draws.n)
		return true;
	double log_ratio = r->query.draws.tail ? (double)r->tail[row] : 0;
	for (uint32_t i = r->draw_starts[row]; i < r->draw_starts[row + 1]; i++) {
		uint32_t slot = slot_of(s, r->draw_ids[i]);
		if (slot == UINT32_MAX)
			return false;
		double ratio = exp(r->draw_log_ratios ? (double)r->draw_log_ratios[i] : log_ratio);
		s->drawn[s->n_drawn] = slot;
		s->weights[s->n_drawn++] = ratio * r->draw_counts[i] / r->query.draws.n;
	}
	return true;
}

int support_make(struct support *s, const struct record_rows *rows, uint32_t row, uint32_t label, struct error *err)
{
	begin(s);
	bool good = top_add(s, rows, row) && own_add(s, rows, row) && drawn_add(s, rows, row);
	s->label = good ? slot_of(s, label) : UINT32_MAX;
	if (s->label == UINT32_MAX)
		return error_set(err, ERROR_INTERNAL, NULL, "the teacher's answer is larger than the question");
	if (rows->own_logit && !s->bridge)
		s->teacher[s->label] = (double)rows->own_logit[row];
	return 0;
}

// T ln of the mean at one id; NAN where a member does not know it.
static double mean_at(const struct support *const *members, const double *lse, const struct objective_voice *voice, double T, uint32_t id)
{
	double p = 0;
	for (uint32_t i = 0; i < voice->n; i++) {
		const struct support *m = members[i];
		p += m->marks[id] == m->mark ? voice->shares[i] * exp(m->teacher[m->slots[id]] / T - lse[i]) : NAN;
	}
	return T * log(p);
}

static void last_sink(struct support *s, uint32_t slot)
{
	for (; slot > 0 && s->teacher[slot] > s->teacher[slot - 1]; slot--) {
		double z = s->teacher[slot];
		uint32_t id = s->ids[slot];
		s->teacher[slot] = s->teacher[slot - 1];
		s->ids[slot] = s->ids[slot - 1];
		s->teacher[slot - 1] = z;
		s->ids[slot - 1] = id;
		s->slots[s->ids[slot]] = slot;
		s->slots[id] = slot - 1;
	}
}

int support_make_mean(struct support *s, const struct support *const *members, const double *lse, const struct objective_voice *voice,
		      double temperature, struct error *err)
{
	const struct support *first = members[0];
	bool good = true;
	begin(s);
	for (uint32_t i = 0; good && i < first->n_top; i++) {
		double z = mean_at(members, lse, voice, temperature, first->ids[i]);
		uint32_t slot = isnan(z) ? 0 : slot_of(s, first->ids[i]);
		good = slot != UINT32_MAX;
		if (good && !isnan(z)) {
			s->teacher[slot] = z;
			last_sink(s, slot);
		}
	}
	s->n_top = s->n;
	for (uint32_t i = 0; good && i < first->n_own; i++) {
		uint32_t id = first->ids[first->own[i]], slot = slot_of(s, id);
		good = slot != UINT32_MAX;
		if (!good)
			break;
		s->teacher[slot] = mean_at(members, lse, voice, temperature, id);
		s->own[s->n_own++] = slot;
	}
	s->label = good ? slot_of(s, first->ids[first->label]) : UINT32_MAX;
	if (s->label == UINT32_MAX)
		return error_set(err, ERROR_INTERNAL, NULL, "the teachers' answers are larger than the questions");
	s->teacher[s->label] = mean_at(members, lse, voice, temperature, first->ids[first->label]);
	return 0;
}

int support_make_label(struct support *s, uint32_t label, struct error *err)
{
	begin(s);
	s->label = slot_of(s, label);
	return s->label == UINT32_MAX ? error_set(err, ERROR_INTERNAL, NULL, "no room for a label") : 0;
}

int support_add_ranks(struct support *s, const uint32_t *likeliest, const double *their_logits, uint32_t n, uint32_t *ids, double *logits,
		      struct error *err)
{
	for (uint32_t i = 0; i < n && i < s->room; i++) {
		uint32_t slot = slot_of(s, likeliest[i]);
		if (slot == UINT32_MAX)
			return error_set(err, ERROR_INTERNAL, NULL, "no room for the student's likeliest ids");
		ids[slot] = likeliest[i];
		logits[slot] = their_logits[i];
		s->student_ranks[s->n_student_ranks] = slot;
		s->student_matched[s->n_student_ranks++] = !s->bridge || s->bridge->origin[likeliest[i]] != BRIDGE_NONE;
	}
	return 0;
}

void support_position(const struct support *s, const struct record_rows *rows, uint32_t row, struct loss_position *ret)
{
	*ret = (struct loss_position){.vocab_size = s->vocab_size, .n = s->n, .ids = s->ids, .teacher = s->teacher, .n_top = s->n_top,
				      .n_own = s->n_own, .own = s->own, .n_drawn = s->n_drawn, .drawn = s->drawn, .weights = s->weights,
				      .label = s->label, .tail = rows && rows->tail ? (double)rows->tail[row] : NAN,
				      .entropy = rows && rows->entropy ? (double)rows->entropy[row] : NAN, .student_mean = NAN,
				      .matched_share = 1, .n_teacher_ranks = s->n_ranks, .teacher_ranks = s->ranks,
				      .teacher_matched = s->matched, .n_student_ranks = s->n_student_ranks,
				      .student_ranks = s->student_ranks, .student_matched = s->student_matched};
	if (s->bridge && s->bridge->student) {
		ret->foreign = true;
		ret->matched_share = (double)s->bridge->n_matched / s->bridge->teacher_vocab;
	}
}
