// SPDX-License-Identifier: Apache-2.0
// For tests of the store: records made from a number, directories that vanish, damage done to files.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "daemon/store/store.h"

// The record number n of this size: the same n and size give the same bytes and key, in any process. About 60 + 8 rows x top_k bytes.
struct record *fixture_record(uint64_t n, uint32_t n_tokens, uint32_t top_k);
struct record *fixture_record_sized(uint64_t n);      // sizes vary with n: mostly under 1 KiB, some 20 KiB, a few 1.3 MiB

// Directories are made in memory from now on, where the disk's speed would only be waited for: unless TMPDIR is set, or memory has not
// so much room (a container's /dev/shm may be 64 MiB, shared with all tests).
void fixture_in_memory(uint64_t bytes);
char *fixture_directory(void);                        // a new empty one, with room for "/..." behind; the caller removes it
void fixture_remove(char *directory);                 // with all files in it; frees
char *fixture_copy(const char *directory);            // of all files in it; the caller removes it

struct store *fixture_open(const char *directory, uint64_t shard_bytes);       // compresses with the level KD_COMPRESSION, if set
struct store *fixture_open_reader(const char *directory);
// Appends and waits for the acknowledgement; returns its errno-like result.
int fixture_append(struct store *s, struct record *record, enum store_durability durability);
// 0 when the record is found with the same bytes, -EILSEQ when with others, else what store_find said.
int fixture_expect(struct store *s, struct record *record);
struct store_stats fixture_stats(struct store *s);
// Records number `first` and on, of 8 tokens and top-4: appends them, acknowledged; counts those found (others absent or damaged).
void fixture_append_range(struct store *s, uint64_t first, uint64_t n, enum store_durability durability);
unsigned fixture_count_found(struct store *s, uint64_t first, uint64_t n);
// Walks all; how many records, how many places of damage and the first of these.
unsigned fixture_walk(struct store *s, unsigned *ret_damaged, char first_place[96]);

uint8_t *fixture_read(const char *directory, const char *name, size_t *ret_n);      // the caller frees
void fixture_write(const char *directory, const char *name, const void *bytes, size_t n);
void fixture_flip(const char *directory, const char *name, uint64_t bit);
bool fixture_exists(const char *directory, const char *name);
int fixture_unlink(const char *directory, const char *name);
