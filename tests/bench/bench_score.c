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
	uint32_t threads, length, sequences, top_k, passes, gpu_mib;
	bool full;                 // two temperatures, own and entropy, else lse at temperature 1 alone
};

struct bench {
	struct backend *backend;
	struct model_file *file;
	struct weights *weights;
	struct activations *activations;
	struct head *head;
	uint32_t T, *tokens, *positions, *starts, *rows;
	struct sweep_row *out;
	double *lse, *logits, *own;
	uint32_t *ids;
	double load_seconds;       // of reading the weights and bringing them to the device
};

// Medians, in seconds. product: what the head's matrix alone takes; the rest of the head is what is read from it.
struct times { double pass, head, product; };

static const char usage[] =
	"usage: bench_score --teacher PATH [--device auto|cpu|cuda|ref] [--numeric auto|f32|bf16|int8|fp8]\n"
	"                   [--threads N] [--length N] [--sequences N] [--top-k N] [--passes N] [--full]\n"
	"                   [--gpu-memory MIB]\n";

static int parse_number(const char *text, uint32_t *ret)
{
	char *end;
	unsigned long n = strtoul(text, &end, 10);
	if (*end || end == text || n > 1u << 24)
		return -1;
	*ret = (uint32_t)n;
	return 0;
}

static enum backend_numeric numeric_of(const char *name)
{
	return strcmp(name, "f32") == 0    ? BACKEND_NUMERIC_F32
	       : strcmp(name, "bf16") == 0 ? BACKEND_NUMERIC_BF16
	       : strcmp(name, "int8") == 0 ? BACKEND_NUMERIC_INT8
	       : strcmp(name, "fp8") == 0  ? BACKEND_NUMERIC_FP8
					   : BACKEND_NUMERIC_AUTO;
}

static int parse_options(int argc, char **argv, struct options *o)
{
	static const struct option table[] = {
		{"teacher", 1, NULL, 't'}, {"device", 1, NULL, 'd'}, {"numeric", 1, NULL, 'n'}, {"threads", 1, NULL, 'j'},
		{"length", 1, NULL, 'l'}, {"sequences", 1, NULL, 's'}, {"top-k", 1, NULL, 'k'}, {"passes", 1, NULL, 'p'},
		{"full", 0, NULL, 'f'}, {"gpu-memory", 1, NULL, 'g'}, {0},
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
		case 'f': o->full = true; break;
		case 'g': r = parse_number(optarg, &o->gpu_mib); break;
		default: r = -1;
		}
	}
	bool known = strcmp(o->numeric, "auto") == 0 || numeric_of(o->numeric) != BACKEND_NUMERIC_AUTO;
	return r == 0 && o->teacher && known && o->length && o->sequences && o->passes ? 0 : -1;
}

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int bench_open(struct bench *b, const struct options *o, struct error *err)
{
	b->T = o->length * o->sequences;
	struct backend_options options = {.n_threads = o->threads, .numeric = numeric_of(o->numeric), .max_rows = b->T,
					  .memory_bytes = (uint64_t)o->gpu_mib << 20};
	int r = model_file_open(o->teacher, &b->file, err);
	if (r < 0)
		return r;
	struct tensor_source source = model_file_source(b->file);
	const struct architecture *a = model_file_architecture(b->file);
	options.need.parts[BACKEND_PART_WEIGHTS].stored_bytes = model_file_stored_bytes(b->file);
	if ((r = weights_need(a, o->length, false, &options.need, err)) < 0 ||
	    (r = activations_need(a, b->T, false, 0, &options.need, err)) < 0 ||
	    (r = head_need(a, b->T, false, false, &options.need, err)) < 0 || (r = backend_open(o->device, &options, &b->backend, err)) < 0)
		return r;
	if (o->top_k > a->vocab_size)
		return error_set(err, ERROR_INVALID, "top-k", "more than the vocabulary of %u", a->vocab_size);
	double begin = now();
	if ((r = weights_load(b->backend, a, &source, o->length, &b->weights, err)) < 0 ||
	    (r = backend_sync(b->backend, err)) < 0)
		return r;
	b->load_seconds = now() - begin;
	if ((r = activations_new(b->weights, b->T, false, 0, &b->activations, err)) < 0)
		return r;
	return head_open(b->weights, b->T, &b->head, err);
}

static int bench_fill(struct bench *b, const struct options *o, struct error *err)
{
	static const float temperatures[] = {1, 2};
	uint32_t n_temperatures = o->full ? 2 : 1;
	size_t T = b->T, n_top = T * o->top_k;
	b->tokens = calloc(T, sizeof *b->tokens);
	b->positions = calloc(T, sizeof *b->positions);
	b->rows = calloc(T, sizeof *b->rows);
	b->starts = calloc((size_t)o->sequences + 1, sizeof *b->starts);
	b->out = calloc(T, sizeof *b->out);
	b->lse = calloc(T, n_temperatures * sizeof *b->lse);
	b->own = calloc(T, sizeof *b->own);
	b->ids = calloc(n_top + 1, sizeof *b->ids);
	b->logits = calloc(n_top + 1, sizeof *b->logits);
	if (!b->tokens || !b->positions || !b->rows || !b->starts || !b->out || !b->lse || !b->own || !b->ids || !b->logits)
		return error_set(err, ERROR_MEMORY, NULL, "no memory for %zu positions", T);
	uint32_t random = 1;
	struct sweep_row row = {.top_k = o->top_k, .n_temperatures = n_temperatures, .temperatures = temperatures, .n_gather = o->full,
				.want_entropy = o->full};
	for (uint32_t t = 0; t < b->T; t++) {
		random = random * 1664525u + 1013904223u;
		b->tokens[t] = (random >> 8) % b->weights->architecture.vocab_size;
		b->positions[t] = t % o->length;
		b->rows[t] = t;
		b->out[t] = row;
		b->out[t].lse = b->lse + (size_t)t * n_temperatures;
		b->out[t].ids = b->ids + (size_t)t * o->top_k;
		b->out[t].logits = b->logits + (size_t)t * o->top_k;
		b->out[t].gather = b->tokens + (t + 1 < b->T ? t + 1 : t);
		b->out[t].gathered = b->own + t;
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
	free(b->own);
	free(b->ids);
	free(b->logits);
}

static int by_value(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;
	return (x > y) - (x < y);
}

static double median(double *values, uint32_t n)
{
	qsort(values, n, sizeof *values, by_value);
	return values[n / 2];
}

// Seconds of trunk and head of each pass, then of the head's product once more without a sweep; the first pass apart: it touches memory
// for the first time.
static int bench_passes(struct bench *b, const struct options *o, double *seconds, double *head_seconds, double *product_seconds,
			struct error *err)
{
	uint32_t tile = head_tile_rows(b->head);
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
		double end = now();
		for (uint32_t first = 0; first < b->T; first += tile)
			head_logits(b->head, hidden, b->rows + first, b->T - first < tile ? b->T - first : tile);
		if ((r = backend_sync(b->backend, err)) < 0)
			return r;
		seconds[i ? i - 1 : 0] = end - begin;
		head_seconds[i ? i - 1 : 0] = end - middle;
		product_seconds[i ? i - 1 : 0] = now() - end;
		fprintf(stderr, "pass %u of %u: %.0f tokens/s\n", i, o->passes, b->T / (end - begin));
	}
	return 0;
}

static int bench_run(struct bench *b, const struct options *o, struct times *ret, struct error *err)
{
	double *all = calloc(3 * (size_t)o->passes, sizeof *all);
	int r = all ? bench_passes(b, o, all, all + o->passes, all + 2 * (size_t)o->passes, err) :
		error_set(err, ERROR_MEMORY, NULL, "no memory for %u passes", o->passes);
	if (r == 0)
		*ret = (struct times){median(all, o->passes), median(all + o->passes, o->passes),
			median(all + 2 * (size_t)o->passes, o->passes)};
	free(all);
	return r;
}

static void print_row(const struct bench *b, const struct options *o, const struct times *t)
{
	struct rusage used;
	getrusage(RUSAGE_SELF, &used);
	puts("device,numeric,description,sequences,length,top_k,full,passes,tokens_per_s,seconds,head_seconds,product_seconds,"
	     "device_mib,peak_rss_mib,load_seconds,weights_mib,stored_mib");
	printf("%s,%s,\"%s\",%u,%u,%u,%d,%u,%.1f,%.5f,%.5f,%.5f,%llu,%ld,%.3f,%.1f,%.1f\n", b->backend->ops->name, b->backend->numeric,
	       b->backend->description, o->sequences, o->length, o->top_k, o->full, o->passes, b->T / t->pass, t->pass, t->head, t->product,
	       (unsigned long long)(b->backend->memory_bytes >> 20), used.ru_maxrss / 1024, b->load_seconds,
	       (double)b->weights->file_bytes / (1u << 20), (double)b->backend->stored_bytes / (1u << 20));
}

int main(int argc, char **argv)
{
	struct options o = {.device = "auto", .numeric = "auto", .length = 512, .sequences = 4, .top_k = 64, .passes = 5};
	struct error err = {0};
	struct bench b = {0};
	struct times times;
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
	if (r == 0)
		r = bench_run(&b, &o, &times, &err);
	if (r == 0)
		print_row(&b, &o, &times);
	else
		fprintf(stderr, "bench_score: %s\n", err.message);
	bench_close(&b);
	return r < 0;
}
