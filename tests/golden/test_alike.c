// SPDX-License-Identifier: Apache-2.0
// Scores of one pass that begin alike: the beginning is computed once, and each gets the bytes that it gets alone.
#include <stdio.h>
#include <string.h>

#include "daemon/teacher/teacher.h"
#include "tests/golden/engine.h"

static void open_linear(struct engine *e, const struct engine_sizes *sizes)
{
	char path[4096];
	golden_path(path, sizeof path, "models/linear");
	engine_open_sizes(e, path, "cpu", "f32", sizes);
}

static void scores_that_begin_alike_compute_it_once(void **state)
{
	enum { N = 6 };
	struct engine plain, sharing;
	uint32_t tokens[N][90];
	struct sequence s[N];
	struct record_rows *alone[N], *together[N];
	struct query q;
	(void)state;
	open_linear(&plain, &(struct engine_sizes){2, 512, 0, 0, 0});
	open_linear(&sharing, &(struct engine_sizes){2, 512, 64, 1024, 4});
	static const uint32_t lengths[N] = {80, 90, 33, 90, 50, 31}, common[N] = {0, 60, 33, 90, 40, 31};        // with the one before
	for (uint32_t i = 0; i < N; i++) {
		for (uint32_t j = 0; j < lengths[i]; j++)
			tokens[i][j] = i && j < common[i] ? tokens[i == 4 ? 0 : i - 1 - (i == 3)][j] : (i * 31 + j * 7) % 90;
		s[i] = (struct sequence){tokens[i], lengths[i]};
	}
	query_init(&q);
	q.top_k = 6;
	q.own = q.entropy = true;
	q.n_features = 2;
	q.features[0] = (struct query_feature){QUERY_FEATURE_HIDDEN, 1};
	q.features[1] = (struct query_feature){QUERY_FEATURE_K, 1};
	for (uint32_t i = 0; i < N; i++)
		engine_ask(&plain, &q, &s[i], 1, &alone[i]);
	engine_ask(&sharing, &q, s, N, together);
	struct teacher_stats t;
	teacher_stats(sharing.teacher, &t);
	assert_int_equal(t.n_passes, 1);
	assert_int_equal(t.n_shared, 60 + 33 + 90 + 40);                  // 31 are too few to look for
	assert_int_equal(t.n_positions + t.n_shared, 80 + 90 + 33 + 90 + 50 + 31);
	assert_int_equal(t.n_slots_used, 0);
	for (uint32_t i = 0; i < N; i++) {
		size_t n = alone[i]->n_rows;
		assert_int_equal(together[i]->n_rows, n);
		assert_memory_equal(together[i]->lse, alone[i]->lse, n * sizeof(float));
		assert_memory_equal(together[i]->ids, alone[i]->ids, n * 6 * sizeof(uint32_t));
		assert_memory_equal(together[i]->logits, alone[i]->logits, n * 6 * sizeof(float));
		assert_memory_equal(together[i]->own_logit, alone[i]->own_logit, n * sizeof(float));
		assert_memory_equal(together[i]->entropy, alone[i]->entropy, n * sizeof(float));
		for (uint32_t f = 0; f < 2; f++)
			assert_memory_equal(together[i]->features[f], alone[i]->features[f],
				n * alone[i]->feature_widths[f] * sizeof(float));
		record_rows_free(alone[i]);
		record_rows_free(together[i]);
	}
	engine_close(&plain);
	engine_close(&sharing);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(scores_that_begin_alike_compute_it_once),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
