// SPDX-License-Identifier: Apache-2.0
// Blocks of device threads as coroutines on one processor thread. A thread runs until it meets a barrier or ends; the order in
// which the threads of a block get their turn changes from launch to launch, so that what depends on it without a barrier shows. The
// thread sanitizer, where compiled in, is told of each device thread and of each barrier, and finds the rest.
#include "cuda_runtime.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include <map>
#include <vector>

#include "emulate.h"
#include "kernels/cuda/mma.cuh"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#define UNSEEN __attribute__((noinline, no_sanitize("thread")))
#else
#define UNSEEN
#endif
#if !defined(__x86_64__)
#error "the switch below is written for x86-64"
#endif

#define MAX_THREADS 1024
#define WARP 32
#define STACK_BYTES (256u << 10)
#define STACK_STEP 320u                   // tops of stacks lie in different lines of the processor's cache, which would else hold eight of them
#define SHARED_BYTES (227u << 10)         // of compute capability 9.0
#define PLAIN_SHARED_BYTES (48u << 10)    // without cudaFuncSetAttribute

thread_local uint4 cuda_dynamic_shared[SHARED_BYTES / sizeof(uint4)];

enum state { RUNNABLE, AT_BARRIER, AT_EXCHANGE, DONE };

struct copy { void *to; const void *from; size_t bytes; };

struct thread {
	void *stack, *pointer;                  // lowest address; where it stands
	state now;
	const char *file;                       // of the barrier it waits at
	int line;
	uint3 index;                            // in its block
	uint32_t mask, phase;
	bool vote;
	std::vector<std::vector<copy>> copies;  // groups not yet waited for, the last one still open
#if defined(__SANITIZE_ADDRESS__)
	void *fake;
#endif
#if defined(__SANITIZE_THREAD__)
	void *fiber;
#endif
};

static thread threads[MAX_THREADS];
static emulate_slot exchanged[MAX_THREADS / WARP][2][WARP];    // by phase: a lane may be at the next exchange before all have read this one
static uint32_t n_threads, current;
static uint32_t numbers[12];                    // by emulate_index's `which`: thread, block, and the sizes of both
static int n_votes;                              // at the last barrier
static dim3 grid_size, block_size;
static uint3 block_index;
static const std::function<void()> *body;
static void *home;                              // the scheduler's stack pointer
static std::map<const void *, size_t> allowed_shared;
#if defined(__SANITIZE_THREAD__)
static uint64_t n_launches;                     // an address to synchronise on
#endif
#if defined(__SANITIZE_ADDRESS__)
static void *home_fake;
static const void *home_stack;
static size_t home_bytes;
#endif
#if defined(__SANITIZE_THREAD__)
static void *home_fiber;
#endif

// Saves what a function must keep, leaves the stack pointer in *from, goes on at `to`.
extern "C" void emulate_switch(void **from, void *to);
asm(".text\n.globl emulate_switch\n.type emulate_switch, @function\nemulate_switch:\n"
    "push %rbp\npush %rbx\npush %r12\npush %r13\npush %r14\npush %r15\n"
    "mov %rsp, (%rdi)\nmov %rsi, %rsp\n"
    "pop %r15\npop %r14\npop %r13\npop %r12\npop %rbx\npop %rbp\n"
    "pop %rcx\njmp *%rcx\n.size emulate_switch, . - emulate_switch\n");       // a ret would be foreseen to go back to its caller

static void die(const char *what, const thread *t)
{
	fprintf(stderr, "emulated device: %s: thread %u of block %u,%u,%u at %s:%d\n", what, (uint32_t)(t - threads), block_index.x, block_index.y,
		block_index.z, t->file ? t->file : "?", t->line);
	abort();
}

UNSEEN uint32_t emulate_index(int which) { return numbers[which]; }
UNSEEN uint32_t emulate_lane() { return current % WARP; }

UNSEEN static void leave(thread *t, bool for_good)
{
#if defined(__SANITIZE_ADDRESS__)
	__sanitizer_start_switch_fiber(for_good ? nullptr : &t->fake, home_stack, home_bytes);
#else
	(void)for_good;
#endif
#if defined(__SANITIZE_THREAD__)
	__tsan_switch_to_fiber(home_fiber, __tsan_switch_to_fiber_no_sync);
#endif
	emulate_switch(&t->pointer, home);
#if defined(__SANITIZE_ADDRESS__)
	__sanitizer_finish_switch_fiber(t->fake, nullptr, nullptr);
#endif
}

UNSEEN static void enter(thread *t)
{
	current = (uint32_t)(t - threads);
	numbers[0] = t->index.x;
	numbers[1] = t->index.y;
	numbers[2] = t->index.z;
#if defined(__SANITIZE_ADDRESS__)
	__sanitizer_start_switch_fiber(&home_fake, t->stack, STACK_BYTES);
#endif
#if defined(__SANITIZE_THREAD__)
	__tsan_switch_to_fiber(t->fiber, __tsan_switch_to_fiber_no_sync);
#endif
	emulate_switch(&home, t->pointer);
#if defined(__SANITIZE_ADDRESS__)
	__sanitizer_finish_switch_fiber(home_fake, nullptr, nullptr);
#endif
}

UNSEEN static void thread_main()
{
#if defined(__SANITIZE_ADDRESS__)
	__sanitizer_finish_switch_fiber(nullptr, &home_stack, &home_bytes);
#endif
#if defined(__SANITIZE_THREAD__)
	__tsan_acquire(&n_launches);
#endif
	(*body)();
	thread *t = &threads[current];
	for (const auto &group : t->copies)
		if (!group.empty())
			die("a copy into shared memory that nobody waited for", t);
#if defined(__SANITIZE_THREAD__)
	__tsan_release(&grid_size);
#endif
	t->now = DONE;
	leave(t, true);
	abort();
}

UNSEEN static void thread_start(thread *t)
{
	if (!t->stack) {
		t->stack = mmap(NULL, STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
		if (t->stack == MAP_FAILED)
			abort();
	}
	size_t apart = (size_t)(t - threads) % 64 * STACK_STEP;
	void **top = (void **)((char *)t->stack + STACK_BYTES - 64 - apart);    // 16-aligned: at entry the pointer is 8 below, as after a call
	*--top = NULL;
	*--top = (void *)thread_main;
	top -= 6;                                                       // the registers emulate_switch takes
	memset(top, 0, 6 * sizeof *top);
	t->pointer = top;
	uint32_t n = (uint32_t)(t - threads);
	t->index = uint3{n % block_size.x, n / block_size.x % block_size.y, n / block_size.x / block_size.y};
	t->now = RUNNABLE;
	t->file = NULL;
	t->phase = 0;
	if (t->copies.size() != 1 || !t->copies[0].empty())
		t->copies.assign(1, {});
#if defined(__SANITIZE_THREAD__)
	if (!t->fiber)
		t->fiber = __tsan_create_fiber(0);
#endif
}

UNSEEN void emulate_barrier(const char *file, int line)
{
	thread *t = &threads[current];
	t->now = AT_BARRIER;
	t->file = file;
	t->line = line;
#if defined(__SANITIZE_THREAD__)
	__tsan_release(&body);
#endif
	leave(t, false);
#if defined(__SANITIZE_THREAD__)
	__tsan_acquire(&body);
#endif
}

// The votes are counted when all have come; the count stands until all come again, so everybody has read it.
UNSEEN int emulate_barrier_count(bool vote, const char *file, int line)
{
	threads[current].vote = vote;
	emulate_barrier(file, line);
	return n_votes;
}

UNSEEN const emulate_slot *emulate_exchange(uint32_t mask, const void *value, size_t bytes, const char *file, int line)
{
	thread *t = &threads[current];
	uint32_t warp = current / WARP, phase = t->phase & 1;
	if (!(mask >> current % WARP & 1))
		die("a lane outside its own mask", t);
	for (size_t i = 0; i < bytes; i++)      // memcpy would be seen
		exchanged[warp][phase][current % WARP].bytes[i] = ((const unsigned char *)value)[i];
	t->now = AT_EXCHANGE;
	t->file = file;
	t->line = line;
	t->mask = mask;
	t->phase++;
#if defined(__SANITIZE_THREAD__)
	__tsan_release(exchanged[warp]);
#endif
	leave(t, false);
#if defined(__SANITIZE_THREAD__)
	__tsan_acquire(exchanged[warp]);
#endif
	return exchanged[warp][phase];
}

// A copy is done only when it is waited for, so that what is read too early is still the old content.
UNSEEN void emulate_copy_start(void *to, const void *from, size_t bytes)
{
	if ((uintptr_t)to % bytes || (uintptr_t)from % bytes)
		die("a copy into shared memory that is not aligned", &threads[current]);
	threads[current].copies.back().push_back(copy{to, from, bytes});
}

UNSEEN void emulate_copy_commit() { threads[current].copies.push_back({}); }

void emulate_copy_wait(uint32_t n)
{
	std::vector<std::vector<copy>> *groups = &threads[current].copies;
	while (groups->size() > n + 1) {
		for (const copy &c : groups->front()) {
			if (c.from)
				memcpy(c.to, c.from, c.bytes);
			else
				memset(c.to, 0, c.bytes);
		}
		groups->erase(groups->begin());
	}
}

uint32_t emulate_atomic_add(uint32_t *p, uint32_t v)
{
	return __atomic_fetch_add(p, v, __ATOMIC_RELAXED);
}

// ---- the scheduler

// The lanes of a warp go on when all lanes of their mask wait at one place.
UNSEEN static bool release_warp(thread *first, uint32_t n)
{
	bool released = false;
	for (uint32_t i = 0; i < n; i++) {
		thread *t = &first[i];
		if (t->now != AT_EXCHANGE)
			continue;
		bool all = true;
		for (uint32_t j = 0; j < WARP && all; j++) {
			if (!(t->mask >> j & 1))
				continue;
			if (j >= n || first[j].now == DONE)
				die("a warp operation waits for a thread that has ended", t);
			all = first[j].now == AT_EXCHANGE && first[j].line == t->line && first[j].mask == t->mask;
		}
		for (uint32_t j = 0; j < WARP && all; j++)
			if (t->mask >> j & 1)
				first[j].now = RUNNABLE;
		released |= all;
	}
	return released;
}

UNSEEN static bool release_barrier()
{
	const thread *one = NULL;
	for (uint32_t i = 0; i < n_threads; i++) {
		if (threads[i].now == DONE)
			continue;
		if (threads[i].now != AT_BARRIER)
			die("waits for ever in a warp operation", &threads[i]);
		if (one && (one->line != threads[i].line || one->file != threads[i].file))
			die("two barriers at once", &threads[i]);
		one = &threads[i];
	}
	n_votes = 0;
	for (uint32_t i = 0; i < n_threads; i++) {
		if (threads[i].now != AT_BARRIER)
			continue;
		n_votes += threads[i].vote;
		threads[i].vote = false;
		threads[i].now = RUNNABLE;
	}
	return one != NULL;
}

// Rising, falling, and a stride that mixes warps.
static uint32_t turn(uint32_t i, uint64_t order)
{
	switch (order % 3) {
	case 0: return i;
	case 1: return n_threads - 1 - i;
	default: return n_threads % 7 ? (uint32_t)((uint64_t)i * 7 % n_threads) : i;
	}
}

UNSEEN static void run_block(uint64_t order)
{
	for (uint32_t i = 0; i < n_threads; i++)
		thread_start(&threads[i]);
	do {
		bool again = true;
		while (again) {
			for (uint32_t i = 0; i < n_threads; i++) {
				thread *t = &threads[turn(i, order)];
				if (t->now == RUNNABLE)
					enter(t);
			}
			again = false;
			for (uint32_t w = 0; w < n_threads; w += WARP)
				again |= release_warp(&threads[w], n_threads - w < WARP ? n_threads - w : WARP);
		}
	} while (release_barrier());
}

UNSEEN static void run_grid(const cudaLaunchConfig_t *config, const std::function<void()> *thread)
{
	static uint64_t order;
	body = thread;
	grid_size = config->gridDim;
	block_size = config->blockDim;
	n_threads = block_size.x * block_size.y * block_size.z;
#if defined(__SANITIZE_THREAD__)
	home_fiber = __tsan_get_current_fiber();
	__tsan_release(&n_launches);      // what was done before the grid, its threads see
#endif
#if defined(__SANITIZE_ADDRESS__)
	__asan_unpoison_memory_region(cuda_dynamic_shared, SHARED_BYTES);
	__asan_poison_memory_region((char *)cuda_dynamic_shared + config->dynamicSmemBytes, SHARED_BYTES - config->dynamicSmemBytes);
#endif
	order++;
	for (block_index.z = 0; block_index.z < grid_size.z; block_index.z++)
		for (block_index.y = 0; block_index.y < grid_size.y; block_index.y++)
			for (block_index.x = 0; block_index.x < grid_size.x; block_index.x++) {
				memset((void *)cuda_dynamic_shared, 0xff, config->dynamicSmemBytes);
				const uint32_t of_block[] = {block_index.x, block_index.y, block_index.z, block_size.x, block_size.y,
							     block_size.z, grid_size.x, grid_size.y, grid_size.z};
				memcpy(&numbers[3], of_block, sizeof of_block);
				run_block(order + block_index.x);
			}
#if defined(__SANITIZE_THREAD__)
	__tsan_acquire(&grid_size);       // and what its threads did, is seen after it
#endif
}

cudaError_t emulate_allow_shared(const void *kernel, size_t bytes)
{
	if (bytes > emulate_shared_bytes())
		return cudaErrorInvalidValue;
	allowed_shared[kernel] = bytes;
	return cudaSuccess;
}

cudaError_t emulate_launch(const cudaLaunchConfig_t *c, const void *kernel, std::function<void()> thread)
{
	auto allowed = allowed_shared.find(kernel);
	size_t most = allowed == allowed_shared.end() ? PLAIN_SHARED_BYTES : allowed->second;
	uint64_t n = (uint64_t)c->blockDim.x * c->blockDim.y * c->blockDim.z;
	if (emulate_due(EMULATE_LAUNCH))
		return emulate_break(cudaErrorIllegalAddress);
	if (!n || n > MAX_THREADS || c->blockDim.z > 64 || c->dynamicSmemBytes > most || !c->gridDim.x || c->gridDim.x > INT32_MAX ||
	    !c->gridDim.y ||
	    c->gridDim.y > UINT16_MAX || !c->gridDim.z || c->gridDim.z > UINT16_MAX)
		return cudaErrorInvalidValue;
	cudaLaunchConfig_t config = *c;
	if (emulate_due(EMULATE_KERNEL))
		return emulate_enqueue(c->stream, [] { emulate_break(cudaErrorIllegalAddress); });
	return emulate_enqueue(c->stream, [config, thread] { run_grid(&config, &thread); });
}
