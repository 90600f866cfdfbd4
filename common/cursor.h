// SPDX-License-Identifier: Apache-2.0
// Bounded little-endian reading and writing with a sticky error: the first access outside the bytes sets `failed`,
// every later call does nothing (reads give 0), so a parser is a straight list of reads and one check at the end.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct reader {
	const uint8_t *data;
	size_t size, position;
	bool failed;
};

struct writer {
	uint8_t *data;        // NULL: only count (position), never fail; encode twice to learn the size
	size_t size, position;
	bool failed;
	void (*spill)(void *arg, const uint8_t *data, size_t n);    // not NULL: takes the full buffer, position starts anew; the rest is
	void *arg;                                                  // the caller's. For what is hashed rather than kept.
};

struct reader reader_init(const void *data, size_t size);
size_t reader_left(const struct reader *r);
uint8_t reader_u8(struct reader *r);
uint16_t reader_u16(struct reader *r);
uint32_t reader_u32(struct reader *r);
uint64_t reader_u64(struct reader *r);
uint32_t reader_varint(struct reader *r);                   // LEB128, shortest form only, below 2^32
float reader_f32(struct reader *r);
double reader_f64(struct reader *r);
const uint8_t *reader_bytes(struct reader *r, size_t n);    // a view into the data; NULL when failed
void reader_copy(struct reader *r, void *to, size_t n);     // zero-fills `to` when failed

struct writer writer_init(void *data, size_t size);
void writer_u8(struct writer *w, uint8_t v);
void writer_u16(struct writer *w, uint16_t v);
void writer_u32(struct writer *w, uint32_t v);
void writer_u64(struct writer *w, uint64_t v);
void writer_varint(struct writer *w, uint32_t v);
void writer_f32(struct writer *w, float v);
void writer_f64(struct writer *w, double v);
void writer_bytes(struct writer *w, const void *data, size_t n);
