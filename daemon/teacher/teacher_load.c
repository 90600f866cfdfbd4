// SPDX-License-Identifier: Apache-2.0
// From files to resident teachers.
#include "daemon/teacher/teacher_internal.h"

#include <string.h>

#include "daemon/model/tokenizer.h"
#include "daemon/model/weights.h"
#include "daemon/teacher/answer.h"
#include "daemon/teacher/batch.h"
#include "kernels/backend.h"

static uint32_t larger(uint32_t a, uint32_t b)
{
	return a > b ? a : b;
}

static int open_backend(struct teacher *t, uint32_t max_rows, struct error *err)
{
	const char *numeric = t->options.numeric;
	struct backend_options options = {.n_threads = t->options.n_threads, .max_rows = max_rows, .memory_bytes = t->options.gpu_memory_bytes,
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
	return backend_open(t->device, &options, &t->backend, err);
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
		return error_set(err, ERROR_INVALID, "teacher", "teachers \"%.60s\" and \"%.60s\" have different tokenizers", a->name, b->name);
	if (a->architecture.vocab_size != b->architecture.vocab_size)
		return error_set(err, ERROR_INVALID, "teacher", "teachers \"%.60s\" and \"%.60s\" have vocabularies of %u and %u ids", a->name,
				 b->name, a->architecture.vocab_size, b->architecture.vocab_size);
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
		r = batch_new(capacity, &t->batch, err);
	for (uint32_t i = 0; i < t->n_members && !r; i++) {
		t->members[i].schedule.batch = t->batch;
		r = member_load(&t->members[i], t->backend, i ? t->members[0].head : NULL, t->tokenizer, capacity, &t->options, err);
		if (!r)
			t->members[i].weights->beats = &t->beats;
	}
	t->mixtures.batch = t->batch;
	return r ? r : open_answer(t, capacity, err);
}

void teacher_unload(struct teacher *t)
{
	batch_free(t->batch);
	answer_close(t->answer);
	for (uint32_t i = t->n_members; i-- > 0;)
		member_unload(&t->members[i]);
	backend_close(t->backend);
	t->batch = NULL;
	t->answer = NULL;
	t->backend = NULL;
}
