// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/arena.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

void arena_init(struct arena *a, uint64_t bytes)
{
	*a = (struct arena){.bytes = bytes / ARENA_ALIGNMENT * ARENA_ALIGNMENT};
}

void arena_done(struct arena *a)
{
	free(a->blocks);
	*a = (struct arena){0};
}

uint64_t arena_rounded(uint64_t bytes)
{
	if (bytes > UINT64_MAX - ARENA_ALIGNMENT)
		return UINT64_MAX;
	return bytes ? (bytes + ARENA_ALIGNMENT - 1) / ARENA_ALIGNMENT * ARENA_ALIGNMENT : ARENA_ALIGNMENT;
}

static uint64_t end_of(const struct arena *a, size_t i)
{
	return i ? a->blocks[i - 1].offset + a->blocks[i - 1].bytes : 0;
}

static int make_room(struct arena *a)
{
	size_t capacity = a->capacity ? 2 * a->capacity : 64;
	if (a->n_blocks < a->capacity)
		return 0;
	struct arena_block *blocks = reallocarray(a->blocks, capacity, sizeof *blocks);
	if (!blocks)
		return -ENOMEM;
	a->blocks = blocks;
	a->capacity = capacity;
	return 0;
}

uint64_t arena_take(struct arena *a, uint64_t bytes)
{
	size_t i = 0;
	bytes = arena_rounded(bytes);
	if (make_room(a) < 0)
		return ARENA_NONE;
	while (i < a->n_blocks && a->blocks[i].offset - end_of(a, i) < bytes)
		i++;
	uint64_t offset = end_of(a, i);
	if (i == a->n_blocks && a->bytes - offset < bytes)
		return ARENA_NONE;
	memmove(a->blocks + i + 1, a->blocks + i, (a->n_blocks - i) * sizeof *a->blocks);
	a->blocks[i] = (struct arena_block){offset, bytes};
	a->n_blocks++;
	a->used += bytes;
	return offset;
}

int arena_give(struct arena *a, uint64_t offset)
{
	size_t low = 0, high = a->n_blocks;
	while (low < high) {
		size_t middle = low + (high - low) / 2;
		if (a->blocks[middle].offset < offset)
			low = middle + 1;
		else
			high = middle;
	}
	if (low == a->n_blocks || a->blocks[low].offset != offset)
		return -ENOENT;
	a->used -= a->blocks[low].bytes;
	a->n_blocks--;
	memmove(a->blocks + low, a->blocks + low + 1, (a->n_blocks - low) * sizeof *a->blocks);
	return 0;
}
