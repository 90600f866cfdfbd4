// SPDX-License-Identifier: Apache-2.0
// Products through cuBLASLt. The algorithm is chosen once per weight shape, for CUDA_PLAN_ROWS rows and without split-K reductions, and then
// used for any number of rows: what a row gets does not depend on how many others there are.
#include "kernels/cuda/cuda.cuh"

#include <new>

#define CUDA_PLAN_ROWS 1024

struct cuda_gemm_plan {
	uint32_t N, K;
	bool a_transposed, b_transposed, add;
	cudaDataType_t in, out;
	cublasLtMatmulAlgo_t algorithm;
	cuda_gemm_plan *next;
};

// Row-major C = A op(B) is column-major Cᵀ = op(B)ᵀ Aᵀ: cuBLAS sees B first.
struct layouts {
	cublasLtMatmulDesc_t operation;
	cublasLtMatrixLayout_t a, b, c;
};

static bool layouts_init(backend *be, const cuda_gemm *g, uint32_t M, layouts *l)
{
	cublasOperation_t first = g->b_transposed ? CUBLAS_OP_T : CUBLAS_OP_N, second = g->a_transposed ? CUBLAS_OP_T : CUBLAS_OP_N;
	*l = layouts{};
	return cuda_check_blas(be, cublasLtMatmulDescCreate(&l->operation, CUBLAS_COMPUTE_32F, CUDA_R_32F), "describing a product") &&
	       cuda_check_blas(be, cublasLtMatmulDescSetAttribute(l->operation, CUBLASLT_MATMUL_DESC_TRANSA, &first, sizeof first), "describing a product") &&
	       cuda_check_blas(be, cublasLtMatmulDescSetAttribute(l->operation, CUBLASLT_MATMUL_DESC_TRANSB, &second, sizeof second), "describing a product") &&
	       cuda_check_blas(be, g->b_transposed ? cublasLtMatrixLayoutCreate(&l->b, g->in, g->K, g->N, g->K)
						   : cublasLtMatrixLayoutCreate(&l->b, g->in, g->N, g->K, g->N), "describing a matrix") &&
	       cuda_check_blas(be, g->a_transposed ? cublasLtMatrixLayoutCreate(&l->a, g->in, M, g->K, M)
						   : cublasLtMatrixLayoutCreate(&l->a, g->in, g->K, M, g->K), "describing a matrix") &&
	       cuda_check_blas(be, cublasLtMatrixLayoutCreate(&l->c, g->out, g->N, M, g->N), "describing a matrix");
}

static void layouts_done(layouts *l)
{
	cublasLtMatrixLayoutDestroy(l->a);
	cublasLtMatrixLayoutDestroy(l->b);
	cublasLtMatrixLayoutDestroy(l->c);
	cublasLtMatmulDescDestroy(l->operation);
}

static bool choose(backend *be, const cuda_gemm *g, uint32_t rows, cublasLtMatmulAlgo_t *ret)
{
	cuda *c = cuda_of(be);
	layouts l;
	cublasLtMatmulPreference_t preference = NULL;
	size_t workspace = CUDA_WORKSPACE_BYTES;
	uint32_t reductions = CUBLASLT_REDUCTION_SCHEME_NONE;
	cublasLtMatmulHeuristicResult_t result;
	int n = 0;
	bool good = layouts_init(be, g, rows, &l) && cuda_check_blas(be, cublasLtMatmulPreferenceCreate(&preference), "choosing an algorithm") &&
		    cuda_check_blas(be, cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace, sizeof workspace),
				    "choosing an algorithm") &&
		    cuda_check_blas(be, cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &reductions,
									     sizeof reductions), "choosing an algorithm") &&
		    cuda_check_blas(be, cublasLtMatmulAlgoGetHeuristic(c->blas, l.operation, l.b, l.a, l.c, l.c, preference, 1, &result, &n),
				    "choosing an algorithm");
	if (good && !n)
		backend_fail(be, "cuBLAS has no algorithm for a product of %u x %u", g->N, g->K);
	if (good && n)
		*ret = result.algo;
	cublasLtMatmulPreferenceDestroy(preference);
	layouts_done(&l);
	return good && n;
}

// With A transposed (weight gradients) the rows of the batch are summed over: K varies and is not part of the key.
static const cublasLtMatmulAlgo_t *plan_of(backend *be, const cuda_gemm *g)
{
	cuda *c = cuda_of(be);
	uint32_t K = g->a_transposed ? 0 : g->K;
	for (cuda_gemm_plan *p = c->plans; p; p = p->next)
		if (p->N == g->N && p->K == K && p->a_transposed == g->a_transposed && p->b_transposed == g->b_transposed && p->add == g->add &&
		    p->in == g->in && p->out == g->out)
			return &p->algorithm;
	cuda_gemm_plan *p = new (std::nothrow) cuda_gemm_plan{g->N, K, g->a_transposed, g->b_transposed, g->add, g->in, g->out, {}, c->plans};
	if (!p || !choose(be, g, g->a_transposed ? g->M : CUDA_PLAN_ROWS, &p->algorithm)) {
		delete p;
		return NULL;
	}
	c->plans = p;
	return &p->algorithm;
}

void cuda_gemm_plans_free(cuda *c)
{
	while (c->plans) {
		cuda_gemm_plan *next = c->plans->next;
		delete c->plans;
		c->plans = next;
	}
}

void cuda_gemm_run(backend *be, const cuda_gemm *g)
{
	cuda *c = cuda_of(be);
	if (backend_failed(be) || !g->M || !g->N || !g->K)
		return;
	const cublasLtMatmulAlgo_t *algorithm = plan_of(be, g);
	layouts l;
	float alpha = 1, beta = g->add ? 1 : 0;
	if (algorithm && layouts_init(be, g, g->M, &l)) {
		cuda_check_blas(be, cublasLtMatmul(c->blas, l.operation, &alpha, g->b, l.b, g->a, l.a, &beta, g->c, l.c, g->c, l.c, algorithm, c->workspace,
						   CUDA_WORKSPACE_BYTES, c->stream), "a product");
		layouts_done(&l);
	}
}

static cudaDataType_t act_data_type(const cuda *c) { return c->bf16 ? CUDA_R_16BF : CUDA_R_32F; }

template <typename A> static __global__ void bias_kernel(A *y, const float *bias, uint64_t n, uint32_t N)
{
	for (uint64_t i = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (uint64_t)gridDim.x * blockDim.x)
		y[i] = from_float<A>(to_float(y[i]) + bias[i % N]);
}

void cuda_linear(backend *be, struct act *y, const struct act *x, const struct weight *w, const struct real *bias, uint32_t rows)
{
	cuda *c = cuda_of(be);
	cuda_gemm g = {rows, w->n_rows, w->n_columns, x, w->data, y, false, true, false, act_data_type(c), act_data_type(c)};
	cuda_gemm_run(be, &g);
	uint64_t n = (uint64_t)rows * w->n_rows;
	if (!bias || !n || backend_failed(be))
		return;
	with_act(c, [&](auto *type) {
		using A = ACT_TYPE(type);
		bias_kernel<A><<<blocks_of(n, CUDA_BLOCK), CUDA_BLOCK, 0, c->stream>>>((A *)y, real_of(bias), n, w->n_rows);
	});
	CUDA_LAUNCHED(be, "bias");
}

void cuda_linear_real(backend *be, struct real *y, bool add, const struct act *x, const struct weight *w, uint32_t rows)
{
	cuda_gemm g = {rows, w->n_rows, w->n_columns, x, w->data, y, false, true, add, act_data_type(cuda_of(be)), CUDA_R_32F};
	cuda_gemm_run(be, &g);
}

// One thread per column, rows in order.
template <typename A> static __global__ void column_sum_kernel(float *sum, const A *x, uint32_t rows, uint32_t N)
{
	uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
	if (i >= N)
		return;
	float s = 0;
	for (uint32_t t = 0; t < rows; t++)
		s += to_float(x[(size_t)t * N + i]);
	sum[i] += s;
}

void cuda_linear_backward(backend *be, struct act *dx, struct real *dw, struct real *dbias, const struct act *dy, const struct act *x,
			  const struct weight *w, uint32_t rows)
{
	cuda *c = cuda_of(be);
	cudaDataType_t type = act_data_type(c);
	if (dx) {
		cuda_gemm g = {rows, w->n_columns, w->n_rows, dy, w->data, dx, false, false, false, type, type};
		cuda_gemm_run(be, &g);
	}
	if (dw) {
		cuda_gemm g = {w->n_rows, w->n_columns, rows, dy, x, dw, true, false, true, type, CUDA_R_32F};
		cuda_gemm_run(be, &g);
	}
	if (!dbias || !rows || backend_failed(be))
		return;
	with_act(c, [&](auto *t) {
		using A = ACT_TYPE(t);
		column_sum_kernel<A><<<(w->n_rows + CUDA_BLOCK - 1) / CUDA_BLOCK, CUDA_BLOCK, 0, c->stream>>>(real_of(dbias), (const A *)dy, rows, w->n_rows);
	});
	CUDA_LAUNCHED(be, "bias gradient");
}

static __global__ void to_bf16_kernel(__nv_bfloat16 *to, const float *from, uint64_t n)
{
	for (uint64_t i = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (uint64_t)gridDim.x * blockDim.x)
		to[i] = __float2bfloat16_rn(from[i]);
}

void cuda_to_bf16(backend *be, __nv_bfloat16 *to, const float *from, uint64_t n)
{
	if (backend_failed(be) || !n)
		return;
	to_bf16_kernel<<<blocks_of(n, CUDA_BLOCK), CUDA_BLOCK, 0, cuda_of(be)->stream>>>(to, from, n);
	CUDA_LAUNCHED(be, "to bf16");
}

// A float dy goes through the scratch buffer in chunks of rows to become act; each chunk adds its part to dw.
void cuda_linear_real_backward(backend *be, struct act *dx, struct real *dw, const struct real *dy, const struct act *x, const struct weight *w,
			       uint32_t rows)
{
	cuda *c = cuda_of(be);
	if (!c->bf16) {
		cuda_linear_backward(be, dx, dw, NULL, (const struct act *)dy, x, w, rows);
		return;
	}
	uint32_t chunk = plan_chunk_rows(CUDA_SCRATCH_BYTES, (size_t)w->n_rows * sizeof(__nv_bfloat16), rows);
	if (!chunk && rows)
		backend_fail(be, "a row of %u numbers does not fit the scratch buffer", w->n_rows);
	for (uint32_t first = 0; first < rows && !backend_failed(be); first += chunk) {
		uint32_t n = rows - first < chunk ? rows - first : chunk;
		cuda_to_bf16(be, (__nv_bfloat16 *)c->scratch, real_of(dy) + (size_t)first * w->n_rows, (uint64_t)n * w->n_rows);
		size_t at = (size_t)first * w->n_columns;
		cuda_linear_backward(be, dx ? cuda_act_at_bf16(dx, at) : NULL, dw, NULL, (const struct act *)c->scratch, (const struct act *)((const __nv_bfloat16 *)x + at),
				     w, n);
	}
}
