// SPDX-License-Identifier: Apache-2.0
#include "daemon/store/crash.h"

void (*crash_hook)(enum crash_point point);

const char *crash_name(enum crash_point point)
{
	static const char *const names[N_CRASH_POINTS] = {
		[CRASH_SHARD_CREATED] = "shard-created", [CRASH_SHARD_WRITTEN] = "shard-written", [CRASH_SHARD_SYNCED] = "shard-synced",
		[CRASH_SHARD_RENAMED] = "shard-renamed", [CRASH_SHARD_LISTED] = "shard-listed", [CRASH_INDEX_CREATED] = "index-created",
		[CRASH_INDEX_WRITTEN] = "index-written", [CRASH_INDEX_SYNCED] = "index-synced", [CRASH_INDEX_RENAMED] = "index-renamed",
		[CRASH_INDEX_LISTED] = "index-listed", [CRASH_WRITE_BEFORE] = "write-before", [CRASH_WRITE_SUBMITTED] = "write-submitted",
		[CRASH_WRITE_AFTER] = "write-after", [CRASH_PUBLISH] = "publish", [CRASH_FSYNC_BEFORE] = "fsync-before",
		[CRASH_FSYNC_AFTER] = "fsync-after", [CRASH_ACKNOWLEDGE] = "acknowledge", [CRASH_SEAL_BEFORE] = "seal-before",
		[CRASH_SEAL_WRITTEN] = "seal-written", [CRASH_SEAL_CUT] = "seal-cut", [CRASH_SEAL_SYNCED] = "seal-synced",
		[CRASH_MEND_BEFORE] = "mend-before", [CRASH_MEND_CUT] = "mend-cut", [CRASH_MEND_SEALED] = "mend-sealed",
		[CRASH_MEND_SYNCED] = "mend-synced", [CRASH_REWRITE_MADE] = "rewrite-made", [CRASH_REWRITE_REMOVED] = "rewrite-removed",
	};
	return names[point];
}
