// SPDX-License-Identifier: Apache-2.0
// Answers that lie in shards. Many are read at once; what one directory lacks is looked for in the next. A record that is damaged or gone
// gives rows that are all masked: never a number made up.
#include "daemon/worker/source_shards.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/error.h"
#include "common/record.h"
#include "daemon/log.h"
#include "daemon/store/store.h"

#define SHARDS_DEPTH 64                // reads under way: an SSD gains little beyond, a disk nothing
#define SHARDS_JOIN 256                // questions taken at once, so that small micro-batches reach that depth
#define SHARDS_LOUD 10                 // losses told one by one; all are counted
#define SHARDS_MAX 256                 // directories

// Questions still open, as the store takes them.
struct batch {
	struct store_question *questions;
	struct record **records;
	size_t *places, n;
};

static int batch_new(struct batch *b, size_t n, struct error *err)
{
	*b = (struct batch){calloc(n, sizeof *b->questions), calloc(n, sizeof *b->records), calloc(n, sizeof *b->places), 0};
	return b->questions && b->records && b->places ? 0 : error_set(err, ERROR_MEMORY, NULL, "out of memory");
}

static void batch_free(struct batch *b)
{
	free(b->questions);
	free(b->records);
	free(b->places);
}

static void batch_add(struct batch *b, const struct source *base, const struct question *q, size_t place)
{
	b->questions[b->n] = (struct store_question){&base->info.teacher, q->sequence, q->query};
	b->places[b->n++] = place;
}

// Asks one directory for all that is open. A record whose rows do not hold is as good as none.
static int store_ask(struct source_shards *s, struct shards_store *store, struct batch *b, const struct question *questions, size_t n,
		     struct error *err)
{
	b->n = 0;
	for (size_t i = 0; i < n; i++)
		if (!*questions[i].rows)
			batch_add(b, &s->base, &questions[i], i);
	int r = b->n ? store_reader_answer(store->reader, b->questions, b->n, b->records, err) : 0;
	for (size_t i = 0; i < b->n; i++) {
		if (r == 0 && b->records[i] && record_decode(b->records[i], questions[b->places[i]].rows, err) == -ENOMEM)
			r = -ENOMEM;
		record_unref(b->records[i]);
	}
	return r;
}

static int rows_mask(struct source_shards *s, const struct question *q, struct error *err)
{
	char id[CONTENT_ID_HEX];
	struct content_id sequence = sequence_id(q->sequence);
	int r = record_rows_new(&s->base.info.teacher, s->base.info.vocab_size, q->sequence, q->query, q->rows, err);
	if (r)
		return r;
	memset((*q->rows)->status, ROW_NOT_FINITE, (*q->rows)->n_rows);
	uint64_t n = atomic_fetch_add(&s->base.counters.n_lost, 1) + 1;
	content_id_to_hex(&sequence, id);
	if (n <= SHARDS_LOUD)
		log_warning("the answer about sequence %s is damaged or gone: its %u rows are left out%s", id, (*q->rows)->n_rows,
			    n == SHARDS_LOUD ? "; more of the kind are only counted" : "");
	return 0;
}

static int shards_answer(struct source *base, const struct query *asked, const struct question *questions, size_t n, struct error *err)
{
	struct source_shards *s = (struct source_shards *)base;
	struct batch b;
	int r = batch_new(&b, n, err);
	(void)asked;
	for (size_t i = 0; r == 0 && i < s->n_stores; i++)
		r = store_ask(s, &s->stores[i], &b, questions, n, err);
	for (size_t i = 0; r == 0 && i < n; i++) {
		if (!*questions[i].rows)
			r = rows_mask(s, &questions[i], err);
		else
			atomic_fetch_add(&base->counters.n_cached, 1);
	}
	if (r == 0)
		atomic_fetch_add(&base->counters.n_answers, n);
	batch_free(&b);
	return r;
}

// What the index is sure of is not read; a record that may contain the answer is.
static int store_count(struct source_shards *s, struct shards_store *store, struct batch *b, const struct question *questions, uint32_t n,
		       bool *ret_has, struct error *err)
{
	b->n = 0;
	for (uint32_t i = 0; i < n; i++) {
		struct store_question q = {&s->base.info.teacher, questions[i].sequence, questions[i].query};
		int known = ret_has[i] ? -ENOENT : store_peek(store->store, &q);
		if (known == 1)
			ret_has[i] = true;
		else if (known == 0)
			batch_add(b, &s->base, &questions[i], i);
	}
	int r = b->n ? store_reader_answer(store->reader, b->questions, b->n, b->records, err) : 0;
	for (size_t i = 0; i < b->n; i++) {
		ret_has[b->places[i]] = b->records[i] != NULL;
		record_unref(b->records[i]);
	}
	return r;
}

static int shards_count(struct source *base, const struct question *questions, uint32_t n, bool *ret_has, struct error *err)
{
	struct source_shards *s = (struct source_shards *)base;
	struct batch b;
	int r = batch_new(&b, n, err);
	memset(ret_has, 0, n * sizeof *ret_has);
	for (size_t i = 0; r == 0 && i < s->n_stores; i++)
		r = store_count(s, &s->stores[i], &b, questions, n, ret_has, err);
	batch_free(&b);
	return r;
}

static void shards_close(struct source *base)
{
	struct source_shards *s = (struct source_shards *)base;
	for (size_t i = 0; i < s->n_stores; i++) {
		store_reader_close(s->stores[i].reader);
		store_close(s->stores[i].store);
		free(s->stores[i].directory);
	}
	free(s->stores);
	free(s);
}

static int store_add(struct source_shards *s, const char *name, size_t n, struct error *err)
{
	struct shards_store *more = reallocarray(s->stores, s->n_stores + 1, sizeof *more), *one;
	struct error why = {0};
	if (!more)
		return error_set(err, ERROR_MEMORY, NULL, "out of memory");
	s->stores = more;
	one = &more[s->n_stores++];
	*one = (struct shards_store){.directory = strndup(name, n)};
	if (!one->directory)
		return error_set(err, ERROR_MEMORY, NULL, "out of memory");
	struct store_options o = {.directory = one->directory, .read_only = true, .rounded = true};
	int r = store_open(&o, &one->store, &why);
	r = r ? r : store_reader_open(one->store, SHARDS_DEPTH, &one->reader, &why);
	return r ? error_set(err, why.code, "teacher", "%s", why.message) : 0;
}

static int stores_open(struct source_shards *s, const char *list, struct error *err)
{
	int r = 0;
	for (const char *at = list; r == 0 && *at;) {
		size_t n = strcspn(at, ",");
		if (n == 0 || s->n_stores == SHARDS_MAX)
			return error_set(err, ERROR_INVALID, "teacher", "shards: an empty name, or more than %d directories", SHARDS_MAX);
		r = store_add(s, at, n, err);
		at += n + (at[n] == ',');
	}
	return r == 0 && s->n_stores == 0 ? error_set(err, ERROR_INVALID, "teacher", "shards: names no directory") : r;
}

int source_shards_open(const struct answers_options *options, const atomic_bool *closing, struct source **ret, struct error *err)
{
	static const struct source_ops ops = {
		.answer = shards_answer, .count = shards_count, .survey = survey_sequences, .close = shards_close};
	struct source_shards *s = calloc(1, sizeof *s);
	if (!s)
		return error_set(err, ERROR_MEMORY, NULL, "out of memory");
	s->base = (struct source){.ops = &ops, .max_questions = SHARDS_JOIN, .stop = options->stop, .closing = closing};
	*ret = &s->base;
	int r = stores_open(s, options->shards, err);
	return r ? r : survey_teacher(s, options->teacher_id, err);
}
