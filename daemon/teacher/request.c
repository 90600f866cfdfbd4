// SPDX-License-Identifier: Apache-2.0
#include "daemon/teacher/request.h"

#include <stdlib.h>

#include "daemon/teacher/generation.h"

enum { TOLD_QUEUED = 1, TOLD_LAST = 2 };

int request_new(uint32_t n_items, struct request **ret_request, struct error *err)
{
	struct request *r = calloc(1, sizeof *r);
	if (r)
		r->items = calloc(n_items ? n_items : 1, sizeof *r->items);
	if (!r || !r->items) {
		free(r);
		return error_set(err, ERROR_MEMORY, NULL, "no memory for a request of %u sequences", n_items);
	}
	query_init(&r->query);
	r->n_items = n_items;
	for (uint32_t i = 0; i < n_items; i++) {
		r->items[i].request = r;
		r->items[i].index = i;
	}
	*ret_request = r;
	return 0;
}

struct request *request_free(struct request *r)
{
	if (!r)
		return NULL;
	for (uint32_t i = 0; i < r->n_items; i++) {
		sequence_done(&r->items[i].sequence);
		query_done(&r->items[i].query);
		query_part_done(&r->items[i].part);
		record_unref(r->items[i].record);
		generation_free(r->items[i].generation);
	}
	if (r->generate)
		generation_query_done(r->generate);
	free(r->generate);
	query_done(&r->query);
	free(r->items);
	free(r);
	return NULL;
}

// One word for both facts: whoever finds QUEUED clear does the queueing, and whoever finds it set may not touch the item after telling
// LAST, as the door may free it at once.
void request_item_tell(struct request_item *item, bool last)
{
	unsigned before = atomic_fetch_or(&item->told, last ? TOLD_QUEUED | TOLD_LAST : TOLD_QUEUED);
	if (!(before & TOLD_QUEUED))
		item->request->complete(item);
}

bool request_item_take(struct request_item *item)
{
	return !item->generation || (atomic_fetch_and(&item->told, ~(unsigned)TOLD_QUEUED) & TOLD_LAST);
}
