// SPDX-License-Identifier: Apache-2.0
// Choice of the instruction set, once, when the backend opens.
#include "kernels/cpu/vector.h"

#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#if defined(__x86_64__)
static bool has_avx2(void)
{
	return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

static bool has_avx512(void)
{
	return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
	       __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}

// Of the two with products of bytes AVX512-VNNI runs (Zen 4); AVX-VNNI was written where no processor has it and did not run yet. All but
// that one instruction is held to the other tables' bits by tests/ops/test_int8_bytes.c; where there is one, tests/ops/test_ops_cpu
// holds it to ref like any table.
// AVX-VNNI, which not every compiler knows by name: bit 4 of leaf 7.1's EAX.
static bool has_avx2vnni(void)
{
	unsigned a, b, c, d;
	return has_avx2() && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & 1u << 4);
}

static bool has_avx512vnni(void)
{
	return has_avx512() && __builtin_cpu_supports("avx512vnni");
}

static bool has_avx512bf16(void)
{
	return has_avx512vnni() && __builtin_cpu_supports("avx512bf16");
}
#endif

static bool has_nothing(void)
{
	return true;
}

const struct cpu_vector *vector_find(void)
{
	static const struct { const struct cpu_vector *vector; bool (*is_there)(void); } tables[] = {
#if defined(__x86_64__)
		{&vector_avx512bf16, has_avx512bf16},
		{&vector_avx512vnni, has_avx512vnni},
		{&vector_avx512, has_avx512},
		{&vector_avx2vnni, has_avx2vnni},
		{&vector_avx2, has_avx2},
#endif
		{&vector_baseline, has_nothing},
	};
	const char *name = getenv("KDSERVED_CPU");

	for (size_t i = 0; i < sizeof tables / sizeof *tables; i++)
		if ((!name || strcmp(name, tables[i].vector->name) == 0) && tables[i].is_there())
			return tables[i].vector;
	return NULL;
}
