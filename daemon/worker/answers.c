// SPDX-License-Identifier: Apache-2.0
// One thread, one source, questions in the order they were asked. The lock guards the list of jobs; a job's own fields belong to the thread
// until it is done, then to whoever takes it.
#include "daemon/worker/answers.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/error.h"
#include "common/record.h"
#include "daemon/worker/source.h"

#define ANSWERS_POLL_MS 200            // how soon a wait notices that it should end
#define ANSWERS_COUNT_TOGETHER 256u    // questions counted at a time

struct job {
	struct job *next;
	struct query asked;                    // of all of them
	uint32_t n;
	struct sequence *sequences;            // (n)
	struct query *queries;                 // (n) canonical
	struct record_rows **rows;             // (n) NULL until answered
	bool done;
	int result;
	struct error error;
};

struct answers {
	struct source *source;                 // the thread's once it runs
	const atomic_bool *stop;
	pthread_t thread;
	bool running;
	atomic_bool closing;
	pthread_mutex_t lock;
	pthread_cond_t changed;
	struct job *first, *last;              // oldest first; done ones wait here to be taken
};

static struct job *job_free(struct job *job)
{
	for (uint32_t i = 0; job && i < job->n; i++) {
		if (job->sequences)
			sequence_done(&job->sequences[i]);
		if (job->queries)
			query_done(&job->queries[i]);
		if (job->rows)
			record_rows_free(job->rows[i]);
	}
	if (job) {
		query_done(&job->asked);
		free(job->sequences);
		free(job->queries);
		free(job->rows);
		free(job);
	}
	return NULL;
}

int source_question(const struct source *s, const struct query *asked, const struct sequence *sequence, const struct id_lists *gather,
		    struct query *ret, struct error *err)
{
	struct query_limits limits = {.max_tokens = s->info.max_tokens, .max_top_k = s->info.max_top_k, .vocab_size = s->info.vocab_size,
				      .max_gather = s->info.max_gather, .max_draws = s->info.max_draws,
				      .n_layers = s->info.n_layers ? s->info.n_layers : UINT16_MAX};
	struct query whole = *asked;           // a view: nothing of it is freed
	if (gather)
		whole.gather = *gather;
	if (query_copy(ret, &whole)) {
		query_init(ret);
		return error_set(err, ERROR_MEMORY, NULL, "out of memory");
	}
	return query_check(ret, sequence, &limits, NULL, err);
}

static int job_fill(const struct answers *a, struct job *job, const struct query *query, const struct sequence *sequences,
		    const struct id_lists *gather, struct error *err)
{
	if (query_copy(&job->asked, query))
		return error_set(err, ERROR_MEMORY, NULL, "out of memory");
	for (uint32_t i = 0; i < job->n; i++) {
		if (sequence_init(&job->sequences[i], sequences[i].tokens, sequences[i].n_tokens))
			return error_set(err, ERROR_MEMORY, NULL, "out of memory");
		int r = source_question(a->source, query, &job->sequences[i], gather ? &gather[i] : NULL, &job->queries[i], err);
		if (r)
			return r;
	}
	return 0;
}

static int job_new(const struct answers *a, const struct query *query, const struct sequence *sequences, const struct id_lists *gather,
		   uint32_t n, struct job **ret, struct error *err)
{
	struct job *job = calloc(1, sizeof *job);
	if (job) {
		job->n = n;
		job->sequences = calloc(n, sizeof *job->sequences);
		job->queries = calloc(n, sizeof *job->queries);
		job->rows = calloc(n, sizeof *job->rows);
	}
	int r = job && job->sequences && job->queries && job->rows ? job_fill(a, job, query, sequences, gather, err)
		: error_set(err, ERROR_MEMORY, NULL, "out of memory");
	if (r)
		job_free(job);
	else
		*ret = job;
	return r;
}

static void questions_add(const struct job *job, struct question *questions, size_t *n)
{
	for (uint32_t i = 0; i < job->n; i++)
		questions[(*n)++] = (struct question){&job->sequences[i], &job->queries[i], &job->rows[i]};
}

// The questions of this job and, where the source joins them, of later ones that ask the same: the more a source of shards knows of, the
// better it can read. How many jobs; under the lock. *ret_questions NULL: out of memory.
static size_t jobs_join(const struct answers *a, const struct job *first, struct question **ret_questions, size_t *ret_n)
{
	size_t room = a->source->max_questions > first->n ? a->source->max_questions : first->n, n_jobs = 0;
	struct question *questions = *ret_questions = reallocarray(NULL, room, sizeof *questions);
	*ret_n = 0;
	for (const struct job *job = first; questions && job && *ret_n + job->n <= room; job = job->next, n_jobs++) {
		if (!query_equal(&job->asked, &first->asked))
			break;
		questions_add(job, questions, ret_n);
	}
	return questions ? n_jobs : 1;
}

static int questions_run(struct answers *a, const struct query *asked, struct question *questions, size_t n, struct error *err)
{
	int r = questions ? a->source->ops->answer(a->source, asked, questions, n, err)
		: error_set(err, ERROR_MEMORY, NULL, "out of memory");
	free(questions);
	return r;
}

static void *thread_main(void *arg)
{
	struct answers *a = arg;
	pthread_mutex_lock(&a->lock);
	while (!atomic_load(&a->closing)) {
		struct job *job = a->first;
		struct question *questions;
		struct error error = {0};
		size_t n;
		while (job && job->done)
			job = job->next;
		if (!job) {
			pthread_cond_wait(&a->changed, &a->lock);
			continue;
		}
		size_t n_jobs = jobs_join(a, job, &questions, &n);
		pthread_mutex_unlock(&a->lock);
		int r = questions_run(a, &job->asked, questions, n, &error);
		pthread_mutex_lock(&a->lock);
		for (; n_jobs-- > 0; job = job->next) {
			job->result = r;
			job->error = error;
			job->done = true;
		}
		pthread_cond_broadcast(&a->changed);
	}
	pthread_mutex_unlock(&a->lock);
	return NULL;
}

static int answers_start(struct answers *a, const struct answers_options *options, struct error *err)
{
	int r = options->shards ? source_shards_open(options, &a->closing, &a->source, err)
		: options->labels ? source_labels_open(options, &a->closing, &a->source, err)
			: source_server_open(options, &a->closing, &a->source, err);
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
	a->stop = options->stop;
	pthread_mutex_init(&a->lock, NULL);
	pthread_condattr_init(&attributes);
	pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
	pthread_cond_init(&a->changed, &attributes);
	pthread_condattr_destroy(&attributes);
	int r = answers_start(a, options, err);
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
	if (a->source)
		a->source->ops->close(a->source);
	for (struct job *job = a->first, *next; job; job = next) {
		next = job->next;
		job_free(job);
	}
	pthread_cond_destroy(&a->changed);
	pthread_mutex_destroy(&a->lock);
	free(a);
}

const struct answers_info *answers_info(const struct answers *a)
{
	return &a->source->info;
}

bool answers_are_shards(const struct answers *a)
{
	return a->source->ops->survey != NULL;
}

int answers_get(struct answers *a, const char *path, char **ret_body, size_t *ret_n, struct error *err)
{
	if (!a->source->ops->get)
		return error_set(err, ERROR_UNSUPPORTED, "teacher", "only a server has %s", path);
	return a->source->ops->get(a->source, path, ret_body, ret_n, err);
}

// Some of them: few enough that their copies do not matter.
static int some_count(struct answers *a, const struct query *query, const struct sequence *sequences, uint32_t n, bool *ret_has,
		      struct error *err)
{
	struct job *job = NULL;
	struct question questions[ANSWERS_COUNT_TOGETHER];
	size_t n_questions = 0;
	int r = job_new(a, query, sequences, NULL, n, &job, err);
	if (r)
		return r;
	questions_add(job, questions, &n_questions);
	r = a->source->ops->count(a->source, questions, n, ret_has, err);
	job_free(job);
	return r;
}

int answers_count(struct answers *a, const struct query *query, const struct sequence *sequences, uint32_t n, bool *ret_has,
		  uint32_t *ret_n_missing, struct error *err)
{
	int r = 0;
	*ret_n_missing = 0;
	memset(ret_has, 1, n * sizeof *ret_has);
	for (uint32_t i = 0, some; a->source->ops->count && i < n && r == 0; i += some) {
		some = n - i < ANSWERS_COUNT_TOGETHER ? n - i : ANSWERS_COUNT_TOGETHER;
		r = atomic_load(a->stop) ? error_set(err, ERROR_CANCELLED, NULL, "asked to stop")
			: some_count(a, query, sequences + i, some, ret_has + i, err);
		for (uint32_t k = 0; r == 0 && k < some; k++)
			*ret_n_missing += !ret_has[i + k];
	}
	return r;
}

int answers_survey(struct answers *a, const struct query *query, uint32_t max_tokens, answers_told_fn *told, void *arg,
		   struct answers_survey *ret, struct error *err)
{
	*ret = (struct answers_survey){0};
	if (!a->source->ops->survey)
		return error_set(err, ERROR_UNSUPPORTED, "corpus", "a server has no list of sequences: name a text");
	return a->source->ops->survey(a->source, query, max_tokens, told, arg, ret, err);
}

int answers_submit(struct answers *a, const struct query *query, const struct sequence *sequences, const struct id_lists *gather,
		   uint32_t n, struct error *err)
{
	struct job *job = NULL;
	int r = job_new(a, query, sequences, gather, n, &job, err);
	if (r)
		return r;
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
	while (a->first && !a->first->done && !atomic_load(a->stop)) {
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
	struct source *s = a->source;
	*ret = (struct answers_stats){
		.n_answers = atomic_load(&s->counters.n_answers), .n_cached = atomic_load(&s->counters.n_cached),
		.n_lost = atomic_load(&s->counters.n_lost), .n_reconnects = atomic_load(&s->counters.n_reconnects),
		.n_kept = atomic_load(&s->counters.n_kept), .n_keep_failures = atomic_load(&s->counters.n_keep_failures),
	};
}
