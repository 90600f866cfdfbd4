// SPDX-License-Identifier: Apache-2.0
// The file behind backend_shelf: matrices that memory has no room for, written once while the teacher loads and read in every pass, a few
// pieces ahead of the products, through io_uring and past the page cache where the file system allows. The file has no name: it goes with
// the process, however that ends.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/backend.h"

struct error;
struct shelf;

// directory: where the file is made, when the first piece is. memory_bytes: what its buffers should stay below; they take more where a
// piece of least_bytes, which must fit, needs it.
int shelf_open(const char *directory, uint64_t memory_bytes, size_t least_bytes, struct shelf **ret_shelf, struct error *err);
struct shelf *shelf_close(struct shelf *s);            // NULL is fine; returns NULL
const struct backend_shelf *shelf_door(const struct shelf *s);

struct shelf_stats {
	uint64_t file_bytes, read_bytes;               // of the file; read from it so far
	double seconds;                                // for which a read was waited for, in all
	bool uring, direct;                            // the kernel allows io_uring; the file system allows O_DIRECT
	bool in_memory;                                // the file system lies in memory: nothing is gained
};
void shelf_stats(const struct shelf *s, struct shelf_stats *ret_stats);       // from the thread that uses the door
