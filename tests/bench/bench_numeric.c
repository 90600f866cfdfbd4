// SPDX-License-Identifier: Apache-2.0
// What a numeric form costs in truth: a teacher's logits at every position of a text in that form against those in f32. One CSV row a form:
// mean and largest KL divergence from f32 to it (nats, temperature 1, whole vocabulary), mean total variation, share of positions with the
// same likeliest id, largest difference of a logit, perplexity of the text in both. Device cpu has no fp8: there ref computes that form.
// Another TRUTH takes the place of f32, as bf16 for the fp8 of a GPU.
// usage: bench_numeric TEACHER TEXT [TOKENS=2048 [LENGTH=512 [THREADS=0 [FORMS=auto,bf16,int8 [DEVICE=cpu [TRUTH=f32]]]]]]
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/error.h"
#include "daemon/model/forward.h"
#include "daemon/model/head.h"
#include "daemon/model/model.h"

static const struct { const char *name; enum backend_numeric numeric; } forms[] = {
	{"auto", BACKEND_NUMERIC_AUTO}, {"f32", BACKEND_NUMERIC_F32}, {"bf16", BACKEND_NUMERIC_BF16}, {"int8", BACKEND_NUMERIC_INT8},
	{"fp8", BACKEND_NUMERIC_FP8}};

struct engine {
	struct backend *backend;
	struct weights *weights;
	struct activations *activations;
	struct head *head;
	struct act *hidden;
};

struct setting { uint32_t n, length, threads; const char *device, *truth; };

struct sums { double kl, most, variation, worst, nll[2]; uint64_t n, n_same, n_scored; };

static void die(const struct error *err)
{
	fprintf(stderr, "bench_numeric: %s\n", err->message);
	exit(1);
}

static enum backend_numeric numeric_of(const char *name)
{
	for (size_t i = 0; i < sizeof forms / sizeof *forms; i++)
		if (strcmp(forms[i].name, name) == 0)
			return forms[i].numeric;
	die(&(struct error){.message = "no such form: auto, f32, bf16, int8, fp8"});
	return BACKEND_NUMERIC_AUTO;
}

static void engine_open(struct engine *e, struct model_file *file, const struct setting *s, const char *form)
{
	enum backend_numeric numeric = numeric_of(form);
	bool cpu = strcmp(s->device, "cpu") == 0;
	uint32_t length = s->length;
	struct backend_options options = {.n_threads = s->threads, .numeric = numeric, .max_rows = length};
	struct tensor_source source = model_file_source(file);
	struct error err = {0};
	if (backend_open(cpu && numeric == BACKEND_NUMERIC_FP8 ? "ref" : s->device, &options, &e->backend, &err) < 0 ||
	    weights_load(e->backend, model_file_architecture(file), &source, length, &e->weights, &err) < 0 ||
	    activations_new(e->weights, length, false, 0, &e->activations, &err) < 0 || head_open(e->weights, length, &e->head, &err) < 0)
		die(&err);
}

static void engine_close(struct engine *e)
{
	head_close(e->head);
	activations_free(e->activations);
	weights_free(e->weights);
	backend_close(e->backend);
}

static double lse_of(const double *z, uint32_t V)
{
	double most = z[0], sum = 0;
	for (uint32_t i = 1; i < V; i++)
		most = fmax(most, z[i]);
	for (uint32_t i = 0; i < V; i++)
		sum += exp(z[i] - most);
	return most + log(sum);
}

static uint32_t best_of(const double *z, uint32_t V)
{
	uint32_t best = 0;
	for (uint32_t i = 1; i < V; i++)
		best = z[i] > z[best] ? i : best;
	return best;
}

// One position: the truth's logits and the form's; next: the token that follows, or NULL.
static void compare(struct sums *s, const double *truth, const double *form, uint32_t V, const uint32_t *next)
{
	double a = lse_of(truth, V), b = lse_of(form, V), kl = 0, variation = 0;
	for (uint32_t i = 0; i < V; i++) {
		double p = exp(truth[i] - a);
		kl += p * (truth[i] - a - form[i] + b);
		variation += fabs(p - exp(form[i] - b)) / 2;
		s->worst = fmax(s->worst, fabs(truth[i] - form[i]));
	}
	s->kl += kl;
	s->most = fmax(s->most, kl);
	s->variation += variation;
	s->n++;
	s->n_same += best_of(truth, V) == best_of(form, V);
	if (next) {
		s->nll[0] += a - truth[*next];
		s->nll[1] += b - form[*next];
		s->n_scored++;
	}
}

static void run_sequence(struct engine *e, const uint32_t *tokens, uint32_t n)
{
	uint32_t *positions = calloc(n, sizeof *positions), starts[2] = {0, n};
	for (uint32_t i = 0; positions && i < n; i++)
		positions[i] = i;
	struct layout layout = {.n_positions = n, .n_sequences = 1, .tokens = tokens, .positions = positions, .starts = starts};
	if (!positions)
		die(&(struct error){.message = "no memory"});
	e->hidden = forward(e->weights, e->activations, &layout);
	free(positions);
}

static void compare_sequence(struct engine e[2], struct sums *s, const uint32_t *tokens, uint32_t n, uint32_t V)
{
	uint32_t tiles[2] = {head_tile_rows(e[0].head), head_tile_rows(e[1].head)}, tile = tiles[0] < tiles[1] ? tiles[0] : tiles[1];
	double *logits[2] = {calloc((size_t)tile * V, sizeof(double)), calloc((size_t)tile * V, sizeof(double))};
	uint32_t *rows = calloc(tile, sizeof *rows);
	if (!logits[0] || !logits[1] || !rows)
		die(&(struct error){.message = "no memory"});
	for (int i = 0; i < 2; i++)
		run_sequence(&e[i], tokens, n);
	for (uint32_t first = 0; first < n; first += tile) {
		uint32_t m = n - first < tile ? n - first : tile;
		for (uint32_t i = 0; i < m; i++)
			rows[i] = first + i;
		for (int i = 0; i < 2; i++)
			e[i].backend->ops->real_read(e[i].backend, logits[i], head_logits(e[i].head, e[i].hidden, rows, m), (size_t)m * V);
		for (uint32_t i = 0; i < m; i++)
			compare(s, logits[0] + (size_t)i * V, logits[1] + (size_t)i * V, V,
				first + i + 1 < n ? tokens + first + i + 1 : NULL);
	}
	for (int i = 0; i < 2; i++) {
		struct error err = {0};
		if (backend_sync(e[i].backend, &err) < 0)
			die(&err);
		free(logits[i]);
	}
	free(rows);
}

static uint32_t take_number(int argc, char **argv, int i, uint32_t otherwise)
{
	return argc > i ? (uint32_t)strtoul(argv[i], NULL, 0) : otherwise;
}

// The text's first tokens, at most *n.
static struct tokens read_tokens(struct model_file *file, const char *path, uint32_t n)
{
	struct tokenizer *tokenizer = NULL;
	struct tokens tokens = {0};
	struct error err = {0};
	FILE *f = fopen(path, "r");
	size_t size = 16 * (size_t)n, got = 0;                // no text has tokens of 16 bytes on average
	char *text = malloc(size);
	if (!f || !text || !(got = fread(text, 1, size, f)))
		die(&(struct error){.message = "the text cannot be read"});
	fclose(f);
	if (model_file_tokenizer(file, &tokenizer, &err) < 0 ||
		tokenizer_encode(tokenizer, text, got, false, false, size, &tokens, &err) < 0)
		die(&err);
	tokenizer_close(tokenizer);
	free(text);
	return tokens;
}

// One row; none where auto was this form already.
static void run_form(struct model_file *file, const struct tokens *t, const char *name, const struct setting *set)
{
	uint32_t n = set->n, length = set->length;
	uint32_t V = model_file_architecture(file)->vocab_size;
	static char auto_is[16];
	struct engine e[2] = {0};
	struct sums s = {0};
	engine_open(&e[1], file, set, name);
	if (strcmp(e[1].backend->numeric, auto_is) == 0) {
		engine_close(&e[1]);
		return;
	}
	if (strcmp(name, "auto") == 0)
		snprintf(auto_is, sizeof auto_is, "%s", e[1].backend->numeric);
	engine_open(&e[0], file, set, set->truth);
	for (uint32_t first = 0; first < n && first + 1 < t->n; first += length) {
		size_t left = t->n - first < n - first ? t->n - first : n - first;
		compare_sequence(e, &s, t->ids + first, (uint32_t)(left < length ? left : length), V);
	}
	double m = (double)s.n;
	printf("%s,%llu,%u,%.6f,%.5f,%.5f,%.4f,%.4f,%.4f,%.4f\n", e[1].backend->numeric, (unsigned long long)s.n, length, s.kl / m, s.most,
	       s.variation / m, (double)s.n_same / m, s.worst, exp(s.nll[0] / (double)s.n_scored), exp(s.nll[1] / (double)s.n_scored));
	fflush(stdout);
	engine_close(&e[0]);
	engine_close(&e[1]);
}

int main(int argc, char **argv)
{
	struct model_file *file;
	struct error err = {0};
	if (argc < 3) {
		fprintf(stderr, "usage: bench_numeric TEACHER TEXT [TOKENS [LENGTH [THREADS [FORMS [DEVICE [TRUTH]]]]]]\n");
		return 2;
	}
	struct setting s = {take_number(argc, argv, 3, 2048), take_number(argc, argv, 4, 512), take_number(argc, argv, 5, 0),
			    argc > 7 ? argv[7] : "cpu", argc > 8 ? argv[8] : "f32"};
	char *names = strdup(argc > 6 ? argv[6] : "auto,bf16,int8"), *rest = names;
	if (!s.n || s.length < 2 || !names || model_file_open(argv[1], &file, &err) < 0)
		die(&err);
	struct tokens tokens = read_tokens(file, argv[2], s.n);
	puts("numeric,positions,length,kl_mean,kl_max,total_variation,same_top,logit_max,perplexity_f32,perplexity");
	for (char *name; (name = strsep(&rest, ","));)
		run_form(file, &tokens, name, &s);
	tokens_done(&tokens);
	model_file_close(file);
	free(names);
	return 0;
}
