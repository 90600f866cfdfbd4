// SPDX-License-Identifier: Apache-2.0
// The store on this machine. What was appended counts once the store's own thread has said that it is as safe as was asked for.
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>

#include "clients/kdctl/capture.h"
#include "common/error.h"
#include "common/provenance.h"
#include "daemon/store/store.h"

struct keep {
	struct kdctl *k;
	struct store *store;
	enum store_durability durability;
	pthread_mutex_t lock;            // of what follows
	pthread_cond_t changed;
	uint64_t n_appended, n_safe;
	struct error failure;            // the first; code ERROR_NONE = none
	bool told;                       // that it failed
};

int keep_open(struct kdctl *k, const struct capture_options *o, struct keep **ret)
{
	struct store_options options = {.directory = o->store};
	struct error err = {0};
	struct keep *s = calloc(1, sizeof *s);
	if (!s)
		return kdctl_fail(k, "no memory");
	s->k = k;
	s->durability = o->durable ? STORE_DURABLE : STORE_FLUSHED;
	pthread_mutex_init(&s->lock, NULL);
	pthread_cond_init(&s->changed, NULL);
	*ret = s;
	return store_open(&options, &s->store, &err) ? kdctl_fail_with(k, err.field, err.message) : 0;
}

void keep_close(struct keep *s)
{
	if (!s)
		return;
	store_close(s->store);
	pthread_cond_destroy(&s->changed);
	pthread_mutex_destroy(&s->lock);
	free(s);
}

int keep_describe(struct keep *s, const struct provenance *p)
{
	struct error err = {0};
	return store_describe(s->store, p, &err) ? kdctl_fail_with(s->k, err.field, err.message) : 0;
}

void keep_find(struct keep *s, const struct content_id *teacher, const struct item *i, const struct query *q, struct record **ret)
{
	struct sequence sequence = {i->tokens, i->n_tokens};
	struct store_question question = {teacher, &sequence, q};
	if (store_answer(s->store, &question, ret, NULL))      // damaged is as good as absent: it is asked for and kept anew
		*ret = NULL;
}

// In the store's thread.
static void safe(void *arg, const struct error *err)
{
	struct keep *s = arg;
	pthread_mutex_lock(&s->lock);
	s->n_safe++;
	if (err && !s->failure.code)
		s->failure = *err;
	pthread_cond_signal(&s->changed);
	pthread_mutex_unlock(&s->lock);
}

static int told_failure(struct keep *s)
{
	if (!s->failure.code || s->told)
		return s->failure.code != ERROR_NONE;
	s->told = true;
	return kdctl_fail_with(s->k, s->failure.field, s->failure.message);
}

int keep_append(struct keep *s, struct record *record)
{
	struct error err = {0};
	for (;;) {
		pthread_mutex_lock(&s->lock);
		uint64_t safe_before = s->n_safe;
		int status = told_failure(s);
		pthread_mutex_unlock(&s->lock);
		if (status)
			return status;
		int r = store_append(s->store, record, s->durability, safe, s, &err);
		if (r && r != -EAGAIN)
			return kdctl_fail_with(s->k, err.field, err.message);
		pthread_mutex_lock(&s->lock);
		s->n_appended += r == 0;
		while (r && s->n_safe == safe_before && s->n_safe != s->n_appended)
			pthread_cond_wait(&s->changed, &s->lock);
		pthread_mutex_unlock(&s->lock);
		if (!r)
			return 0;
	}
}

int keep_wait(struct keep *s)
{
	pthread_mutex_lock(&s->lock);
	while (s->n_safe != s->n_appended)
		pthread_cond_wait(&s->changed, &s->lock);
	int status = told_failure(s);
	pthread_mutex_unlock(&s->lock);
	return status;
}

uint64_t keep_n_duplicates(struct keep *s)
{
	struct store_stats stats;
	store_stats(s->store, &stats);
	return stats.n_duplicates;
}
