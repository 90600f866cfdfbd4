// SPDX-License-Identifier: Apache-2.0
// One client's ask: a question and its sequences, each an item that is answered on its own.
//
// Who owns what when: the door that made a request owns it, until service_score() took it; from then on each item belongs to whoever
// holds it (service, engine queue, store) until its `complete` is called, after which only the door may touch it. The door frees the
// request when all items came back. `cancelled` alone may be set by the door at any time.
#pragma once

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "common/error.h"
#include "common/query.h"
#include "common/record.h"
#include "common/sequence.h"
#include "daemon/queue.h"

struct request;

struct request_item {
	struct queue_item link;            // first: a queue_item pointer is an item pointer
	struct request *request;
	uint32_t index;                    // of the sequence in the request
	struct sequence sequence;          // owned
	struct query query;                // canonical once service_score accepted it
	struct record *record;             // the answer, owned; NULL when error.code says why
	struct error error;
	bool cached;                       // answered from the store
	bool not_finite;                   // some row is ROW_NOT_FINITE: never stored
};

enum request_door { REQUEST_HTTP, REQUEST_SOCKET, N_REQUEST_DOORS };

struct request {
	struct query query;                // as asked
	bool durable, no_store;
	uint64_t deadline_ms;              // clock_ms(); 0 = none
	enum request_door door;
	uint32_t n_items;
	struct request_item *items;
	void *owner;                       // the door's own
	void (*complete)(struct request_item *item);       // the door's: called once per item, from any thread; must not block
	void (*computed)(struct request_item *item);       // the service's: called by the engine, before `complete`
	void *service;
	atomic_bool cancelled;
	struct queue_cost cost;            // held from acceptance to service_finish
	double accepted_seconds;           // clock_seconds()
};

// Sequences are empty; fill items[i].sequence.
int request_new(uint32_t n_items, struct request **ret_request, struct error *err);
struct request *request_free(struct request *r);       // NULL is fine; returns NULL
