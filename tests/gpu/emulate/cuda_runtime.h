// SPDX-License-Identifier: Apache-2.0
// A stand-in for CUDA's header of this name, for tests alone: compiles kernels/cuda as C++ and runs it on the processor, so that the
// kernels are held to kernels/ref where there is no GPU. It shows wrong arithmetic, wrong indices (under the address sanitizer), missing
// barriers (threads run in changing orders) and missing waits (work given to a stream is done only when somebody waits for it). It says
// nothing of speed, of the compiler for the device, or of the real libraries.
#pragma once

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <algorithm>
#include <functional>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __shared__ thread_local           // one block runs at a time
#define __restrict__
#define __launch_bounds__(...)
#define __grid_constant__

struct uint2 { uint32_t x, y; };
struct uint3 { uint32_t x, y, z; };
struct alignas(16) uint4 { uint32_t x, y, z, w; };
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct dim3 {
	uint32_t x, y, z;
	dim3(uint32_t nx = 1, uint32_t ny = 1, uint32_t nz = 1) : x(nx), y(ny), z(nz) {}
};
static inline uint2 make_uint2(uint32_t x, uint32_t y) { return uint2{x, y}; }
static inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return uint4{x, y, z, w}; }
static inline float2 make_float2(float x, float y) { return float2{x, y}; }
static inline float4 make_float4(float x, float y, float z, float w) { return float4{x, y, z, w}; }

// ---- what a kernel sees

// Read through a function each time: the thread sanitizer must not see it, and the compiler must not keep it over a barrier.
uint32_t emulate_index(int which);
template <int which> struct emulate_number { operator uint32_t() const { return emulate_index(which); } };
template <int which> struct emulate_numbers { emulate_number<which> x; emulate_number<which + 1> y; emulate_number<which + 2> z; };
static const emulate_numbers<0> threadIdx;
static const emulate_numbers<3> blockIdx;
static const emulate_numbers<6> blockDim;
static const emulate_numbers<9> gridDim;

// All live threads of the block, or the lanes of `mask` in the warp, must come to the same line.
void emulate_barrier(const char *file, int line);
#define __syncthreads() emulate_barrier(__FILE__, __LINE__)
int emulate_barrier_count(bool vote, const char *file, int line);
#define __syncthreads_count(vote) emulate_barrier_count(vote, __FILE__, __LINE__)
#define __syncthreads_or(vote) (emulate_barrier_count(vote, __FILE__, __LINE__) != 0)
// Every lane of the mask gives `bytes` (at most 64); returns what lane i gave at slot i.
struct emulate_slot { alignas(16) unsigned char bytes[64]; };
const emulate_slot *emulate_exchange(uint32_t mask, const void *value, size_t bytes, const char *file, int line);
uint32_t emulate_lane();

template <typename T> static inline T emulate_shuffle(uint32_t mask, T v, uint32_t from, const char *file, int line)
{
	T got;
	memcpy(&got, emulate_exchange(mask, &v, sizeof v, file, line)[from & 31].bytes, sizeof got);
	return got;
}
#define __shfl_sync(mask, v, from) emulate_shuffle(mask, v, (uint32_t)(from), __FILE__, __LINE__)
#define __shfl_xor_sync(mask, v, bits) emulate_shuffle(mask, v, emulate_lane() ^ (uint32_t)(bits), __FILE__, __LINE__)
#define __shfl_up_sync(mask, v, by) emulate_shuffle(mask, v, emulate_lane() < (uint32_t)(by) ? emulate_lane() : emulate_lane() - (uint32_t)(by), \
						    __FILE__, __LINE__)
#define __shfl_down_sync(mask, v, by) emulate_shuffle(mask, v, emulate_lane() + (uint32_t)(by) > 31 ? emulate_lane() : emulate_lane() + (uint32_t)(by), \
						      __FILE__, __LINE__)
#define __syncwarp() ((void)emulate_exchange(0xffffffffu, "", 1, __FILE__, __LINE__))

static inline uint32_t emulate_ballot(uint32_t mask, bool vote, const char *file, int line)
{
	const emulate_slot *slots = emulate_exchange(mask, &vote, sizeof vote, file, line);
	uint32_t bits = 0;
	for (uint32_t i = 0; i < 32; i++)
		bits |= (mask >> i & 1) && slots[i].bytes[0] ? 1u << i : 0;
	return bits;
}
#define __ballot_sync(mask, vote) emulate_ballot(mask, vote, __FILE__, __LINE__)
#define __any_sync(mask, vote) (emulate_ballot(mask, vote, __FILE__, __LINE__) != 0)

uint32_t emulate_atomic_add(uint32_t *p, uint32_t v);
static inline uint32_t atomicAdd(uint32_t *p, uint32_t v) { return emulate_atomic_add(p, v); }

using std::max;
using std::min;
using std::isfinite;
using std::isnan;
static inline uint32_t __float_as_uint(float f) { uint32_t u; memcpy(&u, &f, 4); return u; }
static inline float __uint_as_float(uint32_t u) { float f; memcpy(&f, &u, 4); return f; }
#define __expf(x) expf(x)
#define __logf(x) logf(x)
static inline float __fdividef(float a, float b) { return a / b; }
static inline float rsqrtf(float x) { return 1 / sqrtf(x); }
static inline float __frcp_rn(float x) { return 1 / x; }
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline float __fadd_rn(float a, float b) { return a + b; }
static inline int __popc(uint32_t x) { return __builtin_popcount(x); }
static inline int __ffs(uint32_t x) { return __builtin_ffs((int)x); }
static inline int __clz(uint32_t x) { return x ? __builtin_clz(x) : 32; }
template <typename T> static inline T __ldg(const T *p) { return *p; }
template <typename T> static inline T __ldcs(const T *p) { return *p; }

// ---- the runtime

enum cudaError_t {
	cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorMemoryAllocation = 2, cudaErrorInitializationError = 3,
		cudaErrorInsufficientDriver = 35,
	cudaErrorDevicesUnavailable = 46, cudaErrorNoDevice = 100, cudaErrorNoKernelImageForDevice = 209, cudaErrorECCUncorrectable = 214, cudaErrorNvlinkUncorrectable = 220, cudaErrorIllegalAddress = 700, cudaErrorSystemNotReady = 802, cudaErrorUnknown = 999
};
enum cudaMemcpyKind { cudaMemcpyHostToDevice = 1, cudaMemcpyDeviceToHost = 2, cudaMemcpyDeviceToDevice = 3 };
enum cudaDataType_t { CUDA_R_32F = 0, CUDA_R_16BF = 14, CUDA_R_8F_E4M3 = 28 };
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount = 16, cudaDevAttrMaxSharedMemoryPerBlockOptin = 97 };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
#define cudaStreamNonBlocking 1
#define cudaEventDisableTiming 2

struct emulate_stream;
struct emulate_event;
typedef emulate_stream *cudaStream_t;
typedef emulate_event *cudaEvent_t;
struct cudaDeviceProp { char name[256]; int major, minor, multiProcessorCount; };
struct cudaLaunchConfig_t { dim3 gridDim, blockDim; size_t dynamicSmemBytes; cudaStream_t stream; void *attrs; unsigned numAttrs; };

cudaError_t cudaSetDevice(int device);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int device);
cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr which, int device);
cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total_bytes);
cudaError_t emulate_malloc(void **p, size_t bytes);
cudaError_t emulate_malloc_host(void **p, size_t bytes);
template <typename T> static inline cudaError_t cudaMalloc(T **p, size_t bytes) { return emulate_malloc((void **)p, bytes); }
template <typename T> static inline cudaError_t cudaMallocHost(T **p, size_t bytes) { return emulate_malloc_host((void **)p, bytes); }
cudaError_t cudaFree(void *p);
cudaError_t cudaFreeHost(void *p);
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned flags);
cudaError_t cudaStreamDestroy(cudaStream_t s);
cudaError_t cudaStreamSynchronize(cudaStream_t s);
cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned flags = 0);
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned flags);
cudaError_t cudaEventDestroy(cudaEvent_t e);
cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s);
cudaError_t cudaEventSynchronize(cudaEvent_t e);
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t n, cudaMemcpyKind kind, cudaStream_t s);
cudaError_t cudaMemsetAsync(void *p, int value, size_t n, cudaStream_t s);
cudaError_t cudaGetLastError();
const char *cudaGetErrorString(cudaError_t e);

struct cudaFuncAttributes { size_t localSizeBytes; };
cudaError_t emulate_find(cudaFuncAttributes *ret);
template <typename K> static inline cudaError_t cudaFuncGetAttributes(cudaFuncAttributes *ret, K *) { return emulate_find(ret); }
cudaError_t emulate_allow_shared(const void *kernel, size_t bytes);
template <typename K> static inline cudaError_t cudaFuncSetAttribute(K *kernel, cudaFuncAttribute, int bytes)
{
	return emulate_allow_shared((const void *)kernel, (size_t)bytes);
}
// Gives the stream a block-by-block run of `thread`, which each thread of each block calls.
cudaError_t emulate_launch(const cudaLaunchConfig_t *config, const void *kernel, std::function<void()> thread);
template <typename... P, typename... G> static inline cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t *config, void (*kernel)(P...),
										     G... arguments)
{
	return emulate_launch(config, (const void *)kernel, [=] { kernel(arguments...); });
}
// Gives the stream one piece of work.
cudaError_t emulate_enqueue(cudaStream_t s, std::function<void()> work);

