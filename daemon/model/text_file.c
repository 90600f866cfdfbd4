// SPDX-License-Identifier: Apache-2.0
#include "daemon/model/text_file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/error.h"
#include "daemon/model/tokenizer.h"

// A text is tokenised in pieces of at most this many bytes: large enough that cuts are rare, small enough that the offsets the
// tokenizer makes beside each id stay a passing cost.
#define TEXT_FILE_PIECE_BYTES (4u << 20)

struct text_file {
	const struct tokenizer *tokenizer;
	bool specials;
	char *path;
	int fd;
	bool end;                      // nothing more can be read
	bool over;                     // the end-of-text token was given out
	char *buffer;                  // (TEXT_FILE_PIECE_BYTES) read, not tokenised yet
	size_t n;
	uint64_t position;
	uint32_t eos;
	struct tokens tokens;
};

int text_file_open(const char *path, const struct tokenizer *t, bool specials, struct text_file **ret, struct error *err)
{
	struct text_file *f = calloc(1, sizeof *f);
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (f)
		*f = (struct text_file){.tokenizer = t, .specials = specials, .fd = fd, .path = strdup(path),
					.buffer = malloc(TEXT_FILE_PIECE_BYTES)};
	int r = fd < 0 ? error_system(err, errno, "corpus", "cannot open %s", path)
		: f && f->path && f->buffer ? 0 : error_set(err, ERROR_MEMORY, "corpus", "out of memory");
	if (r) {
		if (fd >= 0 && !f)
			close(fd);
		text_file_close(f);
		return r;
	}
	*ret = f;
	return 0;
}

struct text_file *text_file_close(struct text_file *f)
{
	if (f) {
		if (f->fd >= 0)
			close(f->fd);
		tokens_done(&f->tokens);
		free(f->buffer);
		free(f->path);
		free(f);
	}
	return NULL;
}

static bool is_blank(uint8_t c)
{
	return c == ' ' || (c >= '\t' && c <= '\r');
}

// Where a full buffer may be cut so that the tokens of the pieces are those of the whole (a new line that starts with a visible
// character), else at the last character boundary, else anywhere.
static size_t piece_cut(const uint8_t *text, size_t n)
{
	for (size_t i = n - 1; i > 0; i--)
		if (text[i - 1] == '\n' && !is_blank(text[i]))
			return i;
	for (size_t i = n - 1; i > 0 && i + 4 > n; i--)
		if ((text[i] & 0xc0) != 0x80)
			return i;
	return n;
}

// Reads until the buffer is full or the file ends.
static int buffer_fill(struct text_file *f, struct error *err)
{
	while (f->n < TEXT_FILE_PIECE_BYTES && !f->end) {
		ssize_t got = read(f->fd, f->buffer + f->n, TEXT_FILE_PIECE_BYTES - f->n);
		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0)
			return error_system(err, errno, "corpus", "cannot read %s", f->path);
		f->end = got == 0;
		f->n += (size_t)got;
	}
	return 0;
}

int text_file_next(struct text_file *f, const uint32_t **ret_tokens, size_t *ret_n, struct error *err)
{
	int r = buffer_fill(f, err);
	if (r)
		return r;
	if (f->n == 0) {
		if (f->over || tokenizer_eos(f->tokenizer) < 0)
			return -ENODATA;
		f->over = true;
		f->eos = (uint32_t)tokenizer_eos(f->tokenizer);
		*ret_tokens = &f->eos;
		*ret_n = 1;
		return 0;
	}
	size_t cut = f->end ? f->n : piece_cut((const uint8_t *)f->buffer, f->n);
	// An ill-formed byte becomes U+FFFD, three bytes: no text makes more tokens than that.
	r = f->position ? tokenizer_encode_part(f->tokenizer, f->buffer, cut, f->specials, 3 * cut + 16, &f->tokens, err)
		: tokenizer_encode(f->tokenizer, f->buffer, cut, f->specials, false, 3 * cut + 16, &f->tokens, err);
	if (r)
		return r;
	memmove(f->buffer, f->buffer + cut, f->n - cut);
	f->n -= cut;
	f->position += cut;
	*ret_tokens = f->tokens.ids;
	*ret_n = f->tokens.n;
	return 0;
}

uint64_t text_file_position(const struct text_file *f)
{
	return f->position;
}
