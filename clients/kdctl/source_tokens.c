// SPDX-License-Identifier: Apache-2.0
// Token files: plain u16 or u32 numbers, or a NumPy array of one or two dimensions; little-endian all.
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "clients/kdctl/score.h"

#define MAX_NPY_HEADER 65536             // NumPy's own is below 200 bytes for what is read here

// The value of 'key' in the header, a Python dictionary; NULL when absent.
static const char *find_value(const char *header, const char *key)
{
	char quoted[32];
	snprintf(quoted, sizeof quoted, "'%s':", key);
	const char *at = strstr(header, quoted);
	return at ? at + strlen(quoted) + strspn(at + strlen(quoted), " ") : NULL;
}

static int parse_type(struct source *s, const char *descr)
{
	static const struct { const char *name; uint32_t bytes; bool is_signed; } types[] = {
		{"'<u2'", 2, false}, {"'<u4'", 4, false}, {"'<u8'", 8, false}, {"'<i2'", 2, true}, {"'<i4'", 4, true}, {"'<i8'", 8, true}};
	for (size_t i = 0; descr && i < sizeof types / sizeof *types; i++) {
		if (strncmp(descr, types[i].name, strlen(types[i].name)) != 0)
			continue;
		s->item_bytes = types[i].bytes;
		s->is_signed = types[i].is_signed;
		return 0;
	}
	return source_fail(s, "an array of whole numbers of 2, 4 or 8 bytes, little-endian, is expected");
}

// "(N,)" or "(N, L)"
static int parse_shape(struct source *s, const char *shape)
{
	unsigned long long n[3] = {0};
	int count = 0;
	const char *at = shape && *shape == '(' ? shape + 1 : "";
	while (*at && *at != ')' && count < 3) {
		char *end;
		n[count++] = strtoull(at, &end, 10);
		if (end == at)
			return source_fail(s, "its shape cannot be read");
		at = end + strspn(end, ", ");
	}
	if (*at != ')' || count < 1 || count > 2)
		return source_fail(s, "an array of one or two dimensions is expected");
	if (count == 2 && n[0] && !n[1])
		return source_fail(s, "its rows have no tokens");
	s->row_tokens = count == 2 ? (size_t)n[1] : 0;
	return 0;
}

int source_open_npy(struct source *s)
{
	unsigned char head[12];
	size_t n = fread(head, 1, 8, s->file), width = n == 8 && head[6] == 1 ? 2 : 4, size = 0;
	if (n != 8 || memcmp(head, "\x93NUMPY", 6) != 0 || head[6] < 1 || head[6] > 3 || fread(head + 8, 1, width, s->file) != width)
		return source_fail(s, "this is not a NumPy file");
	for (size_t i = width; i--;)
		size = size << 8 | head[8 + i];
	char *header = size <= MAX_NPY_HEADER ? calloc(1, size + 1) : NULL;
	if (!header || fread(header, 1, size, s->file) != size) {
		free(header);
		return source_fail(s, "its NumPy header is cut short or too long");
	}
	const char *order = find_value(header, "fortran_order");
	int status = parse_type(s, find_value(header, "descr"));
	if (!status)
		status = parse_shape(s, find_value(header, "shape"));
	if (!status && s->row_tokens && (!order || strncmp(order, "False", 5) != 0))
		status = source_fail(s, "its columns come first (fortran_order): save it in C order");
	s->at = 8 + width + size;
	free(header);
	return status;
}

static int append(struct source *s, const unsigned char *bytes)
{
	uint64_t v = 0;
	for (uint32_t i = s->item_bytes; i--;)
		v = v << 8 | bytes[i];
	if (v > UINT32_MAX || (s->is_signed && s->item_bytes == 2 && v > INT16_MAX) || (s->is_signed && v > INT32_MAX))
		return source_fail(s, "byte %zu: not a token id", (size_t)s->at);
	s->tokens.ids[s->tokens.n++] = (uint32_t)v;
	s->at += s->item_bytes;
	return 0;
}

int source_fill_tokens(struct source *s)
{
	size_t want = s->row_tokens ? s->row_tokens : s->options->length;
	for (size_t i = 0; i < want; i++) {
		unsigned char bytes[8];
		size_t n = fread(bytes, 1, s->item_bytes, s->file);
		if (n < s->item_bytes && ferror(s->file))
			return source_fail(s, "%s", strerror(errno));
		if (n < s->item_bytes) {
			s->ended = s->complete = true;
			return n || (s->row_tokens && i) ? source_fail(s, "it ends in the middle of a %s", n ? "number" : "row") : 0;
		}
		if (id_list_reserve(s->k, &s->tokens, 1) || append(s, bytes))
			return 1;
	}
	s->complete = s->row_tokens != 0;
	return 0;
}
