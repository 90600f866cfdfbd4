// SPDX-License-Identifier: Apache-2.0
// Memory that clients' bytes take at the doors, before a request is made of them and after a reply was: the one bound on the sum, as each
// connection's own (max-body, max-json) times max-connections is more than a machine has.
#include "daemon/server/service_internal.h"

#include <inttypes.h>

#define SMALL_BYTES 65536            // does not count: what most bodies and replies are, so those are never refused for others' large ones

static uint64_t counted(uint64_t n_bytes)
{
	return n_bytes <= SMALL_BYTES ? 0 : n_bytes;
}

int service_hold(struct service *s, uint64_t *held, uint64_t n_bytes, struct error *err)
{
	uint64_t was = counted(*held), is = counted(n_bytes);
	if (was == is) {
		*held = n_bytes;
		return 0;
	}
	uint64_t limit = is > was ? service_doors(s).door_bytes : UINT64_MAX;
	uint_fast64_t all = atomic_load(&s->held_bytes);
	do {
		uint64_t others = all - was;
		if (others && (is > limit || others > limit - is))
			return error_set(err, ERROR_OVERLOADED, NULL, "other bodies and replies hold %" PRIu64 " bytes (limit %" PRIu64
				"): try again later", others, limit);
	} while (!atomic_compare_exchange_weak(&s->held_bytes, &all, all - was + is));
	*held = n_bytes;
	return 0;
}
