// SPDX-License-Identifier: Apache-2.0
#include "daemon/worker/policy.h"

#include <math.h>
#include <stdlib.h>

#include "common/error.h"
#include "daemon/loss/schedule.h"
#include "daemon/model/philox.h"
#include "daemon/train/settings.h"
#include "daemon/worker/dataset.h"
#include "daemon/worker/passage.h"
#include "daemon/worker/replay.h"
#include "daemon/worker/rollout.h"

#define POLICY_TAG 0x636f696eu         // "coin"

struct policy {
	struct schedule chance;                // of a step whose sequences the student writes
	double share;                          // of them, then
	bool pairs;
	uint32_t prompt, tokens, longest;      // of a rollout; of it all, whatever its prompt
	uint64_t seed, n_steps, batch;
	bool adaptive;                         // the chance is:
	struct policy_state now;
	double rise, margin;                   // what it gains when the loss is as much over the reference
	uint64_t evaluate_every;
	uint32_t micro_batch, capacity;        // capacity 0: no replay
	struct schedule fresh;                 // of such steps, once the buffer is full, those that are written anew
	struct replay *replay;
	struct rollout_prompt *prompts;        // (micro_batch)
};

int policy_new(const struct run_settings *s, struct policy **ret, struct error *err)
{
	*ret = NULL;
	if (!settings_rollouts(s))
		return 0;
	struct policy *p = calloc(1, sizeof *p);
	if (p)
		p->prompts = calloc((size_t)s->micro_batch, sizeof *p->prompts);
	if (!p || !p->prompts || (!settings_adaptive(s) && schedule_parse(s->rollouts, &p->chance)) ||
	    schedule_parse(s->rollout_fresh, &p->fresh)) {
		policy_free(p);
		return error_set(err, ERROR_MEMORY, "rollouts", "out of memory");
	}
	p->share = s->rollout_pairs ? 0.5 : s->rollout_share;
	p->pairs = s->rollout_pairs;
	p->prompt = (uint32_t)s->rollout_prompt;
	p->tokens = (uint32_t)s->rollout_tokens;
	p->longest = (uint32_t)s->sequence_length;
	p->seed = (uint64_t)s->seed;
	p->adaptive = settings_adaptive(s);
	p->rise = s->rollout_rise;
	p->margin = s->rollout_margin;
	p->evaluate_every = (uint64_t)s->evaluate_every;
	p->micro_batch = (uint32_t)s->micro_batch;
	p->capacity = (uint32_t)s->rollout_replay;
	*ret = p;
	return 0;
}

struct policy *policy_free(struct policy *p)
{
	if (p) {
		free(p->prompts);
		replay_free(p->replay);
	}
	free(p);
	return NULL;
}

static uint32_t n_drawn(const struct policy *p, uint32_t n)
{
	return (uint32_t)ceil(p->share * n);
}

int policy_begin(struct policy *p, uint64_t n_steps, uint64_t batch, uint32_t vocab_size)
{
	uint32_t n_step = (uint32_t)(batch / p->micro_batch) * n_drawn(p, p->micro_batch);
	struct replay_options o = {.capacity = p->capacity, .max_tokens = p->longest, .n_step = n_step, .vocab_size = vocab_size,
		.seed = p->seed};
	p->n_steps = n_steps;
	p->batch = batch;
	return p->capacity ? replay_new(&o, &p->replay) : 0;
}

void policy_rollout_options(const struct policy *p, const struct run_settings *s, int32_t eos_id, struct rollout_options *ret)
{
	*ret = (struct rollout_options){.n_sequences = (uint32_t)s->micro_batch, .sequence_length = (uint32_t)s->sequence_length,
					.eos_ids = {eos_id, -1}, .seed = p->seed};
	sampler_options_init(&ret->sampling);
	ret->sampling.temperature = (float)s->rollout_temperature;
	ret->mix = s->rollout_mix;
}

static double coin(const struct policy *p, uint64_t step)
{
	const uint32_t key[2] = {(uint32_t)p->seed, (uint32_t)(p->seed >> 32)};
	uint32_t words[4];
	philox(key, (const uint32_t[]){(uint32_t)step, (uint32_t)(step >> 32), 0, POLICY_TAG}, words);
	return philox_uniform(words[0], words[1]);
}

enum policy_kind policy_kind(const struct policy *p, uint64_t step)
{
	if (!p)
		return POLICY_TEXT;
	double chance = p->adaptive ? p->now.chance : schedule_at(&p->chance, step, p->n_steps), side = coin(p, step);
	if (side >= chance)
		return POLICY_TEXT;
	if (!p->replay || !replay_full(p->replay) || side < chance * schedule_at(&p->fresh, step, p->n_steps))
		return POLICY_FRESH;
	return POLICY_REPLAY;
}

bool policy_waits(const struct policy *p, uint64_t now, uint64_t step)
{
	bool evaluated = p && p->adaptive && now / p->evaluate_every != step / p->evaluate_every;      // after the steps between them
	return step != now && (evaluated || policy_kind(p, step) != POLICY_TEXT);
}

int policy_end_step(struct policy *p, struct team *team, struct error *err)
{
	return p && p->replay ? replay_end_step(p->replay, team, err) : 0;
}

// The student learns from itself only as far as its loss has not risen for it (DistiLLM). The reference moves with the chance alone.
void policy_evaluated(struct policy *p, double loss, bool first)
{
	if (!p || !p->adaptive)
		return;
	if (first)
		p->now.reference = loss;
	if (first || loss < p->now.reference + p->margin)
		return;
	p->now.chance = fmin(1, p->now.chance + p->rise);
	p->now.reference = loss;
}

struct policy_state policy_state(const struct policy *p)
{
	return p ? p->now : (struct policy_state){0};
}

void policy_restore(struct policy *p, const struct policy_state *state)
{
	if (p)
		p->now = *state;
}

struct replay *policy_replay(const struct policy *p)
{
	return p ? p->replay : NULL;
}

// A prompt of its own, or the beginning of the text.
static uint32_t prompt_of(const struct policy *p, const struct dataset *d, const struct sequence *s)
{
	uint32_t first = dataset_first(d, s);
	if (first > 1)
		return first;
	return s->n_tokens < p->prompt ? s->n_tokens : p->prompt;
}

static int draw(struct policy *p, struct rollout *r, struct dataset *d, uint64_t position, uint64_t step, uint32_t n, struct passage *ret,
		struct error *err)
{
	struct sequence *sequences = calloc(n, sizeof *sequences);
	if (!sequences)
		return error_set(err, ERROR_MEMORY, NULL, "out of memory");
	for (uint32_t i = 0; i < n; i++) {
		sequences[i] = dataset_train_at(d, position + i);
		uint32_t n_prompt = prompt_of(p, d, &sequences[i]);
		p->prompts[i] = (struct rollout_prompt){&sequences[i], n_prompt, position + i, step};
	}
	int result = rollout_make(r, p->prompts, n, p->tokens, ret, err);
	free(sequences);
	return result;
}

// The n sequences that stand for these places of the stream. In pairs half as many are read, and each stands at two places.
static uint32_t texts_at(const struct policy *p, struct dataset *d, uint64_t position, uint32_t n, struct sequence *ret)
{
	if (!p || !p->pairs)
		return dataset_places_at(d, position, n, ret);
	dataset_places_at(d, position / 2, n / 2, ret + n / 2);
	return n;                      // the first half is drawn
}

// Place of a micro-batch's first such sequence among those of its step.
static uint32_t number_in_step(const struct policy *p, uint64_t position, uint32_t n)
{
	return (uint32_t)(position % p->batch / n) * n_drawn(p, n);
}

// The first `drawn` sequences of n places: written now, or taken out of the buffer.
static int write_or_recall(struct policy *p, struct rollout *r, struct dataset *d, uint64_t position, uint32_t n, uint32_t drawn,
			   struct passage *ret, struct error *err)
{
	uint32_t number = p->replay ? number_in_step(p, position, n) : 0;
	uint64_t step = position / p->batch;
	bool recall = policy_kind(p, step) == POLICY_REPLAY;
	int result = recall ? 0 : draw(p, r, d, p->pairs ? position / 2 : position, step, drawn, ret, err);
	for (uint32_t i = 0; result == 0 && p->replay && i < drawn; i++)
		if (recall ? replay_pick(p->replay, step, number + i, &ret[i]) : replay_note(p->replay, number + i, &ret[i]))
			result = error_set(err, ERROR_MEMORY, "rollout-replay", "out of memory");
	return result;
}

int policy_passages(struct policy *p, struct rollout *r, struct dataset *d, uint64_t position, uint32_t n, struct passages **ret,
		    struct error *err)
{
	struct sequence *sequences = calloc((size_t)n * dataset_per_place(d), sizeof *sequences);
	bool any = p && policy_kind(p, position / p->batch) != POLICY_TEXT;
	uint32_t drawn = any ? n_drawn(p, n) : 0, n_sequences = sequences ? texts_at(p, d, position, n, sequences) : 0;
	struct passages *all = sequences ? passages_new(n_sequences) : NULL;
	int result = all ? 0 : error_set(err, ERROR_MEMORY, NULL, "out of memory");
	if (result == 0 && drawn)
		result = write_or_recall(p, r, d, position, n, drawn, all->list, err);
	for (uint32_t i = drawn; result == 0 && i < n_sequences; i++)
		if (passage_init(&all->list[i], &sequences[i], dataset_first(d, &sequences[i]), PASSAGE_CORPUS))
			result = error_set(err, ERROR_MEMORY, NULL, "out of memory");
	free(sequences);
	if (result) {
		passages_free(all);
		return result;
	}
	*ret = all;
	return 0;
}
