// SPDX-License-Identifier: Apache-2.0
// Cuts text into the pieces that are merged separately: a chain of steps, each cutting the pieces of the one before. The patterns of
// the well-known families have matchers of their own (one pass, Unicode 16 as in the reference); any other pattern runs in PCRE2.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct error;

#define PRETOKENIZER_MAX_STEPS 16
#define PRETOKENIZER_MAX_PATTERN 4096

#define PATTERN_GPT2 "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"
#define PATTERN_CL100K(digits) "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|" digits \
	"| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define PATTERN_LLAMA3 PATTERN_CL100K("\\p{N}{1,3}")
#define PATTERN_QWEN2 PATTERN_CL100K("\\p{N}")
// Words end where small letters are followed by a capital.
#define PATTERN_CASED(contraction, digits) \
	"[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]+" contraction \
	"|[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]+[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]*" contraction \
	"|" digits "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define PATTERN_O200K PATTERN_CASED("(?i:'s|'t|'re|'ve|'m|'ll|'d)?", "\\p{N}{1,3}")
#define PATTERN_TEKKEN PATTERN_CASED("", "\\p{N}")

enum pretokenizer_kind {
	PRETOKENIZER_DIGIT,     // each number character alone
	PRETOKENIZER_DIGITS,    // runs of them
	PRETOKENIZER_GPT2,
	PRETOKENIZER_LLAMA3,
	PRETOKENIZER_QWEN2,
	PRETOKENIZER_O200K,
	PRETOKENIZER_TEKKEN,
	PRETOKENIZER_REGEX,
};

struct pretokenizer_step {
	enum pretokenizer_kind kind;
	char *pattern;          // as in the file; NULL for digits
	void *code;             // compiled, PRETOKENIZER_REGEX only
};

struct pretokenizer {
	struct pretokenizer_step steps[PRETOKENIZER_MAX_STEPS];
	unsigned n_steps;
};

int pretokenizer_append(struct pretokenizer *p, enum pretokenizer_kind kind, struct error *err);    // DIGIT or DIGITS
// A pattern whose matches, and what lies between them, are the pieces. A known pattern gets its matcher unless `plain`.
int pretokenizer_append_pattern(struct pretokenizer *p, const char *pattern, size_t n, bool plain, struct error *err);
void pretokenizer_done(struct pretokenizer *p);

// Walks the pieces of one text, in order. The text (well-formed UTF-8) must outlive the walk.
struct pretokenizer_walk {
	const struct pretokenizer *pretokenizer;
	const char *text;
	// match_*: found by REGEX, not yet given
	struct { size_t first, at, end, match_begin, match_end; } level[PRETOKENIZER_MAX_STEPS];
	unsigned depth;
	void *match_data, *match_context;
};

int pretokenizer_walk_init(struct pretokenizer_walk *w, const struct pretokenizer *p, struct error *err);
void pretokenizer_walk_done(struct pretokenizer_walk *w);
void pretokenizer_start(struct pretokenizer_walk *w, const char *text, size_t n);
// 1 and the bytes of the next piece, 0 at the end, -errno when a pattern needs more work than its bound.
int pretokenizer_next(struct pretokenizer_walk *w, size_t *ret_begin, size_t *ret_end, struct error *err);

// The matchers: end of the piece that begins at `at` < n.
size_t pattern_gpt2_next(const char *text, size_t n, size_t at);
size_t pattern_cl100k_next(const char *text, size_t n, size_t at, unsigned max_digits);
size_t pattern_cased_next(const char *text, size_t n, size_t at, bool contractions, unsigned max_digits);
size_t pattern_digits_next(const char *text, size_t n, size_t at, bool each);
