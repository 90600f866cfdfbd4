// SPDX-License-Identifier: Apache-2.0
// Which tokens are masked, and by what: shares of many draws, what never is, and that nothing but seed and place decides.
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "common/error.h"
#include "daemon/model/tokenizer.h"
#include "daemon/worker/mask.h"
#include "daemon/worker/passage.h"

enum { CLS = 2, SEP = 3, MASK = 4, N = 4000 };

static struct tokenizer *tokenizer_golden(void)
{
	char path[4096];
	const char *top = getenv("top_srcdir");
	struct tokenizer *t = NULL;
	struct error err = {0};
	snprintf(path, sizeof path, "%s/tests/golden/models/bert/tokenizer.json", top ? top : ".");
	if (tokenizer_open_path(path, &t, &err))
		fail_msg("%s: %s", path, err.message);
	return t;
}

static uint32_t token_at(uint32_t i)
{
	return i == 0 ? CLS : i % 50 == 49 ? SEP : 5 + i % 90;
}

static struct passage masked(const struct mask *m, uint64_t place, uint32_t index, uint32_t n)
{
	static uint32_t tokens[N];
	struct passage p;
	struct sequence s = {tokens, n};
	for (uint32_t i = 0; i < n; i++)
		tokens[i] = token_at(i);
	assert_int_equal(passage_init(&p, &s, 1, PASSAGE_CORPUS), 0);
	assert_int_equal(mask_passage(m, place, index, &p), 0);
	return p;
}

static void chosen_tokens_are_masked_replaced_or_left_in_their_shares(void **state)
{
	(void)state;
	struct tokenizer *t = tokenizer_golden();
	struct mask *m = NULL;
	uint32_t n_all = 0, n_chosen = 0, n_masked = 0, n_same = 0;
	assert_int_equal(mask_new(t, 0.15, 1, &m, NULL), 0);
	for (uint64_t place = 0; place < 10; place++) {
		struct passage p = masked(m, place, 0, N);
		for (uint32_t i = 0; i < N; i++) {
			uint32_t was = token_at(i), is = p.sequence.tokens[i];
			n_all += was > MASK;
			if (p.labels[i] == UINT32_MAX) {
				assert_int_equal(is, was);
				continue;
			}
			assert_true(was > MASK && (is == MASK || is > MASK));       // special tokens are neither chosen nor put in
			assert_int_equal(p.labels[i], was);
			n_chosen++;
			n_masked += is == MASK;
			n_same += is == was;
		}
		passage_done(&p);
	}
	double n = n_chosen;
	assert_true(fabs(n / n_all - 0.15) < 0.008);           // four standard deviations
	assert_true(fabs(n_masked / n - 0.8) < 0.02);
	assert_true(fabs(n_same / n - (0.1 + 0.1 / 91)) < 0.02);
	mask_free(m);
	tokenizer_close(t);
}

static bool alike(const struct passage *a, const struct passage *b)
{
	uint32_t n = a->sequence.n_tokens;
	return memcmp(a->labels, b->labels, n * sizeof *a->labels) == 0 &&
	       memcmp(a->sequence.tokens, b->sequence.tokens, n * sizeof *a->labels) == 0;
}

static void seed_and_place_decide_alone(void **state)
{
	(void)state;
	struct tokenizer *t = tokenizer_golden();
	struct mask *m[3] = {NULL};
	for (int i = 0; i < 3; i++)
		assert_int_equal(mask_new(t, 0.15, i == 2 ? 8 : 7, &m[i], NULL), 0);
	struct passage first = masked(m[0], 5, 1, 200), others[] = {
		masked(m[1], 5, 1, 200), masked(m[2], 5, 1, 200),
		masked(m[0], 6, 1, 200), masked(m[0], 5, 2, 200),
		masked(m[0], MASK_HELD_OUT, 1, 200)};
	for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
		assert_int_equal(alike(&first, &others[i]), i == 0);
		passage_done(&others[i]);
	}
	passage_done(&first);
	for (int i = 0; i < 3; i++)
		mask_free(m[i]);
	tokenizer_close(t);
}

static void every_sequence_has_something_to_learn(void **state)
{
	(void)state;
	struct tokenizer *t = tokenizer_golden();
	struct mask *m = NULL;
	assert_int_equal(mask_new(t, 0.001, 1, &m, NULL), 0);
	for (uint32_t i = 0; i < 50; i++) {
		struct passage p = masked(m, i, 0, 4);
		uint32_t n = 0;
		for (uint32_t k = 0; k < 4; k++)
			n += p.labels[k] != UINT32_MAX;
		assert_in_range(n, 1, 4);
		passage_done(&p);
	}
	mask_free(m);
	tokenizer_close(t);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(chosen_tokens_are_masked_replaced_or_left_in_their_shares),
		cmocka_unit_test(seed_and_place_decide_alone),
		cmocka_unit_test(every_sequence_has_something_to_learn),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
