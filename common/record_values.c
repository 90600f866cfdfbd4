// SPDX-License-Identifier: Apache-2.0
// Every format keeps the row's maximum exactly: as f32 bits, as the difference 0, as the code 0.
#include "common/record_values.h"

#include <math.h>

#include "common/half.h"
#include "common/record_layout.h"

uint64_t values_bytes(enum query_values format, uint64_t n_rows, uint64_t n_values)
{
	switch (format) {
	case QUERY_VALUES_F32: return size_times(4, n_values);
	case QUERY_VALUES_F16: return size_times(2, n_values);
	case QUERY_VALUES_U8: break;
	}
	return size_plus(size_times(4, n_rows), n_values);    // a range for each row
}

static size_t value_bytes(enum query_values format)
{
	return format == QUERY_VALUES_F32 ? 4 : format == QUERY_VALUES_F16 ? 2 : 1;
}

struct values_writer values_writer_init(enum query_values format, uint8_t *to, uint32_t n_rows)
{
	return (struct values_writer){format, to, format == QUERY_VALUES_U8 ? to + 4 * (size_t)n_rows : to};
}

static bool append_f16(struct values_writer *w, float max, const float *values, size_t n)
{
	bool good = true;
	for (size_t i = 0; i < n; i++) {
		uint16_t half = half_from_float(values[i] - max);
		good &= (half & 0x7c00) != 0x7c00;
		half = htole16(half);
		memcpy(w->to + 2 * i, &half, 2);
	}
	return good;
}

// To the nearest integer, halves to even; for numbers from 0 to 2^51. Adding 1.5 * 2^52 leaves no bits for a fraction.
static inline double round_even(double v)
{
	return v + 0x1.8p52 - 0x1.8p52;
}

// In binary64 throughout, as the manual says: then every implementation makes the same bytes of the same row.
static bool append_u8(struct values_writer *w, float max, const float *values, size_t n)
{
	float smallest = max;
	for (size_t i = 0; i < n; i++)
		smallest = values[i] < smallest ? values[i] : smallest;
	float range = (float)((double)max - (double)smallest);
	double scale = range > 0 ? 255 / (double)range : 0;
	for (size_t i = 0; i < n; i++)
		w->to[i] = (uint8_t)(int)round_even(((double)max - (double)values[i]) * scale);
	store_u32(w->ranges, 0, float_bits(range));
	w->ranges += 4;
	return isfinite(range);
}

bool values_writer_append(struct values_writer *w, float max, const float *values, size_t n)
{
	bool good = true;
	if (w->format == QUERY_VALUES_F32)
		store_numbers(w->to, values, n);
	else
		good = w->format == QUERY_VALUES_F16 ? append_f16(w, max, values, n) : append_u8(w, max, values, n);
	w->to += n * value_bytes(w->format);
	return good;
}

void values_writer_skip(struct values_writer *w, size_t n)
{
	size_t bytes = n * value_bytes(w->format);
	memset(w->to, 0, bytes);
	w->to += bytes;
	if (w->format != QUERY_VALUES_U8)
		return;
	store_u32(w->ranges, 0, 0);
	w->ranges += 4;
}

struct values_reader values_reader_init(enum query_values format, const uint8_t *from, uint32_t n_rows)
{
	return (struct values_reader){format, from, format == QUERY_VALUES_U8 ? from + 4 * (size_t)n_rows : from};
}

static bool next_f32(const uint8_t *from, float max, float *to, size_t n)
{
	bool good = true;
	for (size_t i = 0; i < n; i++) {
		to[i] = bits_float(load_u32(from, i));
		good &= (to[i] >= -__FLT_MAX__) & (to[i] <= max);    // NaN fails both
	}
	return good;
}

static bool next_f16(const uint8_t *from, float max, float *to, size_t n)
{
	bool good = true;
	for (size_t i = 0; i < n; i++) {
		uint16_t half;
		memcpy(&half, from + 2 * i, 2);
		float difference = half_to_float(le16toh(half));
		to[i] = max + difference;
		good &= difference <= 0 && to[i] >= -__FLT_MAX__;
	}
	return good;
}

// The smallest value of a row is the range below its maximum, so the largest code is 255; a range of 0 leaves only the maximum.
static bool next_u8(const uint8_t *from, uint32_t range_bits, float max, float *to, size_t n)
{
	float range = bits_float(range_bits);
	double step = (double)range / 255;
	uint8_t largest = 0;
	for (size_t i = 0; i < n; i++) {
		largest = from[i] > largest ? from[i] : largest;
		to[i] = (float)((double)max - from[i] * step);
	}
	return range_bits < 0x7f800000 && largest == (range_bits ? 255 : 0) && (double)max - (double)range >= -(double)__FLT_MAX__;
}

bool values_reader_next(struct values_reader *r, float max, float *to, size_t n)
{
	bool good = false;
	switch (r->format) {
	case QUERY_VALUES_F32: good = next_f32(r->from, max, to, n); break;
	case QUERY_VALUES_F16: good = next_f16(r->from, max, to, n); break;
	case QUERY_VALUES_U8:
		good = next_u8(r->from, load_u32(r->ranges, 0), max, to, n);
		r->ranges += 4;
		break;
	}
	r->from += n * value_bytes(r->format);
	return good;
}

// Differences to the maximum are 0 or below, and one is 0. In blocks of a fixed length, which the compiler makes vectors of.
#define CHECK_BLOCK 32
static bool check_f16(const uint8_t *from, size_t n)
{
	uint16_t bad = 0, zero = 0, half[CHECK_BLOCK];
	for (size_t i = 0; i < n; i += CHECK_BLOCK) {
		size_t k = n - i < CHECK_BLOCK ? n - i : CHECK_BLOCK;
		memcpy(half, from + 2 * i, 2 * k);
		for (size_t j = k; j < CHECK_BLOCK; j++)
			half[j] = htole16(0x8001);
		for (size_t j = 0; j < CHECK_BLOCK; j++) {
			uint16_t h = le16toh(half[j]), is_zero = (uint16_t)((h & 0x7fff) == 0);
			bad |= (uint16_t)((h & 0x7fff) >= 0x7c00) | (uint16_t)(h < 0x8000 && !is_zero);
			zero |= is_zero;
		}
	}
	return !bad && zero;
}

struct code_range { uint8_t smallest[CHECK_BLOCK], largest[CHECK_BLOCK]; };

static inline void code_range_add(struct code_range *r, const uint8_t *codes)
{
	for (size_t j = 0; j < CHECK_BLOCK; j++) {
		r->smallest[j] = codes[j] < r->smallest[j] ? codes[j] : r->smallest[j];
		r->largest[j] = codes[j] > r->largest[j] ? codes[j] : r->largest[j];
	}
}

// The last block ends with the row, over the one before it; a row shorter than one is filled up with its first code.
static bool check_u8(const uint8_t *from, uint32_t range_bits, float max, size_t n)
{
	struct code_range r;
	uint8_t first[CHECK_BLOCK], largest = 0, smallest = 255;
	if (n < CHECK_BLOCK) {
		memset(first, from[0], sizeof first);
		memcpy(first, from, n);
		from = first;
		n = CHECK_BLOCK;
	}
	memcpy(r.smallest, from, CHECK_BLOCK);
	memcpy(r.largest, from, CHECK_BLOCK);
	for (size_t i = CHECK_BLOCK; i + CHECK_BLOCK <= n; i += CHECK_BLOCK)
		code_range_add(&r, from + i);
	code_range_add(&r, from + n - CHECK_BLOCK);
	for (size_t j = 0; j < CHECK_BLOCK; j++) {
		largest = r.largest[j] > largest ? r.largest[j] : largest;
		smallest = r.smallest[j] < smallest ? r.smallest[j] : smallest;
	}
	return !smallest && range_bits < 0x7f800000 && largest == (range_bits ? 255 : 0) &&
	       (double)max - (double)bits_float(range_bits) >= -(double)__FLT_MAX__;
}

bool values_reader_check(struct values_reader *r, float max, size_t n)
{
	bool good = r->format == QUERY_VALUES_F16 ? check_f16(r->from, n) : check_u8(r->from, load_u32(r->ranges, 0), max, n);
	if (!good)
		return false;
	r->from += n * value_bytes(r->format);
	r->ranges += r->format == QUERY_VALUES_U8 ? 4 : 0;
	return true;
}

bool values_reader_skip(struct values_reader *r, size_t n)
{
	size_t bytes = n * value_bytes(r->format);
	uint32_t any = 0;
	for (size_t i = 0; i < bytes; i++)
		any |= r->from[i];
	r->from += bytes;
	if (r->format == QUERY_VALUES_U8) {
		any |= load_u32(r->ranges, 0);
		r->ranges += 4;
	}
	return !any;
}
