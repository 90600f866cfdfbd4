// SPDX-License-Identifier: Apache-2.0
// The thread of a door only moves bytes and answers what is answered at once (/live, /ready, /metrics, refusals). What may take long,
// reading bodies and making replies of answers, is done at a desk, by threads of its own: however much of that there is, it delays
// itself alone. A small piece of it is done on the spot while the round has time for it, as handing over costs more than the work.
//
// Those who ask take turns there, so that nobody's megabytes are worked off before another's first; and while one thread works off
// megabytes, another takes what is small.
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
	void (*work)(struct desk_job *job);        // by a thread of the desk's, whose the job and all that it is about are meanwhile
	const void *who;                           // asks (auth_asker)
	uint64_t n_bytes;                          // how much it is: of a body, of the answer that a reply's piece is made of, of a call
	uint64_t n_body;                           // of the body to be read, for desk_check_room
	struct desk_job *next;                     // the desk's, as is what follows
	uint64_t turn;
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
// How much a resource is reckoned as.
uint64_t desk_call_bytes(const char *method, const char *path, uint64_t n_body);
// ERROR_OVERLOADED when so much waits that a call with such a body would wait too long, or so much of the same asker's (QUEUE_SHARE).
int desk_check_room(struct desk *d, const void *who, uint64_t n_body, struct error *err);
void desk_give(struct desk *d, struct desk_job *job);
struct desk_job *desk_take(struct desk *d);        // one that is done; NULL = none now
bool desk_is_empty(const struct desk *d);          // every job given was taken again
