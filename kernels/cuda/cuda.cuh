// SPDX-License-Identifier: Apache-2.0
// Private to kernels/cuda: the device's state, element types, launch helpers.
//
// `real` is float. `act` is bfloat16, or float when float32 products were asked for (tests, audits): kernels are templates over it and
// with_act() picks. All work goes to one stream, so operations follow each other without synchronisation. Sums have a fixed
// order (no atomics on floats): the same input gives the same bits.
#pragma once

#include <cublasLt.h>
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <assert.h>
#include <stdint.h>
#include <string.h>

#include <type_traits>

extern "C" {
#include "kernels/backend.h"
#include "kernels/cuda/plan.h"
}

#define CUDA_SCRATCH_BYTES (64u << 20)      // conversions and partial sums; larger work goes through it in chunks
#define CUDA_WORKSPACE_BYTES (64u << 20)    // cuBLASLt's own
#define CUDA_RESULT_BYTES (16u << 20)       // pinned: arrays on their way to the host
#define CUDA_SWEEP_BYTES (16u << 20)        // one of two, on the device and pinned: questions and results of a sweep
#define CUDA_STAGING_BYTES (4u << 20)       // pinned, one of two halves: lists on their way to the device
#define CUDA_MAX_HEAD_SIZE 256              // of attention: a row of it lies in registers
#define CUDA_MAX_GROUP 64                   // query heads that share a key
#define CUDA_BLOCK 256
#define CUDA_WARP 32

struct cuda_gemm_plan;
struct cuda_arena;
struct cuda_sweeps;
struct cuda_stored;

// The rows of one block of attention: n_rows of one sequence, the first of them row `row` of the batch and at `position` of its sequence,
// whose key of position 0 is row `keys` of the batch (or, from a cache, place `keys` of the list of slots) and whose last row is end - 1.
struct cuda_tile { uint32_t row, n_rows, position, keys, end; };

// Tiles of n_rows rows (the last of a sequence may have fewer) over the current layout; made when first asked for.
struct cuda_tiles { uint32_t n_rows, n; bool cached; cuda_tile *device; };

struct cuda {
	cudaStream_t stream;
	cudaEvent_t marked;
	cublasLtHandle_t blas;
	bool bf16;                                // element type of act
	bool fp8;                                 // matrices of blocks are E4M3 numbers; act is bfloat16 then
	size_t shared_bytes;                      // of a block, at most
	uint32_t max_rows;
	cuda_arena *arena;                        // memory.cu
	void *workspace, *scratch;                // device
	void *window;                             // where a matrix that stays as stored is unpacked; NULL = none does
	uint64_t window_bytes;
	const weight *unpacked;                   // the one that lies there
	// the layout: device copies, and what the host keeps to make tiles of
	uint32_t *tokens, *positions, *slots;
	uint32_t *starts_host, *slot_starts_host; // (max_rows + 1); slot_starts only where has_slots
	uint64_t max_slots;
	uint32_t n_positions, n_sequences;
	bool has_slots;
	cuda_tiles tiles[2];                      // of the forward pass and of the way back
	cuda_tile *tiles_host;
	uint32_t *row_list;                       // device, (max_rows) for pick_rows and put_rows
	char *staging[2];                         // pinned
	cudaEvent_t staged[2];                    // the last copy out of each half is done
	uint32_t staging_half, staging_used;
	char *results;                            // pinned
	cuda_sweeps *sweeps;                      // sweep.cu: those under way
	double *partial;                          // device, reductions
	cuda_gemm_plan *plans;                    // one per weight shape
	char description[160];
};

struct weight {
	uint32_t n_rows, n_columns;               // N, K
	void *data;                               // (N, K) in act's type; for a float view it is the caller's array; E4M3 in tiles, where
	float *scales;                            // (N) there are scales, which lie behind; else NULL
	cuda_stored *stored;                      // as the file has it, data is NULL then; else NULL
	const float *view;                        // trainable master, or NULL
	bool owned;
};

static inline cuda *cuda_of(backend *be) { return (cuda *)be->device; }
static inline float *real_of(struct real *x) { return (float *)x; }
static inline const float *real_of(const struct real *x) { return (const float *)x; }

// Fails the backend (sticky) when a runtime or cuBLAS call did not succeed; false then.
bool cuda_check(backend *be, cudaError_t e, const char *what);
bool cuda_check_blas(backend *be, cublasStatus_t e, const char *what);

// Gives a kernel to the backend's stream; nothing once the backend has failed. `what` names the operation when the device refuses.
template <typename... P, typename... G>
static void cuda_launch(backend *be, const char *what, dim3 grid, uint32_t block, size_t shared_bytes, void (*kernel)(P...), G... arguments)
{
	if (backend_failed(be))
		return;
	cudaLaunchConfig_t config = {};
	config.gridDim = grid;
	config.blockDim = dim3(block);
	config.dynamicSmemBytes = shared_bytes;
	config.stream = cuda_of(be)->stream;
	cuda_check(be, cudaLaunchKernelEx(&config, kernel, (P)arguments...), what);
}

// Device memory of the reserve (or within the budget); NULL and err when there is none left. Zeroed.
void *cuda_alloc(backend *be, size_t bytes, const char *what, struct error *err);
void cuda_release(backend *be, void *p);
int cuda_arena_open(backend *be, const struct backend_options *options, struct error *err);
void cuda_arena_close(cuda *c);
int cuda_sweeps_open(backend *be, struct error *err);
void cuda_sweeps_close(cuda *c);
// Copies to the device behind the work given so far, through pinned memory; `from` may be reused at once.
bool cuda_send(backend *be, void *to, const void *from, size_t bytes, const char *what);
// Tiles of n_rows rows over the current layout, longest first; NULL when the backend has failed. which: 0 or 1, a place to keep them.
const cuda_tiles *cuda_tiles_of(backend *be, int which, uint32_t n_rows, bool cached);

// Runs f with a null pointer of the act type: with_act(c, [&](auto *type) { using A = std::remove_pointer_t<decltype(type)>; ... }).
template <typename F> static inline void with_act(const cuda *c, F f)
{
	if (c->bf16)
		f((__nv_bfloat16 *)nullptr);
	else
		f((float *)nullptr);
}
#define ACT_TYPE(pointer) std::remove_pointer_t<decltype(pointer)>

static inline uint64_t cuda_act_bytes(const cuda *c, uint64_t n) { return n * (c->bf16 ? sizeof(__nv_bfloat16) : sizeof(float)); }

static inline uint32_t blocks_of(uint64_t n, uint32_t per_block)
{
	uint64_t b = (n + per_block - 1) / per_block;
	return b > 1048576 ? 1048576u : (uint32_t)b;    // kernels stride over the rest
}

// N neighbours, loaded and stored at once.
template <typename A, int N> struct alignas(sizeof(A) * N) cuda_pack { A v[N]; };
template <int N, typename A> static __device__ __forceinline__ cuda_pack<A, N> load_pack(const A *p) { return *(const cuda_pack<A, N> *)p; }
template <typename A, int N> static __device__ __forceinline__ void store_pack(A *p, const cuda_pack<A, N> &x)
{
	*(cuda_pack<A, N> *)p = x;
}

// Whether rows of n elements that begin at p may be read N at a time.
template <int N, typename A> static inline bool packs_fit(const A *p, uint64_t n)
{
	return n % N == 0 && (uintptr_t)p % (sizeof(A) * N) == 0;
}

// f is called with the number of elements to take at a time, N or 1, as an integral constant.
template <int N, typename F> static inline void with_packs(bool fit, F f)
{
	if (fit)
		f(std::integral_constant<int, N>());
	else
		f(std::integral_constant<int, 1>());
}

static __device__ __forceinline__ float to_float(float x) { return x; }
static __device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
template <typename A> static __device__ __forceinline__ A from_float(float x);
template <> __device__ __forceinline__ float from_float<float>(float x) { return x; }
template <> __device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float x) { return __float2bfloat16_rn(x); }

// Sum over the block in a fixed order; every thread gets it. `shared` has CUDA_WARP places and is free again at the next barrier.
template <typename S> static __device__ S block_sum(S v, S *shared)
{
	for (int o = CUDA_WARP / 2; o; o >>= 1)
		v += __shfl_xor_sync(0xffffffffu, v, o);
	__syncthreads();
	if (threadIdx.x % CUDA_WARP == 0)
		shared[threadIdx.x / CUDA_WARP] = v;
	__syncthreads();
	S sum = 0;
	for (uint32_t i = 0; i < blockDim.x / CUDA_WARP; i++)
		sum += shared[i];
	return sum;
}

static __device__ inline float block_max(float v, float *shared)
{
	for (int o = CUDA_WARP / 2; o; o >>= 1)
		v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, o));
	__syncthreads();
	if (threadIdx.x % CUDA_WARP == 0)
		shared[threadIdx.x / CUDA_WARP] = v;
	__syncthreads();
	float max = shared[0];
	for (uint32_t i = 1; i < blockDim.x / CUDA_WARP; i++)
		max = fmaxf(max, shared[i]);
	return max;
}

// One product, row-major: C (M,N) = A (M,K) op(B) (+ C when add). b_transposed: B is (N,K) and used as Bᵀ; else B is (K,N). a_transposed:
// A is (K,M) and used as Aᵀ. Types CUDA_R_32F or CUDA_R_16BF, in also
// CUDA_R_8F_E4M3 (A and B alike); accumulation in float.
struct cuda_gemm {
	uint32_t M, N, K;
	const void *a, *b;
	void *c;
	bool a_transposed, b_transposed, add;
	cudaDataType_t in, out;
};
void cuda_gemm_run(backend *be, const cuda_gemm *g);
void cuda_gemm_plans_free(cuda *c);
// fp8.cu: rows (n, K) of a matrix become rows first, first + 1, ... of w, made for them; cuda_linear and cuda_linear_real of such.
void cuda_fp8_fill(backend *be, weight *w, uint32_t first, const float *x, uint32_t n);
void cuda_fp8_linear(backend *be, struct act *y, const struct act *x, const weight *w, const struct real *bias, uint32_t rows);
void cuda_fp8_linear_real(backend *be, struct real *y, bool add, const struct act *x, const weight *w, const struct real *bias,
			  uint32_t rows);
// stored.cu: a matrix's rows as its file has them (NULL: err); what products read of any matrix but one of FP8, on the device: its data, or
// what it was unpacked to, valid until the next call; embed of such; what a matrix that goes holds of all this.
cuda_stored *cuda_stored_new(backend *be, const struct tensor *parts, uint32_t n_parts, struct error *err);
const void *cuda_weight_data(backend *be, const weight *w);
void cuda_stored_embed(backend *be, float *x, const weight *w);
void cuda_stored_free(backend *be, const weight *w);
void cuda_to_bf16(backend *be, __nv_bfloat16 *to, const float *from, uint64_t n);
cudaError_t cuda_find_code(void);           // of some kernel, for the current device

// cuda: the operations (their contracts: kernels/backend.h)
struct real *cuda_real_new(backend *be, size_t n, struct error *err);
void cuda_real_free(backend *be, struct real *x);
struct real *cuda_real_at(struct real *x, size_t i);
struct act *cuda_act_new(backend *be, size_t n, struct error *err);
void cuda_act_free(backend *be, struct act *x);
struct act *cuda_act_at_bf16(struct act *x, size_t i);
struct act *cuda_act_at_float(struct act *x, size_t i);
void cuda_real_write(backend *be, struct real *to, const float *from, size_t n);
void cuda_real_read(backend *be, double *to, const struct real *from, size_t n);
void cuda_act_write(backend *be, struct act *to, const float *from, size_t n);
void cuda_act_read(backend *be, double *to, const struct act *from, size_t n);
void cuda_real_zero(backend *be, struct real *x, size_t n);
void cuda_real_copy(backend *be, struct real *to, const struct real *from, size_t n);
struct weight *cuda_weight_load(backend *be, enum weight_kind kind, const struct tensor *parts, uint32_t n_parts, struct error *err);
struct weight *cuda_weight_load_apart(backend *be, enum weight_kind kind, const struct tensor *parts, uint32_t n_parts, struct error *err);
struct weight *cuda_weight_view(backend *be, struct real *array, uint32_t n_rows, uint32_t n_columns, struct error *err);
void cuda_weight_refresh(backend *be, struct weight *w);
void cuda_weight_free(backend *be, struct weight *w);
void cuda_embed(backend *be, struct real *x, const struct weight *w);
void cuda_embed_add(backend *be, struct real *x, const struct real *table, bool by_position, uint32_t C);
void cuda_embed_add_backward(backend *be, struct real *dtable, const struct real *dx, bool by_position, uint32_t C);
void cuda_layernorm(backend *be, struct act *y, struct real *z, const struct real *x, const struct real *gain, const struct real *bias,
		   float epsilon, uint32_t rows, uint32_t C);
void cuda_layernorm_backward(backend *be, struct real *dx, struct real *dgain, struct real *dbias, const struct act *dy,
			    const struct real *dz, const struct real *x, const struct real *gain, float epsilon, uint32_t rows, uint32_t C);
void cuda_rmsnorm(backend *be, struct act *y, const struct real *x, const struct real *gain, float epsilon, uint32_t rows, uint32_t C);
void cuda_linear(backend *be, struct act *y, const struct act *x, const struct weight *w, const struct real *bias, uint32_t rows);
void cuda_linear_real(backend *be, struct real *y, bool add, const struct act *x, const struct weight *w, const struct real *bias,
		      uint32_t rows);
void cuda_head_norm(backend *be, struct act *y, const struct act *x, const struct real *q_gain, const struct real *k_gain,
		    const struct attention_shape *shape, float epsilon);
void cuda_rope(backend *be, struct act *qkv, const struct real *cosine, const struct real *sine, uint32_t R,
	       const struct attention_shape *shape, bool inverse);
void cuda_attention(backend *be, struct act *y, struct real *lse, const struct act *qkv, const struct attention_shape *shape);
void cuda_cache_write(backend *be, struct act *cache, const struct act *qkv, const struct attention_shape *shape);
void cuda_attention_cached(backend *be, struct act *y, const struct act *qkv, const struct act *cache, const struct attention_shape *shape);
void cuda_geglu(backend *be, struct act *y, const struct act *gate_up, uint32_t rows, uint32_t F);
void cuda_add_rows(backend *be, struct real *x, const struct real *y, const uint32_t *rows, const float *scales, uint32_t n, uint32_t C);
void cuda_soft_cap(backend *be, struct real *x, float cap, size_t n);
void cuda_swiglu(backend *be, struct act *y, const struct act *gate_up, uint32_t rows, uint32_t F);
void cuda_gelu(backend *be, struct act *y, const struct act *x, enum gelu form, uint32_t rows, uint32_t F);
void cuda_gelu_backward(backend *be, struct act *dx, const struct act *dy, const struct act *x, enum gelu form, uint32_t rows,
		       uint32_t F);
void cuda_widen(backend *be, struct real *y, const struct act *x, size_t n);
void cuda_narrow(backend *be, struct act *y, const struct real *x, size_t n);
void cuda_pick_rows(backend *be, struct act *y, const struct act *x, const uint32_t *rows, uint32_t n, uint32_t C);
void cuda_pick_columns(backend *be, struct real *y, const struct real *x, const uint32_t *ids, uint32_t n, uint32_t n_ids, uint32_t V);
void cuda_mix(backend *be, struct real *y, bool add, const struct real *x, double weight, const double *lse, uint32_t n, uint32_t V);
void cuda_mix_log(backend *be, struct real *y, uint32_t n, uint32_t V);
void cuda_sweep(backend *be, const struct real *logits, uint32_t n, uint32_t V, struct sweep_row *rows);
void cuda_sweep_start(backend *be, const struct real *logits, uint32_t n, uint32_t V, struct sweep_row *rows);
void cuda_sweep_finish(backend *be);
void cuda_embed_backward(backend *be, struct real *dw, const struct real *dx, uint32_t C);
void cuda_rmsnorm_backward(backend *be, struct real *dx, struct real *dgain, const struct act *dy, const struct real *x,
			   const struct real *gain,
			   float epsilon, uint32_t rows, uint32_t C);
void cuda_linear_backward(backend *be, struct act *dx, struct real *dw, struct real *dbias, const struct act *dy, const struct act *x,
			  const struct weight *w, uint32_t rows);
void cuda_linear_real_backward(backend *be, struct act *dx, struct real *dw, struct real *dbias, const struct real *dy, const struct act *x,
			       const struct weight *w, uint32_t rows);
void cuda_head_norm_backward(backend *be, struct act *dx, struct real *dq_gain, struct real *dk_gain, const struct act *dy,
			     const struct act *x,
			     const struct real *q_gain, const struct real *k_gain, const struct attention_shape *shape, float epsilon);
void cuda_attention_backward(backend *be, struct act *dqkv, const struct act *dy, const struct act *qkv, const struct act *y,
			     const struct real *lse,
			     const struct attention_shape *shape);
void cuda_swiglu_backward(backend *be, struct act *dgate_up, const struct act *dy, const struct act *gate_up, uint32_t rows, uint32_t F);
void cuda_put_rows(backend *be, struct act *dx, const struct act *dy, const uint32_t *rows, uint32_t n, uint32_t T, uint32_t C);
void cuda_softmax_grad(backend *be, struct real *logits, uint32_t n, uint32_t V, const struct softmax_grad_row *rows);
double cuda_sum_squares(backend *be, const struct real *x, size_t n);
void cuda_lion(backend *be, struct real *w, struct real *m, const struct real *g, size_t n, const struct lion *l);
void cuda_fake_quantize(backend *be, struct real *x, uint32_t rows, uint32_t columns, uint32_t group, uint32_t bits);
void cuda_adamw(backend *be, struct real *w, struct real *m, struct real *v, const struct real *g, size_t n, const struct adamw *a);
