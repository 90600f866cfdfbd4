// SPDX-License-Identifier: Apache-2.0
// Products of the emulated device: the numbers of cuBLASLt up to the order of sums, of float, bfloat16 and E4M3. An algorithm holds what its choice assumed of the
// pointers' alignment, so that a product that breaks the assumption is refused here as it would fail there; and how few rows of the batch
// it can do, which for the first one offered is not every number.
#include "cublasLt.h"

#include <vector>

#include "cuda_bf16.h"
#include "cuda_fp8.h"
#include "emulate.h"

#define FULL_ALIGNMENT 16    // of the widest loads
#define FIRST_LEAST_ROWS 4   // of the batch, for the algorithm offered first
enum { ALGORITHM_LEAST_ROWS = 4 };    // place in its data, behind the alignments

struct emulate_blas { int none; };
struct emulate_preference { uint32_t alignment[4]; };

cublasStatus_t cublasLtCreate(cublasLtHandle_t *handle)
{
	*handle = new emulate_blas();
	return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle)
{
	delete handle;
	return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *desc, cublasComputeType_t, cudaDataType_t)
{
	*desc = new emulate_product();
	return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t desc)
{
	delete desc;
	return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t desc, cublasLtMatmulDescAttributes_t which, const void *value, size_t n)
{
	if (n != sizeof(cublasOperation_t))
		return CUBLAS_STATUS_INVALID_VALUE;
	memcpy(which == CUBLASLT_MATMUL_DESC_TRANSA ? &desc->a : &desc->b, value, n);
	return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *layout, cudaDataType_t type, uint64_t rows, uint64_t columns,
					  int64_t stride)
{
	*layout = new emulate_matrix{type, rows, columns, stride};
	return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout)
{
	delete layout;
	return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *preference)
{
	*preference = new emulate_preference{{256, 256, 256, 256}};
	return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference)
{
	delete preference;
	return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t preference, cublasLtMatmulPreferenceAttributes_t which,
						    const void *value, size_t n)
{
	if (which >= CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES && n == 4)
		memcpy(&preference->alignment[which - CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES], value, n);
	return CUBLAS_STATUS_SUCCESS;
}

static size_t size_of(cudaDataType_t type) { return type == CUDA_R_32F ? 4 : type == CUDA_R_16BF ? 2 : 1; }

// What the widest loads of this matrix need of its address, as far as the caller promises that.
static uint64_t needed_alignment(const emulate_matrix *m, uint32_t promised)
{
	uint64_t stride = (uint64_t)m->stride * size_of(m->type), need = FULL_ALIGNMENT;
	while (stride % need || need > promised)
		need /= 2;
	return need;
}

// The documentation's conditions for products of FP8, all of them: the first operand transposed alone, every dimension, row and (multiply)
// address a multiple of 16 bytes.
static bool conditions_hold(const emulate_product *desc, const emulate_matrix *a, const emulate_matrix *b, const emulate_matrix *d)
{
	if (a->type != CUDA_R_8F_E4M3 && b->type != CUDA_R_8F_E4M3)
		return true;
	bool tiles = true;
	for (const emulate_matrix *m : {a, b, d})
		tiles = tiles && m->rows % 16 == 0 && m->columns % 16 == 0 && m->stride % 16 == 0;
	return tiles && a->type == b->type && desc->a == CUBLAS_OP_T && desc->b == CUBLAS_OP_N &&
	       (d->type == CUDA_R_32F || d->type == CUDA_R_16BF);
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t, cublasLtMatmulDesc_t desc, cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
					      cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d, cublasLtMatmulPreference_t p, int asked,
					      cublasLtMatmulHeuristicResult_t results[], int *ret_n)
{
	if (asked < 1)
		return CUBLAS_STATUS_INVALID_VALUE;
	if (!conditions_hold(desc, a, b, d))
		return CUBLAS_STATUS_NOT_SUPPORTED;
	for (*ret_n = 0; *ret_n < asked && *ret_n < 2; ++*ret_n)
		results[*ret_n] = cublasLtMatmulHeuristicResult_t{
			{{needed_alignment(a, p->alignment[0]), needed_alignment(b, p->alignment[1]), needed_alignment(c, p->alignment[2]),
			  needed_alignment(d, p->alignment[3]), *ret_n ? 1u : FIRST_LEAST_ROWS}}, 0, CUBLAS_STATUS_SUCCESS, 1};
	return CUBLAS_STATUS_SUCCESS;
}

// The rows of the batch are summed over where the second operand is transposed.
static bool does_rows(const cublasLtMatmulAlgo_t *algorithm, const emulate_product *desc, const emulate_matrix *b, const emulate_matrix *d)
{
	return (desc->b == CUBLAS_OP_T ? b->columns : d->columns) >= algorithm->data[ALGORITHM_LEAST_ROWS];
}

cublasStatus_t cublasLtMatmulAlgoCheck(cublasLtHandle_t, cublasLtMatmulDesc_t desc, cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
				       cublasLtMatrixLayout_t, cublasLtMatrixLayout_t d, const cublasLtMatmulAlgo_t *algorithm,
				       cublasLtMatmulHeuristicResult_t *result)
{
	*result = cublasLtMatmulHeuristicResult_t{*algorithm, 0, CUBLAS_STATUS_SUCCESS, 1};
	return conditions_hold(desc, a, b, d) && does_rows(algorithm, desc, b, d) ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_NOT_SUPPORTED;
}

// By their bits: sizes come first, in order, then NaN.
static const std::vector<float> e4m3_values = [] {
	std::vector<float> all;
	for (int i = 0; i < 256; i++)
		all.push_back(emulate_e4m3((uint8_t)i));
	return all;
}();

__nv_fp8_storage_t __nv_cvt_float_to_fp8(float x, __nv_saturation_t, __nv_fp8_interpretation_t)
{
	uint8_t sign = signbit(x) ? 128 : 0;
	float size = fabsf(x);
	if (isnan(x))
		return 127;
	uint8_t above = (uint8_t)(std::lower_bound(e4m3_values.begin(), e4m3_values.begin() + 127, size) - e4m3_values.begin());
	if (above == 127)
		return sign | 126;
	if (above == 0)
		return sign;
	double up = (double)e4m3_values[above] - size, down = (double)size - e4m3_values[above - 1];
	return sign | (up < down || (up == down && above % 2 == 0) ? above : above - 1);
}

static float value(const void *p, cudaDataType_t type, size_t i)
{
	return type == CUDA_R_32F ? ((const float *)p)[i] : type == CUDA_R_16BF ? (float)((const __nv_bfloat16 *)p)[i]
		: e4m3_values[((const uint8_t *)p)[i]];
}

// op(m) as rows of `inner` values each: of the first operand its rows, of the second its columns.
static std::vector<float> rows_of(const void *p, const emulate_matrix *m, bool along_column, uint64_t n, uint64_t inner)
{
	std::vector<float> rows(n * inner);
	for (uint64_t i = 0; i < n; i++)
		for (uint64_t k = 0; k < inner; k++)
			rows[i * inner + k] = value(p, m->type, along_column ? i * m->stride + k : k * m->stride + i);
	return rows;
}

// Sixteen running sums: the compiler makes vectors of them without leave to reorder.
static float dot(const float *a, const float *b, uint64_t n)
{
	float sums[16] = {0}, sum = 0;
	uint64_t k = 0;
	for (; k + 16 <= n; k += 16)
		for (int i = 0; i < 16; i++)
			sums[i] += a[k + i] * b[k + i];
	for (; k < n; k++)
		sum += a[k] * b[k];
	for (float s : sums)
		sum += s;
	return sum;
}

struct product {
	emulate_product operations;
	emulate_matrix a, b, d;
	const void *a_data, *b_data;
	void *d_data;
	float alpha, beta;
};

static void multiply(const product &p)
{
	uint64_t M = p.d.rows, N = p.d.columns, K = p.operations.a == CUBLAS_OP_T ? p.a.rows : p.a.columns;
	std::vector<float> a = rows_of(p.a_data, &p.a, p.operations.a == CUBLAS_OP_T, M, K);
	std::vector<float> b = rows_of(p.b_data, &p.b, p.operations.b == CUBLAS_OP_N, N, K);
	for (uint64_t j = 0; j < N; j++)
		for (uint64_t i = 0; i < M; i++) {
			size_t at = j * p.d.stride + i;
			float sum = p.alpha * dot(&a[i * K], &b[j * K], K);
			if (p.beta != 0)
				sum += p.beta * value(p.d_data, p.d.type, at);
			if (p.d.type == CUDA_R_32F)
				((float *)p.d_data)[at] = sum;
			else
				((__nv_bfloat16 *)p.d_data)[at] = __float2bfloat16_rn(sum);
		}
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t, cublasLtMatmulDesc_t desc, const void *alpha, const void *a, cublasLtMatrixLayout_t al,
			      const void *b,
			      cublasLtMatrixLayout_t bl, const void *beta, const void *c, cublasLtMatrixLayout_t cl, void *d, cublasLtMatrixLayout_t dl,
			      const cublasLtMatmulAlgo_t *algorithm, void *, size_t, cudaStream_t stream)
{
	const void *pointers[] = {a, b, c, d};
	for (int i = 0; i < 4; i++)
		if ((uintptr_t)pointers[i] % algorithm->data[i])
			return CUBLAS_STATUS_INVALID_VALUE;
	if (c != d || cl->stride != dl->stride || al->type != bl->type || !conditions_hold(desc, al, bl, dl) ||
	    !does_rows(algorithm, desc, bl, dl))
		return CUBLAS_STATUS_NOT_SUPPORTED;
	if (emulate_due(EMULATE_PRODUCT)) {
		emulate_break(cudaErrorIllegalAddress);
		return CUBLAS_STATUS_EXECUTION_FAILED;
	}
	product p = {*desc, *al, *bl, *dl, a, b, d, *(const float *)alpha, *(const float *)beta};
	return emulate_enqueue(stream, [p] { multiply(p); }) ? CUBLAS_STATUS_INVALID_VALUE : CUBLAS_STATUS_SUCCESS;
}

const char *cublasLtGetStatusString(cublasStatus_t status)
{
	return status == CUBLAS_STATUS_INVALID_VALUE ? "invalid value" : status == CUBLAS_STATUS_NOT_SUPPORTED ? "not supported" : "an error";
}
