// SPDX-License-Identifier: Apache-2.0
// Relations between the rows of a sequence (MiniLM): row i of softmax(A B' / sqrt(d)) against the teacher's. One row at a time: what is
// held is a sequence's width, never its square.
#include <math.h>
#include <stddef.h>
#include <string.h>

#include "daemon/loss/feature.h"

// One head of one side within rows of a part: a and b (n, d) begin at their first number.
struct head {
	const double *a, *b;
	size_t a_stride, b_stride;
	uint32_t d;
	double *da, *db;               // NULL: no gradient
	double *turned;                // (d, n) b, so that a row's products run along memory
	double *row;                   // (n) logits of a row, then their logarithms of softmax
};

uint64_t relation_room(uint32_t n, uint32_t student_width, uint32_t teacher_width)
{
	return (uint64_t)n * ((uint64_t)student_width + teacher_width + 2);
}

static void turn(struct head *h, uint32_t n)
{
	for (uint32_t j = 0; j < n; j++)
		for (uint32_t k = 0; k < h->d; k++)
			h->turned[(size_t)k * n + j] = h->b[j * h->b_stride + k];
}

// row = ln softmax of the first m products of a's row i.
static void row_make(struct head *h, uint32_t i, uint32_t m, uint32_t n)
{
	const double *a = h->a + i * h->a_stride;
	double scale = 1 / sqrt(h->d), most = -INFINITY, sum = 0;
	memset(h->row, 0, m * sizeof *h->row);
	for (uint32_t k = 0; k < h->d; k++) {
		const double *b = h->turned + (size_t)k * n;
		double factor = a[k] * scale;
		for (uint32_t j = 0; j < m; j++)
			h->row[j] += factor * b[j];
	}
	for (uint32_t j = 0; j < m; j++)
		most = fmax(most, h->row[j]);
	for (uint32_t j = 0; j < m; j++)
		sum += exp(h->row[j] - most);
	for (uint32_t j = 0; j < m; j++)
		h->row[j] -= most + log(sum);
}

// The products' gradient is q - p; through both factors.
static void row_back(const struct head *s, const double *log_p, uint32_t i, uint32_t m, double c)
{
	const double *a = s->a + i * s->a_stride;
	double *da = s->da + i * s->a_stride, scale = c / sqrt(s->d);
	for (uint32_t j = 0; j < m; j++) {
		const double *b = s->b + j * s->b_stride;
		double *db = s->db + j * s->b_stride, g = scale * (exp(s->row[j]) - exp(log_p[j]));
		for (uint32_t k = 0; k < s->d; k++) {
			da[k] += g * b[k];
			db[k] += g * a[k];
		}
	}
}

// Sum over the sequence's rows; c: of the gradient.
static double head_sum(struct head *s, struct head *t, uint32_t n, bool causal, double c)
{
	double sum = 0;
	turn(s, n);
	turn(t, n);
	for (uint32_t i = 0; i < n; i++) {
		uint32_t m = causal ? i + 1 : n;
		row_make(s, i, m, n);
		row_make(t, i, m, n);
		for (uint32_t j = 0; j < m; j++)
			sum += exp(t->row[j]) * (t->row[j] - s->row[j]);
		if (s->da)
			row_back(s, t->row, i, m, c);
	}
	return sum;
}

// Where head h of n_heads begins in a part that may have fewer heads of that size: several share one.
static size_t head_at(uint32_t width, uint32_t d, uint32_t h, uint32_t n_heads)
{
	uint32_t own = width / d;
	return (size_t)(h / (n_heads / own)) * d;
}

static struct head head_of(const struct feature_view *v, int a, int b, bool student, uint32_t row, uint32_t h, uint32_t d)
{
	const struct feature_part *pa = &v->parts[a], *pb = &v->parts[b];
	uint32_t wa = student ? pa->student_width : pa->teacher_width, wb = student ? pb->student_width : pb->teacher_width;
	size_t at = (size_t)row * wa + head_at(wa, d, h, v->n_heads), bt = (size_t)row * wb + head_at(wb, d, h, v->n_heads);
	struct head head = {(student ? pa->student : pa->teacher) + at, (student ? pb->student : pb->teacher) + bt, wa, wb, d, NULL, NULL,
			    NULL, NULL};
	if (student && pa->gradient) {
		head.da = pa->gradient + at;
		head.db = pb->gradient + bt;
	}
	return head;
}

// Mean over rows and heads of the relation of parts a and b, whose heads are ds and dt wide.
static double relation(const struct feature_view *v, int a, int b, uint32_t ds, uint32_t dt)
{
	uint32_t n_rows = v->starts[v->n_sequences];
	double sum = 0, count = (double)n_rows * v->n_heads;
	for (uint32_t i = 0; i < v->n_sequences; i++)
		for (uint32_t h = 0; h < v->n_heads; h++) {
			uint32_t n = v->starts[i + 1] - v->starts[i];
			struct head s = head_of(v, a, b, true, v->starts[i], h, ds), t = head_of(v, a, b, false, v->starts[i], h, dt);
			s.turned = v->scratch;
			t.turned = s.turned + (size_t)n * ds;
			s.row = t.turned + (size_t)n * dt;
			t.row = s.row + n;
			sum += head_sum(&s, &t, n, v->causal, v->scale / count);
		}
	return n_rows ? sum / count : 0;
}

double feature_relations(const struct feature_view *v, const double *x)
{
	const struct feature_part *p = v->parts;
	if (x[0] > 0) {
		uint32_t ds = p[0].student_width / v->n_heads, dt = p[0].teacher_width / v->n_heads;
		return relation(v, 0, 1, ds, dt) + relation(v, 2, 2, ds, dt);
	}
	double sum = 0;
	for (int i = 0; i < FEATURE_PARTS; i++)
		sum += relation(v, i, i, p[i].student_width / v->n_heads, p[i].teacher_width / v->n_heads);
	return sum;
}
