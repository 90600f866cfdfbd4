// SPDX-License-Identifier: Apache-2.0
// kdctl score: a file (source) through the teacher (flow) into a file (sink), in the order of the input and many requests ahead. Shared by
// score*.c alone. Functions return 0, or an exit status after saying why.
#pragma once

#include <stdio.h>

#include "clients/kdctl/kdctl.h"
#include "common/query.h"

// ---- the question and the other options (score_options.c)

#define MAX_TEMPERATURES 16
#define MAX_FEATURES 64

enum source_format { SOURCE_AUTO, SOURCE_TEXT, SOURCE_LINES, SOURCE_U16, SOURCE_U32, SOURCE_NPY };

// What becomes of a document longer than `length`: several sequences, or (kdctl capture) one at most.
enum too_long { LONG_SPLIT, LONG_REFUSE, LONG_CUT };

struct score_options {
	const char *path;
	enum source_format format;
	uint32_t length;                 // tokens of one sequence
	enum too_long too_long;          // of lines
	bool tolerant;                   // a line that cannot be read is an item that is refused
	uint32_t batch, in_flight;       // sequences of one request, requests under way
	uint32_t flags, deadline_ms;     // of each request
	bool sum;                        // a span over each whole sequence
	const char *records_path, *lines_path;       // output; at most one, NULL = none
	bool resume, overwrite;
	struct kd_query query;
	// what the query points to
	float temperatures[MAX_TEMPERATURES];
	struct kd_feature features[MAX_FEATURES];
	uint32_t gather_offsets[2];
	struct id_list gather, keep;
};

int score_options_parse(struct kdctl *k, int argc, char **argv, struct score_options *ret);    // -1 = help was shown
void score_options_done(struct score_options *o);

// ---- what is scored: one sequence (item.c)

struct item {
	struct item *next;
	uint64_t number;                 // from 0
	uint64_t line;                   // of the input, from 1; 0 = it has none
	uint64_t end;                    // where the input was after it, in bytes
	uint32_t *tokens;                // all arrays are owned
	uint32_t n_tokens, n_spans;
	struct kd_span *spans;
	bool has_rows;
	struct kd_rows_range rows;
	uint32_t n_lists, *gather_offsets, *gather_ids;
	struct kd_answer *answer;        // once it came
	bool refused;                    // it cannot be asked, or was not answered:
	struct kd_error refusal;
	struct content_id key;           // of its answer, for those who look it up
};
struct item *item_free(struct item *i);         // returns NULL
void item_ask(const struct item *i, struct kd_sequence *ret, struct kd_lists *ret_lists);      // views
void item_refuse(struct item *i, const struct kd_error *why);
// The key of the record that answers it, or why the question is refused. ret_query: the canonical question, the caller's; may be NULL.
int item_key(const struct kd_server *server, const struct content_id *teacher, const struct query *query, const struct item *i,
	     struct content_id *ret_key, struct query *ret_query, struct error *err);

// ---- where sequences come from (source.c; token files: source_tokens.c)

struct source {
	struct kdctl *k;
	const struct score_options *options;
	FILE *file;
	uint64_t n_bytes, at;            // of the input (0 = not known), and read so far
	uint64_t n_items, n_lines, n_empty;
	uint64_t n_cut, n_cut_tokens;    // documents of which only the beginning was taken, and what of them was not
	bool ended;                      // nothing more can be read
	bool quiet;                      // what fails is not said but kept as the fault of the line
	struct kd_error fault;           // code "" = none
	struct id_list tokens;            // read, of which `taken` are given out
	size_t taken;
	bool complete;                   // they end here: a line's, a row's, the file's
	struct item *part;               // what the line asks of its own; tokens are not in it
	char *text;                      // a text's next bytes, or the line
	size_t n_text, text_size;
	uint32_t item_bytes;             // of token files
	bool is_signed;
	size_t row_tokens;               // of a two-dimensional array; 0 = none
};
int source_open(struct kdctl *k, const struct score_options *o, struct source *ret);
void source_close(struct source *s);
int source_next(struct source *s, struct item **ret);          // *ret NULL at the end
int source_fail(struct source *s, const char *format, ...) __attribute__((format(printf, 2, 3)));        // returns 1

// source_lines.c and source_tokens.c: more tokens; sets complete or ended.
int source_fill_line(struct source *s);
int source_fill_tokens(struct source *s);
int source_open_npy(struct source *s);

// ---- where answers go (score_sink.c)

struct sink;
int sink_open(struct kdctl *k, const struct score_options *o, struct sink **ret);
// Resuming: whether the output holds the next answer already. It must then be the one to this item; else what is torn off is cut away,
// and from there on answers are appended.
int sink_resume(struct sink *s, const struct item *i, bool *ret_there);
int sink_check_rest(struct sink *s);                           // after the last item: the output holds no more
int sink_append(struct sink *s, const struct item *i);
int sink_flush(struct sink *s);
int sink_close(struct sink *s);                                // NULL is fine
