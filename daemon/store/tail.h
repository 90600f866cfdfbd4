// SPDX-License-Identifier: Apache-2.0
// The growing end of a store: the one shard being written, and the bytes on their way into it. Belongs to one thread.
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "daemon/store/directory.h"
#include "daemon/store/packed.h"
#include "daemon/store/shard.h"
#include "daemon/store/sidecar.h"

struct record;
struct ring;

struct tail_shard {
	uint32_t id, seed;
	int fd;                      // -1: none
	uint64_t end;                // where the next frame goes; everything before is whole in the kernel
	uint64_t synced;             // a successful fsync has covered everything before this
	uint64_t set_aside;          // space has been asked for up to here
	uint64_t next_number;
	struct sidecar entries;
	bool entries_missing;        // want of memory: the shard is sealed without an index then
	bool direct;                 // written past the page cache (O_DIRECT)
};
void tail_shard_done(struct tail_shard *shard);

#define TAIL_WRITE_BYTES (4u << 20)       // a write of this size keeps a disk as busy as a deep queue of small ones, and they stay in order
#define TAIL_WRITES 4                    // one at the disk, the others full or being filled
#define TAIL_BLOCK 4096u                 // offsets, lengths and memory of O_DIRECT are multiples of this
struct tail_write;

struct tail {
	const struct directory *directory;
	uint64_t shard_bytes;        // space is not set aside beyond this
	struct ring *ring;
	struct tail_shard shard;
	struct tail_write *writes;
	unsigned oldest, filling;    // of the writes: at the disk or waiting for it [oldest, filling), being gathered
	bool registered;             // the buffers, or it was tried
	struct packer packer;        // the owner's to set; zeroed: records are written as they are
	uint64_t step;               // in which space was last set aside
	uint64_t end, next_number;   // including what is gathered or on its way
	uint64_t good;               // everything before this is in the kernel
	int failed;                  // of the writes since the last flush: the first error
};

int tail_init(struct tail *t, const struct directory *directory, uint64_t shard_bytes, struct error *err);
void tail_done(struct tail *t);      // closes without synchronising

int tail_adopt(struct tail *t, struct tail_shard *shard);       // goes on with a recovered shard; takes it over, also on failure. -errno
int tail_create(struct tail *t, uint32_t id, struct error *err);

// Gathers one frame; its offset and number into *ret_frame. t->good tells what has become of those before. Stop when t->failed is not 0:
// bytes are no longer taken.
void tail_append(struct tail *t, const struct record *record, struct shard_frame *ret_frame);
bool tail_wait(struct tail *t);      // until the write at the disk is over; false: there is none
// Waits for all writes. Returns the first error; the caller then says with tail_commit which frames count (those before t->good) and
// calls tail_cut.
int tail_flush(struct tail *t);
void tail_abandon(struct tail *t);   // what is not committed counts for nothing; waits for what the kernel has of it
// In order: this frame is whole; it becomes part of the shard. Returns its entry (NULL: no memory for it), the shard's own.
const struct sidecar_entry *tail_commit(struct tail *t, const struct shard_frame *f, const struct record *record);
int tail_cut(struct tail *t);      // the file ends with the last committed frame again; -errno: write no more to this shard
int tail_sync(struct tail *t);     // fsync of what is committed, while writes go on. A failure is final: write no more to this shard
void tail_drop(struct tail *t, struct tail_shard *ret_shard);      // lets go of the shard (into *ret_shard; NULL: closes it)
// Seal, fsync, index file. -errno when the fsync failed or the shard could not be left clean: as for tail_sync. The shard stays open.
int tail_seal(struct tail *t);
