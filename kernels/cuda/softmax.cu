// SPDX-License-Identifier: Apache-2.0
// Gradient of any sparse loss in place of its logits: scaled softmax rows plus corrections at the support.
#include "kernels/cuda/cuda.cuh"

#include <string.h>

#include <vector>

struct grad_row {
	uint32_t first_term, n_terms, first_correction, n_corrections;
};
struct grad_term { float inverse_temperature, lse, scale; };
struct grad_correction { uint32_t id; float value; };

struct grad_input {
	float *logits;                  // (n, V)
	uint32_t V;
	const grad_row *rows;
	const grad_term *terms;
	const grad_correction *corrections;
};

static __global__ void softmax_grad_kernel(grad_input in)
{
	grad_row r = in.rows[blockIdx.x];
	float *z = in.logits + (size_t)blockIdx.x * in.V;
	for (uint32_t j = threadIdx.x; j < in.V; j += blockDim.x) {
		float d = 0, x = z[j];
		for (uint32_t i = 0; i < r.n_terms; i++) {
			const grad_term t = in.terms[r.first_term + i];
			d += t.scale * expf(x * t.inverse_temperature - t.lse);
		}
		z[j] = d;
	}
	__syncthreads();
	const grad_correction *c = in.corrections + r.first_correction;
	for (uint32_t i = threadIdx.x; i < r.n_corrections; i += blockDim.x) {
		bool first = true;       // ids may repeat: the thread of the first adds them all, in order
		for (uint32_t j = 0; j < i && first; j++)
			first = c[j].id != c[i].id;
		for (uint32_t j = i; j < r.n_corrections && first; j++)
			if (c[j].id == c[i].id)
				z[c[j].id] += c[j].value;
	}
}

// Descriptions of rows first..first+n-1, as they travel.
struct descriptions {
	std::vector<grad_row> rows;
	std::vector<grad_term> terms;
	std::vector<grad_correction> corrections;
	size_t bytes() const
	{
		return rows.size() * sizeof(grad_row) + terms.size() * sizeof(grad_term) + corrections.size() * sizeof(grad_correction);
	}
};

static void append_row(descriptions *d, const struct softmax_grad_row *r)
{
	d->rows.push_back(grad_row{(uint32_t)d->terms.size(), r->n_terms, (uint32_t)d->corrections.size(), r->n_corrections});
	for (uint32_t t = 0; t < r->n_terms; t++)
		d->terms.push_back(grad_term{(float)(1 / (double)r->temperatures[t]), (float)r->lse[t], (float)r->scales[t]});
	for (uint32_t k = 0; k < r->n_corrections; k++)
		d->corrections.push_back(grad_correction{r->ids[k], (float)r->corrections[k]});
}

template <typename T> static T *send(backend *be, const std::vector<T> &list, size_t *at)
{
	T *to = (T *)((char *)cuda_of(be)->scratch + *at);
	*at += (list.size() * sizeof(T) + 15) / 16 * 16;
	cuda_send(be, to, list.data(), list.size() * sizeof(T), "sending corrections");
	return to;
}

static void run(backend *be, float *logits, uint32_t V, const descriptions &d)
{
	size_t at = 0;
	if (d.bytes() + 64 > CUDA_SCRATCH_BYTES)
		backend_fail(be, "corrections of %zu bytes do not fit the scratch buffer", d.bytes());
	if (backend_failed(be) || d.rows.empty())
		return;
	const grad_row *rows = send(be, d.rows, &at);
	const grad_term *terms = send(be, d.terms, &at);
	grad_input in = {logits, V, rows, terms, send(be, d.corrections, &at)};
	cuda_launch(be, "softmax_grad", (uint32_t)d.rows.size(), CUDA_BLOCK, 0, softmax_grad_kernel, in);
}

#define GRAD_CHUNK_BYTES (CUDA_SCRATCH_BYTES / 2)    // a row more may be twice as much, and still fits

void cuda_softmax_grad(backend *be, struct real *logits, uint32_t n, uint32_t V, const struct softmax_grad_row *rows)
{
	for (uint32_t first = 0; first < n && !backend_failed(be);) {
		descriptions d;
		uint32_t i = first;
		while (i < n && d.bytes() < GRAD_CHUNK_BYTES)
			append_row(&d, &rows[i++]);
		run(be, real_of(logits) + (size_t)first * V, V, d);
		first = i;
	}
}
