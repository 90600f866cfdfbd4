// SPDX-License-Identifier: Apache-2.0
#include "daemon/server/control_internal.h"

#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/error.h"
#include "common/record.h"
#include "common/record_json.h"
#include "daemon/model/tokenizer.h"
#include "daemon/server/auth.h"
#include "daemon/server/health.h"
#include "daemon/server/json.h"
#include "daemon/server/metrics.h"
#include "daemon/server/openai.h"
#include "daemon/server/openapi.h"
#include "daemon/server/page.h"
#include "daemon/server/reply.h"
#include "daemon/server/service.h"
#include "daemon/store/store.h"
#include "daemon/teacher/choice.h"
#include "daemon/teacher/teacher.h"
#include "daemon/train/supervisor.h"

#ifdef HAVE_CONFIG_H
#include "config.h"
#endif

// Tokens made of one /v1/tokenize text: it is bounded by the body, so the bound only keeps the reply in proportion.
#define TOKENIZE_MAX_TOKENS (1u << 22)

typedef int control_fn(const struct control_input *in, struct control_reply *out, struct error *err);

void control_refuse(struct control_reply *ret_reply, int status, const struct error *e, enum reply_errors shape)
{
	buffer_done(&ret_reply->body);
	ret_reply->status = status ? status : error_http_status(e->code);
	ret_reply->content_type = "application/json";
	ret_reply->retry_s = e->retry_s;
	reply_error(&ret_reply->body, e, shape);
}

static int get_live(const struct control_input *in, struct control_reply *out, struct error *err)
{
	(void)in;
	(void)err;
	buffer_text(&out->body, "{\"live\":true}");
	return 0;
}

// {"ready":true}, with "degraded" where something is; not ready is an error that says why.
static int get_ready(const struct control_input *in, struct control_reply *out, struct error *err)
{
	struct health h;
	health_read(in->service, &h);
	if (!h.ready)
		return error_set(err, h.why.code, h.why.field, "%s", h.why.message);
	buffer_text(&out->body, "{\"ready\":true");
	if (health_is_degraded(&h)) {
		buffer_text(&out->body, ",\"degraded\":");
		health_list(&out->body, &h);
	}
	buffer_text(&out->body, "}");
	return 0;
}

static int get_metrics(const struct control_input *in, struct control_reply *out, struct error *err)
{
	(void)err;
	out->content_type = "text/plain; version=0.0.4; charset=utf-8";
	metrics_encode(&out->body, in->service);
	return 0;
}

int control_check_loaded(const struct service *s, struct error *err)
{
	switch (teacher_state(service_teacher(s))) {
	case TEACHER_LOADING: return error_set(err, ERROR_UNAVAILABLE, NULL, "the teacher is loading");
	case TEACHER_FAILED: return error_set(err, ERROR_UNAVAILABLE, NULL, "the teacher failed; the server must be restarted");
	default: return 0;
	}
}

static int get_openapi(const struct control_input *in, struct control_reply *out, struct error *err)
{
	size_t n;
	const char *document = openapi_document(&n);
	(void)in;
	(void)err;
	buffer_add(&out->body, document, n);
	return 0;
}

// What a teacher is, beside its provenance.
static void model_fields(struct buffer *b, const struct teacher_info *info, const struct query_limits *limits)
{
	const struct architecture *a = &info->architecture;
	buffer_printf(
		b, ",\"architecture\":\"%s\",\"objective\":\"%s\",\"context_length\":%" PRIu32 ",\"n_parameters\":%" PRIu64
		",\"dtype\":\"%s\",\"description\":", a->name, a->masked ? "masked" : "causal", a->context_length,
		info->n_parameters, info->dtype);
	buffer_string(b, info->description, strlen(info->description));
	buffer_printf(b,
		      ",\"n_layers\":%" PRIu32 ",\"width\":%" PRIu32 ",\"n_heads\":%" PRIu32 ",\"n_kv_heads\":%" PRIu32
		      ",\"head_size\":%" PRIu32 ",\"bos_id\":%" PRId32 ",\"eos_id\":%" PRId32 ",\"max_tokens\":%" PRIu32
		      ",\"max_top_k\":%" PRIu32 ",\"max_gather\":%" PRIu32 ",\"max_draws\":%" PRIu32 ",\"max_spans\":%" PRIu32
		      ",\"load_seconds\":%.3f,\"stored_bytes\":%" PRIu64 ",\"streamed_bytes\":%" PRIu64,
		      a->n_layers, a->width, a->n_heads, a->n_kv_heads, a->head_size, a->bos_id, a->eos_id, info->max_tokens,
		      info->max_top_k, limits->max_gather, limits->max_draws, limits->max_spans, info->load_seconds,
		      info->stored_bytes, info->streamed_bytes);
}

// The first teacher, whom nobody needs to name; then all of them.
static int get_model(const struct control_input *in, struct control_reply *out, struct error *err)
{
	int r = control_check_loaded(in->service, err);
	if (r)
		return r;
	struct buffer *b = &out->body;
	struct query_limits limits;
	uint32_t max_sequences, n;
	const struct teacher_info *infos = teacher_infos(service_teacher(in->service), &n);
	service_limits(in->service, 0, &limits, &max_sequences);
	buffer_text(b, "{");
	reply_provenance(b, infos);
	model_fields(b, infos, &limits);
	buffer_text(b, ",\"teachers\":[");
	for (uint32_t i = 0; i < n; i++) {
		buffer_text(b, i ? ",{" : "{");
		reply_provenance(b, &infos[i]);
		model_fields(b, &infos[i], &limits);
		buffer_text(b, "}");
	}
	buffer_text(b, "]}");
	return 0;
}

// One entry of OpenAI's list; max_model_len is vLLM's name for the longest sequence, which its clients read.
static void model_card(struct buffer *b, const struct teacher_info *info, double uptime)
{
	char id[CONTENT_ID_HEX];
	content_id_to_hex(&info->fingerprint, id);
	buffer_text(b, "{\"id\":");
	buffer_string(b, info->name, strlen(info->name));
	buffer_printf(b, ",\"object\":\"model\",\"created\":%lld,\"owned_by\":\"kdserved\",\"root\":\"%s\",\"parent\":null"
		      ",\"max_model_len\":%" PRIu32 "}", (long long)time(NULL) - (long long)uptime, id, info->max_tokens);
}

static int get_models(const struct control_input *in, struct control_reply *out, struct error *err)
{
	int r = control_check_loaded(in->service, err);
	if (r)
		return r;
	uint32_t n;
	const struct teacher_info *infos = teacher_infos(service_teacher(in->service), &n);
	buffer_text(&out->body, "{\"object\":\"list\",\"data\":[");
	for (uint32_t i = 0; i < n; i++) {
		buffer_text(&out->body, i ? "," : "");
		model_card(&out->body, &infos[i], service_uptime(in->service));
	}
	buffer_text(&out->body, "]}");
	return 0;
}

static int get_model_card(const struct control_input *in, struct control_reply *out, struct error *err)
{
	int r = control_check_loaded(in->service, err);
	uint32_t n, i = 0;
	const struct teacher_info *infos = teacher_infos(service_teacher(in->service), &n);
	if (!r)
		r = choice_find(in->id, "model", infos, n, &i, err);
	if (!r)
		model_card(&out->body, &infos[i], service_uptime(in->service));
	return r;
}

static int post_tokenize(const struct control_input *in, struct control_reply *out, struct error *err)
{
	struct json_tokenize t = {0};
	struct tokens tokens = {0};
	int r = control_check_loaded(in->service, err);
	if (!r)
		r = json_read_tokenize(in->body, in->n, &t, err);
	const struct tokenizer *tokenizer = r ? NULL : teacher_tokenizer(service_teacher(in->service));
	if (!r)
		r = t.part ? tokenizer_encode_part(tokenizer, t.text, t.n, t.specials, TOKENIZE_MAX_TOKENS, &tokens, err)
			: tokenizer_encode(tokenizer, t.text, t.n, t.specials, t.add_special, TOKENIZE_MAX_TOKENS, &tokens, err);
	if (!r) {
		buffer_text(&out->body, "{\"tokens\":");
		record_json_ids(&out->body, tokens.ids, tokens.n);
		buffer_text(&out->body, ",\"offsets\":");
		reply_offsets(&out->body, tokens.offsets, tokens.n);
		buffer_text(&out->body, "}");
	}
	tokens_done(&tokens);
	json_tokenize_done(&t);
	return r;
}

static int post_detokenize(const struct control_input *in, struct control_reply *out, struct error *err)
{
	struct json_detokenize d = {0};
	char *text = NULL;
	size_t n = 0;
	int r = control_check_loaded(in->service, err);
	if (!r)
		r = json_read_detokenize(in->body, in->n, &d, err);
	if (!r)
		r = tokenizer_decode(teacher_tokenizer(service_teacher(in->service)), d.sequence.tokens, d.sequence.n_tokens,
				     d.skip_special, &text, &n, err);
	if (!r) {
		buffer_text(&out->body, "{\"text\":");
		buffer_string(&out->body, text, n);
		buffer_text(&out->body, "}");
	}
	free(text);
	json_detokenize_done(&d);
	return r;
}

typedef int tokenizer_write_fn(const struct tokenizer *t, char **ret_json, size_t *ret_n, struct error *err);

static int get_file(const struct control_input *in, struct control_reply *out, tokenizer_write_fn *write, struct error *err)
{
	char *json = NULL;
	size_t n = 0;
	int r = control_check_loaded(in->service, err);
	if (!r)
		r = write(teacher_tokenizer(service_teacher(in->service)), &json, &n, err);
	if (!r)
		buffer_add(&out->body, json, n);
	free(json);
	return r;
}

static int get_tokenizer(const struct control_input *in, struct control_reply *out, struct error *err)
{
	return get_file(in, out, tokenizer_to_json, err);
}

static int get_tokenizer_config(const struct control_input *in, struct control_reply *out, struct error *err)
{
	return get_file(in, out, tokenizer_config_to_json, err);
}

// HTTP answers exchanges itself; what comes here is a CALL.
static int post_exchange(const struct control_input *in, struct control_reply *out, struct error *err)
{
	(void)in;
	(void)out;
	return error_set(err, ERROR_UNSUPPORTED, "path", "this resource is HTTP's alone: the binary protocol has frames for it");
}

enum route_id { ROUTE_PLAIN, ROUTE_RUN, ROUTE_MODEL };     // whose id stands in the path's place for it
#define ROUTE_ID "{id}"
#define ROUTE_ID_BYTES 256

static const struct route {
	const char *method, *path;
	control_fn *handle;
	enum route_id id;
	enum reply_errors errors;
	unsigned scopes;
	enum control_pace pace;
} routes[] = {
	{"GET", "/", page_get_index, ROUTE_PLAIN, REPLY_ERRORS_OWN, CONTROL_PUBLIC, CONTROL_QUICK},
	{"GET", "/page.css", page_get_style, ROUTE_PLAIN, REPLY_ERRORS_OWN, CONTROL_PUBLIC, CONTROL_QUICK},
	{"GET", "/page.js", page_get_script, ROUTE_PLAIN, REPLY_ERRORS_OWN, CONTROL_PUBLIC, CONTROL_QUICK},
	{"GET", "/live", get_live, ROUTE_PLAIN, REPLY_ERRORS_OWN, CONTROL_PUBLIC, CONTROL_QUICK},
	{"GET", "/ready", get_ready, ROUTE_PLAIN, REPLY_ERRORS_OWN, CONTROL_PUBLIC, CONTROL_QUICK},
	{"GET", "/health", get_ready, ROUTE_PLAIN, REPLY_ERRORS_OWN, CONTROL_PUBLIC, CONTROL_QUICK},  // vLLM's name: its clients wait on it
	{"GET", "/metrics", get_metrics, ROUTE_PLAIN, REPLY_ERRORS_OWN, AUTH_ANY, CONTROL_QUICK},
	{"GET", "/openapi.json", get_openapi, ROUTE_PLAIN, REPLY_ERRORS_OWN, AUTH_ANY, CONTROL_QUICK},
	{"GET", "/v1/model", get_model, ROUTE_PLAIN, REPLY_ERRORS_OWN, AUTH_ANY, CONTROL_QUICK},
	{"GET", "/v1/status", control_get_status, ROUTE_PLAIN, REPLY_ERRORS_OWN, AUTH_ANY, CONTROL_QUICK},
	{"POST", "/v1/score", post_exchange, ROUTE_PLAIN, REPLY_ERRORS_OWN, BEARER_SCORE, CONTROL_QUICK},
	{"POST", "/v1/generate", post_exchange, ROUTE_PLAIN, REPLY_ERRORS_OWN, BEARER_GENERATE, CONTROL_QUICK},
	{"POST", "/v1/completions", post_exchange, ROUTE_PLAIN, REPLY_ERRORS_OPENAI, BEARER_SCORE | BEARER_GENERATE, CONTROL_QUICK},
	{"GET", "/v1/models", get_models, ROUTE_PLAIN, REPLY_ERRORS_OPENAI, AUTH_ANY, CONTROL_QUICK},
	{"GET", "/v1/models/{id}", get_model_card, ROUTE_MODEL, REPLY_ERRORS_OPENAI, AUTH_ANY, CONTROL_SLOW},
	{"POST", "/v1/tokenize", post_tokenize, ROUTE_PLAIN, REPLY_ERRORS_OWN, AUTH_ANY, CONTROL_OF_BODY},
	{"POST", "/v1/detokenize", post_detokenize, ROUTE_PLAIN, REPLY_ERRORS_OWN, AUTH_ANY, CONTROL_OF_BODY},
	{"GET", "/v1/tokenizer", get_tokenizer, ROUTE_PLAIN, REPLY_ERRORS_OWN, AUTH_ANY, CONTROL_SLOW},
	{"GET", "/v1/tokenizer_config", get_tokenizer_config, ROUTE_PLAIN, REPLY_ERRORS_OWN, AUTH_ANY, CONTROL_SLOW},
	{"POST", "/v1/weights", control_post_weights, ROUTE_PLAIN, REPLY_ERRORS_OWN, BEARER_SCORE, CONTROL_SLOW},
	{"POST", "/v1/runs", control_post_runs, ROUTE_PLAIN, REPLY_ERRORS_OWN, BEARER_TRAIN, CONTROL_SLOW},
	{"GET", "/v1/runs", control_get_runs, ROUTE_PLAIN, REPLY_ERRORS_OWN, BEARER_TRAIN, CONTROL_SLOW},
	{"GET", "/v1/runs/{id}", control_get_run, ROUTE_RUN, REPLY_ERRORS_OWN, BEARER_TRAIN, CONTROL_SLOW},
	{"GET", "/v1/runs/{id}/metrics", control_get_history, ROUTE_RUN, REPLY_ERRORS_OWN, BEARER_TRAIN, CONTROL_SLOW},
	{"DELETE", "/v1/runs/{id}", control_delete_run, ROUTE_RUN, REPLY_ERRORS_OWN, BEARER_TRAIN, CONTROL_SLOW},
};
#define N_ROUTES (sizeof routes / sizeof *routes)

// Ids of runs end up in paths on disk: only these may pass, whatever the supervisor checks again.
static bool id_is_valid(enum route_id kind, const char *id)
{
	size_t n = strlen(id);
	if (kind == ROUTE_MODEL)
		return n >= 1;
	return n >= 1 && n <= RUN_ID_MAX && strspn(id, "abcdefghijklmnopqrstuvwxyz0123456789_-") == n;
}

// Whether the path is the route's, and the id that stands in it.
static bool route_matches(const struct route *r, const char *path, char ret_id[ROUTE_ID_BYTES])
{
	const char *place = strstr(r->path, ROUTE_ID);
	ret_id[0] = '\0';
	if (!place)
		return strcmp(path, r->path) == 0;
	const char *after = place + strlen(ROUTE_ID);
	size_t n = strlen(path), n_before = (size_t)(place - r->path), n_after = strlen(after);
	if (n < n_before + n_after || n - n_before - n_after >= ROUTE_ID_BYTES || strncmp(path, r->path, n_before) != 0 ||
	    strcmp(path + n - n_after, after) != 0)
		return false;
	memcpy(ret_id, path + n_before, n - n_before - n_after);
	ret_id[n - n_before - n_after] = '\0';
	return id_is_valid(r->id, ret_id);
}

// The methods of a path, in ret_allow; false when there is none.
static bool allowed_methods(const char *path, char ret_allow[CONTROL_ALLOW_BYTES])
{
	char id[ROUTE_ID_BYTES];
	size_t n = 0;
	ret_allow[0] = '\0';
	for (size_t i = 0; i < N_ROUTES; i++) {
		if (!route_matches(&routes[i], path, id))
			continue;
		n += (size_t)snprintf(ret_allow + n, CONTROL_ALLOW_BYTES - n, "%s%s", n ? ", " : "",
				      strcmp(routes[i].method, "GET") == 0 ? "GET, HEAD" : routes[i].method);
	}
	return n > 0;
}

static const struct route *route_find(const char *method, const char *path, char ret_id[ROUTE_ID_BYTES])
{
	if (strcmp(method, "HEAD") == 0)
		method = "GET";
	for (size_t i = 0; i < N_ROUTES; i++)
		if (strcmp(routes[i].method, method) == 0 && route_matches(&routes[i], path, ret_id))
			return &routes[i];
	return NULL;
}

enum reply_errors control_errors(const char *path)
{
	char id[ROUTE_ID_BYTES];
	for (size_t i = 0; i < N_ROUTES; i++)
		if (route_matches(&routes[i], path, id))
			return routes[i].errors;
	return REPLY_ERRORS_OWN;
}

bool control_check(const char *method, const char *path, struct control_reply *ret_reply)
{
	struct error err = {0};
	char id[ROUTE_ID_BYTES];
	if (route_find(method, path, id))
		return true;
	bool exists = allowed_methods(path, ret_reply->allow);
	if (exists)
		error_set(&err, ERROR_UNSUPPORTED, "method", "%s is not among the methods of this resource: %s", method, ret_reply->allow);
	else
		error_set(&err, ERROR_NOT_FOUND, "path", "there is no such resource");
	control_refuse(ret_reply, exists ? 405 : 404, &err, control_errors(path));
	return false;
}

bool control_is_public(const char *method, const char *path)
{
	char id[ROUTE_ID_BYTES];
	const struct route *route = route_find(method, path, id);
	return route && route->scopes == CONTROL_PUBLIC;
}

enum control_pace control_pace(const char *method, const char *path)
{
	char id[ROUTE_ID_BYTES];
	const struct route *route = route_find(method, path, id);
	return route ? route->pace : CONTROL_QUICK;
}

int control_permit(struct principal *principal, const char *method, const char *path, struct error *err)
{
	char id[ROUTE_ID_BYTES];
	const struct route *route = route_find(method, path, id);
	if (route && route->scopes == CONTROL_PUBLIC)
		return 0;
	return auth_permit(principal, route ? route->scopes : AUTH_ANY, err);
}

size_t control_n_routes(void)
{
	return N_ROUTES;
}

void control_route(size_t i, const char **ret_method, const char **ret_path)
{
	*ret_method = routes[i].method;
	*ret_path = routes[i].path;
}

unsigned control_scopes(size_t i)
{
	return routes[i].scopes;
}

void control_call(struct service *s, struct principal *principal, const char *method, const char *path, const char *body, size_t n,
		  struct control_reply *ret_reply)
{
	struct error err = {0};
	*ret_reply = (struct control_reply){.status = 200, .content_type = "application/json"};
	if (control_permit(principal, method, path, &err)) {
		control_refuse(ret_reply, 0, &err, control_errors(path));
		return;
	}
	if (!control_check(method, path, ret_reply))
		return;
	char id[ROUTE_ID_BYTES];
	const struct route *route = route_find(method, path, id);
	struct control_input in = {.service = s, .principal = principal, .id = id, .body = body ? body : "", .n = n};
	int r = 0;
	if (strcmp(route->method, "POST") != 0 && n)
		r = error_set(&err, ERROR_INVALID, "body", "a %s has no body", method);
	if (!r)
		r = route->handle(&in, ret_reply, &err);
	if (!r && ret_reply->body.failed)
		r = error_set(&err, ERROR_MEMORY, NULL, "no memory for the reply");
	if (r)
		control_refuse(ret_reply, 0, &err, control_errors(path));
}
