// SPDX-License-Identifier: Apache-2.0
// Forward operations against ref. Every bound is stated where it is used; unit inputs keep results of about unit size.
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tests/ops/harness.h"

static const struct attention_shape shapes[] = {
	{4, 2, 2, 0.7071f, false, 0, 0}, {3, 3, 16, 0.25f, false, 0, 0}, {6, 2, 64, 0.125f, false, 0, 0}, {4, 1, 128, 0.0884f, false, 0, 0},
	{9, 3, 64, 0.125f, false, 0, 0},
};
#define N_SHAPES (sizeof shapes / sizeof *shapes)

static size_t row_width(const struct attention_shape *s)
{
	return (s->n_heads + 2 * (size_t)s->n_kv_heads) * s->head_size;
}

void memory_keeps_what_was_written(void **state)
{
	struct pair *p = *state;
	const struct backend_ops *ops = p->be->ops;
	float values[9] = {0, -1.5f, 2, 3, 1e-30f, 1e30f, -7, 8, 0.25f};
	double back[9];
	struct real *x = ops->real_new(p->be, 18, NULL);
	ops->real_read(p->be, back, ops->real_at(x, 9), 9);
	for (int i = 0; i < 9; i++)
		assert_true(back[i] == 0);
	ops->real_write(p->be, ops->real_at(x, 9), values, 9);
	ops->real_copy(p->be, x, ops->real_at(x, 9), 9);
	ops->real_zero(p->be, ops->real_at(x, 9), 8);
	ops->real_read(p->be, back, x, 9);
	for (int i = 0; i < 9; i++)
		assert_true(back[i] == values[i]);
	ops->real_read(p->be, back, ops->real_at(x, 9), 9);
	assert_true(back[7] == 0 && back[8] == values[8]);
	ops->real_free(p->be, x);
	struct act *a = ops->act_new(p->be, 9, NULL);
	ops->act_write(p->be, ops->act_at(a, 2), values, 4);    // all but 1e-30 and 1e30 are exact in bfloat16 too
	ops->act_read(p->be, back, a, 9);
	assert_true(back[0] == 0 && back[3] == -1.5 && back[4] == 2 && back[5] == 3 && back[8] == 0);
	ops->act_free(p->be, a);
	ops->real_free(p->be, NULL);
	ops->act_free(p->be, NULL);
	ops->weight_free(p->be, NULL);
}

void embed_matches_ref(void **state)
{
	struct pair *p = *state;
	for (int i = 0; i < N_LENGTHS; i++) {
		uint32_t T = lengths[i], V = 97, C = i % 2 ? 33 : 64;
		pair_reset(p, T);
		pair_begin(p, T, V);
		struct twin_weight w = twin_weight_random(p, WEIGHT_PLAIN, V, C);
		struct twin x = twin_poisoned(p, (size_t)T * C);
		p->ref->ops->embed(p->ref, x.ref, w.ref);
		p->be->ops->embed(p->be, x.be, w.be);
		// a copy: only the rounding of a matrix kept in the products' format
		assert_twin(p, "embed", x, (struct bound){0, p->eps_product > EPS_F32 ? p->eps_product : 0});
	}
}

void rmsnorm_matches_ref(void **state)
{
	struct pair *p = *state;
	static const uint32_t widths[] = {2, 33, 64, 576};
	for (int i = 0; i < N_LENGTHS; i++) {
		for (int j = 0; j < 4; j++) {
			uint32_t T = lengths[i], C = widths[j];
			pair_reset(p, T + C);
			struct twin x = twin_random(p, (size_t)T * C, 3), gain = twin_random(p, C, 1);
			struct twin_act y = twin_act_poisoned(p, (size_t)T * C);
			p->ref->ops->rmsnorm(p->ref, y.ref, x.ref, gain.ref, 1e-5f, T, C);
			p->be->ops->rmsnorm(p->be, y.be, x.be, gain.be, 1e-5f, T, C);
			assert_twin_act(p, "rmsnorm", y, (struct bound){1e-12, 20 * EPS_F32 + p->eps_act});
		}
	}
}

void head_norm_matches_ref(void **state)
{
	struct pair *p = *state;
	for (size_t i = 0; i < N_LENGTHS * N_SHAPES; i++) {
		const struct attention_shape *s = &shapes[i % N_SHAPES];
		uint32_t T = lengths[i / N_SHAPES], D = s->head_size;
		pair_reset(p, i + 1);
		pair_begin(p, T, 5);
		struct twin_act x = twin_act_random(p, T * row_width(s), 2), y = twin_act_poisoned(p, x.n);
		struct twin q_gain = twin_random(p, D, 1), k_gain = twin_random(p, D, 1);
		struct bound b = {1e-12, 20 * EPS_F32 + p->eps_act};
		p->ref->ops->head_norm(p->ref, y.ref, x.ref, q_gain.ref, k_gain.ref, s, 1e-6f);
		p->be->ops->head_norm(p->be, y.be, x.be, q_gain.be, k_gain.be, s, 1e-6f);
		assert_twin_act(p, "head_norm", y, b);
		p->be->ops->head_norm(p->be, x.be, x.be, q_gain.be, k_gain.be, s, 1e-6f);
		x.ref = y.ref;
		assert_twin_act(p, "head_norm in place", x, b);
	}
}

static const uint32_t matrices[][2] = {{1, 2}, {7, 33}, {96, 64}, {130, 576}, {576, 192}};
#define N_MATRICES (sizeof matrices / sizeof *matrices)

void linear_matches_ref(void **state)
{
	struct pair *p = *state;
	for (size_t i = 0; i < N_LENGTHS * N_MATRICES; i++) {
		uint32_t rows = lengths[i / N_MATRICES], N = matrices[i % N_MATRICES][0], K = matrices[i % N_MATRICES][1];
		pair_reset(p, i + 1);
		struct twin_act x = twin_act_random(p, (size_t)rows * K, 1), y = twin_act_poisoned(p, (size_t)rows * N);
		struct twin bias = twin_random(p, N, 1), array = twin_random(p, (size_t)N * K, 1 / sqrtf((float)K));
		struct twin_weight w = twin_weight_random(p, WEIGHT_PLAIN, N, K), view = twin_weight_view(p, array, N, K);
		p->ref->ops->linear(p->ref, y.ref, x.ref, w.ref, NULL, rows);
		p->be->ops->linear(p->be, y.be, x.be, w.be, NULL, rows);
		assert_twin_act(p, "linear", y, bound_product(p, p->eps_product, K, true));
		y = twin_act_poisoned(p, y.n);
		p->ref->ops->linear(p->ref, y.ref, x.ref, w.ref, bias.ref, rows);
		p->be->ops->linear(p->be, y.be, x.be, w.be, bias.be, rows);
		assert_twin_act(p, "linear with bias", y, bound_product(p, p->eps_product, K, true));
		y = twin_act_poisoned(p, y.n);
		p->ref->ops->linear(p->ref, y.ref, x.ref, view.ref, bias.ref, rows);
		p->be->ops->linear(p->be, y.be, x.be, view.be, bias.be, rows);
		assert_twin_act(p, "linear of a view", y, bound_product(p, p->eps_view, K, true));
	}
}

void linear_real_matches_ref(void **state)
{
	struct pair *p = *state;
	for (size_t i = 0; i < N_LENGTHS * N_MATRICES; i++) {
		uint32_t rows = lengths[i / N_MATRICES], N = matrices[i % N_MATRICES][0], K = matrices[i % N_MATRICES][1];
		pair_reset(p, i + 1);
		struct twin_act x = twin_act_random(p, (size_t)rows * K, 1);
		struct twin y = twin_poisoned(p, (size_t)rows * N), array = twin_random(p, (size_t)N * K, 1 / sqrtf((float)K));
		struct twin_weight w = twin_weight_random(p, WEIGHT_PLAIN, N, K), view = twin_weight_view(p, array, N, K);
		struct bound b = bound_product(p, p->eps_product, K, false);
		p->ref->ops->linear_real(p->ref, y.ref, false, x.ref, w.ref, NULL, rows);
		p->be->ops->linear_real(p->be, y.be, false, x.be, w.be, NULL, rows);
		assert_twin(p, "linear_real", y, b);
		y = twin_random(p, y.n, 1);
		p->ref->ops->linear_real(p->ref, y.ref, true, x.ref, w.ref, NULL, rows);
		p->be->ops->linear_real(p->be, y.be, true, x.be, w.be, NULL, rows);
		assert_twin(p, "linear_real added", y, b);
		y = twin_random(p, y.n, 1);
		struct twin bias = twin_random(p, N, 1);
		p->ref->ops->linear_real(p->ref, y.ref, true, x.ref, w.ref, bias.ref, rows);
		p->be->ops->linear_real(p->be, y.be, true, x.be, w.be, bias.be, rows);
		assert_twin(p, "linear_real added with bias", y, b);
		y = twin_random(p, y.n, 1);
		p->ref->ops->linear_real(p->ref, y.ref, true, x.ref, view.ref, NULL, rows);
		p->be->ops->linear_real(p->be, y.be, true, x.be, view.be, NULL, rows);
		assert_twin(p, "linear_real of a view", y, bound_product(p, p->eps_view, K, false));
	}
}

void linear_of_mixed_types_matches_ref(void **state)
{
	struct pair *p = *state;
	for (uint32_t K = 32; K <= 576; K += 544) {
		pair_reset(p, K);
		struct twin_weight w = twin_weight_mixed(p, WEIGHT_PLAIN, K);
		struct twin_act x = twin_act_random(p, 65 * K, 1), y = twin_act_poisoned(p, 65 * 96);
		p->ref->ops->linear(p->ref, y.ref, x.ref, w.ref, NULL, 65);
		p->be->ops->linear(p->be, y.be, x.be, w.be, NULL, 65);
		assert_twin_act(p, "linear of mixed types", y, bound_product(p, p->eps_product, K, true));
		pair_begin(p, 65, 96);
		struct twin e = twin_poisoned(p, 65 * K);
		p->ref->ops->embed(p->ref, e.ref, w.ref);
		p->be->ops->embed(p->be, e.be, w.be);
		assert_twin(p, "embed of mixed types", e, (struct bound){0, p->eps_product > EPS_F32 ? p->eps_product : 0});
	}
}

void blocks_of_every_type_are_as_in_ref(void **state)
{
	struct pair *p = *state;
	const uint32_t N = 24, K = 512;
	bool rounded = p->eps_product > EPS_F32;      // to bfloat16, which may lose what is below the normal floats
	for (int type = 0; type < N_DTYPES; type++) {
		if (dtype_block_elements((enum dtype)type) == 1)
			continue;
		pair_reset(p, (uint64_t)type + 1);
		struct twin_weight w = twin_weight_blocks(p, (enum dtype)type, N, K);
		pair_begin(p, 65, N);
		struct twin e = twin_poisoned(p, 65 * K);
		p->ref->ops->embed(p->ref, e.ref, w.ref);
		p->be->ops->embed(p->be, e.be, w.be);
		assert_twin(p, dtype_name((enum dtype)type), e, (struct bound){rounded ? 0x1p-126 : 0, rounded ? p->eps_product : 0});
	}
}

void linear_of_view_follows_refresh(void **state)
{
	struct pair *p = *state;
	const uint32_t N = 70, K = 48, rows = 9;
	pair_reset(p, 5);
	struct twin array = twin_random(p, N * K, 0.15f), other = twin_random(p, N * K, 0.15f), y = twin_poisoned(p, rows * N);
	struct twin_weight view = twin_weight_view(p, array, N, K);
	struct twin_act x = twin_act_random(p, rows * K, 1);
	p->be->ops->linear_real(p->be, y.be, false, x.be, view.be, NULL, rows);
	p->be->ops->real_copy(p->be, array.be, other.be, array.n);
	p->ref->ops->real_copy(p->ref, array.ref, other.ref, array.n);
	p->be->ops->weight_refresh(p->be, view.be);
	p->ref->ops->weight_refresh(p->ref, view.ref);
	p->be->ops->linear_real(p->be, y.be, false, x.be, view.be, NULL, rows);
	p->ref->ops->linear_real(p->ref, y.ref, false, x.ref, view.ref, NULL, rows);
	assert_twin(p, "linear_real after refresh", y, bound_product(p, p->eps_view, K, false));
}

void rope_matches_ref(void **state)
{
	struct pair *p = *state;
	for (size_t i = 0; i < 2 * N_LENGTHS * N_SHAPES; i++) {
		const struct attention_shape *s = &shapes[i / 2 % N_SHAPES];
		uint32_t T = lengths[i / 2 / N_SHAPES], R = i % 2 && s->head_size > 2 ? s->head_size * 3 / 4 : s->head_size, half = R / 2;
		pair_reset(p, i + 1);
		pair_begin(p, T, 5);
		struct twin_act x = twin_act_random(p, T * row_width(s), 1);
		struct twin cosine = twin_random(p, (size_t)T * half, 0.5f), sine = twin_random(p, (size_t)T * half, 0.5f);
		struct bound b = {4 * EPS_F32, 4 * EPS_F32 + p->eps_act};
		p->ref->ops->rope(p->ref, x.ref, cosine.ref, sine.ref, R, s, false);
		p->be->ops->rope(p->be, x.be, cosine.be, sine.be, R, s, false);
		assert_twin_act(p, "rope", x, b);
		x = twin_act_random(p, x.n, 1);
		p->ref->ops->rope(p->ref, x.ref, cosine.ref, sine.ref, R, s, true);
		p->be->ops->rope(p->be, x.be, cosine.be, sine.be, R, s, true);
		assert_twin_act(p, "rope inverse", x, b);
	}
}

static void round_all(float *x, size_t n)
{
	for (size_t i = 0; i < n; i++)
		x[i] = float_from_bf16(float_to_bf16(x[i]));
}

// What attention's products hold exactly.
static struct twin_act operands_random(struct pair *p, size_t n, float scale)
{
	float *x = malloc(n * sizeof *x);
	assert_non_null(x);
	random_fill(&p->random, x, n, scale);
	if (p->eps_attention > EPS_F32)
		round_all(x, n);
	struct twin_act t = twin_act_random(p, n, scale);
	p->be->ops->act_write(p->be, t.be, x, n);
	p->ref->ops->act_write(p->ref, t.ref, x, n);
	free(x);
	return t;
}

static void check_attention(struct pair *p, bool bidirectional, bool windows, bool caps)
{
	static const uint32_t some_windows[] = {1, 5, 63, 64, 100};
	static const float some_caps[] = {0.7f, 5, 50};
	for (size_t i = 0; i < N_LENGTHS * N_SHAPES; i++) {
		struct attention_shape shape = shapes[i % N_SHAPES], *s = &shape;
		uint32_t T = lengths[i / N_SHAPES];
		shape.bidirectional = bidirectional;
		shape.window = windows ? some_windows[(i + i / 5) % 5] : 0;
		shape.soft_cap = caps ? some_caps[i % 3] : 0;
		size_t n = (size_t)T * s->n_heads;
		pair_reset(p, i + 1);
		pair_begin(p, T, 5);
		struct twin_act qkv = operands_random(p, T * row_width(s), 2), y = twin_act_poisoned(p, n * s->head_size);
		struct twin lse = twin_poisoned(p, n);
		p->ref->ops->attention(p->ref, y.ref, lse.ref, qkv.ref, s);
		p->be->ops->attention(p->be, y.be, lse.be, qkv.be, s);
		// scores reach about 30 and are sums of up to 128 terms, so exp() of them is good to 30 sqrt(128) / 2 eps;
		// where operands are bfloat16 the probabilities are rounded too
		struct bound b = {170 * EPS_F32 + 4 * (p->eps_attention - EPS_F32), 64 * EPS_F32 + 2 * p->eps_attention};
		assert_twin_act(p, "attention", y, b);
		// of few keys the log-sum-exp has the error of a score, of many less
		assert_twin(p, "attention lse", lse, (struct bound){(windows ? 170 : 64) * EPS_F32, 4 * EPS_F32});
		y.be = twin_act_poisoned(p, y.n).be;
		p->be->ops->attention(p->be, y.be, NULL, qkv.be, s);
		assert_twin_act(p, "attention without lse", y, b);
	}
}

// Operands as they are and rounded beforehand give the same bits where attention rounds, and only there.
static void check_rounding(struct pair *p, bool rounds)
{
	enum { T = 70 };
	const struct attention_shape *s = &shapes[2];
	size_t n = T * row_width(s), n_y = (size_t)T * s->n_heads * s->head_size;
	float *x = malloc(n * sizeof *x);
	double *y[2] = {malloc(n_y * sizeof **y), malloc(n_y * sizeof **y)};
	assert_true(x && y[0] && y[1]);
	pair_begin(p, T, 5);
	struct twin_act qkv = twin_act_random(p, n, 2), out = twin_act_poisoned(p, n_y);
	random_fill(&p->random, x, n, 2);
	for (int i = 0; i < 2; i++) {
		p->be->ops->act_write(p->be, qkv.be, x, n);
		p->be->ops->attention(p->be, out.be, NULL, qkv.be, s);
		p->be->ops->act_read(p->be, y[i], out.be, n_y);
		round_all(x, n);
	}
	assert_int_equal(memcmp(y[0], y[1], n_y * sizeof **y) == 0, rounds);
	free(x);
	free(y[0]);
	free(y[1]);
}

void attention_rounds_as_products_do(void **state)
{
	struct pair *p = *state;
	pair_reset(p, 1);
	check_rounding(p, p->eps_attention > EPS_F32);
	twin_weight_view(p, twin_random(p, 24, 1), 4, 6);    // a model in training: its backward takes float operands
	check_rounding(p, p->eps_act > EPS_F32);
	pair_reset(p, 1);
}

void attention_matches_ref(void **state)
{
	check_attention(*state, false, false, false);
}

// Windows and caps in turn, over the lengths and shapes: see check_attention.
void attention_within_windows_matches_ref(void **state)
{
	check_attention(*state, false, true, false);
}

void attention_with_capped_scores_matches_ref(void **state)
{
	check_attention(*state, false, false, true);
	check_attention(*state, true, false, true);
}

void attention_of_whole_sequences_matches_ref(void **state)
{
	check_attention(*state, true, false, false);
}

void swiglu_matches_ref(void **state)
{
	struct pair *p = *state;
	static const uint32_t widths[] = {1, 33, 192};
	for (int i = 0; i < N_LENGTHS * 3; i++) {
		uint32_t rows = lengths[i / 3], F = widths[i % 3];
		pair_reset(p, (uint64_t)i + 1);
		struct twin_act x = twin_act_random(p, (size_t)rows * 2 * F, i % 2 ? 60 : 2), y = twin_act_poisoned(p, (size_t)rows * F);
		p->ref->ops->swiglu(p->ref, y.ref, x.ref, rows, F);
		p->be->ops->swiglu(p->be, y.be, x.be, rows, F);
		assert_twin_act(p, "swiglu", y, (struct bound){1e-30, 16 * EPS_F32 + p->eps_act});
	}
}

void rows_match_ref(void **state)
{
	struct pair *p = *state;
	static const uint32_t rows[] = {64, 0, 3, 63, 17};
	const uint32_t T = 65, C = 33, n = 5;
	pair_reset(p, 3);
	struct twin_act x = twin_act_random(p, T * C, 1), y = twin_act_poisoned(p, n * C), dx = twin_act_poisoned(p, T * C);
	p->ref->ops->pick_rows(p->ref, y.ref, x.ref, rows, n, C);
	p->be->ops->pick_rows(p->be, y.be, x.be, rows, n, C);
	assert_twin_act(p, "pick_rows", y, (struct bound){0, 0});
	p->ref->ops->put_rows(p->ref, dx.ref, y.ref, rows, n, T, C);
	p->be->ops->put_rows(p->be, dx.be, y.be, rows, n, T, C);
	assert_twin_act(p, "put_rows", dx, (struct bound){0, 0});
}
