// SPDX-License-Identifier: Apache-2.0
// Turns are start-time fair queueing: a job's is where its asker's last one ends, counted in bytes, or now; the least is worked off first.
#include "daemon/server/desk.h"

#include <pthread.h>
#include <stdlib.h>

#include "common/error.h"
#include "daemon/clock.h"
#include "daemon/server/control.h"

#define SMALL_BYTES 4096             // of a body, or of the answer that a piece of a reply is made of: some tens of microseconds
#define BESIDE_BYTES 65536           // what is worked off beside larger ones: some tens of milliseconds
#define SLOW_BYTES (1u << 20)        // what reads or writes files is reckoned as a body of so many
#define MAX_BYTES (64u << 20)        // of bodies: half a minute of tokenizing, which is as long as a client may be expected to wait

struct desk_worker {
	struct desk *desk;
	uint64_t most;                     // n_bytes of the largest job it takes
	pthread_t thread;
	bool started;
};

struct desk {
	struct queue *done;                // jobs on their way back
	uint32_t n_jobs;
	uint64_t n_body;                   // of all that were not taken again
	double round_seconds, round_ends;                 // clock_seconds(): until when small work is done on the spot
	struct desk_worker workers[2];     // of all, and of what is small enough
	pthread_mutex_t lock;              // of the rest
	pthread_cond_t given;
	struct desk_job *waiting;          // by turn
	uint64_t turn, end;                // of what was begun last, and of whom
	const void *who;
	bool stopped;
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

uint64_t desk_call_bytes(const char *method, const char *path, uint64_t n_body)
{
	return control_pace(method, path) == CONTROL_SLOW && n_body < SLOW_BYTES ? SLOW_BYTES : n_body;
}

static uint64_t waiting_of(struct desk *d, const void *who)
{
	uint64_t n = 0;
	pthread_mutex_lock(&d->lock);
	for (const struct desk_job *job = d->waiting; who && job; job = job->next)
		n += job->who == who ? job->n_body : 0;
	pthread_mutex_unlock(&d->lock);
	return n;
}

// Where nothing waits there is room for any.
int desk_check_room(struct desk *d, const void *who, uint64_t n_body, struct error *err)
{
	if (!d->n_body || !queue_check(n_body, waiting_of(d, who), d->n_body, MAX_BYTES))
		return 0;
	return error_set(err, ERROR_OVERLOADED, NULL, "bodies of %llu bytes wait before this one (limit %u): try again later",
			 (unsigned long long)d->n_body, MAX_BYTES);
}

// The smallest costs something too.
static uint64_t turn_end(const struct desk_job *job)
{
	return job->turn + job->n_bytes + SMALL_BYTES;
}

static void wait_for_turn(struct desk *d, struct desk_job *job)
{
	struct desk_job **at = &d->waiting;
	job->turn = job->who == d->who ? d->end : d->turn;
	for (const struct desk_job *other = d->waiting; other; other = other->next)
		if (other->who == job->who)
			job->turn = turn_end(other);
	while (*at && (*at)->turn <= job->turn)
		at = &(*at)->next;
	job->next = *at;
	*at = job;
}

void desk_give(struct desk *d, struct desk_job *job)
{
	d->n_jobs++;
	d->n_body += job->n_body;
	pthread_mutex_lock(&d->lock);
	wait_for_turn(d, job);
	pthread_cond_broadcast(&d->given);
	pthread_mutex_unlock(&d->lock);
}

struct desk_job *desk_take(struct desk *d)
{
	struct desk_job *job = (struct desk_job *)queue_pop(d->done, false);
	if (!job)
		return NULL;
	d->n_jobs--;
	d->n_body -= job->n_body;
	return job;
}

bool desk_is_empty(const struct desk *d)
{
	return !d->n_jobs;
}

static void note_turn(struct desk *d, const struct desk_job *job)
{
	d->turn = job->turn;
	d->end = turn_end(job);
	d->who = job->who;
}

// The lock is held. NULL: there will be none.
static struct desk_job *next_for(struct desk_worker *w)
{
	struct desk *d = w->desk;
	for (;;) {
		struct desk_job **at = &d->waiting, *job;
		while ((job = *at) && job->n_bytes > w->most)
			at = &job->next;
		if (job) {
			*at = job->next;
			if (w->most > BESIDE_BYTES)
				note_turn(d, job);
			return job;
		}
		if (d->stopped)
			return NULL;
		pthread_cond_wait(&d->given, &d->lock);
	}
}

static void *desk_loop(void *arg)
{
	struct desk_worker *w = arg;
	struct desk_job *job;
	pthread_setname_np(pthread_self(), "desk");
	pthread_mutex_lock(&w->desk->lock);
	while ((job = next_for(w))) {
		pthread_mutex_unlock(&w->desk->lock);
		job->work(job);
		queue_push(w->desk->done, &job->link);
		pthread_mutex_lock(&w->desk->lock);
	}
	pthread_mutex_unlock(&w->desk->lock);
	return NULL;
}

static int worker_start(struct desk *d, struct desk_worker *w, uint64_t most, struct error *err)
{
	*w = (struct desk_worker){.desk = d, .most = most};
	int r = pthread_create(&w->thread, NULL, desk_loop, w);
	if (r)
		return error_system(err, r, "desk", "cannot start a desk's thread");
	w->started = true;
	return 0;
}

int desk_open(int done_fd, double round_seconds, struct desk **ret_desk, struct error *err)
{
	struct desk *d = calloc(1, sizeof *d);
	if (!d)
		return error_set(err, ERROR_MEMORY, "desk", "no memory for a door's desk");
	pthread_mutex_init(&d->lock, NULL);
	pthread_cond_init(&d->given, NULL);
	d->round_seconds = round_seconds;
	desk_begin_round(d);
	int r = queue_open(NULL, done_fd, &d->done) ? error_set(err, ERROR_MEMORY, "desk", "no memory for a door's desk") : 0;
	r = r ? r : worker_start(d, &d->workers[0], UINT64_MAX, err);
	r = r ? r : worker_start(d, &d->workers[1], BESIDE_BYTES, err);
	if (r)
		desk_close(d);
	else
		*ret_desk = d;
	return r;
}

struct desk *desk_close(struct desk *d)
{
	if (!d)
		return NULL;
	pthread_mutex_lock(&d->lock);
	d->stopped = true;
	pthread_cond_broadcast(&d->given);
	pthread_mutex_unlock(&d->lock);
	for (int i = 0; i < 2; i++)
		if (d->workers[i].started)
			pthread_join(d->workers[i].thread, NULL);
	pthread_cond_destroy(&d->given);
	pthread_mutex_destroy(&d->lock);
	queue_close(d->done);
	free(d);
	return NULL;
}
