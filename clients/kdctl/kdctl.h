// SPDX-License-Identifier: Apache-2.0
// kdctl: shared by its commands. A command returns the program's exit status: 0, 1 (failed, said why on stderr), 2 (usage) or 78 (a setting
// of the environment).
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "clients/kdclient.h"

struct tokenizer;

struct kdctl {
	const char *server;              // unix:PATH, tcp:HOST:PORT or tls:HOST:PORT
	const char *ca, *server_name;    // with tls; NULL = the system's, HOST
	const char *token_file;          // NULL = none
	const char *token;               // of the environment; a file named on the command line wins
	bool server_given, token_given, ca_given;        // on the command line, not by the environment
	const char *teacher;             // name or fingerprint; NULL = the server's first
	bool json;                       // for machines
	const char *command;             // for messages: "score"
	struct kd_client *client;        // NULL until kdctl_connect
	struct tokenizer *tokenizer;     // NULL: the server tokenizes; else this does (tokenizer.h), which is the command's
	bool specials;                   // with it: special tokens written in a text become their ids
};

int command_status(struct kdctl *k, int argc, char **argv);
int command_top(struct kdctl *k, int argc, char **argv);
int command_model(struct kdctl *k, int argc, char **argv);
int command_score(struct kdctl *k, int argc, char **argv);
int command_capture(struct kdctl *k, int argc, char **argv);
int command_generate(struct kdctl *k, int argc, char **argv);
int command_label(struct kdctl *k, int argc, char **argv);
int command_select(struct kdctl *k, int argc, char **argv);
int command_audit(struct kdctl *k, int argc, char **argv);
int command_plan(struct kdctl *k, int argc, char **argv);
int command_train(struct kdctl *k, int argc, char **argv);
int command_runs(struct kdctl *k, int argc, char **argv);
int command_store(struct kdctl *k, int argc, char **argv);
int command_token(struct kdctl *k, int argc, char **argv);
int store_export(struct kdctl *k, int argc, char **argv);        // of kdctl store; argv[0] is "export"
int store_import(struct kdctl *k, int argc, char **argv);

// One line on stderr, "kdctl: COMMAND: ...". Return 1 and 2.
int kdctl_fail(const struct kdctl *k, const char *format, ...) __attribute__((format(printf, 2, 3)));
int kdctl_usage(const struct kdctl *k, const char *format, ...) __attribute__((format(printf, 2, 3)));
int kdctl_fail_with(const struct kdctl *k, const char *field, const char *message);      // "field: message"
// The rest of getopt_long: says what is wrong with the option just seen.
int kdctl_bad_option(const struct kdctl *k, int argc, char **argv);
#ifdef __clang_analyzer__
// It reads one file at a time, and does not know that the four above never return 0.
static inline int kdctl_failed(int status)
{
	__builtin_assume(status > 0);
	return status;
}
#define kdctl_fail(...) kdctl_failed(kdctl_fail(__VA_ARGS__))
#define kdctl_usage(...) kdctl_failed(kdctl_usage(__VA_ARGS__))
#define kdctl_fail_with(...) kdctl_failed(kdctl_fail_with(__VA_ARGS__))
#define kdctl_bad_option(...) kdctl_failed(kdctl_bad_option(__VA_ARGS__))
#endif

bool kdctl_number(const char *text, double min, double max, double *ret);                // the whole text

int kdctl_connect(struct kdctl *k);                                                      // 0, or an exit status
int kdctl_open(struct kdctl *k, const char *fingerprint, struct kd_error *err);          // quietly; NULL = any teacher. -errno
// A control resource: parsed reply, or NULL (said why). Takes body (may be NULL).
json_t *kdctl_call(struct kdctl *k, const char *method, const char *path, json_t *body);
void kdctl_print_json(const json_t *j);                                                  // one line
void kdctl_print_object(const json_t *j);                                                // "key  value" lines

// The whole of a file, "-" = stdin. NULL: said why. The caller frees; NUL-terminated.
char *read_text_file(const struct kdctl *k, const char *path, size_t *ret_n);

// A bar on stderr when that is a terminal, else nothing. note: what stands behind the bar.
struct progress {
	bool shown;
	int64_t began_ms, drawn_ms;
};
struct progress progress_start(void);
void progress_show(struct progress *p, double done, double total, const char *note);
void progress_stop(struct progress *p);                                                  // clears the line
double progress_seconds(const struct progress *p);

// ---- text.c: texts and lists become token ids

struct id_list { uint32_t *ids; size_t n, capacity; };            // zero-initialise
int id_list_reserve(struct kdctl *k, struct id_list *t, size_t n);         // room for n more
int id_list_append_json(struct kdctl *k, const json_t *list, struct id_list *t);
void id_list_done(struct id_list *t);

#define TEXT_PIECE_BYTES (256 * 1024)    // of text in one call: far below any server's limit for JSON
size_t text_piece(const char *text, size_t n);           // how much of a longer text may be tokenized on its own
// at: where in the whole text the piece begins, for messages; first: whether what a template puts before a text belongs here.
int text_tokenize_piece(struct kdctl *k, const char *text, size_t n, uint64_t at, bool first, struct id_list *t);
int text_tokenize(struct kdctl *k, const char *text, size_t n, uint32_t **ret_tokens, size_t *ret_n);   // *ret_tokens is the caller's
