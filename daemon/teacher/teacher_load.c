// SPDX-License-Identifier: Apache-2.0
// From files to resident teachers.
#include "daemon/teacher/teacher_internal.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "daemon/model/tokenizer.h"
#include "daemon/model/weights.h"
#include "daemon/teacher/answer.h"
#include "daemon/teacher/batch.h"
#include "daemon/teacher/shelf.h"
#include "kernels/backend.h"

static uint32_t larger(uint32_t a, uint32_t b)
{
	return a > b ? a : b;
}

// Of the machine's memory, in bytes; 0 = no limit.
static uint64_t memory_cap(const struct teacher_options *o)
{
	double all = (double)sysconf(_SC_PHYS_PAGES) * (double)sysconf(_SC_PAGESIZE);
	return o->memory_bytes ? o->memory_bytes : (uint64_t)(o->memory_share * all);
}

// What the process has taken so far: tokenizers, metadata of files, code.
static uint64_t resident_bytes(void)
{
	unsigned long long all, resident = 0;
	FILE *f = fopen("/proc/self/statm", "re");
	if (f) {
		if (fscanf(f, "%llu %llu", &all, &resident) != 2)        // NOLINT(cert-err34-c): the kernel writes it
			resident = 0;
		fclose(f);
	}
	return resident * (uint64_t)sysconf(_SC_PAGESIZE);
}

// A sixteenth for the buffers: what else there is room for saves reading.
#define SHELF_SHARE 16

static int bound_memory(struct teacher *t, struct backend_options *options, struct error *err)
{
	uint64_t cap = memory_cap(&t->options);
	if (!cap)
		return 0;
	options->host_bytes = cap;
	options->program_bytes = resident_bytes();
	for (uint32_t i = 0; i < t->n_members; i++) {
		uint64_t bytes = member_loading_bytes(&t->members[i]);
		options->loading_bytes = bytes > options->loading_bytes ? bytes : options->loading_bytes;
	}
	size_t least = backend_piece_bytes(options->need.widest);
	int r = shelf_open(t->options.stream_directory, cap / SHELF_SHARE, least, &t->shelf, err);
	if (r == 0)
		options->shelf = shelf_door(t->shelf);
	return r;
}

// Of weights that memory has no room for.
static void describe_room(struct teacher *t)
{
	struct shelf_stats s;
	for (uint32_t i = 0; i < t->n_members; i++) {
		struct teacher_info *info = &t->infos[i];
		if (info->stored_bytes)
			snprintf(info->room_note, sizeof info->room_note, "%.2f GiB of its weights stay as they are stored and are "
				 "unpacked in each pass", (double)info->stored_bytes * 0x1p-30);
		if (!info->streamed_bytes)
			continue;
		shelf_stats(t->shelf, &s);
		snprintf(info->room_note, sizeof info->room_note, "%.2f GiB of its weights are read from %.60s in each pass (%s, %s)%s",
			 (double)info->streamed_bytes * 0x1p-30, t->options.stream_directory, s.uring ? "io_uring" : "pread",
			 s.direct ? "O_DIRECT" : "through the page cache", s.in_memory ? ": which lies in memory itself" : "");
	}
}

static int open_backend(struct teacher *t, uint32_t max_rows, struct error *err)
{
	const char *numeric = t->options.numeric;
	struct backend_options options = {
		.n_threads = t->options.n_threads, .max_rows = max_rows, .memory_bytes = t->options.gpu_memory_bytes,
		.memory_share = t->options.gpu_memory_share};
	for (uint32_t i = 0; i < t->n_members; i++) {
		int r = member_need(&t->members[i], i == 0, max_rows, &t->options, &options.need, err);
		if (r)
			return r;
	}
	if (strcmp(numeric, "f32") == 0)
		options.numeric = BACKEND_NUMERIC_F32;
	if (strcmp(numeric, "bf16") == 0)
		options.numeric = BACKEND_NUMERIC_BF16;
	if (strcmp(numeric, "int8") == 0)
		options.numeric = BACKEND_NUMERIC_INT8;
	if (strcmp(numeric, "fp8") == 0)
		options.numeric = BACKEND_NUMERIC_FP8;
	int r = bound_memory(t, &options, err);
	return r ? r : backend_open(t->device, &options, &t->backend, err);
}

static int open_answer(struct teacher *t, uint32_t capacity, struct error *err)
{
	struct answer_limits limits = {.vocab_size = t->infos[0].architecture.vocab_size, .max_items = capacity,
				       .max_top_k = t->infos[0].max_top_k, .max_gather = t->options.max_gather,
				       .max_draws = t->options.max_draws};
	for (uint32_t i = 0; i < t->n_members; i++) {
		const struct architecture *a = &t->infos[i].architecture;
		limits.widest = larger(limits.widest, larger(a->width, (a->n_heads + 2 * a->n_kv_heads) * a->head_size));
		limits.max_tokens = larger(limits.max_tokens, t->infos[i].max_tokens);
	}
	return answer_open(t->backend, &limits, &t->answer, err);
}

// Token ids must mean the same to all: a mixture adds up their rows, and the doors have one tokenizer.
static int check_tokenizer(const struct teacher *t, uint32_t i, struct error *err)
{
	const struct teacher_info *a = &t->infos[0], *b = &t->infos[i];
	if (memcmp(&a->tokenizer_id, &b->tokenizer_id, sizeof a->tokenizer_id) != 0)
		return error_set(err, ERROR_INVALID, "teacher", "teachers \"%.60s\" and \"%.60s\" have different tokenizers",
			a->name, b->name);
	if (a->architecture.vocab_size != b->architecture.vocab_size)
		return error_set(err, ERROR_INVALID, "teacher", "teachers \"%.60s\" and \"%.60s\" have vocabularies of %u and %u ids",
				 a->name, b->name, a->architecture.vocab_size, b->architecture.vocab_size);
	return 0;
}

// Files first: they say how long a pass may become, which the backend must know.
static int open_members(struct teacher *t, uint32_t *ret_capacity, struct error *err)
{
	uint32_t capacity = 0;
	for (uint32_t i = 0; i < t->n_members; i++) {
		struct tokenizer *tokenizer = NULL;
		int r = member_open(&t->members[i], &t->sources[i], &t->options, &t->infos[i], &tokenizer, err);
		if (r)
			return r;
		if (t->tokenizer)
			tokenizer_close(tokenizer);
		else
			t->tokenizer = tokenizer;
		if ((r = check_tokenizer(t, i, err)))
			return r;
		capacity = larger(capacity, member_capacity(&t->members[i], &t->options));
	}
	*ret_capacity = capacity;
	return 0;
}

// Every buffer the engine will ever use is made here.
int teacher_load(struct teacher *t, struct error *err)
{
	uint32_t capacity = 0;
	int r = open_members(t, &capacity, err);
	if (!r)
		r = open_backend(t, capacity, err);
	if (!r)
		r = batch_new(capacity, &t->passes[0].batch, err);
	if (!r && t->backend->ops->asynchronous)
		r = batch_new(capacity, &t->passes[1].batch, err);
	for (uint32_t i = 0; i < t->n_members && !r; i++) {
		r = member_load(&t->members[i], t->backend, i ? t->members[0].head : NULL, t->tokenizer, capacity, &t->options, err);
		if (!r)
			t->members[i].weights->beats = &t->beats;
	}
	describe_room(t);
	return r ? r : open_answer(t, capacity, err);
}

void teacher_unload(struct teacher *t)
{
	for (int i = 0; i < 2; i++)
		t->passes[i].batch = batch_free(t->passes[i].batch);
	answer_close(t->answer);
	for (uint32_t i = t->n_members; i-- > 0;)
		member_unload(&t->members[i]);
	backend_close(t->backend);
	t->shelf = shelf_close(t->shelf);
	t->answer = NULL;
	t->backend = NULL;
}
