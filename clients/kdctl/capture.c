// SPDX-License-Identifier: Apache-2.0
// kdctl capture: asks for what of a corpus is not in the store yet.
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "clients/convert.h"
#include "clients/kdctl/capture.h"
#include "common/error.h"
#include "common/output.h"
#include "common/provenance.h"
#include "common/record.h"
#include "daemon/model/tokenizer.h"

static volatile sig_atomic_t stop;

static void on_signal(int number)
{
	(void)number;
	stop = 1;
}

// The first signal ends the capture in order, the second at once.
static void catch_signals(void)
{
	struct sigaction action = {.sa_handler = on_signal, .sa_flags = (int)SA_RESETHAND};
	sigaction(SIGINT, &action, NULL);
	sigaction(SIGTERM, &action, NULL);
}

// ---- sequences

static void count(struct tally *t, const struct item *i, uint64_t n_positions, uint64_t n_bytes)
{
	t->n_sequences++;
	t->n_tokens += i->n_tokens;
	t->n_positions += n_positions;
	t->n_bytes += n_bytes;
}

static void refuse(struct capture *c, struct item *i)
{
	report_refusal(c, i);
	c->account.read_to = i->end;
}

static bool found(struct capture *c, const struct item *i, const struct query *q)
{
	struct record *record = NULL;
	size_t n;
	if (c->keep)
		keep_find(c->keep, &c->teacher, i, q, &record);
	if (!record)
		return false;
	(void)record_bytes(record, &n);
	count(&c->account.found, i, record_n_rows(record), n);
	c->account.read_to = i->end;
	record_unref(record);
	return true;
}

// Whether the item has to be asked for; else it has been dealt with.
static bool is_missing(struct capture *c, struct item *i)
{
	struct query q = {0};
	struct error err = {0};
	c->account.input.n_sequences++;
	c->account.input.n_tokens += i->n_tokens;
	if (!i->refused && item_key(&c->server, &c->teacher, &c->query, i, &i->key, &q, &err)) {
		struct kd_error why = {0};
		snprintf(why.code, sizeof why.code, "%s", error_name(err.code));
		snprintf(why.field, sizeof why.field, "%s", err.field);
		snprintf(why.message, sizeof why.message, "%s", err.message);
		item_refuse(i, &why);
	}
	bool missing = !i->refused && !found(c, i, &q);
	if (i->refused)
		refuse(c, i);
	query_done(&q);
	return missing;
}

static int next_missing(void *arg, struct item **ret)
{
	struct capture *c = arg;
	for (;;) {
		int status = corpus_next(&c->corpus, ret);
		if (status || !*ret)
			return status;
		if (is_missing(c, *ret))
			return 0;
		*ret = item_free(*ret);
		report_bar(c);
		status = report_due(c);
		if (status || stop)
			return status;
	}
}

static int take_answer(void *arg, struct item *i)
{
	struct capture *c = arg;
	struct account *a = &c->account;
	const struct kd_rows *rows;
	struct record *record = NULL;
	struct error err = {0};
	struct kd_error why;
	size_t n;
	if (i->refused) {
		refuse(c, i);
		return 0;
	}
	const void *bytes = kd_answer_record(i->answer, &n);
	if (kd_answer_rows(i->answer, &rows, &why))
		return kdctl_fail_with(c->k, why.field, why.message);
	if (record_from_bytes(bytes, n, &record, &err))
		return kdctl_fail_with(c->k, err.field, err.message);
	int status = memcmp(record_key(record), &i->key, sizeof i->key) == 0 ? 0
		: kdctl_fail(c->k, "sequence %" PRIu64 ": an answer to another question", i->number);
	if (!status && c->keep)
		status = keep_append(c->keep, record);
	record_unref(record);
	if (status)
		return status;
	bool cached = kd_answer_cached(i->answer);
	count(c->keep || !cached ? &a->answered : &a->found, i, rows->n_rows, n);
	a->n_cached += c->keep && cached;
	for (uint32_t r = 0; rows->status && r < rows->n_rows; r++)
		a->n_bad_rows += rows->status[r] != 0;
	a->read_to = i->end;
	return 0;
}

// ---- what is needed before the first question

static void pause_for(double seconds)
{
	nanosleep(&(struct timespec){.tv_sec = (time_t)seconds, .tv_nsec = (long)((seconds - (double)(time_t)seconds) * 1e9)}, NULL);
}

// Until somebody answers; whether that is the right teacher is kdctl_connect's to say.
static int connect_patiently(struct kdctl *k, const struct capture_options *o)
{
	struct progress since = progress_start();
	struct kd_error err;
	bool complained = false;
	while (kdctl_open(k, NULL, &err)) {
		enum error_code code = error_from_name(err.code);
		if (code == ERROR_INVALID)
			break;                 // kdctl_connect says why
		bool hopeless = code == ERROR_UNAUTHORIZED || code == ERROR_UNSUPPORTED;
		if (stop || hopeless || progress_seconds(&since) >= o->patience_s)
			return kdctl_fail_with(k, "", err.message);
		if (!complained)
			fprintf(stderr, "kdctl: capture: no answer yet (%s): waiting for the server\n", err.message);
		complained = true;
		pause_for(0.2);
	}
	kd_close(k->client);
	k->client = NULL;
	return kdctl_connect(k);
}

static int check_lengths(struct capture *c)
{
	struct score_options *s = &c->options->score;
	uint32_t most = c->server.max_tokens;
	if (s->format == SOURCE_LINES)
		s->length = c->options->max_length ? c->options->max_length : most;
	if (s->length <= most)
		return 0;
	return kdctl_fail(c->k, "sequences of %" PRIu32 " tokens are more than the server's limit of %" PRIu32, s->length, most);
}

// The teacher's own words about itself. A mixture is in no list: then its fingerprint has to do.
static int open_model(struct capture *c)
{
	json_t *model = kdctl_call(c->k, "GET", "/v1/model", NULL), *t;
	size_t i;
	if (!model)
		return 1;
	json_array_foreach(json_object_get(model, "teachers"), i, t) {
		const char *id = json_string_value(json_object_get(t, "id"));
		if (id && strcmp(id, c->server.teacher) == 0)
			c->model = json_incref(t);
	}
	json_decref(model);
	return 0;
}

static const char *model_text(const struct capture *c, const char *key)
{
	return json_string_value(json_object_get(c->model, key));
}

static int describe(struct capture *c)
{
	const char *weights = model_text(c, "weights_id"), *numeric = model_text(c, "numeric");
	const char *tokenizer = model_text(c, "tokenizer_id"), *name = model_text(c, "name");
	struct provenance p = {.codec = PROVENANCE_CODEC};
	if (!weights || !tokenizer || !numeric || content_id_from_hex(weights, &p.weights) || content_id_from_hex(tokenizer, &p.tokenizer))
		return 0;
	snprintf(p.numeric, sizeof p.numeric, "%s", numeric);
	snprintf(p.name, sizeof p.name, "%s", name ? name : "");
	p.fingerprint = provenance_fingerprint(&p);
	if (memcmp(&p.fingerprint, &c->teacher, sizeof c->teacher) != 0)      // of another codec: it proves nothing here
		return 0;
	return keep_describe(c->keep, &p);
}

// Beside the shards too, so that texts can be made into the same tokens without the server.
static int keep_file(struct capture *c, const char *name, const char *json, size_t n)
{
	struct error err = {0};
	struct output out;
	char *path;
	if (asprintf(&path, "%s/%s", c->options->store, name) < 0)
		return kdctl_fail(c->k, "no memory");
	int r = 0;
	if (access(path, F_OK)) {
		r = output_open(&out, path, &err);
		r = r ? r : output_write(&out, json, n);
		r = output_close(&out, r);
	}
	free(path);
	return r ? kdctl_fail(c->k, "%s", err.message) : 0;
}

// One of the tokenizer's files, which is kept under that name; take() reads it.
static int fetch_file(struct capture *c, const char *path, const char *name,
	int (*take)(struct kdctl *, const char *, size_t, struct error *))
{
	struct kd_error why;
	struct error err = {0};
	char *body = NULL;
	size_t n = 0;
	int code = 0;
	if (kd_call(c->k->client, "GET", path, NULL, 0, &code, &body, &n, &why))
		return kdctl_fail_with(c->k, why.field, why.message);
	int status = code == 200 ? 0 : kdctl_fail(c->k, "GET %s: status %d", path, code);
	if (!status && take(c->k, body, n, &err))
		status = kdctl_fail_with(c->k, err.field, err.message);
	if (!status && c->keep)
		status = keep_file(c, name, body, n);
	free(body);
	return status;
}

static int take_tokenizer(struct kdctl *k, const char *json, size_t n, struct error *err)
{
	return tokenizer_open_json(json, n, &k->tokenizer, err);
}

static int take_ends(struct kdctl *k, const char *json, size_t n, struct error *err)
{
	return tokenizer_read_ends(k->tokenizer, json, n, err);
}

static int open_tokenizer(struct capture *c)
{
	int status = fetch_file(c, "/v1/tokenizer", "tokenizer.json", take_tokenizer);
	return status ? status : fetch_file(c, "/v1/tokenizer_config", "tokenizer_config.json", take_ends);
}

static int check_server_keeps(struct capture *c)
{
	json_t *j = kdctl_call(c->k, "GET", "/v1/status", NULL);
	bool keeps = json_is_object(json_object_get(j, "store")), failed = !j;
	json_decref(j);
	if (failed)
		return 1;
	return keeps ? 0 : kdctl_fail(c->k, "the server keeps no answers: it has no store");
}

static int prepare(struct capture *c)
{
	struct error err = {0};
	c->server = *kd_server(c->k->client);
	int status = check_lengths(c);
	if (!status && content_id_from_hex(c->server.teacher, &c->teacher))
		status = kdctl_fail(c->k, "the server names no teacher");
	if (!status && convert_query(&c->options->score.query, &c->query, &err))
		status = kdctl_fail_with(c->k, err.field, err.message);
	if (!status)
		status = c->options->store ? keep_open(c->k, c->options, &c->keep) : check_server_keeps(c);
	if (!status)
		status = open_tokenizer(c);
	if (!status)
		status = open_model(c);
	if (!status && c->keep)
		status = describe(c);
	if (!status)
		status = corpus_open(c->k, c->options, &c->corpus);
	if (!status)
		status = manifest_open(c);
	return status;
}

// ---- all of it

static int run(struct capture *c)
{
	c->flow = (struct flow){.k = c->k, .options = &c->options->score, .next = next_missing, .take = take_answer, .arg = c,
				.patience_ms = (uint64_t)(c->options->patience_s * 1000) + 1, .stop = &stop};
	flow_start(&c->flow);
	c->progress = progress_start();
	int status = manifest_write(c, "running");
	while (!status && !c->flow.over) {
		status = flow_step(&c->flow);
		report_bar(c);
		if (!status)
			status = report_due(c);
	}
	flow_done(&c->flow);
	return status;
}

static int finish(struct capture *c, int status)
{
	const struct account *a = &c->account;
	uint64_t settled = a->answered.n_sequences + a->found.n_sequences + a->refused.n_sequences;
	int told = report_end(c, status ? "failed" : stop ? "stopped" : "complete");
	if (status || told)
		return status ? status : told;
	if (stop)
		return kdctl_fail(c->k, "stopped: the same command goes on");
	if (settled != a->input.n_sequences || a->answered.n_tokens + a->found.n_tokens + a->refused.n_tokens != a->input.n_tokens)
		return kdctl_fail(c->k, "of %" PRIu64 " sequences %" PRIu64 " are accounted for: this is a fault of the program",
				  a->input.n_sequences, settled);
	if (!a->input.n_sequences)
		return kdctl_fail(c->k, "there is nothing to capture: the corpus fills no sequence");
	if (a->refused.n_sequences)
		return kdctl_fail(c->k, "%" PRIu64 " of %" PRIu64 " sequences were refused", a->refused.n_sequences, a->input.n_sequences);
	return 0;
}

static void capture_close(struct capture *c)
{
	corpus_close(&c->corpus);
	keep_close(c->keep);
	manifest_close(c);
	json_decref(c->model);
	json_decref(c->account.told);
	query_done(&c->query);
	c->k->tokenizer = tokenizer_close(c->k->tokenizer);
}

int command_capture(struct kdctl *k, int argc, char **argv)
{
	struct capture_options o;
	struct capture c = {.k = k, .options = &o, .account.told = json_array(), .began = (double)time(NULL)};
	int status = capture_options_parse(k, argc, argv, &o);
	catch_signals();
	if (!status)
		status = connect_patiently(k, &o);
	if (!status)
		status = prepare(&c);
	if (!status)
		status = finish(&c, run(&c));
	capture_close(&c);
	capture_options_done(&o);
	return status < 0 ? 0 : status;
}
