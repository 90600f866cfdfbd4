// SPDX-License-Identifier: Apache-2.0
// safetensors: one JSON header, then the tensors' bytes without a gap. The header is small and bounded; data offsets must tile the rest
// of the file exactly, so no byte is shared, skipped or invented. Several files are one set when an index says so.
#include "daemon/model/safetensors.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/error.h"
#include "daemon/model/document.h"
#include "daemon/model/input.h"

#define MAX_HEADER (16u << 20)
#define MAX_TENSORS 65536
#define MAX_VALUES (MAX_TENSORS * 16)      // an entry is an object of 3 with two short lists
#define MAX_SHARDS 1024

struct entry {
	char *name;
	char dtype[16];                    // as the file calls it
	struct tensor tensor;              // data NULL; n_dims may exceed TENSOR_MAX_DIMS: refused when asked for
	uint64_t offset;                   // within the data, later within the file
	uint32_t input;
};

struct safetensors {
	struct input inputs[MAX_SHARDS];
	size_t n_inputs;
	struct entry *entries;             // sorted by name once open
	size_t n_entries;
};

static const struct { const char *name; uint8_t bytes; int dtype; } dtypes[] = {
	{"F32", 4, DTYPE_F32}, {"F16", 2, DTYPE_F16}, {"BF16", 2, DTYPE_BF16}, {"F64", 8, -1}, {"I64", 8, -1}, {"U64", 8, -1},
	{"I32", 4, -1}, {"U32", 4, -1}, {"I16", 2, -1}, {"U16", 2, -1}, {"I8", 1, -1}, {"U8", 1, -1}, {"BOOL", 1, -1}, {"F8_E4M3", 1, -1},
	{"F8_E5M2", 1, -1},
};
#define N_KNOWN (sizeof dtypes / sizeof *dtypes)

static size_t dtype_index(const char *name)
{
	size_t i = 0;
	while (i < N_KNOWN && strcmp(dtypes[i].name, name) != 0)
		i++;
	return i;
}

#define BAD(in, e, format, ...) \
	error_set(err, ERROR_INVALID, (e)->name, "%s: tensor %s: " format, (in)->name, (e)->name, __VA_ARGS__)

// A list of non-negative integers; at most `max` are kept, all are checked and counted.
static int read_integers(const json_t *list, uint64_t *ret, size_t max, size_t *ret_n)
{
	if (!json_is_array(list))
		return -EINVAL;
	for (size_t i = 0; i < json_array_size(list); i++) {
		const json_t *v = json_array_get(list, i);
		if (!json_is_integer(v) || json_integer_value(v) < 0)
			return -EINVAL;
		if (i < max)
			ret[i] = (uint64_t)json_integer_value(v);
	}
	*ret_n = json_array_size(list);
	return 0;
}

static int read_shape(const struct input *in, const json_t *shape, struct entry *e, struct error *err)
{
	uint64_t bytes = e->tensor.n_bytes, want = 1;
	size_t n, known = dtype_index(e->dtype);
	if (read_integers(shape, e->tensor.dims, TENSOR_MAX_DIMS, &n) < 0)
		return BAD(in, e, "shape must be a list of integers of at least %d", 0);
	e->tensor.n_dims = (uint32_t)n;
	if (known == N_KNOWN || n > TENSOR_MAX_DIMS)      // refused when asked for; its extent is still checked against the others
		return 0;
	want = dtypes[known].bytes;
	for (size_t i = 0; i < n; i++)
		if (__builtin_mul_overflow(want, e->tensor.dims[i], &want))
			return BAD(in, e, "shape of %s overflows", e->dtype);
	if (want != bytes)
		return BAD(in, e, "shape and dtype make %llu bytes, data_offsets %llu", (unsigned long long)want,
			(unsigned long long)bytes);
	e->tensor.dtype = dtypes[known].dtype < 0 ? N_DTYPES : (enum dtype)dtypes[known].dtype;
	return 0;
}

static int read_entry(const struct input *in, uint64_t data_bytes, const char *name, const json_t *v, struct entry *e, struct error *err)
{
	const char *dtype = NULL;
	uint64_t offsets[2];
	size_t n;
	e->name = strdup(name);
	if (!e->name)
		return error_set(err, ERROR_MEMORY, in->name, "no memory");
	e->tensor.dtype = N_DTYPES;
	if (!json_is_object(v) || json_object_size(v) != 3 || document_string(v, in->name, "dtype", &dtype, NULL) < 0)
		return BAD(in, e, "must have dtype, shape and data_offsets, and nothing %s", "else");
	snprintf(e->dtype, sizeof e->dtype, "%s", dtype);
	if (read_integers(json_object_get(v, "data_offsets"), offsets, 2, &n) < 0 || n != 2 || offsets[0] > offsets[1])
		return BAD(in, e, "data_offsets must be two integers, begin and %s", "end");
	if (offsets[1] > data_bytes)
		return BAD(in, e, "ends at %llu of %llu bytes of data", (unsigned long long)offsets[1], (unsigned long long)data_bytes);
	e->offset = offsets[0];
	e->tensor.n_bytes = (size_t)(offsets[1] - offsets[0]);
	return read_shape(in, json_object_get(v, "shape"), e, err);
}

static int compare_offsets(const void *a, const void *b)
{
	const struct entry *x = a, *y = b;
	if (x->offset != y->offset)
		return x->offset > y->offset ? 1 : -1;
	return (x->tensor.n_bytes > y->tensor.n_bytes) - (x->tensor.n_bytes < y->tensor.n_bytes);      // empty ones first
}

static int compare_names(const void *a, const void *b)
{
	return strcmp(((const struct entry *)a)->name, ((const struct entry *)b)->name);
}

// begin == the previous end, and the last end is the file's: then offsets become places in the file.
static int check_tiling(const struct input *in, uint64_t base, struct entry *e, size_t n, struct error *err)
{
	uint64_t end = 0;
	qsort(e, n, sizeof *e, compare_offsets);
	for (size_t i = 0; i < n; i++) {
		if (e[i].offset != end)
			return BAD(in, &e[i], "begins at %llu where the previous ends at %llu", (unsigned long long)e[i].offset,
				   (unsigned long long)end);
		end += e[i].tensor.n_bytes;
		e[i].offset += base;
	}
	if (end != in->size - base)
		return error_set(err, ERROR_INVALID, in->name, "%s: %llu bytes after the last tensor", in->name,
				 (unsigned long long)(in->size - base - end));
	return 0;
}

static int check_metadata(const struct input *in, const json_t *metadata, struct error *err)
{
	const char *key;
	json_t *v;
	bool good = !metadata || json_is_object(metadata);
	if (metadata && good)
		json_object_foreach((json_t *)(uintptr_t)metadata, key, v)
			good = good && json_is_string(v);
	return good ? 0 : error_set(err, ERROR_INVALID, in->name, "%s: __metadata__ must map strings to strings", in->name);
}

static int read_entries(struct safetensors *s, uint64_t base, json_t *header, struct error *err)
{
	const struct input *in = &s->inputs[s->n_inputs - 1];
	size_t n = json_object_size(header), first = s->n_entries;
	const char *name;
	json_t *v;
	int r = check_metadata(in, json_object_get(header, "__metadata__"), err);
	if (r < 0)
		return r;
	if (n > MAX_TENSORS || first + n > MAX_TENSORS)
		return error_set(err, ERROR_TOO_LARGE, in->name, "%s: more than %d tensors", in->name, MAX_TENSORS);
	struct entry *grown = realloc(s->entries, (first + n + 1) * sizeof *grown);
	if (!grown)
		return error_set(err, ERROR_MEMORY, in->name, "no memory for %zu tensors", n);
	s->entries = grown;
	json_object_foreach(header, name, v) {
		if (!strcmp(name, "__metadata__"))
			continue;
		struct entry *e = &s->entries[s->n_entries++];
		*e = (struct entry){.input = (uint32_t)(s->n_inputs - 1)};
		if ((r = read_entry(in, in->size - base, name, v, e, err)) < 0)
			return r;
	}
	return check_tiling(in, base, s->entries + first, s->n_entries - first, err);
}

// Reads the header of the input added last.
static int read_header(struct safetensors *s, struct error *err)
{
	const struct input *in = &s->inputs[s->n_inputs - 1];
	uint8_t length[8];
	uint64_t n = 0;
	if (in->size < sizeof length)
		return error_set(err, ERROR_INVALID, in->name, "%s is not a safetensors file: %llu bytes", in->name,
			(unsigned long long)in->size);
	int r = input_read(in, 0, length, sizeof length, err);
	if (r < 0)
		return r;
	for (int i = 0; i < 8; i++)
		n |= (uint64_t)length[i] << (8 * i);
	if (n < 2 || n > MAX_HEADER || n > in->size - sizeof length)
		return error_set(err, ERROR_INVALID, in->name,
				 "%s is not a safetensors file: a header of %llu bytes (at most %u, within the file)", in->name,
				 (unsigned long long)n, MAX_HEADER);
	char *text = malloc((size_t)n);
	if (!text)
		return error_set(err, ERROR_MEMORY, in->name, "no memory for the header of %s", in->name);
	json_t *header = NULL;
	r = input_read(in, sizeof length, text, (size_t)n, err);
	if (r == 0 && text[0] != '{')
		r = error_set(err, ERROR_INVALID, in->name, "%s: the header does not start with '{'", in->name);
	if (r == 0)
		r = document_parse(text, (size_t)n, in->name, MAX_VALUES, &header, err);
	if (r == 0)
		r = read_entries(s, n + sizeof length, header, err);
	json_decref(header);
	free(text);
	return r;
}

static int finish(struct safetensors *s, int r, struct safetensors **ret_file, struct error *err)
{
	if (r == 0 && s->n_entries)
		qsort(s->entries, s->n_entries, sizeof *s->entries, compare_names);
	for (size_t i = 1; r == 0 && i < s->n_entries; i++)
		if (!compare_names(&s->entries[i - 1], &s->entries[i]))
			r = BAD(&s->inputs[s->entries[i].input], &s->entries[i], "is also in %s", s->inputs[s->entries[i - 1].input].name);
	if (r < 0)
		safetensors_close(s);
	else
		*ret_file = s;
	return r;
}

int safetensors_open_bytes(const void *bytes, size_t n, struct safetensors **ret_file, struct error *err)
{
	struct safetensors *s = calloc(1, sizeof *s);
	if (!s)
		return error_set(err, ERROR_MEMORY, NULL, "no memory");
	input_open_bytes(&s->inputs[s->n_inputs++], bytes, n, "safetensors");
	return finish(s, read_header(s, err), ret_file, err);
}

static int add_file(struct safetensors *s, const char *path, struct error *err)
{
	int r = input_open(&s->inputs[s->n_inputs], path, err);
	if (r < 0)
		return r;
	s->n_inputs++;
	return read_header(s, err);
}

int safetensors_open(const char *path, struct safetensors **ret_file, struct error *err)
{
	struct safetensors *s = calloc(1, sizeof *s);
	if (!s)
		return error_set(err, ERROR_MEMORY, NULL, "no memory");
	return finish(s, add_file(s, path, err), ret_file, err);
}

// A shard is a file right beside the index: names that could leave the directory are refused.
static bool is_shard_name(const char *s)
{
	size_t n = strlen(s), end = strlen(".safetensors");
	return n > end && n < 128 && s[0] != '.' && !strchr(s, '/') && !strcmp(s + n - end, ".safetensors");
}

static int add_shard(struct safetensors *s, const char *directory, const char *name, struct error *err)
{
	char *path;
	for (size_t i = 0; i < s->n_inputs; i++)
		if (!strcmp(s->inputs[i].name, name))
			return 0;
	if (s->n_inputs == MAX_SHARDS)
		return error_set(err, ERROR_TOO_LARGE, directory, "more than %d safetensors files", MAX_SHARDS);
	if (asprintf(&path, "%s/%s", directory, name) < 0)
		return error_set(err, ERROR_MEMORY, directory, "no memory");
	int r = add_file(s, path, err);
	free(path);
	return r;
}

static int add_shards(struct safetensors *s, const char *directory, const json_t *map, struct error *err)
{
	const char *name;
	json_t *file;
	int r = 0;
	json_object_foreach((json_t *)(uintptr_t)map, name, file) {
		if (!json_is_string(file) || !is_shard_name(json_string_value(file)))
			return error_set(err, ERROR_INVALID, name,
				"index: tensor %s: not the name of a .safetensors file beside the index", name);
		if ((r = add_shard(s, directory, json_string_value(file), err)) < 0)
			return r;
	}
	size_t n_listed = json_object_size(map);
	for (size_t i = 0; i < s->n_entries; i++) {
		const struct entry *e = &s->entries[i];
		const char *listed = json_string_value(json_object_get(map, e->name));
		if (!listed || strcmp(listed, s->inputs[e->input].name) != 0)
			return BAD(&s->inputs[e->input], e, "the index %s", listed ? "places it in another file" : "does not list it");
	}
	if (s->n_entries != n_listed)
		return error_set(err, ERROR_INVALID, "weight_map", "the index lists %zu tensors, its files have %zu",
			n_listed, s->n_entries);
	return 0;
}

static int open_sharded(struct safetensors *s, const char *directory, const char *index, struct error *err)
{
	char *text = NULL;
	size_t n;
	json_t *document = NULL;
	int r = input_read_file(index, MAX_HEADER, &text, &n, err);
	if (r == 0)
		r = document_parse(text, n, "model.safetensors.index.json", MAX_VALUES, &document, err);
	if (r == 0 && !json_is_object(json_object_get(document, "weight_map")))
		r = error_set(err, ERROR_INVALID, "weight_map", "model.safetensors.index.json: weight_map must be an object");
	if (r == 0)
		r = add_shards(s, directory, json_object_get(document, "weight_map"), err);
	json_decref(document);
	free(text);
	return r;
}

// As transformers: the single file wins over an index.
int safetensors_open_directory(const char *path, struct safetensors **ret_file, struct error *err)
{
	char *single = NULL, *index = NULL;
	struct safetensors *s = calloc(1, sizeof *s);
	int r = s && asprintf(&single, "%s/model.safetensors", path) >= 0 && asprintf(&index, "%s/model.safetensors.index.json", path) >= 0
			? 0 : error_set(err, ERROR_MEMORY, path, "no memory");
	if (r == 0 && access(single, F_OK) == 0)
		r = add_file(s, single, err);
	else if (r == 0 && access(index, F_OK) == 0)
		r = open_sharded(s, path, index, err);
	else if (r == 0)
		r = error_set(err, ERROR_NOT_FOUND, path, "%s has neither model.safetensors nor model.safetensors.index.json", path);
	free(single);
	free(index);
	if (!s)
		return r;
	return finish(s, r, ret_file, err);
}

struct safetensors *safetensors_close(struct safetensors *file)
{
	if (!file)
		return NULL;
	for (size_t i = 0; i < file->n_inputs; i++)
		input_close(&file->inputs[i]);
	for (size_t i = 0; i < file->n_entries; i++)
		free(file->entries[i].name);
	free(file->entries);
	free(file);
	return NULL;
}

static int compare_name(const void *name, const void *entry)
{
	return strcmp(name, ((const struct entry *)entry)->name);
}

static int find_entry(const struct safetensors *s, const char *name, const struct entry **ret_entry, struct error *err)
{
	const struct entry *e = s->n_entries ? bsearch(name, s->entries, s->n_entries, sizeof *e, compare_name) : NULL;
	if (!e)
		return -ENOENT;
	if (e->tensor.dtype == N_DTYPES)
		return error_set(err, ERROR_UNSUPPORTED, name, "%s: tensor %s: dtype %s is not supported (supported: F32 F16 BF16)",
				 s->inputs[e->input].name, name, e->dtype);
	if (e->tensor.n_dims < 1 || e->tensor.n_dims > TENSOR_MAX_DIMS || e->tensor.n_bytes == 0)
		return error_set(err, ERROR_UNSUPPORTED, name, "%s: tensor %s is empty or has %u dimensions (supported: 1 to %d)",
				 s->inputs[e->input].name, name, e->tensor.n_dims, TENSOR_MAX_DIMS);
	*ret_entry = e;
	return 0;
}

int safetensors_find(const struct safetensors *file, const char *name, struct tensor *ret_tensor, struct error *err)
{
	const struct entry *e;
	int r = find_entry(file, name, &e, err);
	if (r == 0)
		*ret_tensor = e->tensor;
	return r;
}

int safetensors_read(const struct safetensors *file, const char *name, struct tensor *ret_tensor, struct error *err)
{
	const struct entry *e;
	int r = find_entry(file, name, &e, err);
	if (r < 0)
		return r;
	void *data = malloc(e->tensor.n_bytes);
	if (!data)
		return error_set(err, ERROR_MEMORY, name, "no memory for tensor %s (%zu bytes)", name, e->tensor.n_bytes);
	r = input_read(&file->inputs[e->input], e->offset, data, e->tensor.n_bytes, err);
	if (r < 0) {
		free(data);
		return r;
	}
	*ret_tensor = e->tensor;
	ret_tensor->data = data;
	return 0;
}

int safetensors_read_rows(const struct safetensors *file, const char *name, uint64_t first, uint64_t n, void *to, struct error *err)
{
	const struct entry *e;
	int r = find_entry(file, name, &e, err);
	return r < 0 ? r : input_read_rows(&file->inputs[e->input], &e->tensor, e->offset, first, n, to, err);
}

size_t safetensors_count(const struct safetensors *file)
{
	return file->n_entries;
}

const char *safetensors_name(const struct safetensors *file, size_t i)
{
	return file->entries[i].name;
}
