// SPDX-License-Identifier: Apache-2.0
// The processes that train one student together: who they are, and what they tell each other. Alone (a team of one) everything is a no-op.
// Backends: none, MPI (team_mpi.c, processes started by mpirun or srun), and for arrays on GPUs NCCL (kernels/peers.h) where it is built.
//
// Every call below is collective: all processes make the same calls in the same order. Sums are made in the order of the ranks, so that
// every process has the same bits, whatever the network does. A failure of one process reaches the others through team_agree alone: after
// work that may fail for one of them, agree, before anything else is exchanged. One that dies, or says nothing for `silence_ms`, ends
// the others with an error. One thread.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct backend;
struct error;
struct real;
struct team;

struct team_options {
	uint64_t silence_ms;           // longest wait for the others; 0 = no end
};

// What started this process says whether it is one of several. ERROR_UNSUPPORTED when it is and this build cannot be.
int team_open(const struct team_options *options, struct team **ret, struct error *err);
// Returns NULL; NULL is fine. Waits for the others, unless the team is broken: then it ends them.
struct team *team_close(struct team *t);

// Of NULL: 0 of 1.
uint32_t team_rank(const struct team *t);
uint32_t team_size(const struct team *t);
void team_set_silence(struct team *t, uint64_t ms);

// The result of all: 0 when all have 0. Else every process gets an error: its own, or the lowest rank's ("process 2: ..."). -ECANCELED
// when some were asked to stop and none failed. After a failure nothing is exchanged any more: later calls give it again.
int team_agree(struct team *t, int r, struct error *err);
#ifdef __clang_analyzer__
// It reads one file at a time, and does not know that there is no agreement on 0 where r is something else.
#define team_agree(t, r, err) ({ \
	int agree_mine = (r), agree_all = team_agree(t, agree_mine, err); \
	__builtin_assume(agree_mine == 0 || agree_all != 0); \
	agree_all; \
})
#endif
// ret_all (size, n): everyone's n bytes.
int team_gather(struct team *t, const void *mine, size_t n, void *ret_all, struct error *err);
// The bytes of rank 0, to all.
int team_broadcast(struct team *t, void *bytes, size_t n, struct error *err);
int team_sum(struct team *t, double *values, size_t n, struct error *err);

// The same for an array on the device: rounded to floats on the way, each sum once. Between GPUs that talk to each other directly in
// NCCL's order, which is the same on all.
int team_sum_array(struct team *t, struct backend *be, struct real *array, size_t n, struct error *err);
int team_broadcast_array(struct team *t, struct backend *be, struct real *array, size_t n, struct error *err);
// Before the first array: lets GPUs talk to each other directly where all can. *ret_how: for people.
int team_join_devices(struct team *t, struct backend *be, const char **ret_how, struct error *err);
