// SPDX-License-Identifier: Apache-2.0
// The peer of bench_score: all-position scoring through llama.cpp's public API (no top-k included). Built by peer_llamacpp.sh, not by make.
// usage: peer_llamacpp MODEL THREADS LENGTH SEQUENCES PASSES      prints "median X best Y" in tokens/s
#include <llama.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int compare(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;
	return (x > y) - (x < y);
}

static void quiet(enum ggml_log_level level, const char *text, void *arg)
{
	(void)level, (void)text, (void)arg;
}

static struct llama_batch batch_of(int length, int sequences, int vocabulary)
{
	struct llama_batch b = llama_batch_init(length * sequences, 0, 1);
	b.n_tokens = length * sequences;
	for (int i = 0; i < b.n_tokens; i++) {
		b.token[i] = 300 + i * 7919 % (vocabulary - 300);
		b.pos[i] = i % length;
		b.n_seq_id[i] = 1;
		b.seq_id[i][0] = i / length;
		b.logits[i] = 1;
	}
	return b;
}

int main(int argc, char **argv)
{
	if (argc != 6)
		return fprintf(stderr, "usage: peer_llamacpp MODEL THREADS LENGTH SEQUENCES PASSES\n"), 2;
	int threads = atoi(argv[2]), length = atoi(argv[3]), sequences = atoi(argv[4]), passes = atoi(argv[5]);
	llama_log_set(quiet, NULL);
	llama_backend_init();
	struct llama_model *model = llama_model_load_from_file(argv[1], llama_model_default_params());
	struct llama_context_params p = llama_context_default_params();
	p.n_ctx = p.n_batch = (uint32_t)(length * sequences);
	p.n_ubatch = 512;
	p.n_seq_max = (uint32_t)sequences;
	p.n_threads = p.n_threads_batch = threads;
	p.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
	struct llama_context *context = model ? llama_init_from_model(model, p) : NULL;
	if (!context)
		return fprintf(stderr, "peer_llamacpp: %s does not load\n", argv[1]), 1;
	struct llama_batch b = batch_of(length, sequences, llama_vocab_n_tokens(llama_model_get_vocab(model)));
	double *seconds = calloc((size_t)passes, sizeof *seconds);
	for (int i = -1; i < passes; i++) {
		llama_memory_clear(llama_get_memory(context), true);
		double start = now();
		if (llama_decode(context, b))
			return fprintf(stderr, "peer_llamacpp: decode failed\n"), 1;
		llama_synchronize(context);
		volatile float sink = llama_get_logits(context)[0];
		(void)sink;
		if (i >= 0)
			seconds[i] = now() - start;
	}
	qsort(seconds, (size_t)passes, sizeof *seconds, compare);
	printf("median %.1f best %.1f\n", b.n_tokens / seconds[passes / 2], b.n_tokens / seconds[0]);
	fflush(stdout);
	_Exit(0);
}
