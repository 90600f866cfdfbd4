// SPDX-License-Identifier: Apache-2.0
// safetensors, read-only; one file or a directory sharded by model.safetensors.index.json.
#pragma once

#include <stddef.h>

#include "kernels/dtype.h"

struct error;
struct safetensors;

int safetensors_open(const char *path, struct safetensors **ret_file, struct error *err);              // one file
int safetensors_open_directory(const char *path, struct safetensors **ret_file, struct error *err);    // sharded or single
int safetensors_open_bytes(const void *bytes, size_t n, struct safetensors **ret_file, struct error *err);
struct safetensors *safetensors_close(struct safetensors *file);
// As in gguf.h: find describes (-ENOENT when absent; -EOPNOTSUPP for a dtype other than F32, F16, BF16), read brings the bytes into
// memory the caller frees (tensor->data), read_rows some of them.
int safetensors_find(const struct safetensors *file, const char *name, struct tensor *ret_tensor, struct error *err);
int safetensors_read(const struct safetensors *file, const char *name, struct tensor *ret_tensor, struct error *err);
int safetensors_read_rows(const struct safetensors *file, const char *name, uint64_t first, uint64_t n, void *to, struct error *err);
// Every tensor in name order, for checks that nothing unknown is left over.
size_t safetensors_count(const struct safetensors *file);
const char *safetensors_name(const struct safetensors *file, size_t i);
