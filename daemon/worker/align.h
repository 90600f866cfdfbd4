// SPDX-License-Identifier: Apache-2.0
// Where two tokenisations of one text meet: the byte offsets at which a token of each ends. After such a boundary both models have read the
// same bytes, so what they say of what follows can be compared. No I/O, no memory of its own.
#pragma once

#include <stdint.h>

// The last token of each side that ends at this byte: tokens that end where the one before did (parts of one replaced character, tokens
// that stand for nothing in the text) belong to it.
struct align_boundary { uint32_t a, b, byte; };

// ends: the byte just after each token, never falling. ret has room for the smaller of n_a and n_b. Returns how many boundaries there
// are; they ascend in all three, and the tokens between two neighbours are the same bytes on both sides.
uint32_t align_boundaries(const uint32_t *ends_a, uint32_t n_a, const uint32_t *ends_b, uint32_t n_b, struct align_boundary *ret);
