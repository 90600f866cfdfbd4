// SPDX-License-Identifier: Apache-2.0
// Time of each operation of a backend in the chain where it is used: all-position scoring of a SmolLM2-135M shape (30 layers, random
// weights), then one training step of a 33 M student. Rows: operation, calls, ms, share, GFLOP/s, share of what the processor's
// multiplications of the numbers that its products take (f32, bf16, int8) were measured to give at best, before and after.
// BENCH_CLOCK=cpu in the environment counts processor time instead (with one thread: figures of a busy machine that can be compared).
// usage: bench_ops [BACKEND=cpu] [THREADS=0] [SEQUENCES=4] [LENGTH=512] [PASSES=5] [NUMERIC=auto|f32|bf16|int8|fp8]
#include <omp.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/error.h"
#include "kernels/backend.h"

struct shape { uint32_t L, C, F, V; struct attention_shape heads; };
static const struct shape teacher = {30, 576, 1536, 49152, {9, 3, 64, 0.125f, false, 0, 0}},
	student = {8, 384, 1024, 49152, {6, 2, 64, 0.125f, false, 0, 0}};

enum { RMSNORM, QKV, ROPE, ATTENTION, OUT, GATE_UP, SWIGLU, DOWN, HEAD, SWEEP, EMBED, COPY,
       SOFTMAX_GRAD, HEAD_BACK, DOWN_BACK, SWIGLU_BACK, GATE_UP_BACK, OUT_BACK, ATTENTION_BACK, ROPE_BACK, QKV_BACK, RMSNORM_BACK,
       EMBED_BACK, CLIP, ADAMW, REFRESH, N_OPS };
static const char *const names[N_OPS] = {
	"rmsnorm", "qkv", "rope", "attention", "out", "gate_up", "swiglu", "down", "head", "sweep", "embed", "copy",
	"softmax_grad", "head_backward", "down_backward", "swiglu_backward", "gate_up_backward", "out_backward", "attention_backward",
	"rope_backward", "qkv_backward", "rmsnorm_backward", "embed_backward", "sum_squares", "adamw", "refresh"};

struct timing { double seconds, flop; unsigned calls; };
static struct timing timings[N_OPS];
static struct backend *be;
static const struct backend_ops *ops;

static clockid_t bench_clock = CLOCK_MONOTONIC;

static double now(void)
{
	struct timespec t;
	clock_gettime(bench_clock, &t);
	return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void die(const struct error *err)
{
	fprintf(stderr, "bench_ops: %s\n", err->message);
	exit(1);
}

#define TIME(op, work, call) do { \
	double t0_ = now(); \
	call; \
	ops->sync(be); \
	timings[op].seconds += now() - t0_; \
	timings[op].flop += (work); \
	timings[op].calls++; \
} while (0)

// What a processor's multiplications give at best, in a form of numbers: sums in 12 registers, nothing read or stored.
enum arithmetic { FLOATS, BFLOATS, BYTES };
static const char *const arithmetics[] = {"f32", "bf16", "int8"};

#if defined(__x86_64__)
typedef float wide256 __attribute__((vector_size(32)));
typedef float wide512 __attribute__((vector_size(64)));
#define PEAK(name, isa, wide, begin, left, right, multiply) \
	__attribute__((target(isa), noinline)) static float name(long n) \
	{ \
		wide x[12], a = left, b = right; \
		for (int i = 0; i < 12; i++) \
			x[i] = begin; \
		for (long k = 0; k < n; k++) { \
			_Pragma("GCC unroll 12") for (int i = 0; i < 12; i++) \
				x[i] = multiply; \
			__asm__ volatile("" : "+x"(a), "+x"(b)); \
		} \
		for (int i = 1; i < 12; i++) \
			x[0] += x[i]; \
		return (float)x[0][0]; \
	}
PEAK(peak256, "avx2,fma", wide256, a + (float)i, {1e-9f}, {0.5f}, x[i] * b + a)
PEAK(peak512, "avx512f", wide512, a + (float)i, {1e-9f}, {0.5f}, x[i] * b + a)
PEAK(peak_bf16, "avx512bf16", wide512, a + (float)i, {1e-9f}, {0.5f},
     (wide512)_mm512_dpbf16_ps((__m512)x[i], (__m512bh)a, (__m512bh)b))
PEAK(peak_int8, "avx512vnni", __m512i, a + i, {1}, {1}, _mm512_dpbusd_epi32(x[i], a, b))

// Operations of one round of a form's loop; 0 where the processor has no instruction of it that is measured here.
static double peak_work(enum arithmetic a)
{
	if (a == BFLOATS)
		return __builtin_cpu_supports("avx512bf16") ? 12 * 64 : 0;
	if (a == BYTES)
		return __builtin_cpu_supports("avx512vnni") ? 12 * 128 : 0;
	return __builtin_cpu_supports("avx512f") ? 12 * 32 : __builtin_cpu_supports("fma") ? 12 * 16 : 0;
}

static float peak_run(enum arithmetic a, long n)
{
	return a == BFLOATS ? peak_bf16(n) : a == BYTES ? peak_int8(n) : __builtin_cpu_supports("avx512f") ? peak512(n) : peak256(n);
}
#else
static double peak_work(enum arithmetic a)
{
	(void)a;
	return 0;
}

static float peak_run(enum arithmetic a, long n)
{
	(void)a;
	return (float)n;
}
#endif

// Operations a second of all threads; 0 where unknown.
static double peak(enum arithmetic a, int n_threads)
{
	const long n = 10000000;
	double best = 0;
	volatile float keep = 0;
	if (peak_work(a) == 0)
		return 0;
	for (int pass = 0; pass < 7; pass++) {
		double t0 = now();
#pragma omp parallel num_threads(n_threads)
		{
			float f = peak_run(a, n);
#pragma omp critical
			keep += f;
		}
		double rate = (double)n * peak_work(a) * n_threads / (now() - t0);
		best = rate > best ? rate : best;
	}
	return best;
}

static enum arithmetic arithmetic_of(const char *numeric)
{
	return strcmp(numeric, "bf16") == 0 ? BFLOATS : strcmp(numeric, "int8") == 0 ? BYTES : FLOATS;
}

static float random_next(uint32_t *state)
{
	*state = *state * 1664525u + 1013904223u;
	return (float)((int)(*state >> 8) % 2001 - 1000) * 1e-3f;
}

static float *random_values(size_t n, float scale)
{
	static uint32_t state = 1;
	float *x = malloc(n * sizeof *x);
	for (size_t i = 0; x && i < n; i++)
		x[i] = scale * random_next(&state);
	if (!x)
		exit(1);
	return x;
}

static struct real *real_random(size_t n, float scale)
{
	struct error err = {0};
	struct real *r = ops->real_new(be, n, &err);
	if (!r)
		die(&err);
	float *x = random_values(n, scale);
	ops->real_write(be, r, x, n);
	free(x);
	return r;
}

static struct act *act_new(size_t n)
{
	struct error err = {0};
	struct act *a = ops->act_new(be, n, &err);
	if (!a)
		die(&err);
	return a;
}

struct matrix { struct weight *w; struct real *values, *gradient; uint32_t N, K; };

static struct matrix matrix_new(uint32_t N, uint32_t K, enum weight_kind kind, bool trainable)
{
	struct error err = {0};
	struct matrix m = {.N = N, .K = K};
	if (trainable) {
		m.values = real_random((size_t)N * K, 0.05f);
		m.gradient = real_random((size_t)N * K, 0);
		m.w = ops->weight_view(be, m.values, N, K, &err);
	} else {
		float *x = random_values((size_t)N * K, 0.05f);
		struct tensor part = tensor_matrix(DTYPE_F32, N, K, x);
		m.w = ops->weight_load(be, kind, &part, 1, &err);
		free(x);
	}
	if (!m.w)
		die(&err);
	return m;
}

struct layer { struct matrix qkv, out, gate_up, down; };

struct model {
	const struct shape *s;
	bool trainable;
	uint32_t T, W, sequences, head_rows;
	struct layer *layers;
	struct matrix head;
	struct real *gain, *cosine, *sine, *x, *dx, *dgain, *lse, *logits;
	struct act *h, *qkv, *heads, *gate_up, *ffn, *dh, *dqkv, *dheads, *dgate_up, *dffn;
	struct sweep_row *rows;
	struct softmax_grad_row *grads;
	double *results;
	uint32_t *ids, *picked;
};

static struct model model_new(const struct shape *s, uint32_t sequences, uint32_t length, bool trainable)
{
	uint32_t T = sequences * length, W = (s->heads.n_heads + 2 * s->heads.n_kv_heads) * s->heads.head_size;
	struct model m = {.s = s, .trainable = trainable, .T = T, .W = W, .sequences = sequences};
	m.head_rows = ops->head_rows < T ? ops->head_rows : T;
	m.layers = calloc(s->L, sizeof *m.layers);
	for (uint32_t i = 0; i < s->L; i++)
		m.layers[i] = (struct layer){
			matrix_new(W, s->C, WEIGHT_BLOCK, trainable), matrix_new(s->C, s->C, WEIGHT_BLOCK, trainable),
			matrix_new(2 * s->F, s->C, WEIGHT_BLOCK, trainable), matrix_new(s->C, s->F, WEIGHT_BLOCK, trainable)};
	m.head = matrix_new(s->V, s->C, WEIGHT_PLAIN, trainable);
	m.gain = real_random(s->C, 1);
	m.dgain = real_random(s->C, 0);
	m.cosine = real_random((size_t)length * s->heads.head_size / 2, 1);
	m.sine = real_random((size_t)length * s->heads.head_size / 2, 1);
	m.x = real_random((size_t)T * s->C, 1);
	m.dx = real_random((size_t)T * s->C, 1);
	m.lse = real_random((size_t)T * s->heads.n_heads, 1);
	m.logits = real_random((size_t)m.head_rows * s->V, 1);
	m.h = act_new((size_t)T * s->C);
	m.dh = act_new((size_t)T * s->C);
	m.heads = act_new((size_t)T * s->C);
	m.dheads = act_new((size_t)T * s->C);
	m.qkv = act_new((size_t)T * W);
	m.dqkv = act_new((size_t)T * W);
	m.gate_up = act_new((size_t)T * 2 * s->F);
	m.dgate_up = act_new((size_t)T * 2 * s->F);
	m.ffn = act_new((size_t)T * s->F);
	m.dffn = act_new((size_t)T * s->F);
	m.rows = calloc(m.head_rows, sizeof *m.rows);
	m.grads = calloc(m.head_rows, sizeof *m.grads);
	m.results = calloc((size_t)m.head_rows * 65, sizeof *m.results);
	m.ids = calloc((size_t)m.head_rows * 64, sizeof *m.ids);
	m.picked = calloc(m.head_rows, sizeof *m.picked);
	static const float one = 1;
	static const double scale = 1e-3;
	for (uint32_t i = 0; i < m.head_rows; i++) {
		m.rows[i] = (struct sweep_row){.top_k = 64, .n_temperatures = 1, .temperatures = &one, .lse = m.results + i * 65,
					       .logits = m.results + i * 65 + 1, .ids = m.ids + (size_t)i * 64};
		m.grads[i] = (struct softmax_grad_row){.n_terms = 1, .temperatures = &one, .lse = m.results + i * 65, .scales = &scale,
						       .n_corrections = 64, .ids = m.ids + (size_t)i * 64,
						       .corrections = m.results + i * 65 + 1};
	}
	return m;
}

static double product_flop(const struct matrix *m, double rows)
{
	return 2.0 * m->N * m->K * rows;
}

// 2 products of 2 D flop per query head and pair of query and earlier key
static double attention_flop(const struct model *m)
{
	double length = (double)m->T / m->sequences;
	return 4.0 * m->s->heads.n_heads * m->s->heads.head_size * m->T * (length + 1) / 2;
}

static void forward(struct model *m, const struct layout *layout)
{
	const struct shape *s = m->s;
	uint32_t T = m->T;
	ops->begin(be, layout);
	TIME(EMBED, 0, ops->embed(be, m->x, m->head.w));
	for (uint32_t i = 0; i < s->L; i++) {
		struct layer *l = &m->layers[i];
		TIME(RMSNORM, 0, ops->rmsnorm(be, m->h, m->x, m->gain, 1e-5f, T, s->C));
		TIME(QKV, product_flop(&l->qkv, T), ops->linear(be, m->qkv, m->h, l->qkv.w, NULL, T));
		TIME(ROPE, 0, ops->rope(be, m->qkv, m->cosine, m->sine, s->heads.head_size, &s->heads, false));
		TIME(ATTENTION, attention_flop(m), ops->attention(be, m->heads, m->trainable ? m->lse : NULL, m->qkv, &s->heads));
		TIME(OUT, product_flop(&l->out, T), ops->linear_real(be, m->x, true, m->heads, l->out.w, NULL, T));
		TIME(RMSNORM, 0, ops->rmsnorm(be, m->h, m->x, m->gain, 1e-5f, T, s->C));
		TIME(GATE_UP, product_flop(&l->gate_up, T), ops->linear(be, m->gate_up, m->h, l->gate_up.w, NULL, T));
		TIME(SWIGLU, 0, ops->swiglu(be, m->ffn, m->gate_up, T, s->F));
		TIME(DOWN, product_flop(&l->down, T), ops->linear_real(be, m->x, true, m->ffn, l->down.w, NULL, T));
	}
	TIME(RMSNORM, 0, ops->rmsnorm(be, m->h, m->x, m->gain, 1e-5f, T, s->C));
}

static void head(struct model *m)
{
	const struct shape *s = m->s;
	for (uint32_t t = 0; t < m->T; t += m->head_rows) {
		uint32_t n = m->T - t < m->head_rows ? m->T - t : m->head_rows;
		struct act *h = ops->act_at(m->h, (size_t)t * s->C);
		TIME(HEAD, product_flop(&m->head, n), ops->linear_real(be, m->logits, false, h, m->head.w, NULL, n));
		TIME(SWEEP, 0, ops->sweep(be, m->logits, n, s->V, m->rows));
		if (!m->trainable)
			continue;
		TIME(SOFTMAX_GRAD, 0, ops->softmax_grad(be, m->logits, n, s->V, m->grads));
		TIME(HEAD_BACK, 2 * product_flop(&m->head, n),
		     ops->linear_real_backward(be, ops->act_at(m->dh, (size_t)t * s->C), m->head.gradient, NULL, m->logits,
		     h, m->head.w, n));
	}
}

static void backward(struct model *m)
{
	const struct shape *s = m->s;
	uint32_t T = m->T;
	TIME(RMSNORM_BACK, 0, ops->rmsnorm_backward(be, m->dx, m->dgain, m->dh, m->x, m->gain, 1e-5f, T, s->C));
	for (uint32_t i = s->L; i-- > 0;) {
		struct layer *l = &m->layers[i];
		TIME(DOWN_BACK, 2 * product_flop(&l->down, T),
		     ops->linear_real_backward(be, m->dffn, l->down.gradient, NULL, m->dx, m->ffn, l->down.w, T));
		TIME(SWIGLU_BACK, 0, ops->swiglu_backward(be, m->dgate_up, m->dffn, m->gate_up, T, s->F));
		TIME(GATE_UP_BACK, 2 * product_flop(&l->gate_up, T),
		     ops->linear_backward(be, m->dh, l->gate_up.gradient, NULL, m->dgate_up, m->h, l->gate_up.w, T));
		TIME(RMSNORM_BACK, 0, ops->rmsnorm_backward(be, m->dx, m->dgain, m->dh, m->x, m->gain, 1e-5f, T, s->C));
		TIME(OUT_BACK, 2 * product_flop(&l->out, T),
		     ops->linear_real_backward(be, m->dheads, l->out.gradient, NULL, m->dx, m->heads, l->out.w, T));
		TIME(ATTENTION_BACK, 2.5 * attention_flop(m),
		     ops->attention_backward(be, m->dqkv, m->dheads, m->qkv, m->heads, m->lse, &s->heads));
		TIME(ROPE_BACK, 0, ops->rope(be, m->dqkv, m->cosine, m->sine, s->heads.head_size, &s->heads, true));
		TIME(QKV_BACK, 2 * product_flop(&l->qkv, T),
			ops->linear_backward(be, m->dh, l->qkv.gradient, NULL, m->dqkv, m->h, l->qkv.w, T));
		TIME(RMSNORM_BACK, 0, ops->rmsnorm_backward(be, m->dx, m->dgain, m->dh, m->x, m->gain, 1e-5f, T, s->C));
	}
	TIME(EMBED_BACK, 0, ops->embed_backward(be, m->head.gradient, m->dx, s->C));
}

static void update(const struct matrix *m)
{
	static struct real *first, *second;
	static size_t size;
	size_t n = (size_t)m->N * m->K;
	const struct adamw a = {1e-4, 0.9, 0.95, 1e-8, 0.1, 1, 1};
	if (n > size) {
		ops->real_free(be, first);
		ops->real_free(be, second);
		first = real_random(n, 0);
		second = real_random(n, 0);
		size = n;
	}
	TIME(CLIP, 0, ops->sum_squares(be, m->gradient, n));
	TIME(ADAMW, 0, ops->adamw(be, m->values, first, second, m->gradient, n, &a));
	TIME(REFRESH, 0, ops->weight_refresh(be, m->w));
}

static void optimise(const struct model *m)
{
	update(&m->head);
	for (uint32_t i = 0; i < m->s->L; i++) {
		update(&m->layers[i].qkv);
		update(&m->layers[i].out);
		update(&m->layers[i].gate_up);
		update(&m->layers[i].down);
	}
}

static int compare(const void *a, const void *b)
{
	const double *x = a, *y = b;
	return (*x > *y) - (*x < *y);
}

static void report(const char *what, const struct model *m, double *seconds, int passes, const char *arithmetic, double peak_flops)
{
	double total = 0, flop = 0;
	for (int i = 0; i < N_OPS; i++) {
		total += timings[i].seconds;
		flop += timings[i].flop;
	}
	qsort(seconds, (size_t)passes, sizeof *seconds, compare);
	printf("\n%s, %u x %u tokens: median %.1f best %.1f tokens/s, %.1f MFLOP/token, best pass %.1f %% of %s peak %.1f GFLOP/s\n",
	       what, m->sequences, m->T / m->sequences, m->T / seconds[passes / 2], m->T / seconds[0], flop / passes / m->T / 1e6,
	       peak_flops > 0 ? 100 * flop / passes / seconds[0] / peak_flops : 0, arithmetic, peak_flops / 1e9);
	printf("%-20s %6s %10s %7s %9s %7s\n", "operation", "calls", "ms/pass", "share", "GFLOP/s", "peak");
	for (int i = 0; i < N_OPS; i++) {
		const struct timing *t = &timings[i];
		if (!t->calls)
			continue;
		printf("%-20s %6u %10.2f %6.1f%%", names[i], t->calls / (unsigned)passes, t->seconds / passes * 1e3,
			100 * t->seconds / total);
		if (t->flop > 0)
			printf(" %9.1f %6.1f%%", t->flop / t->seconds / 1e9, peak_flops > 0 ? 100 * t->flop / t->seconds / peak_flops : 0);
		printf("\n");
	}
	memset(timings, 0, sizeof timings);
}

static void bench(const char *what, struct model *m, int passes, enum arithmetic arithmetic, int n_threads)
{
	double peak_before = peak(arithmetic, n_threads), peak_after;
	uint32_t length = m->T / m->sequences, *tokens = calloc(m->T, 4), *positions = calloc(m->T, 4),
		*starts = calloc(m->sequences + 1, 4);
	double *seconds = calloc((size_t)passes, sizeof *seconds);
	for (uint32_t t = 0; t < m->T; t++) {
		tokens[t] = t * 7919u % m->s->V;
		positions[t] = t % length;
	}
	for (uint32_t i = 0; i <= m->sequences; i++)
		starts[i] = i * length;
	struct layout layout = {.n_positions = m->T, .n_sequences = m->sequences, .tokens = tokens, .positions = positions,
		.starts = starts};
	for (int pass = -1; pass < passes; pass++) {
		double t0 = now();
		if (pass == 0)
			memset(timings, 0, sizeof timings);
		forward(m, &layout);
		head(m);
		if (m->trainable) {
			backward(m);
			optimise(m);
		}
		if (pass >= 0)
			seconds[pass] = now() - t0;
	}
	peak_after = peak(arithmetic, n_threads);
	report(what, m, seconds, passes, arithmetics[arithmetic], peak_after > peak_before ? peak_after : peak_before);
	free(tokens);
	free(positions);
	free(starts);
	free(seconds);
}

int main(int argc, char **argv)
{
	struct error err = {0};
	const char *name = argc > 1 ? argv[1] : "cpu", *numeric = argc > 6 ? argv[6] : "auto";
	uint32_t threads = argc > 2 ? (uint32_t)atoi(argv[2]) : 0, sequences = argc > 3 ? (uint32_t)atoi(argv[3]) : 4;
	uint32_t length = argc > 4 ? (uint32_t)atoi(argv[4]) : 512;
	int passes = argc > 5 ? atoi(argv[5]) : 5;
	struct backend_options options = {.n_threads = threads, .max_rows = sequences * length};
	options.numeric = strcmp(numeric, "f32") == 0 ? BACKEND_NUMERIC_F32 : strcmp(numeric, "bf16") == 0 ? BACKEND_NUMERIC_BF16 :
			  strcmp(numeric, "int8") == 0 ? BACKEND_NUMERIC_INT8 :
			  strcmp(numeric, "fp8") == 0 ? BACKEND_NUMERIC_FP8 : BACKEND_NUMERIC_AUTO;
	if (!sequences || !length || passes < 1)
		return 2;
	if (getenv("BENCH_CLOCK") && strcmp(getenv("BENCH_CLOCK"), "cpu") == 0)
		bench_clock = CLOCK_PROCESS_CPUTIME_ID;
	if (backend_open(name, &options, &be, &err) < 0)
		die(&err);
	ops = be->ops;
	printf("%s (%s, %s)\n", ops->name, be->description, be->numeric);
	int n_threads = threads ? (int)threads : omp_get_num_procs();
	struct model m = model_new(&teacher, sequences, length, false);
	bench("scoring, SmolLM2-135M shape", &m, passes, arithmetic_of(be->numeric), n_threads);
	struct model n = model_new(&student, sequences, length, true);
	bench("training, 33 M student", &n, passes, arithmetic_of(be->view_numeric), n_threads);
	if (backend_sync(be, &err) < 0)
		die(&err);
	return 0;    // the process ends: nothing is freed
}
