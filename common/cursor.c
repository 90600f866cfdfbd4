// SPDX-License-Identifier: Apache-2.0
// Bounded little-endian cursor with a sticky error. Bytes are assembled one by one: alignment and host order do not matter.
#include "common/cursor.h"

#include <string.h>

struct reader reader_init(const void *data, size_t size)
{
	return (struct reader){.data = data, .size = size};
}

size_t reader_left(const struct reader *r)
{
	return r->failed ? 0 : r->size - r->position;
}

const uint8_t *reader_bytes(struct reader *r, size_t n)
{
	if (r->failed || n > r->size - r->position) {
		r->failed = true;
		return NULL;
	}
	const uint8_t *p = r->data + r->position;
	r->position += n;
	return p;
}

static uint64_t read_integer(struct reader *r, size_t n)
{
	const uint8_t *p = reader_bytes(r, n);
	uint64_t v = 0;
	for (size_t i = 0; p && i < n; i++)
		v |= (uint64_t)p[i] << (8 * i);
	return v;
}

uint8_t reader_u8(struct reader *r) { return (uint8_t)read_integer(r, 1); }
uint16_t reader_u16(struct reader *r) { return (uint16_t)read_integer(r, 2); }
uint32_t reader_u32(struct reader *r) { return (uint32_t)read_integer(r, 4); }
uint64_t reader_u64(struct reader *r) { return read_integer(r, 8); }

uint32_t reader_varint(struct reader *r)
{
	uint64_t v = 0;
	for (unsigned shift = 0; shift < 35; shift += 7) {
		const uint8_t *p = reader_bytes(r, 1);
		if (!p)
			return 0;
		v |= (uint64_t)(*p & 0x7f) << shift;
		if (*p & 0x80)
			continue;
		if (v > UINT32_MAX || (!*p && shift))    // a last byte of zero: a longer form of a shorter number
			break;
		return (uint32_t)v;
	}
	r->failed = true;
	return 0;
}

float reader_f32(struct reader *r)
{
	uint32_t bits = reader_u32(r);
	float v;
	memcpy(&v, &bits, sizeof v);
	return v;
}

double reader_f64(struct reader *r)
{
	uint64_t bits = reader_u64(r);
	double v;
	memcpy(&v, &bits, sizeof v);
	return v;
}

void reader_copy(struct reader *r, void *to, size_t n)
{
	const uint8_t *p = reader_bytes(r, n);
	if (p && n)
		memcpy(to, p, n);
	else if (n)
		memset(to, 0, n);
}

struct writer writer_init(void *data, size_t size)
{
	return (struct writer){.data = data, .size = size};
}

// Room for n more bytes; NULL when only counting or when there is none left (then `failed` is set).
static uint8_t *claim(struct writer *w, size_t n)
{
	if (w->spill && n > w->size - w->position) {
		w->spill(w->arg, w->data, w->position);
		w->position = 0;
	}
	if (w->failed || (w->data && n > w->size - w->position) || n > SIZE_MAX - w->position) {
		w->failed = true;
		return NULL;
	}
	uint8_t *p = w->data ? w->data + w->position : NULL;
	w->position += n;
	return p;
}

static void write_integer(struct writer *w, uint64_t v, size_t n)
{
	uint8_t *p = claim(w, n);
	for (size_t i = 0; p && i < n; i++)
		p[i] = (uint8_t)(v >> (8 * i));
}

void writer_u8(struct writer *w, uint8_t v) { write_integer(w, v, 1); }
void writer_u16(struct writer *w, uint16_t v) { write_integer(w, v, 2); }
void writer_u32(struct writer *w, uint32_t v) { write_integer(w, v, 4); }
void writer_u64(struct writer *w, uint64_t v) { write_integer(w, v, 8); }

void writer_varint(struct writer *w, uint32_t v)
{
	for (; v >= 0x80; v >>= 7)
		writer_u8(w, (uint8_t)(v | 0x80));
	writer_u8(w, (uint8_t)v);
}

void writer_f32(struct writer *w, float v)
{
	uint32_t bits;
	memcpy(&bits, &v, sizeof bits);
	writer_u32(w, bits);
}

void writer_f64(struct writer *w, double v)
{
	uint64_t bits;
	memcpy(&bits, &v, sizeof bits);
	writer_u64(w, bits);
}

void writer_bytes(struct writer *w, const void *data, size_t n)
{
	uint8_t *p = claim(w, n);
	if (p && n)
		memcpy(p, data, n);
}
