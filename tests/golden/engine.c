// SPDX-License-Identifier: Apache-2.0
#include "tests/golden/engine.h"

#include <semaphore.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "common/error.h"
#include "daemon/teacher/request.h"
#include "daemon/teacher/teacher.h"

#define MAX_GATHER 4096
#define MAX_DRAWS 65536
#define MAX_SPANS 64

void engine_open(struct engine *e, const char *path, const char *device, const char *numeric)
{
	struct error err = {0};
	uint64_t ignored;
	int fd = eventfd(0, 0);
	assert_true(fd >= 0);
	struct teacher_options options = {.path = path, .device = device, .numeric = numeric, .n_threads = 2, .max_tokens = 256,
					  .batch_tokens = 256, .max_top_k = 65536, .max_gather = MAX_GATHER, .max_draws = MAX_DRAWS,
					  .event_fd = fd};
	if (teacher_open(&options, &e->teacher, &err) < 0)
		fail_msg("%s", err.message);
	while (teacher_state(e->teacher) == TEACHER_LOADING)
		assert_int_equal(read(fd, &ignored, sizeof ignored), sizeof ignored);
	if (teacher_state(e->teacher) == TEACHER_FAILED) {
		teacher_error(e->teacher, &err);
		fail_msg("%s: %s", path, err.message);
	}
	close(fd);
	const struct teacher_info *info = teacher_info(e->teacher);
	const struct architecture *a = &info->architecture;
	e->limits = (struct query_limits){
		.max_tokens = info->max_tokens, .max_top_k = info->max_top_k, .max_gather = MAX_GATHER, .max_draws = MAX_DRAWS,
		.max_spans = MAX_SPANS, .vocab_size = a->vocab_size, .n_layers = a->n_layers, .width = a->width,
		.q_width = a->n_heads * a->head_size, .kv_width = a->n_kv_heads * a->head_size};
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

static struct request *request_of(struct engine *e, const struct query *query, const struct sequence *sequences, uint32_t n, sem_t *done)
{
	struct error err = {0};
	struct request *r;
	assert_int_equal(request_new(n, &r, &err), 0);
	r->computed = computed;
	r->owner = done;
	for (uint32_t i = 0; i < n; i++) {
		struct request_item *item = &r->items[i];
		assert_int_equal(sequence_init(&item->sequence, sequences[i].tokens, sequences[i].n_tokens), 0);
		assert_int_equal(query_copy(&item->query, query), 0);
		if (query_check(&item->query, &item->sequence, &e->limits, "", &err))
			fail_msg("%s: %s", err.field, err.message);
		item->link.next = i + 1 < n ? &r->items[i + 1].link : NULL;
	}
	return r;
}

void engine_ask(struct engine *e, const struct query *query, const struct sequence *sequences, uint32_t n, struct record_rows **ret_rows)
{
	struct error err = {0};
	sem_t done;
	assert_int_equal(sem_init(&done, 0, 0), 0);
	struct request *r = request_of(e, query, sequences, n, &done);
	teacher_submit(e->teacher, &r->items[0]);
	for (uint32_t i = 0; i < n; i++)
		while (sem_wait(&done))
			;
	for (uint32_t i = 0; i < n; i++) {
		if (r->items[i].error.code)
			fail_msg("sequence %u: %s", i, r->items[i].error.message);
		if (record_decode(r->items[i].record, &ret_rows[i], &err))
			fail_msg("sequence %u: %s", i, err.message);
	}
	request_free(r);
	sem_destroy(&done);
}

struct record_rows *engine_ask_one(struct engine *e, const struct query *query, const uint32_t *tokens, uint32_t n_tokens)
{
	struct sequence s = {(uint32_t *)tokens, n_tokens};
	struct record_rows *rows = NULL;
	engine_ask(e, query, &s, 1, &rows);
	return rows;
}
