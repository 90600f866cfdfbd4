// SPDX-License-Identifier: Apache-2.0
// Generations on their way to the engine. A place in the teacher's cache for every token that can come is reserved before anything is
// computed, so that a generation once begun never fails for want of room.
#include "daemon/server/service_internal.h"

#include <errno.h>
#include <inttypes.h>
#include <sys/random.h>

#include "daemon/clock.h"
#include "daemon/server/auth.h"
#include "daemon/server/reply.h"
#include "daemon/teacher/generation.h"
#include "daemon/teacher/teacher.h"

static struct generation_limits limits_of(const struct service *s, const struct teacher_info *info)
{
	return (struct generation_limits){.max_tokens = info->max_tokens, .max_samples = s->options.max_samples,
		.max_top_k = info->max_top_k, .vocab_size = info->architecture.vocab_size};
}

static int check(const struct service *s, struct request *r, struct error *err)
{
	if (!s->options.cache_tokens)
		return error_set(err, ERROR_UNSUPPORTED, NULL, "this server does not generate (its setting cache-tokens is 0)");
	if (r->n_items > s->options.max_sequences)
		return error_set(err, ERROR_TOO_LARGE, "prompts", "%" PRIu32 " samples of all prompts, the limit is %" PRIu32, r->n_items,
				 s->options.max_sequences);
	int result = service_choose(s, r, err);
	if (result)
		return result;
	if (r->choice.is_mixture)
		return error_set(err, ERROR_UNSUPPORTED, "mixture", "several teachers do not generate together");
	uint32_t n;
	const struct teacher_info *info = &teacher_infos(s->teacher, &n)[r->choice.members[0]];
	if (info->architecture.masked)
		return error_set(err, ERROR_UNSUPPORTED, "teacher",
			"teacher \"%.60s\" names masked tokens: it does not generate", info->name);
	struct generation_limits limits = limits_of(s, info);
	uint32_t k = auth_k_max(r->principal);
	limits.max_top_k = k && k < limits.max_top_k ? k : limits.max_top_k;
	return generation_check(r, &limits, err);
}

static uint64_t prompt_tokens(const struct request *r)
{
	uint64_t n = 0;
	for (uint32_t i = 0; i < r->n_items; i += r->generate->n)
		n += r->items[i].sequence.n_tokens;
	return n;
}

// Prompts once, answers for each sample; the last token chosen is never read, so its place is not needed.
static uint64_t slots_of(const struct request *r)
{
	const struct generation_query *q = r->generate;
	return prompt_tokens(r) + (uint64_t)r->n_items * (q->n_forced + q->max_tokens - 1);
}

// The same of what came. Prompts count whether or not they were read: else who leaves at the right moment has them read for nothing.
uint64_t service_generated(const struct request *r)
{
	uint64_t n = prompt_tokens(r);
	for (uint32_t i = 0; i < r->n_items; i++) {
		uint32_t came = atomic_load(&r->items[i].generation->n_tokens);
		n += came ? came - 1 : 0;
	}
	return n;
}

static int reserve_slots(struct service *s, struct request *r, struct error *err)
{
	struct queue_cost slots = {.tokens = slots_of(r)};
	struct queue_cost held, places;
	bool shared = auth_held(r->principal, &held, &places);
	int result = queue_reserve(s->slots, &slots, shared ? &places : NULL, NULL);
	if (result == -E2BIG)
		return error_set(err, ERROR_TOO_LARGE, "max_tokens",
				 "%" PRIu64 " tokens of prompts and answers, the server has places for %" PRIu32, slots.tokens,
				 s->options.cache_tokens);
	if (result)
		return error_set(err, ERROR_OVERLOADED, NULL,
				 "no places for %" PRIu64 " tokens beside the generations under way: try again later", slots.tokens);
	r->slots = slots;
	auth_hold(r->principal, slots.tokens);
	return 0;
}

static void release_slots(struct service *s, const struct request *r)
{
	queue_release(s->slots, &r->slots);
	auth_give(r->principal, r->slots.tokens);
}

// Places before the quota, which counts as let in whom it lets in.
static int reserve(struct service *s, struct request *r, struct error *err)
{
	const struct generation_query *q = r->generate;
	// A stream may take a frame, or an event, for each token.
	uint64_t capacity = (uint64_t)q->n_forced + q->max_tokens, piece = q->stream ? 128 : 32;
	uint64_t row = piece + 4 * sizeof(float) + q->top_k * (uint64_t)(sizeof(float) + sizeof(uint32_t));
	r->text_bytes = r->shown_bytes + reply_max_sample_bytes((uint32_t)capacity, q->top_k, r->text);
	struct queue_cost cost = {.requests = 1, .tokens = slots_of(r), .bytes = r->n_items * capacity * row};    // 2^16 2^20 2^20 at most
	cost.bytes += r->text_bytes;
	int result = reserve_slots(s, r, err);
	if (result)
		return result;
	result = service_reserve(s, r, &cost, err);
	if (!result)
		result = generation_prepare(r, err);
	if (result) {
		release_slots(s, r);
		service_release(s, r, 0);
	}
	return result;
}

static int pick_seed(struct generation_query *q, struct error *err)
{
	if (q->has_seed)
		return 0;
	if (getrandom(&q->seed, sizeof q->seed, 0) != sizeof q->seed)
		return error_system(err, errno, "seed", "cannot draw one");
	q->seed >>= 11;        // 53 bits: every reader of JSON gets it whole
	q->has_seed = true;
	return 0;
}

// The engine's: a sample is complete, or failed.
static void item_generated(struct request_item *item)
{
	struct request *r = item->request;
	struct service *s = r->service;
	if (--r->n_uncomputed == 0)
		release_slots(s, r);
	if (!item->error.code)
		atomic_fetch_add(&s->n_generated, 1);
	request_item_tell(item, true);
}

// By the settings of one moment.
static int admit(struct service *s, struct request *r, struct error *err)
{
	pthread_rwlock_rdlock(&s->lock);
	int result = check(s, r, err);
	if (!result)
		result = pick_seed(r->generate, err);
	if (!result)
		result = reserve(s, r, err);
	pthread_rwlock_unlock(&s->lock);
	return result;
}

int service_generate(struct service *s, struct request *r, struct error *err)
{
	atomic_fetch_add(&s->doors[r->door].accepted, 1);
	r->accepted_seconds = clock_seconds();
	int result = auth_permit(r->principal, BEARER_GENERATE, err);
	if (!result)
		result = service_check_ready(s, err);
	if (!result)
		result = admit(s, r, err);
	if (result)
		return service_refuse(s, r, result, err);
	r->service = s;
	r->computed = item_generated;
	r->n_uncomputed = r->n_items;
	for (uint32_t i = 0; i + 1 < r->n_items; i++)
		r->items[i].link.next = &r->items[i + 1].link;
	r->items[r->n_items - 1].link.next = NULL;
	teacher_submit(s->teacher, &r->items[0]);
	return 0;
}
