// SPDX-License-Identifier: Apache-2.0
// Private to kernels/ref (and to tests that need more digits than float carries): the specification of every operation.
// Both kinds of device array are plain double arrays in host memory, so nothing here can fail after open(): memory for layouts
// is reserved then (but for a layout's list of slots, which grows to the longest seen). OpenMP splits only independent outputs: no sum is
// ever split, so results do not depend on the thread count.
#pragma once

#include "kernels/backend.h"

struct ref {
	int n_threads;
	uint32_t max_rows;
	uint32_t n_positions, n_sequences;      // of the layout begin() gave
	uint32_t *tokens, *positions, *starts;  // (max_rows), (max_rows), (max_rows + 1)
	uint32_t *slot_starts, *slots;          // (max_rows + 1), (slots_capacity): of a layout that has them
	size_t slots_capacity;
	bool int8, fp8;                         // loaded matrices are; of fp8, those of blocks
	char description[32];
};

struct weight {
	uint32_t n_rows, n_columns;
	double *owned;                          // NULL for a view
	const double *values;                   // (n_rows, n_columns)
	int8_t *integers;                       // (n_rows, n_columns) loaded for INT8, values are what they stand for; else NULL
	float *scales;                          // (n_rows, n_columns / INT8_GROUP rounded up), of FP8 (n_rows); else NULL
	bool fp8;                               // values are E4M3 numbers
};

static inline struct ref *ref_of(const struct backend *be) { return be->device; }
static inline double *ref_real(struct real *x) { return (double *)x; }
static inline const double *ref_real_in(const struct real *x) { return (const double *)x; }
static inline double *ref_act(struct act *x) { return (double *)x; }
static inline const double *ref_act_in(const struct act *x) { return (const double *)x; }
static inline double ref_dot(const double *a, const double *b, size_t n)
{
	double sum = 0;
#pragma omp simd reduction(+ : sum)
	for (size_t i = 0; i < n; i++)
		sum += a[i] * b[i];
	return sum;
}

struct real *ref_real_new(struct backend *be, size_t n, struct error *err);
void ref_real_free(struct backend *be, struct real *x);
struct real *ref_real_at(struct real *x, size_t i);
struct act *ref_act_new(struct backend *be, size_t n, struct error *err);
void ref_act_free(struct backend *be, struct act *x);
struct act *ref_act_at(struct act *x, size_t i);
void ref_real_write(struct backend *be, struct real *to, const float *from, size_t n);
void ref_real_read(struct backend *be, double *to, const struct real *from, size_t n);
void ref_act_write(struct backend *be, struct act *to, const float *from, size_t n);
void ref_act_read(struct backend *be, double *to, const struct act *from, size_t n);
void ref_real_zero(struct backend *be, struct real *x, size_t n);
void ref_real_copy(struct backend *be, struct real *to, const struct real *from, size_t n);

struct weight *ref_weight_load(struct backend *be, enum weight_kind kind, const struct tensor *parts, uint32_t n_parts, struct error *err);
struct weight *ref_weight_view(struct backend *be, struct real *array, uint32_t n_rows, uint32_t n_columns, struct error *err);
void ref_weight_refresh(struct backend *be, struct weight *w);
void ref_weight_free(struct backend *be, struct weight *w);

void ref_embed(struct backend *be, struct real *x, const struct weight *w);
void ref_embed_backward(struct backend *be, struct real *dw, const struct real *dx, uint32_t C);

void ref_embed_add(struct backend *be, struct real *x, const struct real *table, bool by_position, uint32_t C);
void ref_embed_add_backward(struct backend *be, struct real *dtable, const struct real *dx, bool by_position, uint32_t C);
void ref_layernorm(struct backend *be, struct act *y, struct real *z, const struct real *x, const struct real *gain,
		   const struct real *bias, float epsilon, uint32_t rows, uint32_t C);
void ref_layernorm_backward(struct backend *be, struct real *dx, struct real *dgain, struct real *dbias, const struct act *dy,
			    const struct real *dz, const struct real *x, const struct real *gain, float epsilon, uint32_t rows, uint32_t C);
void ref_rmsnorm(struct backend *be, struct act *y, const struct real *x, const struct real *gain, float epsilon, uint32_t rows,
		 uint32_t C);
void ref_rmsnorm_backward(struct backend *be, struct real *dx, struct real *dgain, const struct act *dy, const struct real *x,
			  const struct real *gain, float epsilon, uint32_t rows, uint32_t C);
void ref_head_norm(struct backend *be, struct act *y, const struct act *x, const struct real *q_gain, const struct real *k_gain,
		   const struct attention_shape *shape, float epsilon);
void ref_head_norm_backward(struct backend *be, struct act *dx, struct real *dq_gain, struct real *dk_gain, const struct act *dy,
			    const struct act *x, const struct real *q_gain, const struct real *k_gain,
			    const struct attention_shape *shape, float epsilon);

// n <= INT8_GROUP values of one group; returns its scale.
float ref_quantize(int8_t *q, const float *x, size_t n);
void ref_weight_quantize(struct weight *w);        // owned to integers and scales, and to what these stand for
void ref_int8_product(const struct backend *be, double *y, bool add, const double *x, const struct weight *w, const double *bias,
		      size_t rows);
float ref_to_e4m3(float x);                        // the nearest E4M3 number
void ref_weight_to_fp8(struct weight *w);          // owned to scales and numbers
void ref_fp8_product(const struct backend *be, double *y, bool add, const double *x, const struct weight *w, const double *bias,
		     size_t rows);
void ref_linear(struct backend *be, struct act *y, const struct act *x, const struct weight *w, const struct real *bias, uint32_t rows);
void ref_linear_real(struct backend *be, struct real *y, bool add, const struct act *x, const struct weight *w, const struct real *bias,
		     uint32_t rows);
void ref_linear_backward(struct backend *be, struct act *dx, struct real *dw, struct real *dbias, const struct act *dy, const struct act *x,
			 const struct weight *w, uint32_t rows);
void ref_linear_real_backward(struct backend *be, struct act *dx, struct real *dw, struct real *dbias, const struct real *dy,
			      const struct act *x, const struct weight *w, uint32_t rows);

void ref_rope(struct backend *be, struct act *qkv, const struct real *cosine, const struct real *sine, uint32_t R,
	      const struct attention_shape *shape, bool inverse);
void ref_attention(struct backend *be, struct act *y, struct real *lse, const struct act *qkv, const struct attention_shape *shape);
void ref_cache_write(struct backend *be, struct act *cache, const struct act *qkv, const struct attention_shape *shape);
void ref_attention_cached(struct backend *be, struct act *y, const struct act *qkv, const struct act *cache,
			  const struct attention_shape *shape);
void ref_attention_backward(struct backend *be, struct act *dqkv, const struct act *dy, const struct act *qkv, const struct act *y,
			    const struct real *lse, const struct attention_shape *shape);

void ref_swiglu(struct backend *be, struct act *y, const struct act *gate_up, uint32_t rows, uint32_t F);
void ref_swiglu_backward(struct backend *be, struct act *dgate_up, const struct act *dy, const struct act *gate_up, uint32_t rows,
			 uint32_t F);

void ref_geglu(struct backend *be, struct act *y, const struct act *gate_up, uint32_t rows, uint32_t F);
void ref_gelu(struct backend *be, struct act *y, const struct act *x, enum gelu form, uint32_t rows, uint32_t F);
void ref_gelu_backward(struct backend *be, struct act *dx, const struct act *dy, const struct act *x, enum gelu form, uint32_t rows,
		       uint32_t F);
void ref_widen(struct backend *be, struct real *y, const struct act *x, size_t n);
void ref_narrow(struct backend *be, struct act *y, const struct real *x, size_t n);

void ref_pick_rows(struct backend *be, struct act *y, const struct act *x, const uint32_t *rows, uint32_t n, uint32_t C);
void ref_put_rows(struct backend *be, struct act *dx, const struct act *dy, const uint32_t *rows, uint32_t n, uint32_t T, uint32_t C);

void ref_add_rows(struct backend *be, struct real *x, const struct real *y, const uint32_t *rows, const float *scales, uint32_t n,
		  uint32_t C);
void ref_soft_cap(struct backend *be, struct real *x, float cap, size_t n);
void ref_pick_columns(struct backend *be, struct real *y, const struct real *x, const uint32_t *ids, uint32_t n, uint32_t n_ids,
		      uint32_t V);
void ref_mix(struct backend *be, struct real *y, bool add, const struct real *x, double weight, const double *lse, uint32_t n, uint32_t V);
void ref_mix_log(struct backend *be, struct real *y, uint32_t n, uint32_t V);

void ref_sweep(struct backend *be, const struct real *logits, uint32_t n, uint32_t V, struct sweep_row *rows);
void ref_softmax_grad(struct backend *be, struct real *logits, uint32_t n, uint32_t V, const struct softmax_grad_row *rows);

double ref_sum_squares(struct backend *be, const struct real *x, size_t n);
void ref_lion(struct backend *be, struct real *w, struct real *m, const struct real *g, size_t n, const struct lion *l);
void ref_fake_quantize(struct backend *be, struct real *x, uint32_t rows, uint32_t columns, uint32_t group, uint32_t bits);
void ref_adamw(struct backend *be, struct real *w, struct real *m, struct real *v, const struct real *g, size_t n, const struct adamw *a);
