// SPDX-License-Identifier: Apache-2.0
// Matrices that stay as the model's file has them, where the device has no room for all of them in act's type: a quantised model of four
// bits takes a third of the memory. Each is unpacked into one window, large enough for any, before a product with it: the product is the
// one of a matrix in memory, bit for bit. What lies in the window is left there: the tiles of a head unpack it once.
#include "kernels/cuda/unpack.cuh"

#include <stdlib.h>

extern "C" {
#include "common/error.h"
#include "kernels/cuda/arena.h"
}

struct stored_part { enum dtype type; uint32_t n_rows; uint64_t at; };

struct cuda_stored {
	uint8_t *bytes;                           // device
	uint32_t n_parts;
	stored_part parts[];                      // from the matrix's first row on
};

static cuda_stored *describe(const struct tensor *parts, uint32_t n_parts, uint64_t *ret_bytes)
{
	cuda_stored *s = (cuda_stored *)calloc(1, sizeof *s + n_parts * sizeof *s->parts);
	*ret_bytes = 0;
	for (uint32_t i = 0; s && i < n_parts; i++) {
		s->parts[s->n_parts++] = stored_part{parts[i].dtype, (uint32_t)parts[i].dims[0], *ret_bytes};
		*ret_bytes += arena_rounded(tensor_matrix_bytes(&parts[i]));
	}
	return s;
}

static void release(backend *be, cuda_stored *s)
{
	cuda_release(be, s->bytes);
	free(s);
}

cuda_stored *cuda_stored_new(backend *be, const struct tensor *parts, uint32_t n_parts, struct error *err)
{
	uint64_t bytes;
	cuda_stored *s = describe(parts, n_parts, &bytes);
	if (!s) {
		error_set(err, ERROR_MEMORY, NULL, "no memory for a matrix");
		return NULL;
	}
	s->bytes = (uint8_t *)cuda_alloc(be, bytes, "a matrix as stored", err);
	if (!s->bytes) {
		free(s);
		return NULL;
	}
	for (uint32_t i = 0; i < n_parts; i++) {
		if (!cuda_send(be, s->bytes + s->parts[i].at, parts[i].data, tensor_matrix_bytes(&parts[i]), "uploading a matrix")) {
			error_set(err, ERROR_UNAVAILABLE, "device", "a matrix could not be uploaded: the device has failed");
			release(be, s);
			return NULL;
		}
		be->stored_bytes += tensor_matrix_bytes(&parts[i]);
	}
	return s;
}

void cuda_stored_free(backend *be, const weight *w)
{
	cuda *c = cuda_of(be);
	if (c->unpacked == w)
		c->unpacked = NULL;
	if (w->stored)
		release(be, w->stored);
}

const void *cuda_weight_data(backend *be, const weight *w)
{
	cuda *c = cuda_of(be);
	if (!w->stored)
		return w->data;
	if (c->unpacked == w)
		return c->window;
	uint64_t first = 0;
	for (uint32_t i = 0; i < w->stored->n_parts; i++) {
		const stored_part &p = w->stored->parts[i];
		uint64_t n = (uint64_t)p.n_rows * (w->n_columns / dtype_block_elements(p.type));
		with_act(c, [&](auto *type) {
			cuda_unpack(be, (ACT_TYPE(type) *)c->window + first * w->n_columns, p.type, w->stored->bytes + p.at, n);
		});
		first += p.n_rows;
	}
	c->unpacked = w;
	return c->window;
}

void cuda_stored_embed(backend *be, float *x, const weight *w)
{
	uint32_t first = 0;
	for (uint32_t i = 0; i < w->stored->n_parts; i++) {
		const stored_part &p = w->stored->parts[i];
		with_act(cuda_of(be), [&](auto *type) {
			cuda_unpack_tokens<ACT_TYPE(type)>(be, x, p.type, w->stored->bytes + p.at, first, p.n_rows, w->n_columns);
		});
		first += p.n_rows;
	}
}
