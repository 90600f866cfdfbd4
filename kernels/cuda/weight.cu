// SPDX-License-Identifier: Apache-2.0
// Matrices on the device in act's type. Model-file types are dequantised on the host, row blocks at a time, through pinned memory.
#include "kernels/cuda/cuda.cuh"

#include <new>

extern "C" {
#include "common/error.h"
}

#define UPLOAD_ELEMENTS (4u << 20)      // of one pinned buffer: large enough to reach the bus's rate, small against a model

static void convert(void *to, bool bf16, const float *from, size_t n)
{
	for (size_t i = 0; i < n && bf16; i++)
		((uint16_t *)to)[i] = float_to_bf16(from[i]);
	for (size_t i = 0; i < n && !bf16; i++)
		((float *)to)[i] = from[i];
}

// Rows of one part to the device at `to`. Two pinned buffers would overlap conversion and copy; conversion is the slower by far.
static bool upload_part(backend *be, char *to, const struct tensor *part, void *pinned, float *values)
{
	cuda *c = cuda_of(be);
	size_t element = c->bf16 ? 2 : 4, columns = part->dims[1], row_bytes = dtype_row_bytes(part->dtype, columns);
	uint64_t per_step = UPLOAD_ELEMENTS / columns ? UPLOAD_ELEMENTS / columns : 1;
	for (uint64_t row = 0; row < part->dims[0]; row += per_step) {
		uint64_t n = part->dims[0] - row < per_step ? part->dims[0] - row : per_step;
		dtype_to_float(part->dtype, (const char *)part->data + row * row_bytes, values, n * columns);
		convert(pinned, c->bf16, values, n * columns);
		if (!cuda_check(be, cudaMemcpyAsync(to + row * columns * element, pinned, n * columns * element, cudaMemcpyHostToDevice, c->stream), "uploading") ||
		    !cuda_check(be, cudaStreamSynchronize(c->stream), "uploading"))
			return false;
	}
	return true;
}

static bool upload(backend *be, struct weight *w, const struct tensor *parts, uint32_t n_parts)
{
	size_t n = w->n_columns > UPLOAD_ELEMENTS ? w->n_columns : UPLOAD_ELEMENTS, element = cuda_of(be)->bf16 ? 2 : 4;
	void *pinned = NULL;
	float *values = new (std::nothrow) float[n];
	bool good = values && cuda_check(be, cudaMallocHost(&pinned, n * element), "pinned memory");
	char *to = (char *)w->data;
	for (uint32_t i = 0; i < n_parts && good; i++) {
		good = upload_part(be, to, &parts[i], pinned, values);
		to += parts[i].dims[0] * parts[i].dims[1] * element;
	}
	cudaFreeHost(pinned);
	delete[] values;
	return good;
}

struct weight *cuda_weight_load(backend *be, const struct tensor *parts, uint32_t n_parts, struct error *err)
{
	cuda *c = cuda_of(be);
	struct weight *w = new (std::nothrow) weight();
	if (!w) {
		error_set(err, ERROR_MEMORY, NULL, "no memory for a matrix");
		return NULL;
	}
	w->n_columns = (uint32_t)parts[0].dims[1];
	for (uint32_t i = 0; i < n_parts; i++)
		w->n_rows += (uint32_t)parts[i].dims[0];
	w->data = cuda_alloc(c, (size_t)w->n_rows * w->n_columns * (c->bf16 ? 2 : 4), "a matrix", err);
	w->owned = true;
	if (w->data && upload(be, w, parts, n_parts))
		return w;
	if (w->data)
		error_set(err, ERROR_MEMORY, "device", "a matrix of %u x %u could not be uploaded", w->n_rows, w->n_columns);
	cuda_weight_free(be, w);
	return NULL;
}

struct weight *cuda_weight_view(backend *be, struct real *array, uint32_t n_rows, uint32_t n_columns, struct error *err)
{
	cuda *c = cuda_of(be);
	struct weight *w = new (std::nothrow) weight();
	if (!w) {
		error_set(err, ERROR_MEMORY, NULL, "no memory for a matrix");
		return NULL;
	}
	*w = weight{n_rows, n_columns, array, real_of(array), c->bf16};
	if (c->bf16)
		w->data = cuda_alloc(c, (size_t)n_rows * n_columns * 2, "a matrix", err);
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
	if (w->owned)
		cuda_release(cuda_of(be), w->data);
	delete w;
}
