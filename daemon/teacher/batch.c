// SPDX-License-Identifier: Apache-2.0
#include "daemon/teacher/batch.h"

#include <stdlib.h>
#include <string.h>

#include "common/error.h"

int batch_new(uint32_t capacity, struct batch **ret_batch, struct error *err)
{
	struct batch *b = calloc(1, sizeof *b);
	if (b) {
		b->capacity = capacity;
		b->items = calloc(capacity, sizeof *b->items);
		b->tokens = calloc(capacity, sizeof *b->tokens);
		b->positions = calloc(capacity, sizeof *b->positions);
		b->starts = calloc((size_t)capacity + 1, sizeof *b->starts);
		b->rows = calloc(capacity, sizeof *b->rows);
	}
	if (!b || !b->items || !b->tokens || !b->positions || !b->starts || !b->rows) {
		batch_free(b);
		return error_set(err, ERROR_MEMORY, NULL, "no memory for a batch of %u positions", capacity);
	}
	*ret_batch = b;
	return 0;
}

struct batch *batch_free(struct batch *b)
{
	if (!b)
		return NULL;
	free(b->items);
	free(b->tokens);
	free(b->positions);
	free(b->starts);
	free(b->rows);
	free(b);
	return NULL;
}

void batch_backlog_init(struct batch_backlog *backlog)
{
	backlog->first = NULL;
	backlog->end = &backlog->first;
}

void batch_backlog_append(struct batch_backlog *backlog, struct queue_item *item)
{
	item->next = NULL;
	*backlog->end = item;
	backlog->end = &item->next;
}

// Takes *place out of the list.
static struct queue_item *backlog_unlink(struct batch_backlog *backlog, struct queue_item **place)
{
	struct queue_item *item = *place;
	*place = item->next;
	if (backlog->end == &item->next)
		backlog->end = place;
	item->next = NULL;
	return item;
}

struct queue_item *batch_backlog_pop(struct batch_backlog *backlog)
{
	return backlog->first ? backlog_unlink(backlog, &backlog->first) : NULL;
}

static void batch_append(struct batch *b, struct request_item *item)
{
	const struct sequence *s = &item->sequence;
	memcpy(b->tokens + b->n_positions, s->tokens, s->n_tokens * sizeof *s->tokens);
	for (uint32_t i = 0; i < s->n_tokens; i++) {
		b->positions[b->n_positions + i] = i;
		b->rows[b->n_positions + i] = b->n_positions + i;
	}
	b->items[b->n_items] = item;
	b->n_positions += s->n_tokens;
	b->starts[++b->n_items] = b->n_positions;
}

void batch_fill(struct batch *b, struct batch_backlog *backlog, uint32_t budget)
{
	uint32_t limit = budget < b->capacity ? budget : b->capacity, passed = 0;
	b->n_positions = b->n_items = 0;
	struct queue_item **place = &backlog->first;
	while (*place && b->n_positions < limit && passed < BATCH_LOOKAHEAD) {
		struct request_item *item = (struct request_item *)*place;
		if (b->n_items == 0 || item->sequence.n_tokens <= limit - b->n_positions) {
			batch_append(b, (struct request_item *)backlog_unlink(backlog, place));
		} else {
			place = &(*place)->next;
			passed++;
		}
	}
}

struct layout batch_layout(const struct batch *b)
{
	return (struct layout){.n_positions = b->n_positions, .n_sequences = b->n_items, .tokens = b->tokens, .positions = b->positions,
		.starts = b->starts};
}

bool batch_is_mixed(const struct batch *b)
{
	for (uint32_t i = 1; i < b->n_items; i++)
		if (b->items[i]->request != b->items[0]->request)
			return true;
	return false;
}
