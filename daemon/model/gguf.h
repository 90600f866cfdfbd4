// SPDX-License-Identifier: Apache-2.0
// GGUF v2/v3 files, read-only. Every count, size and type is checked before use (reliability.md section 4). A model in parts
// (NAME-00001-of-00003.gguf and so on, all in one folder) is opened by its first part, which has the metadata, and is then as one file is.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/dtype.h"

struct error;
struct gguf;

int gguf_open(const char *path, struct gguf **ret_file, struct error *err);
int gguf_open_bytes(const void *bytes, size_t n, struct gguf **ret_file,
		    struct error *err);    // for tests and fuzzing; bytes must outlive it
struct gguf *gguf_close(struct gguf *file);

// Metadata. Each returns -ENOENT when the key is absent, -EINVAL (and err) when its type is another one.
int gguf_get_u64(const struct gguf *file, const char *key, uint64_t *ret, struct error *err);      // any integer type, value >= 0
int gguf_get_f64(const struct gguf *file, const char *key, double *ret, struct error *err);        // F32 or F64
int gguf_get_bool(const struct gguf *file, const char *key, bool *ret, struct error *err);
// a view, not terminated
int gguf_get_string(const struct gguf *file, const char *key, const char **ret, size_t *ret_n, struct error *err);
// Array of strings: count, then each by index in O(1).
int gguf_get_strings(const struct gguf *file, const char *key, uint64_t *ret_n, struct error *err);
int gguf_string_at(const struct gguf *file, const char *key, uint64_t i, const char **ret, size_t *ret_n);
// Arrays of integers (any integer type) converted to int32 in a new array the caller frees.
int gguf_get_int32s(const struct gguf *file, const char *key, int32_t **ret, uint64_t *ret_n, struct error *err);
int gguf_get_floats(const struct gguf *file, const char *key, float **ret, uint64_t *ret_n, struct error *err);    // of F32, likewise

// Tensors. find gives dtype, dims (row-major: rows first) and n_bytes, data NULL; -ENOENT when absent. read then brings the bytes into
// memory the caller frees (tensor->data): a short read is an error, so that a file truncated under us cannot kill the process.
int gguf_find(const struct gguf *file, const char *name, struct tensor *ret_tensor);
int gguf_read(const struct gguf *file, const char *name, struct tensor *ret_tensor, struct error *err);
// n rows from row `first` on, as they lie in the file: n row_bytes = n_bytes / dims[0] each. A vector is one row. ERROR_CONFLICT when the
// file was written to since it was opened.
int gguf_read_rows(const struct gguf *file, const char *name, uint64_t first, uint64_t n, void *to, struct error *err);
uint64_t gguf_file_bytes(const struct gguf *file);             // of all parts
size_t gguf_count(const struct gguf *file);
const char *gguf_name(const struct gguf *file, size_t i);      // in name order
