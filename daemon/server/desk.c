// SPDX-License-Identifier: Apache-2.0
#include "daemon/server/desk.h"

#include <pthread.h>
#include <stdlib.h>

#include "common/error.h"
#include "daemon/clock.h"

#define SMALL_BYTES 4096             // of a body, or of the answer that a piece of a reply is made of: some tens of microseconds
#define ROUND_SECONDS 0.001          // of such work between two looks at the sockets

struct desk {
	struct queue *jobs, *done;         // on their way there and back
	uint32_t n_jobs;
	double round_ends;                 // clock_seconds(): until when small work is done on the spot
	pthread_t thread;
	bool has_thread;
};

void desk_begin_round(struct desk *d)
{
	d->round_ends = clock_seconds() + ROUND_SECONDS;
}

bool desk_has_time(const struct desk *d, uint64_t n_bytes)
{
	return n_bytes <= SMALL_BYTES && clock_seconds() < d->round_ends;
}

void desk_give(struct desk *d, struct desk_job *job)
{
	d->n_jobs++;
	queue_push(d->jobs, &job->link);
}

struct desk_job *desk_take(struct desk *d)
{
	struct desk_job *job = (struct desk_job *)queue_pop(d->done, false);
	if (job)
		d->n_jobs--;
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

int desk_open(int done_fd, struct desk **ret_desk, struct error *err)
{
	struct desk *d = calloc(1, sizeof *d);
	if (!d || queue_open(NULL, -1, &d->jobs) || queue_open(NULL, done_fd, &d->done)) {
		desk_close(d);
		return error_set(err, ERROR_MEMORY, "desk", "no memory for a door's desk");
	}
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
