// SPDX-License-Identifier: Apache-2.0
// Devices of several processes that sum arrays among themselves, without the host: NCCL between GPUs. Collective, as in
// daemon/worker/team.h.
#pragma once

#include <stddef.h>
#include <stdint.h>

struct backend;
struct error;
struct peers;
struct real;

#define PEERS_ID_BYTES 128

// Whether this device can be a peer in this build: it then takes part in the calls below.
int peers_able(const struct backend *be);
// Made by one process, which gives it to the others. ERROR_UNSUPPORTED, ERROR_UNAVAILABLE.
int peers_make_id(const struct backend *be, uint8_t ret_id[PEERS_ID_BYTES], struct error *err);
// Waits for all of them. Before the backend's close: peers_close.
int peers_open(struct backend *be, const uint8_t id[PEERS_ID_BYTES], uint32_t rank, uint32_t size, struct peers **ret, struct error *err);
void peers_close(struct peers *p);             // NULL is fine; waits for nobody
// array[i] = the sum of everyone's, in place, ordered behind the device's other work.
// Waits at most silence_ms (0 = no end) for it to be done.
int peers_sum(struct peers *p, struct real *array, size_t n, uint64_t silence_ms, struct error *err);
