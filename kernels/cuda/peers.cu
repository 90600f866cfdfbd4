// SPDX-License-Identifier: Apache-2.0
// Sums between GPUs by NCCL, on the device's one stream: behind what was queued before, ahead of what comes after. A sum's order is
// NCCL's, chosen by the number of GPUs and how they are wired; each element is summed in one place, so that all get the same bits.
//
// Calls do not block: a process that is gone would else hold up the others for good. It has been compiled, but not run, on the machines
// where this was written: they have no GPU.
#include "kernels/cuda/cuda.cuh"

#include <nccl.h>
#include <stdio.h>
#include <time.h>

#include <new>

extern "C" {
#include "common/error.h"
#include "kernels/cuda/peers.h"
#include "kernels/peers.h"
}

#define PEERS_NAP_NS 50000

static_assert(sizeof(ncclUniqueId) == PEERS_ID_BYTES, "kernels/peers.h gives the size");

struct peers {
	backend *be;
	ncclComm_t all;
};

static int peers_failed(ncclResult_t e, const char *what, struct error *err)
{
	return error_set(err, ERROR_UNAVAILABLE, "device", "NCCL: %s: %s", what, ncclGetErrorString(e));
}

static void nap(void)
{
	struct timespec t = {0, PEERS_NAP_NS};
	nanosleep(&t, NULL);
}

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static bool too_late(double begin, uint64_t silence_ms)
{
	return silence_ms && (now() - begin) * 1000 > (double)silence_ms;
}

// Until a call that was begun is through (not what it queued).
static int settle(struct peers *p, ncclResult_t e, uint64_t silence_ms, const char *what, struct error *err)
{
	double begin = now();
	while (e == ncclInProgress) {
		ncclResult_t asked = ncclCommGetAsyncError(p->all, &e);
		if (asked != ncclSuccess)
			return peers_failed(asked, what, err);
		if (too_late(begin, silence_ms))
			return error_set(err, ERROR_DEADLINE, "device", "NCCL: %s: another process says nothing", what);
		if (e == ncclInProgress)
			nap();
	}
	return e == ncclSuccess ? 0 : peers_failed(e, what, err);
}

int cuda_peers_make_id(uint8_t *ret_id, struct error *err)
{
	ncclUniqueId id;
	ncclResult_t e = ncclGetUniqueId(&id);
	if (e != ncclSuccess)
		return peers_failed(e, "no id", err);
	memcpy(ret_id, &id, sizeof id);
	return 0;
}

int cuda_peers_open(backend *be, const uint8_t *bytes, uint32_t rank, uint32_t size, struct peers **ret, struct error *err)
{
	struct peers *p = new (std::nothrow) peers();
	ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
	ncclUniqueId id;
	if (!p)
		return error_set(err, ERROR_MEMORY, NULL, "out of memory");
	p->be = be;
	config.blocking = 0;
	memcpy(&id, bytes, sizeof id);
	ncclResult_t e = ncclCommInitRankConfig(&p->all, (int)size, id, (int)rank, &config);
	int r = settle(p, e, 0, "joining the other GPUs", err);
	if (r) {
		cuda_peers_close(p);
		return r;
	}
	*ret = p;
	return 0;
}

void cuda_peers_close(struct peers *p)
{
	if (!p)
		return;
	if (p->all)
		ncclCommAbort(p->all);         // waits for nobody
	delete p;
}

int cuda_peers_sum(struct peers *p, struct real *array, size_t n, uint64_t silence_ms, struct error *err)
{
	cuda *c = cuda_of(p->be);
	double begin = now();
	ncclResult_t e = ncclAllReduce(real_of(array), real_of(array), n, ncclFloat, ncclSum, p->all, c->stream);
	int r = settle(p, e, silence_ms, "summing", err);
	cudaError_t done = cudaErrorNotReady;
	while (r == 0 && (done = cudaStreamQuery(c->stream)) == cudaErrorNotReady) {
		ncclResult_t state;
		e = ncclCommGetAsyncError(p->all, &state);
		if (e != ncclSuccess || (state != ncclSuccess && state != ncclInProgress))
			return peers_failed(e != ncclSuccess ? e : state, "summing", err);
		if (too_late(begin, silence_ms))
			return error_set(err, ERROR_DEADLINE, "device", "NCCL: another process says nothing");
		nap();
	}
	if (r == 0 && !cuda_check(p->be, done, "summing between GPUs"))
		r = error_set(err, ERROR_UNAVAILABLE, "device", "the device failed while summing between GPUs");
	return r;
}
