// SPDX-License-Identifier: Apache-2.0
// Everything between products, on rows of floats, once per instruction set. One thread each; sums have an order fixed by n alone.
// Rows may end anywhere (no padding), and pointers need only be aligned to their element.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/dtype.h"

#define SWEEP_BLOCK 64               // logits whose maximum is kept: 64 maxima of 64 fit the cache, a top-64 reads few blocks twice
#define ATTENTION_KEYS 128           // keys of one step (measured: 64 costs 5 %, more gains nothing)

// How a product reads its operands: as they are, rounded to bfloat16 and multiplied as float, as bfloat16, as integers (backend.h, INT8).
enum operand { OPERAND_F32, OPERAND_ROUNDED, OPERAND_BF16, OPERAND_INT8 };

#define GRADIENT_ROWS 256            // rows summed in registers at a time: with a panel of 16 columns they fill half the first-level cache

static inline size_t gradient_scratch(size_t n)
{
	return (n + 16) * (GRADIENT_ROWS + 16);
}

// AdamW's constants of one step, from double, so that a vector kernel only multiplies.
struct adamw_factors {
	float grad_scale, beta1, one_minus_beta1, beta2, one_minus_beta2;
	float step_size;                 // learning rate / (1 - beta1^step)
	float inverse_correction2;       // 1 / (1 - beta2^step)
	float epsilon, decay;            // decay: 1 - learning rate * weight decay
};

// One unit of attention: the rows of positions first..last-1 of one sequence, the n_group query heads that share one kv head.
// q, y, lse and dy point to the row of position `first` (of the first head of the group); k and v to row 0 of that kv head. Strides in
// floats.
struct attention_work {
	const float *q;                  // row stride q_stride
	size_t q_stride;
	const float *k, *v;              // row stride `stride`
	size_t stride;
	const uint32_t *slots;           // forward: position j's key and value are in row slots[j]; NULL: in row j
	uint32_t n_group, head_size, first, last;
	uint32_t n_seen;                 // keys that every row sees; 0: causal, a row sees the keys up to itself
	uint32_t window;                 // causal: a row sees the last so many keys; 0: all
	float scale;
	float soft_cap;                  // 0: none
	bool rounded;                    // forward: operands of both products to bfloat16 first
	float *y;                        // (rows, n_group D), row stride y_stride; forward: written, backward: read
	size_t y_stride;
	float *lse;                      // (rows, n_group), row stride lse_stride; forward: written unless NULL, backward: read
	size_t lse_stride;
	const float *dy;                 // backward: like y
	float *dq, *dk, *dv;             // backward: like q, k, v; written
	float *scratch;                  // attention_scratch() floats, 64-byte aligned
};

#define INT8_ROWS 96                 // of a unit: what it costs to widen weights is then 2 % (vector_int8.c)
#define INT8_PANELS 8                // of a unit
#define INT8_SCRATCH 32768           // floats that a unit needs, at most

// A unit of a product of 8-bit integers (int8.h): some rows times some panels.
struct int8_unit {
	float *y;                        // (n_rows, n), row stride ldy; += when add; + bias (n) unless NULL
	size_t ldy, n, n_rows;           // at most INT8_PANELS panels, at most INT8_ROWS
	bool add;
	const float *bias;
	const void *x;                   // (n_rows, n_groups * INT8_GROUP), of operands()
	const float *x_scales;           // (n_rows, n_groups)
	const int32_t *x_starts;         // (n_rows, n_groups)
	size_t n_groups;
	const int8_t *w;                 // (panels, n_groups * INT8_GROUP / int8_terms, panel, int8_terms), int8_offset added
	const float *w_scales;           // (panels, n_groups, panel)
	void *scratch;                   // INT8_SCRATCH floats, 64-byte aligned
};

#define BF16_PANEL 64                // outputs whose terms lie side by side, in pairs
#define BF16_PACK_ROWS 16            // of these, packed together

// A unit of a product of bfloat16: some rows times some panels.
struct bf16_unit {
	float *y;                        // (n_rows, n), row stride ldy; += when add; + bias (n) unless NULL
	size_t ldy, n, n_rows;
	bool add;
	const float *bias;
	const uint16_t *x;               // (n_rows, depth), row stride ldx
	size_t ldx, depth;               // even
	const uint16_t *w;               // panels, panel_stride apart: (depth / 2, BF16_PANEL, 2)
	size_t panel_stride;
};

struct layernorm_moments { float mean, inverse; };    // inverse: 1 / sqrt(variance + epsilon)

// What a table is compiled for. Those of 8-bit products (vector_int8.c) come on top and change no bit; those of bfloat16 (vector_bf16.c,
// vector_attention_bf16.c) change the order of sums where operands are rounded.
enum vector_set { VECTOR_BASELINE, VECTOR_AVX2, VECTOR_AVX512 };

struct cpu_vector {
	const char *name;                // "baseline", "avx2", "avx2vnni", "avx512", "avx512vnni", "avx512bf16"
	enum vector_set set;

	// One row of n. rmsnorm_backward returns 1/rms; add: dx += instead of =; dgain += unless NULL; dx may be dy.
	void (*rmsnorm)(float *y, const float *x, const float *gain, float epsilon, size_t n);
	float (*rmsnorm_backward)(float *dx, bool add, float *dgain, const float *dy, const float *x, const float *gain, float epsilon,
				  size_t n);
	void (*gain_backward)(float *dgain, const float *dy, const float *x, float inverse_rms_of_x, size_t n);    // dgain += dy x / rms
	// One row of n, y or z NULL. backward: dx (add: +=) from dy + dz (either may be NULL; dz may be dx when not adding).
	void (*layernorm)(float *y, float *z, const float *x, const float *gain, const float *bias, float epsilon, size_t n);
	struct layernorm_moments (*layernorm_moments)(const float *x, float epsilon, size_t n);
	void (*layernorm_gains)(float *dgain, float *dbias, const float *dy, const float *dz, const float *x, struct layernorm_moments m,
				size_t n);    // +=
	void (*layernorm_backward)(float *dx, bool add, const float *dy, const float *dz, const float *x, const float *gain,
				   struct layernorm_moments m, size_t n);
	void (*rotate)(float *x, const float *cosine, const float *sine, float direction, size_t half);       // direction -1 inverts
	void (*swiglu)(float *y, const float *gate, const float *up, size_t n);
	void (*swiglu_backward)(float *dgate, float *dup, const float *dy, const float *gate, const float *up, size_t n);
	void (*gelu[2])(float *y, const float *x, size_t n);                                                  // by enum gelu
	void (*gelu_backward[2])(float *dx, const float *dy, const float *x, size_t n);                       // dx may be dy
	void (*add)(float *y, const float *x, size_t n);                                                      // y += x
	// A finished product tile (rows, n), dense, goes to y (row stride ldy): += when add; + bias (n) unless NULL.
	void (*tile_store)(float *y, size_t ldy, const float *tile, const float *bias, bool add, uint32_t rows, uint32_t n);
	void (*to_bf16)(uint16_t *to, const float *from, size_t n);
	void (*round_bf16)(float *to, const float *from, size_t n);      // to bfloat16 and back
	// n elements of a model file (whole blocks), to the bits of dtype_to_float.
	void (*dequantize)(float *y, enum dtype type, const void *stored, size_t n);
	double (*sum_squares)(const float *x, size_t n);
	void (*adamw)(float *w, float *m, float *v, const float *g, size_t n, const struct adamw_factors *f);

	// Gradient of a matrix. pack: columns first.. of x (rows, K) to one panel (rows, panel), zeros beyond K; gradient: dw (n, K) +=
	// dyᵀ x, with dy's row stride ldy, all panels of x one after the other, and gradient_scratch(n) floats of scratch. With OPERAND_BF16 a
	// panel holds pairs of rows: (ceil(rows / 2), panel) of 4 bytes.
	uint32_t panel;
	void (*gradient_pack)(float *to, const float *x, size_t rows, size_t K, size_t first, enum operand operand);
	void (*gradient)(float *dw, const float *dy, size_t ldy, size_t n, const float *packed, size_t rows, size_t K, float *scratch,
			 enum operand operand);

	// Products of integers (backend.h, INT8). quantize: a row of n to whole groups, the last filled up with zeros; operands: as
	// int8_unit reads them, int8_operand_bytes each, starts: what undoes the offset of the weights, where there is one. int8_terms: of a
	// packed panel, those of an output that lie side by side; int8_offset: what is added to them, modulo 256.
	uint32_t int8_terms, int8_operand_bytes, int8_offset;
	void (*quantize)(int16_t *q, float *scales, const float *x, size_t n);
	void (*operands)(void *to, float *scales, int32_t *starts, const float *x, size_t n);
	void (*int8_unit)(const struct int8_unit *u);

	// NULL where the processor has no product of bfloat16. pack: n columns (a multiple of 32) of BF16_PACK_ROWS rows, `row` apart, to
	// their place in a panel, rounded to the nearest.
	void (*bf16_unit)(const struct bf16_unit *u);
	void (*bf16_pack)(uint16_t *to, const float *from, size_t row, size_t n);

	// Vocabulary. maxima: (ceil(n / SWEEP_BLOCK)); false when an element is NaN or infinite.
	bool (*block_maxima)(const float *x, size_t n, float *maxima, float *ret_max);
	// A number that at least k of the elements (all finite) reach, 1 <= k <= n, and no more of them but for equal ones.
	float (*bound_of_largest)(const float *x, size_t n, size_t k);
	// places: of the elements that are at least `bound`, ascending, room for n; returns how many they are.
	size_t (*find)(const float *x, size_t n, float bound, uint32_t *places);
	// Sum of e^z with z = (x - max) / temperature; ret_weighted, unless NULL: sum of z e^z.
	double (*exp_sum)(const float *x, size_t n, float max, float temperature, double *ret_weighted);
	// out = e^(scale (x - max)); sums: of blocks of SWEEP_BLOCK, (ceil(n / SWEEP_BLOCK)).
	void (*exp_blocks)(float *out, const float *x, size_t n, float max, float scale, double *sums);
	// out = (add ? out : 0) + scale * e^(x / temperature - lse); out may be x when not adding. A NaN lse gives NaN.
	void (*softmax)(float *out, bool add, const float *x, size_t n, float temperature, double lse, double scale);

	void (*mix)(float *y, bool add, const float *x, float weight, size_t n);    // y = (add ? y : 0) + weight x; y may be x when not adding
	void (*soft_cap)(float *x, float cap, size_t n);                            // x = cap tanh(x / cap)
	void (*mix_log)(float *y, size_t n);                                        // y = ln max(y, 1e-38); NaN and infinity stay

	void (*attention)(const struct attention_work *a);
	void (*attention_backward)(const struct attention_work *a);      // first = 0, last = the sequence's length, q_stride = stride
	size_t (*attention_scratch)(const struct attention_work *a, bool backward);    // floats, from first, last, n_group, head_size
};

extern const struct cpu_vector vector_baseline, vector_avx2, vector_avx2vnni, vector_avx512, vector_avx512vnni, vector_avx512bf16;

// The best table for this processor. KDSERVED_CPU=NAME in the environment asks for one; NULL when the
// processor lacks it or the name is unknown.
const struct cpu_vector *vector_find(void);
