// SPDX-License-Identifier: Apache-2.0
// Which bytes of one large reserve are given away: offsets alone, free of CUDA so that it is tested where there is no GPU. First fit;
// neighbours that come back are joined. A model makes some hundred arrays and keeps them, so a sorted list is enough.
#pragma once

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define ARENA_ALIGNMENT 256          // what cudaMalloc promises, and more than any vector load needs
#define ARENA_NONE UINT64_MAX

struct arena_block { uint64_t offset, bytes; };

struct arena {
	uint64_t bytes, used;        // used: rounded up to the alignment
	struct arena_block *blocks;  // taken, by offset
	size_t n_blocks, capacity;
};

void arena_init(struct arena *a, uint64_t bytes);
void arena_done(struct arena *a);
// The bytes an array takes of the reserve; UINT64_MAX when they do not fit 64 bits.
uint64_t arena_rounded(uint64_t bytes);
// The offset of `bytes` bytes (0 counts as 1), aligned; ARENA_NONE when no gap is large enough, or the host has no memory for the list.
uint64_t arena_take(struct arena *a, uint64_t bytes);
// The block at this offset comes back; 0, or -ENOENT when there is none.
int arena_give(struct arena *a, uint64_t offset);

#ifdef __cplusplus
}
#endif
