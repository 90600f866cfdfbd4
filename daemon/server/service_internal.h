// SPDX-License-Identifier: Apache-2.0
// Shared by service.c (scores) and the other service_*.c only.
#pragma once

#include <pthread.h>
#include <stdatomic.h>

#include "daemon/server/reloads.h"
#include "daemon/server/service.h"

struct architecture;

struct door_counts { atomic_uint_fast64_t accepted, answered, rejected, cancelled; };

struct service {
	pthread_rwlock_t lock;                 // of options: a request holds it from its first check to its admission
	struct service_options options;
	struct reloads reloads;
	struct teacher *teacher;
	struct store *store;
	struct supervisor *supervisor;
	struct queue *budget;                  // used for its reservations only
	struct queue *slots;                   // likewise, in tokens: places in the teacher's cache of keys and values
	double opened_seconds;
	atomic_bool draining;
	atomic_uint_fast64_t held_bytes;       // service_held.c
	struct door_counts doors[N_REQUEST_DOORS];
	atomic_uint_fast64_t rejected_by_code[N_ERROR_CODES];
	atomic_uint_fast64_t n_cached, n_computed, n_wasted, n_unkept, n_generated;
	struct histogram request_seconds, encode_seconds;
};

// What a model is, of them; what the settings say is 0.
struct query_limits service_sizes_of(const struct architecture *a);
// Of a question to these.
struct query_limits service_limits_of(const struct service *s, const struct choice *c);
// Reserves what the request costs, of the server's budget and of its principal's quota, until service_finish; and counts a refusal.
int service_reserve(struct service *s, struct request *r, const struct queue_cost *cost, struct error *err);
// Gives it back, of the quota all but n_used tokens; nothing reserved is fine.
void service_release(struct service *s, struct request *r, uint64_t n_used);
// Whether or not who asked stayed to read all of it.
void service_count_served(const struct service *s, const struct request *r);
uint64_t service_generated(const struct request *r);           // tokens that an ended generation used of its cost
int service_refuse(struct service *s, const struct request *r, int result, const struct error *err);
