// SPDX-License-Identifier: Apache-2.0
// Parser of GGUF metadata and tensor list. Its bytes are hostile: each count is compared with the bytes that remain before anything is
// multiplied or allocated by it, every size goes through gguf_extent, and a value is kept with its type so that no reader can mistake it.
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/cursor.h"
#include "common/error.h"
#include "daemon/model/gguf_internal.h"

#define MAX_ENTRIES 65536        // models in the wild have under 100
#define MAX_KEY 65535            // the format's own limit
#define MAX_ALIGNMENT 4096
#define DEFAULT_ALIGNMENT 32

// ggml's type numbers; those without a dtype are named only to refuse them well.
static const struct { const char *name; int dtype; } ggml_types[] = {
	[0] = {"F32", DTYPE_F32}, [1] = {"F16", DTYPE_F16}, [2] = {"Q4_0", DTYPE_Q4_0}, [3] = {"Q4_1", DTYPE_Q4_1}, [4] = {"Q4_2", -1},
	[5] = {"Q4_3", -1}, [6] = {"Q5_0", DTYPE_Q5_0}, [7] = {"Q5_1", DTYPE_Q5_1}, [8] = {"Q8_0", DTYPE_Q8_0}, [9] = {"Q8_1", -1},
	[10] = {"Q2_K", DTYPE_Q2_K}, [11] = {"Q3_K", DTYPE_Q3_K}, [12] = {"Q4_K", DTYPE_Q4_K}, [13] = {"Q5_K", DTYPE_Q5_K},
	[14] = {"Q6_K", DTYPE_Q6_K}, [15] = {"Q8_K", -1}, [16] = {"IQ2_XXS", DTYPE_IQ2_XXS}, [17] = {"IQ2_XS", DTYPE_IQ2_XS},
	[18] = {"IQ3_XXS", DTYPE_IQ3_XXS}, [19] = {"IQ1_S", DTYPE_IQ1_S}, [20] = {"IQ4_NL", DTYPE_IQ4_NL}, [21] = {"IQ3_S", DTYPE_IQ3_S},
	[22] = {"IQ2_S", DTYPE_IQ2_S}, [23] = {"IQ4_XS", DTYPE_IQ4_XS}, [24] = {"I8", -1}, [25] = {"I16", -1}, [26] = {"I32", -1},
	[27] = {"I64", -1}, [28] = {"F64", -1}, [29] = {"IQ1_M", DTYPE_IQ1_M}, [30] = {"BF16", DTYPE_BF16}, [31] = {"Q4_0_4_4", -1},
	[32] = {"Q4_0_4_8", -1}, [33] = {"Q4_0_8_8", -1}, [34] = {"TQ1_0", DTYPE_TQ1_0}, [35] = {"TQ2_0", DTYPE_TQ2_0},
	[36] = {"IQ4_NL_4_4", -1}, [37] = {"IQ4_NL_4_8", -1}, [38] = {"IQ4_NL_8_8", -1}, [39] = {"MXFP4", DTYPE_MXFP4},
	[40] = {"NVFP4", -1},
};
#define N_GGML_TYPES (sizeof ggml_types / sizeof *ggml_types)
#define SUPPORTED_BYTES (8 * N_DTYPES)      // names of at most 7 letters, and what is between them

struct parse {
	struct gguf *file;
	struct reader r;
	struct error *err;
};

uint32_t gguf_type_bytes(enum gguf_type type)
{
	static const uint8_t bytes[N_GGUF_TYPES] = {
		[GGUF_U8] = 1, [GGUF_I8] = 1, [GGUF_BOOL] = 1, [GGUF_U16] = 2, [GGUF_I16] = 2, [GGUF_U32] = 4, [GGUF_I32] = 4,
		[GGUF_F32] = 4, [GGUF_U64] = 8, [GGUF_I64] = 8, [GGUF_F64] = 8,
	};
	return type < N_GGUF_TYPES ? bytes[type] : 0;
}

int gguf_extent(enum dtype dtype, uint32_t n_dims, const uint64_t *dims, uint64_t alignment, uint64_t *ret_bytes, uint64_t *ret_padded)
{
	uint64_t bytes, padded;
	if (n_dims < 1 || n_dims > TENSOR_MAX_DIMS)
		return -EINVAL;
	bytes = dtype_row_bytes(dtype, dims[0]);      // 0 for a zero dim, part blocks and overflow
	for (uint32_t i = 1; i < n_dims; i++)
		if (__builtin_mul_overflow(bytes, dims[i], &bytes))
			return -EINVAL;
	if (bytes == 0 || __builtin_add_overflow(bytes, alignment - 1, &padded) || padded > INT64_MAX)
		return -EINVAL;
	*ret_bytes = bytes;
	*ret_padded = padded & ~(alignment - 1);
	return 0;
}

// The reader ran out: for good when it had the whole file.
static int ended(struct parse *p)
{
	if (p->file->header_bytes < p->file->input.size)
		return -EAGAIN;
	return error_set(p->err, ERROR_INVALID, p->file->input.name, "%s: the file ends inside its metadata", p->file->input.name);
}

// Whether n items of at least `each` bytes can still come, by the size of the whole file.
static bool can_hold(const struct parse *p, uint64_t n, uint64_t each)
{
	return n <= (p->file->input.size - p->r.position) / each;
}

#define INVALID(p, key, key_n, format, ...) \
	error_set((p)->err, ERROR_INVALID, (p)->file->input.name, "%s: key %.*s: " format, (p)->file->input.name, \
		  (int)((key_n) < 80 ? (key_n) : 80), (key), __VA_ARGS__)

static int parse_strings(struct parse *p, struct gguf_entry *e)
{
	if (!can_hold(p, e->n, 8))
		return INVALID(p, e->key, e->key_n, "an array of %llu strings does not fit in the file", (unsigned long long)e->n);
	if (e->n > reader_left(&p->r) / 8) {      // bounds the allocation by the bytes at hand
		p->r.failed = true;
		return ended(p);
	}
	e->offsets = calloc(e->n ? (size_t)e->n : 1, sizeof *e->offsets);
	if (!e->offsets)
		return error_set(p->err, ERROR_MEMORY, p->file->input.name, "no memory for %llu strings", (unsigned long long)e->n);
	for (uint64_t i = 0; i < e->n; i++) {
		e->offsets[i] = p->r.position;
		uint64_t n = reader_u64(&p->r);
		if (p->r.failed)
			return ended(p);
		if (!can_hold(p, n, 1))
			return INVALID(p, e->key, e->key_n, "string %llu has %llu bytes; the file ends before", (unsigned long long)i,
				       (unsigned long long)n);
		if (!reader_bytes(&p->r, (size_t)n))
			return ended(p);
	}
	return 0;
}

static bool has_bad_bool(const struct gguf_entry *e)
{
	if (e->type == GGUF_BOOL)
		for (uint64_t i = 0; i < e->n; i++)
			if (e->data[i] > 1)
				return true;
	return false;
}

static int parse_value(struct parse *p, struct gguf_entry *e)
{
	uint32_t type = reader_u32(&p->r);
	e->array = type == GGUF_ARRAY;
	if (e->array)
		type = reader_u32(&p->r);
	e->n = e->array || type == GGUF_STRING ? reader_u64(&p->r) : 1;
	if (p->r.failed)
		return ended(p);
	if (type >= N_GGUF_TYPES || type == GGUF_ARRAY)
		return INVALID(p, e->key, e->key_n, "%s type %u is not supported", e->array ? "array element" : "value", type);
	e->type = (enum gguf_type)type;
	if (e->array && type == GGUF_STRING)
		return parse_strings(p, e);
	uint32_t each = type == GGUF_STRING ? 1 : gguf_type_bytes(e->type);
	if (!can_hold(p, e->n, each))
		return INVALID(p, e->key, e->key_n, "%llu elements of %u bytes do not fit in the file", (unsigned long long)e->n, each);
	e->data = reader_bytes(&p->r, (size_t)e->n * each);
	if (p->r.failed)
		return ended(p);
	return has_bad_bool(e) ? INVALID(p, e->key, e->key_n, "a boolean is neither %d nor 1", 0) : 0;
}

static int parse_entry(struct parse *p, struct gguf_entry *e)
{
	uint64_t n = reader_u64(&p->r);
	if (p->r.failed)
		return ended(p);
	if (n < 1 || n > MAX_KEY)
		return error_set(p->err, ERROR_INVALID, p->file->input.name, "%s: a key of %llu bytes (supported: 1 to %d)",
				 p->file->input.name, (unsigned long long)n, MAX_KEY);
	e->key = (const char *)reader_bytes(&p->r, (size_t)n);
	e->key_n = (size_t)n;
	return p->r.failed ? ended(p) : parse_value(p, e);
}

static int compare_keys(const char *a, size_t a_n, const char *b, size_t b_n)
{
	int c = memcmp(a, b, a_n < b_n ? a_n : b_n);
	return c ? c : (a_n > b_n) - (a_n < b_n);
}

static int compare_entries(const void *a, const void *b)
{
	const struct gguf_entry *x = a, *y = b;
	return compare_keys(x->key, x->key_n, y->key, y->key_n);
}

const struct gguf_entry *gguf_entry(const struct gguf *file, const char *key)
{
	struct gguf_entry wanted = {.key = key, .key_n = strlen(key)};
	return file->n_entries ? bsearch(&wanted, file->entries, file->n_entries, sizeof wanted, compare_entries) : NULL;
}

static int parse_entries(struct parse *p, uint64_t n)
{
	struct gguf *f = p->file;
	for (uint64_t i = 0; i < n; i++) {
		f->n_entries++;      // counted first: gguf_parse_done must see what a failed entry allocated
		int r = parse_entry(p, &f->entries[i]);
		if (r < 0)
			return r;
	}
	qsort(f->entries, f->n_entries, sizeof *f->entries, compare_entries);
	for (size_t i = 1; i < f->n_entries; i++)
		if (!compare_entries(&f->entries[i - 1], &f->entries[i]))
			return INVALID(p, f->entries[i].key, f->entries[i].key_n, "occurs %s", "twice");
	return 0;
}

static int find_alignment(struct parse *p)
{
	uint64_t v = DEFAULT_ALIGNMENT;
	const struct gguf_entry *e = gguf_entry(p->file, "general.alignment");
	if (e && (e->array || e->type != GGUF_U32))
		return INVALID(p, e->key, e->key_n, "must be a %s", "u32");
	if (e)
		v = (uint64_t)e->data[0] | (uint64_t)e->data[1] << 8 | (uint64_t)e->data[2] << 16 | (uint64_t)e->data[3] << 24;
	if (v < 8 || v > MAX_ALIGNMENT || (v & (v - 1)))
		return error_set(p->err, ERROR_INVALID, "general.alignment",
				 "%s: general.alignment is %llu; supported: powers of two from 8 to %d", p->file->input.name,
				 (unsigned long long)v, MAX_ALIGNMENT);
	p->file->alignment = v;
	return 0;
}

#define BAD_TENSOR(p, t, code, format, ...) \
	error_set((p)->err, code, (t)->name, "%s: tensor %s: " format, (p)->file->input.name, (t)->name, __VA_ARGS__)

// "F32 F16 ...", for errors.
static const char *supported(char list[SUPPORTED_BYTES])
{
	size_t n = 0;
	for (int t = 0; t < N_DTYPES; t++)
		n += (size_t)snprintf(list + n, SUPPORTED_BYTES - n, "%s%s", t ? " " : "", dtype_name((enum dtype)t));
	return list;
}

static int set_extent(struct parse *p, struct gguf_tensor *t, uint32_t type, const uint64_t *dims)
{
	char list[SUPPORTED_BYTES];
	if (type >= N_GGML_TYPES || !ggml_types[type].name)
		return BAD_TENSOR(p, t, ERROR_UNSUPPORTED, "type number %u is unknown (supported: %s)", type, supported(list));
	if (ggml_types[type].dtype < 0)
		return BAD_TENSOR(p, t, ERROR_UNSUPPORTED, "type %s is not supported (supported: %s)", ggml_types[type].name,
				  supported(list));
	uint64_t bytes;
	t->tensor.dtype = (enum dtype)ggml_types[type].dtype;
	if (gguf_extent(t->tensor.dtype, t->tensor.n_dims, dims, p->file->alignment, &bytes, &t->padded) < 0)
		return BAD_TENSOR(p, t, ERROR_INVALID, "no such shape for type %s (zero, not whole blocks of %u, or too large)",
				  dtype_name(t->tensor.dtype), dtype_block_elements(t->tensor.dtype));
	t->tensor.n_bytes = (size_t)bytes;
	for (uint32_t i = 0; i < t->tensor.n_dims; i++)      // the file names the fastest dimension first
		t->tensor.dims[i] = dims[t->tensor.n_dims - 1 - i];
	return 0;
}

static int parse_tensor(struct parse *p, struct gguf_tensor *t)
{
	uint64_t n = reader_u64(&p->r), dims[TENSOR_MAX_DIMS] = {0};
	if (p->r.failed)
		return ended(p);
	if (n < 1 || n > GGUF_MAX_NAME)
		return error_set(p->err, ERROR_INVALID, p->file->input.name, "%s: a tensor name of %llu bytes (supported: 1 to %d)",
				 p->file->input.name, (unsigned long long)n, GGUF_MAX_NAME);
	reader_copy(&p->r, t->name, (size_t)n);
	t->tensor.n_dims = reader_u32(&p->r);
	t->input = &p->file->input;
	if (p->r.failed)
		return ended(p);
	if (strlen(t->name) != n)
		return BAD_TENSOR(p, t, ERROR_INVALID, "its name contains a %s", "NUL byte");
	if (t->tensor.n_dims < 1 || t->tensor.n_dims > TENSOR_MAX_DIMS)
		return BAD_TENSOR(p, t, ERROR_INVALID, "%u dimensions (supported: 1 to %d)", t->tensor.n_dims, TENSOR_MAX_DIMS);
	for (uint32_t i = 0; i < t->tensor.n_dims; i++)
		dims[i] = reader_u64(&p->r);
	uint32_t type = reader_u32(&p->r);
	t->offset = reader_u64(&p->r);
	return p->r.failed ? ended(p) : set_extent(p, t, type, dims);
}

static int compare_offsets(const void *a, const void *b)
{
	const struct gguf_tensor *x = a, *y = b;
	return (x->offset > y->offset) - (x->offset < y->offset);
}

static int compare_tensors(const void *a, const void *b)
{
	return strcmp(((const struct gguf_tensor *)a)->name, ((const struct gguf_tensor *)b)->name);
}

int gguf_sort_tensors(struct gguf *file, struct error *err)
{
	qsort(file->tensors, file->n_tensors, sizeof *file->tensors, compare_tensors);
	for (size_t i = 1; i < file->n_tensors; i++) {
		const struct gguf_tensor *t = &file->tensors[i - 1], *u = &file->tensors[i];
		if (!strcmp(t->name, u->name))
			return error_set(err, ERROR_INVALID, t->name, "%s: tensor %s: occurs twice (again in %s)", t->input->name, t->name,
					 u->input->name);
	}
	return 0;
}

// Offsets count from the data section; every extent must lie in the file and share no byte with another.
static int place_tensors(struct parse *p)
{
	struct gguf *f = p->file;
	uint64_t base = (p->r.position + f->alignment - 1) & ~(f->alignment - 1),
		room = base < f->input.size ? f->input.size - base : 0, end = 0;
	qsort(f->tensors, f->n_tensors, sizeof *f->tensors, compare_offsets);
	for (size_t i = 0; i < f->n_tensors; i++) {
		struct gguf_tensor *t = &f->tensors[i];
		if (t->offset % f->alignment)
			return BAD_TENSOR(p, t, ERROR_INVALID, "offset %llu is not a multiple of the alignment %llu",
					  (unsigned long long)t->offset, (unsigned long long)f->alignment);
		if (t->offset > room || t->tensor.n_bytes > room - t->offset)
			return BAD_TENSOR(p, t, ERROR_INVALID, "%zu bytes at %llu lie beyond the end of the file", t->tensor.n_bytes,
					  (unsigned long long)t->offset);
		if (t->offset < end)
			return BAD_TENSOR(p, t, ERROR_INVALID, "overlaps tensor %s", f->tensors[i - 1].name);
		end = t->offset + t->padded;      // both are below 2^63
		t->offset += base;
	}
	return gguf_sort_tensors(f, p->err);
}

static int parse_counts(struct parse *p, uint64_t *ret_tensors, uint64_t *ret_entries)
{
	const char *name = p->file->input.name;
	const uint8_t *magic = reader_bytes(&p->r, 4);
	if (!magic || memcmp(magic, "GGUF", 4) != 0)
		return error_set(p->err, ERROR_INVALID, name, "%s is not a GGUF file", name);
	uint32_t version = reader_u32(&p->r);
	uint64_t n_tensors = reader_u64(&p->r), n_entries = reader_u64(&p->r);
	if (p->r.failed)
		return ended(p);
	if (version > 0xffff)
		return error_set(p->err, ERROR_UNSUPPORTED, name, "%s is big-endian GGUF (supported: little-endian)", name);
	if (version != 2 && version != 3)
		return error_set(p->err, ERROR_UNSUPPORTED, name, "%s is GGUF version %u (supported: 2 and 3)", name, version);
	// The least an entry can take is a 1-byte key and value; a tensor a 1-byte name and one dimension.
	if (n_entries > MAX_ENTRIES || !can_hold(p, n_entries, 8 + 1 + 4 + 1))
		return error_set(p->err, ERROR_INVALID, name, "%s: %llu metadata keys (supported: %d, and as many as fit in the file)",
				 name, (unsigned long long)n_entries, MAX_ENTRIES);
	if (n_tensors > GGUF_MAX_TENSORS || !can_hold(p, n_tensors, 8 + 1 + 4 + 8 + 4 + 8))
		return error_set(p->err, ERROR_INVALID, name, "%s: %llu tensors (supported: %d, and as many as fit in the file)", name,
				 (unsigned long long)n_tensors, GGUF_MAX_TENSORS);
	*ret_tensors = n_tensors;
	*ret_entries = n_entries;
	return 0;
}

int gguf_parse(struct gguf *file, struct error *err)
{
	struct parse p = {.file = file, .r = reader_init(file->header, file->header_bytes), .err = err};
	uint64_t n_tensors = 0, n_entries = 0;
	int r = parse_counts(&p, &n_tensors, &n_entries);
	if (r < 0)
		return r;
	file->entries = calloc((size_t)n_entries + 1, sizeof *file->entries);
	file->tensors = calloc((size_t)n_tensors + 1, sizeof *file->tensors);
	if (!file->entries || !file->tensors)
		return error_set(err, ERROR_MEMORY, file->input.name, "no memory for %llu tensors", (unsigned long long)n_tensors);
	if ((r = parse_entries(&p, n_entries)) < 0 || (r = find_alignment(&p)) < 0)
		return r;
	for (uint64_t i = 0; i < n_tensors; i++, file->n_tensors++)
		if ((r = parse_tensor(&p, &file->tensors[i])) < 0)
			return r;
	return place_tensors(&p);
}

void gguf_parse_done(struct gguf *file)
{
	for (size_t i = 0; i < file->n_entries; i++)
		free(file->entries[i].offsets);
	free(file->entries);
	free(file->tensors);
	file->entries = NULL;
	file->tensors = NULL;
	file->n_entries = file->n_tensors = 0;
}
