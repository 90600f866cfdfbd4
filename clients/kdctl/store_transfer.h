// SPDX-License-Identifier: Apache-2.0
// kdctl store export and import: what their files share. The parts that read and write a format know nothing of kdctl: they are fuzzed
// and tested on their own.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "clients/kdctl/kdctl.h"
#include "common/error.h"
#include "common/record.h"

struct buffer;
struct provenance;
struct pull;
struct output;

#define LINE_MAX_BYTES (UINT64_C(1) << 32)       // of a record as JSON: four times the largest record

// The names of /v1/score for what a question holds (store_transfer.c).
struct question_flag { const char *name; size_t at; };   // of a bool in struct query
#define N_QUESTION_FLAGS 7
extern const struct question_flag question_flags[N_QUESTION_FLAGS];
extern const char *const question_values[3], *const question_feature_values[3], *const question_poolings[3], *const question_kinds[5];

// What a file says of a record besides its rows, to be checked: nothing of it is believed.
struct claims {
	uint32_t version;                // of the record format that key, checksum and exact are of; those of another cannot be compared
	bool has_key, has_checksum;
	struct content_id key;
	uint32_t checksum;               // the record's own CRC-32C
	const uint8_t *exact;            // the record's bytes where the numbers alone do not give them again (f16, u8); NULL = they do
	size_t n_exact;
};
// Whether the numbers alone give the record's bytes again. -ENOMEM and such: err.
int claims_needed(const struct record *record, const struct record_rows *rows, bool *ret_exact, struct error *err);
// The record of these rows, if it is what was claimed.
int claims_redeem(const struct claims *c, const struct record_rows *rows, struct record **ret_record, struct error *err);
uint32_t claims_checksum(const struct record *record);
// A question's limits in a file: those of the record format.
struct query_limits transfer_limits(uint32_t vocab_size);

// ---- one record as a line of JSON (store_line.c, store_import_lines.c)

void line_encode(struct buffer *b, const struct record *record, const struct record_rows *rows, bool exact);    // without the newline
void line_encode_question(struct buffer *b, const struct query *q);
void line_decode_question(struct pull *t, struct query *q);     // q: query_init()ed; query_done it also after a failure
// text: a whole line with a NUL behind it.
int line_decode(const char *text, size_t n, struct record **ret_record, struct error *err);

// ---- the records of a store (store_export.c)

struct export {
	struct kdctl *k;
	const char *directory, *path, *format, *teacher;         // teacher: how its fingerprint begins, NULL = any
	uint64_t limit;                                          // of records; UINT64_MAX = none
	bool overwrite, quiet;                                   // quiet: damage was told before
	struct store *store;
	struct output *output;
	struct error err;                                        // the output's, and of what takes records
	struct progress progress;
	uint64_t n_records, n_rows, n_damaged, record_bytes, total_bytes;
};
typedef int export_take_fn(void *arg, const struct record *record, const struct record_rows *rows, struct error *err);
// Each record asked for. An exit status; damage met on the way is told and counted in n_damaged.
int export_walk(struct export *e, const char *verb, export_take_fn *take, void *arg);
// The directory's notes about the teachers asked for; the caller frees. How many: notes are not worth failing for.
size_t export_notes(const struct export *e, struct provenance **ret_notes);
int export_lines(struct export *e);
int export_tensors(struct export *e);

// ---- kdclient for Python (store_python.c)

const char *python_interpreter(void);    // python3, or what the environment says
// Runs it (arguments[0] the interpreter, ..., NULL); `take` (NULL: nothing) reads what it prints. An exit status; what failed was told.
int python_run(struct kdctl *k, const char *const *arguments, int (*take)(void *arg, FILE *f), void *arg);
