// SPDX-License-Identifier: Apache-2.0
// How much text an answer can become, known before anything is computed.
#include "daemon/server/reply.h"

#include "common/record.h"
#include "common/saturate.h"

#define NUMBER_BYTES 16              // "-1.23456789e-38,"
#define ID_BYTES 11                  // "4294967295,"
#define OFFSETS_BYTES 24             // "[4294967295,4294967295],"
#define NAME_BYTES 24                // ",\"sum_squares\":[]", and the longer ones of fewer arrays
#define BLOB_BYTES 192               // ",\"draw_weights\":{\"dtype\":\"f32\",\"shape\":[..],\"offsets\":\"..\",\"data\":\"..\"}"
#define HEAD_BYTES 4096              // who answers, in the first piece
#define TOKEN_BYTES 112              // a token with its text, of a usual length, and its number: in OpenAI's shape and in vLLM's

static uint64_t rows_bytes(const struct query *q, const struct query_limits *limits, enum request_text text)
{
	unsigned n_arrays;
	uint64_t numbers = record_max_numbers(q, limits, &n_arrays), rows = query_rows(q);
	switch (text) {
	case REQUEST_NO_TEXT: return 0;
	case REQUEST_BASE64: return size_plus(size_times(numbers, 6), n_arrays * BLOB_BYTES);      // 4 bytes are 5 1/3
	case REQUEST_JSON: return size_plus(size_times(numbers, NUMBER_BYTES), (rows + 1) * (n_arrays + 2) * NAME_BYTES);
	case REQUEST_TOKENS: return size_plus(size_times(numbers, TOKEN_BYTES / 2), rows * TOKEN_BYTES);
	}
	return UINT64_MAX;
}

uint64_t reply_max_bytes(const struct query *canonical, uint32_t n_tokens, const struct query_limits *limits, enum request_text text)
{
	uint64_t rows = rows_bytes(canonical, limits, text);
	return rows ? size_plus(rows, HEAD_BYTES + (uint64_t)n_tokens * (ID_BYTES + OFFSETS_BYTES)) : 0;
}

uint64_t reply_max_sample_bytes(uint32_t n_tokens, uint32_t top_k, enum request_text text)
{
	uint64_t alternative = text == REQUEST_TOKENS ? TOKEN_BYTES : ID_BYTES + NUMBER_BYTES;
	uint64_t token = TOKEN_BYTES + 3 * NUMBER_BYTES + NAME_BYTES;
	return text == REQUEST_NO_TEXT ? 0 : HEAD_BYTES + n_tokens * (token + top_k * alternative);
}
