// SPDX-License-Identifier: Apache-2.0
// A micro-batch as the student reads it. Where it shares the teacher's vocabulary, its positions are the teacher's; else they meet where
// both have read the same bytes (bridge.h), and between two such positions the student has its labels alone.
#include <math.h>
#include <string.h>

#include "common/error.h"
#include "common/record.h"
#include "daemon/worker/passage.h"
#include "daemon/worker/student_internal.h"

// What to read from one row of the student's logits: lse at each temperature, the logits at the ids that matter.
static int row_ask(struct student *s, uint32_t i, struct error *err)
{
	const struct position *p = &s->positions[i];
	uint32_t *gather = s->gather + i * s->hearings.wide, n;
	uint32_t top_k = s->hearings.evaluating ? 1 : p->teachers ? s->hearings.n_ranks : 0;
	int r = hearings_ask(&s->hearings, p, gather, &n, err);
	if (r)
		return r;
	s->swept[i] = (struct sweep_row){.top_k = top_k, .n_temperatures = s->hearings.n_temperatures,
					 .temperatures = s->hearings.temperatures,
					 .n_gather = n, .gather = gather, .want_mean = objective_wants_mean(s->options.objective),
					 .lse = s->lse + i * (size_t)(OBJECTIVE_MAX_TERMS + 1), .ids = s->top_ids + (size_t)i * s->n_top,
					 .logits = s->top_logits + (size_t)i * s->n_top, .gathered = s->gathered + i * s->hearings.wide};
	return 0;
}

static int position_list(struct student *s, uint32_t packed_row, const struct position *p, struct error *err)
{
	s->rows[s->n_rows] = packed_row;
	s->positions[s->n_rows] = *p;
	return row_ask(s, s->n_rows++, err);
}

static uint32_t bytes_of(const struct student *s, uint32_t id)
{
	return s->options.id_bytes ? s->options.id_bytes[id] : 0;
}

// ln p - ln q of each label that was drawn, to where it stands in its sequence; a position that the teacher could not answer pays nothing.
static void rewards_fill(const struct record_rows *t, const struct passage *p, double *to)
{
	for (uint32_t at = p->first; at < t->sequence.n_tokens; at++) {
		uint32_t row = at - 1 - (uint32_t)t->query.first;
		bool known = row < t->n_rows && t->status[row] == ROW_OK;
		to[at] = known ? (double)t->own_logit[row] - hearings_lse(t, row, 1) - p->logprobs[at - p->first] : 0;
	}
}

// Whether there is something to learn at a position: a masked token, else the one that follows.
static bool label_find(const struct record_rows *t, const struct passage *p, uint32_t at, uint32_t *ret_label)
{
	if (p && p->labels) {
		*ret_label = p->labels[at];
		return *ret_label != UINT32_MAX;
	}
	if (at + 1 >= t->sequence.n_tokens || at + 1 < (p ? p->first : 1))
		return false;
	*ret_label = t->sequence.tokens[at + 1];
	return true;
}

// Lists the positions of one sequence that can be learned from: answered, and with a token that follows.
static int sequence_list(struct student *s, const struct record_rows *const *teachers, const struct passage *passage, uint32_t start,
			 uint64_t *n_masked, struct error *err)
{
	const struct record_rows *t = teachers[0];
	for (uint32_t row = 0; row < t->n_rows; row++) {
		uint32_t at = (uint32_t)t->query.first + row, label;
		if (!label_find(t, passage, at, &label))
			continue;
		struct position p = {.teachers = teachers, .row = row, .label = label, .bytes = bytes_of(s, label)};
		if (!hearings_complete(&s->hearings, &p)) {
			++*n_masked;
			continue;
		}
		if (passage && passage->logprobs) {
			p.rewards = s->rewards + start + at + 1;
			p.n_rewards = t->sequence.n_tokens - at - 1;
			p.drawn_logprob = passage_chance(passage, at + 1, (double)t->own_logit[row] - hearings_lse(t, row, 1));
		}
		int r = position_list(s, start + at, &p, err);
		if (r)
			return r;
	}
	return 0;
}

// Ln of the teacher's probability of tokens first..last, each after what stands before it; NAN: not known.
static double log_probability(const struct record_rows *t, uint32_t first, uint32_t last)
{
	double sum = 0;
	for (uint32_t at = first; at <= last; at++) {
		uint32_t row = at - 1 - (uint32_t)t->query.first;
		bool known = at > (uint32_t)t->query.first && row < t->n_rows && t->own_logit && t->status[row] == ROW_OK;
		sum += known ? (double)t->own_logit[row] - hearings_lse(t, row, 1) : NAN;
	}
	return sum;
}

// The row of the teacher's at boundary i, and the span that begins there.
static void boundary_fill(const struct student *s, const struct record_rows *const *teachers, uint32_t i, uint64_t *n_masked,
			  struct position *p)
{
	const struct record_rows *t = teachers[0];
	const struct align_boundary *at = &s->bridged.boundaries[i];
	uint32_t row = at->a - (uint32_t)t->query.first;
	p->log_teacher_factor = NAN;
	if (at->a < (uint32_t)t->query.first || row >= t->n_rows || at->a + 1 >= t->sequence.n_tokens)
		return;
	if (t->status[row] != ROW_OK) {
		++*n_masked;
		return;
	}
	p->teachers = teachers;
	p->row = row;
	if (i + 1 == s->bridged.n_boundaries)
		return;
	p->n_span = at[1].b - at[0].b - 1;
	p->log_teacher_factor = log_probability(t, at[0].a + 2, at[1].a);
}

static int bridged_list(struct student *s, const struct record_rows *const *teachers, uint32_t start, uint64_t *n_masked, struct error *err)
{
	const struct bridged *b = &s->bridged;
	bool all = s->hearings.evaluating || objective_learns_labels(s->options.objective) || objective_merges(s->options.objective);
	for (uint32_t at = 0, i = 0; at + 1 < b->n; at++) {
		struct position p = {.label = b->tokens[at + 1], .bytes = b->bytes[at + 1]};
		if (i < b->n_boundaries && b->boundaries[i].b == at)
			boundary_fill(s, teachers, i++, n_masked, &p);
		int r = p.teachers || all ? position_list(s, start + at, &p, err) : 0;
		if (r)
			return r;
	}
	return 0;
}

void student_tokens_pack(struct student *s, const uint32_t *tokens, uint32_t n, uint32_t *T)
{
	for (uint32_t k = 0; k < n; k++, ++*T) {
		s->tokens[*T] = tokens[k];
		s->places[*T] = k;
	}
}

void student_layout_make(struct student *s, uint32_t n, uint32_t T)
{
	s->starts[n] = T;
	s->layout = (struct layout){.n_positions = T, .n_sequences = n, .tokens = s->tokens, .positions = s->places, .starts = s->starts};
}

// A sequence into the place that begins at *T.
static int sequence_pack(struct student *s, const struct record_rows *const *teachers, const struct passage *passage, uint32_t *T,
			 uint64_t *n_masked, struct error *err)
{
	const struct bridge *bridge = s->options.bridge;
	const struct sequence *own = &teachers[0]->sequence;
	int r = bridge ? bridge_sequence(bridge, own->tokens, own->n_tokens, s->options.sequence_length, &s->bridged, err) : 0;
	const uint32_t *tokens = bridge ? s->bridged.tokens : own->tokens;
	uint32_t n = bridge ? s->bridged.n : own->n_tokens;
	if (r == 0 && n > s->options.micro_batch * s->options.sequence_length - *T)
		r = error_set(err, ERROR_INTERNAL, NULL, "a micro-batch of more tokens than there is room for");
	if (r == 0 && passage && passage->logprobs)
		rewards_fill(teachers[0], passage, s->rewards + *T);
	r = r ? r : bridge ? bridged_list(s, teachers, *T, n_masked, err) : sequence_list(s, teachers, passage, *T, n_masked, err);
	if (r == 0)
		student_tokens_pack(s, tokens, n, T);
	return r;
}

int student_batch_pack(struct student *s, const struct record_rows *const *rows, uint32_t n, bool evaluation, uint64_t *n_masked,
		       struct error *err)
{
	uint32_t T = 0;
	int r = hearings_begin(&s->hearings, rows, n, s->options.sequence_length, evaluation, err);
	s->n_rows = 0;
	for (uint32_t i = 0; r == 0 && i < n; i++) {
		s->starts[i] = T;
		r = sequence_pack(s, rows + i, s->passages ? &s->passages[i] : NULL, &T, n_masked, err);
	}
	if (r == 0)
		student_layout_make(s, n, T);
	return r;
}
