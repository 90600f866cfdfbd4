// SPDX-License-Identifier: Apache-2.0
// A folder of a target's own, for parsers that open files by name: in memory where the system has such a place, since some of them wait for
// the disk. It is removed with all files in it when the program ends.
#pragma once

#include <stddef.h>

#define SCRATCH_PATH 96                      // room for any path in it

const char *scratch_folder(void);            // its path; made at the first call
const char *scratch_path(const char *leaf, char ret_path[SCRATCH_PATH]);
// The file holds these bytes and no others; nobody else may read it. Returns its path.
const char *scratch_write(const char *leaf, const void *data, size_t n, char ret_path[SCRATCH_PATH]);
// The whole of a file, NUL behind it; the caller frees. NULL: there is none.
char *scratch_read(const char *leaf, size_t *ret_n);
void scratch_empty(void);                    // removes every file in it
