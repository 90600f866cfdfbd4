// SPDX-License-Identifier: Apache-2.0
// Private to kernels/: NCCL's side of kernels/peers.h.
#pragma once

#include <stddef.h>
#include <stdint.h>

struct backend;
struct error;
struct peers;
struct real;

int cuda_peers_make_id(uint8_t *ret_id /*(PEERS_ID_BYTES)*/, struct error *err);
int cuda_peers_open(struct backend *be, const uint8_t *id, uint32_t rank, uint32_t size, struct peers **ret, struct error *err);
void cuda_peers_close(struct peers *p);
int cuda_peers_sum(struct peers *p, struct real *array, size_t n, uint64_t silence_ms, struct error *err);
