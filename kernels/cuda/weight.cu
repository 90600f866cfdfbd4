// SPDX-License-Identifier: Apache-2.0
// Matrices on the device in act's type, in FP8's, or as stored. A model file's bytes travel as they are, through pinned memory, and become
// numbers on the device: the host only copies, and while it fills one pinned half the other is under way.
#include "kernels/cuda/unpack.cuh"

#include <new>

extern "C" {
#include "common/error.h"
}

#define SCRATCH_GAP 256          // where other things begin in the scratch buffer

// n blocks of a file at `from`, by way of `raw` on the device.
template <typename A> static void upload_blocks(backend *be, A *to, uint8_t *raw, enum dtype type, const char *from, uint64_t n)
{
	if (cuda_send(be, raw, from, n * dtype_block_bytes(type), "uploading a matrix"))
		cuda_unpack(be, to, type, raw, n);
}

// Rows of one part to the device at `to`: straight where the file has act's type, else through the scratch buffer.
template <typename A> static void upload_part(backend *be, A *to, const struct tensor *part)
{
	uint64_t row_bytes = dtype_row_bytes(part->dtype, part->dims[1]);
	const char *from = (const char *)part->data;
	if (part->dtype == (sizeof(A) == 2 ? DTYPE_BF16 : DTYPE_F32)) {
		cuda_send(be, to, from, row_bytes * part->dims[0], "uploading a matrix");
		return;
	}
	uint32_t elements = dtype_block_elements(part->dtype), block_bytes = dtype_block_bytes(part->dtype);
	uint64_t n_blocks = row_bytes / block_bytes * part->dims[0], per_step = CUDA_SCRATCH_BYTES / block_bytes;
	for (uint64_t done = 0; done < n_blocks && !backend_failed(be); done += per_step) {
		uint64_t n = n_blocks - done < per_step ? n_blocks - done : per_step;
		upload_blocks(be, to + done * elements, (uint8_t *)cuda_of(be)->scratch, part->dtype, from + done * block_bytes, n);
	}
}

// Rows of one part, as float in the scratch buffer, become rows of w from `first` on.
static void upload_fp8(backend *be, weight *w, uint32_t first, const struct tensor *part)
{
	size_t row_bytes = dtype_row_bytes(part->dtype, w->n_columns), float_bytes = (size_t)w->n_columns * sizeof(float);
	uint32_t n_rows = (uint32_t)part->dims[0];
	uint32_t step = plan_chunk_rows(CUDA_SCRATCH_BYTES - SCRATCH_GAP, float_bytes + row_bytes, n_rows);
	float *x = (float *)cuda_of(be)->scratch;
	uint8_t *raw = (uint8_t *)x + ((size_t)step * float_bytes + SCRATCH_GAP - 1) / SCRATCH_GAP * SCRATCH_GAP;
	if (!step && n_rows)
		backend_fail(be, "a row of %u numbers does not fit the scratch buffer", w->n_columns);
	for (uint32_t done = 0; done < n_rows && !backend_failed(be); done += step) {
		uint32_t n = n_rows - done < step ? n_rows - done : step;
		upload_blocks(be, x, raw, part->dtype, (const char *)part->data + done * row_bytes,
			      n * row_bytes / dtype_block_bytes(part->dtype));
		cuda_fp8_fill(be, w, first + done, x, n);
	}
}

static void upload(backend *be, weight *w, const struct tensor *parts, uint32_t n_parts)
{
	uint32_t first = 0;
	for (uint32_t i = 0; i < n_parts; first += (uint32_t)parts[i].dims[0], i++) {
		if (w->scales)
			upload_fp8(be, w, first, &parts[i]);
		else
			with_act(cuda_of(be), [&](auto *type) {
				upload_part(be, (ACT_TYPE(type) *)w->data + (size_t)first * w->n_columns, &parts[i]);
			});
	}
}

static weight *new_weight(uint32_t n_rows, uint32_t n_columns, const float *view, bool owned, struct error *err)
{
	weight *w = new (std::nothrow) weight{n_rows, n_columns, NULL, NULL, NULL, view, owned};
	if (!w)
		error_set(err, ERROR_MEMORY, NULL, "no memory for a matrix");
	return w;
}

struct weight *cuda_weight_load(backend *be, enum weight_kind kind, const struct tensor *parts, uint32_t n_parts, struct error *err)
{
	cuda *c = cuda_of(be);
	bool fp8 = c->fp8 && kind == WEIGHT_BLOCK;
	uint32_t n_rows = 0, n_columns = 0;
	if (tensor_stack_shape(parts, n_parts, &n_rows, &n_columns, err) < 0)
		return NULL;
	struct weight *w = new_weight(n_rows, n_columns, NULL, true, err);
	if (!w)
		return NULL;
	size_t bytes = fp8 ? backend_fp8_bytes(n_rows, n_columns) : cuda_act_bytes(c, (uint64_t)n_rows * n_columns);
	w->data = cuda_alloc(be, bytes, "a matrix", err);
	if (!w->data) {
		delete w;
		return NULL;
	}
	w->scales = fp8 ? (float *)((char *)w->data + bytes) - n_rows : NULL;
	upload(be, w, parts, n_parts);
	if (!backend_failed(be))
		return w;
	error_set(err, ERROR_UNAVAILABLE, "device", "a matrix of %u x %u could not be uploaded: the device has failed", n_rows, n_columns);
	cuda_weight_free(be, w);
	return NULL;
}

struct weight *cuda_weight_load_apart(backend *be, enum weight_kind kind, const struct tensor *parts, uint32_t n_parts, struct error *err)
{
	cuda *c = cuda_of(be);
	uint32_t n_rows = 0, n_columns = 0;
	if (!be->stores)
		return cuda_weight_load(be, kind, parts, n_parts, err);
	if (tensor_stack_shape(parts, n_parts, &n_rows, &n_columns, err) < 0)
		return NULL;
	if (cuda_act_bytes(c, (uint64_t)n_rows * n_columns) > c->window_bytes) {
		error_set(err, ERROR_INTERNAL, NULL, "a matrix of %u x %u is larger than any that was counted", n_rows, n_columns);
		return NULL;
	}
	struct weight *w = new_weight(n_rows, n_columns, NULL, false, err);
	if (!w)
		return NULL;
	w->stored = cuda_stored_new(be, parts, n_parts, err);
	if (w->stored)
		return w;
	delete w;
	return NULL;
}

struct weight *cuda_weight_view(backend *be, struct real *array, uint32_t n_rows, uint32_t n_columns, struct error *err)
{
	cuda *c = cuda_of(be);
	struct weight *w = new_weight(n_rows, n_columns, real_of(array), c->bf16, err);
	if (!w)
		return NULL;
	w->data = array;
	if (c->bf16)
		w->data = cuda_alloc(be, (size_t)n_rows * n_columns * 2, "a matrix", err);
	if (!w->data) {
		delete w;
		return NULL;
	}
	cuda_weight_refresh(be, w);
	return w;
}

// The bfloat16 copy of a trainable matrix follows its float master.
void cuda_weight_refresh(backend *be, struct weight *w)
{
	cuda *c = cuda_of(be);
	uint64_t n = (uint64_t)w->n_rows * w->n_columns;
	if (w->view && c->bf16)
		cuda_to_bf16(be, (__nv_bfloat16 *)w->data, w->view, n);
}

void cuda_weight_free(backend *be, struct weight *w)
{
	if (!w)
		return;
	cuda_stored_free(be, w);
	if (w->owned)
		cuda_release(be, w->data);
	delete w;
}
