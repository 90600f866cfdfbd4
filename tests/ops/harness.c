// SPDX-License-Identifier: Apache-2.0
#include "tests/ops/harness.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/error.h"

const uint32_t lengths[N_LENGTHS] = {1, 3, 64, 65, 130};

// One thing to free; which pointer is set says what it is.
struct made {
	struct made *next;
	struct backend *be;
	struct real *real;
	struct act *act;
	struct weight *weight;
};

static struct made *remember(struct pair *p, struct backend *be)
{
	struct made *m = calloc(1, sizeof *m);
	assert_non_null(m);
	m->be = be;
	m->next = p->made;
	p->made = m;
	return m;
}

static struct real *make_real(struct pair *p, struct backend *be, size_t n)
{
	struct real *x = be->ops->real_new(be, n, NULL);
	assert_non_null(x);
	return remember(p, be)->real = x;
}

static struct act *make_act(struct pair *p, struct backend *be, size_t n)
{
	struct act *x = be->ops->act_new(be, n, NULL);
	assert_non_null(x);
	return remember(p, be)->act = x;
}

static void *allocate(size_t n, size_t size)
{
	void *x = calloc(n ? n : 1, size);
	assert_non_null(x);
	return x;
}

// Rounds of 1/3 and of 1/3 * 1.01 tell how many digits act arrays keep.
static double act_roundoff(struct backend *be)
{
	float third[2] = {1.0f / 3, 1.01f / 3};
	double back[2];
	struct act *x = be->ops->act_new(be, 2, NULL);
	assert_non_null(x);
	be->ops->act_write(be, x, third, 2);
	be->ops->act_read(be, back, x, 2);
	be->ops->act_free(be, x);
	return fabs(back[0] - third[0]) + fabs(back[1] - third[1]) > 1e-5 ? 0x1p-8 : EPS_F32;
}

int pair_open(struct pair *p, const char *name, enum backend_numeric numeric, uint32_t n_threads)
{
	struct error err = {0};
	struct backend_options options = {.n_threads = n_threads, .numeric = numeric, .max_rows = MAX_ROWS};
	*p = (struct pair){0};
	int r = backend_open(name, &options, &p->be, &err);
	if (r == -EOPNOTSUPP) {
		fprintf(stderr, "skipped: %s\n", err.message);
		return 77;
	}
	if (r == 0)
		r = backend_open("ref", &options, &p->ref, &err);
	if (r < 0) {
		fprintf(stderr, "%s\n", err.message);
		pair_close(p);
		return 1;
	}
	const char *products = p->be->numeric;
	bool exact = strncmp(products, "f32", 3) == 0 || strncmp(products, "f64", 3) == 0 || strncmp(products, "int8", 4) == 0 ||
		     strcmp(products, "fp8-f64") == 0;
	bool bf16 = strncmp(products, "bf16", 4) == 0 || strcmp(products, "fp8") == 0;       // of fp8, plain matrices
	p->eps_act = act_roundoff(p->be);
	p->eps_product = exact ? EPS_F32 : bf16 ? 0x1p-8 : 0x1p-7;
	p->eps_attention = strcmp(products, "bf16") == 0 || strcmp(products, "int8") == 0 ? fmax(p->eps_act, 0x1p-8) : p->eps_act;
	p->eps_view = numeric == BACKEND_NUMERIC_BF16 ? fmax(p->eps_act, p->eps_product) : p->eps_act;
	printf("# %s, products in %s, %s\n", name, products, p->be->description);
	return 0;
}

void pair_close(struct pair *p)
{
	pair_reset(p, 0);
	backend_close(p->be);
	backend_close(p->ref);
	*p = (struct pair){0};
}

void pair_reset(struct pair *p, uint64_t seed)
{
	for (struct made *m = p->made, *next; m; m = next) {
		next = m->next;
		if (m->real)
			m->be->ops->real_free(m->be, m->real);
		if (m->act)
			m->be->ops->act_free(m->be, m->act);
		if (m->weight)
			m->be->ops->weight_free(m->be, m->weight);
		free(m);
	}
	p->made = NULL;
	p->random = seed;
}

double random_unit(uint64_t *state)
{
	uint64_t z = *state += UINT64_C(0x9e3779b97f4a7c15);    // splitmix64
	z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
	z ^= z >> 31;
	return ((double)(z >> 11) * 0x1p-53 * 2 - 1) * sqrt(3);
}

void random_fill(uint64_t *state, float *x, size_t n, float scale)
{
	for (size_t i = 0; i < n; i++)
		x[i] = scale * (float)random_unit(state);
}

void pair_begin(struct pair *p, uint32_t T, uint32_t V)
{
	struct batch *b = &p->batch;
	uint32_t n = T < 4 ? 1 : 3;
	assert_true(T <= MAX_ROWS);
	b->starts[0] = 0;
	b->starts[1] = n == 1 ? T : 1;
	b->starts[2] = n == 1 ? T : T / 3;
	b->starts[n] = T;
	for (uint32_t s = 0; s < n; s++)
		for (uint32_t t = b->starts[s]; t < b->starts[s + 1]; t++)
			b->positions[t] = t - b->starts[s];
	for (uint32_t t = 0; t < T; t++)
		b->tokens[t] = (uint32_t)((t * 7919u + T) % V);
	b->layout = (struct layout){.n_positions = T, .n_sequences = n, .tokens = b->tokens, .positions = b->positions,
		.starts = b->starts};
	p->ref->ops->begin(p->ref, &b->layout);
	p->be->ops->begin(p->be, &b->layout);
}

static struct twin twin_new(struct pair *p, size_t n)
{
	return (struct twin){make_real(p, p->ref, n), make_real(p, p->be, n), n};
}

static struct twin_act twin_act_new(struct pair *p, size_t n)
{
	return (struct twin_act){make_act(p, p->ref, n), make_act(p, p->be, n), n};
}

struct twin twin_values(struct pair *p, const float *values, size_t n)
{
	struct twin t = twin_new(p, n);
	p->be->ops->real_write(p->be, t.be, values, n);
	p->ref->ops->real_write(p->ref, t.ref, values, n);
	return t;
}

// The backend may round what it is given: ref gets what the backend kept.
static struct twin_act twin_act_values(struct pair *p, float *values, size_t n)
{
	struct twin_act t = twin_act_new(p, n);
	double *kept = allocate(n, sizeof *kept);
	p->be->ops->act_write(p->be, t.be, values, n);
	p->be->ops->act_read(p->be, kept, t.be, n);
	for (size_t i = 0; i < n; i++)
		values[i] = (float)kept[i];
	p->ref->ops->act_write(p->ref, t.ref, values, n);
	free(kept);
	return t;
}

struct twin twin_random(struct pair *p, size_t n, float scale)
{
	float *values = allocate(n, sizeof *values);
	random_fill(&p->random, values, n, scale);
	struct twin t = twin_values(p, values, n);
	free(values);
	return t;
}

struct twin_act twin_act_random(struct pair *p, size_t n, float scale)
{
	float *values = allocate(n, sizeof *values);
	random_fill(&p->random, values, n, scale);
	struct twin_act t = twin_act_values(p, values, n);
	free(values);
	return t;
}

static float *poison(size_t n)
{
	float *values = allocate(n, sizeof *values);
	for (size_t i = 0; i < n; i++)
		values[i] = NAN;
	return values;
}

struct twin twin_poisoned(struct pair *p, size_t n)
{
	float *values = poison(n);
	struct twin t = twin_values(p, values, n);
	free(values);
	return t;
}

struct twin_act twin_act_poisoned(struct pair *p, size_t n)
{
	float *values = poison(n);
	struct twin_act t = twin_act_values(p, values, n);
	free(values);
	return t;
}

static float *to_float(const double *values, size_t n)
{
	float *f = allocate(n, sizeof *f);
	for (size_t i = 0; i < n; i++)
		f[i] = (float)values[i];
	return f;
}

struct twin twin_of_ref(struct pair *p, const struct real *values, size_t n)
{
	double *d = allocate(n, sizeof *d);
	p->ref->ops->real_read(p->ref, d, values, n);
	float *f = to_float(d, n);
	struct twin t = twin_values(p, f, n);
	free(f);
	free(d);
	return t;
}

struct twin_act twin_act_of_ref(struct pair *p, const struct act *values, size_t n)
{
	double *d = allocate(n, sizeof *d);
	p->ref->ops->act_read(p->ref, d, values, n);
	float *f = to_float(d, n);
	struct twin_act t = twin_act_values(p, f, n);
	free(f);
	free(d);
	return t;
}

static struct twin_weight load_both(struct pair *p, enum weight_kind kind, const struct tensor *parts, uint32_t n_parts)
{
	struct twin_weight w;
	struct error err = {0};
	w.ref = remember(p, p->ref)->weight = p->ref->ops->weight_load(p->ref, kind, parts, n_parts, &err);
	w.be = remember(p, p->be)->weight = p->be->ops->weight_load(p->be, kind, parts, n_parts, &err);
	if (!w.ref || !w.be)
		fail_msg("weight_load: %s", err.message);
	return w;
}

struct twin_weight twin_weight_random(struct pair *p, enum weight_kind kind, uint32_t N, uint32_t K)
{
	size_t n = (size_t)N * K;
	float *values = allocate(n, sizeof *values);
	random_fill(&p->random, values, n, 1 / sqrtf((float)K));
	struct tensor part = tensor_matrix(DTYPE_F32, N, K, values);
	struct twin_weight w = load_both(p, kind, &part, 1);
	free(values);    // a loaded matrix does not keep the file's bytes
	return w;
}

#define PART_ROWS 24

struct twin_weight twin_weight_mixed(struct pair *p, enum weight_kind kind, uint32_t K)
{
	size_t n = (size_t)PART_ROWS * K, n_q8 = n / 32 * 34;
	float scale = 1 / sqrtf((float)K), *values = allocate(n, sizeof *values);
	uint16_t *half = allocate(n, 2), *brain = allocate(n, 2);
	uint8_t *q8 = allocate(n_q8, 1);
	random_fill(&p->random, values, n, scale);
	for (size_t i = 0; i < n; i++) {
		half[i] = float_to_f16(scale * (float)random_unit(&p->random));
		brain[i] = float_to_bf16(scale * (float)random_unit(&p->random));
	}
	for (size_t b = 0; b < n / 32; b++) {    // a block: scale f16, 32 signed bytes
		uint16_t d = float_to_f16(scale / 80);
		memcpy(q8 + b * 34, &d, 2);
		for (size_t i = 0; i < 32; i++)
			q8[b * 34 + 2 + i] = (uint8_t)(int8_t)(random_unit(&p->random) * 70);
	}
	struct tensor parts[] = {tensor_matrix(DTYPE_F32, PART_ROWS, K, values), tensor_matrix(DTYPE_F16, PART_ROWS, K, half),
				 tensor_matrix(DTYPE_BF16, PART_ROWS, K, brain), tensor_matrix(DTYPE_Q8_0, PART_ROWS, K, q8)};
	struct twin_weight w = load_both(p, kind, parts, 4);
	free(values);
	free(half);
	free(brain);
	free(q8);
	return w;
}

struct twin_weight twin_weight_blocks(struct pair *p, enum dtype type, uint32_t N, uint32_t K)
{
	size_t n = N * dtype_row_bytes(type, K);
	uint8_t *bytes = allocate(n, 1);
	for (size_t i = 0; i < n; i++) {
		p->random = p->random * 6364136223846793005u + 1442695040888963407u;
		bytes[i] = (uint8_t)(p->random >> 56) & 0xbf;      // wherever a half is, its exponent is not all ones
	}
	struct tensor part = tensor_matrix(type, N, K, bytes);
	struct twin_weight w = load_both(p, WEIGHT_PLAIN, &part, 1);
	free(bytes);
	return w;
}

struct twin_weight twin_weight_view(struct pair *p, struct twin array, uint32_t N, uint32_t K)
{
	struct twin_weight w;
	w.ref = remember(p, p->ref)->weight = p->ref->ops->weight_view(p->ref, array.ref, N, K, NULL);
	w.be = remember(p, p->be)->weight = p->be->ops->weight_view(p->be, array.be, N, K, NULL);
	assert_non_null(w.ref);
	assert_non_null(w.be);
	p->be->ops->weight_refresh(p->be, w.be);
	return w;
}

struct bound bound_product(const struct pair *p, double eps_operand, size_t K, bool act_result)
{
	// Terms have size 1/sqrt(K) and errors add like a random walk; 10 standard deviations cover the largest of many outputs.
	return (struct bound){10 * eps_operand + 4 * sqrt((double)K) * EPS_F32, 4 * EPS_F32 + (act_result ? 2 * p->eps_act : 0)};
}

void assert_close(const char *what, const double *got, const double *want, size_t n, struct bound b)
{
	size_t worst = 0;
	double excess = 0;
	for (size_t i = 0; i < n; i++) {
		double difference = fabs(got[i] - want[i]), ratio = difference == 0 ? 0 : difference / (b.a + b.r * fabs(want[i]));
		if (isnan(ratio) || ratio > excess) {
			worst = i;
			excess = isnan(ratio) ? INFINITY : ratio;
		}
	}
	if (getenv("OPS_VERBOSE"))
		printf("# %-32s %.3f of the bound\n", what, excess);
	if (excess > 1)
		fail_msg("%s[%zu of %zu]: got %.9g, ref %.9g: difference %.3g, bound %.3g", what, worst, n, got[worst], want[worst],
			 fabs(got[worst] - want[worst]), b.a + b.r * fabs(want[worst]));
}

void assert_twin(struct pair *p, const char *what, struct twin t, struct bound b)
{
	double *got = allocate(t.n, sizeof *got), *want = allocate(t.n, sizeof *want);
	struct error err = {0};
	p->be->ops->real_read(p->be, got, t.be, t.n);
	p->ref->ops->real_read(p->ref, want, t.ref, t.n);
	if (backend_sync(p->be, &err) < 0)
		fail_msg("%s: %s", what, err.message);
	assert_close(what, got, want, t.n, b);
	free(got);
	free(want);
}

void assert_twin_act(struct pair *p, const char *what, struct twin_act t, struct bound b)
{
	double *got = allocate(t.n, sizeof *got), *want = allocate(t.n, sizeof *want);
	struct error err = {0};
	p->be->ops->act_read(p->be, got, t.be, t.n);
	p->ref->ops->act_read(p->ref, want, t.ref, t.n);
	if (backend_sync(p->be, &err) < 0)
		fail_msg("%s: %s", what, err.message);
	assert_close(what, got, want, t.n, b);
	free(got);
	free(want);
}
