// SPDX-License-Identifier: Apache-2.0
// What shards hold: whose answers, and about which sequences. Everything is read once, in shard order, and damage is told where it lies.
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/error.h"
#include "common/record.h"
#include "daemon/log.h"
#include "daemon/store/part.h"
#include "daemon/store/store.h"
#include "daemon/worker/source_shards.h"

#define SURVEY_TEACHERS 16             // told apart; of more, some
#define SURVEY_TEXT 240                // of their list in a message

// Calls `each` for every record of every directory until it returns other than 0. 1: it was asked to leave.
typedef int each_fn(void *arg, struct record *record, struct error *err);

static int store_walk(struct source_shards *s, struct shards_store *store, each_fn *each, void *arg, uint64_t *n_damaged, struct error *err)
{
	struct store_cursor cursor = {0};
	struct record *record = NULL;
	char place[96];
	int r = 0;
	while (r == 0) {
		struct error why = {0};
		if (source_ending(&s->base))
			return error_set(err, ERROR_CANCELLED, NULL, "asked to stop");
		int got = store_next(store->store, &cursor, &record, place, &why);
		if (got == -ENOENT)
			return 0;
		if (got == -EBADMSG) {
			log_warning("%s/%s: %s", store->directory, place, why.message);
			++*n_damaged;
			continue;
		}
		r = got ? error_set(err, why.code, "teacher", "%s: %s", store->directory, why.message) : each(arg, record, err);
		record = record_unref(record);
	}
	return r;
}

static int shards_walk(struct source_shards *s, each_fn *each, void *arg, uint64_t *n_damaged, struct error *err)
{
	int r = 0;
	for (size_t i = 0; r == 0 && i < s->n_stores; i++)
		r = store_walk(s, &s->stores[i], each, arg, n_damaged, err);
	return r;
}

// ---- whose

struct tally {
	struct provenance known[SURVEY_TEACHERS];
	bool described[SURVEY_TEACHERS];
	size_t n;
	const struct content_id *wanted;       // the walk ends at its first record; NULL = go through all
	uint32_t vocab_size;                   // of the last record looked at
	bool found;
};

static void tally_add(struct tally *t, const struct provenance *p, bool described)
{
	for (size_t i = 0; i < t->n; i++)
		if (memcmp(&t->known[i].fingerprint, &p->fingerprint, sizeof p->fingerprint) == 0)
			return;
	if (t->n < SURVEY_TEACHERS) {
		t->described[t->n] = described;
		t->known[t->n++] = *p;
	}
}

static int record_tally(void *arg, struct record *record, struct error *err)
{
	struct tally *t = arg;
	struct provenance p = {.fingerprint = *record_teacher(record)};
	(void)err;
	if (t->wanted && memcmp(t->wanted, &p.fingerprint, sizeof p.fingerprint) != 0)
		return 0;
	t->vocab_size = record_vocab_size(record);
	t->found = true;
	tally_add(t, &p, false);
	return t->wanted ? 1 : 0;
}

static int notes_tally(struct source_shards *s, struct tally *t, struct error *err)
{
	for (size_t i = 0; i < s->n_stores; i++) {
		struct provenance *notes = NULL;
		size_t n = 0;
		int r = store_teachers(s->stores[i].store, &notes, &n, err);
		if (r)
			return r;
		for (size_t k = 0; k < n; k++)
			tally_add(t, &notes[k], true);
		free(notes);
	}
	return 0;
}

static int which_one(const struct tally *t, struct error *err)
{
	char text[SURVEY_TEXT] = "", id[CONTENT_ID_HEX];
	for (size_t i = 0; i < t->n; i++) {
		size_t n = strlen(text);
		content_id_to_hex(&t->known[i].fingerprint, id);
		snprintf(text + n, sizeof text - n, "%s%s%s%s", n ? ", " : "", id, *t->known[i].name ? " " : "", t->known[i].name);
	}
	return error_set(err, ERROR_INVALID, "teacher-id", "the shards may hold answers of several teachers; name one: %s", text);
}

static int info_take(struct source_shards *s, const struct tally *t, const struct content_id *teacher, struct error *err)
{
	struct answers_info *info = &s->base.info;
	char id[CONTENT_ID_HEX];
	content_id_to_hex(teacher, id);
	if (!t->found)
		return error_set(err, ERROR_NOT_FOUND, "teacher", "the shards hold no answer of %s", id);
	*info = (struct answers_info){.teacher = *teacher, .vocab_size = t->vocab_size, .max_tokens = UINT32_MAX,
					.max_top_k = t->vocab_size, .max_gather = t->vocab_size, .max_draws = UINT32_MAX};
	for (size_t i = 0; i < t->n; i++)
		if (t->described[i] && memcmp(&t->known[i].fingerprint, teacher, sizeof *teacher) == 0) {
			info->described = true;
			info->provenance = t->known[i];
		}
	return 0;
}

int survey_teacher(struct source_shards *s, const char *teacher_id, struct error *err)
{
	struct tally t = {0};
	struct content_id teacher;
	uint64_t n_damaged = 0;
	int r = notes_tally(s, &t, err);
	if (r)
		return r;
	if (teacher_id && content_id_from_hex(teacher_id, &teacher))
		return error_set(err, ERROR_INVALID, "teacher-id", "64 hexadecimal digits are expected");
	if (!teacher_id && t.n > 1)
		return which_one(&t, err);
	if (!teacher_id && t.n == 1)
		teacher = t.known[0].fingerprint;
	t.wanted = teacher_id || t.n ? &teacher : NULL;
	r = shards_walk(s, record_tally, &t, &n_damaged, err);
	if (r < 0)
		return r;
	if (t.n == 0)
		return error_set(err, ERROR_NOT_FOUND, "teacher", "the shards hold no answer at all");
	if (!t.wanted && t.n > 1)
		return which_one(&t, err);
	return info_take(s, &t, t.wanted ? t.wanted : &t.known[0].fingerprint, err);
}

// ---- which sequences

struct telling {
	struct source_shards *source;
	const struct query *query;
	uint32_t max_tokens;
	answers_told_fn *told;
	void *arg;
	struct answers_survey *survey;
};

static bool holds(struct record *record, const struct query *question)
{
	struct record *part = NULL;
	if (query_equal(record_query(record), question))
		return true;
	int r = part_extract_rounded(record, question, &part, NULL);
	record_unref(part);
	return r == 0;
}

static int sequence_tell(struct telling *t, struct record *record, const struct sequence *sequence, struct error *err)
{
	struct answers_survey *v = t->survey;
	struct query question;
	int r = source_question(&t->source->base, t->query, sequence, NULL, &question, err);
	if (r)
		goto out;
	if (!holds(record, &question)) {
		query_done(&v->unfit);
		r = query_copy(&v->unfit, record_query(record)) ? error_set(err, ERROR_MEMORY, NULL, "out of memory") : 0;
		v->n_unfit++;
		goto out;
	}
	v->n_told++;
	r = t->told(t->arg, sequence, err);
out:
	query_done(&question);
	return r;
}

static int record_tell(void *arg, struct record *record, struct error *err)
{
	struct telling *t = arg;
	struct sequence sequence;
	uint32_t n = record_n_tokens(record);
	if (memcmp(record_teacher(record), &t->source->base.info.teacher, sizeof(struct content_id)) != 0) {
		t->survey->n_other_teacher++;
		return 0;
	}
	if (n < 2 || n > t->max_tokens) {
		++*(n < 2 ? &t->survey->n_too_short : &t->survey->n_too_long);
		return 0;
	}
	if (record_sequence(record, &sequence))
		return error_set(err, ERROR_MEMORY, NULL, "out of memory");
	int r = sequence_tell(t, record, &sequence, err);
	sequence_done(&sequence);
	return r;
}

int survey_sequences(struct source *base, const struct query *query, uint32_t max_tokens, answers_told_fn *told, void *arg,
		     struct answers_survey *ret, struct error *err)
{
	struct source_shards *s = (struct source_shards *)base;
	struct telling t = {s, query, max_tokens, told, arg, ret};
	return shards_walk(s, record_tell, &t, &ret->n_damaged, err);
}
