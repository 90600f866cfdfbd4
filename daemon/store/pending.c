// SPDX-License-Identifier: Apache-2.0
// Records on their way to the disk. Items stay findable while the writer works on them: they leave the buckets in pending_free.
#include "daemon/store/pending.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

void pending_list_push(struct pending_list *list, struct pending_item *item)
{
	item->next = NULL;
	if (list->last)
		list->last->next = item;
	else
		list->first = item;
	list->last = item;
}

struct pending_item *pending_list_pop(struct pending_list *list)
{
	struct pending_item *item = list->first;
	if (!item)
		return NULL;
	list->first = item->next;
	if (!list->first)
		list->last = NULL;
	item->next = NULL;
	return item;
}

static struct pending_item **bucket(const struct pending *p, const struct content_id *key)
{
	uint32_t h;
	memcpy(&h, key->bytes, sizeof h);
	return (struct pending_item **)&p->buckets[h % PENDING_BUCKETS];
}

struct record *pending_find(const struct pending *p, const struct content_id *key)
{
	for (struct pending_item *item = *bucket(p, key); item; item = item->chain)
		if (memcmp(record_key(item->record), key, sizeof *key) == 0)
			return item->record;
	return NULL;
}

int pending_push(struct pending *p, struct record *record, enum store_durability durability, store_done_fn *done, void *arg)
{
	size_t n;
	record_bytes(record, &n);
	uint64_t n_bytes = n + sizeof(struct pending_item);
	if (p->n_bytes > 0 && (p->n_bytes >= p->max_bytes || n_bytes > p->max_bytes - p->n_bytes))
		return -EAGAIN;
	struct pending_item *item = malloc(sizeof *item);
	if (!item)
		return -ENOMEM;
	*item = (struct pending_item){.record = record_ref(record), .durability = durability, .done = done, .arg = arg, .n_bytes = n_bytes};
	p->n_bytes += n_bytes;
	pending_list_push(&p->queue, item);
	if (!pending_find(p, record_key(record))) {
		struct pending_item **b = bucket(p, record_key(record));
		item->chain = *b;
		item->listed = true;
		*b = item;
	}
	return 0;
}

void pending_pop(struct pending *p, uint64_t max_bytes, struct pending_list *items)
{
	uint64_t n = 0;
	while (p->queue.first && n < max_bytes && (p->queue.first->listed || !items->first)) {
		n += p->queue.first->n_bytes;
		pending_list_push(items, pending_list_pop(&p->queue));
	}
}

struct record *pending_free(struct pending *p, struct pending_item *item)
{
	if (item->listed) {
		struct pending_item **link = bucket(p, record_key(item->record));
		while (*link != item)
			link = &(*link)->chain;
		*link = item->chain;
	}
	p->n_bytes -= item->n_bytes;
	struct record *record = item->record;
	free(item);
	return record;
}
