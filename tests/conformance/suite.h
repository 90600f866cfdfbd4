// SPDX-License-Identifier: Apache-2.0
// Reads the files of the conformance suite (README) and the dumps of the manual. A fault of the suite itself ends the program.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SUITE_MAX_LINES 32

struct suite_case {
	char name[64], kind[16];
	bool accept;
	char code[24];                          // of a refusal
	uint8_t *bytes;
	size_t n;
	char *lines[SUITE_MAX_LINES];           // what an accepting reader must find: "name words"
	size_t n_lines;
};

struct suite { struct suite_case *cases; size_t n; };

struct suite suite_load(const char *path);                                // below $srcdir
void suite_done(struct suite *s);
const struct suite_case *suite_find(const struct suite *s, const char *name);    // NULL: none
const char *suite_words(const struct suite_case *c, const char *name);    // the rest of the first line of that name; NULL: none
size_t suite_hex(const char *hex, uint8_t *to, size_t room);              // how many bytes

// The next number of *words, in the base; false at the end.
bool suite_next(const char **words, int base, uint32_t *ret);

// The n-th dump of a manual page, from 0; returns its size, 0 = there is none.
size_t manual_dump(const char *path, size_t n, uint8_t *to, size_t room);

// Counts failures and says which case and why.
void suite_fail(const struct suite_case *c, const char *format, ...) __attribute__((format(printf, 2, 3)));
int suite_result(size_t n_cases);                                         // the exit status of main
