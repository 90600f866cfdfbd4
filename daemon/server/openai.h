// SPDX-License-Identifier: Apache-2.0
// POST /v1/completions as OpenAI defined it, with the extensions of vLLM that trainers and evaluation harnesses use (kdserved-http.7).
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/sequence.h"
#include "daemon/server/json.h"

struct buffer;
struct error;
struct teacher_info;
struct tokenizer;

struct openai_prompt { struct sequence tokens; char *text; size_t n_text; };    // text NULL when it came as tokens

// A body, read and checked by itself. Owned; openai_ask_done frees (a zeroed one is fine).
struct openai_ask {
	char *model;                       // or NULL
	struct openai_prompt *prompts;
	uint32_t n_prompts;
	bool prompt_is_list;               // for names in errors: prompt[3] is a prompt, not a token
	uint32_t n;                        // completions of each prompt
	uint32_t max_tokens;
	bool echo, stream, stream_usage;
	bool want_logprobs, want_prompt_logprobs;
	uint32_t logprobs, prompt_logprobs;        // how many besides the token itself; UINT32_MAX = the whole vocabulary
	double temperature, top_p, min_p;
	uint32_t top_k;                    // 0 = all
	bool has_seed;
	uint64_t seed;
	char **stop;
	uint32_t n_stop;
	struct sequence stop_ids;
	bool ignore_eos, keep_stop, keep_special;
	bool return_ids, ids_as_text;      // token ids in the choices; "token_id:17" in place of token texts
	bool no_template;                  // texts are tokenized without the tokenizer's own template
};
int openai_ask_read(const char *body, size_t n, const struct tokenizer *tokenizer, const struct json_limits *limits, struct openai_ask *ret,
		    struct error *err);
void openai_ask_done(struct openai_ask *a);

// ---- replies (openai_reply.c)

// What the teacher said where one token was read.
struct openai_row {
	uint32_t token;
	bool known;                        // false for the first token of a prompt: nothing came before it
	float logprob;
	double lse;                        // of the row, T = 1
	const uint32_t *ids;               // (n_ids) descending by logit
	const float *logits;
	uint32_t n_ids;
};

struct openai_rows { struct openai_row *rows; uint32_t n, capacity; };     // zero-initialise; openai_rows_done
int openai_rows_append(struct openai_rows *to, const struct openai_row *row, struct error *err);
void openai_rows_done(struct openai_rows *rows);

struct openai_writer {
	const struct tokenizer *tokenizer;
	bool ids_as_text;
	uint32_t *seen;                    // hash of the texts of one row's ids (openai_writer_reserve); owned
	uint32_t n_seen;                   // a power of two
};
int openai_writer_reserve(struct openai_writer *w, uint32_t max_ids, struct error *err);
void openai_writer_done(struct openai_writer *w);

// A token's text as a JSON string: as it is, or "bytes:\\xe2\\x80" when its bytes are not UTF-8 by themselves (part of a character), or
// "token_id:17" where that is asked for or the id has no text.
void openai_token(struct buffer *b, const struct openai_writer *w, uint32_t id);
// The largest prompt's own tokens wherever the reply shows them, as text and as ids.
uint64_t openai_shown_bytes(const struct openai_ask *a, const struct openai_writer *w);
// {"tokens","token_logprobs","top_logprobs","text_offset"}: `n_top` ids of each row besides the token itself; offsets count characters and
// begin at first_offset. Returns where
// the next token would begin.
size_t openai_logprobs(struct buffer *b, struct openai_writer *w, const struct openai_rows *rows, uint32_t n_top, size_t first_offset);
// vLLM's [null,{"17":{"logprob","rank","decoded_token"},..},..]. The rank of a token outside the row's ids is n_ids + 1: at least that.
void openai_prompt_logprobs(struct buffer *b, const struct openai_writer *w, const struct openai_rows *rows, uint32_t n_top);
