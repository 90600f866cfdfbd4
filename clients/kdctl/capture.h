// SPDX-License-Identifier: Apache-2.0
// kdctl capture: a corpus through the teacher into a directory of records. Every sequence of the corpus ends in one of three ways, and is
// counted there: answered now, found in the store, refused. Shared by capture*.c alone. Functions return 0, or an exit status after
// saying why.
#pragma once

#include "clients/kdctl/flow.h"
#include "daemon/model/packing.h"

struct output;
struct provenance;
struct record;
struct store;
struct text_file;

// ---- options (capture_options.c)

struct capture_options {
	struct score_options score;      // question and work; format and length
	char **paths;                    // (n_paths) of the corpus; argv's
	size_t n_paths;
	const char *store;               // NULL: the server keeps
	const char *manifest;            // NULL: store/manifest.json, or none
	bool packed;                     // texts become sequences of `length` tokens, as in training
	bool replace;                    // what is not UTF-8 becomes U+FFFD; else it is refused
	bool durable;                    // of the store here
	uint32_t max_length;             // of a document; 0 = the server's limit
	double patience_s, report_s;
};
int capture_options_parse(struct kdctl *k, int argc, char **argv, struct capture_options *ret);        // -1 = help was shown
void capture_options_done(struct capture_options *o);

// ---- the corpus (capture_corpus.c)

struct corpus_file {
	const char *path;
	uint64_t n_bytes, n_ill_formed;  // the latter: what is not UTF-8, and becomes U+FFFD
	struct content_id hash;          // SHA-256 of its bytes
	uint64_t device, inode;          // by which a change is noticed
	int64_t seconds, nanoseconds;
};

struct corpus {
	struct kdctl *k;
	const struct capture_options *options;
	struct corpus_file *files;       // (options->n_paths)
	size_t at;                       // the file being read
	uint64_t n_bytes, n_before;      // of all files; of those before `at`
	bool opened;                     // files[at] is
	uint64_t n_items;
	uint64_t n_empty, n_cut, n_cut_tokens, n_left_over;    // lines without tokens; documents cut; tokens that fill no last sequence
	struct packing packing;          // packed: the sequences
	size_t given;                    // of them
	uint64_t n_tokens;               // read so far, what is packed but not given included
	struct text_file *text;
	struct score_options score;      // of one file
	struct source source;            // else
};
// Reads every file once, for its hash and its faults, before anything is asked.
int corpus_open(struct kdctl *k, const struct capture_options *o, struct corpus *ret);
void corpus_close(struct corpus *c);
// item->number counts over the whole corpus, item->end is in bytes of it. *ret NULL at the end.
int corpus_next(struct corpus *c, struct item **ret);
// Where item came from: "FILE: line 7", or "FILE: sequence 3, near byte 12345".
void corpus_place(const struct corpus *c, const struct item *i, char ret_text[400]);

// ---- the store here (capture_keep.c)

struct keep;
int keep_open(struct kdctl *k, const struct capture_options *o, struct keep **ret);
void keep_close(struct keep *s);                                       // NULL is fine
int keep_describe(struct keep *s, const struct provenance *p);
// The answer that is kept already, or one that contains it. *ret NULL = none.
void keep_find(struct keep *s, const struct content_id *teacher, const struct item *i, const struct query *q, struct record **ret);
int keep_append(struct keep *s, struct record *record);               // waits while the store's queue is full
int keep_wait(struct keep *s);                                         // until all that was appended is as safe as was asked
uint64_t keep_n_duplicates(struct keep *s);

// ---- what has come of the corpus (capture_report.c: told; capture_manifest.c: written beside the shards)

struct tally { uint64_t n_sequences, n_tokens, n_positions, n_bytes; };        // bytes of records

#define MAX_REFUSED_CODES 20
#define MAX_REFUSED_TOLD 100     // by name, in the manifest; on stderr all are
struct account {
	struct tally input, answered, found, refused;
	uint64_t n_cached;               // of the answered: out of the server's store
	uint64_t n_bad_rows;             // of the answered: not finite
	uint64_t read_to;                // bytes of the corpus that are dealt with
	struct { char code[32]; uint64_t n; } codes[MAX_REFUSED_CODES];
	size_t n_codes;
	json_t *told;                    // [{"where":..,"why":..}]
};

struct capture {
	struct kdctl *k;
	struct capture_options *options;
	struct corpus corpus;
	struct keep *keep;               // NULL: the server keeps
	struct flow flow;
	struct kd_server server;         // as first welcomed
	struct content_id teacher;
	struct query query;              // as asked, for keys
	json_t *model;                   // of the teacher: an entry of /v1/model's teachers
	struct account account;
	struct progress progress;
	double reported_s;               // when it was last told
	double began;                    // Unix time
	json_t *others;                  // the manifest's other captures
	char id[CONTENT_ID_HEX];         // of this one: teacher, question, form and files
	const char *manifest_path;       // NULL = none
	char *own_path;
};

int manifest_open(struct capture *c);
int manifest_write(struct capture *c, const char *state);      // atomically
void manifest_close(struct capture *c);
json_t *manifest_entry(const struct capture *c, const char *state);

void report_refusal(struct capture *c, const struct item *i);
void report_bar(struct capture *c);
int report_due(struct capture *c);       // a line and the manifest, when it is time again
int report_end(struct capture *c, const char *state);
