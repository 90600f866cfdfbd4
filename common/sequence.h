// SPDX-License-Identifier: Apache-2.0
// The token ids of one sequence and their content id.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define CONTENT_ID_BYTES 32    // SHA-256
#define CONTENT_ID_HEX (2 * CONTENT_ID_BYTES + 1)

struct content_id {
	uint8_t bytes[CONTENT_ID_BYTES];
};

struct sequence {
	uint32_t *tokens;          // owned
	uint32_t n_tokens;
};

int sequence_init(struct sequence *s, const uint32_t *tokens, uint32_t n_tokens);    // copies; -ENOMEM
void sequence_done(struct sequence *s);

// SHA-256 over "kdserved sequence 1\n" and the ids as little-endian u32.
struct content_id sequence_id(const struct sequence *s);

// A running SHA-256; every id in the project is made with it.
struct hasher;
struct hasher *hasher_new(void);
void hasher_update(struct hasher *h, const void *data, size_t n);
struct content_id hasher_free(struct hasher *h);               // the digest; frees
struct content_id content_id_of(const void *data, size_t n);
// Of what `write` writes, in pieces of at most 512 bytes, without keeping it: needs no memory.
struct writer;
struct content_id content_id_of_written(void (*write)(const void *arg, struct writer *w), const void *arg);
void content_id_to_hex(const struct content_id *id, char ret_hex[CONTENT_ID_HEX]);
// In time that does not depend on where they differ: for digests of secrets.
bool content_id_is_same(const struct content_id *a, const struct content_id *b);
int content_id_from_hex(const char *hex, struct content_id *ret_id);    // -EINVAL
