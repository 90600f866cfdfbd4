// SPDX-License-Identifier: Apache-2.0
// The thread of the sockets only moves bytes and answers what is answered at once (/live, /ready, /metrics, refusals). What may take long,
// reading bodies and making replies of answers, is done at a desk, by a thread of its own, while the connection rests: so however much
// of that there is, it delays itself alone. A small piece of it is done on the spot while the round has time for it, as handing over costs
// more than the work.
//
// While a request is at the desk its exchange, body and reply are the desk's; items that come back meanwhile wait for it (http_request.c).
#include "daemon/server/http_internal.h"

#include <pthread.h>

#include "common/error.h"
#include "daemon/clock.h"
#include "daemon/queue.h"

#define SMALL_BYTES 4096             // of a body, or of the answer that a piece of a reply is made of: some tens of microseconds
#define ROUND_SECONDS 0.001          // of such work between two looks at the sockets

void http_desk_begin_round(struct http *h)
{
	h->round_ends = clock_seconds() + ROUND_SECONDS;
}

bool http_desk_has_time(const struct http *h, uint64_t n_bytes)
{
	return n_bytes <= SMALL_BYTES && clock_seconds() < h->round_ends;
}

void http_desk_give(struct http_request *q, enum http_work work)
{
	struct http *h = q->http;
	q->work = work;
	q->at_desk = true;
	h->n_at_desk++;
	http_request_suspend(q);
	queue_push(h->desk, &q->job);
}

void http_desk_take(struct http *h)
{
	struct queue_item *item;
	while ((item = queue_pop(h->done, false))) {
		struct http_request *q = (struct http_request *)item;
		q->at_desk = false;
		h->n_at_desk--;
		http_request_worked(q);
	}
}

static void *desk_loop(void *arg)
{
	struct http *h = arg;
	struct queue_item *item;
	pthread_setname_np(pthread_self(), "desk");
	while ((item = queue_pop(h->desk, true))) {
		http_request_work((struct http_request *)item);
		queue_push(h->done, item);
	}
	return NULL;
}

int http_desk_open(struct http *h, struct error *err)
{
	if (queue_open(NULL, -1, &h->desk) || queue_open(NULL, h->returned_fd, &h->done))
		return error_set(err, ERROR_MEMORY, "http", "no memory for the HTTP door");
	int r = pthread_create(&h->desk_thread, NULL, desk_loop, h);
	h->has_desk = !r;
	return r ? error_system(err, r, "http", "cannot start the desk thread") : 0;
}

void http_desk_close(struct http *h)
{
	if (h->has_desk) {
		queue_stop(h->desk);
		pthread_join(h->desk_thread, NULL);
	}
	queue_close(h->desk);
	queue_close(h->done);
}
