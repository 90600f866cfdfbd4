// SPDX-License-Identifier: Apache-2.0
// Look-ups in the generated Unicode tables (binary searches, ASCII first) and UTF-8.
#include "daemon/model/unicode.h"

#define HANGUL_SYLLABLES 0xac00u
#define HANGUL_LEADS 0x1100u
#define HANGUL_VOWELS 0x1161u
#define HANGUL_TRAILS 0x11a7u    // one before the first: index 0 means none
#define N_LEADS 19u
#define N_VOWELS 21u
#define N_TRAILS 28u

// The last of n rows whose first number is <= key; n when there is none.
static size_t row_find(const uint32_t *rows, size_t n, size_t width, uint32_t key)
{
	size_t low = 0, high = n;

	while (low < high) {
		size_t middle = low + (high - low) / 2;

		if (rows[middle * width] <= key)
			low = middle + 1;
		else
			high = middle;
	}
	return low ? low - 1 : n;
}

enum unicode_class unicode_class(uint32_t c)
{
	if (c < 0x80) {
		if ((c | 0x20) - 'a' < 26)
			return c & 0x20 ? UNICODE_LOWER : UNICODE_UPPER;
		if (c == ' ' || c - '\t' < 5)
			return UNICODE_SPACE;
		if (c - '0' < 10)
			return UNICODE_NUMBER;
		return c == '_' ? UNICODE_WORD : UNICODE_OTHER;
	}
	return unicode_class_changes[row_find(unicode_class_changes, unicode_class_changes_n, 1, c << 4 | 15)] & 15;
}

uint8_t unicode_combining_class(uint32_t c)
{
	if (c < 0x300)
		return 0;
	size_t i = row_find(unicode_combining, unicode_combining_n, 3, c);

	return i < unicode_combining_n && c <= unicode_combining[3 * i + 1] ? unicode_combining[3 * i + 2] : 0;
}

bool unicode_is_unstable(uint32_t c)
{
	if (c < 0x300)
		return false;
	size_t i = row_find(unicode_unstable, unicode_unstable_n, 2, c);

	return i < unicode_unstable_n && c <= unicode_unstable[2 * i + 1];
}

static bool in_ranges(const uint32_t *ranges, size_t n, uint32_t c)
{
	size_t i = row_find(ranges, n, 2, c);

	return i < n && c <= ranges[2 * i + 1];
}

bool unicode_is_punctuation(uint32_t c)
{
	return in_ranges(unicode_punctuation, unicode_punctuation_n, c);
}

bool unicode_is_removed(uint32_t c)
{
	return in_ranges(unicode_removed, unicode_removed_n, c);
}

bool unicode_is_mark(uint32_t c)
{
	return c >= 0x300 && in_ranges(unicode_marks, unicode_marks_n, c);
}

unsigned unicode_lower(uint32_t c, uint32_t ret_lower[2])
{
	size_t i = row_find(unicode_lower_runs, unicode_lower_runs_n, 4, c);
	const uint32_t *run = unicode_lower_runs + 4 * i;

	ret_lower[0] = c;
	ret_lower[1] = 0x307;
	if (c == 0x130) {
		ret_lower[0] = 'i';
		return 2;
	}
	if (i < unicode_lower_runs_n && c <= run[1] && (c - run[0]) % run[3] == 0)
		ret_lower[0] = c + run[2];
	return 1;
}

bool unicode_decompose(uint32_t c, uint32_t ret_parts[2])
{
	uint32_t syllable = c - HANGUL_SYLLABLES;

	if (c < 0xc0)
		return false;
	if (syllable < N_LEADS * N_VOWELS * N_TRAILS) {
		uint32_t trail = syllable % N_TRAILS;

		ret_parts[0] = trail ? c - trail : HANGUL_LEADS + syllable / (N_VOWELS * N_TRAILS);
		ret_parts[1] = trail ? HANGUL_TRAILS + trail : HANGUL_VOWELS + syllable / N_TRAILS % N_VOWELS;
		return true;
	}
	size_t i = row_find(unicode_decompositions, unicode_decompositions_n, 3, c);

	if (i == unicode_decompositions_n || unicode_decompositions[3 * i] != c)
		return false;
	ret_parts[0] = unicode_decompositions[3 * i + 1];
	ret_parts[1] = unicode_decompositions[3 * i + 2];
	return true;
}

uint32_t unicode_compose(uint32_t first, uint32_t second)
{
	size_t low = 0, high = unicode_compositions_n;
	uint32_t syllable = first - HANGUL_SYLLABLES;

	if (first - HANGUL_LEADS < N_LEADS && second - HANGUL_VOWELS < N_VOWELS)
		return HANGUL_SYLLABLES + ((first - HANGUL_LEADS) * N_VOWELS + (second - HANGUL_VOWELS)) * N_TRAILS;
	if (syllable < N_LEADS * N_VOWELS * N_TRAILS && syllable % N_TRAILS == 0 && second - HANGUL_TRAILS - 1 < N_TRAILS - 1)
		return first + (second - HANGUL_TRAILS);
	while (low < high) {
		size_t middle = low + (high - low) / 2;
		const uint32_t *row = unicode_decompositions + 3 * (size_t)unicode_compositions[middle];

		if (row[1] == first && row[2] == second)
			return row[0];
		if (row[1] < first || (row[1] == first && row[2] < second))
			low = middle + 1;
		else
			high = middle;
	}
	return 0;
}

int unicode_utf8_length(const uint8_t *p, size_t n)
{
	uint8_t low = 0x80, high = 0xbf;    // bounds of the second byte
	int length;

	if (p[0] < 0x80)
		return 1;
	if (p[0] < 0xc2 || p[0] > 0xf4)
		return -1;
	length = p[0] < 0xe0 ? 2 : p[0] < 0xf0 ? 3 : 4;
	switch (p[0]) {
	case 0xe0: low = 0xa0; break;       // overlong
	case 0xed: high = 0x9f; break;      // surrogates
	case 0xf0: low = 0x90; break;       // overlong
	case 0xf4: high = 0x8f; break;      // past U+10FFFF
	}
	for (int i = 1; i < length; i++) {
		if ((size_t)i >= n || p[i] < low || p[i] > high)
			return -i;
		low = 0x80;
		high = 0xbf;
	}
	return length;
}

unsigned unicode_utf8_encode(uint32_t c, char ret_bytes[4])
{
	unsigned n = c < 0x80 ? 1 : c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
	static const uint8_t lead[] = { 0, 0, 0xc0, 0xe0, 0xf0 };

	for (unsigned i = n - 1; i > 0; i--, c >>= 6)
		ret_bytes[i] = (char)(0x80 | (c & 0x3f));
	ret_bytes[0] = (char)(lead[n] | c);
	return n;
}
