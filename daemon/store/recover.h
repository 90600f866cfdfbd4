// SPDX-License-Identifier: Apache-2.0
// What happens to the shards of a directory when a store is opened.
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "daemon/store/appender.h"

struct error;

// How far a shard has been read.
struct recovered {
	bool any;                        // false: there is none
	uint32_t id;
	uint64_t end, next_number;
	bool sealed;
};

// Fills parts->index and parts->shards from every shard in parts->directory. A writer also cuts torn tails, seals what is to be sealed,
// writes missing index files, and gets the shard to go on with (fd -1: none) and the id of the next one. A reader gets how far it read the
// newest. Damage is counted, not an error; -EBADMSG when there are shards and not one can be read.
int recover_shards(struct store_parts *parts, bool read_only, struct tail_shard *ret_current, uint32_t *ret_next_id,
		   struct recovered *ret_newest, struct error *err);
// One shard more, for a reader. 1: not readable.
int recover_shard(struct store_parts *parts, uint32_t id, struct recovered *ret, struct error *err);
