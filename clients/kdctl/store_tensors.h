// SPDX-License-Identifier: Apache-2.0
// Records as flat arrays in a safetensors file (kdctl.1, store export): one layout for what writes them and what reads them.
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "common/buffer.h"
#include "common/record.h"

struct error;

enum column_type { COLUMN_U8, COLUMN_I32, COLUMN_I64, COLUMN_F32 };
enum column_unit { PER_RECORD, PER_RECORD_AT, PER_ROW, PER_ROW_AT, COLUMN_FLAT };    // _AT: offsets, one more than records or rows

enum column {
	COLUMN_VERSION, COLUMN_KEY, COLUMN_TEACHER, COLUMN_VOCAB_SIZE, COLUMN_CHECKSUM,
	COLUMN_TOKEN_AT, COLUMN_ROW_AT, COLUMN_QUESTION_AT, COLUMN_LSE_AT, COLUMN_DENSE_AT, COLUMN_SPAN_AT, COLUMN_WIDTH_AT,
	COLUMN_FEATURE_AT, COLUMN_RECORD_AT,
	COLUMN_STATUS, COLUMN_MAX_LOGIT, COLUMN_OWN_LOGIT, COLUMN_ENTROPY, COLUMN_MAX_PROB, COLUMN_ARGMAX, COLUMN_SUM_SQUARES, COLUMN_TAIL,
	COLUMN_TOP_AT, COLUMN_GATHER_AT, COLUMN_DRAW_AT,
	COLUMN_TOKENS, COLUMN_QUESTION, COLUMN_LSE, COLUMN_IDS, COLUMN_LOGITS, COLUMN_DENSE, COLUMN_GATHER_IDS, COLUMN_GATHER,
	COLUMN_DRAW_IDS, COLUMN_DRAW_COUNTS, COLUMN_DRAW_LOG_RATIOS, COLUMN_SPAN_SUMS, COLUMN_FEATURE_WIDTHS, COLUMN_FEATURES,
	COLUMN_RECORD, N_COLUMNS
};

struct column_kind {
	const char *name;
	enum column_type type;
	enum column_unit unit;
	enum column with;                // it is left out where no record has anything in this one; COLUMN_VERSION: never
	unsigned width;                  // numbers of one entry
};
extern const struct column_kind column_kinds[N_COLUMNS];
extern const char *const column_type_names[4];       // "U8", "I32", ...
extern const unsigned column_type_bytes[4];

// What one record adds to each column, little-endian; offsets as numbers of what they count (i64). Zero-initialise; pieces_done.
struct pieces {
	struct buffer columns[N_COLUMNS];
	bool had[N_COLUMNS];             // the record has something of it
};
int pieces_fill(struct pieces *p, const struct record *record, const struct record_rows *rows, bool exact, struct error *err);
void pieces_done(struct pieces *p);

// ---- reading; the bytes are hostile

struct tensor_column { uint64_t at, n; bool there; };    // where in the file; how many entries

struct tensors {
	int fd;                          // the caller's
	const uint8_t *bytes;            // in place of fd where not NULL
	uint64_t n_bytes, n_records, n_rows;
	struct tensor_column columns[N_COLUMNS];
	uint64_t metadata_at, n_metadata;        // its text in the file; 0 = none
};
int tensors_open(struct tensors *t, int fd, struct error *err);
int tensors_open_bytes(struct tensors *t, const void *bytes, size_t n, struct error *err);    // the bytes stay the caller's
// n entries of a column from `first`, as they lie. `to` has room for them.
int tensors_read(const struct tensors *t, enum column c, uint64_t first, uint64_t n, void *to, struct error *err);
// The text of the metadata, not terminated; the caller frees. NULL when there is none.
int tensors_metadata(const struct tensors *t, char **ret_text, struct error *err);
int tensors_record(const struct tensors *t, uint64_t i, struct record **ret_record, struct error *err);
