// SPDX-License-Identifier: Apache-2.0
// Token sequences and SHA-256 content ids (nettle).
#include "common/sequence.h"

#include <endian.h>
#include <errno.h>
#include <nettle/memops.h>
#include <nettle/sha2.h>
#include <stdlib.h>
#include <string.h>

#include "common/cursor.h"

struct hasher {
	struct sha256_ctx context;
};

int sequence_init(struct sequence *s, const uint32_t *tokens, uint32_t n_tokens)
{
	*s = (struct sequence){0};
	size_t bytes = (size_t)n_tokens * sizeof *tokens;
	s->tokens = malloc(bytes ? bytes : 1);
	if (!s->tokens)
		return -ENOMEM;
	if (bytes)
		memcpy(s->tokens, tokens, bytes);
	s->n_tokens = n_tokens;
	return 0;
}

void sequence_done(struct sequence *s)
{
	if (!s)
		return;
	free(s->tokens);
	*s = (struct sequence){0};
}

static struct content_id digest(struct sha256_ctx *context)
{
	struct content_id id;
	sha256_digest(context, sizeof id.bytes, id.bytes);
	return id;
}

// Tokens are hashed as little-endian u32 whatever the host, a buffer at a time.
static void hash_tokens(struct sha256_ctx *context, const uint32_t *tokens, uint32_t n)
{
	uint32_t buffer[256];
	for (uint32_t begin = 0; begin < n; begin += 256) {
		uint32_t count = n - begin < 256 ? n - begin : 256;
		for (uint32_t i = 0; i < count; i++)
			buffer[i] = htole32(tokens[begin + i]);
		sha256_update(context, 4 * (size_t)count, (const uint8_t *)buffer);
	}
}

struct content_id sequence_id(const struct sequence *s)
{
	static const char label[] = "kdserved sequence 1\n";
	struct sha256_ctx context;
	sha256_init(&context);
	sha256_update(&context, sizeof label - 1, (const uint8_t *)label);
	hash_tokens(&context, s->tokens, s->n_tokens);
	return digest(&context);
}

struct hasher *hasher_new(void)
{
	struct hasher *h = malloc(sizeof *h);
	if (h)
		sha256_init(&h->context);
	return h;
}

void hasher_update(struct hasher *h, const void *data, size_t n)
{
	sha256_update(&h->context, n, data);
}

struct content_id hasher_free(struct hasher *h)
{
	struct content_id id = digest(&h->context);
	free(h);
	return id;
}

struct content_id content_id_of(const void *data, size_t n)
{
	struct sha256_ctx context;
	sha256_init(&context);
	sha256_update(&context, n, data);
	return digest(&context);
}

static void hash_spilled(void *context, const uint8_t *data, size_t n)
{
	sha256_update(context, n, data);
}

struct content_id content_id_of_written(void (*write)(const void *arg, struct writer *w), const void *arg)
{
	uint8_t buffer[1024];
	struct sha256_ctx context;
	struct writer w = writer_init(buffer, sizeof buffer);
	sha256_init(&context);
	w.spill = hash_spilled;
	w.arg = &context;
	write(arg, &w);
	sha256_update(&context, w.position, buffer);
	return digest(&context);
}

bool content_id_is_same(const struct content_id *a, const struct content_id *b)
{
	return memeql_sec(a->bytes, b->bytes, sizeof a->bytes);
}

void content_id_to_hex(const struct content_id *id, char ret_hex[CONTENT_ID_HEX])
{
	static const char digits[] = "0123456789abcdef";
	for (int i = 0; i < CONTENT_ID_BYTES; i++) {
		ret_hex[2 * i] = digits[id->bytes[i] >> 4];
		ret_hex[2 * i + 1] = digits[id->bytes[i] & 15];
	}
	ret_hex[2 * CONTENT_ID_BYTES] = '\0';
}

static int nibble(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	if (c >= 'a' && c <= 'f')
		return c - 'a' + 10;
	if (c >= 'A' && c <= 'F')
		return c - 'A' + 10;
	return -1;
}

int content_id_from_hex(const char *hex, struct content_id *ret_id)
{
	struct content_id id;
	for (int i = 0; i < CONTENT_ID_BYTES; i++) {
		int high = nibble(hex[2 * i]);
		int low = high < 0 ? -1 : nibble(hex[2 * i + 1]);    // never looks past the terminator
		if (low < 0)
			return -EINVAL;
		id.bytes[i] = (uint8_t)(high << 4 | low);
	}
	if (hex[2 * CONTENT_ID_BYTES])
		return -EINVAL;
	*ret_id = id;
	return 0;
}
