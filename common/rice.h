// SPDX-License-Identifier: Apache-2.0
// Strictly ascending ids as Rice-coded gaps in a stream of bits, least significant bit first (kdserved-record.5, section IDS).
// A gap g with parameter b is g >> b one bits, a zero bit, then the low b bits of g.
#pragma once

#include <stddef.h>
#include <stdint.h>

#define RICE_MAX_PARAMETER 23    // gaps are below 2^24

// Bits that the gaps seen so far would take, for every parameter.
struct rice_cost {
	uint64_t bits[RICE_MAX_PARAMETER + 1];
};

// Adds one row's ids, which sit in the upper 32 bits of n keys in ascending order.
void rice_cost_append(struct rice_cost *cost, const uint64_t *keys, size_t n);
unsigned rice_cost_best(const struct rice_cost *cost);    // the smallest parameter of least cost

struct rice_writer {
	uint8_t *to;                  // exactly cost.bits[parameter] / 8 bytes, rounded up, are written
	uint64_t bits;
	unsigned n_bits, parameter;
};

struct rice_writer rice_writer_init(uint8_t *to, unsigned parameter);
void rice_writer_append(struct rice_writer *w, const uint64_t *keys, size_t n);    // one row
void rice_writer_done(struct rice_writer *w);                                      // pads the last byte with zeros

struct rice_reader {
	const uint8_t *from, *end;
	uint64_t bits;
	unsigned n_bits, parameter;
};

struct rice_reader rice_reader_init(const uint8_t *from, size_t n, unsigned parameter);
// One row of n ids, each below vocab_size. -EBADMSG when the stream ends early or an id is too large.
int rice_reader_next(struct rice_reader *r, uint32_t *ret_ids, size_t n, uint32_t vocab_size);
// -EBADMSG when anything but fewer than 8 zero bits is left.
int rice_reader_done(struct rice_reader *r);
