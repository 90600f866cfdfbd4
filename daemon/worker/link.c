// SPDX-License-Identifier: Apache-2.0
#include "daemon/worker/link.h"

#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>

#include "common/error.h"
#include "daemon/clock.h"
#include "daemon/log.h"
#include "daemon/model/document.h"

#define LINK_POLL_MS 200               // how soon a wait notices that it should end
#define LINK_SILENCE_MS 120000         // a connection that says nothing for this long while we wait is taken for dead
#define LINK_BACKOFF_MS 100            // first pause before asking again; doubled up to the next
#define LINK_BACKOFF_MAX_MS 5000

bool link_ending(const struct link *l)
{
	return atomic_load(l->closing) || atomic_load(l->stop);
}

static int cancelled(struct error *err)
{
	return error_set(err, ERROR_CANCELLED, NULL, "asked to stop");
}

static int client_error(struct error *err, const struct kd_error *from)
{
	return error_set(err, error_from_name(from->code), from->field, "%s", from->message);
}

void link_pause(const struct link *l, uint64_t ms)
{
	for (uint64_t until = clock_ms() + ms; !link_ending(l) && clock_ms() < until;)
		nanosleep(&(struct timespec){.tv_nsec = 20000000}, NULL);
}

// Whether asking the same again can bring another answer. Faults of the question, or a teacher that is another one, cannot mend
// themselves.
static bool worth_repeating(enum error_code code)
{
	switch (code) {
	case ERROR_INVALID: case ERROR_UNSUPPORTED: case ERROR_TOO_LARGE: case ERROR_CONFLICT:
	case ERROR_UNAUTHORIZED: case ERROR_FORBIDDEN: case ERROR_NOT_FINITE:
		return false;
	default:
		return true;
	}
}

void link_begin(struct link *l)
{
	l->answered_at_ms = clock_ms();
	l->backoff_ms = LINK_BACKOFF_MS;
}

void link_good(struct link *l)
{
	if (l->complained)
		log_notice("the teacher answers again");
	l->complained = false;
	link_begin(l);
}

int link_wait(struct link *l, int r, struct error *err)
{
	link_close(l);
	if (link_ending(l))
		return cancelled(err);
	if (!worth_repeating(err->code) || clock_ms() - l->answered_at_ms >= l->patience_ms)
		return r;
	if (!l->complained)
		log_warning("the teacher does not answer (%s): waiting for it", err->message);
	l->complained = true;
	link_pause(l, l->backoff_ms);
	l->backoff_ms = l->backoff_ms * 2 < LINK_BACKOFF_MAX_MS ? l->backoff_ms * 2 : LINK_BACKOFF_MAX_MS;
	return link_ending(l) ? cancelled(err) : 0;
}

static int get_once(struct link *l, const char *path, char **ret_body, size_t *ret_n, struct error *err)
{
	struct kd_error why;
	int status = 0;
	if (kd_call(l->client, "GET", path, NULL, 0, &status, ret_body, ret_n, &why))
		return client_error(err, &why);
	if (status < 300)
		return 0;
	free(*ret_body);
	*ret_body = NULL;
	bool later = status == 429 || status == 503 || status == 504;
	return error_set(err, later ? ERROR_UNAVAILABLE : ERROR_UNSUPPORTED, "server", "GET %s: status %d", path, status);
}

// A run that a server started asks that server with the secret it was started with, and nobody else; kdserved's auth.h names it.
static const char *own_secret(const char *address)
{
	const char *its_server = getenv("KDSERVED_WORKER_TOKEN_FOR");
	return its_server && strcmp(its_server, address) == 0 ? getenv("KDSERVED_WORKER_TOKEN") : NULL;
}

static int client_open(struct link *l, const char *teacher, struct error *err)
{
	struct kd_error why;
	struct kd_options o = {.size = sizeof o, .address = l->address, .token = l->token ? l->token : own_secret(l->address),
			       .teacher = teacher, .connect_timeout_ms = 2000, .timeout_ms = LINK_SILENCE_MS, .ca = l->ca,
			       .server_name = l->server_name};
	link_close(l);
	return kd_open(&o, &l->client, &why) ? client_error(err, &why) : 0;
}

static int model_get(struct link *l, json_t **ret_model, struct error *err)
{
	char *body = NULL;
	size_t n = 0;
	int r = get_once(l, "/v1/model", &body, &n, err);
	r = r ? r : document_parse(body, n, "/v1/model", LINK_MODEL_VALUES, ret_model, err);
	free(body);
	return r;
}

// The fingerprint of the teacher of that name among those the server lists.
static int teacher_find(const json_t *model, const char *name, char ret_id[CONTENT_ID_HEX], struct error *err)
{
	char names[160] = "";
	const json_t *one;
	size_t i;
	json_array_foreach(json_object_get(model, "teachers"), i, one) {
		const char *its_name = json_string_value(json_object_get(one, "name")), *id = json_string_value(json_object_get(one, "id"));
		if (!its_name || !id || strlen(id) != CONTENT_ID_HEX - 1)
			continue;
		if (strcmp(its_name, name) == 0 || strcasecmp(id, name) == 0) {
			memcpy(ret_id, id, CONTENT_ID_HEX);
			return 0;
		}
		size_t n = strlen(names);
		snprintf(names + n, sizeof names - n, "%s%s", n ? ", " : "", its_name);
	}
	return error_set(err, ERROR_INVALID, "teacher", "the server has no \"%.80s\"; it has %s", name, names);
}

// Connects again when the teacher of that name is not the one to whom the open connection belongs.
static int teacher_choose(struct link *l, struct error *err)
{
	char id[CONTENT_ID_HEX];
	json_t *model = NULL;
	int r = model_get(l, &model, err);
	r = r ? r : teacher_find(model, l->teacher_name, id, err);
	json_decref(model);
	if (r == 0 && l->teacher_id && strcasecmp(l->teacher_id, id) != 0)
		r = error_set(err, ERROR_CONFLICT, "teacher-id", "the server's \"%.80s\" is %s", l->teacher_name, id);
	return r || strcmp(id, kd_server(l->client)->teacher) == 0 ? r : client_open(l, id, err);
}

// Rows of a teacher that names masked tokens are about the token they stand at, others' about the one that follows.
static int objective_check(struct link *l, const char *id, struct error *err)
{
	size_t i;
	const json_t *one;
	json_t *model = NULL;
	int r = model_get(l, &model, err);
	json_array_foreach(json_object_get(model, "teachers"), i, one) {
		const char *its_id = json_string_value(json_object_get(one, "id")),
			*objective = json_string_value(json_object_get(one, "objective"));
		if (its_id && objective && strcasecmp(its_id, id) == 0 && (strcmp(objective, "masked") == 0) != l->masked)
			r = error_set(err, ERROR_UNSUPPORTED, "teacher", l->masked
				      ? "with mlm = yes the teacher must be one that names masked tokens"
				      : "the teacher names masked tokens: without mlm = yes labels are the tokens that follow");
	}
	json_decref(model);
	return r;
}

static int connect_once(struct link *l, struct error *err)
{
	bool first = !*l->server.teacher;
	if (l->client && !kd_is_draining(l->client))
		return 0;
	int r = client_open(l, first ? (l->teacher_name ? NULL : l->teacher_id) : l->server.teacher, err);
	if (r)
		return r;
	if (!first) {
		l->n_reconnects++;
		return 0;
	}
	r = l->teacher_name ? teacher_choose(l, err) : 0;
	if (r)
		return r;
	r = objective_check(l, kd_server(l->client)->teacher, err);
	if (r)
		return r;
	l->server = *kd_server(l->client);
	return content_id_from_hex(l->server.teacher, &l->teacher) ? error_set(err, ERROR_CORRUPT, "server", "it names no teacher") : 0;
}

static int connect_patiently(struct link *l, struct error *err)
{
	for (;;) {
		int r = link_ending(l) ? cancelled(err) : connect_once(l, err);
		if (r == 0)
			return 0;
		r = link_wait(l, r, err);
		if (r)
			return r;
	}
}

int link_open(struct link *l, struct error *err)
{
	link_begin(l);
	int r = connect_patiently(l, err);
	if (r == 0)
		link_good(l);
	return r;
}

void link_close(struct link *l)
{
	kd_close(l->client);
	l->client = NULL;
}

int link_get(struct link *l, const char *path, char **ret_body, size_t *ret_n, struct error *err)
{
	for (;;) {
		int r = connect_patiently(l, err);
		if (r)
			return r;
		r = get_once(l, path, ret_body, ret_n, err);
		if (r == 0) {
			link_good(l);
			return 0;
		}
		r = link_wait(l, r, err);
		if (r)
			return r;
	}
}

uint32_t link_room(const struct link *l)
{
	return l->server.max_sequences ? l->server.max_sequences : 1;
}

// Takes events until the request is over. A sequence that failed makes the request fail once all its others have arrived.
static int events_take(struct link *l, uint32_t n, link_take_fn *take, void *arg, struct error *err)
{
	uint64_t heard = clock_ms();
	struct kd_error why;
	int result = 0;
	for (;;) {
		struct kd_event e;
		int r = kd_next(l->client, LINK_POLL_MS, &e, &why);
		if (r && link_ending(l))
			return cancelled(err);
		if (r == -ETIMEDOUT && clock_ms() - heard < LINK_SILENCE_MS)
			continue;
		if (r)
			return client_error(err, &why);
		heard = clock_ms();
		if (e.kind == KD_EVENT_DONE)
			return result;
		if (e.kind == KD_EVENT_REQUEST_FAILED)
			return client_error(err, &e.error);
		if (e.kind == KD_EVENT_SEQUENCE_FAILED)
			result = client_error(err, &e.error);
		if (e.kind == KD_EVENT_ANSWER) {
			r = e.index < n ? take(arg, e.index, e.answer, err)
				: error_set(err, ERROR_CORRUPT, "server", "an answer nobody asked for");
			kd_answer_free(e.answer);
			if (r)
				return r;
			link_good(l);
		}
	}
}

static void features_list(const struct query *q, struct kd_feature *ret)
{
	static const uint16_t kinds[] = {[QUERY_FEATURE_HIDDEN] = KD_HIDDEN, [QUERY_FEATURE_FINAL] = KD_FINAL, [QUERY_FEATURE_Q] = KD_Q,
					 [QUERY_FEATURE_K] = KD_K, [QUERY_FEATURE_V] = KD_V};
	for (uint32_t i = 0; i < q->n_features; i++)
		ret[i] = (struct kd_feature){kinds[q->features[i].kind], q->features[i].layer};
}

int link_ask(struct link *l, const struct query *q, const struct kd_sequence *sequences, uint32_t n, link_take_fn *take, void *arg,
	     struct error *err)
{
	static const int values[] = {[QUERY_VALUES_F32] = KD_F32, [QUERY_VALUES_F16] = KD_F16, [QUERY_VALUES_U8] = KD_U8};
	uint64_t id;
	struct kd_error why;
	int r = connect_once(l, err);
	if (r)
		return r;
	static const int poolings[] = {[QUERY_POOLING_NONE] = KD_POOLING_NONE, [QUERY_POOLING_MEAN] = KD_POOLING_MEAN,
				       [QUERY_POOLING_LAST] = KD_POOLING_LAST};
	static const int feature_values[] = {[QUERY_FEATURE_F32] = KD_F32, [QUERY_FEATURE_F16] = KD_F16, [QUERY_FEATURE_BF16] = KD_BF16};
	struct kd_feature features[QUERY_MAX_FEATURES];
	features_list(q, features);
	struct kd_query query = {.size = sizeof query, .top_k = q->top_k, .own = q->own, .entropy = q->entropy, .tail = q->tail,
				 .values = values[q->values], .n_temperatures = q->n_temperatures,
				 .temperatures = q->temperatures, .first = q->first, .last = q->last,
				 .draws = {q->draws.n, q->draws.tau, q->draws.seed, q->draws.tail},
				 .n_features = q->n_features, .features = features, .pooling = poolings[q->pooling],
				 .feature_values = feature_values[q->feature_values]};
	struct kd_request request = {.size = sizeof request, .query = &query, .sequences = sequences, .n_sequences = n};
	return kd_submit(l->client, &request, &id, &why) ? client_error(err, &why) : events_take(l, n, take, arg, err);
}

int link_generate(struct link *l, const struct kd_generation *request, int (*take)(void *arg, const struct kd_piece *piece), void *arg,
		  struct error *err)
{
	struct kd_error why;
	int r = connect_once(l, err);
	if (r)
		return r;
	if (kd_generate(l->client, request, take, arg, &why))
		return client_error(err, &why);
	link_good(l);
	return 0;
}
