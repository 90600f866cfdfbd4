// SPDX-License-Identifier: Apache-2.0
// Masked language modelling (Devlin et al., arXiv 1810.04805): some tokens of a sequence are chosen to be named, 80 % of those are replaced
// by the mask, 10 % by any token, 10 % stay. Which ones is a function of the seed and of the place in the stream alone, so that a run that
// goes on asks what it would have asked.
#pragma once

#include <stdint.h>

#include "common/sequence.h"

struct error;
struct mask;
struct passage;
struct tokenizer;

#define MASK_HELD_OUT UINT64_MAX       // the place of sequences that are kept for evaluation: the same tokens whenever they are

// share: chance of each token that is not special; of every sequence at least one is chosen if there is one. ERROR_UNSUPPORTED: the
// tokenizer has no mask.
int mask_new(const struct tokenizer *t, double share, uint64_t seed, struct mask **ret, struct error *err);
struct mask *mask_free(struct mask *m);                // returns NULL; NULL is fine
// Puts the masked tokens in the place of the passage's own, and what they were in its labels. (place, index): the micro-batch it is of, and
// where it stands there. -ENOMEM.
int mask_passage(const struct mask *m, uint64_t place, uint32_t index, struct passage *p);
