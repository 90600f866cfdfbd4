// SPDX-License-Identifier: Apache-2.0
// Device memory. Where the caller counted what it will make, all of it is reserved at open in one piece and every array is a place in
// that: no call of the device can fail for want of memory later. Else each array is asked for, within the budget. Then the copies that
// convert between the host's types and the device's.
#include "kernels/cuda/cuda.cuh"

#include <stdlib.h>
#include <string.h>

#include <new>
#include <unordered_map>

extern "C" {
#include "common/error.h"
#include "kernels/cuda/arena.h"
}

struct cuda_arena {
	char *base;                               // NULL: every array on its own
	struct arena places;
	uint64_t limit_bytes, used_bytes;         // of arrays on their own
	std::unordered_map<void *, uint64_t> sizes;
};

static double gib(uint64_t bytes) { return (double)bytes / (1u << 30); }

// What the backend itself makes beside the caller's arrays.
static uint64_t own_bytes(const struct backend_options *o)
{
	return CUDA_WORKSPACE_BYTES + CUDA_SCRATCH_BYTES + 2 * CUDA_SWEEP_BYTES +
	       ((uint64_t)o->max_rows + 1) * (3 * sizeof(uint32_t) + 4 * sizeof(cuda_tile)) + (64u << 10);
}

static plan_form form_of(const cuda *c, bool stored) { return plan_form{cuda_act_bytes(c, 1), c->fp8, stored}; }

static int refuse(const cuda *c, const backend_need *n, const plan_room *room, uint64_t free_bytes, uint64_t total, struct error *err)
{
	uint64_t limit = c->arena->limit_bytes, need = room->least_bytes;
	plan_form form = form_of(c, room->stores);
	bool never = need > limit || need > total;
	char parts[160];
	plan_describe(n, form, parts, sizeof parts);
	return error_set(err, never ? ERROR_TOO_LARGE : ERROR_MEMORY, "gpu-memory",
			 "%.2f GiB of GPU memory are needed (%s, buffers %.2f); %.2f may be taken, %.2f are free of %.2f", gib(need), parts,
			 gib(need - plan_need_bytes(n, form)), gib(limit < total ? limit : total), gib(free_bytes), gib(total));
}

static int reserve(backend *be, const backend_need *need, uint64_t own, struct error *err)
{
	cuda *c = cuda_of(be);
	size_t free_bytes = 0, total = 0;
	plan_room room;
	cudaMemGetInfo(&free_bytes, &total);
	if (!plan_reserve(need, form_of(c, false), own, c->arena->limit_bytes, free_bytes, &room))
		return refuse(c, need, &room, free_bytes, total, err);
	cudaError_t e = cudaMalloc(&c->arena->base, room.bytes);
	if (e != cudaSuccess) {
		cudaGetLastError();    // not sticky
		c->arena->base = NULL;
		return refuse(c, need, &room, free_bytes, total, err);
	}
	arena_init(&c->arena->places, room.bytes);
	be->n_allocations++;
	be->memory_bytes = room.bytes;
	be->stores = room.stores;
	be->room = room.room;
	c->window_bytes = room.window_bytes;
	return 0;
}

int cuda_arena_open(backend *be, const struct backend_options *o, struct error *err)
{
	cuda *c = cuda_of(be);
	size_t free_bytes = 0, total = 0;
	c->arena = new (std::nothrow) cuda_arena();
	if (!c->arena)
		return error_set(err, ERROR_MEMORY, NULL, "no memory for backend cuda");
	if (cudaMemGetInfo(&free_bytes, &total) != cudaSuccess)
		return error_set(err, ERROR_UNAVAILABLE, "device", "the GPU does not say how much memory it has");
	c->arena->limit_bytes = plan_limit(o->memory_bytes, o->memory_share, free_bytes, total);
	c->max_slots = o->need.n_slots;
	be->element_bytes = (uint32_t)cuda_act_bytes(c, 1);
	return plan_need_bytes(&o->need, form_of(c, false)) ? reserve(be, &o->need, own_bytes(o), err) : 0;
}

void cuda_arena_close(cuda *c)
{
	if (!c->arena)
		return;
	for (auto &one : c->arena->sizes)    // nothing, unless a caller forgot
		cudaFree(one.first);
	cudaFree(c->arena->base);
	arena_done(&c->arena->places);
	delete c->arena;
	c->arena = NULL;
}

static void *take_place(backend *be, size_t bytes, const char *what, struct error *err)
{
	cuda *c = cuda_of(be);
	struct arena *places = &c->arena->places;
	uint64_t offset = arena_take(places, bytes);
	be->n_allocations++;
	if (offset != ARENA_NONE)
		return c->arena->base + offset;
	error_set(err, ERROR_MEMORY, "gpu-memory", "%s needs %zu bytes of GPU memory; of the %llu reserved at start %llu are left", what, bytes,
		  (unsigned long long)places->bytes, (unsigned long long)(places->bytes - places->used));
	return NULL;
}

static void *take_own(backend *be, size_t bytes, const char *what, struct error *err)
{
	cuda_arena *a = cuda_of(be)->arena;
	void *p = NULL;
	uint64_t left = a->limit_bytes > a->used_bytes ? a->limit_bytes - a->used_bytes : 0;
	if (bytes > left) {
		error_set(err, ERROR_MEMORY, "gpu-memory", "%s needs %zu bytes of GPU memory; %llu of %llu are left", what, bytes,
			  (unsigned long long)left, (unsigned long long)a->limit_bytes);
		return NULL;
	}
	cudaError_t e = cudaMalloc(&p, bytes ? bytes : 1);
	if (e != cudaSuccess) {
		cudaGetLastError();    // an allocation that failed is not sticky
		error_set(err, ERROR_MEMORY, "gpu-memory", "%s: %zu bytes of GPU memory: %s", what, bytes, cudaGetErrorString(e));
		return NULL;
	}
	a->sizes[p] = bytes;
	a->used_bytes += bytes;
	be->n_allocations++;
	be->memory_bytes = a->used_bytes;
	return p;
}

void *cuda_alloc(backend *be, size_t bytes, const char *what, struct error *err)
{
	cuda *c = cuda_of(be);
	if (backend_failed(be)) {
		error_set(err, ERROR_UNAVAILABLE, NULL, "%s: the device has failed", what);
		return NULL;
	}
	void *p = c->arena->base ? take_place(be, bytes, what, err) : take_own(be, bytes, what, err);
	if (p && !cuda_check(be, cudaMemsetAsync(p, 0, bytes, c->stream), "zeroing an array")) {
		error_set(err, ERROR_UNAVAILABLE, NULL, "%s: the device has failed", what);
		cuda_release(be, p);
		return NULL;
	}
	return p;
}

void cuda_release(backend *be, void *p)
{
	cuda_arena *a = cuda_of(be)->arena;
	if (!p)
		return;
	if (a->base) {
		arena_give(&a->places, (uint64_t)((char *)p - a->base));
		return;
	}
	auto found = a->sizes.find(p);
	if (found == a->sizes.end())
		return;
	a->used_bytes -= found->second;
	be->memory_bytes = a->used_bytes;
	a->sizes.erase(found);
	cudaFree(p);
}

// Both halves of the pinned memory take turns; a half is written again once all copies out of it are done.
static char *staging_of(backend *be, uint32_t bytes)
{
	cuda *c = cuda_of(be);
	if (bytes > CUDA_STAGING_BYTES - c->staging_used) {
		if (!cuda_check(be, cudaEventRecord(c->staged[c->staging_half], c->stream), "staging"))
			return NULL;
		c->staging_half ^= 1;
		c->staging_used = 0;
		if (!cuda_check(be, cudaEventSynchronize(c->staged[c->staging_half]), "staging"))
			return NULL;
	}
	char *p = c->staging[c->staging_half] + c->staging_used;
	c->staging_used += (bytes + 15) / 16 * 16;
	return p;
}

bool cuda_send(backend *be, void *to, const void *from, size_t bytes, const char *what)
{
	for (size_t done = 0; done < bytes && !backend_failed(be);) {
		uint32_t n = bytes - done < CUDA_STAGING_BYTES / 2 ? (uint32_t)(bytes - done) : CUDA_STAGING_BYTES / 2;
		char *pinned = staging_of(be, n);
		if (!pinned)
			break;
		memcpy(pinned, (const char *)from + done, n);
		cuda_check(be, cudaMemcpyAsync((char *)to + done, pinned, n, cudaMemcpyHostToDevice, cuda_of(be)->stream), what);
		done += n;
	}
	return !backend_failed(be);
}

struct real *cuda_real_new(backend *be, size_t n, struct error *err)
{
	return (struct real *)cuda_alloc(be, n * sizeof(float), "an array", err);
}

struct act *cuda_act_new(backend *be, size_t n, struct error *err)
{
	return (struct act *)cuda_alloc(be, cuda_act_bytes(cuda_of(be), n), "an array", err);
}

void cuda_real_free(backend *be, struct real *x) { cuda_release(be, x); }
void cuda_act_free(backend *be, struct act *x) { cuda_release(be, x); }
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
		cuda_check(be, cudaMemcpyAsync(to, from, n * sizeof(float), cudaMemcpyDeviceToDevice, cuda_of(be)->stream),
			   "copying an array");
}

// n elements to the host, through the pinned memory of answers: no memory is asked for that a request could fail for want of. Zeros when
// that
// failed, so that no caller reads uninitialised memory.
template <typename E> static void read_array(backend *be, double *to, const E *from, size_t n)
{
	cuda *c = cuda_of(be);
	const E *host = (const E *)c->results;
	for (size_t done = 0, some; done < n; done += some) {
		some = n - done < CUDA_RESULT_BYTES / sizeof *host ? n - done : CUDA_RESULT_BYTES / sizeof *host;
		bool good = !backend_failed(be) &&
			    cuda_check(be, cudaMemcpyAsync(c->results, from + done, some * sizeof *host, cudaMemcpyDeviceToHost, c->stream),
				       "reading an array") &&
			    cuda_check(be, cudaStreamSynchronize(c->stream), "reading an array");
		for (size_t i = 0; i < some; i++)
			to[done + i] = good ? (double)(float)host[i] : 0;
	}
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
	cuda *c = cuda_of(be);
	__nv_bfloat16 *host = (__nv_bfloat16 *)c->results;
	for (size_t done = 0, some; done < n && !backend_failed(be); done += some) {
		some = n - done < CUDA_RESULT_BYTES / sizeof *host ? n - done : CUDA_RESULT_BYTES / sizeof *host;
		for (size_t i = 0; i < some; i++)
			host[i] = __float2bfloat16_rn(from[done + i]);
		cuda_check(be, cudaMemcpyAsync((__nv_bfloat16 *)to + done, host, some * sizeof *host, cudaMemcpyHostToDevice, c->stream),
			   "writing an array");
		cuda_check(be, cudaStreamSynchronize(c->stream), "writing an array");
	}
}
