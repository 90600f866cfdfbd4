// SPDX-License-Identifier: Apache-2.0
// Choice of the instruction set, once, when the backend opens.
#include "kernels/cpu/vector.h"

#include <stdlib.h>
#include <string.h>

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
#endif

const struct cpu_vector *vector_find(void)
{
	const char *name = getenv("KDSERVED_CPU");

#if defined(__x86_64__)
	if (has_avx512() && (!name || strcmp(name, "avx512") == 0))
		return &vector_avx512;
	if (has_avx2() && (!name || strcmp(name, "avx2") == 0))
		return &vector_avx2;
#endif
	if (!name || strcmp(name, "baseline") == 0)
		return &vector_baseline;
	return NULL;
}
