// SPDX-License-Identifier: Apache-2.0
#include "daemon/teacher/draw.h"

#include <stdlib.h>

#include "common/sequence.h"
#include "daemon/model/philox.h"

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

static int compare(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;
	return (x > y) - (x < y);
}

// Four words give two draws.
void draw_uniforms(const struct draw_key *key, uint32_t position, uint32_t n, double *ret_uniforms)
{
	for (uint32_t i = 0; i < n; i += 2) {
		uint32_t words[4];
		philox(key->words, (const uint32_t[]){i / 2, position, 0, 0}, words);
		for (uint32_t j = 0; j < 2 && i + j < n; j++)
			ret_uniforms[i + j] = philox_uniform(words[2 * j], words[2 * j + 1]);
	}
	qsort(ret_uniforms, n, sizeof *ret_uniforms, compare);
}
