// SPDX-License-Identifier: Apache-2.0
// How fast a teacher scores every position of a batch, without daemon, wire or disk: median of several passes over the same tokens,
// printed as one CSV row (a speed claim carries this row, machine and shape).
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

#include "common/error.h"
#include "daemon/model/forward.h"
#include "daemon/model/head.h"
#include "daemon/model/model.h"

struct options {
	const char *teacher, *device, *numeric;
	uint32_t threads, length, sequences, top_k, passes;
};

struct bench {
	struct backend *backend;
	struct model_file *file;
	struct weights *weights;
	struct activations *activations;
	struct head *head;
	uint32_t T, *tokens, *positions, *starts, *rows;
	struct sweep_row *out;
	double *lse, *logits;
	uint32_t *ids;
};

static const char usage[] =
	"usage: bench_score --teacher PATH [--device auto|cpu|cuda|ref] [--numeric auto|f32|bf16] [--threads N]\n"
	"                   [--length N] [--sequences N] [--top-k N] [--passes N]\n";

static int parse_number(const char *text, uint32_t *ret)
{
	char *end;
	unsigned long n = strtoul(text, &end, 10);
	if (*end || end == text || n > 1u << 24)
		return -1;
	*ret = (uint32_t)n;
	return 0;
}

static int parse_options(int argc, char **argv, struct options *o)
{
	static const struct option table[] = {
		{"teacher", 1, NULL, 't'}, {"device", 1, NULL, 'd'}, {"numeric", 1, NULL, 'n'}, {"threads", 1, NULL, 'j'},
		{"length", 1, NULL, 'l'}, {"sequences", 1, NULL, 's'}, {"top-k", 1, NULL, 'k'}, {"passes", 1, NULL, 'p'}, {0},
	};
	int c, r = 0;
	while ((c = getopt_long(argc, argv, "", table, NULL)) != -1 && r == 0) {
		switch (c) {
		case 't': o->teacher = optarg; break;
		case 'd': o->device = optarg; break;
		case 'n': o->numeric = optarg; break;
		case 'j': r = parse_number(optarg, &o->threads); break;
		case 'l': r = parse_number(optarg, &o->length); break;
		case 's': r = parse_number(optarg, &o->sequences); break;
		case 'k': r = parse_number(optarg, &o->top_k); break;
		case 'p': r = parse_number(optarg, &o->passes); break;
		default: r = -1;
		}
	}
	bool known = strcmp(o->numeric, "auto") == 0 || strcmp(o->numeric, "f32") == 0 || strcmp(o->numeric, "bf16") == 0;
	return r == 0 && o->teacher && known && o->length && o->sequences && o->passes ? 0 : -1;
}

static enum backend_numeric numeric_of(const char *name)
{
	return strcmp(name, "f32") == 0 ? BACKEND_NUMERIC_F32 : strcmp(name, "bf16") == 0 ? BACKEND_NUMERIC_BF16 : BACKEND_NUMERIC_AUTO;
}

static int bench_open(struct bench *b, const struct options *o, struct error *err)
{
	b->T = o->length * o->sequences;
	struct backend_options options = {.n_threads = o->threads, .numeric = numeric_of(o->numeric), .max_rows = b->T};
	int r = model_file_open(o->teacher, &b->file, err);
	if (r < 0 || (r = backend_open(o->device, &options, &b->backend, err)) < 0)
		return r;
	struct tensor_source source = model_file_source(b->file);
	const struct architecture *a = model_file_architecture(b->file);
	if (o->top_k > a->vocab_size)
		return error_set(err, ERROR_INVALID, "top-k", "more than the vocabulary of %u", a->vocab_size);
	if ((r = weights_load(b->backend, a, &source, o->length, &b->weights, err)) < 0 ||
	    (r = activations_new(b->weights, b->T, false, &b->activations, err)) < 0)
		return r;
	return head_open(b->weights, b->T, &b->head, err);
}

static int bench_fill(struct bench *b, const struct options *o, struct error *err)
{
	static const float temperature = 1;
	size_t T = b->T, n_top = T * o->top_k;
	b->tokens = calloc(T, sizeof *b->tokens);
	b->positions = calloc(T, sizeof *b->positions);
	b->rows = calloc(T, sizeof *b->rows);
	b->starts = calloc((size_t)o->sequences + 1, sizeof *b->starts);
	b->out = calloc(T, sizeof *b->out);
	b->lse = calloc(T, sizeof *b->lse);
	b->ids = calloc(n_top + 1, sizeof *b->ids);
	b->logits = calloc(n_top + 1, sizeof *b->logits);
	if (!b->tokens || !b->positions || !b->rows || !b->starts || !b->out || !b->lse || !b->ids || !b->logits)
		return error_set(err, ERROR_MEMORY, NULL, "no memory for %zu positions", T);
	uint32_t random = 1;
	for (uint32_t t = 0; t < b->T; t++) {
		random = random * 1664525u + 1013904223u;
		b->tokens[t] = (random >> 8) % b->weights->architecture.vocab_size;
		b->positions[t] = t % o->length;
		b->rows[t] = t;
		b->out[t] = (struct sweep_row){.top_k = o->top_k, .n_temperatures = 1, .temperatures = &temperature, .lse = &b->lse[t],
					       .ids = b->ids + (size_t)t * o->top_k, .logits = b->logits + (size_t)t * o->top_k};
	}
	for (uint32_t s = 0; s <= o->sequences; s++)
		b->starts[s] = s * o->length;
	return 0;
}

static void bench_close(struct bench *b)
{
	head_close(b->head);
	activations_free(b->activations);
	weights_free(b->weights);
	backend_close(b->backend);
	model_file_close(b->file);
	free(b->tokens);
	free(b->positions);
	free(b->rows);
	free(b->starts);
	free(b->out);
	free(b->lse);
	free(b->ids);
	free(b->logits);
}

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int by_value(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;
	return (x > y) - (x < y);
}

// Seconds of trunk and head of each pass, the first one apart: it touches memory for the first time.
static int bench_run(struct bench *b, const struct options *o, double *seconds, double *head_seconds, struct error *err)
{
	struct layout layout = {.n_positions = b->T, .n_sequences = o->sequences, .tokens = b->tokens,
					.positions = b->positions, .starts = b->starts};
	for (uint32_t i = 0; i <= o->passes; i++) {
		double begin = now();
		struct act *hidden = forward(b->weights, b->activations, &layout);
		int r = backend_sync(b->backend, err);
		double middle = now();
		head_score(b->head, hidden, b->rows, b->T, b->out);
		if (r < 0 || (r = backend_sync(b->backend, err)) < 0)
			return r;
		seconds[i ? i - 1 : 0] = now() - begin;
		head_seconds[i ? i - 1 : 0] = now() - middle;
		fprintf(stderr, "pass %u of %u: %.0f tokens/s\n", i, o->passes, b->T / (now() - begin));
	}
	return 0;
}

static void print_row(const struct bench *b, const struct options *o, double seconds, double head_seconds)
{
	struct rusage used;
	getrusage(RUSAGE_SELF, &used);
	printf("device,numeric,description,sequences,length,top_k,passes,tokens_per_s,seconds,head_seconds,peak_rss_mib\n");
	printf("%s,%s,\"%s\",%u,%u,%u,%u,%.1f,%.3f,%.3f,%ld\n", b->backend->ops->name, b->backend->numeric, b->backend->description, o->sequences,
	       o->length, o->top_k, o->passes, b->T / seconds, seconds, head_seconds, used.ru_maxrss / 1024);
}

int main(int argc, char **argv)
{
	struct options o = {.device = "auto", .numeric = "auto", .length = 512, .sequences = 4, .top_k = 64, .passes = 5};
	struct error err = {0};
	struct bench b = {0};
	double *seconds = NULL, *head_seconds = NULL;
	if (argc > 1 && strcmp(argv[1], "--help") == 0) {
		fputs(usage, stdout);
		return 0;
	}
	if (parse_options(argc, argv, &o) < 0) {
		fputs(usage, stderr);
		return 2;
	}
	int r = bench_open(&b, &o, &err);
	if (r == 0)
		r = bench_fill(&b, &o, &err);
	seconds = calloc(o.passes, sizeof *seconds);
	head_seconds = calloc(o.passes, sizeof *head_seconds);
	if (r == 0 && (!seconds || !head_seconds))
		r = error_set(&err, ERROR_MEMORY, NULL, "no memory for %u passes", o.passes);
	if (r == 0)
		r = bench_run(&b, &o, seconds, head_seconds, &err);
	if (r == 0) {
		qsort(seconds, o.passes, sizeof *seconds, by_value);
		qsort(head_seconds, o.passes, sizeof *head_seconds, by_value);
		print_row(&b, &o, seconds[o.passes / 2], head_seconds[o.passes / 2]);
	} else {
		fprintf(stderr, "bench_score: %s\n", err.message);
	}
	bench_close(&b);
	free(seconds);
	free(head_seconds);
	return r < 0;
}
