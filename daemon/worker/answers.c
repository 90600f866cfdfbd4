// SPDX-License-Identifier: Apache-2.0
// One thread, one connection, questions in the order they were asked. The lock guards the list of jobs and the counters; a job's own
// fields belong to the thread until it is done, then to whoever takes it.
#include "daemon/worker/answers.h"

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/error.h"
#include "common/record.h"
#include "daemon/store/store.h"
#include "daemon/worker/link.h"

#define ANSWERS_POLL_MS 200            // how soon a wait notices that it should end
#define ANSWERS_KEEP_TRIES 100         // 10 ms apart: how long a full store queue holds up the next question

struct job {
	struct job *next;
	struct query query;                    // canonical
	uint32_t n;
	struct sequence *sequences;            // (n)
	struct record_rows **rows;             // (n) NULL until answered
	bool done;
	int result;
	struct error error;
	struct answers *answers;               // while it runs
	uint32_t *places;                      // (n) of the request in flight: which sequence each one is
};

struct answers {
	struct link link;                      // the thread's once it runs
	struct store *store;
	pthread_t thread;
	bool running;
	atomic_bool closing;
	pthread_mutex_t lock;
	pthread_cond_t changed;
	struct job *first, *last;              // oldest first; done ones wait here to be taken
	struct answers_stats stats;
};

int answers_get(struct answers *a, const char *path, char **ret_body, size_t *ret_n, struct error *err)
{
	return link_get(&a->link, path, ret_body, ret_n, err);
}

static void record_keep(struct answers *a, struct record *record)
{
	int r = -EAGAIN;
	if (!a->store)
		return;
	for (int i = 0; r == -EAGAIN && i < ANSWERS_KEEP_TRIES && !link_ending(&a->link); i++) {
		r = store_append(a->store, record, STORE_NONE, NULL, NULL, NULL);
		if (r == -EAGAIN)
			link_pause(&a->link, 10);
	}
	pthread_mutex_lock(&a->lock);
	a->stats.n_kept += r == 0;
	a->stats.n_keep_failures += r != 0;
	pthread_mutex_unlock(&a->lock);
}

static void answer_count(struct answers *a, bool cached)
{
	pthread_mutex_lock(&a->lock);
	a->stats.n_answers++;
	a->stats.n_cached += cached;
	pthread_mutex_unlock(&a->lock);
}

// The bytes of an answer are checked twice over: the record's own checks, and that it is the answer to this very question.
static int answer_take(void *arg, uint32_t index, const struct kd_answer *answer, struct error *err)
{
	struct job *job = arg;
	struct answers *a = job->answers;
	uint32_t i = job->places[index];
	size_t n;
	const void *bytes = kd_answer_record(answer, &n);
	struct record *record = NULL;
	struct content_id key = query_key(&a->link.teacher, &job->sequences[i], &job->query);
	int r = record_from_bytes(bytes, n, &record, err);
	if (r == 0 && (job->rows[i] || memcmp(record_key(record), &key, sizeof key)))
		r = error_set(err, ERROR_CORRUPT, "server", "an answer to another question");
	r = r ? r : record_decode(record, &job->rows[i], err);
	if (r == 0) {
		record_keep(a, record);
		answer_count(a, kd_answer_cached(answer));
	}
	record_unref(record);
	return r;
}

static void answers_recall(struct answers *a, struct job *job)
{
	for (uint32_t i = 0; a->store && i < job->n; i++) {
		struct store_question q = {&a->link.teacher, &job->sequences[i], &job->query};
		struct record *record = NULL;
		if (store_answer(a->store, &q, &record, NULL))
			continue;
		if (record_decode(record, &job->rows[i], NULL) == 0)   // damaged: the teacher is asked again
			answer_count(a, true);
		record_unref(record);
	}
}

// Fills the arrays with what is still missing, at most `room`; returns how many.
static uint32_t missing_list(const struct job *job, uint32_t room, struct kd_sequence *sequences)
{
	uint32_t n = 0;
	for (uint32_t i = 0; i < job->n && n < room; i++)
		if (!job->rows[i]) {
			job->places[n] = i;
			sequences[n++] = (struct kd_sequence){.tokens = job->sequences[i].tokens, .n_tokens = job->sequences[i].n_tokens};
		}
	return n;
}

static int job_run(struct answers *a, struct job *job)
{
	struct kd_sequence *sequences = calloc(job->n, sizeof *sequences);
	struct error *err = &job->error;
	int r = 0;
	uint32_t n;
	if (!sequences)
		return error_set(err, ERROR_MEMORY, NULL, "out of memory");
	job->answers = a;
	answers_recall(a, job);
	link_begin(&a->link);
	while (r == 0 && (n = missing_list(job, link_room(&a->link), sequences))) {
		r = link_ask(&a->link, &job->query, sequences, n, answer_take, job, err);
		if (r)
			r = link_wait(&a->link, r, err);
	}
	free(sequences);
	return r;
}

static struct job *job_free(struct job *job)
{
	for (uint32_t i = 0; job && i < job->n; i++) {
		if (job->sequences)
			sequence_done(&job->sequences[i]);
		if (job->rows)
			record_rows_free(job->rows[i]);
	}
	if (job) {
		query_done(&job->query);
		free(job->sequences);
		free(job->rows);
		free(job->places);
		free(job);
	}
	return NULL;
}

static void *thread_main(void *arg)
{
	struct answers *a = arg;
	pthread_mutex_lock(&a->lock);
	while (!atomic_load(&a->closing)) {
		struct job *job = a->first;
		while (job && job->done)
			job = job->next;
		if (!job) {
			pthread_cond_wait(&a->changed, &a->lock);
			continue;
		}
		pthread_mutex_unlock(&a->lock);
		int r = job_run(a, job);
		pthread_mutex_lock(&a->lock);
		job->result = r;
		job->done = true;
		pthread_cond_broadcast(&a->changed);
	}
	pthread_mutex_unlock(&a->lock);
	return NULL;
}

static int answers_start(struct answers *a, const char *store_directory, struct error *err)
{
	struct store_options o = {.directory = store_directory};
	int r = link_open(&a->link, err);
	if (r == 0 && store_directory)
		r = store_open(&o, &a->store, err);
	if (r)
		return r;
	r = pthread_create(&a->thread, NULL, thread_main, a);
	if (r)
		return error_system(err, r, NULL, "cannot start a thread");
	a->running = true;
	return 0;
}

int answers_open(const struct answers_options *options, struct answers **ret, struct error *err)
{
	pthread_condattr_t attributes;
	struct answers *a = calloc(1, sizeof *a);
	if (!a)
		return error_set(err, ERROR_MEMORY, NULL, "out of memory");
	a->link = (struct link){.address = options->server, .token = options->token, .patience_ms = options->patience_ms,
				.stop = options->stop, .closing = &a->closing};
	pthread_mutex_init(&a->lock, NULL);
	pthread_condattr_init(&attributes);
	pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
	pthread_cond_init(&a->changed, &attributes);
	pthread_condattr_destroy(&attributes);
	int r = answers_start(a, options->store_directory, err);
	if (r) {
		answers_close(a);
		return r;
	}
	*ret = a;
	return 0;
}

void answers_close(struct answers *a)
{
	if (!a)
		return;
	if (a->running) {
		pthread_mutex_lock(&a->lock);
		atomic_store(&a->closing, true);
		pthread_cond_broadcast(&a->changed);
		pthread_mutex_unlock(&a->lock);
		pthread_join(a->thread, NULL);
	}
	link_close(&a->link);
	store_close(a->store);
	for (struct job *job = a->first, *next; job; job = next) {
		next = job->next;
		job_free(job);
	}
	pthread_cond_destroy(&a->changed);
	pthread_mutex_destroy(&a->lock);
	free(a);
}

const struct content_id *answers_teacher(const struct answers *a)
{
	return &a->link.teacher;
}

static int job_fill(struct answers *a, struct job *job, const struct query *query, const uint32_t *const *sequences, uint32_t length,
		    struct error *err)
{
	struct query_limits limits = {.max_tokens = a->link.server.max_tokens, .max_top_k = a->link.server.max_top_k,
				      .vocab_size = a->link.server.vocab_size};
	for (uint32_t i = 0; i < job->n; i++) {
		if (sequence_init(&job->sequences[i], sequences[i], length))
			return error_set(err, ERROR_MEMORY, NULL, "out of memory");
		query_done(&job->query);       // all have one length, hence one canonical query
		if (query_copy(&job->query, query))
			return error_set(err, ERROR_MEMORY, NULL, "out of memory");
		int r = query_check(&job->query, &job->sequences[i], &limits, NULL, err);
		if (r)
			return r;
	}
	return 0;
}

int answers_submit(struct answers *a, const struct query *query, const uint32_t *const *sequences, uint32_t n, uint32_t length,
		   struct error *err)
{
	struct job *job = calloc(1, sizeof *job);
	if (job) {
		job->n = n;
		job->sequences = calloc(n, sizeof *job->sequences);
		job->rows = calloc(n, sizeof *job->rows);
		job->places = calloc(n, sizeof *job->places);
	}
	int r = job && job->sequences && job->rows && job->places ? job_fill(a, job, query, sequences, length, err)
		: error_set(err, ERROR_MEMORY, NULL, "out of memory");
	if (r) {
		job_free(job);
		return r;
	}
	pthread_mutex_lock(&a->lock);
	if (a->first)
		a->last->next = job;
	else
		a->first = job;
	a->last = job;
	pthread_cond_broadcast(&a->changed);
	pthread_mutex_unlock(&a->lock);
	return 0;
}

// Waits for the oldest job and takes it off the list; NULL when asked to stop.
static struct job *oldest_take(struct answers *a)
{
	pthread_mutex_lock(&a->lock);
	while (a->first && !a->first->done && !link_ending(&a->link)) {
		struct timespec until;
		clock_gettime(CLOCK_MONOTONIC, &until);
		until.tv_nsec += ANSWERS_POLL_MS * 1000000L;
		if (until.tv_nsec >= 1000000000L) {
			until.tv_nsec -= 1000000000L;
			until.tv_sec++;
		}
		pthread_cond_timedwait(&a->changed, &a->lock, &until);
	}
	struct job *job = a->first && a->first->done ? a->first : NULL;
	if (job)
		a->first = job->next;
	pthread_mutex_unlock(&a->lock);
	return job;
}

int answers_next(struct answers *a, struct record_rows **ret_rows, struct error *err)
{
	struct job *job = oldest_take(a);
	if (!job)
		return error_set(err, ERROR_CANCELLED, NULL, "asked to stop");
	int r = job->result;
	if (r) {
		*err = job->error;
	} else {
		memcpy(ret_rows, job->rows, job->n * sizeof *ret_rows);
		memset(job->rows, 0, job->n * sizeof *job->rows);
	}
	job_free(job);
	return r;
}

void answers_stats(struct answers *a, struct answers_stats *ret)
{
	pthread_mutex_lock(&a->lock);
	*ret = a->stats;
	ret->n_reconnects = a->link.n_reconnects;
	pthread_mutex_unlock(&a->lock);
}
