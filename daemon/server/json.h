// SPDX-License-Identifier: Apache-2.0
// Bodies of HTTP requests -> structures. Every field is known or refused by name; integers are parsed once into their range; nesting is
// bounded before jansson sees a byte. The only file of the server that includes jansson is json.c.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "daemon/model/tokenizer.h"

struct error;
struct request;

#define JSON_MAX_DEPTH 32

struct json_limits { uint32_t max_tokens, max_sequences; };

// What /v1/score says beyond the request itself.
struct json_score {
	struct request *request;                 // owned until handed on
	struct token_offsets **offsets;          // (n_items) NULL where the sequence came as tokens; owned
	uint32_t n_items;
	bool base64;
};
// `tokenizer` turns "text" into tokens, with the tokenizer's own template applied (as `tokenizer(text)` does) and special tokens that are
// written in the text taken as ordinary text.
int json_read_score(const char *body, size_t n, const struct tokenizer *tokenizer, const struct json_limits *limits, struct json_score *ret,
		    struct error *err);
void json_score_done(struct json_score *s);

// What /v1/generate says beyond the request itself. max_sequences bounds the samples of all prompts.
struct json_generate {
	struct request *request;                 // with `generate` set; owned until handed on
	bool logprobs;
};
int json_read_generate(const char *body, size_t n, const struct tokenizer *tokenizer, const struct json_limits *limits,
		       struct json_generate *ret, struct error *err);
void json_generate_done(struct json_generate *g);

struct json_tokenize { char *text; size_t n; bool specials, add_special, part; };
int json_read_tokenize(const char *body, size_t n, struct json_tokenize *ret, struct error *err);
void json_tokenize_done(struct json_tokenize *t);

struct json_detokenize { struct sequence sequence; bool skip_special; };
int json_read_detokenize(const char *body, size_t n, struct json_detokenize *ret, struct error *err);
void json_detokenize_done(struct json_detokenize *d);

enum json_dtype { JSON_F32, JSON_F16, JSON_BF16, N_JSON_DTYPES };
enum json_tensor { JSON_EMBEDDING, JSON_HEAD, JSON_FINAL_NORM };
struct json_weights {
	enum json_tensor tensor;
	struct sequence ids;               // tokens NULL: the range
	uint32_t first;
	int64_t count;                     // -1 = to the end
	enum json_dtype dtype;
	bool base64;
	char *teacher;                     // its name; NULL = the first
};
int json_read_weights(const char *body, size_t n, struct json_weights *ret, struct error *err);
void json_weights_done(struct json_weights *w);

struct json_run { char *name; char *config; };    // name NULL = none given
int json_read_run(const char *body, size_t n, struct json_run *ret, struct error *err);
void json_run_done(struct json_run *r);
