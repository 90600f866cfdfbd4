// SPDX-License-Identifier: Apache-2.0
// Opening a GGUF file and reading from it by key and tensor name. The metadata is read into memory once (its length is not written
// anywhere, so a piece is parsed and a larger one read when it ends too early); tensor bytes are read when asked for.
#include "daemon/model/gguf.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/cursor.h"
#include "common/error.h"
#include "daemon/model/gguf_internal.h"

#define FIRST_PIECE ((uint64_t)8 << 20)      // holds a vocabulary of 150,000
#define MAX_HEADER ((uint64_t)512 << 20)

static int read_piece(struct gguf *f, uint64_t n, struct error *err)
{
	free(f->buffer);
	f->header = f->buffer = malloc(n ? (size_t)n : 1);
	f->header_bytes = (size_t)n;
	if (!f->buffer)
		return error_set(err, ERROR_MEMORY, f->input.name, "no memory for the metadata of %s", f->input.name);
	return input_read(&f->input, 0, f->buffer, (size_t)n, err);
}

int gguf_open_alone(const char *path, struct gguf **ret_file, struct error *err)
{
	struct gguf *f = calloc(1, sizeof *f);
	if (!f)
		return error_set(err, ERROR_MEMORY, NULL, "no memory");
	int r = input_open(&f->input, path, err);
	for (uint64_t n = FIRST_PIECE; r == 0; n *= 4) {
		if ((r = read_piece(f, n < f->input.size ? n : f->input.size, err)) < 0)
			break;
		r = gguf_parse(f, err);
		if (r != -EAGAIN)
			break;
		gguf_parse_done(f);
		r = n < MAX_HEADER ? 0 : error_set(err, ERROR_TOO_LARGE, f->input.name, "%s: its metadata is larger than %llu MiB",
						   f->input.name, (unsigned long long)(n >> 20));
	}
	if (r < 0)
		gguf_close(f);
	else
		*ret_file = f;
	return r;
}

static int join(struct gguf *f, const char *path, struct gguf **ret_file, struct error *err)
{
	int r = gguf_join_parts(f, path, err);
	if (r < 0)
		gguf_close(f);
	else
		*ret_file = f;
	return r;
}

int gguf_open(const char *path, struct gguf **ret_file, struct error *err)
{
	struct gguf *f = NULL;
	int r = gguf_open_alone(path, &f, err);
	return r < 0 ? r : join(f, path, ret_file, err);
}

int gguf_open_bytes(const void *bytes, size_t n, struct gguf **ret_file, struct error *err)
{
	struct gguf *f = calloc(1, sizeof *f);
	if (!f)
		return error_set(err, ERROR_MEMORY, NULL, "no memory");
	input_open_bytes(&f->input, bytes, n, "gguf");
	f->header = bytes;
	f->header_bytes = n;
	int r = gguf_parse(f, err);
	if (r == 0)
		return join(f, NULL, ret_file, err);
	gguf_close(f);
	return r;
}

struct gguf *gguf_close(struct gguf *file)
{
	if (!file)
		return NULL;
	gguf_parse_done(file);
	free(file->buffer);
	input_close(&file->input);
	for (size_t i = 0; i < file->n_others; i++)
		input_close(&file->others[i]);
	free(file->others);
	free(file);
	return NULL;
}

static int wrong_type(const struct gguf *f, const char *key, const char *wanted, struct error *err)
{
	return error_set(err, ERROR_INVALID, key, "%s: key %s must be %s", f->input.name, key, wanted);
}

static bool is_integer(enum gguf_type t)
{
	return t != GGUF_F32 && t != GGUF_F64 && t != GGUF_BOOL && t != GGUF_STRING && t != GGUF_ARRAY;
}

static bool is_signed(enum gguf_type t)
{
	return t == GGUF_I8 || t == GGUF_I16 || t == GGUF_I32 || t == GGUF_I64;
}

// The i-th integer, sign-extended to 64 bits.
static uint64_t integer_at(const struct gguf_entry *e, uint64_t i)
{
	uint32_t bytes = gguf_type_bytes(e->type);
	uint64_t v = 0;
	for (uint32_t k = 0; k < bytes; k++)
		v |= (uint64_t)e->data[i * bytes + k] << (8 * k);
	if (is_signed(e->type) && bytes > 0 && bytes < 8 && v >> (8 * bytes - 1))
		v |= ~(uint64_t)0 << (8 * bytes);
	return v;
}

int gguf_get_u64(const struct gguf *file, const char *key, uint64_t *ret, struct error *err)
{
	const struct gguf_entry *e = gguf_entry(file, key);
	if (!e)
		return -ENOENT;
	if (e->array || !is_integer(e->type))
		return wrong_type(file, key, "an integer", err);
	uint64_t v = integer_at(e, 0);
	if (is_signed(e->type) && v >> 63)
		return wrong_type(file, key, "an integer of at least 0", err);
	*ret = v;
	return 0;
}

int gguf_get_f64(const struct gguf *file, const char *key, double *ret, struct error *err)
{
	const struct gguf_entry *e = gguf_entry(file, key);
	if (!e)
		return -ENOENT;
	if (e->array || (e->type != GGUF_F32 && e->type != GGUF_F64))
		return wrong_type(file, key, "a floating-point number", err);
	struct reader r = reader_init(e->data, gguf_type_bytes(e->type));
	*ret = e->type == GGUF_F32 ? (double)reader_f32(&r) : reader_f64(&r);
	return 0;
}

int gguf_get_bool(const struct gguf *file, const char *key, bool *ret, struct error *err)
{
	const struct gguf_entry *e = gguf_entry(file, key);
	if (!e)
		return -ENOENT;
	if (e->array || e->type != GGUF_BOOL)
		return wrong_type(file, key, "a boolean", err);
	*ret = e->data[0];
	return 0;
}

int gguf_get_string(const struct gguf *file, const char *key, const char **ret, size_t *ret_n, struct error *err)
{
	const struct gguf_entry *e = gguf_entry(file, key);
	if (!e)
		return -ENOENT;
	if (e->array || e->type != GGUF_STRING)
		return wrong_type(file, key, "a string", err);
	*ret = (const char *)e->data;
	*ret_n = (size_t)e->n;
	return 0;
}

int gguf_get_strings(const struct gguf *file, const char *key, uint64_t *ret_n, struct error *err)
{
	const struct gguf_entry *e = gguf_entry(file, key);
	if (!e)
		return -ENOENT;
	if (!e->array || e->type != GGUF_STRING)
		return wrong_type(file, key, "an array of strings", err);
	*ret_n = e->n;
	return 0;
}

int gguf_string_at(const struct gguf *file, const char *key, uint64_t i, const char **ret, size_t *ret_n)
{
	const struct gguf_entry *e = gguf_entry(file, key);
	if (!e || !e->offsets || i >= e->n)
		return -ENOENT;
	struct reader r = reader_init(file->header, file->header_bytes);      // the parser has checked both reads
	r.position = (size_t)e->offsets[i];
	uint64_t n = reader_u64(&r);
	*ret = (const char *)reader_bytes(&r, (size_t)n);
	*ret_n = (size_t)n;
	return 0;
}

int gguf_get_int32s(const struct gguf *file, const char *key, int32_t **ret, uint64_t *ret_n, struct error *err)
{
	const struct gguf_entry *e = gguf_entry(file, key);
	if (!e)
		return -ENOENT;
	if (!e->array || !is_integer(e->type))
		return wrong_type(file, key, "an array of integers", err);
	int32_t *values = calloc(e->n ? (size_t)e->n : 1, sizeof *values);      // e->n was bounded by the bytes in memory
	if (!values)
		return error_set(err, ERROR_MEMORY, key, "no memory for %llu integers", (unsigned long long)e->n);
	for (uint64_t i = 0; i < e->n; i++) {
		uint64_t v = integer_at(e, i);
		if (is_signed(e->type) ? (int64_t)v < INT32_MIN || (int64_t)v > INT32_MAX : v > INT32_MAX) {
			free(values);
			return wrong_type(file, key, "an array of integers of at most 32 bits", err);
		}
		values[i] = (int32_t)(int64_t)v;
	}
	*ret = values;
	*ret_n = e->n;
	return 0;
}

int gguf_get_floats(const struct gguf *file, const char *key, float **ret, uint64_t *ret_n, struct error *err)
{
	const struct gguf_entry *e = gguf_entry(file, key);
	if (!e)
		return -ENOENT;
	if (!e->array || e->type != GGUF_F32)
		return wrong_type(file, key, "an array of 32-bit floating-point numbers", err);
	float *values = calloc(e->n ? (size_t)e->n : 1, sizeof *values);
	if (!values)
		return error_set(err, ERROR_MEMORY, key, "no memory for %llu numbers", (unsigned long long)e->n);
	struct reader r = reader_init(e->data, (size_t)e->n * sizeof *values);      // in memory: no product wraps
	for (uint64_t i = 0; i < e->n; i++)
		values[i] = reader_f32(&r);
	*ret = values;
	*ret_n = e->n;
	return 0;
}

static int compare_name(const void *name, const void *tensor)
{
	return strcmp(name, ((const struct gguf_tensor *)tensor)->name);
}

static const struct gguf_tensor *find_tensor(const struct gguf *file, const char *name)
{
	return file->n_tensors ? bsearch(name, file->tensors, file->n_tensors, sizeof *file->tensors, compare_name) : NULL;
}

int gguf_find(const struct gguf *file, const char *name, struct tensor *ret_tensor)
{
	const struct gguf_tensor *t = find_tensor(file, name);
	if (!t)
		return -ENOENT;
	*ret_tensor = t->tensor;
	return 0;
}

int gguf_read(const struct gguf *file, const char *name, struct tensor *ret_tensor, struct error *err)
{
	const struct gguf_tensor *t = find_tensor(file, name);
	if (!t)
		return -ENOENT;
	void *data = malloc(t->tensor.n_bytes);
	if (!data)
		return error_set(err, ERROR_MEMORY, name, "%s: no memory for tensor %s (%zu bytes)", t->input->name, name,
			t->tensor.n_bytes);
	int r = input_read(t->input, t->offset, data, t->tensor.n_bytes, err);
	if (r < 0) {
		free(data);
		return r;
	}
	*ret_tensor = t->tensor;
	ret_tensor->data = data;
	return 0;
}

int gguf_read_rows(const struct gguf *file, const char *name, uint64_t first, uint64_t n, void *to, struct error *err)
{
	const struct gguf_tensor *t = find_tensor(file, name);
	return t ? input_read_rows(t->input, &t->tensor, t->offset, first, n, to, err) : -ENOENT;
}

uint64_t gguf_file_bytes(const struct gguf *file)
{
	uint64_t n = file->input.size;
	for (size_t i = 0; i < file->n_others; i++)
		n += file->others[i].size;
	return n;
}

size_t gguf_count(const struct gguf *file)
{
	return file->n_tensors;
}

const char *gguf_name(const struct gguf *file, size_t i)
{
	return file->tensors[i].name;
}
