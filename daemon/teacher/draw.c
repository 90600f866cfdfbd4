// SPDX-License-Identifier: Apache-2.0
#include "daemon/teacher/draw.h"

#include <stdlib.h>

#include "common/sequence.h"

#define ROUNDS 10

struct draw_key draw_key(uint64_t seed, const struct content_id *sequence)
{
	static const char label[] = "kdserved draws 1\n";
	uint8_t bytes[sizeof label - 1 + 8 + CONTENT_ID_BYTES], *at = bytes;
	for (size_t i = 0; i < sizeof label - 1; i++)
		*at++ = (uint8_t)label[i];
	for (int i = 0; i < 8; i++)
		*at++ = (uint8_t)(seed >> 8 * i);
	for (int i = 0; i < CONTENT_ID_BYTES; i++)
		*at++ = sequence->bytes[i];
	struct content_id id = content_id_of(bytes, sizeof bytes);
	struct draw_key key = {{0, 0}};
	for (int i = 0; i < 8; i++)
		key.words[i / 4] |= (uint32_t)id.bytes[i] << 8 * (i % 4);
	return key;
}

void draw_block(const struct draw_key *key, const uint32_t counter[4], uint32_t ret_words[4])
{
	uint32_t c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3], k0 = key->words[0], k1 = key->words[1];
	for (int round = 0; round < ROUNDS; round++) {
		uint64_t a = (uint64_t)0xD2511F53 * c0, b = (uint64_t)0xCD9E8D57 * c2;
		c0 = (uint32_t)(b >> 32) ^ c1 ^ k0;
		c2 = (uint32_t)(a >> 32) ^ c3 ^ k1;
		c1 = (uint32_t)b;
		c3 = (uint32_t)a;
		k0 += 0x9E3779B9;
		k1 += 0xBB67AE85;
	}
	ret_words[0] = c0;
	ret_words[1] = c1;
	ret_words[2] = c2;
	ret_words[3] = c3;
}

static int compare(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;
	return (x > y) - (x < y);
}

// A block gives two draws: 53 bits each, the most a double in [0, 1) has.
void draw_uniforms(const struct draw_key *key, uint32_t position, uint32_t n, double *ret_uniforms)
{
	for (uint32_t i = 0; i < n; i += 2) {
		uint32_t words[4];
		draw_block(key, (const uint32_t[]){i / 2, position, 0, 0}, words);
		for (uint32_t j = 0; j < 2 && i + j < n; j++) {
			uint64_t bits = (uint64_t)words[2 * j + 1] << 32 | words[2 * j];
			ret_uniforms[i + j] = (double)(bits >> 11) * 0x1p-53;
		}
	}
	qsort(ret_uniforms, n, sizeof *ret_uniforms, compare);
}
