// SPDX-License-Identifier: Apache-2.0
// Rows of a matrix as the model's file has them, copied: the file may change, and what was loaded is what is computed with. They lie in
// pages of their own, which a cap on memory can count, and not in the heap, where what is freed while loading leaves holes.
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "common/error.h"
#include "kernels/cpu/cpu.h"

struct stored {
	size_t bytes;
	uint8_t *rows;
	struct tensor parts[];           // their data in `rows`
};

static int copy_part(uint8_t *to, const struct tensor *t, struct error *err)
{
	if (!t->data)
		return t->rows->read(t->rows, 0, t->dims[0], to, err);
	memcpy(to, t->data, tensor_matrix_bytes(t));
	return 0;
}

struct stored *stored_new(const struct tensor *parts, uint32_t n_parts, struct error *err)
{
	struct stored *s = calloc(1, sizeof *s + n_parts * sizeof *parts);
	size_t at = 0;

	for (uint32_t i = 0; s && i < n_parts; i++)
		s->bytes += tensor_matrix_bytes(&parts[i]);
	if (s)
		s->rows = mmap(NULL, s->bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (!s || s->rows == MAP_FAILED) {
		free(s);
		error_set(err, ERROR_MEMORY, NULL, "no memory for a matrix of %u parts as stored", n_parts);
		return NULL;
	}
	for (uint32_t i = 0; i < n_parts; i++) {
		if (copy_part(s->rows + at, &parts[i], err) < 0)
			return stored_free(s);
		s->parts[i] = tensor_matrix(parts[i].dtype, parts[i].dims[0], parts[i].dims[1], s->rows + at);
		at += tensor_matrix_bytes(&parts[i]);
	}
	return s;
}

struct stored *stored_free(struct stored *s)
{
	if (s)
		munmap(s->rows, s->bytes);
	free(s);
	return NULL;
}

const struct tensor *stored_parts(const struct stored *s)
{
	return s->parts;
}

size_t stored_bytes(const struct stored *s)
{
	return s->bytes;
}
