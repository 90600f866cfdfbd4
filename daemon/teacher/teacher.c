// SPDX-License-Identifier: Apache-2.0
// The engine thread and its loop. Loading is teacher_load.c; what a pass is and does is pass.c.
#include "daemon/teacher/teacher_internal.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/error.h"
#include "common/provenance.h"
#include "daemon/clock.h"
#include "daemon/model/cache.h"
#include "daemon/model/tokenizer.h"
#include "daemon/teacher/batch.h"
#include "daemon/teacher/generator.h"
#include "daemon/teacher/member.h"
#include "daemon/teacher/pass.h"
#include "daemon/teacher/schedule.h"
#include "daemon/teacher/shelf.h"
#include "kernels/backend.h"

#define CANARY_PATIENCE 3            // intervals for which the known question makes way for clients
#define CANARY_LOOK_MS 1000          // how often it is looked whether they are gone

static void set_state(struct teacher *t, enum teacher_state state)
{
	const uint64_t one = 1;
	atomic_store(&t->state, state);
	if (t->options.event_fd >= 0 && write(t->options.event_fd, &one, sizeof one) < 0)
		return;    // EAGAIN: the reader is awake already
}

// A device failure is final: what a poisoned device computes looks like an answer and is not one.
void teacher_poison(struct teacher *t, const struct error *why)
{
	if (atomic_load(&t->state) == TEACHER_FAILED)
		return;
	t->error = *why;
	set_state(t, TEACHER_FAILED);
}

// Work nobody waits for any more is not done: true with the reason in item->error.
static bool is_over(void *arg, struct request_item *item)
{
	struct teacher *t = arg;
	const struct request *r = item->request;
	if (atomic_load(&t->state) == TEACHER_FAILED)
		error_set(&item->error, ERROR_UNAVAILABLE, NULL, "the teacher failed; the server must be restarted");
	else if (atomic_load(&r->cancelled))
		error_set(&item->error, ERROR_CANCELLED, NULL, "the client left");
	else if (r->deadline_ms && clock_ms() > r->deadline_ms)
		error_set(&item->error, ERROR_DEADLINE, NULL, "the deadline passed before the teacher came to %s", item->generation ? "its end" : "it");
	else
		return false;
	atomic_fetch_add(&t->n_dropped, 1);
	return true;
}

struct schedule *teacher_schedule(struct teacher *t, uint32_t i)
{
	return i < t->n_members ? &t->members[i].schedule : &t->mixtures;
}

static bool is_idle(struct teacher *t)
{
	for (uint32_t i = 0; i <= t->n_members; i++)
		if (!schedule_is_idle(teacher_schedule(t, i)))
			return false;
	return true;
}

static void take_in(struct teacher *t, struct request_item *item)
{
	const struct choice *c = &item->request->choice;
	struct schedule *s = teacher_schedule(t, c->is_mixture ? t->n_members : c->members[0]);
	if (is_over(t, item))
		item->request->computed(item);
	else if (item->generation)
		generator_submit(s->generator, item);
	else
		batch_backlog_append(&s->scores, &item->link);
}

void teacher_count_slots(struct teacher *t)
{
	uint64_t n_used = 0, n_idle = 0;
	for (uint32_t i = 0; i < t->n_members; i++) {
		if (!t->members[i].schedule.cache)
			continue;
		struct cache_usage u = cache_usage(t->members[i].schedule.cache);
		n_used += u.n_used;
		n_idle += u.n_idle;
	}
	atomic_store(&t->n_slots_used, n_used);
	atomic_store(&t->n_slots_idle, n_idle);
}

void teacher_count_memory(struct teacher *t)
{
	atomic_store(&t->n_late_allocations, t->backend->n_allocations - t->n_allocations);
	atomic_store(&t->memory_bytes, t->backend->memory_bytes);
	if (t->shelf) {
		struct shelf_stats s;
		shelf_stats(t->shelf, &s);
		atomic_store(&t->n_streamed, s.read_bytes);
	}
}

static void drop_dead(struct teacher *t, struct schedule *s)
{
	struct batch_backlog alive;
	if (s->generator)
		generator_drop(s->generator, is_over, t);
	batch_backlog_init(&alive);
	for (struct queue_item *old; (old = batch_backlog_pop(&s->scores));)
		batch_backlog_append(&alive, old);
	for (struct queue_item *old; (old = batch_backlog_pop(&alive));)
		take_in(t, (struct request_item *)old);
}

// Takes in what waits, and drops what is over. False when there is nothing left to do, ever.
static bool collect(struct teacher *t)
{
	struct queue_item *item = NULL;
	if (t->under_way && !(item = queue_pop(t->queue, false)) && is_idle(t))
		pass_complete(t);    // nothing comes behind it
	for (; !item && !(item = queue_pop(t->queue, is_idle(t))) && is_idle(t); __atomic_fetch_add(&t->beats, 1, __ATOMIC_RELAXED))    // poked: alive
		if (queue_is_stopped(t->queue))
			return false;
	for (uint32_t i = 0; i <= t->n_members; i++)
		drop_dead(t, teacher_schedule(t, i));
	for (; item; item = queue_pop(t->queue, false))
		take_in(t, (struct request_item *)item);
	teacher_count_slots(t);
	return true;
}

static void *engine(void *arg)
{
	struct teacher *t = arg;
	struct error err = {0};
	pthread_setname_np(pthread_self(), "engine");
	if (teacher_load(t, &err) || canary_start(t, &t->canary, &err)) {
		teacher_poison(t, &err);
	} else {
		t->n_allocations = t->backend->n_allocations;
		teacher_count_memory(t);
		set_state(t, TEACHER_READY);
	}
	while (collect(t)) {
		if (is_idle(t))    // all of it was over
			continue;
		pass_start(t);
		// Where the device computes meanwhile, the next pass is given to it before the last answers of this one are read.
		if (!t->backend->ops->asynchronous)
			pass_complete(t);
	}
	teacher_unload(t);
	return NULL;
}

struct teacher *teacher_free(struct teacher *t)
{
	if (!t)
		return NULL;
	canary_free(t->canary);
	for (uint32_t i = 0; i < t->n_members; i++) {
		if (t->members)
			member_close(&t->members[i]);
		if (t->sources)
			free((char *)t->sources[i].path);
	}
	tokenizer_close(t->tokenizer);
	queue_close(t->queue);
	free(t->members);
	free(t->sources);
	free(t->infos);
	free(t->device);
	free(t);
	return NULL;
}

static int prepare(struct teacher *t, const struct teacher_options *options)
{
	t->options = *options;
	t->n_members = t->turn = options->n_sources;
	t->members = calloc(t->n_members, sizeof *t->members);
	t->sources = calloc(t->n_members, sizeof *t->sources);
	t->infos = calloc(t->n_members, sizeof *t->infos);
	if (!t->members || !t->sources || !t->infos || !(t->device = strdup(options->device)) || queue_open(NULL, -1, &t->queue))
		return -ENOMEM;
	for (uint32_t i = 0; i < t->n_members; i++) {
		t->sources[i] = options->sources[i];
		t->sources[i].path = strdup(options->sources[i].path);
		if (!t->sources[i].path)
			return -ENOMEM;
		batch_backlog_init(&t->members[i].schedule.scores);
	}
	t->mixtures = (struct schedule){.batch_tokens = options->batch_tokens};
	batch_backlog_init(&t->mixtures.scores);
	return 0;
}

int teacher_new(const struct teacher_options *options, struct teacher **ret_teacher, struct error *err)
{
	struct teacher *t = calloc(1, sizeof *t);
	if (!t || prepare(t, options)) {
		teacher_free(t);
		return error_set(err, ERROR_MEMORY, NULL, "no memory for the teacher");
	}
	*ret_teacher = t;
	return 0;
}

int teacher_open(const struct teacher_options *options, struct teacher **ret_teacher, struct error *err)
{
	struct teacher *t;
	int r = teacher_new(options, &t, err);
	if (r)
		return r;
	r = pthread_create(&t->thread, NULL, engine, t);
	if (r) {
		teacher_free(t);
		return error_system(err, r, NULL, "cannot start the engine thread");
	}
	*ret_teacher = t;
	return 0;
}

void teacher_close(struct teacher *t)
{
	if (!t)
		return;
	queue_stop(t->queue);
	pthread_join(t->thread, NULL);
	teacher_free(t);
}

enum teacher_state teacher_state(const struct teacher *t)
{
	return atomic_load(&t->state);
}

void teacher_error(const struct teacher *t, struct error *ret_error)
{
	*ret_error = t->error;
}

void teacher_submit(struct teacher *t, struct request_item *chain)
{
	queue_push(t->queue, &chain->link);
}

int teacher_check(struct teacher *t)
{
	struct queue_cost reserved;
	uint64_t waiting, interval = t->canary_interval_ms, asked = atomic_load(&t->canary_asked_ms), now = clock_ms();
	if (!interval || atomic_load(&t->state) != TEACHER_READY)
		return -1;
	if (!asked)
		atomic_store(&t->canary_asked_ms, asked = now);    // at start, that is
	if (now - asked < interval)
		return (int)(interval - (now - asked));
	queue_usage(t->queue, &reserved, &waiting);
	bool busy = waiting || atomic_load(&t->n_under_way);
	if (busy && now - asked < CANARY_PATIENCE * interval)
		return (int)(interval < CANARY_LOOK_MS ? interval : CANARY_LOOK_MS);
	atomic_store(&t->canary_asked_ms, now);
	canary_submit(t->canary);
	return (int)interval;
}

void teacher_set_canary_interval(struct teacher *t, uint64_t ms)
{
	t->canary_interval_ms = ms;
}

void teacher_stats(struct teacher *t, struct teacher_stats *ret_stats)
{
	struct queue_cost reserved;
	*ret_stats = (struct teacher_stats){
		.n_passes = atomic_load(&t->n_passes),
		.n_mixed_passes = atomic_load(&t->n_mixed),
		.n_sequences = atomic_load(&t->n_sequences),
		.n_positions = atomic_load(&t->n_positions),
		.n_rows = atomic_load(&t->n_rows),
		.n_dropped = atomic_load(&t->n_dropped),
		.n_not_finite = atomic_load(&t->n_not_finite),
		.n_shared = atomic_load(&t->n_shared),
		.n_slots_used = atomic_load(&t->n_slots_used),
		.n_slots_idle = atomic_load(&t->n_slots_idle),
		.n_late_allocations = atomic_load(&t->n_late_allocations),
		.memory_bytes = atomic_load(&t->memory_bytes),
		.streamed_bytes = atomic_load(&t->n_streamed),
	};
	for (uint32_t i = 0; i < t->n_members; i++) {
		struct generator_counters *g = &t->members[i].generated;
		ret_stats->n_generated += atomic_load(&g->n_tokens);
		ret_stats->n_reused += atomic_load(&g->n_reused);
		ret_stats->n_generating += atomic_load(&g->n_active) + atomic_load(&g->n_waiting);
	}
	for (uint32_t i = 0; i < t->n_members && atomic_load(&t->state) != TEACHER_LOADING; i++)
		ret_stats->n_slots += t->infos[i].architecture.masked ? 0 : t->options.cache_tokens;
	if (atomic_load(&t->state) == TEACHER_READY) {
		struct canary_stats c;
		canary_stats(t->canary, &c);
		ret_stats->n_canaries = c.n_right;
		ret_stats->canary_age_ms = c.age_ms;
	}
	queue_usage(t->queue, &reserved, &ret_stats->n_waiting);
}

uint64_t teacher_beats(struct teacher *t)
{
	uint64_t n = __atomic_load_n(&t->beats, __ATOMIC_RELAXED);
	queue_poke(t->queue);
	return n;
}

struct teacher_seconds *teacher_seconds(struct teacher *t)
{
	return &t->seconds;
}
