// SPDX-License-Identifier: Apache-2.0
// Opens the GPU, keeps its state and its first failure, and lists the operations.
#include "kernels/cuda/cuda.cuh"

#include <stdio.h>
#include <string.h>

#include <new>

extern "C" {
#include "common/error.h"
#include "kernels/backend_list.h"
}

static_assert(cudaErrorMemoryAllocation == 2 && cudaErrorInitializationError == 3 && cudaErrorInsufficientDriver == 35 &&
	      cudaErrorDevicesUnavailable == 46 && cudaErrorNoDevice == 100 && cudaErrorSystemNotReady == 802, "plan.c has other numbers");

bool cuda_check(backend *be, cudaError_t e, const char *what)
{
	if (e == cudaSuccess)
		return true;
	backend_fail(be, "CUDA: %s: %s (%d)", what, cudaGetErrorString(e), (int)e);
	return false;
}

bool cuda_check_blas(backend *be, cublasStatus_t e, const char *what)
{
	if (e == CUBLAS_STATUS_SUCCESS)
		return true;
	backend_fail(be, "cuBLAS: %s: %s (%d)", what, cublasLtGetStatusString(e), (int)e);
	return false;
}

static void cuda_close(backend *be)
{
	cuda *c = cuda_of(be);
	if (!c)
		return;
	cudaStreamSynchronize(c->stream);
	cuda_gemm_plans_free(c);
	if (c->blas)
		cublasLtDestroy(c->blas);
	for (void *p : {c->workspace, c->scratch, (void *)c->tokens, (void *)c->positions, (void *)c->starts, (void *)c->row_list, (void *)c->partial})
		cudaFree(p);
	cudaFreeHost(c->staging);
	cudaFreeHost(c->partial_host);
	if (c->staged)
		cudaEventDestroy(c->staged);
	if (c->stream)
		cudaStreamDestroy(c->stream);
	delete c;
	be->device = NULL;
}

// The device, its memory budget and the element type of act.
static int choose_device(backend *be, const backend_options *options, struct error *err)
{
	cuda *c = cuda_of(be);
	cudaDeviceProp p;
	size_t free_bytes = 0, total_bytes = 0;
	cudaError_t e = cudaSetDevice(0);
	if (e == cudaSuccess)
		e = cudaGetDeviceProperties(&p, 0);
	if (e == cudaSuccess)
		e = cudaMemGetInfo(&free_bytes, &total_bytes);
	if (e != cudaSuccess)
		return error_set(err, ERROR_UNSUPPORTED, "device", "no usable CUDA device: %s", cudaGetErrorString(e));
	if (p.major < 8)
		return error_set(err, ERROR_UNSUPPORTED, "device", "%s has compute capability %d.%d, 8.0 is needed", p.name, p.major, p.minor);
	c->memory_bytes = plan_memory(options->memory_bytes, free_bytes);
	if (!c->memory_bytes)
		return error_set(err, ERROR_MEMORY, "gpu-memory", "%llu bytes asked, %zu free on %s", (unsigned long long)options->memory_bytes,
				 free_bytes, p.name);
	c->bf16 = options->numeric != BACKEND_NUMERIC_F32;
	be->numeric = c->bf16 ? "bf16" : "f32";
	snprintf(c->description, sizeof c->description, "%.60s, %.1f GiB reserved", p.name, (double)c->memory_bytes / (1u << 30));
	be->description = c->description;
	return 0;
}

static int reserve(backend *be, uint32_t max_rows, struct error *err)
{
	cuda *c = cuda_of(be);
	size_t n = (size_t)max_rows + 1;
	c->max_rows = max_rows;
	bool good = cudaStreamCreateWithFlags(&c->stream, cudaStreamNonBlocking) == cudaSuccess &&
		    cudaEventCreateWithFlags(&c->staged, cudaEventDisableTiming) == cudaSuccess &&
		    cublasLtCreate(&c->blas) == CUBLAS_STATUS_SUCCESS && cudaMalloc(&c->workspace, CUDA_WORKSPACE_BYTES) == cudaSuccess &&
		    cudaMalloc(&c->scratch, CUDA_SCRATCH_BYTES) == cudaSuccess && cudaMalloc(&c->tokens, 4 * n) == cudaSuccess &&
		    cudaMalloc(&c->positions, 4 * n) == cudaSuccess && cudaMalloc(&c->starts, 4 * n) == cudaSuccess &&
		    cudaMalloc(&c->row_list, 4 * n) == cudaSuccess && cudaMallocHost(&c->staging, 12 * n) == cudaSuccess &&
		    cudaMalloc(&c->partial, CUDA_BLOCK * sizeof(double)) == cudaSuccess &&
		    cudaMallocHost(&c->partial_host, CUDA_BLOCK * sizeof(double)) == cudaSuccess;
	if (!good)
		return error_set(err, ERROR_MEMORY, "device", "the GPU refused the work buffers for %u rows: %s", max_rows,
				 cudaGetErrorString(cudaGetLastError()));
	return 0;
}

static int cuda_open(backend *be, const backend_options *options, struct error *err)
{
	be->device = new (std::nothrow) cuda();
	if (!be->device)
		return error_set(err, ERROR_MEMORY, NULL, "no memory for backend cuda");
	int r = choose_device(be, options, err);
	if (!r)
		r = reserve(be, options->max_rows, err);
	if (r < 0)
		cuda_close(be);
	return r;
}

static void cuda_sync(backend *be)
{
	if (!backend_failed(be))
		cuda_check(be, cudaStreamSynchronize(cuda_of(be)->stream), "waiting for the device");
}

// The layout goes through pinned staging; the event keeps the next batch from overwriting what is still being copied.
static void cuda_begin(backend *be, const struct layout *l)
{
	cuda *c = cuda_of(be);
	if (backend_failed(be) || !cuda_check(be, cudaEventSynchronize(c->staged), "waiting for the last layout"))
		return;
	size_t T = l->n_positions, n = (size_t)l->n_sequences + 1, gap = (size_t)c->max_rows + 1;
	memcpy(c->staging, l->tokens, 4 * T);
	memcpy(c->staging + gap, l->positions, 4 * T);
	memcpy(c->staging + 2 * gap, l->starts, 4 * n);
	cudaMemcpyAsync(c->tokens, c->staging, 4 * T, cudaMemcpyHostToDevice, c->stream);
	cudaMemcpyAsync(c->positions, c->staging + gap, 4 * T, cudaMemcpyHostToDevice, c->stream);
	cudaMemcpyAsync(c->starts, c->staging + 2 * gap, 4 * n, cudaMemcpyHostToDevice, c->stream);
	c->n_positions = l->n_positions;
	c->n_sequences = l->n_sequences;
	cuda_check(be, cudaEventRecord(c->staged, c->stream), "copying a layout");
}

// act_at has no backend to ask for the element size, so there is one table per type; open_bf16 switches to the other when asked.
static int open_cuda(backend *be, const backend_options *options, struct error *err);

#define CUDA_OPERATIONS(act_at_function) \
	.name = "cuda", .head_rows = 1024, .open = open_cuda, .close = cuda_close, .sync = cuda_sync, \
	.real_new = cuda_real_new, .real_free = cuda_real_free, .real_at = cuda_real_at, \
	.act_new = cuda_act_new, .act_free = cuda_act_free, .act_at = act_at_function, \
	.real_write = cuda_real_write, .real_read = cuda_real_read, .act_write = cuda_act_write, .act_read = cuda_act_read, \
	.real_zero = cuda_real_zero, .real_copy = cuda_real_copy, \
	.weight_load = cuda_weight_load, .weight_view = cuda_weight_view, .weight_refresh = cuda_weight_refresh, .weight_free = cuda_weight_free, \
	.begin = cuda_begin, .embed = cuda_embed, .rmsnorm = cuda_rmsnorm, .linear = cuda_linear, .linear_real = cuda_linear_real, \
	.head_norm = cuda_head_norm, .rope = cuda_rope, .attention = cuda_attention, .swiglu = cuda_swiglu, .pick_rows = cuda_pick_rows, \
	.sweep = cuda_sweep, .embed_backward = cuda_embed_backward, .rmsnorm_backward = cuda_rmsnorm_backward, \
	.linear_backward = cuda_linear_backward, .linear_real_backward = cuda_linear_real_backward, \
	.head_norm_backward = cuda_head_norm_backward, .attention_backward = cuda_attention_backward, \
	.swiglu_backward = cuda_swiglu_backward, .put_rows = cuda_put_rows, .softmax_grad = cuda_softmax_grad, \
	.sum_squares = cuda_sum_squares, .adamw = cuda_adamw

extern "C" const struct backend_ops backend_cuda_ops = {CUDA_OPERATIONS(cuda_act_at_bf16)};
static const struct backend_ops float_ops = {CUDA_OPERATIONS(cuda_act_at_float)};

static int open_cuda(backend *be, const backend_options *options, struct error *err)
{
	int r = cuda_open(be, options, err);
	if (!r && !cuda_of(be)->bf16)
		be->ops = &float_ops;
	return r;
}
