// SPDX-License-Identifier: Apache-2.0
// Attention on tensor cores, in the manner of FlashAttention-2 (Dao 2023): scores and probabilities stay in the registers of the warp that
// owns the rows, keys and values pass through shared memory, the next step's on their way while this one is computed. Probabilities are
// rounded to bfloat16 for the second product; their sum is of the unrounded ones.
#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/mma.cuh"

#define LANES 128                 // of a block, 16 to a warp
#define THREADS (LANES * 2)
#define KEYS 64                   // of a step
#define PAD 8                     // values after each row in shared memory: rows then begin in different banks

extern __shared__ uint4 cuda_dynamic_shared[];

template <int D> static constexpr size_t shared_bytes() { return 2 * 2 * KEYS * (D + PAD) * sizeof(__nv_bfloat16); }

// One step of keys and values to shared memory: rows past the end and columns past the head size become zeros.
template <int D> static __device__ void load_step(__nv_bfloat16 (*keys)[D + PAD], __nv_bfloat16 (*values)[D + PAD],
						  const attention_input<__nv_bfloat16> &in,
						  const cuda_tile &at, uint32_t first, uint32_t end)
{
	for (uint32_t i = threadIdx.x; i < KEYS * (D / 8); i += THREADS) {
		uint32_t j = i / (D / 8), d = i % (D / 8) * 8;
		bool valid = first + j < end && d < in.shape.head_size;
		size_t from = valid ? key_row(in, at, first + j) * in.stride + (size_t)blockIdx.y * in.shape.head_size + d : 0;
		copy_start(&keys[j][d], in.k + from, valid);
		copy_start(&values[j][d], in.v + from, valid);
	}
	copy_commit();
}

// What a lane of rows g and g + 8 of the warp's 16 carries through the steps.
template <int D> struct running {
	uint32_t q[D / 16][4];
	float out[D / 8][4];
	float max[2], sum[2];             // of scores in units of log 2; of this thread's share of the row
	uint32_t from[2], seen[2];        // the two rows see the keys from..seen-1
};

// Two neighbouring values of the row that lane l of the block is; zeros past the end.
static __device__ __forceinline__ uint32_t load_pair(const attention_input<__nv_bfloat16> &in, const cuda_tile &at, uint32_t l, uint32_t d)
{
	uint32_t group = in.shape.n_heads / in.shape.n_kv_heads, D = in.shape.head_size;
	if (l >= at.n_rows * group || d >= D)
		return 0;
	return *(const uint32_t *)(in.q + (at.row + l / group) * in.q_stride + (blockIdx.y * group + l % group) * (size_t)D + d);
}

template <int D> static __device__ void running_init(running<D> *r, const attention_input<__nv_bfloat16> &in, const cuda_tile &at,
						     uint32_t l)
{
	uint32_t group = in.shape.n_heads / in.shape.n_kv_heads, t = threadIdx.x % 4 * 2;
#pragma unroll
	for (int k = 0; k < D / 16; k++)
		for (int i = 0; i < 4; i++)
			r->q[k][i] = load_pair(in, at, l + (i & 1) * 8, k * 16 + t + (i & 2) * 4);
#pragma unroll
	for (int n = 0; n < D / 8; n++)
		for (int i = 0; i < 4; i++)
			r->out[n][i] = 0;
	for (int i = 0; i < 2; i++) {
		r->max[i] = -0x1p126f;    // finite: a step whose keys a row does not see, before its window, must not give NaN
		r->sum[i] = 0;
		r->from[i] = first_key_of_row(in.shape, at.position + (l + i * 8) / group);
		r->seen[i] = keys_of_row(in.shape, at, at.position + (l + i * 8) / group);
	}
}

template <int D> static __device__ void multiply_keys(float (&s)[KEYS / 8][4], const running<D> &r, const __nv_bfloat16 (*keys)[D + PAD])
{
	uint32_t lane = threadIdx.x % CUDA_WARP, row = lane % 8 + lane / 16 * 8, column = lane / 8 % 2 * 8, b[4];
#pragma unroll
	for (int n = 0; n < KEYS / 16; n++) {
		for (int i = 0; i < 4; i++)
			s[2 * n][i] = s[2 * n + 1][i] = 0;
#pragma unroll
		for (int k = 0; k < D / 16; k++) {
			mma_load(b, &keys[n * 16 + row][k * 16 + column]);
			mma(s[2 * n], r.q[k], b[0], b[1]);
			mma(s[2 * n + 1], r.q[k], b[2], b[3]);
		}
	}
}

// Scores become probabilities against the new maximum; what was summed so far shrinks to it.
template <int D> static __device__ void soften(float (&s)[KEYS / 8][4], running<D> *r, uint32_t first, const attention_shape &shape)
{
	const float LOG2_E = 1.4426950408889634f;
	for (int i = 0; i < 2; i++) {
		float max = r->max[i];
#pragma unroll
		for (int n = 0; n < KEYS / 8; n++)
			for (int j = 0; j < 2; j++) {
				uint32_t key = first + n * 8 + threadIdx.x % 4 * 2 + j;
				float score = shape.soft_cap > 0 ? cap_score(shape, s[n][2 * i + j] * shape.scale) * LOG2_E :
								   s[n][2 * i + j] * (shape.scale * LOG2_E);
				s[n][2 * i + j] = key >= r->from[i] && key < r->seen[i] ? score : -INFINITY;
				max = fmaxf(max, s[n][2 * i + j]);
			}
		max = fmaxf(max, __shfl_xor_sync(0xffffffffu, max, 1));
		max = fmaxf(max, __shfl_xor_sync(0xffffffffu, max, 2));
		float shrink = exp2f(r->max[i] - max), sum = 0;
#pragma unroll
		for (int n = 0; n < KEYS / 8; n++)
			for (int j = 0; j < 2; j++) {
				s[n][2 * i + j] = exp2f(s[n][2 * i + j] - max);
				sum += s[n][2 * i + j];
			}
		r->max[i] = max;
		r->sum[i] = r->sum[i] * shrink + sum;
#pragma unroll
		for (int n = 0; n < D / 8; n++)
			for (int j = 0; j < 2; j++)
				r->out[n][2 * i + j] *= shrink;
	}
}

static __device__ __forceinline__ uint32_t pack_pair(float low, float high)
{
	__nv_bfloat162 both = __floats2bfloat162_rn(low, high);
	uint32_t word;
	memcpy(&word, &both, sizeof word);
	return word;
}

template <int D> static __device__ void multiply_values(running<D> *r, const float (&p)[KEYS / 8][4],
							const __nv_bfloat16 (*values)[D + PAD])
{
	uint32_t lane = threadIdx.x % CUDA_WARP, row = lane % 16, column = lane / 16 * 8, b[4];
#pragma unroll
	for (int k = 0; k < KEYS / 16; k++) {
		uint32_t a[4] = {pack_pair(p[2 * k][0], p[2 * k][1]), pack_pair(p[2 * k][2], p[2 * k][3]), pack_pair(p[2 * k + 1][0], p[2 * k + 1][1]),
				 pack_pair(p[2 * k + 1][2], p[2 * k + 1][3])};
#pragma unroll
		for (int n = 0; n < D / 16; n++) {
			mma_load_transposed(b, &values[k * 16 + row][n * 16 + column]);
			mma(r->out[2 * n], a, b[0], b[1]);
			mma(r->out[2 * n + 1], a, b[2], b[3]);
		}
	}
}

template <int D> static __device__ void running_done(const running<D> &r, __nv_bfloat16 *y, float *lse,
						     const attention_input<__nv_bfloat16> &in,
						     const cuda_tile &at, uint32_t l)
{
	uint32_t group = in.shape.n_heads / in.shape.n_kv_heads, size = in.shape.head_size, t = threadIdx.x % 4 * 2;
	for (int i = 0; i < 2; i++) {
		float sum = r.sum[i];
		sum += __shfl_xor_sync(0xffffffffu, sum, 1);
		sum += __shfl_xor_sync(0xffffffffu, sum, 2);
		uint32_t mine = l + i * 8;
		if (mine >= at.n_rows * group)
			continue;
		size_t to = (at.row + mine / group) * (size_t)in.shape.n_heads + blockIdx.y * group + mine % group;
		float inverse = 1.0f / sum;
#pragma unroll
		for (int n = 0; n < D / 8; n++)
			if (n * 8 < (int)size)
				*(uint32_t *)(y + to * size + n * 8 + t) = pack_pair(r.out[n][2 * i] * inverse, r.out[n][2 * i + 1] * inverse);
		if (lse && t == 0)
			lse[to] = (r.max[i] + log2f(sum)) * 0.6931471805599453f;
	}
}

template <int D> static __global__ void __launch_bounds__(THREADS) attention_kernel(__nv_bfloat16 *y, float *lse,
										    attention_input<__nv_bfloat16> in)
{
	__nv_bfloat16 (*keys)[KEYS][D + PAD] = (__nv_bfloat16 (*)[KEYS][D + PAD])cuda_dynamic_shared, (*values)[KEYS][D + PAD] = keys + 2;
	cuda_tile at = in.tiles[blockIdx.x];
	uint32_t group = in.shape.n_heads / in.shape.n_kv_heads, first_lane = threadIdx.x / CUDA_WARP * 16, n_lanes = at.n_rows * group;
	uint32_t end = keys_of_tile(in.shape, at);
	// by this warp
	uint32_t seen = first_lane < n_lanes ? keys_of_row(in.shape, at, at.position + min(first_lane + 15, n_lanes - 1) / group) : 1;
	uint32_t from = first_lane < n_lanes ? first_key_of_row(in.shape, at.position + first_lane / group) : 0;
	float s[KEYS / 8][4];
	running<D> r;
	running_init(&r, in, at, first_lane + threadIdx.x % CUDA_WARP / 4);
	uint32_t start = first_key_of_row(in.shape, at.position) / KEYS * KEYS;
	load_step<D>(keys[0], values[0], in, at, start, end);
	for (uint32_t first = start, half = 0; first < end; first += KEYS, half ^= 1) {
		if (first + KEYS < end) {
			load_step<D>(keys[half ^ 1], values[half ^ 1], in, at, first + KEYS, end);
			copy_wait<1>();
		} else {
			copy_wait<0>();
		}
		__syncthreads();
		if (first_lane < n_lanes && first < seen && first + KEYS > from) {
			multiply_keys<D>(s, r, keys[half]);
			soften<D>(s, &r, first, in.shape);
			multiply_values<D>(&r, s, values[half]);
		}
		__syncthreads();          // before the half is filled again
	}
	running_done(r, y, lse, in, at, first_lane + threadIdx.x % CUDA_WARP / 4);
}

template <int D> static void launch(backend *be, __nv_bfloat16 *y, float *lse, const attention_input<__nv_bfloat16> &in, uint32_t n_tiles)
{
	if (shared_bytes<D>() > 48u << 10 &&
	    !cuda_check(be, cudaFuncSetAttribute(attention_kernel<D>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared_bytes<D>()),
			"attention"))
		return;
	cuda_launch(be, "attention", dim3(n_tiles, in.shape.n_kv_heads), THREADS, shared_bytes<D>(), attention_kernel<D>, y, lse, in);
}

// Consumer chips of a generation have less shared memory than its large one: heads of 256 go the plain way there.
bool attention_tensor_fits(const cuda *c, const attention_shape *s)
{
	uint32_t D = s->head_size;
	size_t need = D <= 32 ? shared_bytes<32>() : D <= 64 ? shared_bytes<64>() : D <= 128 ? shared_bytes<128>() : shared_bytes<256>();
	return c->bf16 && D % 8 == 0 && D <= 256 && s->n_heads / s->n_kv_heads <= LANES && need <= c->shared_bytes;
}

void attention_tensor(backend *be, __nv_bfloat16 *y, float *lse, const attention_input<__nv_bfloat16> &input, bool cached)
{
	attention_input<__nv_bfloat16> in = input;
	const cuda_tiles *tiles = cuda_tiles_of(be, 0, LANES / (in.shape.n_heads / in.shape.n_kv_heads), cached);
	uint32_t D = in.shape.head_size;
	if (!tiles)
		return;
	in.tiles = tiles->device;
	if (D <= 32)
		launch<32>(be, y, lse, in, tiles->n);
	else if (D <= 64)
		launch<64>(be, y, lse, in, tiles->n);
	else if (D <= 128)
		launch<128>(be, y, lse, in, tiles->n);
	else
		launch<256>(be, y, lse, in, tiles->n);
}
