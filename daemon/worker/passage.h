// SPDX-License-Identifier: Apache-2.0
// One sequence as a run trains on it: who wrote it, and which of its tokens are learned.
#pragma once

#include <stdint.h>

#include "common/sequence.h"

enum passage_author { PASSAGE_CORPUS, PASSAGE_STUDENT };

struct passage {
	struct sequence sequence;
	uint32_t first;                // labels are tokens first .. n_tokens - 1; 1 = all there can be
	enum passage_author author;
	// (n_tokens - first) each, of labels that the student drew; NULL: it did not
	double *logprobs;              // ln q of each label, T = 1
	uint32_t *labels;              // (n_tokens) what a masked token was, UINT32_MAX at the others: those alone are learned.
	                               // NULL: not masked
	double *drawn;                 // ln of its chance under the distribution that was sampled (temperature, filters)
	double mixed;                  // chance with which the teacher drew a token in the student's place;
	                               // `drawn` is of the student's part
};

// Takes a copy of the tokens; without logprobs. -ENOMEM leaves nothing to free.
int passage_init(struct passage *p, const struct sequence *s, uint32_t first, enum passage_author author);
// Ln of the chance with which label `label` (a token's place in the sequence) was drawn, the teacher's ln p of it being log_p.
double passage_chance(const struct passage *p, uint32_t label, double log_p);
void passage_done(struct passage *p);          // harmless on zeroed memory

// The sequences of one micro-batch, in a list of those that the teacher is being asked about.
struct passages {
	struct passages *next;
	uint32_t n;
	struct passage list[];
};
struct passages *passages_new(uint32_t n);     // zeroed; NULL = out of memory
struct passages *passages_free(struct passages *p);    // this one, not those behind it; returns NULL; NULL is fine
