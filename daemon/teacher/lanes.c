// SPDX-License-Identifier: Apache-2.0
#include "daemon/teacher/lanes.h"

#include <stddef.h>

void lanes_init(struct lanes *l)
{
	*l = (struct lanes){0};
	for (uint32_t i = 0; i < LANES; i++)
		batch_backlog_init(&l->waiting[i]);
}

static bool is_used(const struct lanes *l, uint32_t lane)
{
	return l->waiting[lane].first || l->n_active[lane];
}

static void open_account(struct lanes_account *a, uint32_t lane, bool is_new)
{
	if (is_new || a->served[lane] < a->now)
		a->served[lane] = a->now;
}

// A new one takes the lane of somebody who has nothing here. Who comes back has no claim on the time it was away.
static uint32_t lane_of(struct lanes *l, const void *who)
{
	uint32_t lane = 0, unused = LANES;
	while (lane < LANES && l->who[lane] != who) {
		if (unused == LANES && !is_used(l, lane))
			unused = lane;
		lane++;
	}
	if (lane == LANES)
		lane = unused < LANES ? unused : 0;
	if (!is_used(l, lane)) {
		open_account(&l->steps, lane, l->who[lane] != who);
		open_account(&l->prompts, lane, l->who[lane] != who);
		l->who[lane] = who;
	}
	return lane;
}

void lanes_return(struct lanes *l, uint32_t lane, struct request_item *item)
{
	batch_backlog_append(&l->waiting[lane], &item->link);
	l->n_waiting++;
}

void lanes_append(struct lanes *l, struct request_item *item)
{
	lanes_return(l, lane_of(l, item->request->principal), item);
}

struct request_item *lanes_pop(struct lanes *l, uint32_t lane)
{
	struct queue_item *item = batch_backlog_pop(&l->waiting[lane]);
	l->n_waiting -= item != NULL;
	return (struct request_item *)item;
}

// Whether lane a should begin a sample before lane b.
static bool is_before(const struct lanes *l, uint32_t a, uint32_t b)
{
	if (l->n_active[a] != l->n_active[b])
		return l->n_active[a] < l->n_active[b];
	return l->prompts.served[a] < l->prompts.served[b];
}

uint32_t lanes_next(const struct lanes *l, uint32_t n_active, uint32_t max_active)
{
	uint32_t n_used = 0, best = LANES;
	for (uint32_t i = 0; i < LANES; i++)
		n_used += is_used(l, i);
	uint32_t share = n_used ? (max_active + n_used - 1) / n_used : 0;
	for (uint32_t i = 0; i < LANES; i++)
		if (l->waiting[i].first && (n_active < max_active || l->n_active[i] < share) && (best == LANES || is_before(l, i, best)))
			best = i;
	return best;
}

void lanes_settle(struct lanes_account *a, const bool left[LANES])
{
	uint64_t least = UINT64_MAX, most = a->now;
	for (uint32_t i = 0; i < LANES; i++) {
		if (left[i] && a->served[i] < least)
			least = a->served[i];
		if (a->served[i] > most)
			most = a->served[i];
	}
	a->now = least < UINT64_MAX ? least : most;
	for (uint32_t i = 0; i < LANES; i++)
		if (!left[i] && a->served[i] < a->now)
			a->served[i] = a->now;
}
