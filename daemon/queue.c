// SPDX-License-Identifier: Apache-2.0
#include "daemon/queue.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>

#include "common/error.h"

struct queue {
	pthread_mutex_t lock;
	pthread_cond_t not_empty;
	struct queue_item *first, **end;
	uint64_t n_waiting;
	struct queue_cost limits, reserved;
	int wake_fd;
	bool stopped, poked;
};

int queue_open(const struct queue_cost *limits, int wake_fd, struct queue **ret_queue)
{
	struct queue *q = calloc(1, sizeof *q);
	if (!q)
		return -ENOMEM;
	pthread_mutex_init(&q->lock, NULL);
	pthread_cond_init(&q->not_empty, NULL);
	q->end = &q->first;
	q->limits = limits ? *limits : (struct queue_cost){UINT64_MAX, UINT64_MAX, UINT64_MAX};
	q->wake_fd = wake_fd;
	*ret_queue = q;
	return 0;
}

struct queue *queue_close(struct queue *q)
{
	if (q) {
		pthread_cond_destroy(&q->not_empty);
		pthread_mutex_destroy(&q->lock);
		free(q);
	}
	return NULL;
}

struct row { const char *what; uint64_t cost, held, reserved, limit; };

enum error_code queue_check(uint64_t cost, uint64_t held, uint64_t reserved, uint64_t limit)
{
	if (cost > limit)
		return ERROR_TOO_LARGE;
	if (reserved > limit - cost)
		return ERROR_OVERLOADED;
	uint64_t left = limit - cost - reserved, theirs = held + cost;
	return held && cost && theirs / QUEUE_SHARE > left ? ERROR_OVERLOADED : ERROR_NONE;
}

static int refuse(enum error_code code, const struct row *row, struct error *err)
{
	if (code == ERROR_TOO_LARGE)
		return error_set(err, code, NULL, "the request needs %llu %s, over the limit of %llu under way",
				 (unsigned long long)row->cost, row->what, (unsigned long long)row->limit);
	return error_set(err, code, NULL, "too many %s under way (limit %llu): try again later", row->what, (unsigned long long)row->limit);
}

int queue_reserve(struct queue *q, const struct queue_cost *cost, const struct queue_cost *held, struct error *err)
{
	static const struct queue_cost none;
	held = held ? held : &none;
	pthread_mutex_lock(&q->lock);
	const struct row rows[] = {
		{"requests", cost->requests, held->requests, q->reserved.requests, q->limits.requests},
		{"tokens", cost->tokens, held->tokens, q->reserved.tokens, q->limits.tokens},
		{"bytes of answers", cost->bytes, held->bytes, q->reserved.bytes, q->limits.bytes},
	};
	int r = 0;
	for (size_t i = 0; i < sizeof rows / sizeof *rows && r == 0; i++) {
		enum error_code code = queue_check(rows[i].cost, rows[i].held, rows[i].reserved, rows[i].limit);
		if (code)
			r = refuse(code, &rows[i], err);
	}
	if (r == 0) {
		q->reserved.requests += cost->requests;
		q->reserved.tokens += cost->tokens;
		q->reserved.bytes += cost->bytes;
	}
	pthread_mutex_unlock(&q->lock);
	return r;
}

void queue_release(struct queue *q, const struct queue_cost *cost)
{
	pthread_mutex_lock(&q->lock);
	q->reserved.requests -= cost->requests;
	q->reserved.tokens -= cost->tokens;
	q->reserved.bytes -= cost->bytes;
	pthread_mutex_unlock(&q->lock);
}

void queue_limit(struct queue *q, const struct queue_cost *limits)
{
	pthread_mutex_lock(&q->lock);
	q->limits = *limits;
	pthread_mutex_unlock(&q->lock);
}

void queue_push(struct queue *q, struct queue_item *chain)
{
	const uint64_t one = 1;
	ssize_t written = 0;
	pthread_mutex_lock(&q->lock);
	bool was_empty = !q->first;
	*q->end = chain;
	while (*q->end) {
		q->end = &(*q->end)->next;
		q->n_waiting++;
	}
	pthread_cond_broadcast(&q->not_empty);
	// Who found it not empty pops until it is: the descriptor is written for the first alone. Under the lock: the receiver may close
	// the queue as soon as it has popped the last item it waits for.
	if (q->wake_fd >= 0 && was_empty)
		written = write(q->wake_fd, &one, sizeof one);
	pthread_mutex_unlock(&q->lock);
	(void)written;    // fails only when the counter is full: then the receiver is awake already
}

struct queue_item *queue_pop(struct queue *q, bool wait)
{
	pthread_mutex_lock(&q->lock);
	while (wait && !q->first && !q->stopped && !q->poked)
		pthread_cond_wait(&q->not_empty, &q->lock);
	q->poked = false;
	struct queue_item *item = q->first;
	if (item) {
		q->first = item->next;
		item->next = NULL;
		q->n_waiting--;
		if (!q->first)
			q->end = &q->first;
	}
	pthread_mutex_unlock(&q->lock);
	return item;
}

void queue_stop(struct queue *q)
{
	pthread_mutex_lock(&q->lock);
	q->stopped = true;
	pthread_cond_broadcast(&q->not_empty);
	pthread_mutex_unlock(&q->lock);
}

bool queue_is_stopped(struct queue *q)
{
	pthread_mutex_lock(&q->lock);
	bool stopped = q->stopped;
	pthread_mutex_unlock(&q->lock);
	return stopped;
}

void queue_poke(struct queue *q)
{
	pthread_mutex_lock(&q->lock);
	q->poked = true;
	pthread_cond_broadcast(&q->not_empty);
	pthread_mutex_unlock(&q->lock);
}

void queue_usage(struct queue *q, struct queue_cost *ret_reserved, uint64_t *ret_waiting)
{
	pthread_mutex_lock(&q->lock);
	*ret_reserved = q->reserved;
	*ret_waiting = q->n_waiting;
	pthread_mutex_unlock(&q->lock);
}
