// SPDX-License-Identifier: Apache-2.0
// Opens the GPU, keeps its state and its first failure, and lists the operations.
#include "kernels/cuda/cuda.cuh"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <new>

extern "C" {
#include "common/error.h"
#include "kernels/backend_list.h"
}

static_assert(cudaErrorMemoryAllocation == 2 && cudaErrorInitializationError == 3 && cudaErrorInsufficientDriver == 35 &&
	      cudaErrorDevicesUnavailable == 46 && cudaErrorNoDevice == 100 && cudaErrorSystemNotReady == 802 &&
	      cudaErrorECCUncorrectable == 214 && cudaErrorNvlinkUncorrectable == 220 && cudaErrorUnknown == 999, "plan.c has other numbers");

#define CUDA_FP8_CAPABILITY 89           // the first with products of E4M3

// Of the first failure: what follows it says nothing new.
static void note_fault(backend *be, enum device_fault fault)
{
	if (!backend_failed(be))
		be->fault = fault;
}

bool cuda_check(backend *be, cudaError_t e, const char *what)
{
	if (e == cudaSuccess)
		return true;
	note_fault(be, plan_fault((int)e));
	backend_fail(be, "CUDA: %s: %s (%d)", what, cudaGetErrorString(e), (int)e);
	return false;
}

bool cuda_check_blas(backend *be, cublasStatus_t e, const char *what)
{
	if (e == CUBLAS_STATUS_SUCCESS)
		return true;
	enum device_fault fault = plan_fault((int)cudaGetLastError());      // what cuBLAS met, if that was the device
	note_fault(be, fault ? fault : DEVICE_FAULT_RESTART);
	backend_fail(be, "cuBLAS: %s: %s (%d)", what, cublasLtGetStatusString(e), (int)e);
	return false;
}

static void cuda_close(backend *be)
{
	cuda *c = cuda_of(be);
	if (!c)
		return;
	if (c->stream)
		cudaStreamSynchronize(c->stream);
	cuda_gemm_plans_free(c);
	cuda_sweeps_close(c);
	if (c->blas)
		cublasLtDestroy(c->blas);
	cuda_arena_close(c);
	for (int i = 0; i < 2; i++) {
		cudaFreeHost(c->staging[i]);
		if (c->staged[i])
			cudaEventDestroy(c->staged[i]);
	}
	cudaFreeHost(c->results);
	if (c->marked)
		cudaEventDestroy(c->marked);
	if (c->stream)
		cudaStreamDestroy(c->stream);
	free(c->starts_host);
	free(c->slot_starts_host);
	free(c->tiles_host);
	delete c;
	be->device = NULL;
}

// Whether this build has code for the device, or PTX that its driver takes: asked of one kernel for all, before anything is loaded.
static int check_code(const cudaDeviceProp *p, struct error *err)
{
	cudaError_t e = cuda_find_code();
	if (e == cudaSuccess)
		return 0;
	cudaGetLastError();
	return error_set(err, ERROR_UNSUPPORTED, "device", "this build has no code that %.60s (compute capability %d.%d) runs: %s: configure it with "
			 "CUDA_ARCHITECTURES=%d%d", p->name, p->major, p->minor, cudaGetErrorString(e), p->major, p->minor);
}

// The device, and the element type of act.
static int choose_device(backend *be, const backend_options *options, struct error *err)
{
	cuda *c = cuda_of(be);
	cudaDeviceProp p;
	size_t free_bytes = 0, total = 0;
	int shared = 0;
	cudaError_t e = cudaSetDevice(0);
	if (e == cudaSuccess)
		e = cudaGetDeviceProperties(&p, 0);
	if (e == cudaSuccess)
		e = cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0);
	if (e == cudaSuccess)
		e = cudaMemGetInfo(&free_bytes, &total);    // makes the context
	enum plan_error kind = plan_error_class(e);
	if (kind == PLAN_ERROR_ABSENT)
		return error_set(err, ERROR_UNSUPPORTED, "device", "no CUDA device: %s", cudaGetErrorString(e));
	if (kind != PLAN_ERROR_NONE)    // a device is there: no quiet way round it
		return error_set(err, kind == PLAN_ERROR_MEMORY ? ERROR_MEMORY : ERROR_UNAVAILABLE,
				 kind == PLAN_ERROR_STICKY ? device_fault_field(plan_fault((int)e)) : "device", "the GPU cannot be used%s: %s (%d)",
				 kind == PLAN_ERROR_NOT_READY ? " now" : "", cudaGetErrorString(e), (int)e);
	if (p.major < 8)
		return error_set(err, ERROR_UNSUPPORTED, "device", "%s has compute capability %d.%d, 8.0 is needed", p.name, p.major, p.minor);
	int r = check_code(&p, err);
	if (r < 0)
		return r;
	if (options->numeric == BACKEND_NUMERIC_INT8)
		return error_set(err, ERROR_UNSUPPORTED, "numeric", "device cuda has no products of int8: cpu has");
	c->fp8 = options->numeric == BACKEND_NUMERIC_FP8;
	if (c->fp8 && p.major * 10 + p.minor < CUDA_FP8_CAPABILITY)
		return error_set(err, ERROR_UNSUPPORTED, "numeric", "%.60s has compute capability %d.%d: products of fp8 need 8.9", p.name,
				 p.major, p.minor);
	c->bf16 = options->numeric != BACKEND_NUMERIC_F32;
	c->max_rows = options->max_rows;
	c->shared_bytes = shared > 0 ? (size_t)shared : 0;
	be->view_numeric = c->bf16 ? "bf16" : "f32";
	be->numeric = c->fp8 ? "fp8" : be->view_numeric;
	snprintf(c->description, sizeof c->description, "%.60s, compute capability %d.%d, %.1f GiB", p.name, p.major, p.minor,
		 (double)total / (1u << 30));
	be->description = c->description;
	return 0;
}

static int open_handles(backend *be, struct error *err)
{
	cuda *c = cuda_of(be);
	size_t n = (size_t)c->max_rows + 1;
	bool good = cudaStreamCreateWithFlags(&c->stream, cudaStreamNonBlocking) == cudaSuccess &&
		    cudaEventCreateWithFlags(&c->marked, cudaEventDisableTiming) == cudaSuccess;
	for (int i = 0; i < 2; i++)
		good = good && cudaEventCreateWithFlags(&c->staged[i], cudaEventDisableTiming) == cudaSuccess &&
		       cudaMallocHost(&c->staging[i], CUDA_STAGING_BYTES) == cudaSuccess;
	good = good && cudaMallocHost(&c->results, CUDA_RESULT_BYTES) == cudaSuccess && cublasLtCreate(&c->blas) == CUBLAS_STATUS_SUCCESS;
	if (!good)
		return error_set(err, ERROR_MEMORY, "device", "the GPU refused a stream, a handle or pinned memory: %s",
				 cudaGetErrorString(cudaGetLastError()));
	c->starts_host = (uint32_t *)calloc(n, sizeof *c->starts_host);
	c->slot_starts_host = (uint32_t *)calloc(n, sizeof *c->slot_starts_host);
	c->tiles_host = (cuda_tile *)calloc(2 * n, sizeof *c->tiles_host);
	if (!c->starts_host || !c->slot_starts_host || !c->tiles_host)
		return error_set(err, ERROR_MEMORY, NULL, "no memory for a batch of %u positions", c->max_rows);
	return 0;
}

// The backend's own device arrays: places in the reserve like all others (memory.cu's own_bytes counts them).
static int open_arrays(backend *be, struct error *err)
{
	cuda *c = cuda_of(be);
	size_t n = (size_t)c->max_rows + 1;
	struct { void **array; size_t bytes; } arrays[] = {
		{&c->workspace, CUDA_WORKSPACE_BYTES}, {&c->scratch, CUDA_SCRATCH_BYTES}, {(void **)&c->tokens, n * sizeof *c->tokens},
		{(void **)&c->positions, n * sizeof *c->positions}, {(void **)&c->row_list, n * sizeof *c->row_list},
		{(void **)&c->tiles[0].device, 2 * n * sizeof(cuda_tile)}, {(void **)&c->tiles[1].device, 2 * n * sizeof(cuda_tile)},
		{(void **)&c->partial, CUDA_BLOCK * sizeof *c->partial}, {(void **)&c->slots, c->max_slots * sizeof *c->slots}, {&c->window, c->window_bytes},
	};
	for (auto &a : arrays) {
		if (!a.bytes)
			continue;
		*a.array = cuda_alloc(be, a.bytes, "a work buffer", err);
		if (!*a.array)
			return error_errno(ERROR_MEMORY);
	}
	return 0;
}

static int cuda_open(backend *be, const backend_options *options, struct error *err)
{
	be->device = new (std::nothrow) cuda();
	if (!be->device)
		return error_set(err, ERROR_MEMORY, NULL, "no memory for backend cuda");
	int r = choose_device(be, options, err);
	if (!r)
		r = open_handles(be, err);
	if (!r)
		r = cuda_arena_open(be, options, err);
	if (!r)
		r = open_arrays(be, err);
	if (!r)
		r = cuda_sweeps_open(be, err);
	if (r < 0)
		cuda_close(be);
	return r;
}

// What the kernels keep of a row, and of the heads that share its keys, has a fixed size.
static int cuda_check_shape(backend *, const attention_shape *s, struct error *err)
{
	if (s->head_size <= CUDA_MAX_HEAD_SIZE && s->n_heads / s->n_kv_heads <= CUDA_MAX_GROUP)
		return 0;
	return error_set(err, ERROR_UNSUPPORTED, "device", "attention heads of %u values, %u to a key: the CUDA backend takes up to %d, and %d",
			 s->head_size, s->n_heads / s->n_kv_heads, CUDA_MAX_HEAD_SIZE, CUDA_MAX_GROUP);
}

static void cuda_sync(backend *be)
{
	if (!backend_failed(be))
		cuda_check(be, cudaStreamSynchronize(cuda_of(be)->stream), "waiting for the device");
}

static void cuda_mark(backend *be)
{
	if (!backend_failed(be))
		cuda_check(be, cudaEventRecord(cuda_of(be)->marked, cuda_of(be)->stream), "marking a place");
}

static void cuda_wait(backend *be)
{
	if (!backend_failed(be))
		cuda_check(be, cudaEventSynchronize(cuda_of(be)->marked), "waiting for the device");
}

// The list of slots: reserved at open where the caller counted it, else it grows.
static bool keep_slots(backend *be, const struct layout *l)
{
	cuda *c = cuda_of(be);
	struct error err = {};
	uint64_t n = l->slot_starts[l->n_sequences];
	if (n > c->max_slots) {
		cuda_release(be, c->slots);
		c->max_slots = 0;
		c->slots = (uint32_t *)cuda_alloc(be, n * sizeof *c->slots, "a list of cache slots", &err);
		if (!c->slots) {
			backend_fail(be, "%s", err.message);
			return false;
		}
		c->max_slots = n;
	}
	memcpy(c->slot_starts_host, l->slot_starts, ((size_t)l->n_sequences + 1) * sizeof *c->slot_starts_host);
	return cuda_send(be, c->slots, l->slots, n * sizeof *c->slots, "copying a list of slots");
}

static void cuda_begin(backend *be, const struct layout *l)
{
	cuda *c = cuda_of(be);
	if (backend_failed(be))
		return;
	assert(l->n_positions <= c->max_rows && l->n_sequences <= c->max_rows);
	c->n_positions = l->n_positions;
	c->n_sequences = l->n_sequences;
	c->has_slots = l->slots != NULL;
	c->tiles[0].n_rows = c->tiles[1].n_rows = 0;
	memcpy(c->starts_host, l->starts, ((size_t)l->n_sequences + 1) * sizeof *c->starts_host);
	if (cuda_send(be, c->tokens, l->tokens, l->n_positions * sizeof *c->tokens, "copying a layout") &&
	    cuda_send(be, c->positions, l->positions, l->n_positions * sizeof *c->positions, "copying a layout") && c->has_slots)
		keep_slots(be, l);
}

// Rows `first`.. of sequence s as a tile; its position counts from the sequence's start, before which lies what a cache holds.
static cuda_tile tile_at(const cuda *c, uint32_t s, uint32_t first, uint32_t n_rows, bool cached)
{
	uint32_t row = c->starts_host[s] + first, left = c->starts_host[s + 1] - row, position = first, keys = c->starts_host[s];
	if (cached) {
		position = c->slot_starts_host[s + 1] - c->slot_starts_host[s] - left;
		keys = c->slot_starts_host[s];
	}
	return cuda_tile{row, left < n_rows ? left : n_rows, position, keys, row + left};
}

const cuda_tiles *cuda_tiles_of(backend *be, int which, uint32_t n_rows, bool cached)
{
	cuda *c = cuda_of(be);
	cuda_tiles *t = &c->tiles[which];
	if (backend_failed(be))
		return NULL;
	if (t->n_rows == n_rows && t->cached == cached)
		return t;
	uint32_t n = 0;
	for (uint32_t s = 0; s < c->n_sequences; s++)
		for (uint32_t first = 0; first < c->starts_host[s + 1] - c->starts_host[s]; first += n_rows)
			c->tiles_host[n++] = tile_at(c, s, first, n_rows, cached);
	std::stable_sort(c->tiles_host, c->tiles_host + n,
			 [](const cuda_tile &a, const cuda_tile &b) { return a.position + a.n_rows > b.position + b.n_rows; });
	t->n = n;
	t->n_rows = n_rows;
	t->cached = cached;
	return cuda_send(be, t->device, c->tiles_host, n * sizeof *t->device, "copying tiles") ? t : NULL;
}

// act_at has no backend to ask for the element size, so there is one table per type; open_bf16 switches to the other when asked.
static int open_cuda(backend *be, const backend_options *options, struct error *err);

#define CUDA_OPERATIONS(act_at_function) \
	.name = "cuda", .head_rows = BACKEND_MAX_HEAD_ROWS, .open = open_cuda, .close = cuda_close, .sync = cuda_sync, \
	.asynchronous = true, .mark = cuda_mark, .wait = cuda_wait, .check_shape = cuda_check_shape, \
	.real_new = cuda_real_new, .real_free = cuda_real_free, .real_at = cuda_real_at, \
	.act_new = cuda_act_new, .act_free = cuda_act_free, .act_at = act_at_function, \
	.real_write = cuda_real_write, .real_read = cuda_real_read, .act_write = cuda_act_write, .act_read = cuda_act_read, \
	.real_zero = cuda_real_zero, .real_copy = cuda_real_copy, \
	.weight_load = cuda_weight_load, .weight_load_apart = cuda_weight_load_apart, .weight_view = cuda_weight_view, \
	.weight_refresh = cuda_weight_refresh, .weight_free = cuda_weight_free, \
	.begin = cuda_begin, .embed = cuda_embed, .embed_add = cuda_embed_add, .rmsnorm = cuda_rmsnorm, .layernorm = cuda_layernorm, \
	.linear = cuda_linear, .linear_real = cuda_linear_real, \
	.head_norm = cuda_head_norm, .rope = cuda_rope, .attention = cuda_attention, .cache_write = cuda_cache_write, \
	.attention_cached = cuda_attention_cached, .swiglu = cuda_swiglu, .geglu = cuda_geglu, .gelu = cuda_gelu, \
	.widen = cuda_widen, .narrow = cuda_narrow, .pick_rows = cuda_pick_rows, .add_rows = cuda_add_rows, .soft_cap = cuda_soft_cap, \
	.pick_columns = cuda_pick_columns, \
	.mix = cuda_mix, .mix_log = cuda_mix_log, .sweep = cuda_sweep, .sweep_start = cuda_sweep_start, \
	.sweep_finish = cuda_sweep_finish, .embed_backward = cuda_embed_backward, \
	.embed_add_backward = cuda_embed_add_backward, .rmsnorm_backward = cuda_rmsnorm_backward, .layernorm_backward = cuda_layernorm_backward, \
	.linear_backward = cuda_linear_backward, .linear_real_backward = cuda_linear_real_backward, \
	.head_norm_backward = cuda_head_norm_backward, .attention_backward = cuda_attention_backward, \
	.swiglu_backward = cuda_swiglu_backward, .gelu_backward = cuda_gelu_backward, .put_rows = cuda_put_rows, \
	.softmax_grad = cuda_softmax_grad, \
	.sum_squares = cuda_sum_squares, .adamw = cuda_adamw, .lion = cuda_lion, .fake_quantize = cuda_fake_quantize

extern "C" const struct backend_ops backend_cuda_ops = {CUDA_OPERATIONS(cuda_act_at_bf16)};
static const struct backend_ops float_ops = {CUDA_OPERATIONS(cuda_act_at_float)};

static int open_cuda(backend *be, const backend_options *options, struct error *err)
{
	int r = cuda_open(be, options, err);
	if (!r && !cuda_of(be)->bf16)
		be->ops = &float_ops;
	return r;
}
