// SPDX-License-Identifier: Apache-2.0
// How much text an answer can become, known before anything is computed.
#include "daemon/server/reply.h"

#include "common/record.h"
#include "common/saturate.h"

#define NUMBER_BYTES 16              // "-1.23456789e-38,"
#define OFFSETS_BYTES 24             // "[4294967295,4294967295],"
#define NAME_BYTES 24                // ",\"sum_squares\":[]", and the longer ones of fewer arrays
#define BASE64_BYTES 6               // 4 bytes are 5 1/3
#define BLOB_BYTES 192               // ",\"draw_weights\":{\"dtype\":\"f32\",\"shape\":[..],\"offsets\":\"..\",\"data\":\"..\"}"
#define HEAD_BYTES 4096              // who answers, in the first piece
// With a token's text of a usual length:
#define ALTERNATIVE_BYTES 40         // OpenAI's "text":-1.2345678,
#define RANKED_BYTES 80              // vLLM's "12345":{"logprob":-1.2345678,"rank":1,"decoded_token":"text"},

static uint64_t rows_bytes(const struct query *q, const struct query_limits *limits, enum request_text text)
{
	struct record_numbers n;
	uint64_t rows = query_rows(q);
	if (text == REQUEST_TOKENS)
		return size_times(ALTERNATIVE_BYTES + RANKED_BYTES, rows * ((uint64_t)q->top_k + 1));
	record_max_numbers(q, limits, &n);
	if (text == REQUEST_BASE64)
		return size_plus(size_times(BASE64_BYTES, size_plus(n.values, size_plus(n.integers, n.offsets))), n.n_arrays * BLOB_BYTES);
	return size_plus(size_plus(size_times(NUMBER_BYTES, n.values), size_times(REPLY_ID_BYTES, n.integers)),
			 (rows + 1) * (n.n_arrays + 2) * NAME_BYTES);
}

uint64_t reply_max_bytes(const struct query *canonical, uint32_t n_tokens, const struct query_limits *limits, enum request_text text)
{
	if (text == REQUEST_NO_TEXT)
		return 0;
	return size_plus(rows_bytes(canonical, limits, text), HEAD_BYTES + (uint64_t)n_tokens * (REPLY_ID_BYTES + OFFSETS_BYTES));
}

uint64_t reply_max_sample_bytes(uint32_t n_tokens, uint32_t top_k, enum request_text text)
{
	uint64_t alternative = text == REQUEST_TOKENS ? ALTERNATIVE_BYTES : REPLY_ID_BYTES + NUMBER_BYTES;
	uint64_t token = RANKED_BYTES + 3 * NUMBER_BYTES + 2 * NAME_BYTES;
	return text == REQUEST_NO_TEXT ? 0 : HEAD_BYTES + n_tokens * (token + top_k * alternative);
}
