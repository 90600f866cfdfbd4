// SPDX-License-Identifier: Apache-2.0
// An HTTP request whose answer is made by other threads and leaves in pieces: POST /v1/score, /v1/completions, ... The door knows sockets
// and when; a kind knows bodies, and what. An exchange belongs to the door's thread; items come back to it through the door's own queue.
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "daemon/server/reply.h"
#include "daemon/teacher/request.h"

struct buffer;
struct error;
struct exchange;
struct principal;
struct service;

#define EXCHANGE_MAX_REQUESTS 2        // a completion may need one for its prompt and one for what follows

struct exchange_kind {
	const char *path;
	// Reads the body, then exchange_submit()s what it asks. On error nothing was handed over (the caller counts the refusal unless
	// exchange_submit made it); what `own` holds is freed by `done` either way.
	int (*start)(struct exchange *x, const char *body, size_t n, struct error *err);
	// Whether the reply may begin or go on before every item is back. NULL = it may not.
	bool (*is_ready)(const struct exchange *x);
	// An item came back for the last time. NULL = nobody needs to know.
	void (*taken)(struct exchange *x, const struct request_item *item);
	// When first ready: a fault that makes the whole reply an error. NULL = the first error of an item.
	int (*check)(const struct exchange *x, struct error *err);
	// Appends the next piece to b, and sets x->ended with the last. Nothing appended and not ended = wait until is_ready again.
	int (*encode)(struct exchange *x, struct buffer *b, struct error *err);
	void (*done)(struct exchange *x);
};

struct exchange {
	const struct exchange_kind *kind;
	struct service *service;
	enum request_door door;
	enum request_text text;                // that replies are made of; JSON unless the kind's `start` says otherwise
	uint64_t shown_bytes;                  // of a prompt, where replies show it: the largest
	struct principal *principal;           // who asks: the door's, and no longer there once exchange_start has returned
	void *owner;                           // the door's own, fixed: `complete` runs in any thread
	void *client;                          // the door's own: NULL once the client is gone and only items are waited for
	void (*complete)(struct request_item *item);   // the door's; item->request->owner is the exchange
	struct request *requests[EXCHANGE_MAX_REQUESTS];     // that the service took
	uint32_t n_requests, n_left;           // n_left: items not back yet, of all of them
	bool counted;                          // a refusal the service has counted already
	bool ended;
	const char *content_type;              // of the reply
	void *own;                             // the kind's own
};

const struct exchange_kind *exchange_find(const char *path);       // NULL = not an exchange
int exchange_new(const struct exchange_kind *kind, struct service *service, enum request_door door, void *owner,
		 void (*complete)(struct request_item *item), struct exchange **ret_exchange, struct error *err);
// Every item must be back. `cancelled`: the client left before the end. NULL is fine; returns NULL.
struct exchange *exchange_free(struct exchange *x, bool cancelled);
int exchange_start(struct exchange *x, struct principal *principal, const char *body, size_t n, struct error *err);
// Hands a request to the service; it is the exchange's then, else (on error) still the caller's.
int exchange_submit(struct exchange *x, struct request *r, struct error *err);
// For each item that the door's queue gives it: true when it has come for the last time.
bool exchange_take(struct exchange *x, struct request_item *item);
bool exchange_is_ready(const struct exchange *x);
int exchange_check(const struct exchange *x, struct error *err);
void exchange_cancel(struct exchange *x);      // nobody waits for the answer any more
void exchange_fail(struct exchange *x, enum error_code code);      // the reply is this error, or breaks off for it

extern const struct exchange_kind exchange_score, exchange_generate, exchange_openai;
