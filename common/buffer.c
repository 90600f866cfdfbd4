// SPDX-License-Identifier: Apache-2.0
#include "common/buffer.h"

#include <math.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void buffer_done(struct buffer *b)
{
	free(b->data);
	*b = (struct buffer){0};
}

// Room for n more bytes and the NUL.
static bool buffer_reserve(struct buffer *b, size_t n)
{
	size_t need, capacity = b->capacity ? b->capacity : 256;
	if (b->failed || __builtin_add_overflow(b->n, n, &need) || __builtin_add_overflow(need, 1, &need)) {
		b->failed = true;
		return false;
	}
	if (need <= b->capacity)
		return true;
	while (capacity < need)
		if (__builtin_mul_overflow(capacity, 2, &capacity))
			capacity = need;
	char *data = realloc(b->data, capacity);
	if (!data) {
		b->failed = true;
		return false;
	}
	b->data = data;
	b->capacity = capacity;
	return true;
}

void buffer_add(struct buffer *b, const void *data, size_t n)
{
	if (!buffer_reserve(b, n))
		return;
	if (n)
		memcpy(b->data + b->n, data, n);
	b->n += n;
	b->data[b->n] = '\0';
}

void buffer_text(struct buffer *b, const char *text)
{
	buffer_add(b, text, strlen(text));
}

void buffer_printf(struct buffer *b, const char *format, ...)
{
	va_list arguments;
	va_start(arguments, format);
	int n = vsnprintf(NULL, 0, format, arguments);
	va_end(arguments);
	if (n < 0 || !buffer_reserve(b, (size_t)n)) {
		b->failed = true;
		return;
	}
	va_start(arguments, format);
	vsnprintf(b->data + b->n, (size_t)n + 1, format, arguments);
	va_end(arguments);
	b->n += (size_t)n;
}

// Length of the well-formed UTF-8 character at p (of n bytes), or 0 (Unicode table 3-7).
static size_t utf8_length(const unsigned char *p, size_t n)
{
	unsigned char low = 0x80, high = 0xbf;
	size_t length = p[0] < 0x80 ? 1 : p[0] < 0xc2 ? 0 : p[0] < 0xe0 ? 2 : p[0] < 0xf0 ? 3 : p[0] < 0xf5 ? 4 : 0;
	if (p[0] == 0xe0)
		low = 0xa0;
	if (p[0] == 0xed)
		high = 0x9f;
	if (p[0] == 0xf0)
		low = 0x90;
	if (p[0] == 0xf4)
		high = 0x8f;
	if (!length || length > n)
		return 0;
	for (size_t i = 1; i < length; i++) {
		if (p[i] < low || p[i] > high)
			return 0;
		low = 0x80;
		high = 0xbf;
	}
	return length;
}

void buffer_string(struct buffer *b, const char *text, size_t n)
{
	const unsigned char *p = (const unsigned char *)text;
	buffer_add(b, "\"", 1);
	for (size_t i = 0; i < n && !b->failed;) {
		size_t length = utf8_length(p + i, n - i);
		if (!length)
			buffer_text(b, "\xef\xbf\xbd");
		else if (p[i] == '"' || p[i] == '\\')
			buffer_printf(b, "\\%c", p[i]);
		else if (p[i] < 0x20 || p[i] == 0x7f)
			buffer_printf(b, "\\u%04x", p[i]);
		else
			buffer_add(b, p + i, length);
		i += length ? length : 1;
	}
	buffer_add(b, "\"", 1);
}

bool buffer_is_utf8(const char *text, size_t n)
{
	size_t length = 0;
	for (size_t i = 0; i < n; i += length)
		if (!(length = utf8_length((const unsigned char *)text + i, n - i)))
			return false;
	return true;
}

void buffer_base64(struct buffer *b, const void *data, size_t n)
{
	static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
	const unsigned char *p = data;
	if (n > SIZE_MAX / 2 || !buffer_reserve(b, (n + 2) / 3 * 4)) {
		b->failed = true;
		return;
	}
	char *to = b->data + b->n;
	for (size_t i = 0; i < n; i += 3) {
		size_t left = n - i;
		unsigned v = (unsigned)p[i] << 16 | (left > 1 ? (unsigned)p[i + 1] << 8 : 0) | (left > 2 ? p[i + 2] : 0u);
		*to++ = digits[v >> 18];
		*to++ = digits[v >> 12 & 63];
		*to++ = left > 1 ? digits[v >> 6 & 63] : '=';
		*to++ = left > 2 ? digits[v & 63] : '=';
	}
	*to = '\0';
	b->n = (size_t)(to - b->data);
}

void buffer_float(struct buffer *b, float v)
{
	char text[32];
	if (!isfinite(v)) {
		buffer_add(b, "null", 4);
		return;
	}
	buffer_add(b, text, (size_t)snprintf(text, sizeof text, "%.9g", (double)v));    // 9 digits: any float reads back
}
