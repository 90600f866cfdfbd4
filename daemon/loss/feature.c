// SPDX-License-Identifier: Apache-2.0
#include "daemon/loss/feature.h"

#include <math.h>
#include <stddef.h>

#define LENGTH_MIN 1e-12               // a shorter row is divided by this

static double dot(const double *a, const double *b, uint32_t n)
{
	double sum = 0;
	for (uint32_t i = 0; i < n; i++)
		sum += a[i] * b[i];
	return sum;
}

static double length(const double *a, uint32_t n)
{
	return fmax(sqrt(dot(a, a, n)), LENGTH_MIN);
}

static bool known(const struct feature_view *v, const double *teacher)
{
	return !v->pooled || !isnan(*teacher);
}

static uint32_t rows_known(const struct feature_view *v)
{
	const struct feature_part *p = &v->parts[0];
	uint32_t n = 0;
	for (uint32_t i = 0; i < v->starts[v->n_sequences]; i++)
		n += known(v, p->teacher + (size_t)i * p->teacher_width);
	return n;
}

// The value of one row, and c times its gradient.
typedef double row_fn(const double *s, const double *t, uint32_t n, const double *x, double c, double *g);

static double row_mse(const double *s, const double *t, uint32_t n, const double *x, double c, double *g)
{
	double unit = x[1] > 0 ? 1 : 1 / (double)n, sum = 0;
	for (uint32_t i = 0; i < n; i++) {
		double gap = s[i] - t[i];
		sum += gap * gap;
		if (g)
			g[i] += 2 * c * unit * gap;
	}
	return unit * sum;
}

// Of u = s / |s| and w = t / |t|: |u - w|^2 = 2 - 2 u.w, whose gradient is 2 (u (u.w) - w) / |s|. Of any factor: 1 - cos is half of it.
static double row_unit(const double *s, const double *t, uint32_t n, double unit, double c, double *g)
{
	double ls = length(s, n), lt = length(t, n), cosine = dot(s, t, n) / (ls * lt);
	for (uint32_t i = 0; g && i < n; i++)
		g[i] += 2 * c * unit * (cosine * s[i] / ls - t[i] / lt) / ls;
	return unit * 2 * (1 - cosine);
}

static double row_hidden(const double *s, const double *t, uint32_t n, const double *x, double c, double *g)
{
	return x[0] > 0 ? row_unit(s, t, n, x[1] > 0 ? 1 : 1 / (double)n, c, g) : row_mse(s, t, n, x, c, g);
}

static double row_cosine(const double *s, const double *t, uint32_t n, const double *x, double c, double *g)
{
	(void)x;
	return row_unit(s, t, n, 0.5, c, g);
}

static double rows_sum(const struct feature_view *v, row_fn *fn, const double *x)
{
	const struct feature_part *p = &v->parts[0];
	uint32_t n = rows_known(v), width = p->student_width;
	double sum = 0;
	for (uint32_t i = 0; i < v->starts[v->n_sequences]; i++) {
		size_t at = (size_t)i * width;
		if (known(v, p->teacher + at))
			sum += fn(p->student + at, p->teacher + at, width, x, v->scale / n, p->gradient ? p->gradient + at : NULL);
	}
	return n ? sum / n : 0;
}

double feature_hidden_mse(const struct feature_view *v, const double *x)
{
	return rows_sum(v, row_hidden, x);
}

double feature_hidden_cosine(const struct feature_view *v, const double *x)
{
	return rows_sum(v, row_cosine, x);
}

// ---- pooled rows

static double score(const double *a, const double *b, uint32_t n, bool cosine)
{
	return dot(a, b, n) / (cosine ? length(a, n) * length(b, n) : 1);
}

// c times the gradient of score(a, b) on both rows.
static void score_back(const double *a, const double *b, uint32_t n, bool cosine, double c, double *ga, double *gb)
{
	double la = cosine ? length(a, n) : 1, lb = cosine ? length(b, n) : 1, cos = cosine ? dot(a, b, n) / (la * lb) : 0;
	for (uint32_t i = 0; i < n; i++) {
		ga[i] += c * (b[i] / lb - cos * a[i] / la) / la;
		gb[i] += c * (a[i] / la - cos * b[i] / lb) / lb;
	}
}

// Student's score less teacher's.
static double gap(const struct feature_part *p, uint32_t i, uint32_t j, bool cosine)
{
	size_t ws = p->student_width, wt = p->teacher_width;
	return score(p->student + i * ws, p->student + j * ws, p->student_width, cosine) -
	       score(p->teacher + i * wt, p->teacher + j * wt, p->teacher_width, cosine);
}

static void gap_back(const struct feature_part *p, uint32_t i, uint32_t j, bool cosine, double c)
{
	size_t w = p->student_width;
	if (p->gradient)
		score_back(p->student + i * w, p->student + j * w, p->student_width, cosine, c, p->gradient + i * w, p->gradient + j * w);
}

static bool row_known(const struct feature_view *v, uint32_t i)
{
	return known(v, v->parts[0].teacher + (size_t)i * v->parts[0].teacher_width);
}

static double triples(const struct feature_view *v, bool cosine)
{
	const struct feature_part *p = &v->parts[0];
	uint32_t n = 0;
	double sum = 0;
	for (uint32_t i = 0; i + 2 < v->n_sequences; i += 3)
		n += row_known(v, i) && row_known(v, i + 1) && row_known(v, i + 2);
	for (uint32_t i = 0; i + 2 < v->n_sequences; i += 3) {
		if (!row_known(v, i) || !row_known(v, i + 1) || !row_known(v, i + 2))
			continue;
		double margin = gap(p, i, i + 1, cosine) - gap(p, i, i + 2, cosine);
		sum += margin * margin;
		gap_back(p, i, i + 1, cosine, 2 * margin * v->scale / n);
		gap_back(p, i, i + 2, cosine, -2 * margin * v->scale / n);
	}
	return n ? sum / n : 0;
}

// With d_j the gaps of one i to its m others: the sum over pairs of (d_j - d_k)^2 is m sum d^2 - (sum d)^2.
static double all_pairs(const struct feature_view *v, bool cosine)
{
	const struct feature_part *p = &v->parts[0];
	double n = rows_known(v), m = n - 1, count = n * m * (m - 1) / 2, sum = 0;
	for (uint32_t i = 0; n >= 3 && i < v->n_sequences; i++) {
		double first = 0, second = 0;
		for (uint32_t j = 0; row_known(v, i) && j < v->n_sequences; j++) {
			double d = j != i && row_known(v, j) ? gap(p, i, j, cosine) : 0;
			first += d;
			second += d * d;
		}
		sum += m * second - first * first;
		for (uint32_t j = 0; row_known(v, i) && j < v->n_sequences; j++)
			if (j != i && row_known(v, j))
				gap_back(p, i, j, cosine, 2 * (m * gap(p, i, j, cosine) - first) * v->scale / count);
	}
	return n >= 3 ? sum / count : 0;
}

double feature_margin_mse(const struct feature_view *v, const double *x)
{
	return x[1] > 0 ? triples(v, x[0] > 0) : all_pairs(v, x[0] > 0);
}
