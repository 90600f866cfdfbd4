// SPDX-License-Identifier: Apache-2.0
// A first-in first-out queue between threads, and the budget of what may be under way. The two are one object because a place in the
// queue is not the scarce thing: tokens to compute and bytes of answers are, and they are held until long after the item was popped.
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "common/error.h"

struct queue;

struct queue_item { struct queue_item *next; };      // embedded in what is queued
struct queue_cost { uint64_t requests, tokens, bytes; };

// limits NULL = no budget. wake_fd: an eventfd written when something is pushed where nothing was, for receivers that wait in epoll: they
// clear it first, then pop until there is nothing; -1 = none (kept by the caller).
int queue_open(const struct queue_cost *limits, int wake_fd, struct queue **ret_queue);
struct queue *queue_close(struct queue *q);          // must be empty; NULL is fine; returns NULL

#define QUEUE_SHARE 3                                // of a budget, to one: so many times what is left for others

// All or nothing. ERROR_TOO_LARGE when the cost alone is over a limit (waiting would not help), ERROR_OVERLOADED when it does not fit now.
// held: what the same asker has reserved already; then it does not fit if more than QUEUE_SHARE times what is left would be theirs, unless
// it is all they have: who asks alone gets three quarters of everything, and the next one still finds room. NULL = nobody else asks.
int queue_reserve(struct queue *q, const struct queue_cost *cost, const struct queue_cost *held, struct error *err);
void queue_release(struct queue *q, const struct queue_cost *cost);
// The rule for one row, for budgets kept elsewhere: ERROR_NONE, ERROR_TOO_LARGE or ERROR_OVERLOADED.
enum error_code queue_check(uint64_t cost, uint64_t held, uint64_t reserved, uint64_t limit);
void queue_limit(struct queue *q, const struct queue_cost *limits);    // from now on; what is reserved already stays so

// Appends a chain (one lock, so that its items can be popped together); the last item's next must be NULL.
void queue_push(struct queue *q, struct queue_item *chain);
// The oldest item, or NULL: at once when `wait` is false, else only after queue_stop, once the queue is empty, or when poked.
struct queue_item *queue_pop(struct queue *q, bool wait);
void queue_stop(struct queue *q);
bool queue_is_stopped(struct queue *q);
// A receiver that waits returns once, with NULL, though the queue is not stopped: it is asked for a sign of life.
void queue_poke(struct queue *q);

// What is reserved now, and how many items wait.
void queue_usage(struct queue *q, struct queue_cost *ret_reserved, uint64_t *ret_waiting);
