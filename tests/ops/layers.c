// SPDX-License-Identifier: Apache-2.0
// Layer norm, GELU, added tables and copies against ref, forward and backward. Inputs of about unit size, or larger where the ends of a
// function matter.
#include <math.h>

#include "tests/ops/harness.h"

static const uint32_t widths[] = {2, 33, 64, 577};
#define N_WIDTHS (sizeof widths / sizeof *widths)

void layernorm_matches_ref(void **state)
{
	struct pair *p = *state;
	for (size_t i = 0; i < N_LENGTHS * N_WIDTHS; i++) {
		uint32_t T = lengths[i / N_WIDTHS], C = widths[i % N_WIDTHS];
		size_t n = (size_t)T * C;
		pair_reset(p, i + 1);
		struct twin x = twin_random(p, n, 3), gain = twin_random(p, C, 1), bias = twin_random(p, C, 1), z = twin_poisoned(p, n);
		struct twin_act y = twin_act_poisoned(p, n);
		// two values can be near each other (C = 2): their difference has few digits
		struct bound b = {C == 2 ? 1e-3 : 40 * EPS_F32, 20 * EPS_F32}, rounded = {b.a, b.r + p->eps_act};
		p->ref->ops->layernorm(p->ref, y.ref, z.ref, x.ref, gain.ref, bias.ref, 1e-5f, T, C);
		p->be->ops->layernorm(p->be, y.be, z.be, x.be, gain.be, bias.be, 1e-5f, T, C);
		assert_twin_act(p, "layernorm", y, rounded);
		assert_twin(p, "layernorm, real", z, b);
		struct twin_act alone = twin_act_poisoned(p, n);
		p->be->ops->layernorm(p->be, alone.be, NULL, x.be, gain.be, bias.be, 1e-5f, T, C);
		p->be->ops->layernorm(p->be, NULL, x.be, x.be, gain.be, bias.be, 1e-5f, T, C);
		alone.ref = y.ref;
		x.ref = z.ref;
		assert_twin_act(p, "layernorm without real", alone, rounded);
		assert_twin(p, "layernorm in place", x, b);
	}
}

// A row far from zero: the variance must not be a difference of large squares.
void layernorm_keeps_the_digits_of_rows_far_from_zero(void **state)
{
	struct pair *p = *state;
	float values[3 * 65], ones[65], zeros[65] = {0};
	pair_reset(p, 9);
	random_fill(&p->random, values, 3 * 65, 1);
	for (int i = 0; i < 3 * 65; i++)
		values[i] = roundf(values[i] * 64) / 64 + 4096;      // exact in float
	for (int i = 0; i < 65; i++)
		ones[i] = 1;
	struct twin x = twin_values(p, values, 3 * 65), gain = twin_values(p, ones, 65), bias = twin_values(p, zeros, 65);
	struct twin z = twin_poisoned(p, 3 * 65);
	p->ref->ops->layernorm(p->ref, NULL, z.ref, x.ref, gain.ref, bias.ref, 1e-5f, 3, 65);
	p->be->ops->layernorm(p->be, NULL, z.be, x.be, gain.be, bias.be, 1e-5f, 3, 65);
	assert_twin(p, "layernorm far from zero", z, (struct bound){4096 * 4 * EPS_F32, 0});
}

void layernorm_backward_matches_ref(void **state)
{
	struct pair *p = *state;
	for (size_t i = 0; i < N_LENGTHS * N_WIDTHS; i++) {
		uint32_t T = lengths[i / N_WIDTHS], C = widths[i % N_WIDTHS];
		size_t n = (size_t)T * C;
		pair_reset(p, i + 1);
		struct twin x = twin_random(p, n, 3), gain = twin_random(p, C, 1), dgain = twin_random(p, C, 1),
			dbias = twin_random(p, C, 1);
		struct twin dx = twin_random(p, n, 1), dz = twin_random(p, n, 1);
		struct twin_act dy = twin_act_random(p, n, 1);
		struct bound rows = {C == 2 ? 1e-2 : 80 * EPS_F32, 80 * EPS_F32},
			sums = {(C == 2 ? 400 : 60) * sqrt(T) * EPS_F32, 40 * EPS_F32};
		p->ref->ops->layernorm_backward(p->ref, dx.ref, dgain.ref, dbias.ref, dy.ref, NULL, x.ref, gain.ref, 1e-2f, T, C);
		p->be->ops->layernorm_backward(p->be, dx.be, dgain.be, dbias.be, dy.be, NULL, x.be, gain.be, 1e-2f, T, C);
		assert_twin(p, "layernorm_backward dx", dx, rows);
		assert_twin(p, "layernorm_backward dgain", dgain, sums);
		assert_twin(p, "layernorm_backward dbias", dbias, sums);
		p->ref->ops->layernorm_backward(p->ref, dx.ref, dgain.ref, dbias.ref, NULL, dz.ref, x.ref, gain.ref, 1e-2f, T, C);
		p->be->ops->layernorm_backward(p->be, dx.be, dgain.be, dbias.be, NULL, dz.be, x.be, gain.be, 1e-2f, T, C);
		assert_twin(p, "layernorm_backward of real alone", dx, rows);
		p->ref->ops->layernorm_backward(p->ref, dz.ref, dgain.ref, dbias.ref, dy.ref, dz.ref, x.ref, gain.ref, 1e-2f, T, C);
		p->be->ops->layernorm_backward(p->be, dz.be, dgain.be, dbias.be, dy.be, dz.be, x.be, gain.be, 1e-2f, T, C);
		assert_twin(p, "layernorm_backward in the place of dz", dz, rows);
		assert_twin(p, "layernorm_backward dgain of three", dgain, (struct bound){3 * sums.a, sums.r});
		assert_twin(p, "layernorm_backward dbias of three", dbias, (struct bound){3 * sums.a, sums.r});
	}
}

void gelu_matches_ref(void **state)
{
	struct pair *p = *state;
	static const uint32_t sizes[] = {1, 33, 192};
	static const float scales[] = {0.1f, 2, 9, 60};
	for (size_t i = 0; i < 2 * N_LENGTHS * 3 * 4; i++) {
		enum gelu form = i % 2 ? GELU_TANH : GELU_ERF;
		uint32_t rows = lengths[i / 2 % N_LENGTHS], F = sizes[i / 2 / N_LENGTHS % 3];
		size_t n = (size_t)rows * F;
		float scale = scales[i / 2 / N_LENGTHS / 3];
		pair_reset(p, i + 1);
		struct twin_act x = twin_act_random(p, n, scale), y = twin_act_poisoned(p, n), dy = twin_act_random(p, n, 1);
		struct twin_act dx = twin_act_poisoned(p, n);
		p->ref->ops->gelu(p->ref, y.ref, x.ref, form, rows, F);
		p->be->ops->gelu(p->be, y.be, x.be, form, rows, F);
		// e^(-x^2/2) carries the rounding of its exponent: where that is worth mentioning the value is below 1e-3
		assert_twin_act(p, form ? "gelu by tanh" : "gelu by erf", y, (struct bound){4 * EPS_F32, 24 * EPS_F32 + p->eps_act});
		p->ref->ops->gelu_backward(p->ref, dx.ref, dy.ref, x.ref, form, rows, F);
		p->be->ops->gelu_backward(p->be, dx.be, dy.be, x.be, form, rows, F);
		struct bound b = {80 * EPS_F32, 24 * EPS_F32 + p->eps_act};
		assert_twin_act(p, "gelu_backward", dx, b);
		p->be->ops->gelu_backward(p->be, dy.be, dy.be, x.be, form, rows, F);
		dy.ref = dx.ref;
		assert_twin_act(p, "gelu_backward in place", dy, b);
	}
}

void embed_add_matches_ref(void **state)
{
	struct pair *p = *state;
	for (size_t i = 0; i < 2 * N_LENGTHS; i++) {
		uint32_t T = lengths[i / 2], C = i / 2 % 2 ? 33 : 64;
		bool by_position = i % 2;
		pair_reset(p, i + 1);
		pair_begin(p, T, 5);
		struct twin x = twin_random(p, (size_t)T * C, 1), table = twin_random(p, (size_t)T * C, 1),
			dtable = twin_random(p, (size_t)T * C, 1);
		p->ref->ops->embed_add(p->ref, x.ref, table.ref, by_position, C);
		p->be->ops->embed_add(p->be, x.be, table.be, by_position, C);
		assert_twin(p, "embed_add", x, (struct bound){2 * EPS_F32, EPS_F32});
		p->ref->ops->embed_add_backward(p->ref, dtable.ref, x.ref, by_position, C);
		p->be->ops->embed_add_backward(p->be, dtable.be, x.be, by_position, C);
		assert_twin(p, "embed_add_backward", dtable, (struct bound){T * 4 * EPS_F32, 4 * EPS_F32});
	}
}

void copies_match_ref(void **state)
{
	struct pair *p = *state;
	static const uint32_t sizes[] = {1, 33, 4097};
	for (int i = 0; i < 3; i++) {
		pair_reset(p, sizes[i]);
		struct twin x = twin_random(p, sizes[i], 1), back = twin_poisoned(p, sizes[i]);
		struct twin_act y = twin_act_poisoned(p, sizes[i]), z = twin_act_random(p, sizes[i], 1);
		p->ref->ops->narrow(p->ref, y.ref, x.ref, y.n);
		p->be->ops->narrow(p->be, y.be, x.be, y.n);
		assert_twin_act(p, "narrow", y, (struct bound){0, p->eps_act > EPS_F32 ? p->eps_act : 0});
		p->ref->ops->widen(p->ref, back.ref, z.ref, z.n);
		p->be->ops->widen(p->be, back.be, z.be, z.n);
		assert_twin(p, "widen", back, (struct bound){0, 0});
	}
}

void geglu_matches_ref(void **state)
{
	struct pair *p = *state;
	static const uint32_t sizes[] = {1, 33, 192};
	for (int i = 0; i < N_LENGTHS * 3; i++) {
		uint32_t rows = lengths[i / 3], F = sizes[i % 3];
		pair_reset(p, (uint64_t)i + 1);
		struct twin_act x = twin_act_random(p, (size_t)rows * 2 * F, i % 2 ? 9 : 2), y = twin_act_poisoned(p, (size_t)rows * F);
		p->ref->ops->geglu(p->ref, y.ref, x.ref, rows, F);
		p->be->ops->geglu(p->be, y.be, x.be, rows, F);
		assert_twin_act(p, "geglu", y, (struct bound){100 * EPS_F32, 32 * EPS_F32 + p->eps_act});
	}
}

void rows_added_match_ref(void **state)
{
	struct pair *p = *state;
	static const uint32_t rows[] = {64, 0, 3, 63, 17};
	static const float scales[] = {0.25f, 1, 0, -2, 0.1f};
	const uint32_t T = 65, C = 33, n = 5;
	pair_reset(p, 3);
	struct twin x = twin_random(p, T * C, 1), y = twin_random(p, n * C, 1);
	p->ref->ops->add_rows(p->ref, x.ref, y.ref, rows, scales, n, C);
	p->be->ops->add_rows(p->be, x.be, y.be, rows, scales, n, C);
	assert_twin(p, "add_rows", x, (struct bound){8 * EPS_F32, EPS_F32});
}

// The cap's whole range: where it is the identity, where it bends, where it is flat.
void soft_caps_match_ref(void **state)
{
	struct pair *p = *state;
	static const float scales[] = {0.01f, 5, 30, 300, 1e6f};
	static const uint32_t sizes[] = {1, 33, 9001};
	for (size_t i = 0; i < 15; i++) {
		pair_reset(p, i + 1);
		struct twin x = twin_random(p, sizes[i % 3], scales[i / 3]);
		p->ref->ops->soft_cap(p->ref, x.ref, 30, x.n);
		p->be->ops->soft_cap(p->be, x.be, 30, x.n);
		assert_twin(p, "soft_cap", x, (struct bound){1e-30, 12 * EPS_F32});
	}
}
