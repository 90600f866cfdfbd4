// SPDX-License-Identifier: Apache-2.0
// Attention with both products in bfloat16 (vdpbf16ps), for processors that multiply it: queries, keys, values and probabilities are
// rounded, sums, maxima and exponentials are float. The shape is vector_attention.c's (there is why a row's bits are its own): a panel has
// PANEL queries in the lanes, S is (keys, PANEL), the output (D, PANEL), keys go in steps of ATTENTION_KEYS from position 0.
//
// The instruction adds two products to a lane, so operands are pairs: queries and keys of two neighbours in the head, (D / 2) pairs;
// probabilities and values of two neighbours in the sequence. A step of an odd number of keys gets one more, which no lane sees.
#include "kernels/cpu/vector_ops.h"

#define PANEL (2 * LANES)
#define KEYS ATTENTION_KEYS
#define BLOCK_ROWS 12                // 24 of 32 registers hold sums
#define LOG2_E 1.44269504f

static size_t up_to(size_t n, size_t multiple)
{
	return (n + multiple - 1) / multiple * multiple;
}

// Two vectors rounded, side by side: those of `low`, then those of `high`.
INLINE __m512i round_two(vf low, vf high)
{
	return (__m512i)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low);
}

// The same as pairs: lane i has low[i] and high[i].
INLINE __m512i pair_two(vf low, vf high)
{
	const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20, 4,
					       19, 3, 18, 2, 17, 1, 16, 0);
	return _mm512_permutexvar_epi16(order, round_two(low, high));
}

INLINE vf pairs_add(vf sum, uint32_t a, __m512i b)
{
	return (vf)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32((int)a), (__m512bh)b);
}

// c (n_rows, PANEL) {=, +=} a b, of n pairs: a(i, k) = a[i * row + k * step], b (n, PANEL).
INLINE void block(const int n_rows, float *c, const uint32_t *a, size_t row, size_t step, const uint32_t *b, size_t n, bool add)
{
	vf left[BLOCK_ROWS], right[BLOCK_ROWS];

	UNROLL for (int i = 0; i < n_rows; i++) {
		left[i] = add ? vf_load(c + i * PANEL) : (vf){0};
		right[i] = add ? vf_load(c + i * PANEL + LANES) : (vf){0};
	}
	for (size_t k = 0; k < n; k++) {
		__m512i b0 = _mm512_load_si512(b + k * PANEL), b1 = _mm512_load_si512(b + k * PANEL + LANES);
		UNROLL for (int i = 0; i < n_rows; i++) {
			uint32_t x = a[i * row + k * step];
			left[i] = pairs_add(left[i], x, b0);
			right[i] = pairs_add(right[i], x, b1);
		}
	}
	UNROLL for (int i = 0; i < n_rows; i++) {
		vf_store(c + i * PANEL, left[i]);
		vf_store(c + i * PANEL + LANES, right[i]);
	}
}

INLINE void product(float *c, size_t n_rows, const uint32_t *a, size_t row, size_t step, const uint32_t *b, size_t n, bool add)
{
	size_t i = 0;

	for (; i + BLOCK_ROWS <= n_rows; i += BLOCK_ROWS)
		block(BLOCK_ROWS, c + i * PANEL, a + i * row, row, step, b, n, add);
	for (; i + 4 <= n_rows; i += 4)
		block(4, c + i * PANEL, a + i * row, row, step, b, n, add);
	for (; i < n_rows; i++)
		block(1, c + i * PANEL, a + i * row, row, step, b, n, add);
}

// A panel: lane i is the query of row `lane + i` / n_group of the unit and sees keys from[i]..end[i]-1.
struct panel {
	uint32_t *q;                     // (pairs, PANEL)
	float *out, *max, *sum;          // (D, PANEL), (PANEL), (PANEL): largest score yet, sum of exponentials
	int32_t *from, *end;             // (PANEL)
	size_t first_from, last_from, first_end, last_end;
};

// Scratch: the unit's panels, then one step of keys, values, scores, probabilities.
struct step {
	size_t k_width, v_width;         // in pairs
	uint32_t *k, *v, *p;             // (KEYS, k_width), (KEYS / 2, v_width), (KEYS / 2, PANEL)
	float *s;                        // (KEYS, PANEL)
};

static size_t k_width(size_t D)
{
	return up_to(D, 2 * LANES) / 2;
}

static size_t panel_floats(size_t D)
{
	return (k_width(D) + up_to(D, LANES) + 4) * PANEL;
}

static size_t n_lanes(const struct attention_work *a)
{
	return (a->last - a->first) * (size_t)a->n_group;
}

static struct panel panel_at(const struct attention_work *a, size_t lane)
{
	size_t D = a->head_size, n = n_lanes(a), last_lane = lane + PANEL < n ? lane + PANEL - 1 : n - 1;
	size_t first = a->first + lane / a->n_group, last = a->first + last_lane / a->n_group;
	float *x = a->scratch + lane / PANEL * panel_floats(D);
	struct panel p = {.q = (uint32_t *)x, .out = x + k_width(D) * PANEL};

	p.max = p.out + up_to(D, LANES) * PANEL;
	p.sum = p.max + PANEL;
	p.from = (int32_t *)(p.sum + PANEL);
	p.end = p.from + PANEL;
	p.first_from = a->window && first >= a->window ? first - a->window + 1 : 0;
	p.last_from = a->window && last >= a->window ? last - a->window + 1 : 0;
	p.first_end = a->n_seen ? a->n_seen : first + 1;
	p.last_end = a->n_seen ? a->n_seen : last + 1;
	return p;
}

static struct step step_at(const struct attention_work *a)
{
	size_t D = a->head_size;
	struct step s = {.k_width = k_width(D), .v_width = up_to(D, LANES)};

	s.k = (uint32_t *)(a->scratch + (n_lanes(a) + PANEL - 1) / PANEL * panel_floats(D));
	s.v = s.k + KEYS * s.k_width;
	s.p = s.v + KEYS / 2 * s.v_width;
	s.s = (float *)(s.p + KEYS / 2 * PANEL);
	return s;
}

static size_t scratch_floats(const struct attention_work *a)
{
	size_t D = a->head_size;

	return (n_lanes(a) + PANEL - 1) / PANEL * panel_floats(D) + KEYS * k_width(D) + KEYS / 2 * up_to(D, LANES) + KEYS / 2 * PANEL +
	       KEYS * PANEL;
}

INLINE vf take_or_zero(const float *p, size_t at, size_t n)
{
	return at < n ? take(p + at, n - at) : (vf){0};
}

static void panel_open(const struct panel *p, const struct attention_work *a, size_t lane)
{
	size_t D = a->head_size, n = n_lanes(a);

	for (size_t half = 0; half < PANEL; half += LANES) {
		for (size_t d = 0; d < D; d += 2 * LANES) {
			__m512i x[LANES];
			for (size_t i = 0; i < LANES; i++) {
				size_t at = lane + half + i;
				const float *q = a->q + at / a->n_group * a->q_stride + at % a->n_group * D;
				x[i] = at < n ? round_two(take(q + d, D - d), take_or_zero(q, d + LANES, D)) : _mm512_setzero_si512();
			}
			vi_transpose(x);
			for (size_t i = 0; i < LANES; i++)
				_mm512_store_si512(p->q + (d / 2 + i) * PANEL + half, x[i]);
		}
	}
	memset(p->out, 0, D * PANEL * sizeof(float));
	for (size_t i = 0; i < PANEL; i++) {
		size_t row = a->first + (lane + i < n ? lane + i : n - 1) / a->n_group;
		p->max[i] = -0x1p126f;       // below every score; finite, so that the first rescale is 2^-big = 0 and never NaN
		p->sum[i] = 0;
		p->from[i] = (int32_t)(a->window && row >= a->window ? row - a->window + 1 : 0);
		p->end[i] = (int32_t)(a->n_seen ? a->n_seen : row + 1);
	}
}

static void panel_close(const struct panel *p, const struct attention_work *a, size_t lane)
{
	size_t D = a->head_size, n = n_lanes(a);

	for (size_t half = 0; half < PANEL && lane + half < n; half += LANES) {
		vf inverse = 1 / vf_load(p->sum + half);
		for (size_t d = 0; d < D; d += LANES) {
			__m512i x[LANES];
			for (size_t i = 0; i < LANES; i++)
				x[i] = d + i < D ? (__m512i)(vf_load(p->out + (d + i) * PANEL + half) * inverse) : _mm512_setzero_si512();
			vi_transpose(x);
			for (size_t i = 0; i < LANES && lane + half + i < n; i++) {
				size_t at = lane + half + i;
				give(a->y + at / a->n_group * a->y_stride + at % a->n_group * D + d, (vf)x[i], D - d);
			}
		}
	}
	for (size_t i = 0; a->lse && i < PANEL && lane + i < n; i++)
		a->lse[(lane + i) / a->n_group * a->lse_stride + (lane + i) % a->n_group] =
			p->max[i] * (a->soft_cap > 0 ? 1 : a->scale) + logf(p->sum[i]);
}

// Scores of keys key..key+n_keys-1 that a lane does not see become -infinity.
static void mask(const struct panel *p, float *s, size_t key, size_t n_keys)
{
	for (size_t half = 0; half < PANEL; half += LANES) {
		__m512i from = _mm512_load_si512(p->from + half), end = _mm512_load_si512(p->end + half);
		for (size_t j = 0; j < n_keys; j++) {
			__m512i at = _mm512_set1_epi32((int)(key + j));
			__mmask16 seen = _mm512_cmple_epi32_mask(from, at) & _mm512_cmplt_epi32_mask(at, end);
			float *x = s + j * PANEL + half;
			vf_store(x, (vf)_mm512_mask_mov_ps(_mm512_set1_ps(-INFINITY), seen, (__m512)vf_load(x)));
		}
	}
}

static void cap_scores(float *s, size_t n_keys, float scale, float cap)
{
	float inverse = scale / cap;

	for (size_t i = 0; i < n_keys * PANEL; i += LANES)
		vf_store(s + i, cap * vf_tanh(vf_load(s + i) * inverse));
}

// s (n_keys, PANEL), n_keys even: e^score is 2^(unit s). Probabilities, not yet normed, go to t (n_keys / 2, PANEL) in pairs; running
// maximum and sum follow; out is rescaled.
static void softmax_step(const struct panel *p, uint32_t *t, const float *s, size_t n_keys, float unit, size_t D)
{
	for (size_t half = 0; half < PANEL; half += LANES, s += LANES, t += LANES) {
		vf old = vf_load(p->max + half), m = old, m1 = old;
		for (size_t j = 0; j < n_keys; j += 2) {
			m = vf_max(m, vf_load(s + j * PANEL));
			m1 = vf_max(m1, vf_load(s + (j + 1) * PANEL));
		}
		m = vf_max(m, m1);
		vf rescale = vf_exp2_negative((old - m) * unit), sum = vf_load(p->sum + half) * rescale;
		for (size_t j = 0; j < n_keys; j += 2) {
			vf p0 = vf_exp2_negative((vf_load(s + j * PANEL) - m) * unit);
			vf p1 = vf_exp2_negative((vf_load(s + (j + 1) * PANEL) - m) * unit);
			_mm512_store_si512(t + j / 2 * PANEL, pair_two(p0, p1));
			sum = sum + p0 + p1;
		}
		for (size_t d = 0; d < D; d++)
			vf_store(p->out + d * PANEL + half, vf_load(p->out + d * PANEL + half) * rescale);
		vf_store(p->max + half, m);
		vf_store(p->sum + half, sum);
	}
}

static void panel_step(const struct panel *p, const struct attention_work *a, const struct step *x, size_t key)
{
	size_t D = a->head_size;

	if (p->last_end <= key || key + KEYS <= p->first_from)
		return;
	size_t n_keys = up_to(p->last_end - key < KEYS ? p->last_end - key : KEYS, 2);
	product(x->s, n_keys, x->k, x->k_width, 1, p->q, (D + 1) / 2, false);
	if (a->soft_cap > 0)
		cap_scores(x->s, n_keys, a->scale, a->soft_cap);
	if (key < p->last_from || key + n_keys > p->first_end)
		mask(p, x->s, key, n_keys);
	softmax_step(p, x->p, x->s, n_keys, (a->soft_cap > 0 ? 1 : a->scale) * LOG2_E, D);
	product(p->out, D, x->v, 1, x->v_width, x->p, n_keys / 2, true);
}

static const float *row_at(const float *rows, const struct attention_work *a, size_t key)
{
	return rows + (a->slots ? a->slots[key] : key) * a->stride;
}

// Keys key..key+n-1 rounded; where n is odd one of zeros follows.
static void keys_pack(const struct step *x, const struct attention_work *a, size_t key, size_t n)
{
	size_t D = a->head_size;

	for (size_t j = 0; j < n; j++) {
		const float *k = row_at(a->k, a, key + j);
		for (size_t d = 0; d < D; d += 2 * LANES)
			_mm512_store_si512(x->k + j * x->k_width + d / 2, round_two(take(k + d, D - d), take_or_zero(k, d + LANES, D)));
	}
	if (n % 2)
		memset(x->k + n * x->k_width, 0, x->k_width * sizeof *x->k);
	for (size_t j = 0; j < n; j += 2) {
		const float *v = row_at(a->v, a, key + j), *next = row_at(a->v, a, key + (j + 1 < n ? j + 1 : j));
		for (size_t d = 0; d < D; d += LANES) {
			vf odd = j + 1 < n ? take(next + d, D - d) : (vf){0};
			_mm512_store_si512(x->v + j / 2 * x->v_width + d, pair_two(take(v + d, D - d), odd));
		}
	}
}

static void attention_bf16(const struct attention_work *a)
{
	size_t n_seen = a->n_seen ? a->n_seen : a->last, n = n_lanes(a);
	struct step x = step_at(a);

	for (size_t lane = 0; lane < n; lane += PANEL) {
		struct panel p = panel_at(a, lane);
		panel_open(&p, a, lane);
	}
	for (size_t key = panel_at(a, 0).first_from / KEYS * KEYS; key < n_seen; key += KEYS) {
		keys_pack(&x, a, key, n_seen - key < KEYS ? n_seen - key : KEYS);
		for (size_t lane = 0; lane < n; lane += PANEL) {
			struct panel p = panel_at(a, lane);
			panel_step(&p, a, &x, key);
		}
	}
	for (size_t lane = 0; lane < n; lane += PANEL) {
		struct panel p = panel_at(a, lane);
		panel_close(&p, a, lane);
	}
}

void BF16(attention)(const struct attention_work *a)
{
	if (a->rounded)
		attention_bf16(a);
	else
		VECTOR(attention)(a);
}

size_t BF16(attention_scratch)(const struct attention_work *a, bool backward)
{
	size_t n = VECTOR(attention_scratch)(a, backward), n_bf16 = scratch_floats(a);

	return backward || n > n_bf16 ? n : n_bf16;
}
