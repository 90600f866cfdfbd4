// SPDX-License-Identifier: Apache-2.0
// Its one complication is who completes an item: the door's own thread (a hit), the engine (a miss), or the store (a durable answer).
// Whoever calls `complete` must not look at the item, or at its request, again.
#include "daemon/server/service_internal.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/saturate.h"
#include "daemon/clock.h"
#include "daemon/server/auth.h"
#include "daemon/server/reply.h"
#include "daemon/store/store.h"
#include "daemon/teacher/generation.h"
#include "daemon/teacher/teacher.h"

int service_open(const struct service_options *options, struct teacher *teacher, struct store *store, struct supervisor *supervisor,
		 struct service **ret_service, struct error *err)
{
	const struct queue_cost slots = {UINT64_MAX, options->cache_tokens, UINT64_MAX};
	struct service *s = calloc(1, sizeof *s);
	if (!s)
		return error_set(err, ERROR_MEMORY, NULL, "no memory for the service");
	pthread_rwlockattr_t attributes;
	pthread_rwlockattr_init(&attributes);
	pthread_rwlockattr_setkind_np(&attributes, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);    // else a busy server never reloads
	pthread_rwlock_init(&s->lock, &attributes);
	pthread_rwlockattr_destroy(&attributes);
	reloads_init(&s->reloads);
	s->options = *options;
	s->teacher = teacher;
	s->store = store;
	s->supervisor = supervisor;
	s->opened_seconds = clock_seconds();
	if (queue_open(&options->limits, -1, &s->budget) || queue_open(&slots, -1, &s->slots)) {
		service_close(s);
		return error_set(err, ERROR_MEMORY, NULL, "no memory for the service");
	}
	*ret_service = s;
	return 0;
}

void service_change(struct service *s, const struct service_options *options)
{
	pthread_rwlock_wrlock(&s->lock);
	s->options.max_sequences = options->max_sequences;
	s->options.max_spans = options->max_spans;
	s->options.max_samples = options->max_samples;
	s->options.limits = options->limits;
	s->options.doors = options->doors;
	queue_limit(s->budget, &options->limits);
	pthread_rwlock_unlock(&s->lock);
}

struct door_settings service_doors(struct service *s)
{
	pthread_rwlock_rdlock(&s->lock);
	struct door_settings doors = s->options.doors;
	pthread_rwlock_unlock(&s->lock);
	return doors;
}

struct service *service_close(struct service *s)
{
	if (!s)
		return NULL;
	queue_close(s->budget);
	queue_close(s->slots);
	reloads_done(&s->reloads);
	pthread_rwlock_destroy(&s->lock);
	free(s);
	return NULL;
}

int service_check_ready(const struct service *s, struct error *err)
{
	switch (teacher_state(s->teacher)) {
	case TEACHER_LOADING:
		return error_set(err, ERROR_UNAVAILABLE, NULL, "the teacher is loading");
	case TEACHER_FAILED:
		return error_set(err, ERROR_UNAVAILABLE, NULL, "the teacher failed; the server must be restarted");
	case TEACHER_READY:
		break;
	}
	if (atomic_load(&s->draining) || (s->options.stop_signal && atomic_load(s->options.stop_signal)))
		return error_set(err, ERROR_UNAVAILABLE, NULL, "the server is stopping");
	return 0;
}

static const struct queue_cost place = {.requests = 1};

int service_take_place(struct service *s, struct principal *principal, struct error *err)
{
	struct queue_cost held, places;
	bool shared = auth_held(principal, &held, &places);
	int r = service_check_ready(s, err);
	if (!r)
		r = queue_reserve(s->budget, &place, shared ? &held : NULL, err);
	if (r)
		return r;
	r = auth_check_quota(principal, err);
	if (r)
		service_give_place(s);
	return r;
}

void service_give_place(struct service *s)
{
	queue_release(s->budget, &place);
}

struct query_limits service_sizes_of(const struct architecture *a)
{
	return (struct query_limits){.vocab_size = a->vocab_size, .n_layers = a->n_layers, .width = a->width,
		.q_width = a->n_heads * a->head_size, .kv_width = a->n_kv_heads * a->head_size};
}

static struct query_limits limits_of(const struct service *s, const struct teacher_info *info)
{
	struct query_limits limits = service_sizes_of(&info->architecture);
	limits.max_tokens = info->max_tokens;
	limits.max_top_k = info->max_top_k;
	limits.max_gather = s->options.max_gather;
	limits.max_draws = s->options.max_draws;
	limits.max_spans = s->options.max_spans;
	return limits;
}

void service_limits(struct service *s, uint32_t teacher, struct query_limits *ret_limits, uint32_t *ret_max_sequences)
{
	uint32_t n;
	const struct teacher_info *info = &teacher_infos(s->teacher, &n)[teacher];
	pthread_rwlock_rdlock(&s->lock);
	*ret_limits = limits_of(s, info);
	*ret_max_sequences = s->options.max_sequences;
	pthread_rwlock_unlock(&s->lock);
}

uint32_t service_max_tokens(const struct service *s)
{
	uint32_t n, longest = 0;
	const struct teacher_info *infos = teacher_infos(s->teacher, &n);
	for (uint32_t i = 0; i < n; i++)
		longest = infos[i].max_tokens > longest ? infos[i].max_tokens : longest;
	return longest;
}

int service_choose(const struct service *s, struct request *r, struct error *err)
{
	uint32_t n;
	const struct teacher_info *infos = teacher_infos(s->teacher, &n);
	return choice_resolve(&r->asked, infos, n, &r->choice, err);
}

// A mixture reads no more than the shortest context of its members.
struct query_limits service_limits_of(const struct service *s, const struct choice *c)
{
	uint32_t n;
	const struct teacher_info *infos = teacher_infos(s->teacher, &n);
	struct query_limits limits = limits_of(s, &infos[c->members[0]]);
	for (uint32_t i = 1; i < c->n_members; i++)
		if (infos[c->members[i]].max_tokens < limits.max_tokens)
			limits.max_tokens = infos[c->members[i]].max_tokens;
	return limits;
}

// Every sequence gets its copy of the question, and every record holds one: a long question about many sequences must fit as that.
static int check_copies(const struct service *s, const struct request *r, struct error *err)
{
	uint64_t bytes = query_bytes(&r->query) * (uint64_t)r->n_items, limit = s->options.limits.bytes;
	return bytes <= limit ? 0 : error_set(err, ERROR_TOO_LARGE, "sequences", "the question for each of them makes %" PRIu64
					      " bytes, the limit is %" PRIu64, bytes, limit);
}

// All logits of a row are more than any k-max, unless they are over a few ids only.
static int check_dense(const struct request *r, struct error *err)
{
	uint32_t k = auth_k_max(r->principal);
	if (!k || !r->query.dense || (r->query.n_keep && r->query.n_keep <= k))
		return 0;
	return error_set(err, ERROR_FORBIDDEN, "dense", "the token allows %" PRIu32 " ids of a row", k);
}

static int check_item(struct request_item *item, const struct query_limits *limits, struct error *err)
{
	char prefix[32];
	snprintf(prefix, sizeof prefix, "sequences[%" PRIu32 "].", item->index);
	return query_resolve(&item->request->query, &item->part, &item->sequence, limits, prefix, &item->query, err);
}

static int check_items(const struct service *s, struct request *r, struct error *err)
{
	uint32_t max_sequences = s->options.max_sequences;
	int result = service_choose(s, r, err);
	if (result)
		return result;
	struct query_limits limits = service_limits_of(s, &r->choice);
	auth_limit(r->principal, &limits);
	if (r->choice.is_mixture && r->query.n_features)
		return error_set(err, ERROR_INVALID, "features", "a mixture has none of its own: ask a teacher by its name");
	if (!r->n_items)
		return error_set(err, ERROR_INVALID, "sequences", "there are none");
	if (r->n_items > max_sequences)
		return error_set(err, ERROR_TOO_LARGE, "sequences", "%" PRIu32 " sequences, the limit is %" PRIu32, r->n_items,
				 max_sequences);
	result = check_copies(s, r, err);
	if (!result)
		result = check_dense(r, err);
	for (uint32_t i = 0; i < r->n_items && result == 0; i++)
		result = check_item(&r->items[i], &limits, err);
	return result;
}

int service_reserve(struct service *s, struct request *r, const struct queue_cost *cost, struct error *err)
{
	struct queue_cost held, places;
	bool shared = auth_held(r->principal, &held, &places);
	int result = queue_reserve(s->budget, cost, shared ? &held : NULL, err);
	if (result)
		return result;
	result = auth_begin(r->principal, cost, err);
	if (result) {
		queue_release(s->budget, cost);
		return result;
	}
	r->cost = *cost;
	r->principal = principal_ref(r->principal);
	return 0;
}

void service_release(struct service *s, struct request *r, uint64_t n_used)
{
	if (!r->cost.requests)
		return;
	queue_release(s->budget, &r->cost);
	auth_end(r->principal, &r->cost, n_used);
	r->cost = (struct queue_cost){0};
	r->principal = principal_unref(r->principal);
}

int service_refuse(struct service *s, const struct request *r, int result, const struct error *err)
{
	atomic_fetch_add(&s->doors[r->door].rejected, 1);
	atomic_fetch_add(&s->rejected_by_code[err->code], 1);
	return result;
}

// The largest the answers can become is reserved before any work: nothing a request asks for can grow the process past its budget.
static int reserve(struct service *s, struct request *r, struct error *err)
{
	struct query_limits limits = service_limits_of(s, &r->choice);
	struct queue_cost cost = {.requests = 1};
	uint64_t largest = 0;
	for (uint32_t i = 0; i < r->n_items; i++) {
		uint32_t n_tokens = r->items[i].sequence.n_tokens;
		cost.tokens += n_tokens;
		struct query wide = r->items[i].query;               // a view
		wide.feature_values = QUERY_FEATURE_F32;             // as the engine holds features until the sequence is answered
		cost.bytes = size_plus(cost.bytes, record_max_bytes(&wide, n_tokens, &limits));
		wide.n_temperatures += r->query.n_temperatures;      // text has them as they were asked, repeated ones too
		uint64_t text = reply_max_bytes(&wide, n_tokens, &limits, r->text);
		largest = text > largest ? text : largest;
	}
	r->text_bytes = size_plus(r->shown_bytes, largest);
	cost.bytes = size_plus(cost.bytes, r->text_bytes);
	return service_reserve(s, r, &cost, err);
}

static void store_done(void *arg, const struct error *err)
{
	struct request_item *item = arg;
	if (err)
		item->error = *err;
	item->request->complete(item);
}

// Keeps the item's record where that is wanted. True when the store will complete the item (once it is durable).
static bool keep(struct service *s, struct request_item *item)
{
	struct error err = {0};
	bool durable = item->request->durable;
	if (!s->store || item->request->no_store)
		return false;
	if (item->not_finite) {
		if (durable)
			error_set(&item->error, ERROR_NOT_FINITE, NULL, "the teacher gave NaN or infinity: such an answer is not kept");
		return false;
	}
	if (store_append(s->store, item->record, durable ? STORE_DURABLE : STORE_NONE, durable ? store_done : NULL, item, &err) == 0)
		return durable;
	atomic_fetch_add(&s->n_unkept, 1);
	if (durable)
		item->error = err;
	return false;
}

// The engine's: an item was computed, or dropped, or failed.
static void item_computed(struct request_item *item)
{
	struct service *s = item->request->service;
	if (!item->error.code) {
		atomic_fetch_add(&s->n_computed, 1);
		if (atomic_load(&item->request->cancelled))
			atomic_fetch_add(&s->n_wasted, 1);
		if (keep(s, item))
			return;
	}
	item->request->complete(item);
}

static void look_in_store(struct service *s, struct request_item *item)
{
	if (!s->store || item->request->no_store)
		return;
	struct store_question q = {&item->request->choice.fingerprint, &item->sequence, &item->query};
	// A damaged record (-EBADMSG) is counted by the store and simply computed anew.
	if (store_answer(s->store, &q, &item->record, NULL) == 0) {
		item->cached = true;
		atomic_fetch_add(&s->n_cached, 1);
	}
}

// Hits complete here, misses go to the engine as one chain (so that they can share a pass). After the last hand-over the request may
// already be gone: it is kept alive only by items not handed over yet.
static void dispatch(struct service *s, struct request *r)
{
	struct queue_item *first = NULL, **end = &first;
	uint32_t n_items = r->n_items;
	struct request_item *items = r->items;
	for (uint32_t i = 0; i < n_items; i++)
		look_in_store(s, &items[i]);
	for (uint32_t i = 0; i < n_items; i++) {
		if (items[i].cached)
			continue;
		*end = &items[i].link;
		end = &items[i].link.next;
	}
	for (uint32_t i = 0; i < n_items; i++)
		if (items[i].cached && !(r->durable && keep(s, &items[i])))
			r->complete(&items[i]);
	if (first)
		teacher_submit(s->teacher, (struct request_item *)first);
}

// By the settings of one moment.
static int admit(struct service *s, struct request *r, struct error *err)
{
	pthread_rwlock_rdlock(&s->lock);
	int result = check_items(s, r, err);
	if (!result && r->durable && !s->store)
		result = error_set(err, ERROR_INVALID, "durable", "this server keeps no answers (no store is set)");
	if (!result && r->durable && r->no_store)
		result = error_set(err, ERROR_INVALID, "durable", "an answer that is not stored cannot be durable");
	if (!result)
		result = reserve(s, r, err);
	pthread_rwlock_unlock(&s->lock);
	return result;
}

int service_score(struct service *s, struct request *r, struct error *err)
{
	atomic_fetch_add(&s->doors[r->door].accepted, 1);
	r->accepted_seconds = clock_seconds();
	int result = auth_permit(r->principal, BEARER_SCORE, err);
	if (!result)
		result = service_check_ready(s, err);
	if (!result)
		result = admit(s, r, err);
	if (result)
		return service_refuse(s, r, result, err);
	r->service = s;
	r->computed = item_computed;
	dispatch(s, r);
	return 0;
}

void service_reject(struct service *s, enum request_door door, enum error_code code)
{
	atomic_fetch_add(&s->doors[door].accepted, 1);
	atomic_fetch_add(&s->doors[door].rejected, 1);
	atomic_fetch_add(&s->rejected_by_code[code], 1);
}

static void count_outcome(struct service *s, const struct request *r)
{
	struct door_counts *door = &s->doors[r->door];
	enum error_code code = r->fault;
	for (uint32_t i = 0; i < r->n_items && !code; i++)
		code = r->items[i].error.code;
	if (!r->fault && atomic_load(&r->cancelled)) {
		atomic_fetch_add(&door->cancelled, 1);
	} else if (code) {
		atomic_fetch_add(&door->rejected, 1);
		atomic_fetch_add(&s->rejected_by_code[code], 1);
	} else {
		atomic_fetch_add(&door->answered, 1);
	}
}

void service_finish(struct service *s, struct request *r)
{
	count_outcome(s, r);
	service_count_served(s, r);
	histogram_append(&s->request_seconds, clock_seconds() - r->accepted_seconds);
	service_release(s, r, r->generate ? service_generated(r) : r->cost.tokens);
	request_free(r);
}

void service_drain(struct service *s)
{
	atomic_store(&s->draining, true);
}

// The ends are read before the beginnings, and what is under way is their difference: so the account is exact at any moment.
void service_stats(struct service *s, struct service_stats *ret_stats)
{
	uint64_t waiting;
	struct service_stats t = {0};
	pthread_rwlock_rdlock(&s->lock);
	t.limits = s->options.limits;
	t.held_limit = s->options.doors.door_bytes;
	pthread_rwlock_unlock(&s->lock);
	for (int i = 0; i < N_REQUEST_DOORS; i++) {
		t.doors[i].answered = atomic_load(&s->doors[i].answered);
		t.doors[i].rejected = atomic_load(&s->doors[i].rejected);
		t.doors[i].cancelled = atomic_load(&s->doors[i].cancelled);
		t.doors[i].accepted = atomic_load(&s->doors[i].accepted);
		t.doors[i].in_flight = t.doors[i].accepted - t.doors[i].answered - t.doors[i].rejected - t.doors[i].cancelled;
	}
	for (int i = 0; i < N_ERROR_CODES; i++)
		t.rejected_by_code[i] = atomic_load(&s->rejected_by_code[i]);
	t.n_cached = atomic_load(&s->n_cached);
	t.n_computed = atomic_load(&s->n_computed);
	t.n_wasted = atomic_load(&s->n_wasted);
	t.n_unkept = atomic_load(&s->n_unkept);
	t.held_bytes = atomic_load(&s->held_bytes);
	queue_usage(s->budget, &t.reserved, &waiting);
	*ret_stats = t;
}

struct histogram *service_request_seconds(struct service *s)
{
	return &s->request_seconds;
}

struct histogram *service_encode_seconds(struct service *s)
{
	return &s->encode_seconds;
}

double service_uptime(const struct service *s)
{
	return clock_seconds() - s->opened_seconds;
}
