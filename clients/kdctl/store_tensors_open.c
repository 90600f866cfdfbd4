// SPDX-License-Identifier: Apache-2.0
// Opens a safetensors file of exported records: every array that is known is checked for type, shape and place before anything is read.
#include <endian.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "clients/kdctl/pull.h"
#include "clients/kdctl/store_tensors.h"
#include "common/error.h"

#define HEADER_MAX_BYTES (8u << 20)      // ours has some 5 KiB; notes about many teachers make it longer

static int read_bytes(const struct tensors *t, uint64_t at, void *to, uint64_t n, struct error *err)
{
	if (at > t->n_bytes || n > t->n_bytes - at)
		return error_set(err, ERROR_CORRUPT, NULL, "the file is cut short");
	if (t->bytes) {
		if (n)
			memcpy(to, t->bytes + at, n);
		return 0;
	}
	for (uint8_t *p = to; n;) {
		ssize_t got = pread(t->fd, p, n, (off_t)at);
		if (got < 0 && errno == EINTR)
			continue;
		if (got <= 0)
			return got ? error_system(err, errno, NULL, "cannot read")
				: error_set(err, ERROR_CORRUPT, NULL, "the file became shorter");
		p += got;
		at += (uint64_t)got;
		n -= (uint64_t)got;
	}
	return 0;
}

int tensors_read(const struct tensors *t, enum column c, uint64_t first, uint64_t n, void *to, struct error *err)
{
	const struct tensor_column *column = &t->columns[c];
	uint64_t size = column_type_bytes[column_kinds[c].type] * (uint64_t)column_kinds[c].width;
	if (!column->there)
		return error_set(err, ERROR_INVALID, column_kinds[c].name, "it is missing");
	if (first > column->n || n > column->n - first)
		return error_set(err, ERROR_INVALID, column_kinds[c].name, "it has too few entries");
	return read_bytes(t, column->at + first * size, to, n * size, err);      // within the file, as was checked
}

// ---- the header

struct entry { char type[8]; uint64_t shape[2], offsets[2]; unsigned n_shape, n_offsets; };

static unsigned read_list(struct pull *t, uint64_t *to, unsigned max)
{
	unsigned n = 0;
	pull_open(t, '[');
	while (pull_next(t)) {
		if (n == max)
			pull_fail(t, "a list that is too long");
		else
			to[n++] = pull_u64(t, INT64_MAX);
	}
	return n;
}

static void read_entry(struct pull *t, struct entry *e)
{
	char name[16];
	pull_open(t, '{');
	while (pull_next_member(t, name, sizeof name)) {
		if (strcmp(name, "dtype") == 0)
			pull_string(t, e->type, sizeof e->type);
		else if (strcmp(name, "shape") == 0)
			e->n_shape = read_list(t, e->shape, 2);
		else if (strcmp(name, "data_offsets") == 0)
			e->n_offsets = read_list(t, e->offsets, 2);
		else
			pull_fail(t, "an unknown member");
	}
}

static int check_entry(struct tensors *t, enum column c, const struct entry *e, uint64_t data_at, struct error *err)
{
	const struct column_kind *k = &column_kinds[c];
	uint64_t n_bytes, size = column_type_bytes[k->type] * (uint64_t)k->width;
	bool shaped = e->n_shape == (k->width > 1 ? 2 : 1) && (k->width == 1 || e->shape[1] == k->width);
	if (t->columns[c].there)
		return error_set(err, ERROR_INVALID, k->name, "it occurs twice");
	if (strcmp(e->type, column_type_names[k->type]) != 0 || !shaped)
		return error_set(err, ERROR_INVALID, k->name, "type or shape are not those of kdctl store export");
	if (e->n_offsets != 2 || e->offsets[1] < e->offsets[0] || e->offsets[1] > t->n_bytes - data_at ||
	    __builtin_mul_overflow(e->shape[0], size, &n_bytes) || n_bytes != e->offsets[1] - e->offsets[0])
		return error_set(err, ERROR_INVALID, k->name, "it does not lie in the file");
	t->columns[c] = (struct tensor_column){data_at + e->offsets[0], e->shape[0], true};
	return 0;
}

static enum column find(const char *name)
{
	enum column c = 0;
	while (c < N_COLUMNS && strcmp(column_kinds[c].name, name) != 0)
		c++;
	return c;
}

static int read_header(struct tensors *t, char *text, size_t n, struct error *err)
{
	struct pull p = pull_init(text, n);
	char name[24];
	pull_open(&p, '{');
	while (pull_next_member(&p, name, sizeof name)) {
		enum column c = find(name);
		struct entry e = {0};
		if (c == N_COLUMNS) {
			const char *begin = p.at;        // of others, or metadata
			pull_skip(&p);
			if (strcmp(name, "__metadata__") == 0)
				t->metadata_at = 8 + (uint64_t)(begin - p.begin), t->n_metadata = (uint64_t)(p.at - begin);
			continue;
		}
		read_entry(&p, &e);
		int r = p.failed ? 0 : check_entry(t, c, &e, 8 + n, err);
		if (r)
			return r;
	}
	pull_end(&p);
	return p.failed ? error_set(err, ERROR_INVALID, NULL, "header, character %td: %s", p.at - p.begin + 1, p.what) : 0;
}

// How many entries each column must have follows from key and status.
static int check_counts(struct tensors *t, struct error *err)
{
	t->n_records = t->columns[COLUMN_KEY].n;
	t->n_rows = t->columns[COLUMN_STATUS].n;
	const uint64_t wanted[] = {[PER_RECORD] = t->n_records, [PER_RECORD_AT] = t->n_records + 1, [PER_ROW] = t->n_rows,
		[PER_ROW_AT] = t->n_rows + 1};
	for (size_t c = 0; c < N_COLUMNS; c++) {
		const struct column_kind *k = &column_kinds[c];
		if (!t->columns[c].there && k->with == COLUMN_VERSION)
			return error_set(err, ERROR_INVALID, k->name, "it is missing: not a file of kdctl store export");
		if (t->columns[c].there && k->unit != COLUMN_FLAT && t->columns[c].n != wanted[k->unit])
			return error_set(err, ERROR_INVALID, k->name, "%" PRIu64 " entries where %" PRIu64 " are due", t->columns[c].n,
				wanted[k->unit]);
	}
	return 0;
}

static int open_columns(struct tensors *t, struct error *err)
{
	uint64_t n;
	int r = read_bytes(t, 0, &n, sizeof n, err);
	if (r)
		return r;
	n = le64toh(n);
	if (n > HEADER_MAX_BYTES || n > t->n_bytes - sizeof n)
		return error_set(err, ERROR_INVALID, NULL, "not safetensors, or cut short");
	char *text = malloc(n + 1);
	if (!text)
		return error_set(err, ERROR_MEMORY, NULL, "no memory for a header");
	text[n] = '\0';
	r = read_bytes(t, sizeof n, text, n, err);
	if (!r)
		r = read_header(t, text, n, err);
	free(text);
	return r ? r : check_counts(t, err);
}

int tensors_metadata(const struct tensors *t, char **ret_text, struct error *err)
{
	*ret_text = NULL;
	if (!t->n_metadata)
		return 0;
	char *text = malloc(t->n_metadata);        // part of the header, which is bounded
	if (!text)
		return error_set(err, ERROR_MEMORY, NULL, "no memory for a header");
	int r = read_bytes(t, t->metadata_at, text, t->n_metadata, err);
	if (r)
		free(text);
	else
		*ret_text = text;
	return r;
}

int tensors_open_bytes(struct tensors *t, const void *bytes, size_t n, struct error *err)
{
	*t = (struct tensors){.fd = -1, .bytes = bytes, .n_bytes = n};
	return open_columns(t, err);
}

int tensors_open(struct tensors *t, int fd, struct error *err)
{
	struct stat s;
	*t = (struct tensors){.fd = fd};
	if (fstat(fd, &s))
		return error_system(err, errno, NULL, "cannot read");
	t->n_bytes = (uint64_t)s.st_size;
	return open_columns(t, err);
}
