// SPDX-License-Identifier: Apache-2.0
// Two byte-level tokenizers and a sequence of one as the other reads it. Input: how many merges each has (4 bits of a byte) and the two
// sides of each, most tokens of the student, then the teacher's tokens. Where both meet they have read the same bytes.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/model/tokenizer.h"
#include "daemon/worker/bridge.h"
#include "tests/fuzz/fuzz.h"

#define MAX_MERGES 15
#define N_BYTES 256
#define MAX_TOKENS 64
#define MAX_WORD 24                    // symbols of a merged token

static void require(int ok)
{
	if (!ok)
		__builtin_trap();
}

struct bytes { const uint8_t *at, *end; };

static uint32_t next(struct bytes *b)
{
	return b->at < b->end ? *b->at++ : 0;
}

// A vocabulary being put together: each token's bytes.
struct words {
	uint32_t n, length[N_BYTES + MAX_MERGES];
	uint8_t bytes[N_BYTES + MAX_MERGES][MAX_WORD];
};

// As byte-level tokenizers write a byte: itself where it is printable, else a character from U+0100 on.
static void symbol_print(FILE *to, uint8_t byte)
{
	unsigned code = byte, n = 0;
	if (!((byte >= 33 && byte <= 126) || (byte >= 161 && byte != 173))) {
		for (unsigned b = 0; b < byte; b++)
			n += !((b >= 33 && b <= 126) || (b >= 161 && b != 173));
		code = 256 + n;
	}
	fprintf(to, "\\u%04x", code);
}

static void word_print(FILE *to, const struct words *w, uint32_t i)
{
	for (uint32_t k = 0; k < w->length[i]; k++)
		symbol_print(to, w->bytes[i][k]);
}

static bool merge_add(struct words *w, uint32_t left, uint32_t right)
{
	uint32_t length = w->length[left] + w->length[right];
	if (length > MAX_WORD)
		return false;
	memcpy(w->bytes[w->n], w->bytes[left], w->length[left]);
	memcpy(w->bytes[w->n] + w->length[left], w->bytes[right], w->length[right]);
	for (uint32_t i = 0; i < w->n; i++)
		if (w->length[i] == length && memcmp(w->bytes[i], w->bytes[w->n], length) == 0)
			return false;
	w->length[w->n++] = length;
	return true;
}

static struct tokenizer *tokenizer_make(struct words *w, struct bytes *in)
{
	uint32_t merges[MAX_MERGES][2], n_merges = 0, wanted = next(in) & 15;
	struct tokenizer *t = NULL;
	char *json = NULL;
	size_t size = 0;
	*w = (struct words){.n = N_BYTES};
	for (uint32_t i = 0; i < N_BYTES; i++) {
		w->length[i] = 1;
		w->bytes[i][0] = (uint8_t)i;
	}
	for (uint32_t i = 0; i < wanted; i++) {
		uint32_t left = next(in), right = next(in);
		left = left >= 240 ? N_BYTES + (left - 240) % (w->n - N_BYTES + 1) : left;     // a merged token, where there is one
		left = left < w->n ? left : 'a';
		if (merge_add(w, left, right)) {
			merges[n_merges][0] = left;
			merges[n_merges++][1] = right;
		}
	}
	FILE *to = open_memstream(&json, &size);
	require(to != NULL);
	fputs("{\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":false},"
	      "\"decoder\":{\"type\":\"ByteLevel\"},"
	      "\"added_tokens\":[{\"id\":0,\"content\":\"<end>\",\"special\":true,\"normalized\":false}],"
	      "\"model\":{\"type\":\"BPE\",\"vocab\":{\"<end>\":0", to);
	for (uint32_t i = 0; i < w->n; i++) {
		fputs(",\"", to);
		word_print(to, w, i);
		fprintf(to, "\":%u", i + 1);
	}
	fputs("},\"merges\":[", to);
	for (uint32_t i = 0; i < n_merges; i++) {
		fputs(i ? ",[\"" : "[\"", to);
		word_print(to, w, merges[i][0]);
		fputs("\",\"", to);
		word_print(to, w, merges[i][1]);
		fputs("\"]", to);
	}
	fputs("]}}", to);
	require(fclose(to) == 0 && tokenizer_open_json(json, size, &t, NULL) == 0);
	free(json);
	return t;
}

// The bytes of tokens first..last - 1; a special one is one byte. False: not plain ASCII, which alone is read without loss.
static bool bytes_of(const struct words *w, const uint32_t *tokens, uint32_t first, uint32_t last, uint8_t *to, size_t *ret_n)
{
	bool plain = true;
	*ret_n = 0;
	for (uint32_t i = first; i < last; i++) {
		uint32_t word = tokens[i] - 1, n = tokens[i] ? w->length[word] : 1;
		for (uint32_t k = 0; k < n; k++) {
			to[*ret_n] = tokens[i] ? w->bytes[word][k] : 255;
			plain = plain && (!tokens[i] || to[*ret_n] < 128);
			++*ret_n;
		}
	}
	return plain;
}

static void meetings_check(const struct words *teacher, const struct words *student, const uint32_t *tokens, uint32_t n,
			   const struct bridged *s)
{
	static uint8_t a[MAX_TOKENS * MAX_WORD], b[4 * MAX_TOKENS * MAX_WORD * MAX_WORD];
	for (uint32_t i = 0; i < s->n; i++)
		require(s->tokens[i] <= student->n && (i == 0 || s->ends[i] >= s->ends[i - 1]));
	for (uint32_t i = 0; i < s->n_boundaries; i++) {
		const struct align_boundary *at = &s->boundaries[i];
		size_t n_a, n_b;
		require(at->a < n && at->b < s->n && s->teacher_ends[at->a] == at->byte && s->ends[at->b] == at->byte);
		if (i == 0)
			continue;
		require(at[-1].a < at->a && at[-1].b < at->b && at[-1].byte < at->byte);
		bool plain = bytes_of(teacher, tokens, at[-1].a + 1, at->a + 1, a, &n_a);
		plain = bytes_of(student, s->tokens, at[-1].b + 1, at->b + 1, b, &n_b) && plain;
		require(!plain || (n_a == n_b && memcmp(a, b, n_a) == 0));
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct words teacher_words, student_words;
	struct bytes in = {data, data + size};
	struct tokenizer *teacher = tokenizer_make(&teacher_words, &in), *student = tokenizer_make(&student_words, &in);
	uint32_t tokens[MAX_TOKENS], n = 0, V = teacher_words.n + 1, most = 1 + next(&in);
	struct bridged s = {0};
	struct bridge b;
	require(bridge_open(&b, teacher, V, student, student_words.n + 1, NULL) == 0);
	require(b.n_matched >= N_BYTES + 1);           // the end of a text and every byte
	while (in.at < in.end && n < MAX_TOKENS) {
		uint32_t id = next(&in);
		tokens[n++] = id >= 224 ? N_BYTES + (id - 224) : id;           // some of them outside the vocabulary
	}
	bool inside = true;
	for (uint32_t i = 0; i < n; i++)
		inside = inside && tokens[i] < V;
	for (int round = 0; round < 2; round++) {      // what it held is used again
		require((bridge_sequence(&b, tokens, n, most, &s, NULL) == 0) == inside);
		require(s.n <= most);
		if (inside)
			meetings_check(&teacher_words, &student_words, tokens, n, &s);
	}
	bridged_done(&s);
	bridge_done(&b);
	tokenizer_close(teacher);
	tokenizer_close(student);
	return 0;
}
