// SPDX-License-Identifier: Apache-2.0
// The functions of one instruction set's table, for the files that define them (vector_*.c).
#pragma once

#include "kernels/cpu/simd.h"
#include "kernels/cpu/vector.h"

#ifdef INT8_BYTES
#define INT8_TERMS 4                 // of a lane of a product of integers (vector_int8.c)
#define INT8_OFFSET 128              // added to weights
#else
#define INT8_TERMS 2
#define INT8_OFFSET 0
#endif

void VECTOR(rmsnorm)(float *y, const float *x, const float *gain, float epsilon, size_t n);
float VECTOR(rmsnorm_backward)(float *dx, bool add, float *dgain, const float *dy, const float *x, const float *gain, float epsilon,
			       size_t n);
void VECTOR(gain_backward)(float *dgain, const float *dy, const float *x, float inverse_rms_of_x, size_t n);
void VECTOR(layernorm)(float *y, float *z, const float *x, const float *gain, const float *bias, float epsilon, size_t n);
struct layernorm_moments VECTOR(layernorm_moments)(const float *x, float epsilon, size_t n);
void VECTOR(layernorm_gains)(float *dgain, float *dbias, const float *dy, const float *dz, const float *x,
			     struct layernorm_moments m, size_t n);
void VECTOR(layernorm_backward)(float *dx, bool add, const float *dy, const float *dz, const float *x, const float *gain,
				struct layernorm_moments m, size_t n);
void VECTOR(gelu_erf)(float *y, const float *x, size_t n);
void VECTOR(gelu_tanh)(float *y, const float *x, size_t n);
void VECTOR(gelu_erf_backward)(float *dx, const float *dy, const float *x, size_t n);
void VECTOR(gelu_tanh_backward)(float *dx, const float *dy, const float *x, size_t n);
void VECTOR(rotate)(float *x, const float *cosine, const float *sine, float direction, size_t half);
void VECTOR(swiglu)(float *y, const float *gate, const float *up, size_t n);
void VECTOR(swiglu_backward)(float *dgate, float *dup, const float *dy, const float *gate, const float *up, size_t n);
void VECTOR(add)(float *y, const float *x, size_t n);
void VECTOR(tile_store)(float *y, size_t ldy, const float *tile, const float *bias, bool add, uint32_t rows, uint32_t n);
void VECTOR(to_bf16)(uint16_t *to, const float *from, size_t n);
void VECTOR(round_bf16)(float *to, const float *from, size_t n);
void VECTOR(dequantize)(float *y, enum dtype type, const void *stored, size_t n);
double VECTOR(sum_squares)(const float *x, size_t n);
void VECTOR(adamw)(float *w, float *m, float *v, const float *g, size_t n, const struct adamw_factors *f);
void VECTOR(gradient_pack)(float *to, const float *x, size_t rows, size_t K, size_t first, enum operand operand);
void VECTOR(gradient)(float *dw, const float *dy, size_t ldy, size_t n, const float *packed, size_t rows, size_t K, float *scratch,
		      enum operand operand);
void INT8(quantize)(int16_t *q, float *scales, const float *x, size_t n);
void INT8(operands)(void *to, float *scales, int32_t *starts, const float *x, size_t n);
void INT8(int8_unit)(const struct int8_unit *u);
bool VECTOR(block_maxima)(const float *x, size_t n, float *maxima, float *ret_max);
float VECTOR(bound_of_largest)(const float *x, size_t n, size_t k);
size_t VECTOR(find)(const float *x, size_t n, float bound, uint32_t *places);
double VECTOR(exp_sum)(const float *x, size_t n, float max, float temperature, double *ret_weighted);
void VECTOR(exp_blocks)(float *out, const float *x, size_t n, float max, float scale, double *sums);
void VECTOR(softmax)(float *out, bool add, const float *x, size_t n, float temperature, double lse, double scale);
void VECTOR(mix)(float *y, bool add, const float *x, float weight, size_t n);
void VECTOR(soft_cap)(float *x, float cap, size_t n);
void VECTOR(mix_log)(float *y, size_t n);
void VECTOR(attention)(const struct attention_work *a);
void VECTOR(attention_backward)(const struct attention_work *a);
size_t VECTOR(attention_scratch)(const struct attention_work *a, bool backward);
void BF16(bf16_unit)(const struct bf16_unit *u);
void BF16(bf16_pack)(uint16_t *to, const float *from, size_t row, size_t n);
void BF16(attention)(const struct attention_work *a);
size_t BF16(attention_scratch)(const struct attention_work *a, bool backward);
