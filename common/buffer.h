// SPDX-License-Identifier: Apache-2.0
// A growing text with a sticky error: the writing side of JSON and of /metrics. (jansson's trees take up to 80 times a text's size; a
// reply of a million numbers is written straight instead.)
#pragma once

#include <stdbool.h>
#include <stddef.h>

struct buffer { char *data; size_t n, capacity; bool failed; };      // zero-initialise; data is NUL-terminated once anything was added

void buffer_done(struct buffer *b);
void buffer_add(struct buffer *b, const void *data, size_t n);
void buffer_text(struct buffer *b, const char *text);
void buffer_printf(struct buffer *b, const char *format, ...) __attribute__((format(printf, 2, 3)));
// A JSON string with its quotes. Bytes that are not UTF-8 become U+FFFD: JSON has no other way to hold them.
void buffer_string(struct buffer *b, const char *text, size_t n);
bool buffer_is_utf8(const char *text, size_t n);
void buffer_base64(struct buffer *b, const void *data, size_t n);
// A JSON number that reads back as the same float; NaN and infinity become null.
void buffer_float(struct buffer *b, float v);
