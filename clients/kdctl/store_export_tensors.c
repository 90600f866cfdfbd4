// SPDX-License-Identifier: Apache-2.0
// kdctl store export --format safetensors. The header comes first and says how long every array is, and arrays lie one behind the other
// while records come one by one: the records are gone through twice, once to count and once to write each piece in its place.
#include <endian.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "clients/kdctl/store_note.h"
#include "clients/kdctl/store_tensors.h"
#include "clients/kdctl/store_transfer.h"
#include "common/error.h"
#include "common/output.h"
#include "common/provenance.h"

#define PENDING_BYTES (512 * 1024)       // of one array, before they are written

struct tensor_file {
	struct export *e;
	struct pieces pieces;
	uint64_t n_bytes[N_COLUMNS];     // of each array, counted
	bool had[N_COLUMNS];
	// the second time
	uint64_t begin[N_COLUMNS];       // in the file
	uint64_t written[N_COLUMNS];
	uint64_t sums[N_COLUMNS];        // of offsets
	struct buffer pending[N_COLUMNS];
};

static bool is_offsets(enum column c)
{
	return column_kinds[c].unit == PER_RECORD_AT || column_kinds[c].unit == PER_ROW_AT;
}

static int fill(struct tensor_file *f, const struct record *record, const struct record_rows *rows, struct error *err)
{
	bool exact;
	int r = claims_needed(record, rows, &exact, err);
	return r ? r : pieces_fill(&f->pieces, record, rows, exact, err);
}

static int take_count(void *arg, const struct record *record, const struct record_rows *rows, struct error *err)
{
	struct tensor_file *f = arg;
	int r = fill(f, record, rows, err);
	for (size_t c = 0; !r && c < N_COLUMNS; c++) {
		f->n_bytes[c] += f->pieces.columns[c].n;
		f->had[c] |= f->pieces.had[c];
	}
	return r;
}

static bool is_there(const struct tensor_file *f, enum column c)
{
	return column_kinds[c].with == COLUMN_VERSION || f->had[column_kinds[c].with];
}

// ---- the header

static void add_teachers(const struct tensor_file *f, struct buffer *b)
{
	struct provenance *notes = NULL;
	struct buffer list = {0};
	size_t n = export_notes(f->e, &notes);
	note_encode_list(&list, notes, n);
	if (list.failed)
		b->failed = true;
	else
		buffer_string(b, list.data, list.n);
	buffer_done(&list);
	free(notes);
}

// Places every array, those of the widest numbers first: then each is aligned. Returns the bytes of all.
static uint64_t place(struct tensor_file *f)
{
	static const unsigned sizes[] = {8, 4, 1};
	uint64_t at = 0;
	for (size_t i = 0; i < 3; i++)
		for (size_t c = 0; c < N_COLUMNS; c++)
			if (column_type_bytes[column_kinds[c].type] == sizes[i] && is_there(f, (enum column)c)) {
				f->n_bytes[c] += is_offsets((enum column)c) ? 8 : 0;      // the first, 0
				f->begin[c] = at;
				at += f->n_bytes[c];
			}
	return at;
}

static void add_header(const struct tensor_file *f, struct buffer *b)
{
	buffer_printf(b, "{\"__metadata__\":{\"format\":\"kdserved-records 1\",\"program\":\"kdctl %s\",\"records\":\"%" PRIu64
		      "\",\"rows\":\"%" PRIu64 "\",\"teachers\":", kd_version(), f->e->n_records, f->n_bytes[COLUMN_STATUS]);
	add_teachers(f, b);
	buffer_text(b, "}");
	for (size_t c = 0; c < N_COLUMNS; c++) {
		const struct column_kind *k = &column_kinds[c];
		if (!is_there(f, (enum column)c))
			continue;
		uint64_t n = f->n_bytes[c] / column_type_bytes[k->type];
		buffer_printf(b, ",\"%s\":{\"dtype\":\"%s\",\"shape\":[", k->name, column_type_names[k->type]);
		buffer_printf(b, k->width > 1 ? "%" PRIu64 ",%u" : "%" PRIu64, n / k->width, k->width);
		buffer_printf(b, "],\"data_offsets\":[%" PRIu64 ",%" PRIu64 "]}", f->begin[c], f->begin[c] + f->n_bytes[c]);
	}
	buffer_text(b, "}");
	while (b->n % 8 && !b->failed)
		buffer_text(b, " ");
}

static int write_header(struct tensor_file *f, struct error *err)
{
	struct buffer b = {0};
	uint64_t n_data = place(f);
	add_header(f, &b);
	uint64_t length = htole64(b.n);
	int r = b.failed ? error_set(err, ERROR_MEMORY, NULL, "no memory for the header") : 0;
	if (!r)
		r = output_reserve(f->e->output, sizeof length + b.n + n_data);
	if (!r)
		r = output_write(f->e->output, &length, sizeof length);
	if (!r)
		r = output_write(f->e->output, b.data, b.n);
	for (size_t c = 0; c < N_COLUMNS; c++)
		f->begin[c] += sizeof length + b.n;
	buffer_done(&b);
	return r;
}

// ---- the arrays

static int flush(struct tensor_file *f, enum column c, struct error *err)
{
	struct buffer *b = &f->pending[c];
	if (b->failed)
		return error_set(err, ERROR_MEMORY, NULL, "no memory for an array");
	if (f->written[c] + b->n > f->n_bytes[c])
		return error_set(err, ERROR_CONFLICT, NULL, "the directory was changed meanwhile: try again");
	int r = output_write_at(f->e->output, b->data, b->n, f->begin[c] + f->written[c]);
	f->written[c] += b->n;
	b->n = 0;
	return r;
}

static int append(struct tensor_file *f, enum column c, struct error *err)
{
	struct buffer *from = &f->pieces.columns[c];
	for (size_t i = 0; is_offsets(c) && i < from->n; i += 8) {
		uint64_t n;
		memcpy(&n, from->data + i, 8);
		f->sums[c] += le64toh(n);
		n = htole64(f->sums[c]);
		memcpy(from->data + i, &n, 8);
	}
	buffer_add(&f->pending[c], from->data, from->n);
	return f->pending[c].n >= PENDING_BYTES || f->pending[c].failed ? flush(f, c, err) : 0;
}

static int take_write(void *arg, const struct record *record, const struct record_rows *rows, struct error *err)
{
	struct tensor_file *f = arg;
	int r = fill(f, record, rows, err);
	for (size_t c = 0; !r && c < N_COLUMNS; c++)
		if (is_there(f, (enum column)c))
			r = append(f, (enum column)c, err);
	return r;
}

static int finish(struct tensor_file *f, struct error *err)
{
	int r = 0;
	for (size_t c = 0; !r && c < N_COLUMNS; c++) {
		if (!is_there(f, (enum column)c))
			continue;
		r = flush(f, (enum column)c, err);
		if (!r && f->written[c] != f->n_bytes[c])
			r = error_set(err, ERROR_CONFLICT, NULL, "the directory was changed meanwhile: try again");
	}
	return r;
}

static int write_arrays(struct tensor_file *f)
{
	struct error *err = &f->e->err;
	uint64_t zero = 0, limit = f->e->limit, n_damaged = f->e->n_damaged;
	int r = write_header(f, err);
	for (size_t c = 0; c < N_COLUMNS; c++)
		if (is_offsets((enum column)c))
			buffer_add(&f->pending[c], &zero, sizeof zero);
	if (r)
		return kdctl_fail(f->e->k, "%s", err->message);
	f->e->limit = f->e->n_records;           // what a server appends meanwhile is left out
	f->e->quiet = true;                      // damage has been told
	int status = f->e->limit ? export_walk(f->e, "exported", take_write, f) : 0;
	f->e->limit = limit;
	f->e->n_damaged = n_damaged;
	if (!status && finish(f, err))
		status = kdctl_fail(f->e->k, "%s", err->message);
	return status;
}

int export_tensors(struct export *e)
{
	struct tensor_file *f = calloc(1, sizeof *f);
	if (!f)
		return kdctl_fail(e->k, "no memory");
	f->e = e;
	int status = export_walk(e, "counted", take_count, f);
	if (!status)
		status = write_arrays(f);
	for (size_t c = 0; c < N_COLUMNS; c++)
		buffer_done(&f->pending[c]);
	pieces_done(&f->pieces);
	free(f);
	return status;
}
