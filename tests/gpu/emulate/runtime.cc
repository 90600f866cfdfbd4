// SPDX-License-Identifier: Apache-2.0
// The emulated device's memory, streams and events. A stream does nothing until somebody waits for it: a copy that is read too early
// still holds the poison that memory is filled with, and pinned memory written too early reaches the device as it is then.
#include <assert.h>
#include <stdio.h>
#include <stdlib.h>

#include <deque>
#include <map>
#include <set>
#include <vector>

#include "emulate.h"

struct emulate_event {
	emulate_stream *stream;    // of the last record
	uint64_t recorded, done;
};

struct emulate_stream {
	std::deque<std::function<void()>> work;
};

static std::map<void *, size_t> device_memory, host_memory;
static std::set<emulate_stream *> streams;
static size_t total_bytes = (size_t)8 << 30, used_bytes, shared_bytes = 227 << 10;      // of compute capability 9.0
static cudaError_t broken;

cudaError_t emulate_break(cudaError_t e)
{
	broken = e;
	for (emulate_stream *s : streams)
		s->work.clear();
	return e;
}

// ---- what a test does to the device

static uint64_t counts[N_EMULATE_KINDS], failing[N_EMULATE_KINDS];        // failing: that count; 0 = none

void emulate_fail(emulate_kind kind, uint64_t n) { failing[kind] = counts[kind] + n; }
uint64_t emulate_count(emulate_kind kind) { return counts[kind]; }
void emulate_set_memory(size_t bytes) { total_bytes = bytes; }
void emulate_set_shared(size_t bytes) { shared_bytes = bytes; }
size_t emulate_shared_bytes() { return shared_bytes; }

void emulate_mend()
{
	broken = cudaSuccess;
	memset(failing, 0, sizeof failing);
}

static const char *const names[N_EMULATE_KINDS] = {"launch", "kernel", "product", "copy", "wait", "allocation"};

static void write_counts()
{
	FILE *f = fopen(getenv("EMULATE_COUNTS"), "w");
	for (int i = 0; f && i < N_EMULATE_KINDS; i++)
		fprintf(f, "%s %llu\n", names[i], (unsigned long long)counts[i]);
	if (f)
		fclose(f);
}

static void read_environment()
{
	if (getenv("EMULATE_COUNTS"))
		atexit(write_counts);
	const char *fail = getenv("EMULATE_FAIL"), *memory = getenv("EMULATE_MEMORY");
	const char *colon = fail ? strchr(fail, ':') : NULL;
	for (int i = 0; colon && i < N_EMULATE_KINDS; i++)
		if (!strncmp(fail, names[i], colon - fail) && !names[i][colon - fail])
			failing[i] = strtoull(colon + 1, NULL, 10);
	if (memory)
		total_bytes = strtoull(memory, NULL, 10);
}

bool emulate_due(emulate_kind kind)
{
	return ++counts[kind] == failing[kind];
}

// ---- streams

static void drain(emulate_stream *s)
{
	while (!s->work.empty()) {
		std::function<void()> next = std::move(s->work.front());
		s->work.pop_front();
		next();
	}
}

cudaError_t emulate_enqueue(cudaStream_t s, std::function<void()> work)
{
	if (!s)
		return cudaErrorInvalidValue;
	if (!broken)
		s->work.push_back(std::move(work));
	return broken;
}

cudaError_t cudaSetDevice(int device)
{
	static bool read;
	if (!read)
		read_environment();
	read = true;
	return device || getenv("EMULATE_NO_DEVICE") ? cudaErrorNoDevice : broken;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int)
{
	const char *capability = getenv("EMULATE_CAPABILITY");
	*p = cudaDeviceProp{"emulated device", 9, 0, 2};
	if (capability)
		sscanf(capability, "%d.%d", &p->major, &p->minor);
	return broken;
}

cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr which, int)
{
	*value = which == cudaDevAttrMultiProcessorCount ? 2 : (int)shared_bytes;
	return broken;
}

cudaError_t emulate_find(cudaFuncAttributes *ret)
{
	*ret = cudaFuncAttributes{};
	return broken ? broken : getenv("EMULATE_NO_CODE") ? cudaErrorNoKernelImageForDevice : cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t *ret_free, size_t *ret_total)
{
	*ret_free = total_bytes - used_bytes;
	*ret_total = total_bytes;
	return broken;
}

static void *poisoned(std::map<void *, size_t> *list, size_t bytes)
{
	void *p = NULL;
	if (posix_memalign(&p, 256, bytes))
		return NULL;
	memset(p, 0xff, bytes);
	(*list)[p] = bytes;
	return p;
}

cudaError_t emulate_malloc(void **p, size_t bytes)
{
	*p = NULL;
	if (broken)
		return broken;
	if (emulate_due(EMULATE_ALLOCATION))
		return cudaErrorMemoryAllocation;
	if (bytes > total_bytes - used_bytes || !(*p = poisoned(&device_memory, bytes)))
		return cudaErrorMemoryAllocation;
	used_bytes += bytes;
	return cudaSuccess;
}

cudaError_t emulate_malloc_host(void **p, size_t bytes)
{
	*p = NULL;
	if (!broken && !emulate_due(EMULATE_ALLOCATION))
		*p = poisoned(&host_memory, bytes);
	return *p ? cudaSuccess : broken ? broken : cudaErrorMemoryAllocation;
}

cudaError_t cudaFree(void *p)
{
	if (!p)
		return broken;
	for (emulate_stream *s : streams)
		drain(s);
	auto found = device_memory.find(p);
	assert(found != device_memory.end());
	used_bytes -= found->second;
	device_memory.erase(found);
	free(p);
	return broken;
}

cudaError_t cudaFreeHost(void *p)
{
	for (emulate_stream *s : streams)
		drain(s);
	assert(!p || host_memory.count(p));
	host_memory.erase(p);
	free(p);
	return broken;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned)
{
	*s = new emulate_stream();
	streams.insert(*s);
	return broken;
}

cudaError_t cudaStreamDestroy(cudaStream_t s)
{
	drain(s);
	streams.erase(s);
	delete s;
	return broken;
}

static uint64_t n_idle_waits;

uint64_t emulate_idle_waits() { return n_idle_waits; }

static cudaError_t waited()
{
	bool idle = !broken;
	for (const emulate_stream *s : streams)
		idle = idle && s->work.empty();
	n_idle_waits += idle;
	return broken;
}

cudaError_t cudaStreamSynchronize(cudaStream_t s)
{
	if (!broken && emulate_due(EMULATE_WAIT))
		return emulate_break(cudaErrorIllegalAddress);
	if (!broken)
		drain(s);
	return waited();
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned)
{
	*e = new emulate_event();
	return broken;
}

cudaError_t cudaEventDestroy(cudaEvent_t e)
{
	if (e->stream)
		drain(e->stream);
	delete e;
	return broken;
}

cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s)
{
	uint64_t n = ++e->recorded;
	e->stream = s;
	return emulate_enqueue(s, [e, n] { e->done = n; });
}

static void wait_for(emulate_event *e, uint64_t n)
{
	while (e->done < n && !e->stream->work.empty()) {
		std::function<void()> next = std::move(e->stream->work.front());
		e->stream->work.pop_front();
		next();
	}
}

cudaError_t cudaEventSynchronize(cudaEvent_t e)
{
	if (!broken && emulate_due(EMULATE_WAIT))
		return emulate_break(cudaErrorIllegalAddress);
	if (!broken && e->stream)
		wait_for(e, e->recorded);
	return waited();
}

cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned)
{
	uint64_t n = e->recorded;
	return emulate_enqueue(s, [e, n] {
		if (e->stream)
			wait_for(e, n);
	});
}

// Whether n bytes at p lie in one allocation of the list.
static bool inside(const std::map<void *, size_t> &list, const void *p, size_t n)
{
	auto next = list.upper_bound((void *)p);
	if (next == list.begin())
		return false;
	--next;
	return (const char *)p + n <= (const char *)next->first + next->second;
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t n, cudaMemcpyKind kind, cudaStream_t s)
{
	if (!broken && emulate_due(EMULATE_COPY))
		return emulate_break(cudaErrorIllegalAddress);
	bool to_device = inside(device_memory, to, n), from_device = inside(device_memory, from, n);
	if (!n)
		return emulate_enqueue(s, [] {});
	if (broken)
		return broken;
	if (to_device != (kind != cudaMemcpyDeviceToHost) || from_device != (kind != cudaMemcpyHostToDevice))
		return cudaErrorInvalidValue;
	if (kind != cudaMemcpyHostToDevice || inside(host_memory, from, n))
		return emulate_enqueue(s, [=] { memmove(to, from, n); });
	std::vector<char> kept((const char *)from, (const char *)from + n);    // pageable memory is taken at once
	return emulate_enqueue(s, [=] { memcpy(to, kept.data(), n); });
}

cudaError_t cudaMemsetAsync(void *p, int value, size_t n, cudaStream_t s)
{
	if (n && !inside(device_memory, p, n))
		return cudaErrorInvalidValue;
	return emulate_enqueue(s, [=] {
		if (n)
			memset(p, value, n);
	});
}

cudaError_t cudaGetLastError() { return broken; }

const char *cudaGetErrorString(cudaError_t e)
{
	switch (e) {
	case cudaSuccess: return "no error";
	case cudaErrorInvalidValue: return "invalid argument";
	case cudaErrorMemoryAllocation: return "out of memory";
	case cudaErrorNoKernelImageForDevice: return "no kernel image is available for execution on the device";
	case cudaErrorIllegalAddress: return "an illegal memory access was encountered";
	default: return "an error";
	}
}
