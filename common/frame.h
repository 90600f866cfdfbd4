// SPDX-License-Identifier: Apache-2.0
// Binary protocol: frame header and message kinds (kdserved-protocol.7 is the specification).
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "common/error.h"
#include "common/query.h"

#define FRAME_MAGIC 0x5344444bu       // "KDDS" as it lies on the wire
#define FRAME_VERSION 2
#define FRAME_HEADER_BYTES 32
#define FRAME_TOKEN_MAX 256
#define FRAME_MAX_SEQUENCES 65536      // of one SCORE, whatever the server's own limit: bounds what a decoder allocates
#define FRAME_MAX_PING 64              // bytes echoed

enum frame_kind {
	FRAME_HELLO = 1,      // client -> server, first: versions, bearer token, teacher fingerprint expected (or zeros)
	FRAME_WELCOME = 2,    // server -> client: limits, teacher fingerprint, credits
	FRAME_SCORE = 3,      // client -> server: one query, many sequences, each perhaps with rows, gathered ids and spans of its own
	FRAME_ANSWER = 4,     // server -> client: index of the sequence, flags (cached), the record; as each finishes
	FRAME_DONE = 5,       // server -> client: the request is complete
	FRAME_ERROR = 6,      // server -> client: for one sequence, a request or (request id 0) the connection
	FRAME_PING = 7,
	FRAME_PONG = 8,
	FRAME_GOAWAY = 9,     // server -> client: no new requests; what is in flight will be answered
	FRAME_CALL = 10,      // client -> server: a control resource (method, path, JSON body): the same table as HTTP
	FRAME_REPLY = 11,     // server -> client: HTTP status, JSON (or other) body
	FRAME_CANCEL = 12,    // client -> server: drop the request
	FRAME_GENERATE = 13,  // client -> server: prompts to go on from
	FRAME_TOKENS = 14,    // server -> client: what is new of one sample
};

// magic u32 | version u8 | kind u8 | flags u16 | request id u64 | body bytes u32 | reserved u32 (0) | body crc32c u32 | header crc32c u32
struct frame {
	uint8_t kind;
	uint16_t flags;
	uint64_t request_id;
	uint32_t body_bytes;
	uint32_t body_crc;
};

void frame_encode(const struct frame *f, uint8_t ret_header[FRAME_HEADER_BYTES]);
int frame_decode(const uint8_t header[FRAME_HEADER_BYTES], uint32_t max_body, struct frame *ret_frame, struct error *err);
int frame_check_body(const struct frame *f, const void *body, struct error *err);
const char *frame_kind_name(uint8_t kind);             // "hello", ...; "unknown"

// Bodies. Encoders write through a counting writer first (cursor.h); decoders refuse trailing bytes. Decoded structures own
// their memory unless said otherwise; *_done frees it (a zeroed structure is fine). DONE, GOAWAY and CANCEL have no body; PING and
// PONG have up to FRAME_MAX_PING bytes, echoed. A failed decode leaves nothing to free and *ret untouched.
struct frame_hello { char token[FRAME_TOKEN_MAX + 1]; struct content_id teacher; };
struct frame_welcome { struct content_id teacher; struct query_limits limits; uint32_t max_sequences, max_body_bytes, credits; };
#define FRAME_SCORE_DURABLE 1u        // answer only after the record is on disk
#define FRAME_SCORE_NO_STORE 2u       // neither look in the store nor append to it
#define FRAME_SCORE_SHORT 4u          // records without their question (record_short.h)
#define FRAME_SCORE_PARTS 8u          // sequences have parts of their own; the encoder sets it by `parts`
#define FRAME_SCORE_FLAGS (FRAME_SCORE_DURABLE | FRAME_SCORE_NO_STORE | FRAME_SCORE_SHORT | FRAME_SCORE_PARTS)
struct frame_score {
	uint32_t flags, deadline_ms;
	struct query query;
	uint32_t n_sequences;
	struct sequence *sequences;
	struct query_part *parts;          // (n_sequences) what each asks instead of the query's; NULL = nothing
};
#define FRAME_ANSWER_HEADER_BYTES 8     // of an ANSWER's body, before the record
#define FRAME_ANSWER_CACHED 1u
#define FRAME_ANSWER_SHORT 2u         // a short record
struct frame_answer { uint32_t index, flags; const uint8_t *record; size_t record_bytes; };    // a view into the body
#define FRAME_GENERATE_IGNORE_EOS 1u
#define FRAME_GENERATE_STREAM 2u
#define FRAME_GENERATE_SEED 4u        // the seed is given
#define FRAME_MAX_STOPS 16
#define FRAME_MAX_STOP_BYTES 256
#define FRAME_MAX_STOP_IDS 64
struct frame_generate {
	uint32_t flags, deadline_ms, n, first_sample, max_tokens, rows;
	float temperature, top_p, min_p, typical_p;
	uint32_t top_k;
	uint64_t seed;
	struct sequence stop_ids, forced;
	uint32_t n_stops;
	char *stops[FRAME_MAX_STOPS];
	uint32_t n_prompts;
	struct sequence *prompts;
};
#define FRAME_TOKENS_LAST 1u
#define FRAME_TOKENS_NONE UINT32_MAX
enum frame_finish { FRAME_FINISH_STOP = 1, FRAME_FINISH_LENGTH = 2 };
// Views: into the sender's arrays, or (decoded) into `numbers`, which owns them, and the body.
struct frame_tokens {
	uint32_t index, flags, first, n, rows;
	const uint32_t *tokens;            // (n)
	const float *logprobs, *sampled_logprobs, *lse;      // (n)
	const uint32_t *ids;               // (n, rows)
	const float *logits;               // (n, rows)
	const char *text;
	uint32_t text_bytes;
	uint32_t finish, stop_id, stop, reused;      // of the last
	uint64_t seed;
	void *numbers;
};
#define FRAME_WHOLE_REQUEST UINT32_MAX
struct frame_error { uint32_t index; struct error error; };
struct frame_call { char method[8]; char path[256]; char *body; size_t body_bytes; };     // body is NUL-terminated besides
struct frame_reply { uint32_t status; char *body; size_t body_bytes; };                    // likewise

struct writer;
void frame_hello_encode(const struct frame_hello *m, struct writer *w);
int frame_hello_decode(const void *body, size_t n, struct frame_hello *ret, struct error *err);
void frame_welcome_encode(const struct frame_welcome *m, struct writer *w);
int frame_welcome_decode(const void *body, size_t n, struct frame_welcome *ret, struct error *err);
void frame_score_encode(const struct frame_score *m, struct writer *w);
int frame_score_decode(const void *body, size_t n, struct frame_score *ret, struct error *err);
void frame_score_done(struct frame_score *m);
void frame_answer_encode(const struct frame_answer *m, struct writer *w);
int frame_answer_decode(const void *body, size_t n, struct frame_answer *ret, struct error *err);
void frame_error_encode(const struct frame_error *m, struct writer *w);
int frame_error_decode(const void *body, size_t n, struct frame_error *ret, struct error *err);
void frame_call_encode(const struct frame_call *m, struct writer *w);
int frame_call_decode(const void *body, size_t n, struct frame_call *ret, struct error *err);
void frame_call_done(struct frame_call *m);
void frame_reply_encode(const struct frame_reply *m, struct writer *w);
int frame_reply_decode(const void *body, size_t n, struct frame_reply *ret, struct error *err);
void frame_reply_done(struct frame_reply *m);
void frame_generate_encode(const struct frame_generate *m, struct writer *w);
int frame_generate_decode(const void *body, size_t n, struct frame_generate *ret, struct error *err);
void frame_generate_done(struct frame_generate *m);
void frame_tokens_encode(const struct frame_tokens *m, struct writer *w);
int frame_tokens_decode(const void *body, size_t n, struct frame_tokens *ret, struct error *err);
void frame_tokens_done(struct frame_tokens *m);
