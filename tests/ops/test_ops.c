// SPDX-License-Identifier: Apache-2.0
// Holds one backend (BACKEND, given at compile time) to kernels/ref, operation by operation, in each numeric form it offers.
// OPS_VERBOSE=1 prints how much of each bound is used; OPS_ONLY='sweep*' runs the tests of such names.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/ops/harness.h"

static struct pair pair;

static int give_pair(void **state)
{
	*state = &pair;
	return 0;
}

static int forget(void **state)
{
	(void)state;
	pair_reset(&pair, 0);
	return 0;
}

#define OP(f) cmocka_unit_test_teardown(f, forget)

static const struct CMUnitTest tests[] = {
	OP(memory_keeps_what_was_written),
	OP(embed_matches_ref),
	OP(rmsnorm_matches_ref),
	OP(head_norm_matches_ref),
	OP(linear_matches_ref),
	OP(linear_real_matches_ref),
	OP(linear_of_mixed_types_matches_ref),
	OP(blocks_of_every_type_are_as_in_ref),
	OP(int8_products_are_exact),
	OP(int8_products_of_any_shape_match_ref),
	OP(int8_products_keep_what_is_not_a_number_in_its_row),
	OP(fp8_rounds_to_the_nearest_number),
	OP(fp8_rows_have_scales),
	OP(fp8_products_of_integers_are_exact),
	OP(fp8_products_of_any_shape_match_ref),
	OP(fp8_products_of_many_outputs_match_ref),
	OP(fp8_matrices_of_mixed_types_match_ref),
	OP(fp8_products_keep_what_is_not_a_number_in_its_row),
	OP(linear_of_view_follows_refresh),
	OP(rope_matches_ref),
	OP(attention_matches_ref),
	OP(attention_rounds_as_products_do),
	OP(attention_within_windows_matches_ref),
	OP(attention_with_capped_scores_matches_ref),
	OP(swiglu_matches_ref),
	OP(rows_match_ref),
	OP(geglu_matches_ref),
	OP(rows_added_match_ref),
	OP(soft_caps_match_ref),
	OP(layernorm_matches_ref),
	OP(layernorm_keeps_the_digits_of_rows_far_from_zero),
	OP(layernorm_backward_matches_ref),
	OP(gelu_matches_ref),
	OP(embed_add_matches_ref),
	OP(copies_match_ref),
	OP(attention_of_whole_sequences_matches_ref),
	OP(attention_backward_of_whole_sequences_matches_ref),
	OP(sweep_matches_ref),
	OP(sweep_sums_equal_logits),
	OP(sweep_answers_whatever_else_is_asked),
	OP(sweep_takes_rows_that_begin_anywhere),
	OP(sweeps_overlap),
	OP(sweep_breaks_ties_by_lower_id),
	OP(sweep_flags_rows_that_are_not_finite),
	OP(draws_match_cumulative_sums),
	OP(tails_far_below_the_head_are_exact),
	OP(draws_leave_rows_that_are_not_finite_alone),
	OP(columns_match_ref),
	OP(mixtures_match_ref),
	OP(mixtures_keep_what_is_not_a_number),
	OP(embed_backward_matches_ref),
	OP(rmsnorm_backward_matches_ref),
	OP(head_norm_backward_matches_ref),
	OP(linear_backward_matches_ref),
	OP(linear_real_backward_matches_ref),
	OP(attention_backward_matches_ref),
	OP(attention_backward_within_windows_matches_ref),
	OP(attention_backward_with_capped_scores_matches_ref),
	OP(swiglu_backward_matches_ref),
	OP(softmax_grad_matches_ref),
	OP(sum_squares_matches_ref),
	OP(adamw_matches_ref),
	OP(lion_matches_ref),
	OP(fake_quantize_matches_ref),
};

// AUTO may be one of the others, for trainable matrices too: a form is held to account once.
static int run(enum backend_numeric numeric)
{
	static char held[5][2 * 16];
	static int n_held;
	int r = pair_open(&pair, BACKEND, numeric, 2);
	if (r != 0)
		return r;
	char *name = held[n_held];
	snprintf(name, sizeof held[0], "%s %s", pair.be->numeric, pair.be->view_numeric);
	for (int i = 0; i < n_held; i++)
		if (strcmp(held[i], name) == 0)
			goto out;
	n_held++;
	r = cmocka_run_group_tests(tests, give_pair, NULL);
out:
	pair_close(&pair);
	return r;
}

int main(void)
{
	if (getenv("OPS_ONLY"))
		cmocka_set_test_filter(getenv("OPS_ONLY"));
	int r = run(BACKEND_NUMERIC_F32);
	if (r == 0 && strcmp(BACKEND, "ref") != 0)
		r = run(BACKEND_NUMERIC_AUTO);
	if (r == 0 && strcmp(BACKEND, "ref") != 0)
		r = run(BACKEND_NUMERIC_BF16);
	if (r == 0 && strcmp(BACKEND, "cuda") != 0)
		r = run(BACKEND_NUMERIC_INT8);
	if (r == 0 && strcmp(BACKEND, "cpu") != 0 && run(BACKEND_NUMERIC_FP8) == 1)      // an older GPU has none
		r = 1;
	return r;
}
