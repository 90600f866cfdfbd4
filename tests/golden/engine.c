// SPDX-License-Identifier: Apache-2.0
#include "tests/golden/engine.h"

#include <semaphore.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "common/error.h"

#define MAX_GATHER 4096
#define MAX_DRAWS 65536
#define MAX_SPANS 64

void engine_open(struct engine *e, const char *path, const char *device, const char *numeric)
{
	static const struct engine_sizes sizes = {.n_threads = 2, .batch_tokens = 256};
	engine_open_sizes(e, path, device, numeric, &sizes);
}

void engine_open_sizes(struct engine *e, const char *path, const char *device, const char *numeric, const struct engine_sizes *sizes)
{
	struct error err = {0};
	struct teacher_source source = {.name = "teacher", .path = path};
	if (engine_open_sources(e, &source, 1, device, numeric, sizes, &err))
		fail_msg("%s: %s", path, err.message);
}

int engine_open_sources(struct engine *e, const struct teacher_source *sources, uint32_t n, const char *device, const char *numeric,
			const struct engine_sizes *sizes, struct error *err)
{
	uint64_t ignored;
	int fd = eventfd(0, 0);
	assert_true(fd >= 0);
	struct teacher_options options = {
		.sources = sources, .n_sources = n, .device = device, .numeric = numeric,
		.n_threads = sizes->n_threads, .max_tokens = 256, .batch_tokens = sizes->batch_tokens,
		.max_top_k = 65536, .max_gather = MAX_GATHER, .max_draws = MAX_DRAWS,
		.cache_tokens = sizes->cache_tokens, .max_generating = sizes->max_generating,
		.generate_batch = sizes->generate_batch, .event_fd = fd};
	*e = (struct engine){0};
	if (teacher_open(&options, &e->teacher, err) < 0)
		fail_msg("%s", err->message);
	while (teacher_state(e->teacher) == TEACHER_LOADING)
		assert_int_equal(read(fd, &ignored, sizeof ignored), sizeof ignored);
	close(fd);
	if (teacher_state(e->teacher) == TEACHER_FAILED) {
		teacher_error(e->teacher, err);
		engine_close(e);
		return error_errno(err->code);
	}
	const struct teacher_info *info = teacher_info(e->teacher);
	const struct architecture *a = &info->architecture;
	e->limits = (struct query_limits){
		.max_tokens = info->max_tokens, .max_top_k = info->max_top_k, .max_gather = MAX_GATHER, .max_draws = MAX_DRAWS,
		.max_spans = MAX_SPANS, .vocab_size = a->vocab_size, .n_layers = a->n_layers, .width = a->width,
		.q_width = a->n_heads * a->head_size, .kv_width = a->n_kv_heads * a->head_size};
	return 0;
}

void engine_close(struct engine *e)
{
	teacher_close(e->teacher);
	e->teacher = NULL;
}

static void computed(struct request_item *item)
{
	sem_post(item->request->owner);
}

static struct request *request_open(uint32_t n_items)
{
	struct request *r;
	sem_t *done = golden_array(1, sizeof *done);
	assert_int_equal(request_new(n_items, &r, NULL), 0);
	assert_int_equal(sem_init(done, 0, 0), 0);
	r->computed = r->complete = computed;
	r->owner = done;
	return r;
}

void engine_submit(struct engine *e, struct request *r)
{
	struct error err = {0};
	uint32_t n;
	const struct teacher_info *infos = teacher_infos(e->teacher, &n);
	if (choice_resolve(&e->asked, infos, n, &r->choice, &err))
		fail_msg("%s: %s", err.field, err.message);
	for (uint32_t i = 0; i < r->n_items; i++)
		r->items[i].link.next = i + 1 < r->n_items ? &r->items[i + 1].link : NULL;
	teacher_submit(e->teacher, &r->items[0]);
}

struct request *engine_request_score(struct engine *e, const struct query *query, const struct sequence *sequences, uint32_t n)
{
	struct error err = {0};
	struct request *r = request_open(n);
	for (uint32_t i = 0; i < n; i++) {
		struct request_item *item = &r->items[i];
		assert_int_equal(sequence_init(&item->sequence, sequences[i].tokens, sequences[i].n_tokens), 0);
		assert_int_equal(query_copy(&item->query, query), 0);
		if (query_check(&item->query, &item->sequence, &e->limits, "", &err))
			fail_msg("%s: %s", err.field, err.message);
	}
	return r;
}

struct request *engine_request_generate(struct engine *e, const struct generation_query *q, const struct sequence *prompts, uint32_t n)
{
	struct error err = {0};
	struct request *r = request_open(n * q->n);
	const struct generation_limits limits = {e->limits.max_tokens, 64, e->limits.max_top_k, e->limits.vocab_size};
	r->generate = golden_array(1, sizeof *r->generate);
	*r->generate = *q;
	for (uint32_t i = 0; i < n; i++)
		assert_int_equal(sequence_init(&r->items[i * q->n].sequence, prompts[i].tokens, prompts[i].n_tokens), 0);
	if (generation_check(r, &limits, &err) || generation_prepare(r, &err))
		fail_msg("%s: %s", err.field, err.message);
	return r;
}

void engine_wait(struct request *r)
{
	for (uint32_t i = 0; i < r->n_items; i++)
		while (sem_wait(r->owner))
			;
}

void engine_free(struct request *r)
{
	sem_destroy(r->owner);
	free(r->owner);
	free(r->generate);         // its lists are the caller's
	r->generate = NULL;
	request_free(r);
}

struct request *engine_generate(struct engine *e, const struct generation_query *q, const struct sequence *prompts, uint32_t n)
{
	struct request *r = engine_request_generate(e, q, prompts, n);
	engine_submit(e, r);
	engine_wait(r);
	for (uint32_t i = 0; i < r->n_items; i++)
		if (r->items[i].error.code)
			fail_msg("sample %u: %s", i, r->items[i].error.message);
	return r;
}

void engine_ask(struct engine *e, const struct query *query, const struct sequence *sequences, uint32_t n, struct record_rows **ret_rows)
{
	struct error err = {0};
	struct request *r = engine_request_score(e, query, sequences, n);
	engine_submit(e, r);
	engine_wait(r);
	for (uint32_t i = 0; i < n; i++) {
		if (r->items[i].error.code)
			fail_msg("sequence %u: %s", i, r->items[i].error.message);
		if (record_decode(r->items[i].record, &ret_rows[i], &err))
			fail_msg("sequence %u: %s", i, err.message);
	}
	engine_free(r);
}

struct record_rows *engine_ask_one(struct engine *e, const struct query *query, const uint32_t *tokens, uint32_t n_tokens)
{
	struct sequence s = {(uint32_t *)tokens, n_tokens};
	struct record_rows *rows = NULL;
	engine_ask(e, query, &s, 1, &rows);
	return rows;
}
