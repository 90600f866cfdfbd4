// SPDX-License-Identifier: Apache-2.0
#include "clients/question.h"

#include <inttypes.h>
#include <stdlib.h>

#include "common/error.h"

struct questions *questions_new(uint32_t n, struct error *err)
{
	struct questions *q = calloc(1, sizeof *q + n * sizeof *q->items);
	if (!q) {
		error_set(err, ERROR_MEMORY, NULL, "no memory for %" PRIu32 " sequences", n);
		return NULL;
	}
	atomic_init(&q->n_references, 1);
	q->n = n;
	return q;
}

struct questions *questions_ref(struct questions *q)
{
	atomic_fetch_add_explicit(&q->n_references, 1, memory_order_relaxed);
	return q;
}

struct questions *questions_unref(struct questions *q)
{
	if (!q || atomic_fetch_sub_explicit(&q->n_references, 1, memory_order_acq_rel) != 1)
		return NULL;
	for (uint32_t i = 0; i < q->n; i++) {
		sequence_done(&q->items[i].sequence);
		query_done(&q->items[i].query);
	}
	free(q);
	return NULL;
}
