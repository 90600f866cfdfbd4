// SPDX-License-Identifier: Apache-2.0
// What is computed next, for whom, and where the answers go. The answers themselves are made in answer.c.
#include "daemon/teacher/pass.h"

#include "common/error.h"
#include "daemon/clock.h"
#include "daemon/model/forward.h"
#include "daemon/teacher/answer.h"
#include "daemon/teacher/batch.h"
#include "daemon/teacher/canary.h"
#include "daemon/teacher/generator.h"
#include "daemon/teacher/member.h"
#include "daemon/teacher/schedule.h"
#include "daemon/teacher/teacher_internal.h"
#include "kernels/backend.h"

static void give_back(struct request_item *item, enum error_code code, const char *message)
{
	if (code)
		error_set(&item->error, code, NULL, "%s", message);
	item->request->computed(item);
}

// The engine's time since the last call.
static double lap(struct teacher *t)
{
	double now = clock_seconds(), seconds = now - t->lap_began;
	t->lap_began = now;
	return seconds;
}

static void count_pass(struct teacher *t, const struct pass *p)
{
	const struct batch *b = p->batch;
	if (p->unseen)
		return;
	atomic_fetch_add(&t->n_passes, 1);
	atomic_fetch_add(&t->n_mixed, batch_is_mixed(b));
	atomic_fetch_add(&t->n_sequences, b->n_items + b->n_generated);
	atomic_fetch_add(&t->n_positions, b->n_rows);
	atomic_fetch_add(&t->n_shared, b->n_shared);
	histogram_append(&t->seconds.forward, p->forward_seconds);
}

static void count_waits(struct teacher *t, const struct pass *p)
{
	const struct batch *b = p->batch;
	double now = clock_seconds();
	for (uint32_t i = 0; i < b->n_items; i++)
		if (b->items[i].item->request->accepted_seconds > 0)       // 0: the canary's
			histogram_append(&t->seconds.queue, now - b->items[i].item->request->accepted_seconds);
}

// ---- answers

static void begin_answers(struct teacher *t, const struct pass *p)
{
	// What the items of a pass have in common.
	struct answer_input in = {.choice = &p->choice, .members = p->members,
				  .after = !t->infos[p->choice.members[0]].architecture.masked};
	if (!p->r)
		answer_begin(t->answer, &in, p->batch);
}

// The next item, which is item `index`.
static int answer_one(struct teacher *t, const struct pass *p, uint32_t index, struct error *err)
{
	struct request_item *item = p->batch->items[index].item;
	struct answer_counts counts;
	(void)answer_make(t->answer, &counts);    // an error is the item's own
	__atomic_fetch_add(&t->beats, 1, __ATOMIC_RELAXED);
	int device = backend_check(t->backend, err);
	if (device) {
		item->record = record_unref(item->record);
		return device;
	}
	if (!p->unseen) {
		atomic_fetch_add(&t->n_rows, counts.n_rows);
		atomic_fetch_add(&t->n_not_finite, counts.n_not_finite);
	}
	return 0;
}

// The teacher may have failed by an answer that was given before: the canary's.
static void look_at_state(struct teacher *t, struct pass *p)
{
	if (!p->r && atomic_load(&t->state) == TEACHER_FAILED)
		p->r = error_set(&p->error, t->error.code, t->error.field, "%s", t->error.message);
	if (p->r)
		teacher_poison(t, &p->error);
}

static void answer_next(struct teacher *t, struct pass *p)
{
	uint32_t i = p->n_answered++;
	if (!p->r)
		p->r = answer_one(t, p, i, &p->error);
	look_at_state(t, p);
	give_back(p->batch->items[i].item, p->r ? ERROR_UNAVAILABLE : ERROR_NONE, "the teacher failed; the server must be restarted");
}

// Up to the last answer, whose rows the device then has.
static void answer_most(struct teacher *t, struct pass *p)
{
	// The first rows lie behind the trunk, so that the device goes on while the host wakes up; but for tokens, which are chosen first.
	bool ahead = t->backend->ops->asynchronous && !p->generates;
	if (ahead)
		begin_answers(t, p);
	t->backend->ops->wait(t->backend);
	p->forward_seconds += lap(t);
	if (!p->r)
		p->r = backend_check(t->backend, &p->error);
	count_pass(t, p);      // before the answers go out: who sees an answer must find it in the metrics
	look_at_state(t, p);
	if (p->generates && !p->r) {
		p->r = generator_take(p->schedule->generator, p->members[0].hidden, &p->error);
		look_at_state(t, p);   // if it failed, generations are dropped before the next pass
	}
	if (!ahead)
		begin_answers(t, p);
	while (p->n_answered + 1 < p->batch->n_items)
		answer_next(t, p);
	if (p->batch->n_items && !p->r)
		answer_ask_last(t->answer);
	answer_unwatch(t->answer);
	p->epilogue_seconds = lap(t);
}

void pass_complete(struct teacher *t)
{
	struct pass *p = t->under_way;
	if (!p)
		return;
	t->under_way = NULL;
	lap(t);
	while (p->n_answered < p->batch->n_items)
		answer_next(t, p);
	answer_end(t->answer);
	p->epilogue_seconds += lap(t);
	if (!p->unseen)
		histogram_append(&t->seconds.epilogue, p->epilogue_seconds);
	teacher_count_slots(t);
	teacher_count_memory(t);
	atomic_fetch_sub(&t->n_under_way, 1);
	__atomic_fetch_add(&t->beats, 1, __ATOMIC_RELAXED);
}

// ---- the trunk

// The pass before this one comes to its end.
static void make_way(struct teacher *t, struct pass *p)
{
	p->forward_seconds += lap(t);
	pass_complete(t);
}

// Every member reads the same rows; a mixture has no features, so only a member alone is watched.
static int forward_all(struct teacher *t, struct pass *p, struct error *err)
{
	const struct choice *c = &p->choice;
	struct layout layout;
	int r = batch_seal(p->batch, p->schedule->cache, &layout, err);
	for (uint32_t i = 0; i < c->n_members && !r; i++) {
		struct member *m = &t->members[c->members[i]];
		bool watched = !c->is_mixture && answer_watch(t->answer, &m->info->architecture, m->activations, p->batch);
		if (watched || m->info->architecture.n_experts)      // the host waits on the way: no answer is to wait for that
			make_way(t, p);
		p->members[i] = (struct head_member){m->head, forward(m->weights, m->activations, &layout), c->weights[i]};
		r = backend_check(t->backend, err);
	}
	t->backend->ops->mark(t->backend);
	batch_unseal(p->batch, p->schedule->cache);
	return r;
}

// ---- what it holds

static void append_all(struct batch_backlog *to, struct batch_backlog *from)
{
	for (struct queue_item *item; (item = batch_backlog_pop(from));)
		batch_backlog_append(to, item);
}

// The oldest score's mixture, with all that ask the same of it. Those that do not fit go behind the other mixtures.
static void fill_mixture(struct teacher *t, struct pass *p)
{
	struct batch_backlog all = t->mixtures.scores, others;
	struct request_item *item = (struct request_item *)all.first;
	p->choice = item->request->choice;
	batch_backlog_init(&others);
	batch_backlog_init(&t->mixtures.scores);
	while ((item = (struct request_item *)batch_backlog_pop(&all)))
		batch_backlog_append(choice_equal(&item->request->choice, &p->choice) ? &t->mixtures.scores : &others, &item->link);
	p->generates = schedule_fill(&t->mixtures, p->batch);
	append_all(&others, &t->mixtures.scores);
	batch_backlog_init(&t->mixtures.scores);
	append_all(&t->mixtures.scores, &others);
}

// Members and mixtures that have work take turns.
static void choose(struct teacher *t, struct pass *p)
{
	double began = clock_seconds();
	do
		t->turn = t->turn < t->n_members ? t->turn + 1 : 0;
	while (schedule_is_idle(teacher_schedule(t, t->turn)));
	*p = (struct pass){.batch = p->batch, .schedule = teacher_schedule(t, t->turn)};
	if (t->turn == t->n_members) {
		fill_mixture(t, p);
	} else {
		p->choice = (struct choice){.n_members = 1, .members = {t->turn}, .fingerprint = t->infos[t->turn].fingerprint};
		p->generates = schedule_fill(p->schedule, p->batch);
	}
	p->unseen = canary_is_alone(t->canary, p->batch);
	if (!p->unseen)
		histogram_append(&t->seconds.batch, clock_seconds() - began);
}

void pass_start(struct teacher *t)
{
	struct pass *p = &t->passes[t->under_way == &t->passes[0]];
	choose(t, p);
	count_waits(t, p);
	atomic_fetch_add(&t->n_under_way, 1);
	lap(t);
	p->r = forward_all(t, p, &p->error);
	make_way(t, p);
	t->under_way = p;
	answer_most(t, p);
}

void pass_run(struct teacher *t)
{
	pass_start(t);
	pass_complete(t);
}
