// SPDX-License-Identifier: Apache-2.0
// Replies as JSON text (kdserved-http.7 is the specification).
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "daemon/teacher/request.h"

struct buffer;
struct error;
struct query;
struct query_limits;
struct record_rows;
struct choice;
struct teacher;
struct teacher_info;
struct token_offsets;

// Ours: {"error":{"code","message","field"}}. OpenAI's: {"error":{"message","type","param","code"}}, param null where it says
// nothing.
enum reply_errors { REPLY_ERRORS_OWN, REPLY_ERRORS_OPENAI };
void reply_error(struct buffer *b, const struct error *e, enum reply_errors shape);
// The members of "teacher" in score replies, without braces: where the numbers come from.
void reply_provenance(struct buffer *b, const struct teacher_info *info);
// Of whom a request asked: the teacher's, or a mixture's with those of its members.
void reply_choice(struct buffer *b, const struct teacher *t, const struct choice *c);
// One element of "sequences". The numbers come from decoding the record, so a cached answer and a computed one cannot differ. offsets may
// be NULL. `asked` is the query as the caller wrote it: lse values come in its order of temperatures (a record keeps them sorted).
int reply_item(struct buffer *b, const struct request_item *item, const struct query *asked, const struct token_offsets *offsets,
	       bool base64, struct error *err);
// The members of base64 encoding, from "n_rows" on; works inside `rows`.
int reply_packed(struct buffer *b, struct record_rows *rows, struct error *err);
#define REPLY_ID_BYTES UINT64_C(9)     // "16777215,": of an id as JSON, at most

// Upper bounds of the text made of one answer: of a score of n_tokens tokens (UINT64_MAX on overflow), or of a sample of as many. Where
// tokens have their texts, those are taken to be of a usual length.
uint64_t reply_max_bytes(const struct query *canonical, uint32_t n_tokens, const struct query_limits *limits, enum request_text text);
uint64_t reply_max_sample_bytes(uint32_t n_tokens, uint32_t top_k, enum request_text text);
void reply_offsets(struct buffer *b, const struct token_offsets *offsets, size_t n);  // [[0,3],[3,5]]
