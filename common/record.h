// SPDX-License-Identifier: Apache-2.0
// THE codec: what the teacher said about one sequence. The same bytes travel on the wire and lie on disk (kdserved-record.5).
// A record is immutable once made and the one reference-counted type (atomic count: engine, store and doors share it).
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "common/query.h"

struct error;
struct record;

#define RECORD_VERSION 3                // of the format
#define RECORD_MAX_BYTES (1u << 30)    // no record is larger
#define RECORD_MAX_NUMBERS (1u << 28)  // of one array when decoded: RECORD_MAX_BYTES of f32

enum row_status {
	ROW_OK = 0,
	ROW_NOT_FINITE = 1,       // the teacher gave NaN or infinity here: the row carries no numbers
};

#define RECORD_NO_ID UINT32_MAX           // fills the rest of a row that has fewer ids than top_k

// The decoded form, also the encoder's input. Arrays are row-major over n_rows = query_rows(&query); an array is NULL unless asked for.
struct record_rows {
	struct content_id teacher;        // fingerprint: weights, tokenizer, numeric format
	uint32_t vocab_size;
	struct sequence sequence;
	struct query query;               // canonical; owned
	uint32_t n_rows;
	uint8_t *status;                  // (n_rows) enum row_status; NULL when only spans or pooled features are asked
	float *max_logit;                 // (n_rows) these two with query_has_rows
	float *lse;                       // (n_rows, n_temperatures)
	uint32_t *n_top;                  // (n_rows) ids in the row; NULL unless top_mass: then every row has top_k
	uint32_t *ids;                    // (n_rows, top_k) descending by logit, ties to the lower id; RECORD_NO_ID after the row's last
	float *logits;                    // (n_rows, top_k) raw; the first is max_logit; 0 after the row's last
	float *dense;                     // (n_rows, n_keep or vocab_size) raw
	float *own_logit;                 // (n_rows) NaN where no token follows (row n_tokens - 1) or keep lacks it
	float *entropy, *max_prob, *sum_squares;    // (n_rows)
	uint32_t *argmax;                 // (n_rows)
	float *tail;                      // (n_rows) -INFINITY where nothing is outside the top-k
	float *gathered;                  // raw; row r's begin at record_gather_at(rows, r), in the order of its list
	uint32_t *draw_starts;            // (n_rows + 1) row r's distinct drawn ids are draw_ids[draw_starts[r]] ..
	                                  // [draw_starts[r + 1] - 1]
	uint32_t *draw_ids, *draw_counts; // ids ascend within a row; the counts of a row sum to draws.n (to 0 with draws.tail
	                                  // and nothing outside)
	float *draw_log_ratios;           // ln(p / proposal) of each drawn id, p at T = 1; NULL when tau = 1: it is 0, or the row's tail
	uint32_t draw_room;               // entries that draw_ids, draw_counts and draw_log_ratios have room for
	float *span_sums;                 // (n_spans) NaN where a row of the span is not finite, or keep lacks one of its tokens
	uint32_t feature_widths[QUERY_MAX_FEATURES];
	float *features[QUERY_MAX_FEATURES];    // (n_rows, width); (1, width) when pooled, all NaN when a row it pools is not finite
	// rows whose status is not ROW_OK hold zeros everywhere
};

// Arrays for a canonical query over a copy of the sequence, zeroed, but for draws and features: their sizes are not the question's. Free
// with record_rows_free (NULL is fine). -E2BIG when an array would have more than RECORD_MAX_NUMBERS.
int record_rows_new(const struct content_id *teacher, uint32_t vocab_size, const struct sequence *s, const struct query *canonical,
		    struct record_rows **ret_rows, struct error *err);
struct record_rows *record_rows_free(struct record_rows *rows);    // returns NULL
// Room for at least n drawn ids (of all rows) in draw_ids, draw_counts and, with tau != 1, draw_log_ratios; grows by doubling.
int record_rows_reserve_draws(struct record_rows *rows, uint32_t n, struct error *err);
int record_rows_add_feature(struct record_rows *rows, uint32_t i, uint32_t width, struct error *err);    // features[i], zeroed
uint64_t record_gather_at(const struct record_rows *rows, uint32_t row);     // index into gathered; row may be n_rows (the total)
// ids of row `row`'s list and how many
const uint32_t *record_gather_ids(const struct record_rows *rows, uint32_t row, uint32_t *ret_n);

// Refuses rows that break the rules above (-EPROTO: they are our own) and numbers that the format asked for cannot hold (-EOPNOTSUPP):
// with QUERY_VALUES_F16 a logit more than 65504 below the row's maximum, with QUERY_FEATURE_F16 a number beyond 65504. Numbers of rows
// that are not ROW_OK are ignored. -E2BIG over RECORD_MAX_BYTES.
int record_encode(const struct record_rows *rows, struct record **ret_record, struct error *err);
// Checks everything (bytes are hostile: the wire's or the disk's). Rounding of values: see query_values.
int record_decode(const struct record *record, struct record_rows **ret_rows, struct error *err);
// All that record_decode checks, in half the time: for who does not want the rows.
int record_check(const struct record *record, struct error *err);

// Where a record's bytes go: header, query, tokens, headers of the sections, then the contents of each kind of section
// (kdserved-record.5). The sum is the record's size. -EBADMSG when the sections are not those the question calls for.
#define RECORD_N_PARTS 22
const char *record_part_name(unsigned part);       // "header", ..., "top_ids", ...; NULL from RECORD_N_PARTS on
int record_parts(const struct record *record, uint64_t ret_bytes[RECORD_N_PARTS]);

// Wraps a copy of received bytes after checking everything but the rows: checksum, sizes, tokens, canonical query, and that the key is the
// hash of the question. (Rows are checked by record_decode.)
int record_from_bytes(const void *bytes, size_t n, struct record **ret_record, struct error *err);
struct record *record_ref(struct record *record);
struct record *record_unref(struct record *record);      // returns NULL; NULL is fine
const void *record_bytes(const struct record *record, size_t *ret_n);
const struct content_id *record_key(const struct record *record);
uint32_t record_crc(const struct record *record);      // crc32c(0, its bytes), known from the checksum they carry: they are not read
const struct content_id *record_teacher(const struct record *record);
uint32_t record_n_rows(const struct record *record);
const struct query *record_query(const struct record *record);        // canonical
uint32_t record_n_tokens(const struct record *record);
uint32_t record_vocab_size(const struct record *record);
int record_sequence(const struct record *record, struct sequence *ret_sequence);      // a copy of its tokens; -ENOMEM

// An upper bound of the encoded size, for limits before anything is computed (vocab_size and the widths count); UINT64_MAX on overflow.
uint64_t record_max_bytes(const struct query *canonical, uint32_t n_tokens, const struct query_limits *limits);
// An upper bound of the numbers that its rows are when decoded; UINT64_MAX on overflow.
struct record_numbers {
	uint64_t values;                   // floats
	uint64_t integers;                 // below QUERY_MAX_VOCABULARY each: ids, counts, statuses
	uint64_t offsets;                  // of arrays whose rows differ in length
	unsigned n_arrays;
};
void record_max_numbers(const struct query *canonical, const struct query_limits *limits, struct record_numbers *ret);
