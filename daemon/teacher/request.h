// SPDX-License-Identifier: Apache-2.0
// One client's ask: a question and its sequences, each an item that is answered on its own.
//
// Who owns what when: the door that made a request owns it, until service_score() took it; from then on each item belongs to whoever
// holds it (service, engine queue, store) until its `complete` is called, after which only the door may touch it. The door frees the
// request when all items came back. `cancelled` alone may be set by the door at any time. An item that is being generated may come back
// several times, each time with more of its answer (generation.h says what may be read when); only the last time it is the door's.
#pragma once

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "common/error.h"
#include "common/query.h"
#include "common/record.h"
#include "common/sequence.h"
#include "daemon/queue.h"
#include "daemon/teacher/choice.h"

struct generation;
struct generation_query;
struct principal;
struct request;

struct request_item {
	struct queue_item link;            // first: a queue_item pointer is an item pointer
	struct request *request;
	uint32_t index;                    // of the sequence in the request
	struct sequence sequence;          // owned
	struct query_part part;            // what this sequence asks instead of the request's question; empty once service_score took it
	struct query query;                // canonical once service_score accepted it
	struct record *record;             // the answer, owned; NULL when error.code says why
	struct error error;
	bool cached;                       // answered from the store
	bool not_finite;                   // some row is ROW_NOT_FINITE: never stored
	struct generation *generation;     // the answer so far, owned; NULL for a score
	atomic_uint told;                  // of a generation: whether it is on its way to the door, and for the last time
};

enum request_door { REQUEST_HTTP, REQUEST_SOCKET, N_REQUEST_DOORS };

// What the door makes of an answer beside it, one item at a time: nothing, its numbers as JSON or in base64, or tokens by their texts.
enum request_text { REQUEST_NO_TEXT, REQUEST_JSON, REQUEST_BASE64, REQUEST_TOKENS };

struct request {
	struct query query;                // as asked
	struct choice_query asked;         // who is asked, as asked; zeroed = the first teacher
	struct choice choice;              // and as the service found them
	struct generation_query *generate; // owned; NULL = a score
	bool durable, no_store;
	uint64_t deadline_ms;              // clock_ms(); 0 = none
	enum request_door door;
	enum request_text text;
	uint64_t shown_bytes;              // the door's: what the reply shows of the prompt itself, as text
	struct principal *principal;       // who asks (daemon/server/auth.h): the door's; once the service took it, a reference of its own
	uint32_t n_items;
	struct request_item *items;
	void *owner;                       // the door's own
	// The door's: called from any thread, must not block; once per item, but see request_item_tell(). It queues item->link to the door.
	void (*complete)(struct request_item *item);
	void (*computed)(struct request_item *item);       // the service's: called by the engine, before `complete`
	void *service;
	atomic_bool cancelled;             // taken back, or its answer did not reach the client
	enum error_code fault;             // the door's: its reply was, or ended with, this error, whatever became of the items
	struct queue_cost cost;            // held from acceptance to service_finish
	uint64_t text_bytes;               // of cost.bytes, for the text of the largest item
	struct queue_cost slots;           // of a generation: held until its last item was computed
	uint32_t n_uncomputed;             // of a generation: the engine's, items it has not given back
	double accepted_seconds;           // clock_seconds()
};

// Sequences are empty; fill items[i].sequence.
int request_new(uint32_t n_items, struct request **ret_request, struct error *err);
struct request *request_free(struct request *r);       // NULL is fine; returns NULL

// For an item with a generation: there is more of its answer, or (last) all of it, after which only the door may touch it. Calls
// `complete` unless the item is on its way already.
void request_item_tell(struct request_item *item, bool last);
// The door's, for each item that its queue gives it: true when it has come for the last time. Only then look at error and the rest.
bool request_item_take(struct request_item *item);
