// SPDX-License-Identifier: Apache-2.0
// Named places at which a test may end the process, to see what is left on disk. Always compiled in, armed only by programs that set the
// hook: the crash tests.
#pragma once

#include <stddef.h>

enum crash_point {
	CRASH_SHARD_CREATED,         // a shard or index under its temporary name, empty
	CRASH_SHARD_WRITTEN,         // its header
	CRASH_SHARD_SYNCED,
	CRASH_SHARD_RENAMED,
	CRASH_SHARD_LISTED,          // the directory synchronised
	CRASH_INDEX_CREATED,
	CRASH_INDEX_WRITTEN,
	CRASH_INDEX_SYNCED,
	CRASH_INDEX_RENAMED,
	CRASH_INDEX_LISTED,
	CRASH_WRITE_BEFORE,          // frames
	CRASH_WRITE_SUBMITTED,
	CRASH_WRITE_AFTER,
	CRASH_PUBLISH,               // frames are whole, not yet findable
	CRASH_FSYNC_BEFORE,
	CRASH_FSYNC_AFTER,
	CRASH_ACKNOWLEDGE,           // before one acknowledgement
	CRASH_SEAL_BEFORE,
	CRASH_SEAL_WRITTEN,
	CRASH_SEAL_CUT,
	CRASH_SEAL_SYNCED,
	CRASH_MEND_BEFORE,           // recovery: a torn tail is to be cut
	CRASH_MEND_CUT,
	CRASH_MEND_SEALED,
	CRASH_MEND_SYNCED,
	CRASH_REWRITE_MADE,          // tools: new shards are in place, old ones still there
	CRASH_REWRITE_REMOVED,       // some old ones are gone
	N_CRASH_POINTS
};

extern void (*crash_hook)(enum crash_point point);       // NULL
const char *crash_name(enum crash_point point);

static inline void crash(enum crash_point point)
{
	if (__builtin_expect(crash_hook != NULL, 0))
		crash_hook(point);
}
