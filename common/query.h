// SPDX-License-Identifier: Apache-2.0
// What is asked of each position of a sequence. THE validator: both doors, the store and the clients call query_check().
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/sequence.h"

struct error;

#define QUERY_MAX_TEMPERATURES 16
#define QUERY_MAX_FEATURES 64          // hidden states and q, k, v rows of one question
#define QUERY_MIN_TEMPERATURE 1e-4f    // below, logits / T leave what f32 can hold
#define QUERY_MAX_TEMPERATURE 1e6f
#define QUERY_MIN_TAU 0.01f            // exponent of the proposal of random draws
#define QUERY_MAX_TAU 100.0f
#define QUERY_MAX_VOCABULARY (1u << 24)

enum query_values {                    // how logits (top-k, gather, dense) travel and are kept
	QUERY_VALUES_F32 = 0,              // exact (default)
	QUERY_VALUES_F16 = 1,              // binary16 of (logit - row maximum); the maximum itself is always f32
	QUERY_VALUES_U8 = 2,               // 255 steps from the row's maximum to the smallest value sent; error at most half a step
};

// Lists of ids: none, one for all rows, or one per row. Repeats are allowed and answered; the caller's order is kept.
struct id_lists {
	uint32_t n_lists;                  // 0, 1 or query_rows()
	uint32_t *offsets;                 // (n_lists + 1) into ids; owned
	uint32_t *ids;                     // owned
};

// Random-sampling KD (methods 2.4): n draws with replacement from p(id)^tau, normalised.
struct query_draws {
	uint32_t n;                        // 0 = none
	float tau;                         // 1 = the teacher's own distribution
	uint64_t seed;
	bool tail;                         // draw only ids outside the row's top-k ("exact head and sampled tail");
	                                   // the signal tail comes with it
};

// Sum of ln p(token i | tokens before it), T = 1, for i in [begin, end) of the sequence; begin >= 1. Does not depend on first and last.
struct query_span { uint32_t begin, end; };

enum query_feature_kind {
	QUERY_FEATURE_HIDDEN = 0,          // residual stream after block `layer` (0 = embedding output, n_layers = the last block, before
	                                   // the final norm)
	QUERY_FEATURE_FINAL = 1,           // after the final norm: what the LM head multiplies; layer 0
	QUERY_FEATURE_Q = 2,               // query, key, value rows of block `layer` (from 0), all heads: before rotation, after the head
	QUERY_FEATURE_K = 3,               // norm where the architecture has one
	QUERY_FEATURE_V = 4,
};
enum query_pooling { QUERY_POOLING_NONE = 0, QUERY_POOLING_MEAN = 1, QUERY_POOLING_LAST = 2 };    // over rows first..last
enum query_feature_values { QUERY_FEATURE_F32 = 0, QUERY_FEATURE_F16 = 1, QUERY_FEATURE_BF16 = 2 };
struct query_feature { uint8_t kind; uint16_t layer; };

// Any combination. A question that asks for something of the vocabulary (anything but spans and features) gets status, max_logit and
// lse for each row.
struct query {
	uint32_t top_k;                    // 0 = none
	float top_mass;                    // 0 = exactly top_k; else the fewest ids whose probability (T = 1) sums to this, at most top_k
	bool dense;                        // every logit, in order of ids (of `keep` where given)
	uint32_t n_temperatures;
	float temperatures[QUERY_MAX_TEMPERATURES];    // of the lse values; in [MIN, MAX], strictly increasing when canonical
	bool own;                          // raw logit of the token that really follows (absent at the last token, and where keep lacks it)
	bool entropy;                      // natural-log entropy of the row at temperature 1
	bool max_prob, argmax, sum_squares;    // largest probability, its id (ties to the lower), sum of p^2; T = 1
	bool tail;                         // ln of the probability outside the row's top-k, T = 1 (-infinity where nothing is outside)
	int32_t first, last;               // rows wanted, inclusive; negative counts from the end (-1 = last token)
	enum query_values values;
	struct query_draws draws;
	struct id_lists gather;            // raw logits at these ids
	uint32_t n_keep;                   // 0 = the whole vocabulary; else every number is over these ids alone, ids stay the vocabulary's
	uint32_t *keep;                    // (n_keep) strictly increasing when canonical; owned
	uint32_t n_spans;
	struct query_span *spans;          // owned
	uint32_t n_features;
	struct query_feature features[QUERY_MAX_FEATURES];
	enum query_pooling pooling;        // of all features
	enum query_feature_values feature_values;
};

// What one sequence of a request asks instead of the request's question.
struct query_part {
	bool has_rows;
	int32_t first, last;
	struct id_lists gather;            // n_lists 0 = the question's
	uint32_t n_spans;                  // 0 = the question's
	struct query_span *spans;          // owned, as the lists
};

struct query_limits {
	uint32_t max_tokens;               // per sequence
	uint32_t max_top_k;
	uint32_t max_gather;               // ids of one row's list
	uint32_t max_draws;                // of one row
	uint32_t max_spans;
	uint32_t vocab_size;
	uint32_t n_layers, width, q_width, kv_width;    // of features: C, NH D, NKV D
};

void query_init(struct query *q);      // nothing asked; first 0, last -1; f32; tau 1
int query_copy(struct query *to, const struct query *from);    // a deep copy; -ENOMEM leaves nothing to free
void query_done(struct query *q);      // frees what it owns; a query_init()ed one is fine
void query_take_part(struct query *q, struct query_part *part);    // moves what it has into the question, and empties it
void query_part_done(struct query_part *part);
bool query_equal(const struct query *a, const struct query *b);
bool query_has_rows(const struct query *q);      // asks for something of the vocabulary

// Checks a query against one sequence and the limits, then makes it canonical in place: temperatures sorted and unique (an
// empty list becomes {1} when query_has_rows), keep sorted and unique, first/last resolved to 0 <= first <= last < n_tokens. `prefix`
// (NULL = "") goes before the sequence's field names: "sequences[3]." gives field "sequences[3].tokens[17]"; fields of the query have
// their bare names ("top_k", "gather[2][7]"). On error *q is untouched.
int query_check(struct query *q, const struct sequence *s, const struct query_limits *limits, const char *prefix, struct error *err);
// The question about one sequence of a request: what all are asked, but for its own part (emptied), checked and canonical. A fault in
// the part is named as the sequence's. query_done *ret, also after a failure.
int query_resolve(const struct query *asked, struct query_part *part, const struct sequence *s, const struct query_limits *limits,
		  const char *prefix, struct query *ret, struct error *err);
uint32_t query_rows(const struct query *canonical);
size_t query_bytes(const struct query *q);       // of its encoding
uint32_t query_feature_width(const struct query_feature *f, const struct query_limits *limits);        // numbers of a row

// The canonical bytes: the same question has the same bytes. Layout in kdserved-record.5.
struct writer;
struct reader;
void query_encode(const struct query *q, struct writer *w);
int query_decode(struct reader *r, struct query *ret_query, struct error *err);    // query_done it
// Parts of it that one sequence may have of its own (frame.h). Decoders allocate; a list of nothing is refused.
void query_encode_gather(const struct id_lists *l, struct writer *w);
int query_decode_gather(struct reader *r, struct id_lists *ret, struct error *err);
void query_encode_spans(const struct query_span *spans, uint32_t n, struct writer *w);
int query_decode_spans(struct reader *r, struct query_span **ret_spans, uint32_t *ret_n, struct error *err);

// Content key of a question: SHA-256(teacher fingerprint, sequence id, canonical query).
struct content_id query_key(const struct content_id *teacher, const struct sequence *s, const struct query *canonical);

// Where `id` stands among the ids a canonical question keeps (among all, where it names none); UINT32_MAX: nowhere.
static inline uint32_t query_keep_position(const struct query *q, uint32_t id)
{
	uint32_t begin = 0, end = q->n_keep;
	if (!end)
		return id;
	while (begin < end) {
		uint32_t middle = begin + (end - begin) / 2;
		if (q->keep[middle] < id)
			begin = middle + 1;
		else
			end = middle;
	}
	return begin < q->n_keep && q->keep[begin] == id ? begin : UINT32_MAX;
}
