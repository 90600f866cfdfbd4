// SPDX-License-Identifier: Apache-2.0
// Which records of a store say nothing that others do not: second copies of a key, and answers that a larger record contains.
// Holds 72 bytes for each record.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/sequence.h"

struct error;
struct record;
struct surplus;
struct survey_item;

enum surplus_kind {
	SURPLUS_KEEP,
	SURPLUS_DUPLICATE,           // the copy that counts is another one, and stays
	SURPLUS_CONTAINED,           // store_answer cuts these very bytes out of a record that stays
};

struct surplus_entry {
	struct content_id key;
	uint64_t group;              // groups.h
	uint64_t offset;             // of the frame
	uint32_t shard, record_bytes;
	uint32_t stored_bytes;       // of the record in its frame: fewer where it is compressed
	uint32_t shape;              // part.h
	uint8_t kind;                // enum surplus_kind, after surplus_find
	bool fixed;                  // its shard stays as it is: the entry is always kept, and nothing is left out for it
};

struct surplus *surplus_new(void);                        // NULL: no memory
struct surplus *surplus_free(struct surplus *s);          // returns NULL; NULL is fine

// A good record at its place; from any thread. -ENOMEM
int surplus_append(struct surplus *s, const struct survey_item *item);
void surplus_fix(struct surplus *s, uint32_t shard);      // after the last append
// Decides about every entry; reads records of groups that have several from `directory`. Without `contained` only duplicates are left out.
int surplus_find(struct surplus *s, const char *directory, bool contained, struct error *err);

struct surplus_totals { uint64_t n_duplicates, duplicate_bytes, n_contained, contained_bytes; };     // bytes of records
struct surplus_totals surplus_sum(const struct surplus *s);
// All entries by shard and offset, after surplus_find.
const struct surplus_entry *surplus_entries(const struct surplus *s, size_t *ret_n);
