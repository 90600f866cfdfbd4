// SPDX-License-Identifier: Apache-2.0
// What is asked of each position of a sequence. THE validator: both doors, the store and the clients call query_check().
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/sequence.h"

struct error;

#define QUERY_MAX_TEMPERATURES 16
#define QUERY_MAX_BYTES 512            // of the canonical form
#define QUERY_MIN_TEMPERATURE 1e-4f    // below, logits / T leave what f32 can hold
#define QUERY_MAX_TEMPERATURE 1e6f
#define QUERY_MAX_VOCABULARY (1u << 24)

enum query_values {                    // how logits travel and are kept
	QUERY_VALUES_F32 = 0,              // exact (default)
	QUERY_VALUES_F16 = 1,              // binary16 of (logit - row maximum); the maximum itself is always f32
};

struct query {
	uint32_t top_k;                    // 0 = none
	uint32_t n_temperatures;
	float temperatures[QUERY_MAX_TEMPERATURES];    // of the lse values; in [MIN, MAX], strictly increasing when canonical
	bool own;                          // raw logit of the token that really follows (absent at the last token)
	bool entropy;                      // natural-log entropy of the row at temperature 1
	int32_t first, last;               // rows wanted, inclusive; negative counts from the end (-1 = last token)
	enum query_values values;
};

struct query_limits {
	uint32_t max_tokens;               // per sequence
	uint32_t max_top_k;
	uint32_t vocab_size;
};

void query_init(struct query *q);      // nothing asked; first 0, last -1; f32

// Checks a query against one sequence and the limits, then makes it canonical in place: temperatures sorted and unique (an
// empty list becomes {1}), first/last resolved to 0 <= first <= last < n_tokens. `prefix` (NULL = "") goes before the sequence's
// field names: "sequences[3]." gives field "sequences[3].tokens[17]"; fields of the query have their bare
// names ("top_k"). On error *q is untouched.
int query_check(struct query *q, const struct sequence *s, const struct query_limits *limits, const char *prefix, struct error *err);
uint32_t query_rows(const struct query *canonical);

// The canonical bytes: the same question has the same bytes. Layout in kdserved-record.5.
struct writer;
struct reader;
void query_encode(const struct query *q, struct writer *w);
int query_decode(struct reader *r, struct query *ret_query, struct error *err);

// Content key of a question: SHA-256(teacher fingerprint, sequence id, canonical query).
struct content_id query_key(const struct content_id *teacher, const struct sequence *s, const struct query *canonical);
