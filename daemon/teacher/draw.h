// SPDX-License-Identifier: Apache-2.0
// The random numbers behind seeded draws: a function of (seed, sequence, position, number of the draw) and of nothing else, so that the
// same question draws the same ids whatever it is batched with, today or after a restart.
#pragma once

#include <stdint.h>

struct content_id;

struct draw_key { uint32_t words[2]; };

struct draw_key draw_key(uint64_t seed, const struct content_id *sequence);
// The n uniforms in [0, 1) of one position, ascending.
void draw_uniforms(const struct draw_key *key, uint32_t position, uint32_t n, double *ret_uniforms);
