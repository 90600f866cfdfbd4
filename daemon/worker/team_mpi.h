// SPDX-License-Identifier: Apache-2.0
// MPI, as team.c uses it. The only part that knows of it; absent from builds without.
#pragma once

#include <stddef.h>
#include <stdint.h>

struct error;
struct team_mpi;

int team_mpi_open(struct team_mpi **ret, uint32_t *ret_rank, uint32_t *ret_size, struct error *err);
// broken: the others cannot be waited for; they are ended.
void team_mpi_close(struct team_mpi *m, int broken);   // NULL is fine

// Each waits at most silence_ms (0 = no end); -EIO or -ETIMEDOUT with the reason, after which nothing works any more. n: at most INT_MAX.
// all (size, n): everyone's.
int team_mpi_gather(struct team_mpi *m, const void *mine, size_t n, void *ret_all, uint64_t silence_ms, struct error *err);
int team_mpi_broadcast(struct team_mpi *m, void *bytes, size_t n, uint64_t silence_ms, struct error *err);
// Piece i of `mine` (size pieces of n floats) goes to rank i; ret (size, n): what each rank sent here.
int team_mpi_exchange(struct team_mpi *m, const float *mine, size_t n, float *ret, uint64_t silence_ms, struct error *err);
