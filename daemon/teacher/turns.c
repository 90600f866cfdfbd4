// SPDX-License-Identifier: Apache-2.0
#include "daemon/teacher/turns.h"

#include <stddef.h>
#include <string.h>

#include "daemon/teacher/batch.h"

// The lane of whoever asks; a new one takes that of somebody who has nothing waiting. busy: lanes that are known to have something.
static uint32_t lane_of(struct turns *t, const void *who, bool busy[TURNS_LANES])
{
	uint32_t lane = 0, unused = TURNS_LANES;
	while (lane < TURNS_LANES && t->who[lane] != who) {
		if (unused == TURNS_LANES && !t->waits[lane] && !busy[lane])
			unused = lane;
		lane++;
	}
	if (lane == TURNS_LANES && unused < TURNS_LANES) {
		lane = unused;
		t->who[lane] = who;
		t->served[lane] = t->now;
	}
	lane = lane < TURNS_LANES ? lane : 0;
	busy[lane] = true;
	return lane;
}

// Who comes back has no claim on the time it was away.
static void note_waiting(struct turns *t, const bool busy[TURNS_LANES])
{
	for (uint32_t i = 0; i < TURNS_LANES; i++) {
		if (busy[i] && !t->waits[i] && t->served[i] < t->now)
			t->served[i] = t->now;
		t->waits[i] = busy[i];
	}
}

static bool is_alone(const struct batch_backlog *backlog)
{
	const struct request_item *first = (const struct request_item *)backlog->first;
	for (const struct queue_item *at = backlog->first; at; at = at->next)
		if (((const struct request_item *)at)->request->principal != first->request->principal)
			return false;
	return true;
}

static void share_out(struct turns *t, struct batch_backlog *backlog, struct batch_backlog lanes[TURNS_LANES])
{
	bool busy[TURNS_LANES] = {false};
	const void *last = NULL;
	uint32_t lane = TURNS_LANES;
	for (uint32_t i = 0; i < TURNS_LANES; i++)
		batch_backlog_init(&lanes[i]);
	for (struct queue_item *item; (item = batch_backlog_pop(backlog));) {
		const void *who = ((struct request_item *)item)->request->principal;
		if (lane == TURNS_LANES || who != last)
			lane = lane_of(t, who, busy);
		last = who;
		batch_backlog_append(&lanes[lane], item);
	}
	note_waiting(t, busy);
}

// The lane with something left that was served least; TURNS_LANES = none.
static uint32_t least_served(const struct batch_backlog lanes[TURNS_LANES], const uint64_t served[TURNS_LANES])
{
	uint32_t best = TURNS_LANES;
	for (uint32_t i = 0; i < TURNS_LANES; i++)
		if (lanes[i].first && (best == TURNS_LANES || served[i] < served[best]))
			best = i;
	return best;
}

static void stay_alone(struct turns *t, const struct batch_backlog *backlog)
{
	bool busy[TURNS_LANES] = {false};
	uint32_t lane = lane_of(t, ((const struct request_item *)backlog->first)->request->principal, busy);
	note_waiting(t, busy);
	t->now = t->served[lane];
}

static void take_turns(struct turns *t, struct batch_backlog *backlog, uint64_t enough)
{
	struct batch_backlog lanes[TURNS_LANES];
	uint64_t served[TURNS_LANES], total = 0;
	share_out(t, backlog, lanes);
	memcpy(served, t->served, sizeof served);
	uint32_t next = least_served(lanes, served);
	t->now = t->served[next];
	for (; next < TURNS_LANES && total < enough; next = least_served(lanes, served)) {
		struct queue_item *item = batch_backlog_pop(&lanes[next]);
		uint32_t n = ((struct request_item *)item)->sequence.n_tokens;
		batch_backlog_append(backlog, item);
		served[next] += n;
		total += n;
	}
	for (uint32_t i = 0; i < TURNS_LANES; i++)
		for (struct queue_item *item; (item = batch_backlog_pop(&lanes[i]));)
			batch_backlog_append(backlog, item);
}

void turns_order(struct turns *t, struct batch_backlog *backlog, uint64_t enough)
{
	if (backlog->first && is_alone(backlog))
		stay_alone(t, backlog);
	else if (backlog->first)
		take_turns(t, backlog, enough);
}

void turns_charge(struct turns *t, const struct batch *b)
{
	for (uint32_t i = 0; i < b->n_items; i++) {
		const struct request_item *item = b->items[i].item;
		uint32_t lane = 0;
		while (lane < TURNS_LANES && t->who[lane] != item->request->principal)
			lane++;
		t->served[lane < TURNS_LANES ? lane : 0] += item->sequence.n_tokens;
	}
}
