// SPDX-License-Identifier: Apache-2.0
// What the tokenizer must know of Unicode: classes of characters as its patterns see them, UTF-8, and the data of NFC.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum unicode_class {
	UNICODE_OTHER,
	UNICODE_UPPER,              // \p{Lu} \p{Lt}
	UNICODE_LOWER,              // \p{Ll}
	UNICODE_CASELESS,           // \p{Lm} \p{Lo}
	UNICODE_MARK,               // \p{M}
	UNICODE_NUMBER,             // \p{Nd} \p{Nl}
	UNICODE_NUMBER_NOT_WORD,    // \p{No}: a number, yet not \w
	UNICODE_SPACE,              // \s: White_Space
	UNICODE_WORD,               // \w beyond letters, marks and numbers: connectors, joiners, circled letters
};

enum unicode_class unicode_class(uint32_t c);
static inline bool unicode_is_word(enum unicode_class class)
{
	return class != UNICODE_OTHER && class != UNICODE_NUMBER_NOT_WORD && class != UNICODE_SPACE;
}

// NFC data. combining: canonical combining class. unstable: may change under NFC or combine with what stands before it.
uint8_t unicode_combining_class(uint32_t c);
bool unicode_is_unstable(uint32_t c);
bool unicode_decompose(uint32_t c, uint32_t ret_parts[2]);       // one step; the second part is 0 when there is one only
uint32_t unicode_compose(uint32_t first, uint32_t second);       // 0 = they do not compose

// As BERT's normalizer and pre-tokenizer see a character (unicode_wordpiece.c).
bool unicode_is_punctuation(uint32_t c);       // \p{P}, and the symbols of ASCII
bool unicode_is_removed(uint32_t c);           // controls, formats, private use, U+FFFD
bool unicode_is_mark(uint32_t c);              // \p{Mn}
unsigned unicode_lower(uint32_t c, uint32_t ret_lower[2]);       // how many characters: 1, or 2 for U+0130

// UTF-8. unicode_utf8_length: bytes of the well-formed character at p (n >= 1 bytes left), or minus the length of the maximal
// ill-formed subsequence there (what one U+FFFD replaces, Unicode chapter 3.9).
int unicode_utf8_length(const uint8_t *p, size_t n);
unsigned unicode_utf8_encode(uint32_t c, char ret_bytes[4]);     // number of bytes

// The character at p, which must be well formed; *ret_n its bytes.
static inline uint32_t unicode_utf8_decode(const char *text, unsigned *ret_n)
{
	const uint8_t *p = (const uint8_t *)text;

	if (p[0] < 0x80) {
		*ret_n = 1;
		return p[0];
	}
	if (p[0] < 0xe0) {
		*ret_n = 2;
		return (p[0] & 0x1fu) << 6 | (p[1] & 0x3fu);
	}
	if (p[0] < 0xf0) {
		*ret_n = 3;
		return (p[0] & 0x0fu) << 12 | (p[1] & 0x3fu) << 6 | (p[2] & 0x3fu);
	}
	*ret_n = 4;
	return (p[0] & 0x07u) << 18 | (p[1] & 0x3fu) << 12 | (p[2] & 0x3fu) << 6 | (p[3] & 0x3fu);
}

// unicode_tables.c (generated). Flat rows of: class change (character << 4 | class) 1; combining (first, last, class) 3;
// unstable (first, last) 2; decompositions (character, part, part) 3; compositions 1: an index of a decomposition, ordered by parts.
extern const uint32_t unicode_class_changes[], unicode_combining[], unicode_unstable[], unicode_decompositions[];
extern const uint16_t unicode_compositions[];
// unicode_wordpiece.c (generated): ranges (first, last), and for lower case (first, last, difference, step).
extern const uint32_t unicode_punctuation[], unicode_removed[], unicode_marks[], unicode_lower_runs[];
extern const size_t unicode_punctuation_n, unicode_removed_n, unicode_marks_n, unicode_lower_runs_n;
extern const size_t unicode_class_changes_n, unicode_combining_n, unicode_unstable_n, unicode_decompositions_n, unicode_compositions_n;
