// SPDX-License-Identifier: Apache-2.0
// Shared by gguf.c (access), gguf_parse.c, gguf_parts.c and their tests only.
#pragma once

#include "daemon/model/gguf.h"
#include "daemon/model/input.h"

#define GGUF_MAX_NAME 127              // of a tensor; ggml itself stops at 63
#define GGUF_MAX_TENSORS 65536         // 1024 layers of 14, and room

enum gguf_type {
	GGUF_U8, GGUF_I8, GGUF_U16, GGUF_I16, GGUF_U32, GGUF_I32, GGUF_F32, GGUF_BOOL, GGUF_STRING, GGUF_ARRAY, GGUF_U64, GGUF_I64,
	GGUF_F64, N_GGUF_TYPES
};

struct gguf_entry {
	const char *key;               // views into the header
	size_t key_n;
	enum gguf_type type;           // of the value, or of an array's elements (never GGUF_ARRAY)
	bool array;
	uint64_t n;                    // elements; bytes of a single string
	const uint8_t *data;           // scalars back to back, or a single string's bytes
	uint64_t *offsets;             // array of strings: place in the header of each one's length; owned
};

struct gguf_tensor {
	char name[GGUF_MAX_NAME + 1];
	struct tensor tensor;          // data NULL
	const struct input *input;     // the file's, or that of another part of the model
	uint64_t offset;               // within it
	uint64_t padded;               // bytes with padding to the alignment
};

struct gguf {
	struct input input;
	struct input *others;          // of a model in parts: the second and so on
	size_t n_others;
	uint8_t *buffer;               // owner of header, NULL when it is the caller's memory
	const uint8_t *header;         // magic to the end of the tensor list, and maybe more
	size_t header_bytes;
	struct gguf_entry *entries;    // sorted by key
	size_t n_entries;
	struct gguf_tensor *tensors;   // sorted by name
	size_t n_tensors;
	uint64_t alignment;
};

// Parses file->header (the file's first header_bytes). -EAGAIN when they end too early but the file is longer: come again with more.
int gguf_parse(struct gguf *file, struct error *err);
void gguf_parse_done(struct gguf *file);
// Sorts tensors by name; ERROR_INVALID where one is there twice.
int gguf_sort_tensors(struct gguf *file, struct error *err);
// One file as it is, whatever it says of parts.
int gguf_open_alone(const char *path, struct gguf **ret_file, struct error *err);
// A file that says it is the first of several parts is given the tensors of all of them. `path`: its own, beside which the others are; NULL
// where it is in memory, which makes having parts an error.
int gguf_join_parts(struct gguf *file, const char *path, struct error *err);
uint32_t gguf_type_bytes(enum gguf_type type);      // of scalars; 0 for strings and arrays
const struct gguf_entry *gguf_entry(const struct gguf *file, const char *key);

// THE size computation: bytes of a tensor of these dims (the first runs along a row, as in the file), and the same rounded up to the
// alignment. -EINVAL for 0 or more than 4 dims, a zero dim, a row that is not whole blocks, or any overflow of 63 bits (file offsets).
int gguf_extent(enum dtype dtype, uint32_t n_dims, const uint64_t *dims, uint64_t alignment, uint64_t *ret_bytes, uint64_t *ret_padded);
