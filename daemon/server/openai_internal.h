// SPDX-License-Identifier: Apache-2.0
// Shared by openai.c (a request from body to reply), openai_request.c (what it asks of the service) and openai_choice.c (one completion).
#pragma once

#include "common/buffer.h"
#include "daemon/server/exchange.h"
#include "daemon/server/openai.h"

struct teacher_info;

// How far the reply of one completion has come. Without a stream there is one step, from nothing to the end.
struct openai_choice {
	bool complete;                     // everything of it is back
	bool begun, ended;                 // its first, its last piece is written
	uint32_t n_ids;                    // new tokens written
	size_t n_text;                     // bytes of their text written
	size_t n_characters;               // of all tokens written, the prompt's with them: where the next one begins
	struct buffer pending;             // text of written tokens that is not sure yet, or is part of a character
};

struct openai {
	struct openai_ask ask;
	uint32_t teacher;                  // the number of the model asked
	struct openai_writer writer;
	char id[40];
	long long created;
	bool one_token;                    // the token after the prompt is read off the score
	struct request *score, *generation;        // either may be NULL; the exchange's
	uint32_t n_scores_left;            // prompts whose score is not back
	struct openai_choice *choices;     // (n_choices) those of prompt p from p n on
	uint32_t n_choices, next;          // next: where to look for something to write
	uint32_t n_ended;
	uint64_t n_new_tokens;
	struct error failure;              // of a part, when another part is under way already
};

// What is new of one completion.
struct openai_piece {
	const struct openai_prompt *prompt;
	struct record_rows *scored;        // of the prompt, in a first piece that needs it
	struct openai_rows rows;           // of the prompt, where wanted, then of the new tokens
	uint32_t n_prompt_rows;
	bool first;
	const uint32_t *ids;               // new tokens
	uint32_t n_ids;
	uint32_t one;                      // where `ids` points when the score gave the only one
	struct buffer text;
	const char *finish;                // "stop", "length"; NULL = it goes on
	const char *stop;                  // the stop text met, or NULL
	int64_t stop_id;                   // the stop token met, or -1
};

const struct teacher_info *openai_teacher(const struct exchange *x);
bool openai_is_greedy(const struct openai_ask *a);
bool openai_wants_prompt(const struct openai_ask *a);      // log-probabilities of it
int openai_submit(struct exchange *x, struct error *err);
void openai_rename(const struct openai_ask *a, struct error *err);     // the service's field names -> those of the body

// Whether there is something to write of a completion now.
bool openai_choice_is_ready(const struct openai *o, uint32_t index);
// Takes it; openai_piece_done frees, also after an error.
int openai_choice_take(struct exchange *x, uint32_t index, struct openai_piece *p, struct error *err);
int openai_piece_encode(struct buffer *b, struct openai *o, uint32_t index, const struct openai_piece *p, struct error *err);
void openai_piece_done(struct openai_piece *p);
