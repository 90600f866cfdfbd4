// SPDX-License-Identifier: Apache-2.0
// How often a GPU failed for good, by what was to be done about it. The process ends then, before anybody could read a number of it: so the
// numbers are kept beside the answers, where there is a store, and the next process goes on counting from them.
#pragma once

#include <stdatomic.h>

#include "kernels/fault.h"

struct error;

struct faults {
	char *path;                                       // NULL: not kept
	atomic_uint_fast64_t n[N_DEVICE_FAULTS];
};

// directory NULL or empty: not kept. A file that cannot be read, or says nothing we know, is an error, and counting begins at 0.
int faults_open(struct faults *f, const char *directory, struct error *err);
void faults_close(struct faults *f);
// One more; on the disk when it returns 0.
int faults_note(struct faults *f, enum device_fault fault, struct error *err);
