// SPDX-License-Identifier: Apache-2.0
// Writes safetensors and small files atomically: temporary name, fsync, rename, fsync of the directory.
#pragma once

#include <stddef.h>

#include "kernels/dtype.h"

struct error;

struct checkpoint_tensor {
	const char *name;
	struct tensor tensor;         // F32, F16 or BF16
};

int checkpoint_write_safetensors(const char *path, const struct checkpoint_tensor *tensors, size_t n, struct error *err);
int checkpoint_write_file(const char *path, const void *bytes, size_t n, struct error *err);
