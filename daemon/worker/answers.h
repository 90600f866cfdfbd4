// SPDX-License-Identifier: Apache-2.0
// The teacher as a training run sees it: ask for micro-batches ahead, take the answers in order. A thread of its own talks to the
// server, so answers arrive while the student trains. A server that goes away is waited for; an answer that is an error never becomes
// a number: it is asked again where that can help, else it ends the run with its reason. What was received may be kept in a store.
#pragma once

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include "common/query.h"

struct answers;
struct error;
struct record_rows;

struct answers_options {
	const char *server;                    // "unix:PATH" or "tcp:ADDRESS:PORT"
	const char *token;                     // NULL = none
	const char *store_directory;           // NULL = keep nothing
	uint64_t patience_ms;                  // without any answer for this long: give up
	const atomic_bool *stop;              // set: calls return -ECANCELED soon
};

// Connects, waiting for the server if need be. From then on the teacher must stay the same (its fingerprint).
int answers_open(const struct answers_options *options, struct answers **ret, struct error *err);
void answers_close(struct answers *a);         // NULL is fine
const struct content_id *answers_teacher(const struct answers *a);

// A control resource ("/v1/model"): its JSON, NUL-terminated, the caller frees. Only before the first answers_submit.
int answers_get(struct answers *a, const char *path, char **ret_body, size_t *ret_n, struct error *err);

// Asks one query of n sequences of `length` tokens each; everything is copied. Any number may be outstanding.
int answers_submit(struct answers *a, const struct query *query, const uint32_t *const *sequences, uint32_t n, uint32_t length,
		   struct error *err);
// Waits for the oldest question: fills ret_rows (as many as were asked, in order), each the caller's to free.
int answers_next(struct answers *a, struct record_rows **ret_rows, struct error *err);

struct answers_stats {
	uint64_t n_answers, n_cached;          // n_cached: came from the server's store or from our own
	uint64_t n_reconnects;
	uint64_t n_kept, n_keep_failures;      // appended to the run's own store, or not (the run goes on)
};
void answers_stats(struct answers *a, struct answers_stats *ret);
