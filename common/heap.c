// SPDX-License-Identifier: Apache-2.0
#include "common/heap.h"

#include <malloc.h>

void heap_init(void)
{
	(void)mallopt(M_TRIM_THRESHOLD, HEAP_KEPT);
	(void)mallopt(M_MMAP_THRESHOLD, HEAP_KEPT / 4);
}
