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
#include "daemon/worker/rollout.h"

#define POLICY_TAG 0x636f696eu         // "coin"

struct policy {
	struct schedule chance;                // of a step whose sequences the student writes
	double share;                          // of them, then
	bool pairs;
	uint32_t prompt, tokens;               // of a rollout
	uint64_t seed, n_steps, batch;
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
	if (!p || !p->prompts || schedule_parse(s->rollouts, &p->chance)) {
		policy_free(p);
		return error_set(err, ERROR_MEMORY, "rollouts", "out of memory");
	}
	p->share = s->rollout_pairs ? 0.5 : s->rollout_share;
	p->pairs = s->rollout_pairs;
	p->prompt = (uint32_t)s->rollout_prompt;
	p->tokens = (uint32_t)s->rollout_tokens;
	p->seed = (uint64_t)s->seed;
	*ret = p;
	return 0;
}

struct policy *policy_free(struct policy *p)
{
	if (p)
		free(p->prompts);
	free(p);
	return NULL;
}

void policy_begin(struct policy *p, uint64_t n_steps, uint64_t batch)
{
	p->n_steps = n_steps;
	p->batch = batch;
}

void policy_rollout_options(const struct policy *p, const struct run_settings *s, int32_t eos_id, struct rollout_options *ret)
{
	*ret = (struct rollout_options){.n_sequences = (uint32_t)s->micro_batch, .sequence_length = (uint32_t)s->sequence_length,
					.eos_ids = {eos_id, -1}, .seed = p->seed};
	sampler_options_init(&ret->sampling);
	ret->sampling.temperature = (float)s->rollout_temperature;
}

static double coin(const struct policy *p, uint64_t step)
{
	const uint32_t key[2] = {(uint32_t)p->seed, (uint32_t)(p->seed >> 32)};
	uint32_t words[4];
	philox(key, (const uint32_t[]){(uint32_t)step, (uint32_t)(step >> 32), 0, POLICY_TAG}, words);
	return philox_uniform(words[0], words[1]);
}

bool policy_draws(const struct policy *p, uint64_t step)
{
	return p && coin(p, step) < schedule_at(&p->chance, step, p->n_steps);
}

// The first of a micro-batch's sequences.
static uint32_t n_drawn(const struct policy *p, uint64_t position, uint32_t n)
{
	return policy_draws(p, p ? position / p->batch : 0) ? (uint32_t)ceil(p->share * n) : 0;
}

// A prompt of its own, or the beginning of the text.
static uint32_t prompt_of(const struct policy *p, const struct dataset *d, const struct sequence *s)
{
	uint32_t first = dataset_first(d, s);
	if (first > 1)
		return first;
	return s->n_tokens < p->prompt ? s->n_tokens : p->prompt;
}

static int draw(struct policy *p, struct rollout *r, struct dataset *d, uint64_t position, uint32_t n, struct passage *ret, struct error *err)
{
	struct sequence *sequences = calloc(n, sizeof *sequences);
	if (!sequences)
		return error_set(err, ERROR_MEMORY, NULL, "out of memory");
	for (uint32_t i = 0; i < n; i++) {
		sequences[i] = dataset_train_at(d, position + i);
		uint32_t n_prompt = prompt_of(p, d, &sequences[i]);
		p->prompts[i] = (struct rollout_prompt){&sequences[i], n_prompt, position + i};
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

int policy_passages(struct policy *p, struct rollout *r, struct dataset *d, uint64_t position, uint32_t n, struct passages **ret,
		    struct error *err)
{
	struct sequence *sequences = calloc((size_t)n * dataset_per_place(d), sizeof *sequences);
	uint32_t drawn = n_drawn(p, position, n), n_sequences = sequences ? texts_at(p, d, position, n, sequences) : 0;
	struct passages *all = sequences ? passages_new(n_sequences) : NULL;
	int result = all ? 0 : error_set(err, ERROR_MEMORY, NULL, "out of memory");
	if (result == 0 && drawn)
		result = draw(p, r, d, p->pairs ? position / 2 : position, drawn, all->list, err);
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
