// SPDX-License-Identifier: Apache-2.0
// Reads JSON where it lies, value by value, with a sticky error as cursor.h: a parser is a straight list of reads and one check at the
// end. For texts of millions of numbers, of which a tree would take eighty times the room. The text ends with a NUL behind `end`.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct pull {
	const char *begin, *at, *end;
	bool first;                  // nothing of the list just opened has been read
	bool failed;                 // nothing more is read
	const char *what;            // was wrong; a literal
};

struct pull pull_init(const char *text, size_t n);
void pull_fail(struct pull *t, const char *what);
// Lists and objects: open, then next until it is false (then it is closed, or the text has failed).
void pull_open(struct pull *t, char bracket);                              // '[' or '{'
bool pull_next(struct pull *t);                                            // a value follows
bool pull_next_member(struct pull *t, char *ret_name, size_t size);        // a name cut to size - 1; its value follows
uint64_t pull_u64(struct pull *t, uint64_t max);
int64_t pull_i64(struct pull *t);                                          // of at most 18 digits
float pull_f32(struct pull *t);                                            // the nearest float; too large is infinity
bool pull_bool(struct pull *t);
bool pull_null(struct pull *t);                                            // true: there was a null, now read
size_t pull_string(struct pull *t, char *ret_text, size_t size);           // plain ASCII; fails when longer than size - 1
const char *pull_string_view(struct pull *t, size_t *ret_n);               // the same in place; NULL when failed
void pull_skip(struct pull *t);                                            // any value, at most PULL_DEPTH deep
void pull_end(struct pull *t);                                             // fails unless only white space is left
#define PULL_DEPTH 32

// A list of n numbers exactly; `absent` for null, where a null may stand (absent not 0).
void pull_f32_list(struct pull *t, float *to, size_t n, float absent);
struct pull_ids { uint32_t *ids; size_t n, capacity; };                         // zero-initialise; free ids
void pull_append_id(struct pull *t, struct pull_ids *to, uint32_t id);          // nothing after a failure
void pull_id_list(struct pull *t, struct pull_ids *to, size_t max);        // appends all of a list; fails over max in total
