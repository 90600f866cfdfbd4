// SPDX-License-Identifier: Apache-2.0
// Numbers a word at a time. The reader keeps up to 64 bits at hand and loads whole words while eight bytes are left. Where many numbers are
// read (checking a store is half that), three are taken from each load before anything is checked, and only accepted when the load held
// them: a wrong guess of the processor costs as much as two numbers.
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

// By length: which bits behind the zero are those of g + 2^b but for its highest, and all of these; a bit further up, where the zero still
// lies below them. No number is as long as those of the last entries, which every limit refuses; codes without end come out there.
#define LENGTH_END (64 + GOLOMB_MAX_PARAMETER)
#define LENGTH(l) {(2u << (l)) - 2, (4u << (l)) - 2}
#define LENGTHS(l) LENGTH(l), LENGTH((l) + 1), LENGTH((l) + 2), LENGTH((l) + 3), LENGTH((l) + 4)
static const struct { uint32_t low, all; } lengths[LENGTH_END] = {
	LENGTHS(0), LENGTHS(5), LENGTHS(10), LENGTHS(15), LENGTHS(20), [GOLOMB_MAX_LENGTH + 1 ... LENGTH_END - 1] = {0, UINT32_MAX},
};

// One code of the inverted bits, whose sign bit is set; ret_sum: 2 (g + 2^b), perhaps with a bit below. Ones come in at the top, so a
// number is always found, though one of noise behind the end of the bits. Returns how many ones it has: 2 of these + b + 1 bits are gone.
static inline __attribute__((always_inline)) unsigned pull_number(int64_t *inverted, unsigned b, uint32_t *ret_sum)
{
	unsigned ones = (unsigned)__builtin_ctzll((uint64_t)*inverted);
	int64_t at_zero = *inverted >> ones;
	*ret_sum = lengths[ones + b].all - ((uint32_t)at_zero & lengths[ones + b].low);
	*inverted = at_zero >> ((ones + b + 1) & 63);
	return ones;
}

// Numbers of the sums; whether all are within the limit. In blocks of a fixed length, which the compiler makes vectors of.
#define FINISH_BLOCK 32
static inline __attribute__((always_inline)) uint32_t finish_some(uint32_t *sums, const size_t n, uint32_t base, uint32_t limit)
{
	uint32_t over = 0;
	for (size_t i = 0; i < n; i++) {
		uint32_t number = (sums[i] >> 1) - base;
		sums[i] = number;
		over |= limit - number;
	}
	return over;
}

static bool finish(uint32_t *sums, size_t n, unsigned b, uint32_t limit)
{
	uint32_t over = 0;
	size_t i = 0;
	for (; i + FINISH_BLOCK <= n; i += FINISH_BLOCK)
		over |= finish_some(sums + i, FINISH_BLOCK, 1u << b, limit);
	over |= finish_some(sums + i, n - i, 1u << b, limit);
	return over < UINT32_C(1) << 31;
}

// Sums while eight bytes are left, three of each load: seldom do they not fit, and a fourth would too often to be guessed. The bits are
// kept inverted here, zeros above them. Stops at three that do not fit. Returns how many.
#define EACH 3
static size_t take_many(struct golomb_reader *r, uint32_t *ret_sums, size_t n)
{
	const unsigned b = r->parameter;
	uint64_t inverted = ~r->bits & ((UINT64_C(1) << r->n_bits) - 1);
	unsigned n_bits = r->n_bits;
	const uint8_t *from = r->from, *end = r->end;
	size_t i = 0;
	for (; i + EACH <= n && end - from >= 8; i += EACH) {
		uint64_t word;
		memcpy(&word, from, sizeof word);
		inverted |= ~le64toh(word) << n_bits;
		from += (63 - n_bits) >> 3;
		n_bits |= 56;
		int64_t at = (int64_t)(inverted | UINT64_C(1) << 63);
		unsigned ones = pull_number(&at, b, &ret_sums[i]);
		ones += pull_number(&at, b, &ret_sums[i + 1]);
		ones += pull_number(&at, b, &ret_sums[i + 2]);
		unsigned gone = 2 * ones + EACH * (b + 1);
		if (__builtin_expect(gone > n_bits, 0))
			break;
		inverted >>= gone;
		n_bits -= gone;
	}
	r->from = from;
	r->bits = ~inverted & ((UINT64_C(1) << n_bits) - 1);
	r->n_bits = n_bits;
	return i;
}

static bool take_one(struct golomb_reader *r, uint32_t limit, uint32_t *ret_number)
{
	fill(r);
	return take_number(r, r->parameter, ret_number) && *ret_number <= limit;
}

int golomb_reader_next_many(struct golomb_reader *r, uint32_t limit, uint32_t *ret_numbers, size_t n)
{
	struct golomb_reader local = *r;     // in registers: what is stored to ret_numbers cannot change it
	const unsigned b = local.parameter;
	const uint32_t largest = (UINT32_C(2) << GOLOMB_MAX_LENGTH) - 1 - (1u << b);     // of any number
	bool good = true;
	limit = limit < largest ? limit : largest;
	for (size_t i = 0; good && i < n; i++) {
		size_t k = take_many(&local, ret_numbers + i, n - i);
		good = finish(ret_numbers + i, k, b, limit);
		i += k;
		good = good && (i == n || take_one(&local, limit, &ret_numbers[i]));
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
