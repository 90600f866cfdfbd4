// SPDX-License-Identifier: Apache-2.0
// The only such device there is is CUDA's, and that where NCCL was found.
#include "kernels/peers.h"

#include <string.h>

#include "common/error.h"
#include "kernels/backend.h"
#include "kernels/cuda/peers.h"

int peers_able(const struct backend *be)
{
#ifdef HAVE_NCCL
	return strcmp(be->ops->name, "cuda") == 0;
#else
	(void)be;
	return 0;
#endif
}

#ifdef HAVE_NCCL
int peers_make_id(const struct backend *be, uint8_t ret_id[PEERS_ID_BYTES], struct error *err)
{
	return peers_able(be) ? cuda_peers_make_id(ret_id, err)
		: error_set(err, ERROR_UNSUPPORTED, "device", "%s has no peers", be->ops->name);
}

int peers_open(struct backend *be, const uint8_t id[PEERS_ID_BYTES], uint32_t rank, uint32_t size, struct peers **ret, struct error *err)
{
	return peers_able(be) ? cuda_peers_open(be, id, rank, size, ret, err)
		: error_set(err, ERROR_UNSUPPORTED, "device", "%s has no peers", be->ops->name);
}

void peers_close(struct peers *p)
{
	cuda_peers_close(p);
}

int peers_sum(struct peers *p, struct real *array, size_t n, uint64_t silence_ms, struct error *err)
{
	return cuda_peers_sum(p, array, n, silence_ms, err);
}
#else
int peers_make_id(const struct backend *be, uint8_t ret_id[PEERS_ID_BYTES], struct error *err)
{
	memset(ret_id, 0, PEERS_ID_BYTES);
	return error_set(err, ERROR_UNSUPPORTED, "device", "this build has no NCCL for %s", be->ops->name);
}

int peers_open(struct backend *be, const uint8_t id[PEERS_ID_BYTES], uint32_t rank, uint32_t size, struct peers **ret, struct error *err)
{
	(void)id, (void)rank, (void)size, (void)ret;
	return error_set(err, ERROR_UNSUPPORTED, "device", "this build has no NCCL for %s", be->ops->name);
}

void peers_close(struct peers *p)
{
	(void)p;
}

int peers_sum(struct peers *p, struct real *array, size_t n, uint64_t silence_ms, struct error *err)
{
	(void)p, (void)array, (void)n, (void)silence_ms;
	return error_set(err, ERROR_UNSUPPORTED, "device", "this build has no NCCL");
}
#endif
