// SPDX-License-Identifier: Apache-2.0
// What a request gave away of the teacher, for the audit trail: rows, and the numbers in them that tell of single ids or of its inside.
#include "daemon/server/service_internal.h"

#include "daemon/server/auth.h"
#include "daemon/teacher/generation.h"
#include "daemon/teacher/teacher.h"

static uint64_t gathered_of(const struct query *q, uint64_t n_rows)
{
	const struct id_lists *l = &q->gather;
	return !l->n_lists ? 0 : l->n_lists == 1 ? n_rows * l->offsets[1] : l->offsets[l->n_lists];
}

static uint64_t features_of(const struct query *q, uint64_t n_rows, const struct query_limits *sizes)
{
	uint64_t width = 0;
	for (uint32_t i = 0; i < q->n_features; i++)
		width += query_feature_width(&q->features[i], sizes);
	return width * (q->pooling == QUERY_POOLING_NONE ? n_rows : 1);
}

// Draws as many as were drawn, though some may be of one id; own one for each row, the last too, which nothing follows.
static uint64_t values_of(const struct query *q, uint64_t n_rows, const struct query_limits *sizes)
{
	uint64_t dense = !q->dense ? 0 : q->n_keep ? q->n_keep : sizes->vocab_size;
	return n_rows * (q->top_k + dense + q->draws.n + q->own) + q->n_spans + gathered_of(q, n_rows) + features_of(q, n_rows, sizes);
}

void service_count_served(const struct service *s, const struct request *r)
{
	uint32_t n;
	uint64_t rows = 0, values = 0;
	struct query_limits sizes = service_sizes_of(&teacher_infos(s->teacher, &n)[r->choice.members[0]].architecture);
	for (uint32_t i = 0; i < r->n_items; i++) {
		const struct request_item *item = &r->items[i];
		if (item->error.code)
			continue;
		uint64_t n_rows = r->generate ? atomic_load(&item->generation->n_tokens) : query_rows(&item->query);
		rows += n_rows;
		values += r->generate ? n_rows * r->generate->top_k : values_of(&item->query, n_rows, &sizes);
	}
	auth_serve(r->principal, rows, values);
}
