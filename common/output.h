// SPDX-License-Identifier: Apache-2.0
// Files that appear whole or not at all: written under a temporary name, synced, renamed, the directory synced. At every moment the path
// holds the whole old content or the whole new one, also after a power cut. One writer per path.
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define OUTPUT_TEMPORARY ".tmp"        // behind the path, until it is closed: what a killed writer leaves

struct error;

struct output {
	const char *path;        // the caller's; must outlive it
	char *temporary;         // path.tmp: a leftover of a crash is written over by the next attempt
	int fd;
	struct error *err;       // for every call
};

// After a failure too, output_close is called once.
int output_open(struct output *o, const char *path, struct error *err);
int output_write(struct output *o, const void *bytes, size_t n);                         // at the end of what was written so
int output_write_at(struct output *o, const void *bytes, size_t n, uint64_t offset);     // leaves that end where it is
int output_reserve(struct output *o, uint64_t n_bytes);      // the file's final size; -ENOSPC now rather than at the end
// Makes the new content the file's; with r < 0 (an error of before) leaves the old. Returns r or the error met here.
int output_close(struct output *o, int r);
// The names in a folder are on the disk; -errno.
int output_sync_folder(const char *path);
// The name of a file or folder that was made, or renamed to this: after a power cut its folder still has it.
int output_sync_name(const char *path, struct error *err);
// Makes the folder if it is not there.
int output_folder(const char *path, mode_t mode, const char *field, struct error *err);
