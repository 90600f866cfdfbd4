// SPDX-License-Identifier: Apache-2.0
// Rice-coded gaps, a word at a time. The reader keeps up to 64 bits at hand and loads whole words while eight bytes are left.
#include "common/rice.h"

#include <endian.h>
#include <errno.h>
#include <stdbool.h>
#include <string.h>

// Blocks of a fixed length, whose sums keep within 32 bits: the compiler makes them four or eight numbers wide.
#define SUM_BLOCK 128
static uint64_t sum_of_quotients(const uint32_t *numbers, size_t n, unsigned b)
{
	uint64_t sum = 0;
	size_t i = 0;
	for (; i + SUM_BLOCK <= n; i += SUM_BLOCK) {
		uint32_t part = 0;
		for (size_t j = 0; j < SUM_BLOCK; j++)
			part += numbers[i + j] >> b;
		sum += part;
	}
	for (; i < n; i++)
		sum += numbers[i] >> b;
	return sum;
}

static uint64_t cost(const uint32_t *numbers, size_t n, unsigned b)
{
	return sum_of_quotients(numbers, n, b) + (uint64_t)n * (b + 1);
}

// The cost is convex in b: from b to b + 1 it grows by n - sum(ceil((g >> b) / 2)), which never falls. So walking downhill from any
// parameter finds the best; the mean is a good place to begin.
unsigned rice_best(const uint32_t *numbers, size_t n, uint64_t *ret_bits)
{
	unsigned b = 0;
	uint64_t mean = n ? sum_of_quotients(numbers, n, 0) / n : 0, here, there;
	while (b < RICE_MAX_PARAMETER && mean >> (b + 1))
		b++;
	here = cost(numbers, n, b);
	while (b < RICE_MAX_PARAMETER && (there = cost(numbers, n, b + 1)) < here) {
		here = there;
		b++;
	}
	while (b && (there = cost(numbers, n, b - 1)) <= here) {
		here = there;
		b--;
	}
	*ret_bits = here;
	return b;
}

static unsigned log2_floor(uint32_t v)
{
	return 31 - (unsigned)__builtin_clz(v);
}

uint64_t rice_count_bits(uint32_t count)
{
	return 2 * log2_floor(count) + 1;
}

struct rice_writer rice_writer_init(uint8_t *to, unsigned parameter)
{
	return (struct rice_writer){.to = to, .parameter = parameter};
}

// count <= 32, and fewer than 32 bits wait before each call: the sum fits.
static inline void put(struct rice_writer *w, uint32_t value, unsigned count)
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

void rice_writer_append(struct rice_writer *w, const uint32_t *numbers, size_t n)
{
	struct rice_writer local = *w;     // in registers: what is written to its bytes cannot change it
	unsigned b = local.parameter;
	for (size_t i = 0; i < n; i++) {
		uint32_t ones = numbers[i] >> b, low = numbers[i] & ((1u << b) - 1);
		if (ones + 1 + b <= 32) {    // nearly always: in one go
			put(&local, (uint32_t)(((UINT64_C(1) << ones) - 1) | (uint64_t)low << (ones + 1)), ones + 1 + b);
			continue;
		}
		for (; ones >= 32; ones -= 32)
			put(&local, UINT32_MAX, 32);
		put(&local, (1u << ones) - 1, ones + 1);
		put(&local, low, b);
	}
	*w = local;
}

void rice_writer_append_count(struct rice_writer *w, uint32_t count)
{
	unsigned m = log2_floor(count);
	put(w, (1u << m) - 1, m + 1);
	put(w, count & ((1u << m) - 1), m);
}

void rice_writer_done(struct rice_writer *w)
{
	for (; w->n_bits; w->n_bits -= w->n_bits < 8 ? w->n_bits : 8) {
		*w->to++ = (uint8_t)w->bits;
		w->bits >>= 8;
	}
}

struct rice_reader rice_reader_init(const uint8_t *from, size_t n, unsigned parameter)
{
	return (struct rice_reader){.from = from, .end = from + n, .parameter = parameter};
}

// Afterwards 56 to 63 bits are at hand, or all that is left. A word load may bring in bits above n_bits: they are those of the next
// byte, and are brought in again, equal, by the next load.
static inline void fill(struct rice_reader *r)
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

static inline void drop(struct rice_reader *r, unsigned n)
{
	r->bits >>= n;
	r->n_bits -= n;
}

// One bits up to a zero, at most `limit` of them; false at the end of the stream or beyond the limit (which keeps hostile streams
// short work).
static inline bool next_ones(struct rice_reader *r, uint32_t limit, uint32_t *ret_ones)
{
	uint32_t sum = 0;
	for (;;) {
		fill(r);
		unsigned ones = ~r->bits ? (unsigned)__builtin_ctzll(~r->bits) : 64;
		if (ones < r->n_bits) {
			sum += ones;
			drop(r, ones + 1);
			break;
		}
		sum += r->n_bits;
		if (!r->n_bits || sum > limit)
			return false;
		drop(r, r->n_bits);
	}
	*ret_ones = sum;
	return sum <= limit;
}

// n <= 31 bits; false at the end of the stream.
static inline bool next_bits(struct rice_reader *r, unsigned n, uint32_t *ret_bits)
{
	if (r->n_bits < n)
		fill(r);
	if (r->n_bits < n)
		return false;
	*ret_bits = (uint32_t)r->bits & ((1u << n) - 1);
	drop(r, n);
	return true;
}

static inline bool next_number(struct rice_reader *r, uint32_t limit, uint32_t *ret_number)
{
	uint32_t quotient, rest;
	if (!next_ones(r, limit >> r->parameter, &quotient) || !next_bits(r, r->parameter, &rest))
		return false;
	*ret_number = quotient << r->parameter | rest;
	return *ret_number <= limit;
}

int rice_reader_next(struct rice_reader *r, uint32_t limit, uint32_t *ret_number)
{
	return next_number(r, limit, ret_number) ? 0 : -EBADMSG;
}

int rice_reader_next_many(struct rice_reader *r, uint32_t limit, uint32_t *ret_numbers, size_t n)
{
	struct rice_reader local = *r;     // in registers: what is stored to ret_numbers cannot change it
	const unsigned b = local.parameter;
	const uint32_t mask = (1u << b) - 1;
	bool good = true;
	for (size_t i = 0; good && i < n; i++) {
		if (local.end - local.from >= 8)
			fill(&local);
		// Nearly always the whole number is at hand: ones < 64 and b < 24, so it is below 2^30.
		unsigned ones = (unsigned)__builtin_ctzll(~local.bits | UINT64_C(1) << 63);
		if (ones + 1 + b > local.n_bits) {
			good = next_number(&local, limit, &ret_numbers[i]);
			continue;
		}
		uint32_t number = (uint32_t)ones << b | ((uint32_t)(local.bits >> (ones + 1)) & mask);
		drop(&local, ones + 1 + b);
		ret_numbers[i] = number;
		good = number <= limit;
	}
	*r = local;
	return good ? 0 : -EBADMSG;
}

int rice_reader_next_count(struct rice_reader *r, uint32_t limit, uint32_t *ret_count)
{
	uint32_t m, rest;
	if (!limit || !next_ones(r, log2_floor(limit), &m) || !next_bits(r, m, &rest))
		return -EBADMSG;
	*ret_count = 1u << m | rest;
	return *ret_count <= limit ? 0 : -EBADMSG;
}

int rice_reader_done(struct rice_reader *r)
{
	fill(r);
	uint64_t left = r->bits & ((UINT64_C(1) << r->n_bits) - 1);
	return r->from == r->end && r->n_bits < 8 && !left ? 0 : -EBADMSG;
}
