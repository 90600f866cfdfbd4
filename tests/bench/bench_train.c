// SPDX-License-Identifier: Apache-2.0
// Training speed of the worker's student without a server: answers are made up, since speed does not depend on values here. Prints one
// CSV row: bench_train [DEVICE [THREADS [STEPS [RECOMPUTE [LOSS [PRECISION [LENGTH [LAYERS [WIDTH]]]]]]]]]. RECOMPUTE: gradient
// checkpointing, the input of every so many layers kept; LOSS: ce, kd, or both as one objective; PRECISION: auto, f32, bf16. Tokens for
// each second of processor time of all threads are what other programs on the machine disturb least.
// The student, unless said: 8 layers, width 384, feed-forward 1024, 49152 tokens, tied head (33.0 million parameters); sequences of 512
// tokens, as many as make 2048 a step; top-k 64.
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

#include "common/error.h"
#include "common/record.h"
#include "daemon/model/config.h"
#include "daemon/worker/optimizer.h"
#include "daemon/worker/student.h"

#define TOKENS 2048              // a step
#define MAX_LENGTH 512
#define MAX_BATCH 64
#define TOP_K 64
#define VOCABULARY 49152

static uint32_t length = MAX_LENGTH, batch;
static struct architecture architecture = {
	.name = "llama", .n_layers = 8, .width = 384, .ffn_width = 1024, .n_heads = 6, .n_kv_heads = 6, .head_size = 64,
	.vocab_size = VOCABULARY, .context_length = MAX_LENGTH, .norm_epsilon = 1e-5f, .rope_theta = 10000, .tied_head = true, .bos_id = -1,
	.eos_id = -1,
};

static double clock_seconds(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static double processor_seconds(void)
{
	struct rusage u;
	getrusage(RUSAGE_SELF, &u);
	return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) + 1e-6 * (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec);
}

static int answer_make(uint32_t seed, struct record_rows **ret, struct error *err)
{
	static uint32_t tokens[MAX_LENGTH];
	struct sequence s = {tokens, length};
	struct query_limits limits = {.max_tokens = length, .max_top_k = TOP_K, .vocab_size = VOCABULARY};
	struct content_id teacher = {{1}};
	struct query q;
	for (uint32_t i = 0; i < length; i++)
		tokens[i] = (seed = seed * 1664525u + 1013904223u) % VOCABULARY;
	query_init(&q);
	q.top_k = TOP_K;
	q.last = -2;
	int r = query_check(&q, &s, &limits, NULL, err);
	r = r ? r : record_rows_new(&teacher, VOCABULARY, &s, &q, ret, err);
	for (uint32_t i = 0; r == 0 && i < (*ret)->n_rows; i++) {
		for (uint32_t k = 0; k < TOP_K; k++) {
			(*ret)->ids[i * TOP_K + k] = k * (VOCABULARY / TOP_K) + tokens[i] % (VOCABULARY / TOP_K);
			(*ret)->logits[i * TOP_K + k] = 8.f - 0.1f * (float)k;
		}
		(*ret)->lse[i] = 11;
	}
	return r;
}

static int bench(struct student *s, struct record_rows *const *answers, int steps, struct error *err)
{
	struct optimizer_options o = {.learning_rate = 1e-4, .min_ratio = 1, .steps = (uint64_t)steps, .beta1 = .9, .beta2 = .95,
				      .epsilon = 1e-8, .weight_decay = .1, .clip = 1};
	double best = 1e9, total = 0, best_processor = 1e9, optimizer_seconds = 0, norm;
	struct optimizer *optimizer = NULL;
	int r = optimizer_new(&o, student_weights(s), &optimizer, err);
	if (r)
		return r;
	for (int i = 0; i <= steps; i++) {     // the first one warms up
		struct student_sums sums = {0};
		double begin = clock_seconds(), processor = processor_seconds();
		r = student_train(s, (const struct record_rows *const *)answers, batch, &sums, err);
		double middle = clock_seconds();
		r = r ? r : optimizer_step(optimizer, (uint64_t)i + 1, sums.n_positions, &norm, err);
		if (r)
			goto out;
		double end = clock_seconds();
		if (i == 0)
			continue;
		processor = processor_seconds() - processor;
		best_processor = processor < best_processor ? processor : best_processor;
		best = end - begin < best ? end - begin : best;
		total += end - begin;
		optimizer_seconds += end - middle;
	}
	struct rusage used;
	double tokens = (double)batch * length;
	getrusage(RUSAGE_SELF, &used);
	printf("device,parameters,tokens_per_step,top_k,steps,tokens_per_second,best_tokens_per_second,optimizer_ms,activation_mib,"
	       "peak_mib,tokens_per_processor_second\n");
	printf("\"%s\",%llu,%d,%d,%d,%.0f,%.0f,%.1f,%.1f,%.1f,%.1f\n", student_device(s),
	       (unsigned long long)architecture_n_parameters(&architecture), (int)tokens, TOP_K, steps, steps * tokens / total,
	       tokens / best, 1000 * optimizer_seconds / steps, (double)student_activation_bytes(s) / (1 << 20),
	       (double)used.ru_maxrss / 1024, tokens / best_processor);
out:
	optimizer_free(optimizer);
	return r;
}

static int objective_make(const char *loss, struct objective **ret, struct error *err)
{
	int r = objective_new(ret) ? -ENOMEM : 0;
	if (r == 0 && strcmp(loss, "ce") != 0)
		r = objective_add(*ret, "forward-kl", "bench", err);
	if (r == 0 && strcmp(loss, "kd") != 0)
		r = objective_add(*ret, strcmp(loss, "ce") ? "cross-entropy weight=0.1" : "cross-entropy", "bench", err);
	return r ? r : objective_begin(*ret, 1, VOCABULARY);
}

static enum backend_numeric numeric_of(const char *precision)
{
	return strcmp(precision, "f32") == 0 ? BACKEND_NUMERIC_F32 : strcmp(precision, "bf16") == 0 ? BACKEND_NUMERIC_BF16
		: BACKEND_NUMERIC_AUTO;
}

// Heads of 64, and a feed-forward half of 8/3 of the width.
static bool set_shape(int n_layers, int width, int tokens)
{
	if (n_layers < 1 || width < 64 || width % 64 || tokens < TOKENS / MAX_BATCH || tokens > MAX_LENGTH)
		return false;
	length = (uint32_t)tokens;
	batch = TOKENS / length;
	architecture.n_layers = (uint32_t)n_layers;
	architecture.width = (uint32_t)width;
	architecture.n_heads = architecture.n_kv_heads = (uint32_t)width / 64;
	architecture.ffn_width = (8 * (uint32_t)width / 3 + 63) / 64 * 64;
	return true;
}

int main(int argc, char **argv)
{
	struct error err = {0};
	struct record_rows *answers[MAX_BATCH] = {NULL};
	struct student *s = NULL;
	struct objective *objective = NULL;
	if (!set_shape(argc > 8 ? atoi(argv[8]) : 8, argc > 9 ? atoi(argv[9]) : 384, argc > 7 ? atoi(argv[7]) : 512)) {
		fprintf(stderr, "bench_train: no such shape: %d to %d tokens, whole heads of 64\n", TOKENS / MAX_BATCH, MAX_LENGTH);
		return EXIT_FAILURE;
	}
	int r = objective_make(argc > 5 ? argv[5] : "both", &objective, &err);
	struct student_options o = {.device = argc > 1 ? argv[1] : "cpu", .n_threads = argc > 2 ? (uint32_t)atoi(argv[2]) : 0,
				    .numeric = numeric_of(argc > 6 ? argv[6] : "auto"), .sequence_length = length, .micro_batch = batch,
				    .top_k = TOP_K, .n_arrays = 2, .seed = 1, .recompute = argc > 4 ? (uint32_t)atoi(argv[4]) : 0,
				    .objective = objective};
	for (uint32_t i = 0; r == 0 && i < batch; i++)
		r = answer_make(i, &answers[i], &err);
	r = r ? r : student_open(&o, &architecture, NULL, &s, &err);
	r = r ? r : bench(s, answers, argc > 3 ? atoi(argv[3]) : 5, &err);
	if (r)
		fprintf(stderr, "bench_train: %s\n", err.message);
	student_close(s);
	objective_free(objective);
	for (uint32_t i = 0; i < batch; i++)
		record_rows_free(answers[i]);
	return r ? EXIT_FAILURE : EXIT_SUCCESS;
}
