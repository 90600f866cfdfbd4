// SPDX-License-Identifier: Apache-2.0
// Small numbers in a stream of bits, least significant bit first (kdserved-record.5): strictly ascending ids as Rice-coded gaps, and
// counts. A number g with Rice parameter b is g >> b one bits, a zero bit, then the low b bits of g. A count c >= 1 is m = floor(log2 c)
// one bits, a zero bit, then the low m bits of c (Elias' gamma code).
#pragma once

#include <stddef.h>
#include <stdint.h>

#define RICE_MAX_PARAMETER 23    // numbers are below 2^24

// The smallest parameter with which n numbers take the fewest bits, and how many those are.
unsigned rice_best(const uint32_t *numbers, size_t n, uint64_t *ret_bits);
uint64_t rice_count_bits(uint32_t count);

struct rice_writer {
	uint8_t *to;                  // exactly the bits appended / 8 bytes, rounded up, are written
	uint64_t bits;
	unsigned n_bits, parameter;
};

struct rice_writer rice_writer_init(uint8_t *to, unsigned parameter);
void rice_writer_append(struct rice_writer *w, const uint32_t *numbers, size_t n);
void rice_writer_append_count(struct rice_writer *w, uint32_t count);
void rice_writer_done(struct rice_writer *w);                                      // pads the last byte with zeros

struct rice_reader {
	const uint8_t *from, *end;
	uint64_t bits;
	unsigned n_bits, parameter;
};

// Readers give -EBADMSG when the stream ends early or a number is too large. They take work in proportion to what they read.
struct rice_reader rice_reader_init(const uint8_t *from, size_t n, unsigned parameter);
int rice_reader_next(struct rice_reader *r, uint32_t limit, uint32_t *ret_number);            // at most limit
int rice_reader_next_many(struct rice_reader *r, uint32_t limit, uint32_t *ret_numbers, size_t n);
int rice_reader_next_count(struct rice_reader *r, uint32_t limit, uint32_t *ret_count);       // 1 to limit
int rice_reader_done(struct rice_reader *r);    // -EBADMSG when anything but fewer than 8 zero bits is left
