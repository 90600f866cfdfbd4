// SPDX-License-Identifier: Apache-2.0
// Rice-coded gaps, a word at a time. The reader keeps up to 64 bits at hand and loads whole words while eight bytes are left.
#include "common/rice.h"

#include <endian.h>
#include <errno.h>
#include <stdbool.h>
#include <string.h>

void rice_cost_append(struct rice_cost *cost, const uint64_t *keys, size_t n)
{
	uint32_t sums[RICE_MAX_PARAMETER + 1] = {0};    // gaps of a row sum to less than 2^24
	uint32_t next = 0;
	for (size_t i = 0; i < n; i++) {
		uint32_t id = (uint32_t)(keys[i] >> 32), gap = id - next;
		for (unsigned b = 0; b <= RICE_MAX_PARAMETER; b++)
			sums[b] += gap >> b;
		next = id + 1;
	}
	for (unsigned b = 0; b <= RICE_MAX_PARAMETER; b++)
		cost->bits[b] += sums[b] + (uint64_t)n * (b + 1);
}

unsigned rice_cost_best(const struct rice_cost *cost)
{
	unsigned best = 0;
	for (unsigned b = 1; b <= RICE_MAX_PARAMETER; b++)
		if (cost->bits[b] < cost->bits[best])
			best = b;
	return best;
}

struct rice_writer rice_writer_init(uint8_t *to, unsigned parameter)
{
	return (struct rice_writer){.to = to, .parameter = parameter};
}

// count <= 32, and fewer than 32 bits wait before each call: the sum fits.
static void put(struct rice_writer *w, uint32_t value, unsigned count)
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

void rice_writer_append(struct rice_writer *w, const uint64_t *keys, size_t n)
{
	unsigned b = w->parameter;
	uint32_t next = 0;
	for (size_t i = 0; i < n; i++) {
		uint32_t id = (uint32_t)(keys[i] >> 32), gap = id - next, ones = gap >> b;
		for (; ones >= 32; ones -= 32)
			put(w, UINT32_MAX, 32);
		put(w, (1u << ones) - 1, ones + 1);
		put(w, gap & ((1u << b) - 1), b);
		next = id + 1;
	}
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

// One gap; false at the end of the stream or when it exceeds limit (a bound on the ones keeps hostile streams short work).
static inline bool next_gap(struct rice_reader *r, uint32_t limit, uint32_t *ret_gap)
{
	unsigned b = r->parameter;
	uint32_t quotient = 0;
	for (;;) {
		fill(r);
		unsigned ones = ~r->bits ? (unsigned)__builtin_ctzll(~r->bits) : 64;
		if (ones < r->n_bits) {
			quotient += ones;
			drop(r, ones + 1);
			break;
		}
		quotient += r->n_bits;
		if (!r->n_bits || quotient > limit >> b)
			return false;
		drop(r, r->n_bits);
	}
	if (r->n_bits < b)
		fill(r);
	if (quotient > limit >> b || r->n_bits < b)
		return false;
	*ret_gap = quotient << b | ((uint32_t)r->bits & ((1u << b) - 1));
	drop(r, b);
	return *ret_gap <= limit;
}

int rice_reader_next(struct rice_reader *r, uint32_t *ret_ids, size_t n, uint32_t vocab_size)
{
	uint32_t next = 0;
	for (size_t i = 0; i < n; i++) {
		uint32_t gap;
		if (next >= vocab_size || !next_gap(r, vocab_size - 1 - next, &gap))
			return -EBADMSG;
		ret_ids[i] = next + gap;
		next += gap + 1;
	}
	return 0;
}

int rice_reader_done(struct rice_reader *r)
{
	fill(r);
	uint64_t left = r->bits & ((UINT64_C(1) << r->n_bits) - 1);
	return r->from == r->end && r->n_bits < 8 && !left ? 0 : -EBADMSG;
}
