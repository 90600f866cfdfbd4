// SPDX-License-Identifier: Apache-2.0
// THE request path. Both doors hand their requests to service_score(); validation, limits, admission, the look in the store, the engine
// and the append happen here and nowhere else, so a door cannot forget one.
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "common/error.h"
#include "common/query.h"
#include "daemon/histogram.h"
#include "daemon/queue.h"
#include "daemon/teacher/request.h"

struct auth;
struct reloads;
struct service;
struct store;
struct supervisor;
struct teacher;
struct tls_current;

// What both doors hold their clients to. Each takes it anew at every turn of its loop.
struct door_settings {
	uint64_t max_json;                 // largest body of JSON: over HTTP, or of a CALL
	uint64_t door_bytes;               // of service_hold(), all together
	uint32_t max_body, credits;        // of the binary door; a connection keeps what its WELCOME said
	uint64_t header_timeout_ms, body_timeout_ms, idle_timeout_ms, write_timeout_ms;
};

struct service_options {
	uint32_t max_sequences, max_gather, max_draws, max_spans;
	uint32_t max_samples;              // of one prompt
	uint32_t cache_tokens;             // the teacher's (teacher_options)
	struct queue_cost limits;          // of what may be under way, over both doors
	struct door_settings doors;
	struct auth *auth;                 // who may what; not owned
	struct tls_current *tls;           // what the doors show; not owned. NULL = nothing
	const struct faults *faults;       // of GPUs; not owned. NULL = none are counted
	const _Atomic int *stop_signal;    // no question is taken once it is not 0 (daemon/stop.h); NULL = it never is
};

// teacher is required; store and supervisor may be NULL. None is owned. The service must be closed before they are.
int service_open(const struct service_options *options, struct teacher *teacher, struct store *store, struct supervisor *supervisor,
		 struct service **ret_service, struct error *err);
// Takes over max_sequences, max_spans, max_samples, limits and doors, all at once: a request is judged by the old ones or by these.
void service_change(struct service *s, const struct service_options *options);
struct door_settings service_doors(struct service *s);
struct service *service_close(struct service *s);      // NULL is fine; returns NULL. No request may be under way

// 0 when score requests are taken; ERROR_UNAVAILABLE while loading, after a failure, or draining.
int service_check_ready(const struct service *s, struct error *err);
// A place among the requests under way, for one that is still to be read: refuses what is sure to be refused for now, whatever it asks (not
// ready, too many requests under way, the quota of who asks used up; the refusal is the caller's to count: service_reject). The place is
// given back just before the request, read, is handed in, or when it will not be.
int service_take_place(struct service *s, struct principal *principal, struct error *err);
void service_give_place(struct service *s);
// Of a question to the teacher of that number; once ready.
void service_limits(struct service *s, uint32_t teacher, struct query_limits *ret_limits, uint32_t *ret_max_sequences);
uint32_t service_max_tokens(const struct service *s);      // of a sequence, whoever is asked: for decoders
// Finds whom the request asks (r->asked): sets r->choice. service_score and service_generate do it themselves.
int service_choose(const struct service *s, struct request *r, struct error *err);

// Takes the request, whose principal is set: each item comes back through r->complete (perhaps before this returns, perhaps from another
// thread); when all are back the door calls service_finish. On error (err is required) the door keeps the request and frees it; the
// refusal is counted.
int service_score(struct service *s, struct request *r, struct error *err);
// The same for a request with `generate` set. Its items may come back several times (request_item_take()).
int service_generate(struct service *s, struct request *r, struct error *err);
// Counts a request refused by a door's decoder, so that the accounts add up.
void service_reject(struct service *s, enum request_door door, enum error_code code);
// Before a door's memory for a body being received, or for a reply, becomes n_bytes (0 = none): *held is what it was and, on success, is
// n_bytes. ERROR_OVERLOADED when all that is held would be more than door_bytes; but where nobody else holds any there is room for any, and
// less is always granted. From any thread.
int service_hold(struct service *s, uint64_t *held, uint64_t n_bytes, struct error *err);
// The door is done with a request it got back: its answer is sent, or its client gone. Frees it.
void service_finish(struct service *s, struct request *r);

// From now on score requests are refused; those under way are answered.
void service_drain(struct service *s);

struct service_stats {
	// accepted = answered + rejected + cancelled + in_flight, exactly. answered: all of it was given to the kernel for the client;
	// rejected: ended with an error; cancelled: taken back, or the client left or was cut off before it had taken its answer.
	struct { uint64_t accepted, answered, rejected, cancelled, in_flight; } doors[N_REQUEST_DOORS];
	uint64_t rejected_by_code[N_ERROR_CODES];
	uint64_t n_cached, n_computed;             // sequences answered from the store, by the teacher
	uint64_t n_wasted;                         // of the computed, those whose client had left meanwhile
	uint64_t n_unkept;                         // answers the store's queue had no room for (or refused)
	struct queue_cost reserved, limits;
	uint64_t held_bytes, held_limit;           // service_hold()
};
void service_stats(struct service *s, struct service_stats *ret_stats);
struct histogram *service_request_seconds(struct service *s);
struct histogram *service_encode_seconds(struct service *s);       // the doors': making bytes of answers
double service_uptime(const struct service *s);
struct teacher *service_teacher(const struct service *s);
struct auth *service_auth(const struct service *s);
struct store *service_store(const struct service *s);              // or NULL
struct supervisor *service_supervisor(const struct service *s);    // or NULL
const struct faults *service_faults(const struct service *s);
struct tls_current *service_tls(const struct service *s);          // or NULL
struct reloads *service_reloads(struct service *s);                // how the settings were read again
