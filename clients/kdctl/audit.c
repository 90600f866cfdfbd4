// SPDX-License-Identifier: Apache-2.0
// kdctl audit: a sample of a server's answers, or of a directory's records, against a reference: kdserved --device ref with the same model
// computes in float64.
#include <getopt.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "clients/kdctl/audit.h"
#include "clients/kdctl/score.h"
#include "clients/kdctl/store.h"
#include "common/error.h"
#include "common/record.h"
#include "daemon/store/survey.h"

#define DEFAULT_BOUND 0.05       // above what bfloat16 products make of logits of a small model, below what a wrong weight would

struct audit_options {
	const char *reference, *path, *directory;
	uint32_t sample, top_k, length;
	uint64_t seed;
	double bound;
};

static const char help[] =
	"Usage: kdctl audit --reference ADDRESS [OPTIONS] FILE\n"
	"       kdctl audit --reference ADDRESS [OPTIONS] --store DIR\n\n"
	"Compares answers of the server to a text or JSON lines, or records of a directory, with those of a reference\n"
	"(kdserved --device ref with the same model: float64). Exit status 1 when a difference is beyond the bound.\n\n"
	"  --reference ADDRESS        unix:PATH, tcp:HOST:PORT or tls:HOST:PORT\n"
	"  --store DIR                audit records instead of asking the server\n"
	"  --sample N                 sequences to compare; default 32\n"
	"  --seed N                   of the sample; default 0\n"
	"  --top-k K                  ids of each row that are asked of the server; default 64\n"
	"  --length N                 tokens of a sequence of a text; default 256\n"
	"  --bound E                  largest difference allowed; default 0.05\n";

static int parse(struct kdctl *k, int argc, char **argv, struct audit_options *o)
{
	static const struct option options[] = {{"reference", required_argument, NULL, 'r'}, {"store", required_argument, NULL, 's'},
		{"sample", required_argument, NULL, 'n'}, {"seed", required_argument, NULL, 'S'}, {"top-k", required_argument, NULL, 'k'},
		{"length", required_argument, NULL, 'l'}, {"bound", required_argument, NULL, 'b'}, {"json", no_argument, NULL, 'j'},
		{"help", no_argument, NULL, 'h'}, {0}};
	double v = 0;
	optind = 0;
	for (int c; (c = getopt_long(argc, argv, ":", options, NULL)) != -1;) {
		if (c == '?' || c == ':')
			return kdctl_bad_option(k, argc, argv);
		if (strchr("nSklb", c) && !kdctl_number(optarg, c == 'S' ? 0 : c == 'b' ? 1e-30 : c == 'l' ? 2 : 1,
			c == 'S' ? 1e15 : 1e6, &v))
			return kdctl_usage(k, "%s: a number is expected (kdctl audit --help)", optarg);
		switch (c) {
		case 'r': o->reference = optarg; break;
		case 's': o->directory = optarg; break;
		case 'n': o->sample = (uint32_t)v; break;
		case 'S': o->seed = (uint64_t)v; break;
		case 'k': o->top_k = (uint32_t)v; break;
		case 'l': o->length = (uint32_t)v; break;
		case 'b': o->bound = v; break;
		case 'j': k->json = true; break;
		default: fputs(help, stdout); return -1;
		}
	}
	if (!o->reference)
		return kdctl_usage(k, "--reference ADDRESS is expected (kdctl audit --help)");
	if (argc - optind != (o->directory ? 0 : 1))
		return kdctl_usage(k, "a FILE or --store DIR is expected (kdctl audit --help)");
	o->path = argv[optind];
	return 0;
}

// Which of the n-th thing's places in a sample of `size` it takes, each as likely (Vitter's algorithm R); size: none.
static uint32_t sample_place(uint64_t *random, uint64_t n, uint32_t size)
{
	if (n < size)
		return (uint32_t)n;
	*random += UINT64_C(0x9e3779b97f4a7c15);
	uint64_t x = *random;
	x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
	x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
	x = (x ^ x >> 31) % (n + 1);
	return x < size ? (uint32_t)x : size;
}

// ---- answers of the server

static int audit_item(struct audit *a, const struct audit_options *o, const struct item *i)
{
	static const float one = 1;
	struct kd_query query = KD_QUERY_INIT;
	struct kd_request request = KD_REQUEST_INIT;
	struct kd_sequence sequence = {.tokens = i->tokens, .n_tokens = i->n_tokens};
	struct kd_answer *answer = NULL;
	struct kd_error err;
	query.top_k = o->top_k;
	query.n_temperatures = 1;
	query.temperatures = &one;
	query.own = query.entropy = true;
	request.query = &query;
	request.sequences = &sequence;
	request.n_sequences = 1;
	if (kd_score(a->k->client, &request, &answer, &err))
		return kdctl_fail_with(a->k, err.field, err.message);
	int status = audit_compare(a, answer);
	kd_answer_free(answer);
	return status;
}

static int audit_file(struct audit *a, const struct audit_options *o)
{
	size_t n_path = strlen(o->path);
	bool lines = n_path > 6 && strcmp(o->path + n_path - 6, ".jsonl") == 0;
	struct score_options options = {.path = o->path, .format = lines ? SOURCE_LINES : SOURCE_TEXT, .length = o->length};
	struct source source;
	struct item *item, **chosen = calloc(o->sample, sizeof *chosen);
	uint64_t random = o->seed, n = 0;
	if (!chosen)
		return kdctl_fail(a->k, "no memory for a sample of %u", o->sample);
	int status = source_open(a->k, &options, &source);
	while (!status && !(status = source_next(&source, &item)) && item) {
		uint32_t place = sample_place(&random, n++, o->sample);
		struct item *out = place < o->sample ? chosen[place] : item;
		if (place < o->sample)
			chosen[place] = item;
		item_free(out);
	}
	source_close(&source);
	struct progress progress = progress_start();
	for (uint32_t i = 0; i < o->sample && chosen[i] && !status; i++) {
		status = audit_item(a, o, chosen[i]);
		progress_show(&progress, i + 1, n < o->sample ? (double)n : o->sample, "");
	}
	progress_stop(&progress);
	for (uint32_t i = 0; i < o->sample; i++)
		item_free(chosen[i]);
	free(chosen);
	return status;
}

// ---- records

struct gathering { const struct audit_options *o; struct record **chosen; uint64_t n, random, n_damaged; };

// One thread only.
static int take_record(void *arg, const struct survey_item *item)
{
	struct gathering *g = arg;
	if (!item->record) {
		g->n_damaged++;
		return 0;
	}
	uint32_t place = sample_place(&g->random, g->n++, g->o->sample);
	if (place < g->o->sample) {
		record_unref(g->chosen[place]);
		g->chosen[place] = record_ref(item->record);
	}
	return 0;
}

static int audit_record(struct audit *a, const struct record *record)
{
	struct kd_answer *answer;
	struct kd_error err;
	size_t n;
	const void *bytes = record_bytes(record, &n);
	if (kd_answer_from_record(bytes, n, &answer, &err))
		return kdctl_fail_with(a->k, err.field, err.message);
	int status = audit_compare(a, answer);
	kd_answer_free(answer);
	return status;
}

static int audit_store(struct audit *a, const struct audit_options *o)
{
	struct gathering g = {.o = o, .random = o->seed, .chosen = calloc(o->sample, sizeof *g.chosen)};
	struct survey_options survey = {.directory = o->directory, .n_threads = 1, .visit = take_record, .arg = &g};
	struct survey_totals totals;
	struct error err = {0};
	if (!g.chosen)
		return kdctl_fail(a->k, "no memory for a sample of %u", o->sample);
	int status = store_expect_directory(a->k, o->directory);
	if (!status && survey_run(&survey, &totals, &err))
		status = store_failure(a->k, &err);
	if (!status && g.n_damaged)
		status = kdctl_fail(a->k, "%s: %" PRIu64 " damaged places (kdctl store verify)", o->directory, g.n_damaged);
	for (uint32_t i = 0; i < o->sample && g.chosen[i] && !status; i++)
		status = audit_record(a, g.chosen[i]);
	for (uint32_t i = 0; i < o->sample; i++)
		record_unref(g.chosen[i]);
	free(g.chosen);
	return status;
}

// ---- the report

// Differences between other weights say nothing about arithmetic.
static int same_weights(struct kdctl *k, struct kdctl *reference)
{
	json_t *ours = kdctl_call(k, "GET", "/v1/model", NULL), *theirs = ours ? kdctl_call(reference, "GET", "/v1/model", NULL) : NULL;
	const json_t *list = json_object_get(ours, "teachers"), *t;
	const char *want = json_string_value(json_object_get(theirs, "weights_id")), *id;
	bool found = false;
	size_t i;
	json_array_foreach(list, i, t) {
		id = json_string_value(json_object_get(t, "id"));
		if (id && want && strcmp(id, kd_server(k->client)->teacher) == 0)
			found = !strcmp(want, json_string_value(json_object_get(t, "weights_id"))
				? json_string_value(json_object_get(t, "weights_id")) : "");
	}
	int status = !ours || !theirs ? 1 : found ? 0 : kdctl_fail(k, "the server and the reference have different weights");
	json_decref(ours);
	json_decref(theirs);
	return status;
}

static bool print_report(const struct kdctl *k, struct audit *a)
{
	bool within = a->n_status == 0 && a->n_ids_beyond == 0;
	json_t *signals = json_object();
	for (int i = 0; i < N_AUDIT_SIGNALS; i++) {
		struct audit_summary m = audit_summarise(&a->signals[i]);
		within = within && m.max <= a->bound;
		if (!a->signals[i].n)
			continue;
		// JSON knows no infinity
		json_object_set_new(signals, audit_signal_names[i],
			json_pack("{s:I, s:f, s:f, s:f}", "n", (json_int_t)a->signals[i].n, "mean", m.mean < 1e300 ? m.mean : 1e300,
			"p99", m.p99 < 1e300 ? m.p99 : 1e300, "max", m.max < 1e300 ? m.max : 1e300));
		if (!k->json)
			printf("%-8s %12zu values   mean %.3g   p99 %.3g   max %.3g\n", audit_signal_names[i], a->signals[i].n,
				m.mean, m.p99, m.max);
	}
	json_t *j = json_pack("{s:I, s:I, s:I, s:o, s:{s:I, s:I}, s:I, s:f, s:b}", "sequences", (json_int_t)a->n_sequences, "rows",
			      (json_int_t)a->n_rows, "skipped", (json_int_t)a->n_skipped, "signals", signals, "ids", "differ",
			      (json_int_t)a->n_ids, "beyond_ties", (json_int_t)a->n_ids_beyond, "status_differs", (json_int_t)a->n_status,
			      "bound", a->bound, "within", within);
	if (k->json)
		kdctl_print_json(j);
	else
		printf("%" PRIu64 " sequences, %" PRIu64 " rows, %" PRIu64 " skipped; %" PRIu64 " ids differ, %" PRIu64
		       " of them beyond ties; %" PRIu64 " rows of another status\n", a->n_sequences, a->n_rows, a->n_skipped, a->n_ids,
		       a->n_ids_beyond, a->n_status);
	json_decref(j);
	return within;
}

// Two servers that round alike agree, and that says nothing.
static int is_reference(struct kdctl *k, struct kdctl *reference)
{
	json_t *model = kdctl_call(reference, "GET", "/v1/model", NULL);
	const char *device = json_string_value(json_object_get(model, "device"));
	const char *numeric = json_string_value(json_object_get(model, "numeric"));
	int status = !model ? 1 : device && !strcmp(device, "ref") ? 0 :
		kdctl_fail(k, "the reference computes in %s on %s, not in float64 (kdserved --device ref)", numeric ? numeric : "?",
			   device ? device : "?");
	json_decref(model);
	return status;
}

static int run(struct kdctl *k, struct kdctl *reference, const struct audit_options *o)
{
	struct audit a = {.k = k, .bound = o->bound};
	int status = kdctl_connect(reference);
	if (!status)
		status = is_reference(k, reference);
	if (!status && !o->directory && !(status = kdctl_connect(k)))
		status = same_weights(k, reference);
	a.reference = reference->client;
	if (!status)
		status = o->directory ? audit_store(&a, o) : audit_file(&a, o);
	if (!status && !a.n_rows)
		status = kdctl_fail(k, "nothing to compare (%" PRIu64 " answers skipped)", a.n_skipped);
	if (!status && !print_report(k, &a))
		status = kdctl_fail(k, "differences beyond the bound of %g", o->bound);
	audit_done(&a);
	return status;
}

int command_audit(struct kdctl *k, int argc, char **argv)
{
	struct audit_options o = {.sample = 32, .top_k = 64, .length = 256, .bound = DEFAULT_BOUND};
	int status = parse(k, argc, argv, &o);
	if (status)
		return status < 0 ? 0 : status;
	struct kdctl reference = *k;
	reference.server = o.reference;
	reference.server_given = true;
	reference.teacher = reference.server_name = NULL;
	reference.ca_given = false;      // it counts if the reference speaks TLS
	status = run(k, &reference, &o);
	kd_close(reference.client);
	return status;
}
