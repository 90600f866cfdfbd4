// SPDX-License-Identifier: Apache-2.0
// Picking rows of an array, and the way back.
#include <string.h>

#include "kernels/cpu/cpu.h"

void cpu_pick_rows(struct backend *be, struct act *y, const struct act *x, const uint32_t *rows, uint32_t n, uint32_t C)
{
	(void)be;
	for (size_t i = 0; i < n; i++)
		memcpy(cpu_act(y) + i * C, cpu_act_in(x) + (size_t)rows[i] * C, C * sizeof(float));
}

void cpu_put_rows(struct backend *be, struct act *dx, const struct act *dy, const uint32_t *rows, uint32_t n, uint32_t T, uint32_t C)
{
	cpu_real_zero(be, (struct real *)dx, (size_t)T * C);
	for (size_t i = 0; i < n; i++)
		memcpy(cpu_act(dx) + (size_t)rows[i] * C, cpu_act_in(dy) + i * C, C * sizeof(float));
}
