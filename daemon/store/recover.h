// SPDX-License-Identifier: Apache-2.0
// What happens to the shards of a directory when a store is opened.
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "daemon/store/appender.h"

struct error;

// Fills parts->index and parts->shards from every shard in parts->directory. A writer also cuts torn tails, seals what is to be sealed,
// writes missing index files, and gets the shard to go on with (fd -1: none) and the id of the next one. Damage is counted, not an error;
// -EBADMSG when there are shards and not one can be read.
int recover_shards(struct store_parts *parts, bool read_only, struct tail_shard *ret_current, uint32_t *ret_next_id, struct error *err);
