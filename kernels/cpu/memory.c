// SPDX-License-Identifier: Apache-2.0
// Device arrays (float, in host memory) and scratch.
//
// A page fault costs more than filling the page, so: large arrays are aligned for huge pages and first touched by all threads at once,
// and scratch is kept.
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "common/error.h"
#include "kernels/cpu/cpu.h"

#define HUGE_PAGE ((size_t)2 << 20)
#define SPAN ((size_t)1 << 18)       // floats that one thread fills at a time

float *memory_floats(size_t n)
{
	size_t bytes, alignment;
	void *p = NULL;

	if (__builtin_mul_overflow(n ? n : 1, sizeof(float), &bytes) || bytes > SIZE_MAX - HUGE_PAGE)
		return NULL;
	alignment = bytes < HUGE_PAGE ? 64 : HUGE_PAGE;
	if (posix_memalign(&p, alignment, (bytes + alignment - 1) / alignment * alignment))
		return NULL;
	if (bytes >= HUGE_PAGE)
		madvise(p, bytes, MADV_HUGEPAGE);    // advice: its failure costs speed only
	return p;
}

static void fill_zero(const struct cpu *cpu, float *x, size_t n)
{
#pragma omp parallel for schedule(static) num_threads(cpu->n_threads) if (n > SPAN)
	for (size_t i = 0; i < n; i += SPAN)
		memset(x + i, 0, (n - i < SPAN ? n - i : SPAN) * sizeof *x);
}

static float *array_new(struct backend *be, size_t n, struct error *err)
{
	float *x = memory_floats(n);

	be->n_allocations++;
	if (!x)
		error_set(err, ERROR_MEMORY, NULL, "no memory for an array of %zu floats", n);
	else
		fill_zero(cpu_of(be), x, n ? n : 1);
	return x;
}

float *memory_shared(struct backend *be, size_t n_floats)
{
	struct cpu *cpu = cpu_of(be);

	if (n_floats > cpu->shared_floats) {
		float *p = memory_floats(n_floats);
		be->n_allocations++;
		if (!p) {
			backend_fail(be, "no memory for scratch of %zu floats", n_floats);
			return NULL;
		}
		fill_zero(cpu, p, n_floats);
		free(cpu->shared);
		cpu->shared = p;
		cpu->shared_floats = n_floats;
	}
	return cpu->shared;
}

bool memory_own(struct backend *be, size_t n_floats)
{
	struct cpu *cpu = cpu_of(be);

	if (n_floats <= cpu->own_floats)
		return true;
	for (int i = 0; i < cpu->n_threads; i++) {
		float *p = memory_floats(n_floats);
		be->n_allocations++;
		if (!p) {
			backend_fail(be, "no memory for scratch of %zu floats a thread", n_floats);
			return false;
		}
		free(cpu->own[i]);
		cpu->own[i] = p;
	}
#pragma omp parallel num_threads(cpu->n_threads)
	memset(cpu->own[omp_get_thread_num()], 0, n_floats * sizeof(float));
	cpu->own_floats = n_floats;
	return true;
}

struct real *cpu_real_new(struct backend *be, size_t n, struct error *err)
{
	return (struct real *)array_new(be, n, err);
}

void cpu_real_free(struct backend *be, struct real *x)
{
	(void)be;
	free(x);
}

struct real *cpu_real_at(struct real *x, size_t i)
{
	return (struct real *)(cpu_real(x) + i);
}

struct act *cpu_act_new(struct backend *be, size_t n, struct error *err)
{
	return (struct act *)array_new(be, n, err);
}

void cpu_act_free(struct backend *be, struct act *x)
{
	(void)be;
	free(x);
}

struct act *cpu_act_at(struct act *x, size_t i)
{
	return (struct act *)(cpu_act(x) + i);
}

void cpu_real_write(struct backend *be, struct real *to, const float *from, size_t n)
{
	(void)be;
	memcpy(to, from, n * sizeof *from);
}

void cpu_act_write(struct backend *be, struct act *to, const float *from, size_t n)
{
	(void)be;
	memcpy(to, from, n * sizeof *from);
}

static void values_read(double *to, const float *from, size_t n)
{
	for (size_t i = 0; i < n; i++)
		to[i] = (double)from[i];
}

void cpu_real_read(struct backend *be, double *to, const struct real *from, size_t n)
{
	(void)be;
	values_read(to, cpu_real_in(from), n);
}

void cpu_act_read(struct backend *be, double *to, const struct act *from, size_t n)
{
	(void)be;
	values_read(to, cpu_act_in(from), n);
}

void cpu_real_zero(struct backend *be, struct real *x, size_t n)
{
	fill_zero(cpu_of(be), cpu_real(x), n);
}

void cpu_real_copy(struct backend *be, struct real *to, const struct real *from, size_t n)
{
	(void)be;
	memmove(to, from, n * sizeof(float));
}
