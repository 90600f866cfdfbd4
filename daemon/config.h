// SPDX-License-Identifier: Apache-2.0
// "key = value" settings against a table of options (options.def for the daemon, train/run.def for a training run): one row there feeds
// the parser, --help, the manual page and the example file. Values land in a plain struct by offset.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

struct error;

enum config_type {
	CONFIG_STRING,       // char *, owned; NULL when unset
	CONFIG_LIST,         // struct config_list of strings: the key may be repeated
	CONFIG_INTEGER,      // int64_t
	CONFIG_SIZE,         // uint64_t bytes; K, M, G, T suffixes (powers of 1024)
	CONFIG_AMOUNT,       // struct config_amount: a size as above, or with a decimal point a share of all there is; min, max:
	                     // of the size
	CONFIG_DURATION,     // uint64_t milliseconds; ms, s, min, h suffixes, plain = seconds
	CONFIG_REAL,         // double
	CONFIG_BOOL,         // bool; yes/no, on/off, true/false, 1/0
	CONFIG_CHOICE,       // int index into `choices` ("auto|cpu|cuda|ref")
};

// One of the two, or, when the value is empty, neither.
struct config_amount { uint64_t bytes; double share; };

// Settings of a higher origin replace those of a lower one; within one origin they add up. An empty value empties the list.
enum config_origin { CONFIG_FROM_DEFAULT, CONFIG_FROM_FILE, CONFIG_FROM_ENVIRONMENT, CONFIG_FROM_COMMAND };
struct config_list {
	char **items;                    // (n)
	char **where;                    // (n) "run.conf:12", "--loss": for errors that are found later
	size_t n;
	enum config_origin origin;
};

struct config_option {
	const char *name;                // "socket": the key in files and --socket on command lines; words joined by '-'
	enum config_type type;
	double min, max;                 // of numbers (sizes in bytes, durations in milliseconds)
	const char *fallback;            // default, as it would be written; "" = unset
	const char *choices;             // CONFIG_CHOICE
	const char *unit;                // for help, may be ""
	const char *help;                // one line
	size_t offset;                   // into the target struct
	size_t where_offset;             // there, a char * for who set it ("kdserved.conf:12"; NULL: the default); 0 = it is not kept
	bool reloadable;                 // a running process may take another value
};

// What is wrong with a text, all of it.
#define CONFIG_MAX_ERRORS 64
struct config_errors { struct error *items; size_t n, n_more; };      // (n); n_more: not kept. Zero-initialise
void config_errors_add(struct config_errors *all, const struct error *e);
bool config_errors_any(const struct config_errors *all);
void config_errors_done(struct config_errors *all);

int config_init(const struct config_option *table, size_t n, void *target, struct error *err);      // every default
void config_done(const struct config_option *table, size_t n, void *target);
// One setting; `where` ("--socket", "$KDSERVED_SOCKET", "kdserved.conf:12", "default") goes into the error, and its start tells a command
// line, the environment and a file apart.
// An empty value unsets a string. An unknown name is an error that suggests the nearest one.
int config_set(const struct config_option *table, size_t n, void *target, const char *name, const char *value, const char *where,
	       struct error *err);
// Lines "key = value"; '#' at the start of a line or after a blank begins a comment; a key that is not a list may stand once.
// `source` names the text in errors (file:line).
int config_read_text(const struct config_option *table, size_t n, void *target, const char *text, size_t n_bytes, const char *source,
		     struct error *err);
int config_read_file(const struct config_option *table, size_t n, void *target, const char *path, struct error *err);
// The same, but every line is read and every error added to *all. Returns the first one's -errno.
int config_check_file(const struct config_option *table, size_t n, void *target, const char *path, struct config_errors *all);
const struct config_option *config_find(const struct config_option *table, size_t n, const char *name);      // NULL: none
const char *config_nearest(const struct config_option *table, size_t n, const char *name);    // likely meant; NULL when none is near
bool config_is_same(const struct config_option *o, const void *a, const void *b);             // one setting of two targets
void config_swap(const struct config_option *o, void *a, void *b);                            // with who set it
// The value as a file would say it, cut to the room; a list's items with commas between.
void config_format(const struct config_option *o, const void *target, char *ret, size_t room);
void config_print_help(FILE *to, const struct config_option *table, size_t n);        // for --help
void config_print_example(FILE *to, const struct config_option *table, size_t n);     // commented etc/*.conf
void config_print_man(FILE *to, const struct config_option *table, size_t n);         // mdoc items for a manual page
