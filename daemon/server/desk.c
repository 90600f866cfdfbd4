// SPDX-License-Identifier: Apache-2.0
#include "daemon/server/desk.h"

#include <pthread.h>
#include <stdlib.h>

#include "common/error.h"
#include "daemon/clock.h"
#include "daemon/server/control.h"

#define SMALL_BYTES 4096             // of a body, or of the answer that a piece of a reply is made of: some tens of microseconds
#define MAX_BYTES (64u << 20)        // of bodies: half a minute of tokenizing, which is as long as a client may be expected to wait

struct desk {
	struct queue *jobs, *done;         // on their way there and back
	uint32_t n_jobs;
	uint64_t n_bytes;
	double round_seconds, round_ends;                 // clock_seconds(): until when small work is done on the spot
	pthread_t thread;
	bool has_thread;
};

void desk_begin_round(struct desk *d)
{
	d->round_ends = clock_seconds() + d->round_seconds;
}

bool desk_has_time(const struct desk *d, uint64_t n_bytes)
{
	return n_bytes <= SMALL_BYTES && clock_seconds() < d->round_ends;
}

bool desk_has_time_to_call(const struct desk *d, const char *method, const char *path, uint64_t n_bytes)
{
	enum control_pace pace = control_pace(method, path);
	return pace == CONTROL_QUICK || (pace == CONTROL_OF_BODY && desk_has_time(d, n_bytes));
}

// Where nothing waits there is room for any.
int desk_check_room(const struct desk *d, uint64_t n_bytes, struct error *err)
{
	if (!d->n_bytes || d->n_bytes + n_bytes <= MAX_BYTES)
		return 0;
	return error_set(err, ERROR_OVERLOADED, NULL, "bodies of %llu bytes wait before this one (limit %u): try again later",
			 (unsigned long long)d->n_bytes, MAX_BYTES);
}

void desk_give(struct desk *d, struct desk_job *job)
{
	d->n_jobs++;
	d->n_bytes += job->n_bytes;
	queue_push(d->jobs, &job->link);
}

struct desk_job *desk_take(struct desk *d)
{
	struct desk_job *job = (struct desk_job *)queue_pop(d->done, false);
	if (!job)
		return NULL;
	d->n_jobs--;
	d->n_bytes -= job->n_bytes;
	return job;
}

bool desk_is_empty(const struct desk *d)
{
	return !d->n_jobs;
}

static void *desk_loop(void *arg)
{
	struct desk *d = arg;
	struct desk_job *job;
	pthread_setname_np(pthread_self(), "desk");
	while ((job = (struct desk_job *)queue_pop(d->jobs, true))) {
		job->work(job);
		queue_push(d->done, &job->link);
	}
	return NULL;
}

int desk_open(int done_fd, double round_seconds, struct desk **ret_desk, struct error *err)
{
	struct desk *d = calloc(1, sizeof *d);
	if (!d || queue_open(NULL, -1, &d->jobs) || queue_open(NULL, done_fd, &d->done)) {
		desk_close(d);
		return error_set(err, ERROR_MEMORY, "desk", "no memory for a door's desk");
	}
	d->round_seconds = round_seconds;
	desk_begin_round(d);
	int r = pthread_create(&d->thread, NULL, desk_loop, d);
	if (r) {
		desk_close(d);
		return error_system(err, r, "desk", "cannot start the desk thread");
	}
	d->has_thread = true;
	*ret_desk = d;
	return 0;
}

struct desk *desk_close(struct desk *d)
{
	if (!d)
		return NULL;
	if (d->has_thread) {
		queue_stop(d->jobs);
		pthread_join(d->thread, NULL);
	}
	queue_close(d->jobs);
	queue_close(d->done);
	free(d);
	return NULL;
}
