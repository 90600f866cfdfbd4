// SPDX-License-Identifier: Apache-2.0
// Shared by openai.c (a request from body to reply) and openai_choice.c (one completion of it) only.
#pragma once

#include "daemon/server/exchange.h"
#include "daemon/server/openai.h"

struct teacher_info;

struct openai {
	struct openai_ask ask;
	struct openai_writer writer;
	char id[40];
	long long created;
	bool one_token;                    // the token after the prompt is read off the score
	uint32_t prompt, choice;           // of the next piece
	uint32_t n_pieces;
	uint64_t n_prompt_tokens, n_new_tokens;
};

struct openai_choice {
	const struct openai_prompt *prompt;
	struct record_rows *scored;        // rows first..last of the prompt
	struct openai_rows rows;           // prompt's, where wanted, then the new tokens'
	uint32_t n_prompt_rows;
	uint32_t *ids;                     // new tokens, owned
	uint32_t n_ids;
	char *text;                        // of the new tokens, owned
	size_t n_text;
	const char *finish, *stop;         // reason; the stop text met or NULL
};

const struct teacher_info *openai_teacher(const struct exchange *x);
bool openai_is_greedy(const struct openai_ask *a);
bool openai_wants_prompt(const struct openai_ask *a);      // log-probabilities of it

// Everything one completion says; openai_choice_done frees, also after an error.
int openai_choice_collect(struct exchange *x, uint32_t prompt, struct openai_choice *c, struct error *err);
int openai_choice_encode(struct buffer *b, struct openai *o, uint32_t index, const struct openai_choice *c, struct error *err);
void openai_choice_done(struct openai_choice *c);
