// SPDX-License-Identifier: Apache-2.0
// Private to libkdclient: a connection shared by threads, its requests in flight and the events not yet taken.
//
// Who may touch what: `lock` guards everything below it but the input half of the connection. That half belongs to the thread whose turn
// it is to read (`reading`): it reads and checks a frame without the lock, then takes the lock to hand the event to whoever waits for it.
// All others sleep, each on its own condition. A thread that leaves gives the turn to one that still waits (wait.c).
#pragma once

#include <pthread.h>
#include <stdatomic.h>

#include "clients/connection.h"
#include "clients/kdclient.h"
#include "clients/question.h"
#include "common/error.h"
#include "common/record.h"

#define CLIENT_MAX_PONGS 16       // owed: a server that pings without reading does not make our output grow

typedef void kd_callback(void *arg, struct kd_event *event);

enum pending_kind { PENDING_SCORE, PENDING_GENERATE, PENDING_CALL, PENDING_PING };

// A request in flight. `owner` tells who takes its events: NULL = kd_next, the client's `callbacks` = its thread of callbacks, else the
// blocking call that waits for it.
struct pending {
	struct pending *next;
	uint64_t id;
	enum pending_kind kind;
	const void *owner;
	kd_callback *callback;           // and its argument, of kd_submit_callback
	void *arg;
	bool abandoned;                  // nobody wants its events any more
	uint32_t base;                   // index of its first sequence in a split kd_score
	uint32_t n_sequences, n_answered;        // of PENDING_GENERATE: samples
	struct questions *questions;     // (n_sequences) what was asked; NULL unless PENDING_SCORE
	bool *answered;                  // (n_sequences)
	uint32_t rows, *n_tokens;        // of PENDING_GENERATE: asked; (n_sequences) that have come
	struct queued *failure;          // of a callback: made beforehand, so that it can always be told of the end
};

struct queued {
	struct queued *next;
	struct kd_event event;
	const void *owner;
	kd_callback *callback;
	void *arg;
	struct frame_reply reply;        // of a call
	struct frame_tokens tokens;      // of a generation; its text is the event's own
	char *text;
};

// What a sleeping thread waits for.
enum wait_kind { WAIT_EVENT, WAIT_CREDIT, WAIT_FLUSH };
struct waiter {
	struct waiter *next;
	enum wait_kind kind;
	const void *owner;               // of the event
	uint64_t n_sent;                 // WAIT_FLUSH: until the connection's has come so far
	int timeout_ms;                  // negative = none
	bool patient;                    // the timeout is the longest silence, not the longest wait
	int64_t began_ms;
	pthread_cond_t woken;
};

// The thread that calls back; started by the first kd_submit_callback.
struct callbacks {
	pthread_t thread;
	bool started, closing;
	pthread_cond_t work;             // a request was submitted, or the end has come
};

struct kd_client {
	// fixed once opened
	struct kd_server server;
	struct frame_welcome welcome;
	int timeout_ms;                  // negative = none
	int wake_fd;                     // ends the reader's poll: there is more to write, or the client is closed
	atomic_bool draining;
	pthread_mutex_t lock;
	struct connection connection;
	bool reading, reader_woken;      // a thread has the turn; wake_fd was written
	int64_t heard_ms;                // when bytes last moved
	struct error broken;             // code set: the connection is lost, and why
	uint64_t last_id;
	uint64_t n_pongs, pong_ends[CLIENT_MAX_PONGS];   // where in the output the last ones end
	struct pending *pending;
	uint32_t n_pending;              // that hold a credit
	uint32_t n_credit_waiters;
	struct queued *events, **events_end;
	struct waiter *waiters;
	struct callbacks callbacks;
};

struct kd_answer {
	struct record *record;
	struct record_rows *decoded;     // NULL until asked for
	uint64_t *gather_starts;         // these two of the view
	struct kd_span *spans;
	struct kd_rows view;
	bool cached;
};

int report(struct kd_error *to, const struct error *from, int r);       // returns r
int answer_new(struct record *record, bool cached, struct kd_answer **ret, struct error *err);    // takes the record, also on failure

// ---- callback.c; start and wake with the lock held, stop without
int callbacks_start(struct kd_client *client, struct error *err);
void callbacks_wake(struct kd_client *client);           // there is something in flight
void callbacks_stop(struct kd_client *client);           // the connection is lost by this; each request has ended when it returns

// ---- request.c
// A request made ready without the lock: sending it takes no more than the lock.
struct prepared {
	struct pending *pending;
	uint8_t kind;                    // of the frame
	uint8_t *body;
	size_t n;
};
int prepare_score(const struct kd_client *client, const struct kd_request *request, const void *owner, uint32_t base,
		  struct prepared *ret, struct error *err);
// With the lock. wait: for a credit, else there must be one. Takes the pending on success.
int prepared_send(struct kd_client *client, struct prepared *m, bool wait, uint64_t *ret_id, struct error *err);
void prepared_done(struct prepared *m);

// ---- pending.c; with the lock held
struct pending *pending_new(enum pending_kind kind, const void *owner, struct error *err);      // not in flight yet
void pending_free(struct pending *p);
void pending_start(struct kd_client *client, struct pending *p);         // takes a credit and an id
void pending_end(struct kd_client *client, struct pending *p);           // gives the credit back; frees it
struct pending *pending_find(struct kd_client *client, uint64_t id);
bool pending_any(const struct kd_client *client, const void *owner);
void pending_abandon(struct kd_client *client, const void *owner);       // every request of the owner is cancelled, its events dropped
bool pending_has_credit(const struct kd_client *client);
int pending_set_callback(struct pending *p, kd_callback *callback, void *arg, struct error *err);
void pending_fail(struct kd_client *client, struct pending *p, const struct error *why);       // tells its callback, and cancels it

struct queued *queued_new(const struct pending *p, enum kd_event_kind kind, uint32_t index);
struct queued *queued_free(struct queued *q);
void queued_push(struct kd_client *client, const struct pending *p, struct queued *q);         // wakes who waits for it
struct queued *queued_pop(struct kd_client *client, const void *owner);                        // the owner's first; or NULL
bool queued_any(const struct kd_client *client, const void *owner);

// ---- receive.c
// A frame as read, with all that can be checked without knowing what was asked.
struct received {
	struct frame frame;
	const uint8_t *body;             // the connection's, until the next frame is read
	uint32_t index;
	struct kd_answer *answer;
	struct frame_error error;
	struct frame_reply reply;
	struct frame_tokens tokens;
};
// An error without words gets its code's: who fails is told why.
int received_decode_error(const uint8_t *body, size_t n, struct frame_error *ret, struct error *err);
int received_decode(struct kd_client *client, struct received *ret, struct error *err);        // without the lock; takes the frame
int received_deliver(struct kd_client *client, struct received *m, struct error *err);         // with it; an error loses the connection
void received_done(struct received *m);

// ---- wait.c; with the lock held, which is let go of while waiting
// Until w is satisfied, or its time is over (-ETIMEDOUT), the connection is lost, or (WAIT_EVENT) nothing is in flight (-ENODATA).
int client_wait(struct kd_client *client, struct waiter *w, struct error *err);
struct waiter waiter_patient(const struct kd_client *client, enum wait_kind kind, const void *owner);
void client_wake(struct kd_client *client, enum wait_kind kind, const void *owner);            // one that waits for this
int client_lose(struct kd_client *client, const struct error *err, int r);                     // returns r
int client_send(struct kd_client *client, struct error *err);            // what the socket takes now; does not wait
// Sends what is queued. A server that takes nothing for the client's timeout loses the connection: half a frame may be out.
int client_flush(struct kd_client *client, struct error *err);
