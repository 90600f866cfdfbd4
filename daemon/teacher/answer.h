// SPDX-License-Identifier: Apache-2.0
// From hidden rows to a record, a few rows at a time: memory of an answer is the answer itself, never [positions x anything large].
#pragma once

#include <stdint.h>

#include "common/sequence.h"

struct act;
struct answer;
struct error;
struct head;
struct request_item;

// Rows given to the head at once. Enough to keep its product busy; results of a row do not depend on it.
#define ANSWER_CHUNK_ROWS 512

struct answer_input {
	const struct content_id *teacher;
	uint32_t vocab_size;
	const struct act *hidden;          // rows of the whole batch
	const uint32_t *rows;              // (n_tokens) which of them each position of the sequence is: one after the other, but for a shared prefix
};

// Buffers for ANSWER_CHUNK_ROWS rows of up to max_top_k ids.
int answer_open(uint32_t max_top_k, struct answer **ret_answer, struct error *err);
struct answer *answer_close(struct answer *a);             // NULL is fine; returns NULL
// Fills item->record, or item->error and returns -errno.
int answer_make(struct answer *a, struct head *head, const struct answer_input *in, struct request_item *item, uint32_t *ret_not_finite);
