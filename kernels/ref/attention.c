// SPDX-License-Identifier: Apache-2.0
// Attention within each sequence, causal unless the shape says otherwise, heads grouped: query head h reads key/value head h / (NH / NKV).
// Keys and values stand in the batch's own rows, or in a cache, where a list of slots says which row is whose.
// Scores are computed twice (maximum first) instead of kept, so no scratch depends on the length.
#include <math.h>
#include <string.h>

#include "kernels/ref/ref.h"

// One row of the fused array, seen by head.
struct heads { const double *base; size_t D, NH, NKV, W; };

static struct heads heads_of(const double *qkv, const struct attention_shape *s)
{
	return (struct heads){qkv, s->head_size, s->n_heads, s->n_kv_heads, (s->n_heads + 2 * (size_t)s->n_kv_heads) * s->head_size};
}

static const double *query(const struct heads *x, size_t t, size_t h) { return x->base + t * x->W + h * x->D; }
static const double *key(const struct heads *x, size_t t, size_t g) { return x->base + t * x->W + (x->NH + g) * x->D; }
static const double *value(const struct heads *x, size_t t, size_t g) { return x->base + t * x->W + (x->NH + x->NKV + g) * x->D; }

// One key/value head of a sequence's positions from 0: position j is row slots[j], or row j where slots is NULL.
struct past { const double *k, *v; size_t stride; const uint32_t *slots; };

static size_t past_at(const struct past *past, size_t j)
{
	return (past->slots ? past->slots[j] : j) * past->stride;
}

// The first position that the row at `position` sees.
static size_t first_seen(const struct attention_shape *s, size_t position)
{
	return s->window && position >= s->window ? position - s->window + 1 : 0;
}

static double score(const struct attention_shape *s, const double *q, const double *k)
{
	double x = (double)s->scale * ref_dot(q, k, s->head_size);
	return s->soft_cap > 0 ? (double)s->soft_cap * tanh(x / (double)s->soft_cap) : x;
}

// y (D) = attention of q (D) over positions first..last; returns the log-sum-exp of its scores.
static double attend(double *y, const double *q, const struct past *past, size_t first, size_t last, const struct attention_shape *s)
{
	double max = -INFINITY, sum = 0;
	size_t D = s->head_size;
	for (size_t j = first; j <= last; j++)
		max = fmax(max, score(s, q, past->k + past_at(past, j)));
	memset(y, 0, D * sizeof *y);
	for (size_t j = first; j <= last; j++) {
		double p = exp(score(s, q, past->k + past_at(past, j)) - max);
		const double *v = past->v + past_at(past, j);
		sum += p;
		for (size_t d = 0; d < D; d++)
			y[d] += p * v[d];
	}
	for (size_t d = 0; d < D; d++)
		y[d] /= sum;
	return max + log(sum);
}

void ref_attention(struct backend *be, struct act *y, struct real *lse, const struct act *qkv, const struct attention_shape *shape)
{
	const struct ref *ref = ref_of(be);
	struct heads x = heads_of(ref_act_in(qkv), shape);
	for (uint32_t s = 0; s < ref->n_sequences; s++) {
#pragma omp parallel for collapse(2) schedule(dynamic) num_threads(ref->n_threads)
		for (uint32_t t = ref->starts[s]; t < ref->starts[s + 1]; t++) {
			for (size_t h = 0; h < x.NH; h++) {
				size_t i = t * x.NH + h, start = ref->starts[s], g = h / (x.NH / x.NKV);
				struct past past = {key(&x, start, g), value(&x, start, g), x.W, NULL};
				size_t last = (shape->bidirectional ? ref->starts[s + 1] - 1 : t) - start;
				double l = attend(ref_act(y) + i * x.D, query(&x, t, h), &past, first_seen(shape, t - start), last, shape);
				if (lse)
					ref_real(lse)[i] = l;
			}
		}
	}
}

// Slots of sequence s from its position 0; *ret_before: how many positions lie before the batch's rows.
static const uint32_t *slots_of(const struct ref *ref, uint32_t s, size_t *ret_before)
{
	*ret_before = ref->slot_starts[s + 1] - ref->slot_starts[s] - (ref->starts[s + 1] - ref->starts[s]);
	return ref->slots + ref->slot_starts[s];
}

void ref_cache_write(struct backend *be, struct act *cache, const struct act *qkv, const struct attention_shape *shape)
{
	const struct ref *ref = ref_of(be);
	struct heads x = heads_of(ref_act_in(qkv), shape);
	size_t width = 2 * x.NKV * x.D, before;
	for (uint32_t s = 0; s < ref->n_sequences && !backend_failed(be); s++) {
		const uint32_t *slots = slots_of(ref, s, &before);
		for (uint32_t t = ref->starts[s]; t < ref->starts[s + 1]; t++)
			memcpy(ref_act(cache) + slots[before + t - ref->starts[s]] * width, key(&x, t, 0), width * sizeof(double));
	}
}

void ref_attention_cached(struct backend *be, struct act *y, const struct act *qkv, const struct act *cache,
			  const struct attention_shape *shape)
{
	const struct ref *ref = ref_of(be);
	struct heads x = heads_of(ref_act_in(qkv), shape);
	size_t width = 2 * x.NKV * x.D, before;
	for (uint32_t s = 0; s < ref->n_sequences && !backend_failed(be); s++) {
		const uint32_t *slots = slots_of(ref, s, &before);
#pragma omp parallel for collapse(2) schedule(dynamic) num_threads(ref->n_threads)
		for (uint32_t t = ref->starts[s]; t < ref->starts[s + 1]; t++) {
			for (size_t h = 0; h < x.NH; h++) {
				const double *k = ref_act_in(cache) + h / (x.NH / x.NKV) * x.D;
				struct past past = {k, k + x.NKV * x.D, width, slots};
				size_t last = before + t - ref->starts[s];
				attend(ref_act(y) + (t * x.NH + h) * x.D, query(&x, t, h), &past, first_seen(shape, last), last, shape);
			}
		}
	}
}

// Adds what row t of query head h, which saw the rows first..last, gives to the gradients: p = softmax, ds = p (dp - dy.y) (the cap's
// slope is 1 - tanh^2), dq += ds k, dk += ds q, dv += p dy.
static void attend_backward(double *dqkv, const struct heads *x, const double *dy, const double *y, double lse, size_t first, size_t last,
			    size_t t, size_t h, const struct attention_shape *s)
{
	size_t g = h / (x->NH / x->NKV), D = x->D;
	const double *q = query(x, t, h);
	double *dq = dqkv + t * x->W + h * D, delta = ref_dot(dy, y, D);
	for (size_t j = first; j <= last; j++) {
		const double *k = key(x, j, g), *v = value(x, j, g);
		double *dk = dqkv + j * x->W + (x->NH + g) * D, *dv = dqkv + j * x->W + (x->NH + x->NKV + g) * D;
		double c = score(s, q, k), slope = s->soft_cap > 0 ? 1 - c / (double)s->soft_cap * c / (double)s->soft_cap : 1;
		double p = exp(c - lse), ds = (double)s->scale * slope * p * (ref_dot(dy, v, D) - delta);
		for (size_t d = 0; d < D; d++) {
			dq[d] += ds * k[d];
			dk[d] += ds * q[d];
			dv[d] += p * dy[d];
		}
	}
}

void ref_attention_backward(struct backend *be, struct act *dqkv, const struct act *dy, const struct act *qkv, const struct act *y,
			    const struct real *lse, const struct attention_shape *shape)
{
	const struct ref *ref = ref_of(be);
	struct heads x = heads_of(ref_act_in(qkv), shape);
	size_t D = x.D, group = x.NH / x.NKV;
	memset(dqkv, 0, ref->n_positions * x.W * sizeof(double));
	// One key/value head of one sequence is the unit that owns its gradients.
#pragma omp parallel for collapse(2) schedule(dynamic) num_threads(ref->n_threads)
	for (uint32_t s = 0; s < ref->n_sequences; s++) {
		for (size_t g = 0; g < x.NKV; g++) {
			for (uint32_t t = ref->starts[s]; t < ref->starts[s + 1]; t++) {
				for (size_t h = g * group; h < (g + 1) * group; h++) {
					size_t i = t * x.NH + h, start = ref->starts[s];
					attend_backward(ref_act(dqkv), &x, ref_act_in(dy) + i * D, ref_act_in(y) + i * D,
							ref_real_in(lse)[i], start + first_seen(shape, t - start),
							shape->bidirectional ? ref->starts[s + 1] - 1 : t, t, h, shape);
				}
			}
		}
	}
}
