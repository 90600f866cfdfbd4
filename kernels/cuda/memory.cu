// SPDX-License-Identifier: Apache-2.0
// Device arrays within the budget, and copies that convert between the host's types and the device's.
#include "kernels/cuda/cuda.cuh"

#include <stdlib.h>

#include <new>

extern "C" {
#include "common/error.h"
}

void *cuda_alloc(cuda *c, size_t bytes, const char *what, struct error *err)
{
	void *p = NULL;
	if (bytes > c->memory_bytes - c->used_bytes) {
		error_set(err, ERROR_MEMORY, "gpu-memory", "%s needs %zu bytes, %llu of %llu are left", what, bytes,
			  (unsigned long long)(c->memory_bytes - c->used_bytes), (unsigned long long)c->memory_bytes);
		return NULL;
	}
	cudaError_t e = cudaMalloc(&p, bytes ? bytes : 1);
	if (e == cudaSuccess)
		e = cudaMemsetAsync(p, 0, bytes, c->stream);
	if (e != cudaSuccess) {
		cudaGetLastError();    // an allocation that failed is not sticky
		error_set(err, ERROR_MEMORY, "gpu-memory", "%s: %zu bytes: %s", what, bytes, cudaGetErrorString(e));
		cudaFree(p);
		return NULL;
	}
	c->sizes[p] = bytes;
	c->used_bytes += bytes;
	return p;
}

void cuda_release(cuda *c, void *p)
{
	if (!p)
		return;
	auto found = c->sizes.find(p);
	if (found != c->sizes.end()) {
		c->used_bytes -= found->second;
		c->sizes.erase(found);
	}
	cudaFree(p);
}

static size_t act_bytes(const cuda *c) { return c->bf16 ? sizeof(__nv_bfloat16) : sizeof(float); }

struct real *cuda_real_new(backend *be, size_t n, struct error *err)
{
	return (struct real *)cuda_alloc(cuda_of(be), n * sizeof(float), "an array", err);
}

struct act *cuda_act_new(backend *be, size_t n, struct error *err)
{
	return (struct act *)cuda_alloc(cuda_of(be), n * act_bytes(cuda_of(be)), "an array", err);
}

void cuda_real_free(backend *be, struct real *x) { cuda_release(cuda_of(be), x); }
void cuda_act_free(backend *be, struct act *x) { cuda_release(cuda_of(be), x); }
struct real *cuda_real_at(struct real *x, size_t i) { return (struct real *)((float *)x + i); }
struct act *cuda_act_at_bf16(struct act *x, size_t i) { return (struct act *)((__nv_bfloat16 *)x + i); }
struct act *cuda_act_at_float(struct act *x, size_t i) { return (struct act *)((float *)x + i); }

void cuda_real_write(backend *be, struct real *to, const float *from, size_t n)
{
	if (backend_failed(be))
		return;
	cuda_check(be, cudaMemcpyAsync(to, from, n * sizeof(float), cudaMemcpyHostToDevice, cuda_of(be)->stream), "writing an array");
	cuda_check(be, cudaStreamSynchronize(cuda_of(be)->stream), "writing an array");
}

void cuda_real_zero(backend *be, struct real *x, size_t n)
{
	if (!backend_failed(be))
		cuda_check(be, cudaMemsetAsync(x, 0, n * sizeof(float), cuda_of(be)->stream), "zeroing an array");
}

void cuda_real_copy(backend *be, struct real *to, const struct real *from, size_t n)
{
	if (!backend_failed(be))
		cuda_check(be, cudaMemcpyAsync(to, from, n * sizeof(float), cudaMemcpyDeviceToDevice, cuda_of(be)->stream), "copying an array");
}

// n elements to the host; zeros when that failed, so that no caller reads uninitialised memory.
template <typename E> static void read_array(backend *be, double *to, const E *from, size_t n)
{
	cuda *c = cuda_of(be);
	E *host = (E *)calloc(n ? n : 1, sizeof *host);
	if (!host)
		backend_fail(be, "no memory to read %zu numbers", n);
	if (host && !backend_failed(be)) {
		cuda_check(be, cudaMemcpyAsync(host, from, n * sizeof *host, cudaMemcpyDeviceToHost, c->stream), "reading an array");
		cuda_check(be, cudaStreamSynchronize(c->stream), "reading an array");
	}
	for (size_t i = 0; i < n; i++)
		to[i] = host ? (double)(float)host[i] : 0;
	free(host);
}

void cuda_real_read(backend *be, double *to, const struct real *from, size_t n)
{
	read_array(be, to, real_of(from), n);
}

void cuda_act_read(backend *be, double *to, const struct act *from, size_t n)
{
	with_act(cuda_of(be), [&](auto *type) { read_array(be, to, (const ACT_TYPE(type) *)from, n); });
}

void cuda_act_write(backend *be, struct act *to, const float *from, size_t n)
{
	if (!cuda_of(be)->bf16) {
		cuda_real_write(be, (struct real *)to, from, n);
		return;
	}
	if (backend_failed(be))
		return;
	__nv_bfloat16 *host = new (std::nothrow) __nv_bfloat16[n ? n : 1];
	if (!host) {
		backend_fail(be, "no memory to write %zu numbers", n);
		return;
	}
	for (size_t i = 0; i < n; i++)
		host[i] = __float2bfloat16_rn(from[i]);
	cuda_check(be, cudaMemcpyAsync(to, host, n * sizeof *host, cudaMemcpyHostToDevice, cuda_of(be)->stream), "writing an array");
	cuda_check(be, cudaStreamSynchronize(cuda_of(be)->stream), "writing an array");
	delete[] host;
}
