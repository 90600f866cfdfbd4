// SPDX-License-Identifier: Apache-2.0
// Gradient of any sparse loss in place of its logits: scaled softmax rows plus corrections at the support.
#include "kernels/cuda/cuda.cuh"

#include <string.h>

#include <vector>

struct grad_row {
	uint32_t first_term, n_terms, first_correction, n_corrections;
};

static __global__ void softmax_grad_kernel(float *logits, uint32_t V, const grad_row *rows, const float *terms, const uint32_t *ids, const float *corrections)
{
	grad_row r = rows[blockIdx.x];
	float *z = logits + (size_t)blockIdx.x * V;
	for (uint32_t j = threadIdx.x; j < V; j += blockDim.x) {
		float d = 0;
		for (uint32_t i = 0; i < r.n_terms; i++) {
			const float *term = terms + 3 * (size_t)(r.first_term + i);    // 1/T, lse, scale
			d += term[2] * expf(z[j] * term[0] - term[1]);
		}
		z[j] = d;
	}
	__syncthreads();
	for (uint32_t i = 0; i < r.n_corrections && threadIdx.x == 0; i++)    // ids may repeat: one thread, in order
		z[ids[r.first_correction + i]] += corrections[r.first_correction + i];
}

// Rows first..first+n in one launch; their descriptions travel in one copy through the scratch buffer.
static void run_chunk(backend *be, float *logits, uint32_t n, uint32_t V, const struct softmax_grad_row *rows)
{
	cuda *c = cuda_of(be);
	std::vector<grad_row> list(n);
	std::vector<float> terms, corrections;
	std::vector<uint32_t> ids;
	for (uint32_t i = 0; i < n; i++) {
		list[i] = grad_row{(uint32_t)(terms.size() / 3), rows[i].n_terms, (uint32_t)ids.size(), rows[i].n_corrections};
		for (uint32_t t = 0; t < rows[i].n_terms; t++)
			for (double v : {1 / (double)rows[i].temperatures[t], rows[i].lse[t], rows[i].scales[t]})
				terms.push_back((float)v);
		for (uint32_t k = 0; k < rows[i].n_corrections; k++) {
			ids.push_back(rows[i].ids[k]);
			corrections.push_back((float)rows[i].corrections[k]);
		}
	}
	size_t at_terms = n * sizeof(grad_row), at_ids = at_terms + terms.size() * 4, at_corrections = at_ids + ids.size() * 4, end = at_corrections + ids.size() * 4;
	std::vector<char> bytes(end);
	memcpy(bytes.data(), list.data(), at_terms);
	if (!terms.empty())
		memcpy(bytes.data() + at_terms, terms.data(), terms.size() * 4);
	if (!ids.empty()) {
		memcpy(bytes.data() + at_ids, ids.data(), ids.size() * 4);
		memcpy(bytes.data() + at_corrections, corrections.data(), ids.size() * 4);
	}
	char *device = (char *)c->scratch;
	if (end > CUDA_SCRATCH_BYTES)
		backend_fail(be, "corrections of %zu bytes do not fit the scratch buffer", end);
	if (backend_failed(be) || !cuda_check(be, cudaMemcpyAsync(device, bytes.data(), end, cudaMemcpyHostToDevice, c->stream), "sending corrections") ||
	    !cuda_check(be, cudaStreamSynchronize(c->stream), "sending corrections"))
		return;
	softmax_grad_kernel<<<n, CUDA_BLOCK, 0, c->stream>>>(logits, V, (const grad_row *)device, (const float *)(device + at_terms), (const uint32_t *)(device + at_ids),
							     (const float *)(device + at_corrections));
	CUDA_LAUNCHED(be, "softmax_grad");
}

#define GRAD_CHUNK_ROWS 256    // times a support of V = 32768 still fits CUDA_SCRATCH_BYTES

void cuda_softmax_grad(backend *be, struct real *logits, uint32_t n, uint32_t V, const struct softmax_grad_row *rows)
{
	for (uint32_t first = 0; first < n && !backend_failed(be); first += GRAD_CHUNK_ROWS)
		run_chunk(be, real_of(logits) + (size_t)first * V, n - first < GRAD_CHUNK_ROWS ? n - first : GRAD_CHUNK_ROWS, V, rows + first);
}
