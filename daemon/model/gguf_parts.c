// SPDX-License-Identifier: Apache-2.0
// A model in several files, as llama.cpp's gguf-split writes them: each says which part of how many it is (split.no, from 0, and
// split.count), the first has the metadata as well, and how many tensors all have together (split.tensors.count). Their names differ in
// their numbers alone.
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/error.h"
#include "common/text.h"
#include "daemon/model/gguf_internal.h"

#define MAX_PARTS 1024           // a file stays open for each; published models have under 100
#define ENDING_BYTES 64

struct split { unsigned count, n_tensors; };

static const char *ending(char text[ENDING_BYTES], unsigned no, unsigned count)
{
	snprintf(text, ENDING_BYTES, "-%05u-of-%05u.gguf", no + 1, count);
	return text;
}

static int read_number(const struct gguf *f, const char *key, unsigned most, unsigned *ret, struct error *err)
{
	uint64_t v = 0;
	int r = gguf_get_u64(f, key, &v, err);
	if (r == -ENOENT)
		return error_set(err, ERROR_INVALID, key, "%s: a part of a model without key %s", f->input.name, key);
	if (r == 0 && v > most)
		return error_set(err, ERROR_TOO_LARGE, key, "%s: %s is %llu (supported: at most %u)", f->input.name, key,
				 (unsigned long long)v, most);
	*ret = (unsigned)v;
	return r;
}

static int expect(const struct gguf *part, const char *key, unsigned want, struct error *err)
{
	unsigned have = 0;
	int r = read_number(part, key, UINT_MAX, &have, err);
	if (r < 0 || have == want)
		return r;
	return error_set(err, ERROR_INVALID, key, "%s: %s is %u; by its name and the first part it must be %u", part->input.name, key,
			 have, want);
}

// Tensors and the open file of `part` become the first's.
static int take(struct gguf *first, struct gguf *part, struct error *err)
{
	size_t n = first->n_tensors + part->n_tensors;
	if (n > GGUF_MAX_TENSORS)
		return error_set(err, ERROR_TOO_LARGE, part->input.name, "%s: with it the model has %zu tensors (supported: %d)",
				 part->input.name, n, GGUF_MAX_TENSORS);
	struct gguf_tensor *grown = realloc(first->tensors, (n + 1) * sizeof *grown);
	if (!grown)
		return error_set(err, ERROR_MEMORY, part->input.name, "no memory for %zu tensors", n);
	first->tensors = grown;
	struct input *input = &first->others[first->n_others++];
	*input = part->input;
	part->input.fd = -1;
	for (size_t i = 0; i < part->n_tensors; i++) {
		grown[first->n_tensors] = part->tensors[i];
		grown[first->n_tensors++].input = input;
	}
	return 0;
}

static int add_part(struct gguf *first, const char *path, unsigned no, const struct split *split, struct error *err)
{
	struct gguf *part = NULL;
	int r = gguf_open_alone(path, &part, err);
	if (r == -ENOENT)
		return error_set(err, ERROR_NOT_FOUND, first->input.name, "part %u of %u of the model is missing: there is no %s", no + 1,
				 split->count, path);
	if (r == 0 && (r = expect(part, "split.no", no, err)) == 0 && (r = expect(part, "split.count", split->count, err)) == 0 &&
	    (r = expect(part, "split.tensors.count", split->n_tensors, err)) == 0)
		r = take(first, part, err);
	gguf_close(part);
	return r;
}

// What `path` has before its number, checked: a file that says it is a part is named as one, and is the first.
static int find_stem(const struct gguf *file, const char *path, const struct split *split, size_t *ret_n, struct error *err)
{
	char own[ENDING_BYTES], first[ENDING_BYTES];
	const char *name = file->input.name;
	unsigned no = 0, count = split->count;
	int r = read_number(file, "split.no", count - 1, &no, err);
	if (r < 0)
		return r;
	if (!text_ends(path, ending(own, no, count)))
		return error_set(err, ERROR_INVALID, "split.no", "%s is part %u of %u of a model: its name must end in %s, as its maker "
				 "named it, and the others' alike", name, no + 1, count, own);
	*ret_n = strlen(path) - strlen(own);
	if (no > 0)
		return error_set(err, ERROR_INVALID, "split.no", "%s is part %u of %u of a model: open the first, %.*s%s", name, no + 1,
				 count, (int)*ret_n, path, ending(first, 0, count));
	return 0;
}

static int read_split(const struct gguf *file, const char *path, struct split *ret, struct error *err)
{
	int r = gguf_entry(file, "split.count") ? read_number(file, "split.count", MAX_PARTS, &ret->count, err) : 0;
	if (r < 0 || ret->count < 2)
		return r;
	if (!path)
		return error_set(err, ERROR_UNSUPPORTED, "split.count", "%s: one of %u parts of a model, not in a folder with the others",
				 file->input.name, ret->count);
	return read_number(file, "split.tensors.count", GGUF_MAX_TENSORS, &ret->n_tensors, err);
}

int gguf_join_parts(struct gguf *file, const char *path, struct error *err)
{
	struct split split = {.count = 1};
	size_t n_stem = 0;
	int r = read_split(file, path, &split, err);
	if (r < 0 || split.count < 2 || (r = find_stem(file, path, &split, &n_stem, err)) < 0)
		return r;
	file->others = calloc(split.count, sizeof *file->others);
	char *part = malloc(n_stem + ENDING_BYTES);
	r = file->others && part ? 0 : error_set(err, ERROR_MEMORY, path, "no memory for %u parts", split.count);
	for (unsigned no = 1; r == 0 && no < split.count; no++) {
		memcpy(part, path, n_stem);
		ending(part + n_stem, no, split.count);
		r = add_part(file, part, no, &split, err);
	}
	free(part);
	if (r < 0)
		return r;
	if (file->n_tensors != split.n_tensors)
		return error_set(err, ERROR_INVALID, "split.tensors.count", "%s: the %u parts have %zu tensors, split.tensors.count is %u",
				 file->input.name, split.count, file->n_tensors, split.n_tensors);
	return gguf_sort_tensors(file, err);
}
