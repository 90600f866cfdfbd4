// SPDX-License-Identifier: Apache-2.0
// Small numbers in a stream of bits, least significant bit first (kdserved-record.5): strictly ascending ids as gaps, and counts, in
// exponential Golomb codes. A number g with parameter b is, with l = floor(log2(g + 2^b)), l - b one bits, a zero bit, then the low l bits
// of g + 2^b. A count c >= 1 is the number c - 1 with parameter 0 (Elias' gamma code). Ids of real rows lie densely among the frequent ones
// and thinly beyond, so gaps differ in size more than one Rice parameter can follow.
#pragma once

#include <stddef.h>
#include <stdint.h>

#define GOLOMB_MAX_PARAMETER 23
#define GOLOMB_MAX_LENGTH 24       // numbers are below 2^24, sums with 2^b below 2^25

// The smallest parameter with which n numbers take the fewest bits, and how many those are.
unsigned golomb_best(const uint32_t *numbers, size_t n, uint64_t *ret_bits);
uint64_t golomb_count_bits(uint32_t count);

struct golomb_writer {
	uint8_t *to;                  // exactly the bits appended / 8 bytes, rounded up, are written
	uint64_t bits;
	unsigned n_bits, parameter;
};

struct golomb_writer golomb_writer_init(uint8_t *to, unsigned parameter);
void golomb_writer_append(struct golomb_writer *w, const uint32_t *numbers, size_t n);
void golomb_writer_append_count(struct golomb_writer *w, uint32_t count);
void golomb_writer_done(struct golomb_writer *w);                                      // pads the last byte with zeros

struct golomb_reader {
	const uint8_t *from, *end;
	uint64_t bits;
	unsigned n_bits, parameter;
};

// Readers give -EBADMSG when the stream ends early or a number is too large. They take work in proportion to what they read.
struct golomb_reader golomb_reader_init(const uint8_t *from, size_t n, unsigned parameter);
int golomb_reader_next(struct golomb_reader *r, uint32_t limit, uint32_t *ret_number);            // at most limit
int golomb_reader_next_many(struct golomb_reader *r, uint32_t limit, uint32_t *ret_numbers, size_t n);
int golomb_reader_next_count(struct golomb_reader *r, uint32_t limit, uint32_t *ret_count);       // 1 to limit
int golomb_reader_done(struct golomb_reader *r);    // -EBADMSG when anything but fewer than 8 zero bits is left
