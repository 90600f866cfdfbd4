// SPDX-License-Identifier: Apache-2.0
// Private to teacher*.c.
#pragma once

#include <pthread.h>
#include <stdatomic.h>

#include "common/error.h"
#include "daemon/teacher/canary.h"
#include "daemon/teacher/generator.h"
#include "daemon/teacher/member.h"
#include "daemon/teacher/pass.h"
#include "daemon/teacher/schedule.h"
#include "daemon/teacher/teacher.h"

struct answer;
struct backend;

struct teacher {
	struct teacher_options options;
	char *device;
	struct teacher_source *sources;        // (n_members) with their own copies of paths
	struct queue *queue;
	pthread_t thread;
	_Atomic(enum teacher_state) state;
	struct error error;                    // written before state becomes FAILED
	uint32_t n_members;
	struct teacher_info *infos;            // (n_members) written before state becomes READY
	// the engine's alone, once the thread runs
	struct member *members;                // (n_members) but for their counters
	struct tokenizer *tokenizer;           // of all of them; immutable: any thread may use it after READY
	struct backend *backend;
	struct shelf *shelf;                   // where memory is bounded
	struct answer *answer;
	struct pass passes[2], *under_way;     // in turn; the last one, when some of its answers are still to be given; or NULL
	double lap_began;                      // of the stage under way, clock_seconds()
	struct schedule mixtures;              // scores that more than one member answers
	uint32_t turn;                         // whose pass was the last: a member's number, or n_members for a mixture's
	// counters
	atomic_uint_fast64_t n_passes, n_mixed, n_sequences, n_positions, n_rows, n_dropped, n_not_finite;
	atomic_uint_fast64_t n_shared, n_slots_used, n_slots_idle, n_late_allocations, memory_bytes, n_streamed;
	atomic_uint n_under_way;               // passes
	uint64_t beats;                        // with atomic operations: weights_beat()
	uint64_t n_allocations;                // of the backend, when it was READY
	struct teacher_seconds seconds;
	struct canary *canary;                 // written before state becomes READY
	atomic_uint_fast64_t canary_asked_ms;
	uint64_t canary_interval_ms;           // of teacher_check's thread alone
};

int teacher_load(struct teacher *t, struct error *err);    // the engine's: everything it will ever use
// Without a thread; then teacher_load makes it one that answers through pass_run. teacher_free also after an error (NULL is fine).
int teacher_new(const struct teacher_options *options, struct teacher **ret_teacher, struct error *err);
struct teacher *teacher_free(struct teacher *t);
void teacher_poison(struct teacher *t, const struct error *why);    // the engine's
void teacher_unload(struct teacher *t);                    // half-loaded is fine; the files stay open
struct schedule *teacher_schedule(struct teacher *t, uint32_t i);    // of member i, or (n_members) of mixtures
void teacher_count_slots(struct teacher *t);
void teacher_count_memory(struct teacher *t);
