// SPDX-License-Identifier: Apache-2.0
#include "daemon/teacher/schedule.h"

#include "daemon/model/cache.h"
#include "daemon/teacher/generator.h"

bool schedule_is_generating(const struct schedule *s)
{
	return s->generator && generator_is_busy(s->generator);
}

bool schedule_is_idle(const struct schedule *s)
{
	return !s->scores.first && !schedule_is_generating(s);
}

static uint32_t slots_left(const struct schedule *s)
{
	struct cache_usage u = cache_usage(s->cache);
	return u.n_slots - u.n_used + u.n_idle;
}

// They share prefixes where the cache has room for the whole pass. Slots are taken only if some do, so that passes which share nothing
// drive nothing out of the cache.
static void fill_scores(struct schedule *s, struct batch *b)
{
	struct batch_terms terms = {.budget = s->batch_tokens, .oldest = true};
	terms.share = s->cache && slots_left(s) >= b->capacity;
	batch_fill(b, &s->scores, &terms);
}

// Rows of scores beside generations need slots too.
static void fill_beside(struct schedule *s, struct batch *b, uint32_t limit, bool oldest)
{
	uint32_t n = b->n_rows;
	struct batch_terms terms = {.budget = limit > n ? limit - n : 0, .oldest = oldest, .share = true, .slots = s->cache};
	batch_fill(b, &s->scores, &terms);
}

static bool oldest_fits(const struct schedule *s, uint32_t capacity)
{
	const struct request_item *oldest = (const struct request_item *)s->scores.first;
	uint64_t n = (uint64_t)oldest->sequence.n_tokens + generator_n_steps(s->generator);
	return n <= capacity && n <= slots_left(s);
}

static bool fill(struct schedule *s, struct batch *b)
{
	uint32_t limit = s->batch_tokens < s->generate_batch ? s->batch_tokens : s->generate_batch;
	batch_clear(b);
	if (!schedule_is_generating(s)) {
		fill_scores(s, b);
		return false;
	}
	bool scores_first = s->scores.first && !s->prompts_first;
	s->prompts_first = scores_first;
	if (scores_first && !oldest_fits(s, b->capacity)) {
		fill_scores(s, b);
		return false;
	}
	generator_fill_steps(s->generator, b);
	if (scores_first)
		fill_beside(s, b, limit, true);
	uint32_t left = limit > b->n_rows ? limit - b->n_rows : 0;
	generator_fill_prompts(s->generator, b, left > SCHEDULE_MIN_PROMPT ? left : SCHEDULE_MIN_PROMPT);
	if (!scores_first)
		fill_beside(s, b, limit, false);
	return true;
}

bool schedule_fill(struct schedule *s, struct batch *b)
{
	turns_order(&s->turns, &s->scores, 2 * (uint64_t)s->batch_tokens);
	bool generates = fill(s, b);
	turns_charge(&s->turns, b);
	return generates;
}
