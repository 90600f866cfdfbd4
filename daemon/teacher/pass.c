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

static void count_pass(struct teacher *t, const struct pass *p, double seconds)
{
	const struct batch *b = p->batch;
	atomic_fetch_add(&t->n_passes, 1);
	atomic_fetch_add(&t->n_mixed, batch_is_mixed(b));
	atomic_fetch_add(&t->n_sequences, b->n_items + b->n_generated);
	atomic_fetch_add(&t->n_positions, b->n_rows);
	atomic_fetch_add(&t->n_shared, b->n_shared);
	histogram_append(&t->seconds.forward, seconds);
}

// What the items of a pass have in common.
static struct answer_input input_of(const struct teacher *t, const struct pass *p)
{
	return (struct answer_input){.choice = &p->choice, .members = p->members,
				     .after = !t->infos[p->choice.members[0]].architecture.masked};
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

static int answer_scores(struct teacher *t, const struct pass *p, int r, struct error *err)
{
	const struct batch *b = p->batch;
	struct answer_input in = input_of(t, p);
	if (r == 0)
		answer_begin(t->answer, &in, b);
	for (uint32_t i = 0; i < b->n_items; i++) {
		if (r == 0)
			r = answer_one(t, p, i, err);
		if (r == 0 && atomic_load(&t->state) == TEACHER_FAILED)    // an item before this one was the canary
			r = error_set(err, t->error.code, t->error.field, "%s", t->error.message);
		if (r)
			teacher_poison(t, err);
		give_back(b->items[i].item, r ? ERROR_UNAVAILABLE : ERROR_NONE, "the teacher failed; the server must be restarted");
	}
	answer_end(t->answer);
	return r;
}

// Every member reads the same rows; a mixture has no features, so only a member alone is watched.
static int forward_all(struct teacher *t, struct pass *p, struct error *err)
{
	const struct choice *c = &p->choice;
	struct layout layout;
	int r = batch_seal(p->batch, p->schedule->cache, &layout, err);
	for (uint32_t i = 0; i < c->n_members && !r; i++) {
		struct member *m = &t->members[c->members[i]];
		if (!c->is_mixture)
			answer_watch(t->answer, &m->info->architecture, m->activations, p->batch);
		p->members[i] = (struct head_member){m->head, forward(m->weights, m->activations, &layout), c->weights[i]};
		r = backend_sync(t->backend, err);
	}
	batch_unseal(p->batch, p->schedule->cache);
	return r;
}

static void count_waits(struct teacher *t, const struct pass *p, double now)
{
	const struct batch *b = p->batch;
	for (uint32_t i = 0; i < b->n_items; i++)
		if (b->items[i].item->request->accepted_seconds > 0)       // 0: the canary's
			histogram_append(&t->seconds.queue, now - b->items[i].item->request->accepted_seconds);
}

static void run_pass(struct teacher *t, struct pass *p)
{
	struct error err = {0};
	double began = clock_seconds();
	p->unseen = canary_is_alone(t->canary, p->batch);
	count_waits(t, p, began);
	atomic_store(&t->is_busy, true);
	int r = forward_all(t, p, &err);
	// Counted before the answers go out: who sees an answer must find it in the metrics.
	double forwarded = clock_seconds();
	if (!p->unseen)
		count_pass(t, p, forwarded - began);
	if (r == 0 && p->generates)
		r = generator_take(p->schedule->generator, p->members[0].hidden, &err);
	r = answer_scores(t, p, r, &err);
	if (!p->unseen)
		histogram_append(&t->seconds.epilogue, clock_seconds() - forwarded);
	if (r)
		teacher_poison(t, &err);    // generations are dropped before the next pass
	answer_unwatch(t->answer);
	teacher_count_slots(t);
	teacher_count_memory(t);
	atomic_store(&t->is_busy, false);
}

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
void pass_run(struct teacher *t)
{
	do
		t->turn = t->turn < t->n_members ? t->turn + 1 : 0;
	while (schedule_is_idle(teacher_schedule(t, t->turn)));
	struct pass *p = &t->pass;
	double began = clock_seconds();
	p->schedule = teacher_schedule(t, t->turn);
	if (t->turn == t->n_members) {
		fill_mixture(t, p);
	} else {
		p->choice = (struct choice){.n_members = 1, .members = {t->turn}, .fingerprint = t->infos[t->turn].fingerprint};
		p->generates = schedule_fill(p->schedule, p->batch);
	}
	if (!canary_is_alone(t->canary, p->batch))
		histogram_append(&t->seconds.batch, clock_seconds() - began);
	run_pass(t, p);
}
