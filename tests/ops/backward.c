// SPDX-License-Identifier: Apache-2.0
// Backward operations and the optimiser against ref. Gradients of parameters are added: their arrays start random, not zero.
#include <math.h>
#include <stdlib.h>

#include "tests/ops/harness.h"

static const struct attention_shape shapes[] = {
	{4, 2, 2, 0.7071f, false, 0, 0}, {3, 3, 16, 0.25f, false, 0, 0}, {6, 2, 64, 0.125f, false, 0, 0}, {4, 1, 128, 0.0884f, false, 0, 0},
};
#define N_SHAPES (sizeof shapes / sizeof *shapes)

static size_t row_width(const struct attention_shape *s)
{
	return (s->n_heads + 2 * (size_t)s->n_kv_heads) * s->head_size;
}

// A sum over n rows of terms of about unit size, in float, of values that were rounded by eps.
static struct bound bound_sum(double eps, size_t n)
{
	double spread = sqrt((double)n);
	return (struct bound){10 * spread * (eps + 2 * EPS_F32), 4 * EPS_F32 + 2 * eps};
}

void embed_backward_matches_ref(void **state)
{
	struct pair *p = *state;
	for (int i = 0; i < N_LENGTHS; i++) {
		uint32_t T = lengths[i], V = 13, C = i % 2 ? 33 : 64;    // few tokens: most occur many times
		pair_reset(p, T);
		pair_begin(p, T, V);
		struct twin dx = twin_random(p, (size_t)T * C, 1), dw = twin_random(p, (size_t)V * C, 1);
		p->ref->ops->embed_backward(p->ref, dw.ref, dx.ref, C);
		p->be->ops->embed_backward(p->be, dw.be, dx.be, C);
		assert_twin(p, "embed_backward", dw, (struct bound){T * 4 * EPS_F32, 4 * EPS_F32});
	}
}

void rmsnorm_backward_matches_ref(void **state)
{
	struct pair *p = *state;
	static const uint32_t widths[] = {2, 33, 64, 576};
	for (int i = 0; i < N_LENGTHS * 4; i++) {
		uint32_t T = lengths[i / 4], C = widths[i % 4];
		pair_reset(p, (uint64_t)i + 1);
		struct twin x = twin_random(p, (size_t)T * C, 3), gain = twin_random(p, C, 1);
		struct twin dx = twin_random(p, x.n, 1), dgain = twin_random(p, C, 1);
		struct twin_act dy = twin_act_random(p, x.n, 1);
		p->ref->ops->rmsnorm_backward(p->ref, dx.ref, dgain.ref, dy.ref, x.ref, gain.ref, 1e-5f, T, C);
		p->be->ops->rmsnorm_backward(p->be, dx.be, dgain.be, dy.be, x.be, gain.be, 1e-5f, T, C);
		// two unit values of x can be near zero together (C = 2): 1/rms is then large
		assert_twin(p, "rmsnorm_backward dx", dx, (struct bound){C == 2 ? 1e-3 : 40 * EPS_F32, 40 * EPS_F32});
		assert_twin(p, "rmsnorm_backward dgain", dgain, (struct bound){20 * sqrt(T) * EPS_F32, 20 * EPS_F32});
	}
}

void head_norm_backward_matches_ref(void **state)
{
	struct pair *p = *state;
	for (size_t i = 0; i < N_LENGTHS * (N_SHAPES - 1); i++) {
		const struct attention_shape *s = &shapes[1 + i % (N_SHAPES - 1)];
		uint32_t T = lengths[i / (N_SHAPES - 1)], D = s->head_size;
		pair_reset(p, i + 1);
		pair_begin(p, T, 5);
		struct twin_act x = twin_act_random(p, T * row_width(s), 2), dy = twin_act_random(p, x.n, 1),
			dx = twin_act_poisoned(p, x.n);
		struct twin q_gain = twin_random(p, D, 1), k_gain = twin_random(p, D, 1);
		struct twin dq_gain = twin_random(p, D, 1), dk_gain = twin_random(p, D, 1);
		double spread = sqrt((double)T * s->n_heads);
		p->ref->ops->head_norm_backward(p->ref, dx.ref, dq_gain.ref, dk_gain.ref, dy.ref, x.ref, q_gain.ref, k_gain.ref, s, 1e-6f);
		p->be->ops->head_norm_backward(p->be, dx.be, dq_gain.be, dk_gain.be, dy.be, x.be, q_gain.be, k_gain.be, s, 1e-6f);
		assert_twin_act(p, "head_norm_backward dx", dx, (struct bound){40 * EPS_F32, 40 * EPS_F32 + p->eps_act});
		assert_twin(p, "head_norm_backward dq_gain", dq_gain, (struct bound){20 * spread * EPS_F32, 20 * EPS_F32});
		assert_twin(p, "head_norm_backward dk_gain", dk_gain, (struct bound){20 * spread * EPS_F32, 20 * EPS_F32});
		p->be->ops->head_norm_backward(p->be, dy.be, dq_gain.be, dk_gain.be, dy.be, x.be, q_gain.be, k_gain.be, s, 1e-6f);
		dy.ref = dx.ref;
		assert_twin_act(p, "head_norm_backward in place", dy, (struct bound){40 * EPS_F32, 40 * EPS_F32 + p->eps_act});
	}
}

static const uint32_t matrices[][2] = {{1, 2}, {7, 33}, {96, 64}, {130, 576}};
#define N_MATRICES (sizeof matrices / sizeof *matrices)

void linear_backward_matches_ref(void **state)
{
	struct pair *p = *state;
	for (size_t i = 0; i < N_LENGTHS * N_MATRICES; i++) {
		uint32_t rows = lengths[i / N_MATRICES], N = matrices[i % N_MATRICES][0], K = matrices[i % N_MATRICES][1];
		pair_reset(p, i + 1);
		struct twin array = twin_random(p, (size_t)N * K, 1 / sqrtf((float)N));
		struct twin dw = twin_random(p, array.n, 1), dbias = twin_random(p, N, 1);
		struct twin_weight w = twin_weight_view(p, array, N, K);
		struct twin_act x = twin_act_random(p, (size_t)rows * K, 1), dy = twin_act_random(p, (size_t)rows * N, 1);
		struct twin_act dx = twin_act_poisoned(p, x.n);
		p->ref->ops->linear_backward(p->ref, dx.ref, dw.ref, dbias.ref, dy.ref, x.ref, w.ref, rows);
		p->be->ops->linear_backward(p->be, dx.be, dw.be, dbias.be, dy.be, x.be, w.be, rows);
		assert_twin_act(p, "linear_backward dx", dx, bound_product(p, p->eps_view, N, true));
		assert_twin(p, "linear_backward dw", dw, bound_sum(p->eps_view, rows));
		assert_twin(p, "linear_backward dbias", dbias, bound_sum(p->eps_act, rows));
		dx = twin_act_poisoned(p, x.n);
		p->ref->ops->linear_backward(p->ref, NULL, dw.ref, NULL, dy.ref, x.ref, w.ref, rows);
		p->be->ops->linear_backward(p->be, NULL, dw.be, NULL, dy.be, x.be, w.be, rows);
		p->ref->ops->linear_backward(p->ref, dx.ref, NULL, NULL, dy.ref, x.ref, w.ref, rows);
		p->be->ops->linear_backward(p->be, dx.be, NULL, NULL, dy.be, x.be, w.be, rows);
		assert_twin_act(p, "linear_backward dx alone", dx, bound_product(p, p->eps_view, N, true));
		assert_twin(p, "linear_backward dw alone", dw, bound_sum(p->eps_view, 2 * rows));
		assert_twin(p, "linear_backward dbias untouched", dbias, bound_sum(p->eps_act, rows));
	}
}

void linear_real_backward_matches_ref(void **state)
{
	struct pair *p = *state;
	for (size_t i = 0; i < N_LENGTHS * N_MATRICES; i++) {
		uint32_t rows = lengths[i / N_MATRICES], N = matrices[i % N_MATRICES][0], K = matrices[i % N_MATRICES][1];
		pair_reset(p, i + 1);
		struct twin array = twin_random(p, (size_t)N * K, 1 / sqrtf((float)N)), dw = twin_random(p, array.n, 1);
		struct twin_weight w = twin_weight_view(p, array, N, K);
		struct twin_act x = twin_act_random(p, (size_t)rows * K, 1), dx = twin_act_poisoned(p, x.n);
		struct twin dy = twin_random(p, (size_t)rows * N, 1), dbias = twin_random(p, N, 1);
		p->ref->ops->linear_real_backward(p->ref, dx.ref, dw.ref, dbias.ref, dy.ref, x.ref, w.ref, rows);
		p->be->ops->linear_real_backward(p->be, dx.be, dw.be, dbias.be, dy.be, x.be, w.be, rows);
		assert_twin_act(p, "linear_real_backward dx", dx, bound_product(p, p->eps_view, N, true));
		assert_twin(p, "linear_real_backward dw", dw, bound_sum(p->eps_view, rows));
		assert_twin(p, "linear_real_backward dbias", dbias, bound_sum(p->eps_act, rows));
		p->ref->ops->linear_real_backward(p->ref, NULL, dw.ref, NULL, dy.ref, x.ref, w.ref, rows);
		p->be->ops->linear_real_backward(p->be, NULL, dw.be, NULL, dy.be, x.be, w.be, rows);
		assert_twin(p, "linear_real_backward dw alone", dw, bound_sum(p->eps_view, 2 * rows));
	}
}

static void check_attention(struct pair *p, bool bidirectional, bool windows, bool caps)
{
	static const uint32_t some_windows[] = {1, 5, 63, 64, 100};
	static const float some_caps[] = {0.7f, 5, 50};
	for (size_t i = 0; i < N_LENGTHS * N_SHAPES; i++) {
		struct attention_shape shape = shapes[i % N_SHAPES], *s = &shape;
		uint32_t T = lengths[i / N_SHAPES];
		size_t n = (size_t)T * s->n_heads, group = s->n_heads / s->n_kv_heads;
		shape.bidirectional = bidirectional;
		shape.window = windows ? some_windows[(i + i / 5) % 5] : 0;
		shape.soft_cap = caps ? some_caps[i % 3] : 0;
		pair_reset(p, i + 1);
		pair_begin(p, T, 5);
		struct twin_act qkv = twin_act_random(p, T * row_width(s), 1), dy = twin_act_random(p, n * s->head_size, 1);
		struct twin_act made = twin_act_poisoned(p, dy.n), dqkv = twin_act_poisoned(p, qkv.n);
		struct twin made_lse = twin_poisoned(p, n);
		p->ref->ops->attention(p->ref, made.ref, made_lse.ref, qkv.ref, s);
		struct twin_act y = twin_act_of_ref(p, made.ref, made.n);
		struct twin lse = twin_of_ref(p, made_lse.ref, n);
		p->ref->ops->attention_backward(p->ref, dqkv.ref, dy.ref, qkv.ref, y.ref, lse.ref, s);
		p->be->ops->attention_backward(p->be, dqkv.be, dy.be, qkv.be, y.be, lse.be, s);
		// ds = p (dp - delta): dp and delta have size sqrt(D); keys gather terms of a whole group of heads over T rows
		double size = sqrt(s->head_size) * sqrt((double)group);
		struct bound b = {40 * size * EPS_F32 + 10 * size * (p->eps_act - EPS_F32), 40 * EPS_F32 + 2 * p->eps_act};
		assert_twin_act(p, "attention_backward", dqkv, b);
	}
}

void attention_backward_matches_ref(void **state)
{
	check_attention(*state, false, false, false);
}

// Windows and caps in turn, over the lengths and shapes: see check_attention.
void attention_backward_within_windows_matches_ref(void **state)
{
	check_attention(*state, false, true, false);
}

void attention_backward_with_capped_scores_matches_ref(void **state)
{
	check_attention(*state, false, false, true);
	check_attention(*state, true, false, true);
}

void attention_backward_of_whole_sequences_matches_ref(void **state)
{
	check_attention(*state, true, false, false);
}

void swiglu_backward_matches_ref(void **state)
{
	struct pair *p = *state;
	static const uint32_t widths[] = {1, 33, 192};
	for (int i = 0; i < N_LENGTHS * 3; i++) {
		uint32_t rows = lengths[i / 3], F = widths[i % 3];
		pair_reset(p, (uint64_t)i + 1);
		struct twin_act x = twin_act_random(p, (size_t)rows * 2 * F, i % 2 ? 30 : 2), dy = twin_act_random(p, (size_t)rows * F, 1);
		struct twin_act dx = twin_act_poisoned(p, x.n);
		p->ref->ops->swiglu_backward(p->ref, dx.ref, dy.ref, x.ref, rows, F);
		p->be->ops->swiglu_backward(p->be, dx.be, dy.be, x.be, rows, F);
		// 1 + g (1 - s) crosses zero near g = -1.3
		assert_twin_act(p, "swiglu_backward", dx, (struct bound){200 * EPS_F32, 16 * EPS_F32 + p->eps_act});
	}
}

void sum_squares_matches_ref(void **state)
{
	struct pair *p = *state;
	static const size_t sizes[] = {1, 7, 1000, 100003};
	for (int i = 0; i < 4; i++) {
		pair_reset(p, sizes[i]);
		struct twin x = twin_random(p, sizes[i], 1e-3f);
		double want = p->ref->ops->sum_squares(p->ref, x.ref, x.n), got = p->be->ops->sum_squares(p->be, x.be, x.n);
		assert_close("sum_squares", &got, &want, 1, (struct bound){0, 1e-6});
		assert_true(got == p->be->ops->sum_squares(p->be, x.be, x.n));
	}
}

void adamw_matches_ref(void **state)
{
	struct pair *p = *state;
	static const size_t sizes[] = {1, 7, 100003};
	for (int i = 0; i < 3; i++) {
		pair_reset(p, sizes[i]);
		size_t n = sizes[i];
		struct twin w = twin_random(p, n, 0.1f), zero = twin_random(p, n, 0);
		struct twin m = twin_of_ref(p, zero.ref, n), v = twin_of_ref(p, zero.ref, n);
		for (uint64_t step = 1; step <= 4; step++) {
			struct twin g = twin_random(p, n, 0.01f);
			struct adamw a = {1e-3, 0.9, 0.95, 1e-8, 0.1, 0.5, step};
			p->ref->ops->adamw(p->ref, w.ref, m.ref, v.ref, g.ref, n, &a);
			p->be->ops->adamw(p->be, w.be, m.be, v.be, g.be, n, &a);
		}
		assert_twin(p, "adamw w", w, (struct bound){1e-3 * 100 * EPS_F32, 8 * EPS_F32});
		assert_twin(p, "adamw m", m, (struct bound){0.01 * 8 * EPS_F32, 8 * EPS_F32});
		assert_twin(p, "adamw v", v, (struct bound){1e-12, 16 * EPS_F32});
	}
}

void lion_matches_ref(void **state)
{
	struct pair *p = *state;
	static const size_t sizes[] = {1, 7, 100003};
	for (int i = 0; i < 3; i++) {
		pair_reset(p, sizes[i]);
		size_t n = sizes[i];
		struct twin w = twin_random(p, n, 0.1f), zero = twin_random(p, n, 0);
		struct twin m = twin_of_ref(p, zero.ref, n);
		for (int step = 0; step < 4; step++) {
			struct twin g = twin_random(p, n, 0.01f);
			struct lion l = {1e-3, 0.9, 0.99, 0.1, 0.5};
			p->ref->ops->lion(p->ref, w.ref, m.ref, g.ref, n, &l);
			p->be->ops->lion(p->be, w.be, m.be, g.be, n, &l);
		}
		assert_twin(p, "lion w", w, (struct bound){1e-3 * 16 * EPS_F32, 8 * EPS_F32});
		assert_twin(p, "lion m", m, (struct bound){0.01 * 8 * EPS_F32, 8 * EPS_F32});
	}
}

// Values lie off the middle between two points of the grid, where rounding decides: 3 + a step's third, one of each group its largest.
void fake_quantize_matches_ref(void **state)
{
	struct pair *p = *state;
	static const struct { uint32_t rows, columns, group, bits; } grids[] = {
		{1, 1, 1, 8}, {3, 64, 32, 4}, {5, 96, 96, 8}, {2, 7, 7, 2}, {129, 160, 32, 4}, {4, 33, 11, 3},
	};
	for (size_t s = 0; s < sizeof grids / sizeof *grids; s++) {
		size_t n = (size_t)grids[s].rows * grids[s].columns;
		int steps = (1 << (grids[s].bits - 1)) - 1;
		pair_reset(p, s);
		float *values = malloc(n * sizeof *values);
		struct twin x = twin_random(p, n, 1);
		assert_non_null(values);
		for (size_t i = 0; i < n; i++) {
			int level = (int)(i * 7919 % (size_t)(2 * steps + 1)) - steps;
			bool largest = i % grids[s].group == 0;
			float scale = 0.01f * (float)(1 + i / grids[s].group % 5);
			values[i] = largest ? scale * (float)steps : scale * ((float)level + (abs(level) < steps && i % 2 ? 0.33f : 0));
		}
		p->ref->ops->real_write(p->ref, x.ref, values, n);
		x = twin_of_ref(p, x.ref, n);
		p->ref->ops->fake_quantize(p->ref, x.ref, grids[s].rows, grids[s].columns, grids[s].group, grids[s].bits);
		p->be->ops->fake_quantize(p->be, x.be, grids[s].rows, grids[s].columns, grids[s].group, grids[s].bits);
		assert_twin(p, "fake_quantize", x, (struct bound){1e-7, 8 * EPS_F32});
		double *got = malloc(n * sizeof *got);
		assert_non_null(got);
		p->ref->ops->real_read(p->ref, got, x.ref, n);
		for (size_t i = 0; i < n; i++) {
			double scale = 0.01f * (float)(1 + i / grids[s].group % 5), level = got[i] / scale;
			assert_true(fabs(level - rint(level)) < 1e-4 && fabs(got[i] - (double)values[i]) <= scale * 0.34);
		}
		free(got);
		free(values);
	}
}
