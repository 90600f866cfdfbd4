// SPDX-License-Identifier: Apache-2.0
// Attention of one group of query heads, causal or of the whole sequence; compiled once per instruction set.
//
// Everything is transposed so that queries lie side by side in the lanes: a panel is PANEL queries (forward: of all heads of the group,
// row by row, so that one row of several heads fills more of a panel), S is (keys, PANEL), the output accumulates as (D, PANEL), and the
// softmax runs down the columns without a single horizontal sum. Keys go in steps of ATTENTION_KEYS from position 0, with a running
// maximum and sum per query; all of one step stays in the first-level cache. What a lane computes depends on its own query and the keys
// before it, in one order: never on the rest of the batch, nor on which rows the pass holds. (A key that a lane must not see adds an
// exact 0, and a step of only such keys rescales by an exact 1, or is left out.)
//
// Backward keeps the same shape: probabilities are computed again from lse step by step. Queries (and their outputs) of one sequence
// are walked in order by one thread, so dk and dv, which all queries of the group add to, have a fixed order too.
#include "kernels/cpu/vector_block.h"
#include "kernels/cpu/vector_ops.h"

#define KEYS ATTENTION_KEYS
_Static_assert(KEYS % PANEL == 0, "backward: queries of a panel must lie in one step of keys");

// c (n_rows, width), width a multiple of PANEL, in PANEL columns at a time.
static void product_wide(float *c, size_t width, size_t n_rows, const float *a, size_t row, size_t step, const float *b, size_t n)
{
	for (size_t j = 0; j < width; j += PANEL)
		product(c + j, width, n_rows, a, row, step, b + j, width, n, true);
}

// Head size as it lies in scratch: whole panels, so that the wide products need no tail. The padding is zero.
static size_t padded(size_t head_size)
{
	return (head_size + PANEL - 1) / PANEL * PANEL;
}

static void rows_copy(float *to, size_t width, const float *from, size_t stride, size_t n_rows, size_t n)
{
	for (size_t r = 0; r < n_rows; r++) {
		memcpy(to + r * width, from + r * stride, n * sizeof(float));
		memset(to + r * width + n, 0, (width - n) * sizeof(float));
	}
}

// to (n, PANEL) = scale times the transpose of n_queries rows; the rest of the panel is zero.
static void panel_transpose(float *to, const float *from, size_t stride, size_t n_queries, size_t n, float scale)
{
	for (size_t d = 0; d < n; d++) {
		for (size_t i = 0; i < n_queries; i++)
			to[d * PANEL + i] = from[i * stride + d] * scale;
		for (size_t i = n_queries; i < PANEL; i++)
			to[d * PANEL + i] = 0;
	}
}

// s (n_keys, PANEL) becomes cap tanh(s / cap).
static void cap_scores(float *s, size_t n_keys, float cap)
{
	float inverse = 1 / cap;

	for (size_t i = 0; i < n_keys * PANEL; i += LANES)
		vf_store(s + i, cap * vf_tanh(vf_load(s + i) * inverse));
}

// The first key that the row at `position` sees.
static size_t first_seen(const struct attention_work *a, size_t position)
{
	return a->window && position >= a->window ? position - a->window + 1 : 0;
}

// Backward: scores of keys that a query does not see are taken out: keys key.. of the step, query (lane) i of the panel is row query + i.
static void mask(const struct attention_work *a, float *s, size_t key, size_t n_keys, size_t query)
{
	for (size_t i = 0; i < PANEL; i++) {
		size_t after = query + i + 1, from = first_seen(a, query + i);
		for (size_t j = after > key ? after - key : 0; j < n_keys; j++)
			s[j * PANEL + i] = -INFINITY;
		for (size_t j = 0; j < n_keys && key + j < from; j++)
			s[j * PANEL + i] = -INFINITY;
	}
}

// One step: s (n_keys, PANEL) holds scores and becomes e^(s - maximum); running maximum and sum follow; out is rescaled.
static void softmax_step(float *s, size_t n_keys, float *max, float *sum, float *out, size_t n_out)
{
	vf m0 = vf_load(max), m1 = vf_load(max + LANES), old0 = m0, old1 = m1;

	for (size_t j = 0; j < n_keys; j++) {
		m0 = vf_max(m0, vf_load(s + j * PANEL));
		m1 = vf_max(m1, vf_load(s + j * PANEL + LANES));
	}
	vf r0 = vf_exp_negative(old0 - m0), r1 = vf_exp_negative(old1 - m1);
	vf sum0 = vf_load(sum) * r0, sum1 = vf_load(sum + LANES) * r1;
	for (size_t j = 0; j < n_keys; j++) {
		vf p0 = vf_exp_negative(vf_load(s + j * PANEL) - m0), p1 = vf_exp_negative(vf_load(s + j * PANEL + LANES) - m1);
		vf_store(s + j * PANEL, p0);
		vf_store(s + j * PANEL + LANES, p1);
		sum0 += p0;
		sum1 += p1;
	}
	for (size_t d = 0; d < n_out; d++) {
		vf_store(out + d * PANEL, vf_load(out + d * PANEL) * r0);
		vf_store(out + d * PANEL + LANES, vf_load(out + d * PANEL + LANES) * r1);
	}
	vf_store(max, m0);
	vf_store(max + LANES, m1);
	vf_store(sum, sum0);
	vf_store(sum + LANES, sum1);
}

// Forward scratch: the unit's panels (queries, outputs, maximum, sum), then one step of keys, values and scores.
struct panel { float *q, *out, *max, *sum; };

#define PANEL_FLOATS(D) ((2 * (size_t)(D) + 2) * PANEL)

static struct panel panel_at(float *scratch, size_t i, size_t D)
{
	float *p = scratch + i * PANEL_FLOATS(D);

	return (struct panel){p, p + D * PANEL, p + 2 * D * PANEL, p + (2 * D + 1) * PANEL};
}

// Lanes of a unit: row by row, in each row the heads of the group.
static size_t lanes_of(const struct attention_work *a)
{
	return (a->last - a->first) * (size_t)a->n_group;
}

static void panel_open(struct panel p, const struct attention_work *a, size_t lane, size_t n)
{
	size_t D = a->head_size;

	memset(p.q, 0, 2 * D * PANEL * sizeof(float));    // and p.out behind it
	for (size_t i = 0; i < n; i++) {
		const float *q = a->q + (lane + i) / a->n_group * a->q_stride + (lane + i) % a->n_group * D;
		for (size_t d = 0; d < D; d++)
			p.q[d * PANEL + i] = q[d];
	}
	if (a->rounded)
		VECTOR(round_bf16)(p.q, p.q, D * PANEL);
	for (size_t d = 0; d < D * PANEL; d += LANES)
		vf_store(p.q + d, vf_load(p.q + d) * a->scale);
	for (size_t i = 0; i < PANEL; i++) {
		p.max[i] = -0x1p126f;        // below every score; finite, so that the first rescale is e^-big = 0 and never NaN
		p.sum[i] = 0;
	}
}

static void panel_close(struct panel p, const struct attention_work *a, size_t lane, size_t n)
{
	size_t D = a->head_size;

	for (size_t i = 0; i < n; i++) {
		size_t row = (lane + i) / a->n_group, h = (lane + i) % a->n_group;
		float inverse = 1 / p.sum[i], *y = a->y + row * a->y_stride + h * D;
		for (size_t d = 0; d < D; d++)
			y[d] = p.out[d * PANEL + i] * inverse;
		if (a->lse)
			a->lse[row * a->lse_stride + h] = p.max[i] + logf(p.sum[i]);
	}
}

// Keys `key`.. of the sequence are rows of k and v; the panel's lanes are lane..lane+n-1.
static void panel_step(struct panel p, const struct attention_work *a, const float *k, const float *v, float *s, size_t key, size_t lane,
		       size_t n)
{
	size_t D = a->head_size, first = a->first + lane / a->n_group, last = a->first + (lane + n - 1) / a->n_group;

	if (a->n_seen)
		first = last = a->n_seen - 1;

	if (last < key || key + KEYS <= first_seen(a, first))
		return;
	size_t n_keys = last + 1 - key < KEYS ? last + 1 - key : KEYS;
	product(s, PANEL, n_keys, k, D, 1, p.q, PANEL, D, false);
	if (a->soft_cap > 0)
		cap_scores(s, n_keys, a->soft_cap);
	for (size_t i = 0; i < n && key < first_seen(a, last); i++) {
		size_t from = first_seen(a, a->first + (lane + i) / a->n_group);
		for (size_t j = 0; j < n_keys && key + j < from; j++)
			s[j * PANEL + i] = -INFINITY;
	}
	for (size_t i = 0; i < n && key + n_keys > first + 1; i++) {
		size_t after = a->first + (lane + i) / a->n_group + 1;    // rows beyond it: never where all rows see all keys
		for (size_t j = after > key ? after - key : 0; j < n_keys; j++)
			s[j * PANEL + i] = -INFINITY;
	}
	softmax_step(s, n_keys, p.max, p.sum, p.out, D);
	if (a->rounded)
		VECTOR(round_bf16)(s, s, n_keys * PANEL);
	product(p.out, PANEL, D, v, 1, D, s, PANEL, n_keys, true);
}

static void keys_copy(float *to, const float *from, const struct attention_work *a, size_t key, size_t n)
{
	size_t D = a->head_size;

	for (size_t j = 0; j < n; j++)
		memcpy(to + j * D, from + (a->slots ? a->slots[key + j] : key + j) * a->stride, D * sizeof(float));
	if (a->rounded)
		VECTOR(round_bf16)(to, to, n * D);
}

void VECTOR(attention)(const struct attention_work *a)
{
	size_t D = a->head_size, n_lanes = lanes_of(a), n_panels = (n_lanes + PANEL - 1) / PANEL;
	float *k = a->scratch + n_panels * PANEL_FLOATS(D), *v = k + KEYS * D, *s = v + KEYS * D;

	for (size_t lane = 0; lane < n_lanes; lane += PANEL)
		panel_open(panel_at(a->scratch, lane / PANEL, D), a, lane, n_lanes - lane < PANEL ? n_lanes - lane : PANEL);
	size_t n_seen = a->n_seen ? a->n_seen : a->last;
	for (size_t key = first_seen(a, a->first) / KEYS * KEYS; key < n_seen; key += KEYS) {
		size_t n_keys = n_seen - key < KEYS ? n_seen - key : KEYS;
		keys_copy(k, a->k, a, key, n_keys);
		keys_copy(v, a->v, a, key, n_keys);
		for (size_t lane = 0; lane < n_lanes; lane += PANEL)
			panel_step(panel_at(a->scratch, lane / PANEL, D), a, k, v, s, key, lane,
				n_lanes - lane < PANEL ? n_lanes - lane : PANEL);
	}
	for (size_t lane = 0; lane < n_lanes; lane += PANEL)
		panel_close(panel_at(a->scratch, lane / PANEL, D), a, lane, n_lanes - lane < PANEL ? n_lanes - lane : PANEL);
}

// Backward scratch: dk and dv of the whole sequence, one step of keys and values, one panel in both orientations.
struct back {
	float *dk, *dv, *k, *v;          // (n_keys or KEYS, width)
	float *q, *dy;                   // (PANEL, width)
	float *qt, *dyt, *dqt;           // (D, PANEL)
	float *p, *ds;                   // (KEYS, PANEL)
	float *lse, *delta;              // (PANEL)
};

static struct back back_at(float *scratch, size_t width, size_t n_keys)
{
	struct back b;

	n_keys = (n_keys + KEYS - 1) / KEYS * KEYS;
	b.dk = scratch;
	b.dv = b.dk + n_keys * width;
	b.k = b.dv + n_keys * width;
	b.v = b.k + KEYS * width;
	b.q = b.v + KEYS * width;
	b.dy = b.q + PANEL * width;
	b.qt = b.dy + PANEL * width;
	b.dyt = b.qt + PANEL * width;
	b.dqt = b.dyt + PANEL * width;
	b.p = b.dqt + PANEL * width;
	b.ds = b.p + KEYS * PANEL;
	b.lse = b.ds + KEYS * PANEL;
	b.delta = b.lse + PANEL;
	return b;
}

size_t VECTOR(attention_scratch)(const struct attention_work *a, bool backward)
{
	size_t D = a->head_size, width = padded(D), n_keys = (a->last + KEYS - 1) / KEYS * (size_t)KEYS;
	size_t n_panels = (lanes_of(a) + PANEL - 1) / PANEL;

	if (backward)
		return 2 * n_keys * width + (2 * KEYS + 5 * PANEL) * width + 2 * KEYS * PANEL + 2 * PANEL;
	return n_panels * PANEL_FLOATS(D) + 2 * KEYS * D + KEYS * PANEL;
}

// p = e^(s - lse), ds = scale p (dp - delta), times the cap's slope 1 - (s / cap)^2; keys that are not seen give 0.
static void back_softmax(const struct back *b, size_t n_keys, float scale, float cap)
{
	float inverse = cap > 0 ? 1 / cap : 0;

	for (size_t half = 0; half < PANEL; half += LANES) {
		vf lse = vf_load(b->lse + half), delta = vf_load(b->delta + half);
		for (size_t j = 0; j < n_keys; j++) {
			float *p = b->p + j * PANEL + half, *ds = b->ds + j * PANEL + half;
			vf score = vf_load(p), e = vf_exp_negative(score - lse), g = e * (vf_load(ds) - delta) * scale;
			vf_store(p, e);
			if (cap > 0) {
				vf t = vf_max(vf_set(-cap), score) * inverse;
				g *= 1.0f - t * t;
			}
			vf_store(ds, g);
		}
	}
}

static void back_step(const struct attention_work *a, const struct back *b, size_t key, size_t query, size_t width)
{
	size_t D = a->head_size, end = a->n_seen ? a->n_seen : query + PANEL, n_keys = end - key < KEYS ? end - key : KEYS;

	product(b->p, PANEL, n_keys, b->k, width, 1, b->qt, PANEL, D, false);
	product(b->ds, PANEL, n_keys, b->v, width, 1, b->dyt, PANEL, D, false);
	if (a->soft_cap > 0)
		cap_scores(b->p, n_keys, a->soft_cap);
	if (!a->n_seen && (key + n_keys > query + 1 || key < first_seen(a, query + PANEL - 1)))
		mask(a, b->p, key, n_keys, query);
	back_softmax(b, n_keys, a->scale, a->soft_cap);
	product(b->dqt, PANEL, D, b->k, 1, width, b->ds, PANEL, n_keys, true);
	product_wide(b->dv + key * width, width, n_keys, b->p, PANEL, 1, b->dy, PANEL);
	product_wide(b->dk + key * width, width, n_keys, b->ds, PANEL, 1, b->q, PANEL);
}

// One panel: queries query..query+n-1 of head h of the group, against all keys before them.
static void back_panel(const struct attention_work *a, const struct back *b, size_t query, size_t h, size_t n, size_t width)
{
	size_t D = a->head_size;
	const float *q = a->q + query * a->stride + h * D, *dy = a->dy + query * a->y_stride + h * D,
		*y = a->y + query * a->y_stride + h * D;

	rows_copy(b->q, width, q, a->stride, n, D);
	rows_copy(b->dy, width, dy, a->y_stride, n, D);
	memset(b->q + n * width, 0, (PANEL - n) * width * sizeof(float));
	memset(b->dy + n * width, 0, (PANEL - n) * width * sizeof(float));
	panel_transpose(b->qt, q, a->stride, n, D, a->scale);
	panel_transpose(b->dyt, dy, a->y_stride, n, D, 1);
	memset(b->dqt, 0, D * PANEL * sizeof(float));
	for (size_t i = 0; i < PANEL; i++) {
		float delta = 0;
		for (size_t d = 0; i < n && d < D; d++)
			delta += y[i * a->y_stride + d] * dy[i * a->y_stride + d];
		b->delta[i] = delta;
		b->lse[i] = i < n ? a->lse[(query + i) * a->lse_stride + h] : 0;
	}
	for (size_t key = first_seen(a, query) / KEYS * KEYS; key < (a->n_seen ? a->n_seen : query + n); key += KEYS) {
		size_t n_keys = a->last - key < KEYS ? a->last - key : KEYS;
		rows_copy(b->k, width, a->k + key * a->stride, a->stride, n_keys, D);
		rows_copy(b->v, width, a->v + key * a->stride, a->stride, n_keys, D);
		memset(b->k + n_keys * width, 0, (KEYS - n_keys) * width * sizeof(float));
		memset(b->v + n_keys * width, 0, (KEYS - n_keys) * width * sizeof(float));
		back_step(a, b, key, query, width);
	}
	for (size_t i = 0; i < n; i++)
		for (size_t d = 0; d < D; d++)
			a->dq[(query + i) * a->stride + h * D + d] = b->dqt[d * PANEL + i];
}

void VECTOR(attention_backward)(const struct attention_work *a)
{
	size_t D = a->head_size, width = padded(D), n_keys = (a->last + KEYS - 1) / KEYS * (size_t)KEYS;
	struct back b = back_at(a->scratch, width, a->last);

	memset(b.dk, 0, 2 * n_keys * width * sizeof(float));
	for (size_t query = 0; query < a->last; query += PANEL)
		for (size_t h = 0; h < a->n_group; h++)
			back_panel(a, &b, query, h, a->last - query < PANEL ? a->last - query : PANEL, width);
	for (size_t j = 0; j < a->last; j++) {
		memcpy(a->dk + j * a->stride, b.dk + j * width, D * sizeof(float));
		memcpy(a->dv + j * a->stride, b.dv + j * width, D * sizeof(float));
	}
}
