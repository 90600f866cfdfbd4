// SPDX-License-Identifier: Apache-2.0
// Private to snapshot*.c: snapshot.c has the files of a checkpoint, snapshot_state.c what state.json says.
#pragma once

#include <jansson.h>
#include <stdbool.h>

#include "daemon/worker/snapshot.h"

json_t *snapshot_state_encode(const struct snapshot_state *s);         // NULL = out of memory
bool snapshot_state_decode(const json_t *j, struct snapshot_state *ret);       // whether it is one of this build
json_t *snapshot_settings_encode(const char *lines);   // NULL = out of memory
char *snapshot_settings_decode(const json_t *list);    // the caller's; NULL = out of memory, or no list of lines
bool snapshot_integer(const json_t *j, const char *key, uint64_t *ret);        // a member that is a whole number, not negative
