// SPDX-License-Identifier: Apache-2.0
// Builds model files byte by byte, right ones and wrong ones. For tests and fuzz corpora only: runs out of memory by aborting.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "kernels/dtype.h"

struct builder {
	uint8_t *bytes;
	size_t n, capacity;
};

void build_bytes(struct builder *b, const void *bytes, size_t n);
void build_u32(struct builder *b, uint32_t v);
void build_u64(struct builder *b, uint64_t v);
void build_align(struct builder *b, size_t alignment);
void build_done(struct builder *b);
void build_write(const struct builder *b, const char *path);

// GGUF
void build_gguf(struct builder *b, uint32_t version, uint64_t n_tensors, uint64_t n_entries);
void build_string(struct builder *b, const char *s);                             // u64 length, bytes
void build_key(struct builder *b, const char *key, uint32_t type);               // the value follows
void build_key_u32(struct builder *b, const char *key, uint32_t v);
void build_key_f32(struct builder *b, const char *key, float v);
void build_key_string(struct builder *b, const char *key, const char *v);
void build_key_array(struct builder *b, const char *key, uint32_t type, uint64_t n);      // elements follow
void build_tensor(struct builder *b, const char *name, uint32_t n_dims, uint64_t d0, uint64_t d1, uint32_t type, uint64_t offset);

// safetensors: length, header text (padded with spaces to 8), then n_data bytes 0, 1, 2, ...
void build_safetensors(struct builder *b, const char *header, size_t n_data);
