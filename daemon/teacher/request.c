// SPDX-License-Identifier: Apache-2.0
#include "daemon/teacher/request.h"

#include <stdlib.h>

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
		record_unref(r->items[i].record);
	}
	free(r->items);
	free(r);
	return NULL;
}
