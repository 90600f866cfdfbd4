// SPDX-License-Identifier: Apache-2.0
// Every backward operation of ref against central differences of its forward operation, in double precision. The loss is
// sum(c y) with random c, so that backward gets dy = c; each element of each input is nudged in turn.
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <cmocka.h>

#include "kernels/ref/ref.h"
#include "tests/ops/harness.h"

#define MAX_ARRAYS 24
#define T 7            // three sequences: 1, 1 and 5 positions (pair_begin)
#define STEP 1e-5      // truncation h^2 and rounding 1e-16 / h are both near 1e-10

static struct pair pair;
static double *arrays[MAX_ARRAYS];
static int n_arrays;

static double *array(size_t n, double scale)
{
	double *x = calloc(n, sizeof *x);
	assert_true(x && n_arrays < MAX_ARRAYS);
	for (size_t i = 0; i < n; i++)
		x[i] = scale * random_unit(&pair.random);
	return arrays[n_arrays++] = x;
}

static struct real *R(double *x) { return (struct real *)x; }
static struct act *A(double *x) { return (struct act *)x; }

static int forget(void **state)
{
	(void)state;
	while (n_arrays > 0)
		free(arrays[--n_arrays]);
	return 0;
}

// One operation under test: forward() makes y from the inputs that `in` points to.
struct operation {
	void (*forward)(const struct operation *o);
	double *y, *c;
	size_t n_y;
	double *in[4];
	struct attention_shape shape;
	struct weight *w;
	uint32_t rows, N, K;
};

static double loss(const struct operation *o)
{
	o->forward(o);
	return ref_dot(o->y, o->c, o->n_y);
}

// gradient: what backward gave for the input x.
static void assert_gradient(const char *what, const struct operation *o, double *x, const double *gradient, size_t n)
{
	double largest = 0;
	for (size_t i = 0; i < n; i++)
		largest = fmax(largest, fabs(gradient[i]));
	assert_true(largest > 1e-3);    // a gradient of nothing would prove nothing
	for (size_t i = 0; i < n; i++) {
		double kept = x[i];
		x[i] = kept + STEP;
		double up = loss(o);
		x[i] = kept - STEP;
		double down = loss(o);
		x[i] = kept;
		double difference = (up - down) / (2 * STEP);
		if (!(fabs(difference - gradient[i]) <= 1e-6 * largest))
			fail_msg("%s[%zu]: backward %.12g, differences %.12g (largest %.3g)", what, i, gradient[i], difference, largest);
	}
}

// Where backward adds: starts at 1 everywhere and the ones are taken off again.
static double *ones(size_t n)
{
	double *x = array(n, 0);
	for (size_t i = 0; i < n; i++)
		x[i] = 1;
	return x;
}

static double *take_ones(double *x, size_t n)
{
	for (size_t i = 0; i < n; i++)
		x[i] -= 1;
	return x;
}

static void begin(uint64_t seed)
{
	pair_reset(&pair, seed);
	pair_begin(&pair, T, 5);
}

static void embed_forward(const struct operation *o)
{
	ref_embed(pair.ref, R(o->y), o->w);
}

static void embed_backward_is_the_gradient(void **state)
{
	(void)state;
	begin(1);
	const size_t V = 5, C = 3;
	struct operation o = {.forward = embed_forward, .y = array(T * C, 0), .c = array(T * C, 1), .n_y = T * C, .in = {array(V * C, 1)}};
	o.w = ref_weight_view(pair.ref, R(o.in[0]), V, C, NULL);
	double *dw = ones(V * C);
	ref_embed_backward(pair.ref, R(dw), R(o.c), C);
	assert_gradient("embed dw", &o, o.in[0], take_ones(dw, V * C), V * C);
	ref_weight_free(pair.ref, o.w);
}

static void rmsnorm_forward(const struct operation *o)
{
	ref_rmsnorm(pair.ref, A(o->y), R(o->in[0]), R(o->in[1]), 1e-2f, o->rows, o->K);
}

static void rmsnorm_backward_is_the_gradient(void **state)
{
	(void)state;
	begin(2);
	const uint32_t rows = 5, C = 6, n = rows * C;
	struct operation o = {.forward = rmsnorm_forward, .y = array(n, 0), .c = array(n, 1), .n_y = n, .in = {array(n, 1), array(C, 1)},
			      .rows = rows, .K = C};
	double *dx = ones(n), *dgain = ones(C);
	ref_rmsnorm_backward(pair.ref, R(dx), R(dgain), A(o.c), R(o.in[0]), R(o.in[1]), 1e-2f, rows, C);
	assert_gradient("rmsnorm dx", &o, o.in[0], take_ones(dx, n), n);
	assert_gradient("rmsnorm dgain", &o, o.in[1], take_ones(dgain, C), C);
}

static void head_norm_forward(const struct operation *o)
{
	ref_head_norm(pair.ref, A(o->y), A(o->in[0]), R(o->in[1]), R(o->in[2]), &o->shape, 1e-2f);
}

static void head_norm_backward_is_the_gradient(void **state)
{
	(void)state;
	begin(3);
	const size_t D = 4, n = T * (4 + 2 * 2) * D;
	struct operation o = {.forward = head_norm_forward, .y = array(n, 0), .c = array(n, 1), .n_y = n,
			      .in = {array(n, 1), array(D, 1), array(D, 1)}, .shape = {4, 2, (uint32_t)D, 0.5f, false, 0, 0}};
	double *dx = array(n, 1), *dq = ones(D), *dk = ones(D);
	ref_head_norm_backward(pair.ref, A(dx), R(dq), R(dk), A(o.c), A(o.in[0]), R(o.in[1]), R(o.in[2]), &o.shape, 1e-2f);
	assert_gradient("head_norm dx", &o, o.in[0], dx, n);
	assert_gradient("head_norm dq_gain", &o, o.in[1], take_ones(dq, D), D);
	assert_gradient("head_norm dk_gain", &o, o.in[2], take_ones(dk, D), D);
}

static void linear_forward(const struct operation *o)
{
	ref_linear(pair.ref, A(o->y), A(o->in[0]), o->w, R(o->in[2]), o->rows);
}

static void linear_real_forward(const struct operation *o)
{
	ref_linear_real(pair.ref, R(o->y), false, A(o->in[0]), o->w, R(o->in[2]), o->rows);
}

static void linear_backward_is_the_gradient(void **state)
{
	(void)state;
	begin(4);
	const uint32_t rows = 35, N = 3, K = 4;    // more rows than one tile
	struct operation o = {.forward = linear_forward, .y = array(rows * N, 0), .c = array(rows * N, 1), .n_y = rows * N,
			      .in = {array(rows * K, 1), array(N * K, 1), array(N, 1)}, .rows = rows, .N = N, .K = K};
	o.w = ref_weight_view(pair.ref, R(o.in[1]), N, K, NULL);
	double *dx = array(rows * K, 1), *dw = ones(N * K), *dbias = ones(N);
	ref_linear_backward(pair.ref, A(dx), R(dw), R(dbias), A(o.c), A(o.in[0]), o.w, rows);
	assert_gradient("linear dx", &o, o.in[0], dx, rows * K);
	assert_gradient("linear dw", &o, o.in[1], take_ones(dw, N * K), N * K);
	assert_gradient("linear dbias", &o, o.in[2], take_ones(dbias, N), N);
	double *dx_real = array(rows * K, 1), *dw_real = ones(N * K), *dbias_real = ones(N);
	o.forward = linear_real_forward;
	ref_linear_real_backward(pair.ref, A(dx_real), R(dw_real), R(dbias_real), R(o.c), A(o.in[0]), o.w, rows);
	assert_gradient("linear_real dx", &o, o.in[0], dx_real, rows * K);
	assert_gradient("linear_real dw", &o, o.in[1], take_ones(dw_real, N * K), N * K);
	assert_gradient("linear_real dbias", &o, o.in[2], take_ones(dbias_real, N), N);
	ref_weight_free(pair.ref, o.w);
}

static void rope_forward(const struct operation *o)
{
	for (size_t i = 0; i < o->n_y; i++)
		o->y[i] = o->in[0][i];
	ref_rope(pair.ref, A(o->y), R(o->in[1]), R(o->in[2]), o->K, &o->shape, false);
}

static void rope_inverse_is_the_gradient(void **state)
{
	(void)state;
	begin(5);
	const size_t D = 6, turned = 4, n = T * (2 + 2 * 1) * D;
	struct operation o = {.forward = rope_forward, .K = turned, .y = array(n, 0), .c = array(n, 1), .n_y = n,
			      .in = {array(n, 1), array(T * turned / 2, 1), array(T * turned / 2, 1)},
			      .shape = {2, 1, (uint32_t)D, 0.5f, false, 0, 0}};
	double *dx = array(n, 0);
	for (size_t i = 0; i < n; i++)
		dx[i] = o.c[i];
	ref_rope(pair.ref, A(dx), R(o.in[1]), R(o.in[2]), o.K, &o.shape, true);
	assert_gradient("rope", &o, o.in[0], dx, n);
}

static void attention_forward(const struct operation *o)
{
	ref_attention(pair.ref, A(o->y), R(o->in[1]), A(o->in[0]), &o->shape);
}

static void check_attention(bool bidirectional, uint32_t window, float soft_cap)
{
	begin(6);
	const size_t D = 4, NH = 4, n = T * (NH + 2 * 2) * D, n_y = T * NH * D;
	struct operation o = {.forward = attention_forward, .y = array(n_y, 0), .c = array(n_y, 1), .n_y = n_y,
			      .in = {array(n, 1), array(T * NH, 0)}, .shape = {
			      (uint32_t)NH, 2, (uint32_t)D, 0.5f, bidirectional, window, soft_cap}};
	double *dqkv = array(n, 1);
	o.forward(&o);
	ref_attention_backward(pair.ref, A(dqkv), A(o.c), A(o.in[0]), A(o.y), R(o.in[1]), &o.shape);
	assert_gradient("attention", &o, o.in[0], dqkv, n);
}

static void attention_backward_is_the_gradient(void **state)
{
	(void)state;
	check_attention(false, 0, 0);
	forget(NULL);
	check_attention(true, 0, 0);
	forget(NULL);
	check_attention(false, 2, 0);
	forget(NULL);
	check_attention(false, 3, 0.8f);
}

static void layernorm_forward(const struct operation *o)
{
	ref_layernorm(pair.ref, A(o->y), NULL, R(o->in[0]), R(o->in[1]), R(o->in[2]), 1e-2f, o->rows, o->K);
}

static void layernorm_backward_is_the_gradient(void **state)
{
	(void)state;
	begin(10);
	const uint32_t rows = 5, C = 6, n = rows * C;
	struct operation o = {.forward = layernorm_forward, .y = array(n, 0), .c = array(n, 1), .n_y = n,
			      .in = {array(n, 1), array(C, 1), array(C, 1)}, .rows = rows, .K = C};
	double *dx = ones(n), *dgain = ones(C), *dbias = ones(C), *half = array(n, 0), *in_place = array(n, 0);
	ref_layernorm_backward(pair.ref, R(dx), R(dgain), R(dbias), A(o.c), NULL, R(o.in[0]), R(o.in[1]), 1e-2f, rows, C);
	assert_gradient("layernorm dx", &o, o.in[0], take_ones(dx, n), n);
	assert_gradient("layernorm dgain", &o, o.in[1], take_ones(dgain, C), C);
	assert_gradient("layernorm dbias", &o, o.in[2], take_ones(dbias, C), C);
	for (uint32_t i = 0; i < n; i++)
		half[i] = in_place[i] = o.c[i] / 2;
	ref_layernorm_backward(pair.ref, R(in_place), R(dgain), R(dbias), A(half), R(in_place), R(o.in[0]), R(o.in[1]), 1e-2f, rows, C);
	assert_gradient("layernorm dx of both results", &o, o.in[0], in_place, n);
	for (uint32_t i = 0; i < C; i++)
		dgain[i] /= 2;    // both passes added the same
	assert_gradient("layernorm dgain of both results", &o, o.in[1], dgain, C);
}

static void gelu_forward(const struct operation *o)
{
	ref_gelu(pair.ref, A(o->y), A(o->in[0]), o->N ? GELU_TANH : GELU_ERF, o->rows, o->K);
}

static void gelu_backward_is_the_gradient(void **state)
{
	(void)state;
	for (uint32_t form = 0; form < 2; form++) {
		begin(11);
		const uint32_t rows = 5, F = 6, n = rows * F;
		struct operation o = {.forward = gelu_forward, .y = array(n, 0), .c = array(n, 1), .n_y = n, .in = {array(n, 3)},
				      .rows = rows, .N = form, .K = F};
		double *dx = array(n, 1);
		ref_gelu_backward(pair.ref, A(dx), A(o.c), A(o.in[0]), form ? GELU_TANH : GELU_ERF, rows, F);
		assert_gradient(form ? "gelu by tanh" : "gelu by erf", &o, o.in[0], dx, n);
		forget(NULL);
	}
}

static void embed_add_forward(const struct operation *o)
{
	for (size_t i = 0; i < o->n_y; i++)
		o->y[i] = 0;
	ref_embed_add(pair.ref, R(o->y), R(o->in[0]), o->N, o->K);
}

static void embed_add_backward_is_the_gradient(void **state)
{
	(void)state;
	for (uint32_t by_position = 0; by_position < 2; by_position++) {
		begin(12);
		const uint32_t C = 3, n = (by_position ? 5 : 1) * C;    // the longest sequence has 5 positions
		struct operation o = {.forward = embed_add_forward, .y = array(T * C, 0), .c = array(T * C, 1), .n_y = T * C,
				      .in = {array(n, 1)}, .N = by_position, .K = C};
		double *dtable = ones(n);
		ref_embed_add_backward(pair.ref, R(dtable), R(o.c), by_position, C);
		assert_gradient("embed_add", &o, o.in[0], take_ones(dtable, n), n);
		forget(NULL);
	}
}

static void swiglu_forward(const struct operation *o)
{
	ref_swiglu(pair.ref, A(o->y), A(o->in[0]), o->rows, o->N);
}

static void swiglu_backward_is_the_gradient(void **state)
{
	(void)state;
	begin(7);
	const uint32_t rows = 5, F = 6, n = rows * F;
	struct operation o = {.forward = swiglu_forward, .y = array(n, 0), .c = array(n, 1), .n_y = n, .in = {array(2 * n, 2)},
			      .rows = rows, .N = F};
	double *dx = array(2 * n, 1);
	ref_swiglu_backward(pair.ref, A(dx), A(o.c), A(o.in[0]), rows, F);
	assert_gradient("swiglu", &o, o.in[0], dx, 2 * n);
}

static void rows_forward(const struct operation *o)
{
	static const uint32_t rows[] = {6, 0, 3};
	ref_pick_rows(pair.ref, A(o->y), A(o->in[0]), rows, 3, o->K);
}

static void put_rows_is_the_gradient_of_pick_rows(void **state)
{
	(void)state;
	begin(8);
	static const uint32_t rows[] = {6, 0, 3};
	const uint32_t C = 4;
	struct operation o = {.forward = rows_forward, .y = array(3 * C, 0), .c = array(3 * C, 1), .n_y = 3 * C,
		.in = {array(T * C, 1)}, .K = C};
	double *dx = array(T * C, 1);
	ref_put_rows(pair.ref, A(dx), A(o.c), rows, 3, T, C);
	assert_gradient("rows", &o, o.in[0], dx, T * C);
}

// Soft cross-entropy at two temperatures with targets on a few ids: - sum over terms and ids of t log softmax(z / tau).
#define SOFT_V 9
static const float soft_temperatures[] = {1, 2.5f};
static const uint32_t soft_ids[] = {2, 7, 2};
static const double soft_targets[] = {0.4, 0.35, 0.25};

static void soft_forward(const struct operation *o)
{
	const double *z = o->in[0];
	double lse[2];
	struct sweep_row row = {.n_temperatures = 2, .temperatures = soft_temperatures, .lse = lse};
	ref_sweep(pair.ref, R(o->in[0]), 1, SOFT_V, &row);
	o->y[0] = 0;
	for (int i = 0; i < 2; i++)
		for (int j = 0; j < 3; j++)
			o->y[0] -= soft_targets[j] * (z[soft_ids[j]] / soft_temperatures[i] - lse[i]);
}

static void softmax_grad_is_the_gradient_of_cross_entropy(void **state)
{
	(void)state;
	begin(9);
	struct operation o = {.forward = soft_forward, .y = array(1, 0), .c = ones(1), .n_y = 1, .in = {array(SOFT_V, 2)}};
	double lse[2], scales[] = {1, 1 / 2.5}, corrections[6], *dz = array(SOFT_V, 0);
	uint32_t ids[6];
	struct sweep_row row = {.n_temperatures = 2, .temperatures = soft_temperatures, .lse = lse};
	ref_sweep(pair.ref, R(o.in[0]), 1, SOFT_V, &row);
	for (int i = 0; i < 6; i++) {
		ids[i] = soft_ids[i % 3];
		corrections[i] = -soft_targets[i % 3] * scales[i / 3];
	}
	for (int i = 0; i < SOFT_V; i++)
		dz[i] = o.in[0][i];
	struct softmax_grad_row grad = {2, soft_temperatures, lse, scales, 6, ids, corrections};
	ref_softmax_grad(pair.ref, R(dz), 1, SOFT_V, &grad);
	assert_gradient("softmax", &o, o.in[0], dz, SOFT_V);
}

#define GRADIENT(f) cmocka_unit_test_teardown(f, forget)

int main(void)
{
	const struct CMUnitTest tests[] = {
		GRADIENT(embed_backward_is_the_gradient),
		GRADIENT(rmsnorm_backward_is_the_gradient),
		GRADIENT(head_norm_backward_is_the_gradient),
		GRADIENT(linear_backward_is_the_gradient),
		GRADIENT(rope_inverse_is_the_gradient),
		GRADIENT(attention_backward_is_the_gradient),
		GRADIENT(swiglu_backward_is_the_gradient),
		GRADIENT(layernorm_backward_is_the_gradient),
		GRADIENT(gelu_backward_is_the_gradient),
		GRADIENT(embed_add_backward_is_the_gradient),
		GRADIENT(put_rows_is_the_gradient_of_pick_rows),
		GRADIENT(softmax_grad_is_the_gradient_of_cross_entropy),
	};
	int r = pair_open(&pair, "ref", BACKEND_NUMERIC_F32, 1);
	if (r != 0)
		return r;
	r = cmocka_run_group_tests(tests, NULL, NULL);
	pair_close(&pair);
	return r;
}
