// SPDX-License-Identifier: Apache-2.0
// The few instructions that CUDA C++ has no name for, each as a function: products of small matrices held in the registers of a warp, loads
// that bring shared memory into that layout, copies into shared memory that the thread does not wait for. (tests/gpu/emulate has a file
// of this name that does the same on the processor.)
#pragma once

#include <stdint.h>

// c (16,8) += a (16,16) b (16,8), bfloat16 with float sums. Lane l, with g = l / 4 and t = l % 4 * 2, holds
//   a: (g, t), (g + 8, t), (g, t + 8), (g + 8, t + 8), each with its right neighbour in the high half
//   b: (t, g), (t + 8, g), each with its lower neighbour in the high half        c: (g, t), (g, t + 1), (g + 8, t), (g + 8, t + 1)
static __device__ __forceinline__ void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1)
{
	asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
		     : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
		     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Four (8,8) matrices of 16-bit values: lane l names row l % 8 of matrix l / 8 (16 aligned bytes of shared memory) and gets of each matrix
// the two values (l / 4, l % 4 * 2) and its right neighbour; transposed, (l % 4 * 2, l / 4) and its lower neighbour.
static __device__ __forceinline__ void mma_load(uint32_t (&r)[4], const void *row)
{
	asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
		     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"((uint32_t)__cvta_generic_to_shared(row)) : "memory");
}

static __device__ __forceinline__ void mma_load_transposed(uint32_t (&r)[4], const void *row)
{
	asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
		     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"((uint32_t)__cvta_generic_to_shared(row)) : "memory");
}

// 16 aligned bytes, or zeros when not `valid` (then `from` is not read). Seen by the thread after copy_wait, by the others after a barrier.
static __device__ __forceinline__ void copy_start(void *to, const void *from, bool valid)
{
	asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" :: "r"((uint32_t)__cvta_generic_to_shared(to)), "l"(from),
		     "r"(valid ? 16 : 0) : "memory");
}

// Ends a group of copies; copy_wait<n> waits for all groups of this thread but the last n.
static __device__ __forceinline__ void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int n> static __device__ __forceinline__ void copy_wait() { asm volatile("cp.async.wait_group %0;" :: "n"(n) : "memory"); }
