// SPDX-License-Identifier: Apache-2.0
// A model file as bytes at offsets: a regular file read with pread, or memory. Not mapped: a mapped file that is truncated while the daemon
// runs (an interrupted download, a copy over it) kills the process with SIGBUS, a short pread is an error that names the file; and since
// weights are copied to the backend anyway, a map would save nothing.
#pragma once

#include <stddef.h>
#include <stdbool.h>
#include <stdint.h>
#include <time.h>

struct error;

struct input {
	int fd;                    // -1: memory
	const uint8_t *bytes;      // memory, not owned
	uint64_t size;             // at open; of the open file, not of the path
	struct timespec modified;  // at open
	char name[128];            // last part of the path, for errors
};

int input_open(struct input *in, const char *path, struct error *err);      // regular files only; symbolic links are followed
void input_open_bytes(struct input *in, const void *bytes, size_t n, const char *name);
void input_close(struct input *in);                                         // a closed one is fine
// Exactly n bytes at offset, or an error (ERROR_CORRUPT when the file has become shorter).
int input_read(const struct input *in, uint64_t offset, void *to, size_t n, struct error *err);
// Whether the file has been written to since it was opened: what is read now may not be what was read then.
bool input_is_changed(const struct input *in);
// n rows from `first` on of the tensor whose bytes begin at `offset`, as they lie in the file (a vector is one row). ERROR_CONFLICT when
// the file is changed.
struct tensor;
int input_read_rows(const struct input *in, const struct tensor *t, uint64_t offset, uint64_t first, uint64_t n, void *to,
		    struct error *err);
// The whole of a small file, NUL-terminated after its n bytes; larger than max_bytes is ERROR_TOO_LARGE. The caller frees.
int input_read_file(const char *path, size_t max_bytes, char **ret_bytes, size_t *ret_n, struct error *err);
