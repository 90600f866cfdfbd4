// SPDX-License-Identifier: Apache-2.0
// Answers of a live teacher, and the run's own store of them: what is found there is not asked again.
#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/error.h"
#include "common/record.h"
#include "daemon/log.h"
#include "daemon/model/document.h"
#include "daemon/store/store.h"
#include "daemon/worker/link.h"
#include "daemon/worker/source.h"

#define KEEP_TRIES 100                 // 10 ms apart: how long a full store queue holds up the next question

struct source_server {
	struct source base;
	struct link link;
	struct store *store;                   // NULL: nothing is kept
};

// A request in flight.
struct asking {
	struct source_server *server;
	const struct question *questions;
	uint32_t *places;                      // which question each of its sequences is
	struct kd_lists *gather;               // of each of its sequences
};

static void record_keep(struct source_server *s, struct record *record)
{
	int r = -EAGAIN;
	if (!s->store)
		return;
	for (int i = 0; r == -EAGAIN && i < KEEP_TRIES && !source_ending(&s->base); i++) {
		r = store_append(s->store, record, STORE_NONE, NULL, NULL, NULL);
		if (r == -EAGAIN)
			link_pause(&s->link, 10);
	}
	atomic_fetch_add(r == 0 ? &s->base.counters.n_kept : &s->base.counters.n_keep_failures, 1);
}

static void answer_count(struct source_server *s, bool cached)
{
	atomic_fetch_add(&s->base.counters.n_answers, 1);
	atomic_fetch_add(&s->base.counters.n_cached, cached);
}

// The bytes of an answer are checked twice over: the record's own checks, and that it is the answer to this very question.
static int answer_take(void *arg, uint32_t index, const struct kd_answer *answer, struct error *err)
{
	struct asking *asking = arg;
	struct source_server *s = asking->server;
	const struct question *q = &asking->questions[asking->places[index]];
	size_t n;
	const void *bytes = kd_answer_record(answer, &n);
	struct record *record = NULL;
	struct content_id key = query_key(&s->base.info.teacher, q->sequence, q->query);
	int r = record_from_bytes(bytes, n, &record, err);
	if (r == 0 && (*q->rows || memcmp(record_key(record), &key, sizeof key) != 0))
		r = error_set(err, ERROR_CORRUPT, "server", "an answer to another question");
	r = r ? r : record_decode(record, q->rows, err);
	if (r == 0) {
		record_keep(s, record);
		answer_count(s, kd_answer_cached(answer));
	}
	record_unref(record);
	return r;
}

static void answers_recall(struct source_server *s, const struct question *questions, size_t n)
{
	for (size_t i = 0; s->store && i < n; i++) {
		struct store_question q = {&s->base.info.teacher, questions[i].sequence, questions[i].query};
		struct record *record = NULL;
		if (store_answer(s->store, &q, &record, NULL))
			continue;
		if (record_decode(record, questions[i].rows, NULL) == 0)       // damaged: the teacher is asked again
			answer_count(s, true);
		record_unref(record);
	}
}

// The ids asked about in one sequence alone; a kd_lists is a view of them.
static const struct kd_lists *gather_of(const struct asking *asking, uint32_t i, uint32_t place)
{
	const struct id_lists *g = &asking->questions[i].query->gather;
	if (!g->n_lists)
		return NULL;
	asking->gather[place] = (struct kd_lists){g->n_lists, g->offsets, g->ids};
	return &asking->gather[place];
}

// Fills the arrays with what is still missing, at most `room`; returns how many.
static uint32_t missing_list(struct asking *asking, size_t n_questions, uint32_t room, struct kd_sequence *sequences)
{
	uint32_t n = 0;
	for (uint32_t i = 0; i < n_questions && n < room; i++) {
		const struct question *q = &asking->questions[i];
		if (!*q->rows) {
			asking->places[n] = i;
			sequences[n] = (struct kd_sequence){.tokens = q->sequence->tokens, .n_tokens = q->sequence->n_tokens,
							    .gather = gather_of(asking, i, n)};
			n++;
		}
	}
	return n;
}

static int server_answer(struct source *base, const struct query *asked, const struct question *questions, size_t n, struct error *err)
{
	struct source_server *s = (struct source_server *)base;
	struct kd_sequence *sequences = calloc(n, sizeof *sequences);
	struct asking asking = {s, questions, calloc(n, sizeof *asking.places), calloc(n, sizeof *asking.gather)};
	int r = sequences && asking.places && asking.gather ? 0 : error_set(err, ERROR_MEMORY, NULL, "out of memory");
	uint32_t some;
	if (r)
		goto out;
	answers_recall(s, questions, n);
	link_begin(&s->link);
	while (r == 0 && (some = missing_list(&asking, n, link_room(&s->link), sequences))) {
		r = link_ask(&s->link, asked, sequences, some, answer_take, &asking, err);
		if (r)
			r = link_wait(&s->link, r, err);
	}
	atomic_store(&base->counters.n_reconnects, s->link.n_reconnects);
out:
	free(asking.places);
	free(asking.gather);
	free(sequences);
	return r;
}

static int server_get(struct source *base, const char *path, char **ret_body, size_t *ret_n, struct error *err)
{
	struct source_server *s = (struct source_server *)base;
	return link_get(&s->link, path, ret_body, ret_n, err);
}

static bool id_of(const json_t *j, const char *key, struct content_id *ret)
{
	const char *hex = json_string_value(json_object_get(j, key));
	return hex && content_id_from_hex(hex, ret) == 0;
}

static void word_of(const json_t *j, const char *key, char *ret, size_t size)
{
	const char *text = json_string_value(json_object_get(j, key));
	snprintf(ret, size, "%s", text ? text : "");
}

// What the server says of the teacher counts if it proves the fingerprint;
// a server whose codec is another may say something we cannot check.
static void provenance_take(struct answers_info *info, const json_t *model)
{
	const json_t *one;
	size_t i;
	json_array_foreach(json_object_get(model, "teachers"), i, one) {
		struct provenance p = {.codec = PROVENANCE_CODEC};
		struct content_id id;
		json_int_t n = json_integer_value(json_object_get(one, "n_parameters"));
		if (id_of(one, "id", &id) && memcmp(&id, &info->teacher, sizeof id) == 0 && n > 0)
			info->n_parameters = (uint64_t)n;
		if (!id_of(one, "weights_id", &p.weights) || !id_of(one, "tokenizer_id", &p.tokenizer))
			continue;
		word_of(one, "numeric", p.numeric, sizeof p.numeric);
		word_of(one, "name", p.name, sizeof p.name);
		p.fingerprint = provenance_fingerprint(&p);
		if (memcmp(&p.fingerprint, &info->teacher, sizeof info->teacher) != 0)
			continue;
		info->described = true;
		info->provenance = p;
	}
}

static int info_fill(struct source_server *s, struct error *err)
{
	struct answers_info *info = &s->base.info;
	char *body = NULL;
	size_t n = 0;
	int r = link_get(&s->link, "/v1/model", &body, &n, err);
	json_t *model = NULL;
	r = r ? r : document_parse(body, n, "/v1/model", LINK_MODEL_VALUES, &model, err);
	free(body);
	if (r)
		return r;
	*info = (struct answers_info){.teacher = s->link.teacher, .vocab_size = s->link.server.vocab_size,
				      .max_tokens = s->link.server.max_tokens, .max_top_k = s->link.server.max_top_k,
				      .max_gather = s->link.server.max_gather, .max_draws = s->link.server.max_draws,
				      .n_layers = s->link.server.n_layers};
	provenance_take(info, model);
	json_decref(model);
	if (info->vocab_size < 1 || info->vocab_size > QUERY_MAX_VOCABULARY)
		return error_set(err, ERROR_CORRUPT, "server", "it names no vocabulary");
	return 0;
}

static int own_store_open(struct source_server *s, const char *directory, struct error *err)
{
	struct store_options o = {.directory = directory};
	struct error why = {0};
	int r = directory ? store_open(&o, &s->store, err) : 0;
	if (r == 0 && s->store && s->base.info.described && store_describe(s->store, &s->base.info.provenance, &why))
		log_warning("%s", why.message);
	return r;
}

static void server_close(struct source *base)
{
	struct source_server *s = (struct source_server *)base;
	link_close(&s->link);
	store_close(s->store);
	free(s);
}

int source_server_open(const struct answers_options *options, const atomic_bool *closing, struct source **ret, struct error *err)
{
	static const struct source_ops ops = {.answer = server_answer, .get = server_get, .close = server_close};
	struct source_server *s = calloc(1, sizeof *s);
	if (!s)
		return error_set(err, ERROR_MEMORY, NULL, "out of memory");
	s->base = (struct source){.ops = &ops, .stop = options->stop, .closing = closing};
	s->link = (struct link){.address = options->server, .teacher_name = options->teacher, .teacher_id = options->teacher_id,
				.masked = options->masked, .token = options->token, .ca = options->ca, .server_name = options->server_name,
				.patience_ms = options->patience_ms, .stop = options->stop, .closing = closing};
	*ret = &s->base;
	int r = link_open(&s->link, err);
	r = r ? r : info_fill(s, err);
	return r ? r : own_store_open(s, options->store_directory, err);
}
