// SPDX-License-Identifier: Apache-2.0
// The thread of a door only moves bytes and answers what is answered at once (/live, /ready, /metrics, refusals). What may take long,
// reading bodies and making replies of answers, is done at a desk, by a thread of its own: however much of that there is, it delays
// itself alone. A small piece of it is done on the spot while the round has time for it, as handing over costs more than the work.
//
// Each door has a desk, and all functions belong to the door's thread.
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "daemon/queue.h"

struct desk;
struct error;

struct desk_job {
	struct queue_item link;                    // first: a queue_item pointer is a job pointer
	void (*work)(struct desk_job *job);        // by the desk's thread, whose the job and all that it is about are meanwhile
	uint64_t n_bytes;                          // of the body to be read, for desk_check_room
};

// done_fd: an eventfd of the door's loop (queue_open's wake_fd), written when jobs are back. round_seconds: how much small work may be done
// on the spot in a round, that is between two looks at the sockets; INFINITY: all of it.
int desk_open(int done_fd, double round_seconds, struct desk **ret_desk, struct error *err);
struct desk *desk_close(struct desk *d);           // it is empty; NULL is fine; returns NULL
void desk_begin_round(struct desk *d);
// Whether work on so many bytes may be done on the spot.
bool desk_has_time(const struct desk *d, uint64_t n_bytes);
// Whether a resource (control.h) may be answered on the spot.
bool desk_has_time_to_call(const struct desk *d, const char *method, const char *path, uint64_t n_bytes);
// ERROR_OVERLOADED when so much waits that a call with such a body would wait too long.
int desk_check_room(const struct desk *d, uint64_t n_bytes, struct error *err);
void desk_give(struct desk *d, struct desk_job *job);
struct desk_job *desk_take(struct desk *d);        // one that is done; NULL = none now
bool desk_is_empty(const struct desk *d);          // every job given was taken again
