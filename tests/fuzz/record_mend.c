// SPDX-License-Identifier: Apache-2.0
#include "tests/fuzz/record_mend.h"

#include <stdlib.h>
#include <string.h>

#include "common/cursor.h"
#include "common/record_layout.h"

void record_mend(uint8_t *bytes, size_t n)
{
	struct reader r = reader_init(bytes, n);
	struct content_id teacher, key;
	struct query query;
	struct sequence s;
	if (n < RECORD_HEADER_BYTES)
		return;
	r.position = RECORD_TEACHER_AT;
	reader_copy(&r, teacher.bytes, sizeof teacher.bytes);
	r.position = 84;
	s.n_tokens = reader_u32(&r);
	r.position = RECORD_HEADER_BYTES;
	if (r.failed || query_decode(&r, &query, NULL) != 0)
		return;
	if (s.n_tokens > reader_left(&r) / 4) {
		query_done(&query);
		return;
	}
	s.tokens = malloc(4 * (size_t)s.n_tokens + 1);
	if (!s.tokens) {
		query_done(&query);
		return;
	}
	for (uint32_t i = 0; i < s.n_tokens; i++)
		s.tokens[i] = reader_u32(&r);
	key = query_key(&teacher, &s, &query);
	free(s.tokens);
	query_done(&query);
	memcpy(bytes + RECORD_KEY_AT, key.bytes, sizeof key.bytes);
	store_u32(bytes, 0, RECORD_MAGIC);
	store_u32(bytes + 8, 0, (uint32_t)n);
	store_u32(bytes + RECORD_CRC_AT, 0, record_checksum(bytes, n));
}
