// SPDX-License-Identifier: Apache-2.0
// Runs an operation of a backend and of ref on the same random inputs and compares: |difference| <= a + r |ref| at every element.
// Outputs are filled with NaN before, so an element that is not written is found. Everything made here lives until pair_reset().
#pragma once

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "kernels/backend.h"

#define EPS_F32 0x1p-24
#define MAX_ROWS 160
#define N_LENGTHS 5
extern const uint32_t lengths[N_LENGTHS];    // 1, 3, 64, 65, 130: around the tile sizes that implementations use

struct twin { struct real *ref, *be; size_t n; };            // the same real array on both
struct twin_act { struct act *ref, *be; size_t n; };
struct twin_weight { struct weight *ref, *be; };
struct bound { double a, r; };

struct pair {
	struct backend *ref, *be;
	uint64_t random;
	double eps_act;                  // unit roundoff of the backend's act arrays
	double eps_attention;            // of operands of attention's products, where the backend has no trainable matrix; else eps_act
	double eps_view;                 // of operands of products of trainable matrices
	double eps_product;              // of operands in products of immutable weights; integers are the same on both
	struct made *made;               // everything to free at reset
	struct batch { uint32_t tokens[MAX_ROWS], positions[MAX_ROWS], starts[5]; struct layout layout; } batch;
};

// Opens both; returns 77 when the backend is not there.
int pair_open(struct pair *p, const char *name, enum backend_numeric numeric, uint32_t n_threads);
void pair_close(struct pair *p);
void pair_reset(struct pair *p, uint64_t seed);

double random_unit(uint64_t *state);                          // uniform, mean 0, variance 1
void random_fill(uint64_t *state, float *x, size_t n, float scale);

// begin() on both with T positions in up to three sequences, tokens below V.
void pair_begin(struct pair *p, uint32_t T, uint32_t V);

// Values that both devices hold exactly (as the backend rounds them).
struct twin twin_random(struct pair *p, size_t n, float scale);
struct twin twin_values(struct pair *p, const float *values, size_t n);
struct twin twin_poisoned(struct pair *p, size_t n);
struct twin_act twin_act_random(struct pair *p, size_t n, float scale);
struct twin_act twin_act_of_ref(struct pair *p, const struct act *values, size_t n);    // ref's values, on both
struct twin twin_of_ref(struct pair *p, const struct real *values, size_t n);
struct twin_act twin_act_poisoned(struct pair *p, size_t n);
struct twin_weight twin_weight_random(struct pair *p, enum weight_kind kind, uint32_t N, uint32_t K);     // immutable, F32, variance 1/K
struct twin_weight twin_weight_mixed(struct pair *p, enum weight_kind kind, uint32_t K);    // 4 parts of 24 rows: F32, F16, BF16, Q8_0
struct twin_weight twin_weight_blocks(struct pair *p, enum dtype type, uint32_t N, uint32_t K);     // any bytes whose scales are finite
struct twin_weight twin_weight_view(struct pair *p, struct twin array, uint32_t N, uint32_t K);

// How the sum of K products of about unit size may differ: rounding of the operands, of the running sum, of the stored result.
struct bound bound_product(const struct pair *p, double eps_operand, size_t K, bool act_result);
void assert_close(const char *what, const double *got, const double *want, size_t n, struct bound b);
void assert_twin(struct pair *p, const char *what, struct twin t, struct bound b);
void assert_twin_act(struct pair *p, const char *what, struct twin_act t, struct bound b);

// The tests, in files by family; state is a struct pair *.
void memory_keeps_what_was_written(void **state);
void embed_matches_ref(void **state);
void rmsnorm_matches_ref(void **state);
void head_norm_matches_ref(void **state);
void linear_matches_ref(void **state);
void linear_real_matches_ref(void **state);
void linear_of_mixed_types_matches_ref(void **state);
void blocks_of_every_type_are_as_in_ref(void **state);
void int8_products_are_exact(void **state);
void int8_products_of_any_shape_match_ref(void **state);
void int8_products_keep_what_is_not_a_number_in_its_row(void **state);
void fp8_rounds_to_the_nearest_number(void **state);
void fp8_rows_have_scales(void **state);
void fp8_products_of_integers_are_exact(void **state);
void fp8_products_of_any_shape_match_ref(void **state);
void fp8_products_of_many_outputs_match_ref(void **state);
void fp8_matrices_of_mixed_types_match_ref(void **state);
void fp8_products_keep_what_is_not_a_number_in_its_row(void **state);
void linear_of_view_follows_refresh(void **state);
void rope_matches_ref(void **state);
void attention_matches_ref(void **state);
void attention_rounds_as_products_do(void **state);
void attention_within_windows_matches_ref(void **state);
void attention_with_capped_scores_matches_ref(void **state);
void swiglu_matches_ref(void **state);
void rows_match_ref(void **state);
void geglu_matches_ref(void **state);
void rows_added_match_ref(void **state);
void soft_caps_match_ref(void **state);
void layernorm_matches_ref(void **state);
void layernorm_keeps_the_digits_of_rows_far_from_zero(void **state);
void layernorm_backward_matches_ref(void **state);
void gelu_matches_ref(void **state);
void embed_add_matches_ref(void **state);
void copies_match_ref(void **state);
void attention_of_whole_sequences_matches_ref(void **state);
void attention_backward_of_whole_sequences_matches_ref(void **state);
void sweep_matches_ref(void **state);
void sweep_sums_equal_logits(void **state);
void sweep_answers_whatever_else_is_asked(void **state);
void sweep_takes_rows_that_begin_anywhere(void **state);
void sweeps_overlap(void **state);
void sweep_breaks_ties_by_lower_id(void **state);
void sweep_flags_rows_that_are_not_finite(void **state);
void draws_match_cumulative_sums(void **state);
void tails_far_below_the_head_are_exact(void **state);
void draws_leave_rows_that_are_not_finite_alone(void **state);
void columns_match_ref(void **state);
void mixtures_match_ref(void **state);
void mixtures_keep_what_is_not_a_number(void **state);
void embed_backward_matches_ref(void **state);
void rmsnorm_backward_matches_ref(void **state);
void head_norm_backward_matches_ref(void **state);
void linear_backward_matches_ref(void **state);
void linear_real_backward_matches_ref(void **state);
void attention_backward_matches_ref(void **state);
void attention_backward_within_windows_matches_ref(void **state);
void attention_backward_with_capped_scores_matches_ref(void **state);
void swiglu_backward_matches_ref(void **state);
void softmax_grad_matches_ref(void **state);
void sum_squares_matches_ref(void **state);
void adamw_matches_ref(void **state);
void lion_matches_ref(void **state);
void fake_quantize_matches_ref(void **state);
