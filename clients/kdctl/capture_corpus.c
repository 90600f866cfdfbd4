// SPDX-License-Identifier: Apache-2.0
// The corpus, one sequence at a time: texts packed as a training run packs them, or the lines and token files that kdctl score reads too.
// Its one complication is that it must be the same when it is read again: every file is hashed first, and must not change meanwhile.
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "clients/kdctl/capture.h"
#include "common/error.h"
#include "daemon/model/text_file.h"
#include "daemon/model/tokenizer.h"
#include "daemon/model/unicode.h"

#define READ_BYTES (1u << 20)
#define UTF8_BYTES 4             // of the longest character

static int file_fail(const struct corpus *c, const char *path, int error)
{
	return kdctl_fail(c->k, "%s: %s", path, strerror(error ? error : EIO));
}

static void remember(struct corpus_file *f, const struct stat *st)
{
	f->n_bytes = (uint64_t)st->st_size;
	f->device = (uint64_t)st->st_dev;
	f->inode = (uint64_t)st->st_ino;
	f->seconds = st->st_mtim.tv_sec;
	f->nanoseconds = st->st_mtim.tv_nsec;
}

static bool is_unchanged(const struct corpus_file *f)
{
	struct corpus_file now;
	struct stat st;
	if (stat(f->path, &st))
		return false;
	remember(&now, &st);
	return now.n_bytes == f->n_bytes && now.device == f->device && now.inode == f->inode && now.seconds == f->seconds &&
		now.nanoseconds == f->nanoseconds;
}

// ---- once through every file

// Counts what is not UTF-8 in n bytes, of which the last few are left for the next piece unless it is the last. Returns the bytes that
// were looked at.
static size_t check_utf8(struct corpus_file *f, const uint8_t *text, size_t n, bool last, uint64_t at, uint64_t *first_bad)
{
	size_t i = 0;
	while (i < n && (last || n - i >= UTF8_BYTES)) {
		int length = text[i] < 0x80 ? 1 : unicode_utf8_length(text + i, n - i);
		if (length < 0 && !f->n_ill_formed++)
			*first_bad = at + i;
		i += (size_t)(length < 0 ? -length : length);
	}
	return i;
}

static int look_at(struct corpus *c, struct corpus_file *f, FILE *file, uint8_t *buffer)
{
	struct hasher *h = hasher_new();
	uint64_t at = 0, first_bad = 0;
	size_t left = 0;
	if (!h)
		return kdctl_fail(c->k, "no memory");
	for (bool last = false; !last;) {
		size_t n = fread(buffer + left, 1, READ_BYTES - left, file);
		last = n < READ_BYTES - left;
		hasher_update(h, buffer + left, n);
		size_t done = c->options->packed ? check_utf8(f, buffer, left + n, last, at, &first_bad) : left + n;
		at += done;
		left = left + n - done;
		memmove(buffer, buffer + done, left);
	}
	f->hash = hasher_free(h);
	if (ferror(file))
		return file_fail(c, f->path, errno);
	if (at != f->n_bytes)
		return kdctl_fail(c->k, "%s: it changes while it is read", f->path);
	if (f->n_ill_formed && !c->options->replace)
		return kdctl_fail(c->k, "%s: byte %" PRIu64 ": not UTF-8, as are %" PRIu64 " more places "
				  "(--invalid-utf8 replace goes on with U+FFFD)", f->path, first_bad, f->n_ill_formed - 1);
	return 0;
}

static int look_at_file(struct corpus *c, struct corpus_file *f, uint8_t *buffer)
{
	struct stat st;
	FILE *file = fopen(f->path, "re");
	if (!file)
		return file_fail(c, f->path, errno);
	int status = fstat(fileno(file), &st) ? file_fail(c, f->path, errno)
		: S_ISREG(st.st_mode) ? 0 : kdctl_fail(c->k, "%s: not a file that can be read again", f->path);
	if (!status) {
		remember(f, &st);
		c->n_bytes += f->n_bytes;
		status = look_at(c, f, file, buffer);
	}
	fclose(file);
	return status;
}

// ---- opening

static int open_packing(struct corpus *c)
{
	struct error err = {0};
	uint32_t prefix, n_prefix, length = c->options->score.length;
	int r = packing_prefix(c->k->tokenizer, &prefix, &n_prefix, &err);
	if (!r && n_prefix >= length - 1)
		return kdctl_fail(c->k, "--length %" PRIu32 " leaves no room beside the tokenizer's first token", length);
	r = r ? r : packing_init(&c->packing, length, &prefix, n_prefix, &err);
	return r ? kdctl_fail_with(c->k, err.field, err.message) : 0;
}

int corpus_open(struct kdctl *k, const struct capture_options *o, struct corpus *ret)
{
	uint8_t *buffer = malloc(READ_BYTES);
	*ret = (struct corpus){.k = k, .options = o, .score = o->score};
	ret->files = calloc(o->n_paths, sizeof *ret->files);
	int status = buffer && ret->files ? 0 : kdctl_fail(k, "no memory");
	for (size_t i = 0; !status && i < o->n_paths; i++) {
		ret->files[i].path = o->paths[i];
		status = look_at_file(ret, &ret->files[i], buffer);
	}
	free(buffer);
	return status || !o->packed ? status : open_packing(ret);
}

static void file_close(struct corpus *c)
{
	c->text = text_file_close(c->text);
	if (c->opened && !c->options->packed)
		source_close(&c->source);
	c->opened = false;
}

void corpus_close(struct corpus *c)
{
	file_close(c);
	packing_done(&c->packing);
	free(c->files);
	c->files = NULL;
}

static int file_open(struct corpus *c)
{
	struct error err = {0};
	const char *path = c->files[c->at].path;
	int status = 0;
	if (c->options->packed) {
		if (text_file_open(path, c->k->tokenizer, c->k->specials, &c->text, &err))
			status = kdctl_fail(c->k, "%s", err.message);
	} else {
		c->score.path = path;
		status = source_open(c->k, &c->score, &c->source);
		if (status)
			source_close(&c->source);
	}
	c->opened = !status;
	return status;
}

// The file has been read: what it was must be what it is.
static int file_end(struct corpus *c)
{
	struct corpus_file *f = &c->files[c->at];
	if (!c->options->packed) {
		c->n_empty += c->source.n_empty;
		c->n_cut += c->source.n_cut;
		c->n_cut_tokens += c->source.n_cut_tokens;
	}
	file_close(c);
	c->n_before += f->n_bytes;
	c->at++;
	return is_unchanged(f) ? 0 : kdctl_fail(c->k, "%s: it was changed while it was captured", f->path);
}

// ---- sequences

// Bytes of the corpus behind the sequences that were given: texts are read far ahead of them, so by the share of the tokens read.
static uint64_t bytes_given(const struct corpus *c)
{
	uint64_t n_read = c->n_before + (c->text ? text_file_position(c->text) : 0);
	size_t n_ahead = c->packing.n_tokens - c->given * c->packing.length;
	return n_ahead < c->n_tokens ? n_read - (uint64_t)((double)n_read * (double)n_ahead / (double)c->n_tokens) : n_read;
}

static int take_packed(struct corpus *c, struct item **ret)
{
	uint32_t length = c->packing.length;
	struct item *i = calloc(1, sizeof *i);
	if (!i || !(i->tokens = malloc(length * sizeof *i->tokens))) {
		item_free(i);
		return kdctl_fail(c->k, "no memory for %" PRIu32 " tokens", length);
	}
	memcpy(i->tokens, c->packing.tokens + c->given++ * length, length * sizeof *i->tokens);
	i->n_tokens = length;
	i->number = c->n_items++;
	i->end = bytes_given(c);
	if (c->options->score.sum) {
		i->spans = malloc(sizeof *i->spans);
		if (!i->spans) {
			item_free(i);
			return kdctl_fail(c->k, "no memory");
		}
		i->spans[i->n_spans++] = (struct kd_span){1, length};
	}
	*ret = i;
	return 0;
}

// More tokens, from the file that is open or the next. *ret_more false at the end of the corpus.
static int fill_packing(struct corpus *c, bool *ret_more)
{
	struct error err = {0};
	const uint32_t *tokens;
	size_t n;
	*ret_more = c->opened || c->at < c->options->n_paths;
	if (!*ret_more)
		return 0;
	packing_drop(&c->packing, c->given);
	c->given = 0;
	int status = c->opened ? 0 : file_open(c);
	if (status)
		return status;
	int r = text_file_next(c->text, &tokens, &n, &err);
	if (r == -ENODATA)
		return file_end(c);
	r = r ? r : packing_append(&c->packing, tokens, n, &err);
	c->n_tokens += n;
	return r ? kdctl_fail(c->k, "%s: %s", c->files[c->at].path, err.message) : 0;
}

static int next_packed(struct corpus *c, struct item **ret)
{
	bool more = true;
	while ((c->given + 1) * c->packing.length > c->packing.n_tokens) {
		int status = fill_packing(c, &more);
		if (status)
			return status;
		if (more)
			continue;
		size_t left = c->packing.n_tokens - c->given * c->packing.length;
		c->n_left_over = left ? left - c->packing.n_prefix : 0;
		return 0;
	}
	return take_packed(c, ret);
}

static int next_single(struct corpus *c, struct item **ret)
{
	while (c->opened || c->at < c->options->n_paths) {
		int status = c->opened ? 0 : file_open(c);
		if (!status)
			status = source_next(&c->source, ret);
		if (status)
			return status;
		if (*ret) {
			(*ret)->number = c->n_items++;
			(*ret)->end += c->n_before;
			return 0;
		}
		if ((status = file_end(c)))
			return status;
	}
	return 0;
}

int corpus_next(struct corpus *c, struct item **ret)
{
	*ret = NULL;
	return c->options->packed ? next_packed(c, ret) : next_single(c, ret);
}

void corpus_place(const struct corpus *c, const struct item *i, char ret_text[400])
{
	uint64_t before = 0;
	size_t f = 0;
	while (f + 1 < c->options->n_paths && i->end > before + c->files[f].n_bytes)
		before += c->files[f++].n_bytes;
	if (i->line)
		snprintf(ret_text, 400, "%s: line %" PRIu64, c->files[f].path, i->line);
	else
		snprintf(ret_text, 400, "%s: sequence %" PRIu64 ", near byte %" PRIu64, c->files[f].path, i->number, i->end - before);
}
