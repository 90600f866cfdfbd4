// SPDX-License-Identifier: Apache-2.0
// A tokenizer wherever it lies: beside or inside a model, or alone.
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "common/error.h"
#include "daemon/model/gguf.h"
#include "daemon/model/input.h"
#include "daemon/model/tokenizer.h"

#define MAX_TOKENIZER (128u << 20)       // tokenizer.json: 17 MiB for a vocabulary of 128,000
#define MAX_CONFIG (16u << 20)           // tokenizer_config.json: 1.2 MiB where it lists 6,000 tokens
#define NAME "tokenizer.json"

// Beside a file of that name; there may be none.
static int read_config(const char *path, struct tokenizer *t, struct error *err)
{
	size_t n_path = strlen(path), n_name = strlen(NAME), n = 0;
	char *text = NULL, *beside = NULL;
	struct stat st;
	if (n_path < n_name || strcmp(path + n_path - n_name, NAME) != 0 || (n_path > n_name && path[n_path - n_name - 1] != '/'))
		return 0;
	if (asprintf(&beside, "%.*stokenizer_config.json", (int)(n_path - n_name), path) < 0)
		return error_set(err, ERROR_MEMORY, NULL, "out of memory");
	int r = stat(beside, &st) < 0 && errno == ENOENT ? -ENOENT : input_read_file(beside, MAX_CONFIG, &text, &n, err);
	if (r == 0)
		r = tokenizer_read_ends(t, text, n, err);
	else if (r == -ENOENT)
		r = 0;
	free(text);
	free(beside);
	return r;
}

static int open_json(const char *path, struct tokenizer **ret, struct error *err)
{
	struct tokenizer *t = NULL;
	char *text = NULL;
	size_t n = 0;
	int r = input_read_file(path, MAX_TOKENIZER, &text, &n, err);
	r = r ? r : tokenizer_open_json(text, n, &t, err);
	r = r ? r : read_config(path, t, err);
	free(text);
	if (r)
		tokenizer_close(t);
	else
		*ret = t;
	return r;
}

static int open_gguf(const char *path, struct tokenizer **ret, struct error *err)
{
	struct gguf *file = NULL;
	int r = gguf_open(path, &file, err);
	r = r ? r : tokenizer_open_gguf(file, ret, err);
	gguf_close(file);
	return r;
}

static bool is_gguf(const char *path)
{
	char magic[4] = "";
	FILE *f = fopen(path, "re");
	size_t n = f ? fread(magic, 1, sizeof magic, f) : 0;
	if (f)
		fclose(f);
	return n == sizeof magic && memcmp(magic, "GGUF", sizeof magic) == 0;
}

int tokenizer_open_path(const char *path, struct tokenizer **ret, struct error *err)
{
	struct stat st;
	char *inside = NULL;
	if (stat(path, &st) < 0 || !S_ISDIR(st.st_mode))
		return is_gguf(path) ? open_gguf(path, ret, err) : open_json(path, ret, err);
	if (asprintf(&inside, "%s/" NAME, path) < 0)
		return error_set(err, ERROR_MEMORY, NULL, "out of memory");
	int r = open_json(inside, ret, err);
	free(inside);
	return r;
}
