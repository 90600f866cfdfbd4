// SPDX-License-Identifier: Apache-2.0
// Numbers a word at a time. The reader keeps up to 64 bits at hand and loads whole words while eight bytes are left.
#include "common/golomb.h"

#include <endian.h>
#include <errno.h>
#include <stdbool.h>
#include <string.h>

// floor(log2(g + 2^b)) of all numbers: the exponents of floats, in which no such sum rounds up to the next power of two. Blocks of a
// fixed length, whose sums keep within 32 bits: the compiler makes them four or eight numbers wide.
#define SUM_BLOCK 128
static inline uint32_t float_exponent(uint32_t v)
{
	float f = (float)(int32_t)v;
	uint32_t bits;
	memcpy(&bits, &f, sizeof bits);
	return (bits >> 23) - 127;
}

static uint64_t sum_of_lengths(const uint32_t *numbers, size_t n, unsigned b)
{
	uint64_t sum = 0;
	size_t i = 0;
	for (; i + SUM_BLOCK <= n; i += SUM_BLOCK) {
		uint32_t part = 0;
		for (size_t j = 0; j < SUM_BLOCK; j++)
			part += float_exponent(numbers[i + j] + (1u << b));
		sum += part;
	}
	for (; i < n; i++)
		sum += float_exponent(numbers[i] + (1u << b));
	return sum;
}

static uint64_t cost(const uint32_t *numbers, size_t n, unsigned b)
{
	return 2 * sum_of_lengths(numbers, n, b) + n - n * (uint64_t)b;
}

// Most parameters need no look: with b no number takes fewer than b + 1 bits, nor all of them fewer than with 0 less n b.
unsigned golomb_best(const uint32_t *numbers, size_t n, uint64_t *ret_bits)
{
	uint64_t with_0 = cost(numbers, n, 0), mean = n ? (with_0 - n) / 2 / n : 0;
	unsigned best = mean > GOLOMB_MAX_PARAMETER ? GOLOMB_MAX_PARAMETER : (unsigned)mean;
	uint64_t least = cost(numbers, n, best);
	for (unsigned b = 0; b <= GOLOMB_MAX_PARAMETER && n * (b + 1) <= least; b++) {
		if (with_0 - n * b > least)
			continue;
		uint64_t bits = b ? cost(numbers, n, b) : with_0;
		if (bits < least || (bits == least && b < best)) {
			least = bits;
			best = b;
		}
	}
	*ret_bits = least;
	return best;
}

static unsigned log2_floor(uint32_t v)
{
	return 31 - (unsigned)__builtin_clz(v);
}

uint64_t golomb_count_bits(uint32_t count)
{
	return 2 * log2_floor(count) + 1;
}

struct golomb_writer golomb_writer_init(uint8_t *to, unsigned parameter)
{
	return (struct golomb_writer){.to = to, .parameter = parameter};
}

// count <= 32, and fewer than 32 bits wait before each call: the sum fits.
static inline void put(struct golomb_writer *w, uint32_t value, unsigned count)
{
	w->bits |= (uint64_t)value << w->n_bits;
	w->n_bits += count;
	if (w->n_bits >= 32) {
		uint32_t word = htole32((uint32_t)w->bits);
		memcpy(w->to, &word, sizeof word);
		w->to += sizeof word;
		w->bits >>= 32;
		w->n_bits -= 32;
	}
}

// g + 2^b has `length` bits below its highest one; the code says how many these are beyond b, then which.
static inline void put_number(struct golomb_writer *w, uint32_t number, unsigned b)
{
	uint32_t sum = number + (1u << b);
	unsigned length = log2_floor(sum), ones = length - b;
	uint32_t low = sum & ((1u << length) - 1);
	if (ones + 1 + length <= 32) {       // nearly always: in one go
		put(w, (uint32_t)(((UINT64_C(1) << ones) - 1) | (uint64_t)low << (ones + 1)), ones + 1 + length);
		return;
	}
	put(w, (1u << ones) - 1, ones + 1);
	put(w, low, length);
}

void golomb_writer_append(struct golomb_writer *w, const uint32_t *numbers, size_t n)
{
	struct golomb_writer local = *w;     // in registers: what is written to its bytes cannot change it
	for (size_t i = 0; i < n; i++)
		put_number(&local, numbers[i], local.parameter);
	*w = local;
}

void golomb_writer_append_count(struct golomb_writer *w, uint32_t count)
{
	put_number(w, count - 1, 0);
}

void golomb_writer_done(struct golomb_writer *w)
{
	for (; w->n_bits; w->n_bits -= w->n_bits < 8 ? w->n_bits : 8) {
		*w->to++ = (uint8_t)w->bits;
		w->bits >>= 8;
	}
}

struct golomb_reader golomb_reader_init(const uint8_t *from, size_t n, unsigned parameter)
{
	return (struct golomb_reader){.from = from, .end = from + n, .parameter = parameter};
}

// Afterwards 56 to 63 bits are at hand, or all that is left. A word load may bring in bits above n_bits: they are those of the next
// byte, and are brought in again, equal, by the next load.
static inline void fill(struct golomb_reader *r)
{
	if (r->end - r->from >= 8) {
		uint64_t word;
		memcpy(&word, r->from, sizeof word);
		r->bits |= le64toh(word) << r->n_bits;
		r->from += (63 - r->n_bits) >> 3;
		r->n_bits |= 56;
		return;
	}
	for (; r->n_bits < 56 && r->from < r->end; r->n_bits += 8)
		r->bits |= (uint64_t)*r->from++ << r->n_bits;
}

static inline void drop(struct golomb_reader *r, unsigned n)
{
	r->bits >>= n;
	r->n_bits -= n;
}

// One number, where the bits at hand hold it whole: every code is shorter than 56 bits. More ones than any number has are refused.
static inline bool take_number(struct golomb_reader *r, unsigned b, uint32_t *ret_number)
{
	unsigned ones = (unsigned)__builtin_ctzll(~r->bits | UINT64_C(1) << 63), length = ones + b;
	if (length > GOLOMB_MAX_LENGTH || ones + 1 + length > r->n_bits)
		return false;
	*ret_number = ((uint32_t)(r->bits >> (ones + 1)) & ((1u << length) - 1)) + (1u << length) - (1u << b);
	drop(r, ones + 1 + length);
	return true;
}

int golomb_reader_next(struct golomb_reader *r, uint32_t limit, uint32_t *ret_number)
{
	fill(r);
	return take_number(r, r->parameter, ret_number) && *ret_number <= limit ? 0 : -EBADMSG;
}

int golomb_reader_next_many(struct golomb_reader *r, uint32_t limit, uint32_t *ret_numbers, size_t n)
{
	struct golomb_reader local = *r;     // in registers: what is stored to ret_numbers cannot change it
	const unsigned b = local.parameter;
	bool good = true;
	for (size_t i = 0; good && i < n; i++) {
		fill(&local);
		good = take_number(&local, b, &ret_numbers[i]) && ret_numbers[i] <= limit;
	}
	*r = local;
	return good ? 0 : -EBADMSG;
}

int golomb_reader_next_count(struct golomb_reader *r, uint32_t limit, uint32_t *ret_count)
{
	uint32_t number;
	fill(r);
	if (!limit || !take_number(r, 0, &number) || number > limit - 1)
		return -EBADMSG;
	*ret_count = number + 1;
	return 0;
}

int golomb_reader_done(struct golomb_reader *r)
{
	fill(r);
	uint64_t left = r->bits & ((UINT64_C(1) << r->n_bits) - 1);
	return r->from == r->end && r->n_bits < 8 && !left ? 0 : -EBADMSG;
}
