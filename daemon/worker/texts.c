// SPDX-License-Identifier: Apache-2.0
#include "daemon/worker/texts.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/error.h"
#include "daemon/log.h"
#include "daemon/model/document.h"
#include "daemon/model/packing.h"
#include "daemon/model/text_file.h"
#include "daemon/model/tokenizer.h"
#include "daemon/train/settings.h"
#include "daemon/worker/dataset.h"

#define TEXTS_LINE_MAX (16u << 20)         // bytes of a line of JSON: what is held in memory of a file
#define TEXTS_VALUES_MAX 4096              // values of a line of JSON: what a document may say of itself beside its text

struct texts {
	const struct run_settings *settings;
	const struct tokenizer *tokenizer;
	struct dataset *dataset;
	uint32_t *tokens;              // of the document in hand
	size_t n, capacity;
	uint64_t n_left_out;           // prompts without room for an answer
};

static int tokens_append(struct texts *x, const uint32_t *tokens, size_t n, struct error *err)
{
	if (x->capacity - x->n < n) {
		size_t capacity = 2 * x->capacity + n;         // of what fits in memory: cannot wrap
		uint32_t *more = reallocarray(x->tokens, capacity, sizeof *more);
		if (!more)
			return error_set(err, ERROR_MEMORY, "corpus", "out of memory for %zu tokens", capacity);
		x->tokens = more;
		x->capacity = capacity;
	}
	if (n)                         // of nothing, either may be NULL
		memcpy(x->tokens + x->n, tokens, n * sizeof *tokens);
	x->n += n;
	return 0;
}

static int document_end(struct texts *x, struct error *err)
{
	int r = x->settings->packing == RUN_PACKING_WRAPPED ? dataset_append(x->dataset, x->tokens, x->n, err)
		: dataset_append_document(x->dataset, x->tokens, x->n, err);
	x->n = 0;
	return r;
}

static int file_read(struct texts *x, const char *path, struct error *err)
{
	struct text_file *f = NULL;
	const uint32_t *tokens;
	size_t n;
	if (x->settings->packing == RUN_PACKING_WRAPPED)       // needs no second copy of the tokens
		return dataset_append_file(x->dataset, x->tokenizer, x->settings->corpus_specials, path, err);
	int r = text_file_open(path, x->tokenizer, x->settings->corpus_specials, &f, err);
	while (r == 0 && (r = text_file_next(f, &tokens, &n, err)) == 0)
		r = tokens_append(x, tokens, n, err);
	text_file_close(f);
	return r == -ENODATA ? document_end(x, err) : r;
}

static int text_read(struct texts *x, const char *text, struct tokens *tokens, struct error *err)
{
	size_t n = strlen(text);
	int32_t eos = tokenizer_eos(x->tokenizer);
	uint32_t end = (uint32_t)eos;
	int r = tokenizer_encode(x->tokenizer, text, n, x->settings->corpus_specials, false, 3 * n + 16, tokens, err);
	r = r ? r : tokens_append(x, tokens->ids, tokens->n, err);
	r = r || eos < 0 ? r : tokens_append(x, &end, 1, err);
	return r ? r : document_end(x, err);
}

// first: nothing stands before it.
static int words_append(struct texts *x, const char *text, bool first, struct tokens *tokens, struct error *err)
{
	size_t n = strlen(text);
	bool specials = x->settings->corpus_specials;
	int r = first ? tokenizer_encode(x->tokenizer, text, n, specials, false, 3 * n + 16, tokens, err)
		: tokenizer_encode_part(x->tokenizer, text, n, specials, 3 * n + 16, tokens, err);
	return r ? r : tokens_append(x, tokens->ids, tokens->n, err);
}

// A prompt and its answer. One that ended for its length alone has no end of text.
static int answer_read(struct texts *x, const json_t *object, const char *prompt, const char *text, const char *where,
		       struct tokens *tokens, struct error *err)
{
	int32_t eos = tokenizer_eos(x->tokenizer);
	uint32_t end = (uint32_t)eos;
	const char *finish = NULL;
	bool taken = false;
	int r = document_string(object, where, "finish", &finish, err);
	r = r == -ENOENT ? 0 : r;
	r = r ? r : words_append(x, prompt, true, tokens, err);
	size_t n_prompt = x->n;
	r = r ? r : words_append(x, text, !*prompt, tokens, err);
	r = r || eos < 0 || (finish && strcmp(finish, "length") == 0) ? r : tokens_append(x, &end, 1, err);
	r = r ? r : dataset_append_answer(x->dataset, x->tokens, x->n, n_prompt, &taken, err);
	x->n = 0;
	x->n_left_out += r == 0 && !taken;
	return r;
}

static int line_take(struct texts *x, const char *line, size_t n, const char *where, struct tokens *tokens, struct error *err)
{
	json_t *object = NULL;
	const char *text, *prompt = NULL;
	int r = document_parse(line, n, where, TEXTS_VALUES_MAX, &object, err);
	if (r)
		return r;
	r = document_string(object, where, x->settings->corpus_field, &text, err);
	if (r == -ENOENT)
		r = error_set(err, ERROR_INVALID, "corpus", "%s: has no \"%s\"", where, x->settings->corpus_field);
	if (r == 0 && x->settings->corpus_prompt) {
		r = document_string(object, where, x->settings->corpus_prompt, &prompt, err);
		if (r == -ENOENT)
			r = error_set(err, ERROR_INVALID, "corpus-prompt", "%s: has no \"%s\"", where, x->settings->corpus_prompt);
	}
	if (r == 0)
		r = prompt ? answer_read(x, object, prompt, text, where, tokens, err) : text_read(x, text, tokens, err);
	json_decref(object);
	return r;
}

// The next line, without its end. -ENODATA when there is none.
static int line_next(FILE *f, char **line, size_t *capacity, size_t *ret_n, const char *path, struct error *err)
{
	size_t n = 0;
	int c = getc_unlocked(f);
	if (c == EOF)
		return ferror(f) ? error_system(err, errno, "corpus", "cannot read %s", path) : -ENODATA;
	for (; c != EOF && c != '\n'; c = getc_unlocked(f)) {
		if (n == *capacity) {
			size_t more = *capacity ? 2 * *capacity : 4096;
			char *longer = n < TEXTS_LINE_MAX ? realloc(*line, more) : NULL;
			if (!longer)
				return error_set(err, n < TEXTS_LINE_MAX ? ERROR_MEMORY : ERROR_TOO_LARGE, "corpus",
						 "%s: a line of more than %zu bytes", path, n);
			*line = longer;
			*capacity = more;
		}
		(*line)[n++] = (char)c;
	}
	*ret_n = n;
	return ferror(f) ? error_system(err, errno, "corpus", "cannot read %s", path) : 0;
}

static int lines_read(struct texts *x, const char *path, struct error *err)
{
	FILE *f = fopen(path, "re");
	if (!f)
		return error_system(err, errno, "corpus", "cannot open %s", path);
	struct tokens tokens = {0};
	char *line = NULL, where[4096];
	size_t capacity = 0, n = 0;
	unsigned long long number = 0;
	int r;
	while ((r = line_next(f, &line, &capacity, &n, path, err)) == 0) {
		snprintf(where, sizeof where, "%s:%llu", path, ++number);
		bool blank = n == 0 || (n == 1 && *line == '\r');
		r = blank ? 0 : line_take(x, line, n, where, &tokens, err);
		if (r)
			break;
	}
	tokens_done(&tokens);
	free(line);
	fclose(f);
	return r == -ENODATA ? 0 : r;
}

static bool is_lines(const char *path)
{
	size_t n = strlen(path);
	return n >= 6 && strcmp(path + n - 6, ".jsonl") == 0;
}

int texts_read(const struct run_settings *s, const struct tokenizer *t, const struct dataset_options *options, struct dataset **ret,
	       struct error *err)
{
	struct dataset_options o = *options;
	uint32_t prefix = 0;
	int r = packing_prefix(t, &prefix, &o.n_prefix, err);
	if (r)
		return r;
	// BERT's template also puts a token after the text: that is the end-of-text one here
	if (s->mlm && tokenizer_bos(t) >= 0) {
		prefix = (uint32_t)tokenizer_bos(t);
		o.n_prefix = 1;
	}
	o.prefix = &prefix;
	if (o.n_prefix >= o.sequence_length - 1)
		return error_set(err, ERROR_INVALID, "sequence-length", "%u leaves no room beside the tokenizer's first token",
			o.sequence_length);
	r = dataset_new(&o, ret, err);
	if (r)
		return r;
	struct texts x = {.settings = s, .tokenizer = t, .dataset = *ret};
	for (size_t i = 0; r == 0 && i < s->corpus.n; i++) {
		r = is_lines(s->corpus.items[i]) ? lines_read(&x, s->corpus.items[i], err) : file_read(&x, s->corpus.items[i], err);
		r = r || !s->domains ? r : dataset_end_domain(*ret, err);
	}
	free(x.tokens);
	if (x.n_left_out)
		log_warning("%llu prompts are as long as sequence-length or longer, or their answers empty: left out",
			(unsigned long long)x.n_left_out);
	return r ? r : dataset_list(*ret, err);
}
