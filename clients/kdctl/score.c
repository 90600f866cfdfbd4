// SPDX-License-Identifier: Apache-2.0
// kdctl score: a file through the teacher, two requests ahead, and the sum of what came back.
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "clients/kdctl/kdctl.h"

#define ANSWER_OVERHEAD 40       // bytes of frame and answer header before a record
#define MAX_TEMPERATURES 16
#define REQUESTS_AHEAD 2

struct scoring {
	struct kdctl *k;
	uint32_t length, batch, flags;
	bool lines;                      // the file is JSON lines
	const char *path, *records_path;
	FILE *records;
	float temperatures[MAX_TEMPERATURES];
	struct kd_query query;
	struct windows windows;
	size_t n_sent;
	struct { uint64_t id; size_t base; } in_flight[REQUESTS_AHEAD];
	unsigned n_in_flight;
	// sums
	uint64_t n_answered, n_cached, n_positions, n_own, n_bad_rows, n_bytes;
	double nll;                      // of the tokens that followed, in nats
};

static const char help[] =
	"Usage: kdctl score [OPTIONS] FILE\n"
	"Scores a text file (- = stdin), or JSON lines {\"text\":\"...\"} / {\"tokens\":[..]}.\n\n"
	"  --lines              the file is JSON lines (implied by the name *.jsonl)\n"
	"  --length N           tokens of one sequence [512]\n"
	"  --top-k K            ids asked for at each position [64]; 0 = none\n"
	"  --temperatures LIST  of the lse values, separated by commas [1]\n"
	"  --values f16|f32     how logits travel [f16]\n"
	"  --batch N            sequences of one request [8]\n"
	"  --no-store           neither look in the server's store nor add to it\n"
	"  --durable            wait until answers are on the server's disk\n"
	"  --records FILE       write the records, one after the other (kdserved-record(5))";

static int parse_temperatures(struct scoring *s, const char *list)
{
	char *copy = strdup(list), *rest = copy;
	int status = copy ? 0 : kdctl_fail(s->k, "no memory");
	s->query.n_temperatures = 0;
	for (char *item; !status && (item = strsep(&rest, ","));) {
		double v;
		if (!kdctl_number(item, 1e-4, 1e6, &v) || s->query.n_temperatures == MAX_TEMPERATURES)
			status = kdctl_usage(s->k, "--temperatures %s: up to %d numbers from 0.0001 to 1000000 are expected", list,
					     MAX_TEMPERATURES);
		else
			s->temperatures[s->query.n_temperatures++] = (float)v;
	}
	free(copy);
	return status;
}

static int parse_integer(const struct scoring *s, const char *name, const char *text, double min, double max, uint32_t *ret)
{
	double v;
	if (!kdctl_number(text, min, max, &v) || v != floor(v))
		return kdctl_usage(s->k, "--%s %s: a whole number from %.0f to %.0f is expected", name, text, min, max);
	*ret = (uint32_t)v;
	return 0;
}

static int parse_option(struct scoring *s, int c, int argc, char **argv)
{
	switch (c) {
	case 'l': s->lines = true; return 0;
	case 'n': return parse_integer(s, "length", optarg, 1, 1 << 20, &s->length);
	case 'k': return parse_integer(s, "top-k", optarg, 0, 1 << 24, &s->query.top_k);
	case 't': return parse_temperatures(s, optarg);
	case 'b': return parse_integer(s, "batch", optarg, 1, 65536, &s->batch);
	case 'x': s->flags |= KD_NO_STORE; return 0;
	case 'd': s->flags |= KD_DURABLE; return 0;
	case 'r': s->records_path = optarg; return 0;
	case 'v':
		s->query.f16 = strcmp(optarg, "f16") == 0;
		return s->query.f16 || strcmp(optarg, "f32") == 0 ? 0 : kdctl_usage(s->k, "--values %s: f16 or f32 is expected", optarg);
	default: return kdctl_bad_option(s->k, argc, argv);
	}
}

// 0 = go on, 1 and 2 = failed, -1 = help was shown.
static int parse_arguments(struct scoring *s, int argc, char **argv)
{
	static const struct option options[] = {{"help", no_argument, NULL, 'h'}, {"lines", no_argument, NULL, 'l'},
		{"length", required_argument, NULL, 'n'}, {"top-k", required_argument, NULL, 'k'},
		{"temperatures", required_argument, NULL, 't'}, {"values", required_argument, NULL, 'v'},
		{"batch", required_argument, NULL, 'b'}, {"no-store", no_argument, NULL, 'x'},
		{"durable", no_argument, NULL, 'd'}, {"records", required_argument, NULL, 'r'}, {0}};
	for (int c; (c = getopt_long(argc, argv, ":", options, NULL)) != -1;) {
		if (c == 'h') {
			puts(help);
			return -1;
		}
		int status = parse_option(s, c, argc, argv);
		if (status)
			return status;
	}
	if (optind + 1 != argc)
		return kdctl_usage(s->k, "one FILE is expected (kdctl score --help)");
	s->path = argv[optind];
	size_t n = strlen(s->path);
	s->lines |= n > 6 && strcmp(s->path + n - 6, ".jsonl") == 0;
	s->query.temperatures = s->temperatures;
	return 0;
}

static int load_windows(struct scoring *s)
{
	size_t n;
	char *text = read_text_file(s->k, s->path, &n);
	if (!text)
		return 1;
	int status = s->lines ? windows_append_lines(s->k, &s->windows, text, n, s->length)
			      : windows_append_text(s->k, &s->windows, text, n, s->length);
	free(text);
	if (!status && !s->windows.n)
		status = kdctl_fail(s->k, "%s: there is nothing to score", s->path);
	return status;
}

static int submit_more(struct scoring *s)
{
	unsigned credits = kd_server(s->k->client)->credits;
	while (s->n_sent < s->windows.n && s->n_in_flight < REQUESTS_AHEAD && s->n_in_flight < credits) {
		size_t left = s->windows.n - s->n_sent;
		struct kd_request request = {.query = s->query, .sequences = s->windows.items + s->n_sent, .flags = s->flags};
		struct kd_error err;
		uint64_t id;
		request.n_sequences = (uint32_t)(left < s->batch ? left : s->batch);
		if (kd_submit(s->k->client, &request, &id, &err))
			return kdctl_fail_with(s->k, err.field, err.message);
		s->in_flight[s->n_in_flight].id = id;
		s->in_flight[s->n_in_flight++].base = s->n_sent;
		s->n_sent += request.n_sequences;
	}
	return 0;
}

// Negative log-likelihood of the tokens that followed, and how many.
static double rows_nll(const struct kd_rows *rows, uint64_t *ret_n, uint64_t *ret_bad)
{
	double nll = 0;
	uint32_t at_one = 0;
	while (at_one + 1 < rows->n_temperatures && rows->temperatures[at_one] != 1)
		at_one++;
	*ret_n = *ret_bad = 0;
	for (uint32_t row = 0; row < rows->n_rows; row++) {
		*ret_bad += rows->status[row] != 0;
		if (rows->status[row] || isnan(rows->own_logit[row]))
			continue;
		nll += (double)rows->lse[row * rows->n_temperatures + at_one] - (double)rows->own_logit[row];
		++*ret_n;
	}
	return nll;
}

static int take_answer(struct scoring *s, size_t index, struct kd_answer *answer)
{
	const struct kd_rows *rows;
	struct kd_error err;
	uint64_t n_own, n_bad;
	size_t n;
	const void *record = kd_answer_record(answer, &n);
	if (kd_answer_rows(answer, &rows, &err))
		return kdctl_fail_with(s->k, err.field, err.message);
	double nll = rows_nll(rows, &n_own, &n_bad);
	s->n_answered++;
	s->n_cached += kd_answer_cached(answer);
	s->n_positions += rows->n_rows;
	s->n_bytes += n + ANSWER_OVERHEAD;
	s->nll += nll;
	s->n_own += n_own;
	s->n_bad_rows += n_bad;
	if (s->records && fwrite(record, 1, n, s->records) != n)
		return kdctl_fail(s->k, "%s: %s", s->records_path, strerror(errno));
	if (s->k->json)
		printf("{\"sequence\":%zu,\"tokens\":%" PRIu32 ",\"positions\":%" PRIu32 ",\"cached\":%s,\"nll\":%.6f,"
		       "\"scored_tokens\":%" PRIu64 ",\"record_bytes\":%zu}\n",
		       index, rows->n_tokens, rows->n_rows, kd_answer_cached(answer) ? "true" : "false", nll, n_own, n);
	return 0;
}

static int take_event(struct scoring *s)
{
	struct kd_event e;
	struct kd_error err;
	if (kd_next(s->k->client, -1, &e, &err))
		return kdctl_fail_with(s->k, err.field, err.message);
	unsigned at = 0;
	while (at < s->n_in_flight && s->in_flight[at].id != e.id)
		at++;
	if (at == s->n_in_flight)
		return kdctl_fail(s->k, "an answer to another request");
	int status = 0;
	if (e.kind == KD_EVENT_ANSWER)
		status = take_answer(s, s->in_flight[at].base + e.index, e.answer);
	else if (e.kind == KD_EVENT_DONE)
		s->in_flight[at] = s->in_flight[--s->n_in_flight];
	else
		status = kdctl_fail_with(s->k, e.error.field, e.error.message);
	kd_answer_free(e.answer);
	return status;
}

static int score_all(struct scoring *s, struct progress *p)
{
	int status = submit_more(s);
	while (!status && s->n_in_flight) {
		char note[96];
		status = take_event(s);
		if (!status)
			status = submit_more(s);
		snprintf(note, sizeof note, "%" PRIu64 "/%zu sequences, %.0f tokens/s", s->n_answered, s->windows.n,
			 (double)s->n_positions / progress_seconds(p));
		progress_show(p, (double)s->n_answered, (double)s->windows.n, note);
	}
	progress_stop(p);
	return status;
}

static void print_summary(const struct scoring *s, double seconds)
{
	double perplexity = s->n_own ? exp(s->nll / (double)s->n_own) : NAN;
	double cached = 100.0 * (double)s->n_cached / (double)s->n_answered;
	double bytes = (double)s->n_bytes / (double)s->n_positions, speed = (double)s->n_positions / seconds;
	if (s->k->json) {
		json_t *j = json_pack("{s:s, s:I, s:I, s:I}", "teacher", kd_server(s->k->client)->teacher, "sequences",
				      (json_int_t)s->n_answered, "positions", (json_int_t)s->n_positions, "rows_not_finite",
				      (json_int_t)s->n_bad_rows);
		json_object_set_new(j, "seconds", json_real(seconds));
		json_object_set_new(j, "tokens_per_second", json_real(speed));
		json_object_set_new(j, "wire_bytes_per_position", json_real(bytes));
		json_object_set_new(j, "cached_percent", json_real(cached));
		json_object_set_new(j, "perplexity", s->n_own ? json_real(perplexity) : json_null());
		j = json_pack("{s:o}", "summary", j);
		kdctl_print_json(j);
		json_decref(j);
		return;
	}
	printf("teacher                  %s\n", kd_server(s->k->client)->teacher);
	printf("sequences                %" PRIu64 "\npositions                %" PRIu64 "\n", s->n_answered, s->n_positions);
	if (s->n_own)
		printf("perplexity               %.4f\n", perplexity);
	if (s->n_bad_rows)
		printf("rows not finite          %" PRIu64 "\n", s->n_bad_rows);
	printf("tokens/s                 %.1f\nwire bytes/position      %.1f\ncached                   %.1f %%\n", speed, bytes, cached);
}

// Perplexity needs the lse at 1, whatever else was asked for.
static int add_temperature_one(struct scoring *s)
{
	for (uint32_t i = 0; i < s->query.n_temperatures; i++)
		if (s->temperatures[i] == 1)
			return 0;
	if (s->query.n_temperatures == MAX_TEMPERATURES)
		return kdctl_usage(s->k, "--temperatures: with 1, which is needed too, there are more than %d", MAX_TEMPERATURES);
	s->temperatures[s->query.n_temperatures++] = 1;
	return 0;
}

int command_score(struct kdctl *k, int argc, char **argv)
{
	struct scoring s = {.k = k, .length = 512, .batch = 8, .query = {.top_k = 64, .own = true, .f16 = true, .last = -1}};
	int status = parse_arguments(&s, argc, argv);
	if (status)
		return status < 0 ? 0 : status;
	status = add_temperature_one(&s);
	if (!status)
		status = kdctl_connect(k);
	if (status)
		return status;
	if (s.batch > kd_server(k->client)->max_sequences)
		s.batch = kd_server(k->client)->max_sequences;
	if (s.records_path && !(s.records = fopen(s.records_path, "we")))
		return kdctl_fail(k, "%s: %s", s.records_path, strerror(errno));
	status = load_windows(&s);
	struct progress p = progress_start();
	if (!status)
		status = score_all(&s, &p);
	if (s.records && fclose(s.records) && !status)
		status = kdctl_fail(k, "%s: %s", s.records_path, strerror(errno));
	if (!status)
		print_summary(&s, progress_seconds(&p));
	windows_done(&s.windows);
	return status;
}
