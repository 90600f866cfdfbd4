// SPDX-License-Identifier: Apache-2.0
// Which records there are about one sequence by one teacher: a group's name -> the first half of its records' keys. Bounded: GROUP_MAX of
// the records of a group are remembered, so that no client can make looking one up long. Slots of 16 bytes, 21 to 43 bytes per record.
// The caller holds the index's lock.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/sequence.h"

struct groups;
struct record;

#define GROUP_MAX 16

// The name: 64 bits of a hash of teacher and sequence, never 0. Whoever finds a record checks both.
uint64_t group_name(const struct content_id *teacher, const struct content_id *sequence);
uint64_t group_of_record(const struct record *record);      // 0: no memory

struct groups *groups_new(uint64_t salt);             // NULL: no memory
struct groups *groups_free(struct groups *g);         // returns NULL; NULL is fine
int groups_append(struct groups *g, uint64_t group, uint64_t key);       // nothing for group 0. -ENOMEM

// Removes pairs whose key is lost: looks at up to n slots (begin with a zeroed sweep). False when all have been looked at.
struct groups_sweep { unsigned part; uint64_t at, n_slots; };
typedef bool groups_lost_fn(const void *arg, uint64_t key);
bool groups_remove_lost(struct groups *g, struct groups_sweep *sweep, size_t n, groups_lost_fn *lost, const void *arg);
unsigned groups_find(const struct groups *g, uint64_t group, uint64_t ret_keys[GROUP_MAX]);     // how many
