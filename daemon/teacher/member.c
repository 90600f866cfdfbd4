// SPDX-License-Identifier: Apache-2.0
#include "daemon/teacher/member.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "common/error.h"
#include "common/provenance.h"
#include "daemon/clock.h"
#include "daemon/model/cache.h"
#include "daemon/model/forward.h"
#include "daemon/model/head.h"
#include "daemon/model/model.h"
#include "daemon/teacher/answer.h"
#include "daemon/teacher/batch.h"
#include "daemon/teacher/generator.h"
#include "daemon/teacher/rehearsal.h"
#include "kernels/backend.h"
#include "kernels/backend_list.h"

static uint32_t smaller(uint32_t a, uint32_t b)
{
	return a < b ? a : b;
}

static uint32_t larger(uint32_t a, uint32_t b)
{
	return a > b ? a : b;
}

int member_open(struct member *m, const struct teacher_source *source, const struct teacher_options *options, struct teacher_info *info,
		struct tokenizer **ret_tokenizer, struct error *err)
{
	double began = clock_seconds();
	m->info = info;
	m->schedule = (struct schedule){.batch_tokens = options->batch_tokens, .generate_batch = options->generate_batch};
	batch_backlog_init(&m->schedule.scores);
	snprintf(info->name, sizeof info->name, "%s", source->name);
	int r = model_file_open(source->path, &m->file, err);
	if (!r)
		r = model_file_tokenizer(m->file, ret_tokenizer, err);
	if (r)
		return r;
	info->architecture = *model_file_architecture(m->file);
	info->max_tokens = smaller(options->max_tokens, info->architecture.context_length);
	info->max_top_k = smaller(options->max_top_k, info->architecture.vocab_size);
	info->tokenizer_id = tokenizer_id(*ret_tokenizer);
	info->n_parameters = architecture_n_parameters(&info->architecture);
	snprintf(info->dtype, sizeof info->dtype, "%s", model_file_dtype(m->file));
	info->load_seconds = clock_seconds() - began;
	return 0;
}

uint32_t member_capacity(const struct member *m, const struct teacher_options *options)
{
	uint32_t capacity = larger(options->batch_tokens, m->info->max_tokens);
	return larger(capacity, options->cache_tokens ? options->max_generating + SCHEDULE_MIN_PROMPT : 0);
}

// A layout lists the slots of every position its sequences read: those of samples stepped and of prompts read, and of scores that share
// prefixes (see batch.h).
static uint64_t longest_slots(const struct member *m, uint32_t capacity, const struct teacher_options *options)
{
	return 2 * (uint64_t)options->max_generating * m->info->max_tokens + batch_max_listed(capacity, m->info->max_tokens);
}

int member_need(const struct member *m, bool owner, uint32_t capacity, const struct teacher_options *options, struct backend_need *need,
		struct error *err)
{
	const struct architecture *a = &m->info->architecture;
	int r = weights_need(a, m->info->max_tokens, 0, need, err);
	need->parts[BACKEND_PART_WEIGHTS].stored_bytes += model_file_stored_bytes(m->file);
	if (!r)
		r = activations_need(a, capacity, false, 0, need, err);
	if (!r)
		r = head_need(a, ANSWER_CHUNK_ROWS, false, !owner, need, err);
	if (r || !options->cache_tokens || a->masked)
		return r;
	uint64_t slots = longest_slots(m, capacity, options);
	need->n_slots = need->n_slots > slots ? need->n_slots : slots;
	return cache_need(a, options->cache_tokens, need, err);
}

uint64_t member_loading_bytes(const struct member *m)
{
	return model_file_loading_bytes(m->file);
}

static void describe(struct member *m, const struct backend *be)
{
	struct teacher_info *info = m->info;
	snprintf(info->numeric, sizeof info->numeric, "%s", be->numeric);
	snprintf(info->device, sizeof info->device, "%s", be->ops->name);
	snprintf(info->description, sizeof info->description, "%s", be->description);
	snprintf(info->fallback, sizeof info->fallback, "%s", be->fallback ? be->fallback : "");
	info->second_choice = be->fallback && backend_has_gpu();
	struct provenance p = teacher_provenance(info);
	info->fingerprint = provenance_fingerprint(&p);
}

// The cache is for generation, and for scores that begin alike: nothing for a masked model, whose rows see what follows.
static int open_generator(struct member *m, struct backend *be, const struct tokenizer *tokenizer, const struct teacher_options *options,
			  struct error *err)
{
	const struct teacher_info *info = m->info;
	if (!options->cache_tokens || info->architecture.masked)
		return 0;
	int r = cache_open(m->weights, options->cache_tokens, &m->schedule.cache, err);
	if (r)
		return r;
	activations_cache(m->activations, m->schedule.cache);
	struct generator_options g = {.backend = be, .head = m->head, .cache = m->schedule.cache, .tokenizer = tokenizer,
		.vocab_size = info->architecture.vocab_size, .max_active = options->max_generating, .max_top_k = info->max_top_k,
		.eos_ids = {info->architecture.eos_id, tokenizer_eos(tokenizer)}, .counters = &m->generated};
	return generator_open(&g, &m->schedule.generator, err);
}

int member_load(struct member *m, struct backend *be, struct head *owner, const struct tokenizer *tokenizer, uint32_t capacity,
		const struct teacher_options *options, struct error *err)
{
	double began = clock_seconds();
	struct tensor_source source = model_file_source(m->file);
	uint64_t apart = be->apart_bytes, stored = be->stored_bytes;
	// Before there are arrays: it reads whole tensors.
	int r = model_file_weights_id(m->file, &m->info->weights_id, err);
	double identified = clock_seconds();
	if (!r)
		r = weights_load(be, &m->info->architecture, &source, m->info->max_tokens, &m->weights, err);
	m->info->upload_seconds = clock_seconds() - identified;
	m->info->streamed_bytes = be->apart_bytes - apart;
	m->info->stored_bytes = be->stored_bytes - stored;
	m->info->upload_bytes = r ? 0 : m->weights->file_bytes;
	if (!r)
		r = activations_new(m->weights, capacity, false, 0, &m->activations, err);
	if (!r)
		r = owner ? head_open_beside(m->weights, owner, &m->head, err) : head_open(m->weights, ANSWER_CHUNK_ROWS, &m->head, err);
	if (!r)
		r = open_generator(m, be, tokenizer, options, err);
	if (!r)
		r = rehearsal_run(m, be, err);
	if (!r)
		r = backend_sync(be, err);
	if (!r)
		describe(m, be);
	m->info->load_seconds += clock_seconds() - began;
	return r;
}

void member_unload(struct member *m)
{
	generator_close(m->schedule.generator);
	cache_close(m->schedule.cache);
	head_close(m->head);
	activations_free(m->activations);
	weights_free(m->weights);
	m->schedule = (struct schedule){0};
	m->head = NULL;
	m->activations = NULL;
	m->weights = NULL;
}

void member_close(struct member *m)
{
	model_file_close(m->file);
	m->file = NULL;
}

int member_read_rows(const struct member *m, enum teacher_tensor tensor, const uint32_t *ids, uint32_t n, float *ret_values,
		     struct error *err)
{
	static const enum parameter_role roles[] = {PARAMETER_EMBEDDING, PARAMETER_HEAD, PARAMETER_FINAL_NORM};
	char name[96];
	if (tensor == TEACHER_HEAD && m->info->architecture.tied_head)
		tensor = TEACHER_EMBEDDING;
	parameters_name(&m->info->architecture, roles[tensor], name);
	int r = model_file_read_rows(m->file, name, ids, n, ret_values, err);
	return r == -ENOENT ? error_set(err, ERROR_INTERNAL, "tensor", "the model file has no %s", name) : r;
}
