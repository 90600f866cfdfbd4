// SPDX-License-Identifier: Apache-2.0
// From the teacher's vocabulary to a student's that is another one. Which of the teacher's ids mean what to the student, and a sequence of
// the teacher's as the student reads it.
//
// A student with a tokenizer of its own reads the bytes that the teacher's tokens stand for: from the first whole character to the last,
// without the space that the teacher's tokenizer may put before a text.
// End-of-text and begin-of-text tokens stand for each other, other special tokens for those of the same bytes; one without a counterpart
// is not read.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "daemon/worker/align.h"

struct error;
struct tokenizer;

#define BRIDGE_NONE UINT32_MAX

struct bridge {
	const struct tokenizer *teacher, *student;     // the caller's
	uint32_t teacher_vocab, student_vocab;
	uint32_t teacher_prefix, n_teacher_prefix;     // what a template puts first, on each side
	uint32_t student_prefix, n_student_prefix;
	uint32_t *match;               // (teacher_vocab) the student's id that means the same, each at most once; BRIDGE_NONE
	uint32_t *origin;              // (student_vocab) the teacher's id of each; BRIDGE_NONE: the teacher has none
	uint32_t n_matched;
};

// The student's own tokenizer. The vocabularies may be larger than what the tokenizers name.
int bridge_open(struct bridge *b, const struct tokenizer *teacher, uint32_t teacher_vocab, const struct tokenizer *student,
		uint32_t student_vocab, struct error *err);
void bridge_done(struct bridge *b);                    // harmless on zeroed memory

// A sequence as the student reads it. Zero-initialise; reused; bridged_done frees.
struct bridged {
	uint32_t *tokens, *ends;       // (n) the student's, and the byte after each; a special token counts as one byte
	uint32_t *bytes;               // (n) of text that each token adds; 0 of special ones
	uint32_t n, room;
	uint32_t *teacher_ends, n_teacher_room;
	struct align_boundary *boundaries;     // (n_boundaries) a: the teacher's token, b: the student's
	uint32_t n_boundaries;
	bool cut;                      // there were more than max_tokens
	char *text;                    // scratch
	size_t text_room;
};
// At most max_tokens of the student's; what follows is cut off.
int bridge_sequence(const struct bridge *b, const uint32_t *tokens, uint32_t n, uint32_t max_tokens, struct bridged *ret,
		    struct error *err);
void bridged_done(struct bridged *s);
