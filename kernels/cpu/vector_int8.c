// SPDX-License-Identifier: Apache-2.0
// Products of 8-bit integers; compiled once per instruction set.
//
// There are two forms of the dot product that fills a lane. The one of words: two neighbouring terms side by side as 16-bit integers, one
// instruction multiplies and adds both into 32 bits, exactly. (The old one that takes bytes adds pairs into 16 bits and cuts off what does
// not fit: with what keeps it exact it needs as many instructions.) Weights lie in memory as bytes and are widened a chunk at a time, for
// all rows of a unit.
// The one of bytes (INT8_BYTES), of processors that multiply four unsigned bytes by four signed ones and add into 32 bits, exactly: weights
// lie in memory with 128 added (INT8_OFFSET), and sums begin at -128 times the sum of a row's terms.
#include <float.h>

#include "kernels/backend.h"
#include "kernels/cpu/vector_block.h"
#include "kernels/cpu/vector_ops.h"

typedef uint8_t bytes __attribute__((vector_size(4 * LANES)));
typedef int8_t bytes_half __attribute__((vector_size(2 * LANES)));
typedef int8_t bytes_quarter __attribute__((vector_size(LANES)));
typedef int16_t words __attribute__((vector_size(4 * LANES)));
typedef int16_t words_half __attribute__((vector_size(2 * LANES)));

#ifdef INT8_BYTES
typedef int8_t operand;              // of a row
typedef uint8_t factor;              // of a matrix
typedef bytes factors;
#else
typedef int16_t operand;
typedef int16_t factor;
typedef words factors;
#endif

#define CHUNK (288 / PANEL)          // groups: with AVX2 18 KiB of weights stay in the first-level cache, and 6 rows of x beside them

#define ROWS 6                       // multiplied at a time: their sums, integers and floats, stay in registers where there are 32

struct scratch {
	_Alignas(64) float sums[INT8_ROWS * PANEL];
	factor widened[CHUNK * INT8_GROUP * PANEL];    // of words alone
};
_Static_assert(sizeof(struct scratch) <= INT8_SCRATCH * sizeof(float), "scratch of a unit");

INLINE factors factors_load(const factor *p)
{
	factors v;

	memcpy(&v, p, sizeof(v));
	return v;
}

// The terms at p in every lane. (Zen 3 broadcasts floats quicker than integers: 7.6 cycles of the inner loop instead of 9.1.)
INLINE vi terms_set(const operand *p)
{
#if defined(__AVX2__) && LANES == 8
	float terms;

	memcpy(&terms, p, sizeof(terms));
	return (vi)_mm256_set1_ps(terms);
#else
	int32_t terms;

	memcpy(&terms, p, sizeof(terms));
	return terms - (vi){0};
#endif
}

// Each lane: sum + x's terms times w's.
INLINE vi dot(vi sum, vi x, factors w)
{
#if defined(INT8_BYTES) && defined(__AVX512VNNI__)
	return (vi)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)w, (__m512i)x);
#elif defined(INT8_BYTES) && defined(__AVXVNNI__)
	return (vi)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)w, (__m256i)x);
#elif !defined(INT8_BYTES) && defined(__AVX512BW__)
	return sum + (vi)_mm512_madd_epi16((__m512i)x, (__m512i)w);
#elif !defined(INT8_BYTES) && defined(__AVX2__)
	return sum + (vi)_mm256_madd_epi16((__m256i)x, (__m256i)w);
#elif !defined(INT8_BYTES) && defined(__SSE2__)
	return sum + (vi)_mm_madd_epi16((__m128i)x, (__m128i)w);
#else
	operand t[INT8_TERMS * LANES];

	memcpy(t, &x, sizeof(t));
	for (int i = 0; i < INT8_TERMS * LANES; i++)
		sum[i / INT8_TERMS] += t[i] * w[i];
	return sum;
#endif
}

// FOLD defines a function that makes one integer of a vector's lanes: by instructions that combine 256 or 128 bits, or by what combines two
// lanes, v[0] and v[i].
#if defined(__AVX2__)
#if LANES == 16
#define TO_256(v, of_256) of_256(_mm512_castsi512_si256((__m512i)(v)), _mm512_extracti64x4_epi64((__m512i)(v), 1))
#else
#define TO_256(v, of_256) (__m256i)(v)
#endif
#define FOLD(name, of_256, of_128, of_two) \
	INLINE int32_t name(vi v) \
	{ \
		__m256i h = TO_256(v, of_256); \
		__m128i q = of_128(_mm256_castsi256_si128(h), _mm256_extracti128_si256(h, 1)); \
		q = of_128(q, _mm_shuffle_epi32(q, 0x4e)); \
		return _mm_cvtsi128_si32(of_128(q, _mm_shuffle_epi32(q, 0xb1))); \
	}
#else
#define FOLD(name, of_256, of_128, of_two) \
	INLINE int32_t name(vi v) \
	{ \
		for (int i = 1; i < LANES; i++) \
			v[0] = of_two; \
		return v[0]; \
	}
#endif
FOLD(vi_max_lane, _mm256_max_epi32, _mm_max_epi32, v[i] > v[0] ? v[i] : v[0])
#ifdef INT8_BYTES
FOLD(vi_sum, _mm256_add_epi32, _mm_add_epi32, v[0] + v[i])
#endif

// Of n <= INT8_GROUP floats: their scale, NaN where one is not finite. Returns what turns them into integers, 0 where all are 0.
INLINE float group_inverse(const float *x, size_t n, float *ret_scale)
{
	vi most = {0};

	// Without its sign a float orders like its bits, infinity and then NaN above all.
	for (size_t i = 0; i < n; i += LANES) {
		vi v = (vi)take(x + i, n - i) & 0x7fffffff, more = v > most;
		most = (v & more) | (most & ~more);
	}
	vi all = vi_max_lane(most) - (vi){0};
	float m = ((vf)all)[0];
	bool finite = m <= FLT_MAX, zero = !finite || m < INT8_SMALLEST;
	*ret_scale = !finite ? NAN : zero ? 0 : m / 127.0f;
	return zero ? 0 : 127.0f / m;
}

// One group; returns its scale.
static float quantize_group(int16_t *q, const float *x, size_t n)
{
	float scale, inverse = group_inverse(x, n, &scale);

	if (n < INT8_GROUP || inverse == 0)
		memset(q, 0, INT8_GROUP * sizeof(*q));
	for (size_t i = 0; i < n && inverse != 0; i += LANES) {
		words_half h = __builtin_convertvector(vf_round(take(x + i, n - i) * inverse), words_half);
		memcpy(q + i, &h, sizeof(h));
	}
	return scale;
}

void INT8(quantize)(int16_t *q, float *scales, const float *x, size_t n)
{
	size_t i = 0;

	for (; i + INT8_GROUP <= n; i += INT8_GROUP)
		*scales++ = quantize_group(q + i, x + i, INT8_GROUP);
	if (i < n)
		*scales = quantize_group(q + i, x + i, n - i);
}

#ifdef INT8_BYTES
// One group as bytes, and what its sums begin at; returns its scale.
INLINE float operands_group(operand *q, int32_t *ret_start, const float *x, size_t n)
{
	float scale, inverse = group_inverse(x, n, &scale);
	vi sum = {0};

	if (n < INT8_GROUP || inverse == 0)
		memset(q, 0, INT8_GROUP * sizeof(*q));
	for (size_t i = 0; i < n && inverse != 0; i += LANES) {
		vi v = vf_round(take(x + i, n - i) * inverse);
		bytes_quarter b = __builtin_convertvector(v, bytes_quarter);
		memcpy(q + i, &b, sizeof(b));
		sum += v;
	}
	*ret_start = -INT8_OFFSET * vi_sum(sum);
	return scale;
}
#endif

void INT8(operands)(void *to, float *scales, int32_t *starts, const float *x, size_t n)
{
#ifdef INT8_BYTES
	size_t i = 0;

	for (; i + INT8_GROUP <= n; i += INT8_GROUP)
		*scales++ = operands_group((operand *)to + i, starts++, x + i, INT8_GROUP);
	if (i < n)
		*scales = operands_group((operand *)to + i, starts, x + i, n - i);
#else
	(void)starts;
	INT8(quantize)(to, scales, x, n);
#endif
}

// Some groups of a panel, as products read them.
struct chunk {
	const factor *w;                 // (n * INT8_GROUP / INT8_TERMS, PANEL, INT8_TERMS)
	const float *w_scales;           // (n, PANEL)
	size_t panel, first, n;          // groups first..first + n - 1
	bool last;                       // of the panel
};

static struct chunk chunk_take(const struct int8_unit *u, size_t panel, size_t first, size_t n)
{
	struct scratch *s = u->scratch;
	size_t at = (panel * u->n_groups + first) * PANEL;
	const int8_t *w = u->w + at * INT8_GROUP;
	struct chunk c = {s->widened, u->w_scales + at, panel, first, n, first + n == u->n_groups};

#ifdef INT8_BYTES
	c.w = (const factor *)w;
#else
	for (size_t i = 0; i < n * INT8_GROUP * PANEL; i += 2 * LANES) {
		bytes_half narrow;
		memcpy(&narrow, w + i, sizeof(narrow));
		words wide = __builtin_convertvector(narrow, words);
		memcpy(s->widened + i, &wide, sizeof(wide));
	}
#endif
	return c;
}

// What the sums of a row's group begin at.
INLINE vi start_of(const int32_t *starts, size_t i)
{
#ifdef INT8_BYTES
	return starts[i] - (vi){0};
#else
	(void)starts, (void)i;
	return (vi){0};
#endif
}

// y's next LANES columns from j on = (add: +=) v + bias.
INLINE void columns_give(const struct int8_unit *u, size_t row, size_t j, vf v)
{
	float *y = u->y + row * u->ldy + j;
	size_t left = u->n - j;

	if (u->bias)
		v += take(u->bias + j, left);
	give(y, u->add ? v + take(y, left) : v, left);
}

// Rows row..row + n_rows - 1 times a chunk: added to the sums of the chunks before, the last goes to y. Sums of a group are integers, sums
// of groups floats in the order of the groups: what is done to a row is the same whatever its company.
INLINE void rows_product(const int n_rows, const struct int8_unit *u, const struct chunk *c, size_t row)
{
	size_t depth = u->n_groups * INT8_GROUP, column = c->panel * PANEL;
	const operand *x = (const operand *)u->x + row * depth + c->first * INT8_GROUP;
	const float *x_scales = u->x_scales + row * u->n_groups + c->first;
	const int32_t *starts = u->x_starts + row * u->n_groups + c->first;
	float *sums = ((struct scratch *)u->scratch)->sums + row * PANEL;
	vf at[2][ROWS];

	UNROLL for (int i = 0; i < n_rows; i++) {
		at[0][i] = c->first ? vf_load(sums + i * PANEL) : (vf){0};
		at[1][i] = c->first ? vf_load(sums + i * PANEL + LANES) : (vf){0};
		if (c->last) {           // what is not in the cache is when the sums are made
			__builtin_prefetch(u->y + (row + i) * u->ldy + column, 1);
			__builtin_prefetch(u->y + (row + i) * u->ldy + column + PANEL / 2, 1);
		}
	}
	for (size_t g = 0; g < c->n; g++) {
		const operand *terms = x + g * INT8_GROUP;
		const factor *w = c->w + g * INT8_GROUP * PANEL;
		vi left[ROWS], right[ROWS];

		UNROLL for (int i = 0; i < n_rows; i++) {
			left[i] = start_of(starts, i * u->n_groups + g);
			right[i] = left[i];
		}
		for (size_t k = 0; k < INT8_GROUP; k += INT8_TERMS, w += INT8_TERMS * PANEL) {
			factors w0 = factors_load(w), w1 = factors_load(w + INT8_TERMS * LANES);
			UNROLL for (int i = 0; i < n_rows; i++) {
				vi t = terms_set(terms + i * depth + k);
				left[i] = dot(left[i], t, w0);
				right[i] = dot(right[i], t, w1);
			}
		}
		vf s0 = vf_load(c->w_scales + g * PANEL), s1 = vf_load(c->w_scales + g * PANEL + LANES);
		UNROLL for (int i = 0; i < n_rows; i++) {
			vf s = vf_set(x_scales[i * u->n_groups + g]);
			at[0][i] += __builtin_convertvector(left[i], vf) * (s * s0);
			at[1][i] += __builtin_convertvector(right[i], vf) * (s * s1);
		}
	}
	UNROLL for (int i = 0; i < n_rows; i++) {
		if (c->last) {
			columns_give(u, row + i, column, at[0][i]);
			if (column + LANES < u->n)
				columns_give(u, row + i, column + LANES, at[1][i]);
		} else {
			vf_store(sums + i * PANEL, at[0][i]);
			vf_store(sums + i * PANEL + LANES, at[1][i]);
		}
	}
}

static void panel_product(const struct int8_unit *u, size_t panel)
{
	size_t G = u->n_groups, n_chunks = (G + CHUNK - 1) / CHUNK, step = (G + n_chunks - 1) / n_chunks;

	for (size_t first = 0; first < G; first += step) {
		struct chunk c = chunk_take(u, panel, first, G - first < step ? G - first : step);
		size_t row = 0;
		for (; row + ROWS <= u->n_rows; row += ROWS)
			rows_product(ROWS, u, &c, row);
		for (; row + 2 <= u->n_rows; row += 2)
			rows_product(2, u, &c, row);
		if (row < u->n_rows)
			rows_product(1, u, &c, row);
	}
}

void INT8(int8_unit)(const struct int8_unit *u)
{
	for (size_t panel = 0; panel * PANEL < u->n; panel++)
		panel_product(u, panel);
}
