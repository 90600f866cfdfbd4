// SPDX-License-Identifier: Apache-2.0
// Private to kernels/cpu. Both kinds of device array are float arrays in host memory.
//
// Parallel work is cut into units of fixed shape; one thread does a whole unit, so no result depends on the number of threads or on
// which thread did what. Products go through oneDNN in tiles of fixed shape (product.h); the rest through struct cpu_vector.
// Scratch grows to what the model's shapes need in the first pass and is kept: later passes allocate nothing.
#pragma once

#include <omp.h>

#include "kernels/backend.h"
#include "kernels/cpu/vector.h"

struct int8_matrix;
struct matrix;
struct products;

struct cpu {
	int n_threads;
	uint32_t max_rows;
	const struct cpu_vector *vector;
	struct products *products;
	enum operand operand;                   // of loaded matrices
	enum operand view_operand;              // of trainable ones: bfloat16 is for who asks for it
	uint32_t n_positions, n_sequences;      // of the layout begin() gave
	uint32_t *tokens, *positions, *starts;  // (max_rows), (max_rows), (max_rows + 1)
	uint32_t *slot_starts, *slots;          // (max_rows + 1), (slots_capacity): of a layout that has them
	size_t slots_capacity;
	float *shared;                          // scratch that all threads see
	size_t shared_floats;
	float **own;                            // (n_threads) scratch of each thread
	size_t own_floats;
	const struct backend_shelf *shelf;      // of matrices that memory has no room for; NULL = none
	uint32_t n_pieces;                      // on it
	char *window;                           // where pieces of stored matrices are packed; NULL = none are stored
	size_t window_bytes;
	uint32_t n_views;                       // trainable matrices there are
	char description[64];
};

struct weight {
	uint32_t n_rows, n_columns;
	enum operand operand;                   // of y = x Wᵀ
	struct int8_matrix *int8;               // loaded as OPERAND_INT8; else NULL
	struct matrix *forward;                 // y = x Wᵀ; else NULL
	struct matrix *backward;                // dx = dy W; views only
	const float *view;                      // NULL for a loaded matrix
	// A matrix apart (n_pieces above 0): piece i holds blocks i * piece_blocks .. of it.
	uint32_t n_pieces, piece_blocks;
	uint32_t first_piece;                   // on the shelf
	uint32_t *sums;                         // (blocks) CRC-32C of each as it was packed; on the shelf, else NULL
	struct stored *stored;                  // its rows as the file has them; else NULL
};

static inline struct cpu *cpu_of(const struct backend *be) { return be->device; }
static inline float *cpu_real(struct real *x) { return (float *)x; }
static inline const float *cpu_real_in(const struct real *x) { return (const float *)x; }
static inline float *cpu_act(struct act *x) { return (float *)x; }
static inline const float *cpu_act_in(const struct act *x) { return (const float *)x; }

// n floats, aligned for vectors and (large ones) for huge pages, not zeroed; NULL when there is no memory. Free with free().
float *memory_floats(size_t n);
// Scratch of at least that size; NULL (false) after backend_fail. Called outside parallel regions; earlier contents are lost.
float *memory_shared(struct backend *be, size_t n_floats);
bool memory_own(struct backend *be, size_t n_floats);

struct real *cpu_real_new(struct backend *be, size_t n, struct error *err);
void cpu_real_free(struct backend *be, struct real *x);
struct real *cpu_real_at(struct real *x, size_t i);
struct act *cpu_act_new(struct backend *be, size_t n, struct error *err);
void cpu_act_free(struct backend *be, struct act *x);
struct act *cpu_act_at(struct act *x, size_t i);
void cpu_real_write(struct backend *be, struct real *to, const float *from, size_t n);
void cpu_real_read(struct backend *be, double *to, const struct real *from, size_t n);
void cpu_act_write(struct backend *be, struct act *to, const float *from, size_t n);
void cpu_act_read(struct backend *be, double *to, const struct act *from, size_t n);
void cpu_real_zero(struct backend *be, struct real *x, size_t n);
void cpu_real_copy(struct backend *be, struct real *to, const struct real *from, size_t n);

struct weight *cpu_weight_load(struct backend *be, enum weight_kind kind, const struct tensor *parts, uint32_t n_parts, struct error *err);
// Blocks first..last-1 of a loaded matrix from its parts; their memory must be there.
int weight_pack(struct backend *be, const struct weight *w, const struct tensor *parts, uint32_t first, uint32_t last, struct error *err);
// A matrix of the parts' shape, nothing packed; of integers not even its memory.
struct weight *weight_new(struct backend *be, const struct tensor *parts, uint32_t n_parts, bool apart, struct error *err);

// Matrices that memory has no room for (apart.c). What can neither be stored nor has a shelf to go to is loaded into memory.
struct weight *cpu_weight_load_apart(struct backend *be, enum weight_kind kind, const struct tensor *parts, uint32_t n_parts,
				     struct error *err);
uint32_t apart_pieces(const struct weight *w);          // 1 of a matrix in memory
// Brings piece i (0..apart_pieces-1) of w into memory, packed, until the next is; blocks *ret_first..*ret_last-1. `next` (n_next): which of
// its pieces will be asked for next; NULL: all that follow on the shelf. Other scratch than memory_shared's is lost. False after
// backend_fail.
bool apart_find(struct backend *be, const struct weight *w, uint32_t i, const uint32_t *next, uint32_t n_next, uint32_t *ret_first,
		uint32_t *ret_last);

// Rows as the file has them (stored.c): a copy of the parts', in memory of its own.
struct stored *stored_new(const struct tensor *parts, uint32_t n_parts, struct error *err);
struct stored *stored_free(struct stored *s);           // returns NULL; NULL is fine
const struct tensor *stored_parts(const struct stored *s);
size_t stored_bytes(const struct stored *s);

// What fits under options->host_bytes, or a refusal. room: bytes that packed matrices may take in memory (UINT64_MAX: as many as they
// like); window_bytes: above 0 when those that have no room are stored, room being what is left when all are; else they go to the shelf.
struct room_plan { uint64_t room; size_t window_bytes; };
int room_plan(const struct backend_options *options, uint32_t element_bytes, uint32_t head_rows, int n_threads, struct room_plan *ret_plan,
	      struct error *err);

struct weight *cpu_weight_view(struct backend *be, struct real *array, uint32_t n_rows, uint32_t n_columns, struct error *err);
void cpu_weight_refresh(struct backend *be, struct weight *w);
void cpu_weight_free(struct backend *be, struct weight *w);

void cpu_embed(struct backend *be, struct real *x, const struct weight *w);
void cpu_embed_backward(struct backend *be, struct real *dw, const struct real *dx, uint32_t C);

void cpu_embed_add(struct backend *be, struct real *x, const struct real *table, bool by_position, uint32_t C);
void cpu_embed_add_backward(struct backend *be, struct real *dtable, const struct real *dx, bool by_position, uint32_t C);
void cpu_layernorm(struct backend *be, struct act *y, struct real *z, const struct real *x, const struct real *gain,
		   const struct real *bias, float epsilon, uint32_t rows, uint32_t C);
void cpu_layernorm_backward(struct backend *be, struct real *dx, struct real *dgain, struct real *dbias, const struct act *dy,
			    const struct real *dz, const struct real *x, const struct real *gain, float epsilon, uint32_t rows, uint32_t C);
void cpu_rmsnorm(struct backend *be, struct act *y, const struct real *x, const struct real *gain, float epsilon, uint32_t rows,
		 uint32_t C);
void cpu_rmsnorm_backward(struct backend *be, struct real *dx, struct real *dgain, const struct act *dy, const struct real *x,
			  const struct real *gain, float epsilon, uint32_t rows, uint32_t C);
void cpu_head_norm(struct backend *be, struct act *y, const struct act *x, const struct real *q_gain, const struct real *k_gain,
		   const struct attention_shape *shape, float epsilon);
void cpu_head_norm_backward(struct backend *be, struct act *dx, struct real *dq_gain, struct real *dk_gain, const struct act *dy,
			    const struct act *x, const struct real *q_gain, const struct real *k_gain,
			    const struct attention_shape *shape, float epsilon);

void cpu_linear(struct backend *be, struct act *y, const struct act *x, const struct weight *w, const struct real *bias, uint32_t rows);
void cpu_linear_real(struct backend *be, struct real *y, bool add, const struct act *x, const struct weight *w, const struct real *bias,
		     uint32_t rows);
void cpu_linear_backward(struct backend *be, struct act *dx, struct real *dw, struct real *dbias, const struct act *dy, const struct act *x,
			 const struct weight *w, uint32_t rows);
void cpu_linear_real_backward(struct backend *be, struct act *dx, struct real *dw, struct real *dbias, const struct real *dy,
			      const struct act *x, const struct weight *w, uint32_t rows);

void cpu_rope(struct backend *be, struct act *qkv, const struct real *cosine, const struct real *sine, uint32_t R,
	      const struct attention_shape *shape, bool inverse);
void cpu_attention(struct backend *be, struct act *y, struct real *lse, const struct act *qkv, const struct attention_shape *shape);
void cpu_cache_write(struct backend *be, struct act *cache, const struct act *qkv, const struct attention_shape *shape);
void cpu_attention_cached(struct backend *be, struct act *y, const struct act *qkv, const struct act *cache,
			  const struct attention_shape *shape);
void cpu_attention_backward(struct backend *be, struct act *dqkv, const struct act *dy, const struct act *qkv, const struct act *y,
			    const struct real *lse, const struct attention_shape *shape);

void cpu_geglu(struct backend *be, struct act *y, const struct act *gate_up, uint32_t rows, uint32_t F);
void cpu_add_rows(struct backend *be, struct real *x, const struct real *y, const uint32_t *rows, const float *scales, uint32_t n,
		  uint32_t C);
void cpu_soft_cap(struct backend *be, struct real *x, float cap, size_t n);
void cpu_swiglu(struct backend *be, struct act *y, const struct act *gate_up, uint32_t rows, uint32_t F);
void cpu_swiglu_backward(struct backend *be, struct act *dgate_up, const struct act *dy, const struct act *gate_up, uint32_t rows,
			 uint32_t F);

void cpu_gelu(struct backend *be, struct act *y, const struct act *x, enum gelu form, uint32_t rows, uint32_t F);
void cpu_gelu_backward(struct backend *be, struct act *dx, const struct act *dy, const struct act *x, enum gelu form, uint32_t rows,
		       uint32_t F);
void cpu_widen(struct backend *be, struct real *y, const struct act *x, size_t n);
void cpu_narrow(struct backend *be, struct act *y, const struct real *x, size_t n);

void cpu_pick_rows(struct backend *be, struct act *y, const struct act *x, const uint32_t *rows, uint32_t n, uint32_t C);
void cpu_put_rows(struct backend *be, struct act *dx, const struct act *dy, const uint32_t *rows, uint32_t n, uint32_t T, uint32_t C);

void cpu_pick_columns(struct backend *be, struct real *y, const struct real *x, const uint32_t *ids, uint32_t n, uint32_t n_ids,
		      uint32_t V);
void cpu_mix(struct backend *be, struct real *y, bool add, const struct real *x, double weight, const double *lse, uint32_t n, uint32_t V);
void cpu_mix_log(struct backend *be, struct real *y, uint32_t n, uint32_t V);

// Tail and draws of a row whose top-k has been found (draw.c). maxima is overwritten.
struct sweep_scratch {
	float *copy, *proposal;          // (V)
	double *sums;                    // (ceil(V / SWEEP_BLOCK))
};
void sweep_draw(const struct cpu_vector *vector, struct sweep_row *row, const float *z, uint32_t V, float *maxima,
		const struct sweep_scratch *scratch);
void cpu_sweep(struct backend *be, const struct real *logits, uint32_t n, uint32_t V, struct sweep_row *rows);
void cpu_softmax_grad(struct backend *be, struct real *logits, uint32_t n, uint32_t V, const struct softmax_grad_row *rows);

double cpu_sum_squares(struct backend *be, const struct real *x, size_t n);
void cpu_lion(struct backend *be, struct real *w, struct real *m, const struct real *g, size_t n, const struct lion *l);
void cpu_fake_quantize(struct backend *be, struct real *x, uint32_t rows, uint32_t columns, uint32_t group, uint32_t bits);
void cpu_adamw(struct backend *be, struct real *w, struct real *m, struct real *v, const struct real *g, size_t n, const struct adamw *a);
