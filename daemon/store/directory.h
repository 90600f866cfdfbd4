// SPDX-License-Identifier: Apache-2.0
// The store's directory: its lock, the names in it, and files that appear whole or not at all.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct content_id;
struct error;

#define DIRECTORY_NAME_MAX 32
#define DIRECTORY_NOTE_END ".teacher"

struct directory {
	int fd;
	int lock;                    // -1 when read-only
	const char *path;            // for messages; the caller's
};

void directory_shard_name(uint32_t id, char ret_name[DIRECTORY_NAME_MAX]);
void directory_index_name(uint32_t id, char ret_name[DIRECTORY_NAME_MAX]);
void directory_note_name(const struct content_id *teacher, char ret_name[DIRECTORY_NAME_MAX]);

// Writers make the directory and take its lock (ERROR_CONFLICT when someone has it); readers find it or fail.
int directory_open(struct directory *d, const char *path, bool read_only, struct error *err);
void directory_close(struct directory *d);
// Ids of all shards, ascending; the caller frees. Temporary files are removed unless read-only.
int directory_list(const struct directory *d, uint32_t **ret_ids, size_t *ret_n, struct error *err);

// A new file under a temporary name, empty; then either synchronised and renamed (the directory synchronised too), or removed.
int directory_create(const struct directory *d, const char *name, int *ret_fd, struct error *err);
int directory_commit(const struct directory *d, const char *name, int fd, struct error *err);
void directory_abandon(const struct directory *d, const char *name);
int directory_write(int fd, const void *data, size_t n, uint64_t offset);     // all of it, or -errno
// Whether the disk takes n more bytes: some are written and synchronised in a file that is gone again afterwards. 0 or -errno.
int directory_try(const struct directory *d, uint64_t n);
