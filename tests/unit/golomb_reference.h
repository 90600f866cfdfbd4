// SPDX-License-Identifier: Apache-2.0
// The reader of kdserved-record.5's codes as the manual tells it, bit by bit: what the fast one is held against, on any bytes.
#pragma once

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/golomb.h"

struct golomb_bits { const uint8_t *bytes; size_t n, at; };     // n, at: bits

static inline unsigned golomb_reference_bit(struct golomb_bits *s)
{
	unsigned bit = s->at < s->n ? s->bytes[s->at / 8] >> s->at % 8 & 1 : 0;
	s->at++;                        // beyond n: the stream ended early
	return bit;
}

static inline int golomb_reference_next(struct golomb_bits *s, unsigned b, uint32_t limit, uint32_t *ret_number)
{
	unsigned length = b;
	uint32_t low = 0;
	while (length <= GOLOMB_MAX_LENGTH && golomb_reference_bit(s))
		length++;
	if (length > GOLOMB_MAX_LENGTH)
		return -EBADMSG;
	for (unsigned i = 0; i < length; i++)
		low |= golomb_reference_bit(s) << i;
	*ret_number = (1u << length) + low - (1u << b);
	return s->at <= s->n && *ret_number <= limit ? 0 : -EBADMSG;
}

// The rest is fewer than 8 zero bits.
static inline int golomb_reference_done(struct golomb_bits *s)
{
	unsigned any = 0, n = 0;
	for (; s->at < s->n && n < 8; n++)
		any |= golomb_reference_bit(s);
	return n < 8 && !any ? 0 : -EBADMSG;
}

// Reads n numbers of the bytes in both ways, in two parts; aborts where they differ.
static inline void golomb_reference_compare(const uint8_t *bytes, size_t n_bytes, unsigned b, uint32_t limit, size_t n, size_t first)
{
	struct golomb_bits s = {bytes, 8 * n_bytes, 0};
	struct golomb_reader r = golomb_reader_init(bytes, n_bytes, b);
	uint32_t *numbers = malloc(n * sizeof *numbers + 1), number;
	int wanted = 0;
	if (!numbers)
		return;
	first = first < n ? first : n;
	int got = golomb_reader_next_many(&r, limit, numbers, first);
	if (!got)
		got = golomb_reader_next_many(&r, limit, numbers + first, n - first);
	for (size_t i = 0; i < n && !wanted; i++) {
		wanted = golomb_reference_next(&s, b, limit, &number);
		if (!wanted && !got && number != numbers[i])
			abort();
	}
	if (got != wanted || (!wanted && golomb_reader_done(&r) != golomb_reference_done(&s)))
		abort();
	free(numbers);
}
