// SPDX-License-Identifier: Apache-2.0
// A shard made in one go, under a temporary name until it is whole: header, frames of the caller's records, seal,
// index. Used by one thread.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "daemon/store/directory.h"
#include "daemon/store/packed.h"
#include "daemon/store/shard.h"
#include "daemon/store/sidecar.h"

struct error;
struct record;

struct rewrite {
	const struct directory *directory;
	struct shard_header header;
	int fd;                      // -1: none under way
	uint64_t end, next_number;
	int64_t written;             // the new file is as old as this (seconds since 1970): the youngest of what goes in
	struct sidecar entries;
	uint8_t *buffer;
	size_t n_buffered;
};

int rewrite_open(struct rewrite *w, const struct directory *d, uint32_t id, uint64_t created, struct error *err);
// stored: the record as its frame shall hold it
int rewrite_append(struct rewrite *w, const struct record *record, struct packed stored, struct error *err);
// Seals, synchronises, renames, synchronises the directory, then writes the index. *ret_bytes: of the shard.
int rewrite_commit(struct rewrite *w, uint64_t *ret_bytes, struct error *err);
void rewrite_done(struct rewrite *w);      // what is not committed is removed; fine when none is under way
