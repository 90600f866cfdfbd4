// SPDX-License-Identifier: Apache-2.0
#include "tests/unit/builder.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void build_bytes(struct builder *b, const void *bytes, size_t n)
{
	if (b->n + n > b->capacity) {
		b->capacity = 2 * (b->n + n) + 64;
		b->bytes = realloc(b->bytes, b->capacity);
		if (!b->bytes)
			abort();
	}
	if (n)
		memcpy(b->bytes + b->n, bytes, n);
	b->n += n;
}

static void build_integer(struct builder *b, uint64_t v, size_t n)
{
	uint8_t bytes[8];
	for (size_t i = 0; i < n; i++)
		bytes[i] = (uint8_t)(v >> (8 * i));
	build_bytes(b, bytes, n);
}

void build_u32(struct builder *b, uint32_t v) { build_integer(b, v, 4); }
void build_u64(struct builder *b, uint64_t v) { build_integer(b, v, 8); }

void build_align(struct builder *b, size_t alignment)
{
	while (b->n % alignment)
		build_bytes(b, "", 1);
}

void build_done(struct builder *b)
{
	free(b->bytes);
	*b = (struct builder){0};
}

void build_write(const struct builder *b, const char *path)
{
	FILE *f = fopen(path, "wb");
	if (!f || fwrite(b->bytes, 1, b->n, f) != b->n || fclose(f))
		abort();
}

void build_gguf(struct builder *b, uint32_t version, uint64_t n_tensors, uint64_t n_entries)
{
	build_bytes(b, "GGUF", 4);
	build_u32(b, version);
	build_u64(b, n_tensors);
	build_u64(b, n_entries);
}

void build_string(struct builder *b, const char *s)
{
	build_u64(b, strlen(s));
	build_bytes(b, s, strlen(s));
}

void build_key(struct builder *b, const char *key, uint32_t type)
{
	build_string(b, key);
	build_u32(b, type);
}

void build_key_u32(struct builder *b, const char *key, uint32_t v)
{
	build_key(b, key, 4);
	build_u32(b, v);
}

void build_key_f32(struct builder *b, const char *key, float v)
{
	uint32_t bits;
	memcpy(&bits, &v, 4);
	build_key(b, key, 6);
	build_u32(b, bits);
}

void build_key_string(struct builder *b, const char *key, const char *v)
{
	build_key(b, key, 8);
	build_string(b, v);
}

void build_key_array(struct builder *b, const char *key, uint32_t type, uint64_t n)
{
	build_key(b, key, 9);
	build_u32(b, type);
	build_u64(b, n);
}

void build_tensor(struct builder *b, const char *name, uint32_t n_dims, uint64_t d0, uint64_t d1, uint32_t type, uint64_t offset)
{
	build_string(b, name);
	build_u32(b, n_dims);
	for (uint32_t i = 0; i < n_dims; i++)
		build_u64(b, i == 0 ? d0 : i == 1 ? d1 : 1);
	build_u32(b, type);
	build_u64(b, offset);
}

void build_safetensors(struct builder *b, const char *header, size_t n_data)
{
	size_t n = strlen(header), padded = (n + 7) & ~(size_t)7;
	build_u64(b, padded);
	build_bytes(b, header, n);
	for (; n < padded; n++)
		build_bytes(b, " ", 1);
	for (size_t i = 0; i < n_data; i++) {
		uint8_t v = (uint8_t)i;
		build_bytes(b, &v, 1);
	}
}
