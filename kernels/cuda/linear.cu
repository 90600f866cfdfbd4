// SPDX-License-Identifier: Apache-2.0
// Products through cuBLASLt. The algorithm is chosen once per weight shape, for CUDA_PLAN_ROWS rows and without split-K reductions,
// and then used for any number of rows: what a row gets does not depend on how many others there are. So it is one that says it can do with
// few, odd and most rows, and in the workspace there is.
#include "kernels/cuda/columns.cuh"

#include <new>

#define CUDA_PLAN_ROWS 1024
#define CANDIDATES 16            // the fastest at CUDA_PLAN_ROWS, in that order
#define FULL_ALIGNMENT 16        // of the widest loads, in bytes: more is not asked of an address

// Row-major C = A op(B) is column-major Cᵀ = op(B)ᵀ Aᵀ: cuBLAS sees B first.
struct layouts {
	cublasLtMatmulDesc_t operation;
	cublasLtMatrixLayout_t a, b, c;
};

struct alignments {
	uint32_t a, b, c;
	bool operator==(const alignments &) const = default;
};

struct cuda_gemm_plan {
	uint32_t M, N, K;            // the one that varies with the batch is 0: K (summed over) with A transposed, else M
	bool a_transposed, b_transposed, add;
	cudaDataType_t in, out;
	alignments promised;
	cublasLtMatmulAlgo_t algorithm;
	uint32_t rows;               // of the layouts kept below: the layers of one pass use them again
	layouts last;
	cuda_gemm_plan *next;
};

static void layouts_done(layouts *l)
{
	if (l->a)
		cublasLtMatrixLayoutDestroy(l->a);
	if (l->b)
		cublasLtMatrixLayoutDestroy(l->b);
	if (l->c)
		cublasLtMatrixLayoutDestroy(l->c);
	if (l->operation)
		cublasLtMatmulDescDestroy(l->operation);
	*l = layouts{};
}

static bool layouts_init(backend *be, const cuda_gemm *g, layouts *l)
{
	cublasOperation_t first = g->b_transposed ? CUBLAS_OP_T : CUBLAS_OP_N, second = g->a_transposed ? CUBLAS_OP_T : CUBLAS_OP_N;
	uint32_t b_stride = g->b_transposed ? g->K : g->N, b_rows = g->b_transposed ? g->N : g->K, a_stride = g->a_transposed ? g->M : g->K,
		 a_rows = g->a_transposed ? g->K : g->M;
	*l = layouts{};
	cublasStatus_t e = cublasLtMatmulDescCreate(&l->operation, CUBLAS_COMPUTE_32F, CUDA_R_32F);
	if (!e)
		e = cublasLtMatmulDescSetAttribute(l->operation, CUBLASLT_MATMUL_DESC_TRANSA, &first, sizeof first);
	if (!e)
		e = cublasLtMatmulDescSetAttribute(l->operation, CUBLASLT_MATMUL_DESC_TRANSB, &second, sizeof second);
	if (!e)
		e = cublasLtMatrixLayoutCreate(&l->b, g->in, b_stride, b_rows, b_stride);
	if (!e)
		e = cublasLtMatrixLayoutCreate(&l->a, g->in, a_stride, a_rows, a_stride);
	if (!e)
		e = cublasLtMatrixLayoutCreate(&l->c, g->out, g->N, g->M, g->N);
	if (!cuda_check_blas(be, e, "describing a product"))
		layouts_done(l);
	return !e;
}

static size_t type_bytes(cudaDataType_t type) { return type == CUDA_R_32F ? 4 : type == CUDA_R_16BF ? 2 : 1; }

// What every pointer to whole rows of that length has: arrays begin aligned, and callers move by rows. Where a matrix begins inside an
// array, behind vectors of odd lengths, all pointers to its rows have less, however many rows there are.
static uint32_t row_alignment(const void *p, uint64_t row_elements, cudaDataType_t type)
{
	uint32_t alignment = FULL_ALIGNMENT;
	while ((row_elements * type_bytes(type) | (uintptr_t)p) % alignment)
		alignment /= 2;
	return alignment;
}

static alignments alignments_of(const cuda_gemm *g)
{
	return alignments{row_alignment(g->a, g->a_transposed ? g->M : g->K, g->in), row_alignment(g->b, g->b_transposed ? g->K : g->N, g->in),
			  row_alignment(g->c, g->N, g->out)};
}

static cublasStatus_t prefer(cublasLtMatmulPreference_t p, const cuda_gemm *g, const alignments *have)
{
	size_t workspace = CUDA_WORKSPACE_BYTES;
	// Weight gradients may be summed in parts, in a fixed order; rows of the batch may not, for the parts would depend on their number.
	uint32_t reductions = g->a_transposed ? CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE : CUBLASLT_REDUCTION_SCHEME_NONE;
	const struct { cublasLtMatmulPreferenceAttributes_t which; const void *value; size_t bytes; } attributes[] = {
		{CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace, sizeof workspace},
		{CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &reductions, sizeof reductions},
		{CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, &have->b, sizeof have->b},
		{CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, &have->a, sizeof have->a},
		{CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, &have->c, sizeof have->c},
		{CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, &have->c, sizeof have->c},
	};
	cublasStatus_t e = CUBLAS_STATUS_SUCCESS;
	for (const auto &attribute : attributes)
		if (!e)
			e = cublasLtMatmulPreferenceSetAttribute(p, attribute.which, attribute.value, attribute.bytes);
	return e;
}

// Whether the algorithm does the product for so many rows of the batch.
static bool does_rows(backend *be, const cuda_gemm *asked, const cublasLtMatmulAlgo_t *algorithm, uint32_t rows)
{
	cuda_gemm g = *asked;
	layouts l;
	cublasLtMatmulHeuristicResult_t result = {};
	(g.a_transposed ? g.K : g.M) = rows;
	if (!layouts_init(be, &g, &l))
		return false;
	cublasStatus_t e = cublasLtMatmulAlgoCheck(cuda_of(be)->blas, l.operation, l.b, l.a, l.c, l.c, algorithm, &result);
	layouts_done(&l);
	return !e && result.workspaceSize <= CUDA_WORKSPACE_BYTES;
}

static bool does_all_rows(backend *be, const cuda_gemm *asked, const cublasLtMatmulAlgo_t *algorithm)
{
	const uint32_t tried[] = {1, 2, 3, 8, 17, 64, 100, 128, 257, 512, CUDA_PLAN_ROWS, cuda_of(be)->max_rows};
	uint32_t tile = asked->in == CUDA_R_8F_E4M3 ? FP8_TILE : 1;
	for (uint32_t rows : tried)
		if (rows && !does_rows(be, asked, algorithm, (rows + tile - 1) / tile * tile))
			return false;
	return true;
}

// For CUDA_PLAN_ROWS rows, whatever the batch has. Where none says that it does all numbers of rows, the first is taken: a product it
// cannot do then fails by name.
static bool choose(backend *be, const cuda_gemm *asked, const alignments *have, cublasLtMatmulAlgo_t *ret)
{
	cuda_gemm fixed = *asked, *g = &fixed;
	layouts l;
	cublasLtMatmulPreference_t preference = NULL;
	cublasLtMatmulHeuristicResult_t results[CANDIDATES];
	int n = 0, best = 0;
	(g->a_transposed ? g->K : g->M) = CUDA_PLAN_ROWS;
	if (!layouts_init(be, g, &l))
		return false;
	cublasStatus_t e = cublasLtMatmulPreferenceCreate(&preference);
	if (!e)
		e = prefer(preference, g, have);
	if (!e)
		e = cublasLtMatmulAlgoGetHeuristic(cuda_of(be)->blas, l.operation, l.b, l.a, l.c, l.c, preference, CANDIDATES, results, &n);
	if (preference)
		cublasLtMatmulPreferenceDestroy(preference);
	layouts_done(&l);
	if (e == CUBLAS_STATUS_NOT_SUPPORTED || (!e && !n)) {
		backend_fail(be, "cuBLAS has no algorithm for a product of %u x %u", g->N, g->K);
		return false;
	}
	if (!cuda_check_blas(be, e, "choosing an algorithm"))
		return false;
	while (best < n && (results[best].state != CUBLAS_STATUS_SUCCESS || !does_all_rows(be, g, &results[best].algo)))
		best++;
	*ret = results[best < n ? best : 0].algo;
	return !backend_failed(be);
}

static cuda_gemm_plan *plan_of(backend *be, const cuda_gemm *g)
{
	cuda *c = cuda_of(be);
	uint32_t M = g->a_transposed ? g->M : 0, K = g->a_transposed ? 0 : g->K;
	alignments have = alignments_of(g);
	for (cuda_gemm_plan *p = c->plans; p; p = p->next)
		if (p->M == M && p->N == g->N && p->K == K && p->a_transposed == g->a_transposed && p->b_transposed == g->b_transposed &&
		    p->add == g->add && p->in == g->in && p->out == g->out && p->promised == have)
			return p;
	cuda_gemm_plan *p = new (std::nothrow) cuda_gemm_plan{M, g->N, K, g->a_transposed, g->b_transposed, g->add, g->in, g->out, have, {}, 0,
							      {}, c->plans};
	if (!p)
		backend_fail(be, "no memory for a product's plan");
	if (!p || !choose(be, g, &have, &p->algorithm)) {
		delete p;
		return NULL;
	}
	c->plans = p;
	return p;
}

void cuda_gemm_plans_free(cuda *c)
{
	while (c->plans) {
		cuda_gemm_plan *next = c->plans->next;
		layouts_done(&c->plans->last);
		delete c->plans;
		c->plans = next;
	}
}

void cuda_gemm_run(backend *be, const cuda_gemm *g)
{
	cuda *c = cuda_of(be);
	if (backend_failed(be) || !g->M || !g->N || !g->K)
		return;
	cuda_gemm_plan *p = plan_of(be, g);
	float alpha = 1, beta = g->add ? 1 : 0;
	if (!p)
		return;
	uint32_t rows = g->a_transposed ? g->K : g->M;
	if (p->rows != rows) {
		layouts_done(&p->last);
		p->rows = 0;
		if (!layouts_init(be, g, &p->last))
			return;
		p->rows = rows;
	}
	cuda_check_blas(be, cublasLtMatmul(c->blas, p->last.operation, &alpha, g->b, p->last.b, g->a, p->last.a, &beta, g->c, p->last.c, g->c,
					   p->last.c,
					   &p->algorithm, c->workspace, CUDA_WORKSPACE_BYTES, c->stream), "a product");
}

static cudaDataType_t act_data_type(const cuda *c) { return c->bf16 ? CUDA_R_16BF : CUDA_R_32F; }

template <int N, typename A> static __global__ void bias_kernel(A *y, const float *bias, uint64_t n, uint32_t columns)
{
	for (uint64_t i = ((uint64_t)blockIdx.x * blockDim.x + threadIdx.x) * N; i < n; i += (uint64_t)gridDim.x * blockDim.x * N) {
		cuda_pack<A, N> v = load_pack<N>(y + i);
		cuda_pack<float, N> b = load_pack<N>(bias + i % columns);
		for (int j = 0; j < N; j++)
			v.v[j] = from_float<A>(to_float(v.v[j]) + b.v[j]);
		store_pack(y + i, v);
	}
}

// y (rows, columns) += bias, unless that is NULL.
template <typename A> static void bias_add(backend *be, A *y, const struct real *bias, uint32_t rows, uint32_t columns)
{
	uint64_t n = (uint64_t)rows * columns;
	if (!bias || !n || backend_failed(be))
		return;
	with_packs<4>(packs_fit<4>(y, columns) && packs_fit<4>(real_of(bias), columns), [&](auto width) {
		constexpr int N = decltype(width)::value;
		cuda_launch(be, "bias", blocks_of(n / N, CUDA_BLOCK), CUDA_BLOCK, 0, bias_kernel<N, A>, y, real_of(bias), n, columns);
	});
}

void cuda_linear(backend *be, struct act *y, const struct act *x, const struct weight *w, const struct real *bias, uint32_t rows)
{
	cuda *c = cuda_of(be);
	if (w->scales) {
		cuda_fp8_linear(be, y, x, w, bias, rows);
		return;
	}
	cuda_gemm g = {rows, w->n_rows, w->n_columns, x, cuda_weight_data(be, w), y, false, true, false, act_data_type(c), act_data_type(c)};
	cuda_gemm_run(be, &g);
	with_act(c, [&](auto *type) { bias_add(be, (ACT_TYPE(type) *)y, bias, rows, w->n_rows); });
}

void cuda_linear_real(backend *be, struct real *y, bool add, const struct act *x, const struct weight *w, const struct real *bias,
		      uint32_t rows)
{
	if (w->scales) {
		cuda_fp8_linear_real(be, y, add, x, w, bias, rows);
		return;
	}
	cuda_gemm g = {rows, w->n_rows, w->n_columns, x, cuda_weight_data(be, w), y, false, true, add, act_data_type(cuda_of(be)), CUDA_R_32F};
	cuda_gemm_run(be, &g);
	bias_add(be, real_of(y), bias, rows, w->n_rows);
}

template <typename A> struct bias_term {
	const A *dy;
	uint32_t N;
	__device__ float operator()(uint32_t t, uint32_t i) const { return to_float(dy[(size_t)t * N + i]); }
};

void cuda_linear_backward(backend *be, struct act *dx, struct real *dw, struct real *dbias, const struct act *dy, const struct act *x,
			  const struct weight *w, uint32_t rows)
{
	cuda *c = cuda_of(be);
	cudaDataType_t type = act_data_type(c);
	assert(!w->scales);
	if (dx) {
		cuda_gemm g = {rows, w->n_columns, w->n_rows, dy, cuda_weight_data(be, w), dx, false, false, false, type, type};
		cuda_gemm_run(be, &g);
	}
	if (dw) {
		cuda_gemm g = {w->n_rows, w->n_columns, rows, dy, x, dw, true, false, true, type, CUDA_R_32F};
		cuda_gemm_run(be, &g);
	}
	if (!dbias)
		return;
	with_act(c, [&](auto *t) {
		using A = ACT_TYPE(t);
		columns_add(be, "bias gradient", real_of(dbias), rows, w->n_rows, 0, bias_term<A>{(const A *)dy, w->n_rows});
	});
}

static __global__ void to_bf16_kernel(__nv_bfloat16 *to, const float *from, uint64_t n)
{
	for (uint64_t i = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (uint64_t)gridDim.x * blockDim.x)
		to[i] = __float2bfloat16_rn(from[i]);
}

cudaError_t cuda_find_code(void)
{
	cudaFuncAttributes found;
	return cudaFuncGetAttributes(&found, to_bf16_kernel);
}

void cuda_to_bf16(backend *be, __nv_bfloat16 *to, const float *from, uint64_t n)
{
	if (backend_failed(be) || !n)
		return;
	cuda_launch(be, "to bf16", blocks_of(n, CUDA_BLOCK), CUDA_BLOCK, 0, to_bf16_kernel, to, from, n);
}

// A float dy goes through the scratch buffer in chunks of rows to become act; each chunk adds its part to dw.
void cuda_linear_real_backward(backend *be, struct act *dx, struct real *dw, struct real *dbias, const struct real *dy, const struct act *x,
			       const struct weight *w, uint32_t rows)
{
	cuda *c = cuda_of(be);
	if (!c->bf16) {
		cuda_linear_backward(be, dx, dw, dbias, (const struct act *)dy, x, w, rows);
		return;
	}
	if (dbias)
		columns_add(be, "bias gradient", real_of(dbias), rows, w->n_rows, 0, bias_term<float>{real_of(dy), w->n_rows});
	uint32_t chunk = plan_chunk_rows(CUDA_SCRATCH_BYTES, (size_t)w->n_rows * sizeof(__nv_bfloat16), rows);
	if (!chunk && rows)
		backend_fail(be, "a row of %u numbers does not fit the scratch buffer", w->n_rows);
	for (uint32_t first = 0; first < rows && !backend_failed(be); first += chunk) {
		uint32_t n = rows - first < chunk ? rows - first : chunk;
		cuda_to_bf16(be, (__nv_bfloat16 *)c->scratch, real_of(dy) + (size_t)first * w->n_rows, (uint64_t)n * w->n_rows);
		size_t at = (size_t)first * w->n_columns;
		cuda_linear_backward(be, dx ? cuda_act_at_bf16(dx, at) : NULL, dw, NULL, (const struct act *)c->scratch,
				     (const struct act *)((const __nv_bfloat16 *)x + at),
				     w, n);
	}
}
