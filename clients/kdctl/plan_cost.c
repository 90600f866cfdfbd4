// SPDX-License-Identifier: Apache-2.0
// Operations, products and bytes of a transformer. Multiply and add count as two.
#include <math.h>
#include <string.h>

#include "clients/kdctl/plan.h"
#include "daemon/model/config.h"

#define FLOAT 4.0                // bytes of an activation
#define HEAD_TILE 256.0          // rows of logits held at once: the CPU's tile

double plan_seconds(const struct plan_device *d, const struct plan_operator *o, size_t n)
{
	double seconds = 0;
	for (size_t i = 0; i < n; i++)
		seconds += fmax(fmax(o[i].flop / d->flops, o[i].bytes / d->bandwidth), o[i].read > 0 ? o[i].read / d->disk : 0) +
			2 * o[i].packed / d->bandwidth;       // written, and read by the product
	return seconds;
}

double plan_fit_flops(const struct plan_device *d, const struct plan_operator *o, size_t n, double seconds)
{
	struct plan_device at = *d, least = *d;
	double low = plan_flop(o, n) / seconds, high = 64 * low;
	least.flops = high;
	if (plan_seconds(&least, o, n) >= seconds)
		return low;
	for (int i = 0; i < 60; i++) {
		at.flops = (low + high) / 2;
		*(plan_seconds(&at, o, n) > seconds ? &low : &high) = at.flops;
	}
	return high;
}

double plan_flop(const struct plan_operator *o, size_t n)
{
	double sum = 0;
	for (size_t i = 0; i < n; i++)
		sum += o[i].flop;
	return sum;
}

double plan_bytes(const struct plan_operator *o, size_t n)
{
	double sum = 0;
	for (size_t i = 0; i < n; i++)
		sum += o[i].bytes;
	return sum;
}

static double row_width(const struct architecture *a)
{
	return (a->n_heads + 2.0 * a->n_kv_heads) * a->head_size;
}

// A product of `rows` rows with a matrix (n, k), `layers` times.
static struct plan_operator product(const char *name, const struct plan_pass *p, double rows, double n, double k, double layers)
{
	return (struct plan_operator){name, 2 * rows * n * k * layers, layers * (n * k * p->weight_bytes + rows * (n + k) * FLOAT), 0, 0};
}

// The feed-forward half: of a mixture each row pays for the experts it uses, and memory for those that any row uses.
static struct plan_operator feed_forward(const struct architecture *a, const struct plan_pass *p)
{
	double up = (double)architecture_up_width(a), one = (up + a->ffn_width) * a->width;
	double used = a->n_experts ? a->n_experts_used : 1, read = a->n_experts ? fmin(a->n_experts, p->rows * used) : 1;
	double router = a->n_experts ? (double)a->n_experts * a->width : 0;
	return (struct plan_operator){"feed-forward", 2 * p->rows * (one * used + router) * a->n_layers,
				      a->n_layers * ((one * read + router) * p->weight_bytes +
						     p->rows * used * (up + 2.0 * a->ffn_width + 2.0 * a->width) * FLOAT), 0, 0};
}

// Scores and weighted sums: two products per head with what the row sees, a window at most.
static struct plan_operator attention(const struct architecture *a, const struct plan_pass *p)
{
	double seen = 0, heads = (double)a->n_heads * a->head_size;
	for (uint32_t i = 0; i < a->n_layers; i++) {
		uint32_t window = architecture_window(a, i);
		seen += window && window < p->context ? window : p->context;
	}
	return (struct plan_operator){"attention", 4 * p->rows * seen * heads,
				      FLOAT * a->n_layers *
				      (p->keys * 2.0 * a->n_kv_heads * a->head_size + p->rows * (row_width(a) + heads)), 0, 0};
}

size_t plan_operators(const struct architecture *a, const struct plan_pass *p, struct plan_operator ret[PLAN_MAX_OPERATORS])
{
	size_t n = 0;
	ret[n++] = product("q, k, v", p, p->rows, row_width(a), a->width, a->n_layers);
	ret[n++] = attention(a, p);
	ret[n++] = product("attention output", p, p->rows, a->width, (double)a->n_heads * a->head_size, a->n_layers);
	ret[n++] = feed_forward(a, p);
	ret[n++] = product("head", p, p->head_rows, a->vocab_size, a->width, 1);
	return n;
}

struct plan_pass plan_scoring(double batch, double length, double weight_bytes)
{
	return (struct plan_pass){.rows = batch, .head_rows = batch, .context = (length + 1) / 2, .keys = batch,
		.weight_bytes = weight_bytes};
}

struct plan_pass plan_generation(double sequences, double length, double weight_bytes)
{
	return (struct plan_pass){.rows = sequences, .head_rows = sequences, .context = length, .keys = sequences * length,
				  .weight_bytes = weight_bytes};
}

double plan_active_parameters(const struct architecture *a)
{
	struct plan_pass one = {.rows = 1, .head_rows = 1};
	struct plan_operator o[PLAN_MAX_OPERATORS];
	size_t n = plan_operators(a, &one, o);
	return plan_flop(o, n) / 2;      // no context: attention adds nothing
}

double plan_cache_bytes(const struct architecture *a, double positions)
{
	return 2.0 * a->n_layers * a->n_kv_heads * a->head_size * positions * FLOAT;
}

static double layer_width(const struct architecture *a)
{
	return 3.0 * a->width + row_width(a) + (double)a->n_heads * a->head_size + (double)architecture_up_width(a) + a->ffn_width;
}

double plan_work_bytes(const struct architecture *a, double batch)
{
	return FLOAT * (batch * (layer_width(a) + 2.0 * a->width) + fmin(batch, HEAD_TILE) * a->vocab_size);
}

double plan_training_bytes(const struct architecture *a, double batch)
{
	return FLOAT * (4 * (double)architecture_n_parameters(a) + batch * (a->n_layers * (layer_width(a) + a->width) + layer_width(a)) +
			fmin(batch, HEAD_TILE) * a->vocab_size);
}

double plan_row_bytes(double vocab_size, double top_k, double value_bytes)
{
	double id_bits = top_k < vocab_size ? log2(vocab_size / top_k) : 0;
	return top_k > 0 ? 16 + top_k * (value_bytes + id_bits / 8) : 16;
}
