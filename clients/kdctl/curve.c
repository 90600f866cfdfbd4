// SPDX-License-Identifier: Apache-2.0
#include "clients/kdctl/curve.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>

#define LABEL_WIDTH 10
#define LARGEST 1e100                  // of a step or a value: the numbers are a server's, and differences must not overflow

int curve_init(struct curve *c, const json_t *points, const char *key, bool logarithmic)
{
	size_t size = json_array_size(points), i;
	const json_t *point;
	*c = (struct curve){.key = key, .logarithmic = logarithmic};
	c->x = calloc(size ? size : 1, sizeof *c->x);
	c->y = calloc(size ? size : 1, sizeof *c->y);
	if (!c->x || !c->y) {
		curve_done(c);
		return -ENOMEM;
	}
	json_array_foreach(points, i, point) {
		const json_t *v = json_object_get(point, key);
		double x = json_number_value(json_object_get(point, "step")), y = json_number_value(v);
		if (!json_is_number(v) || !(fabs(x) <= LARGEST) || !(fabs(y) <= LARGEST) || (logarithmic && y <= 0) ||
			(c->n && y == c->y[c->n - 1]))
			continue;
		c->x[c->n] = x;
		c->y[c->n++] = y;
	}
	return 0;
}

void curve_done(struct curve *c)
{
	free(c->x);
	free(c->y);
	*c = (struct curve){0};
}

double curve_scaled(const struct curve *c, double y)
{
	return c->logarithmic ? log10(y) : y;
}

struct range curve_range(const struct curve *c, bool of_x)
{
	struct range r = {INFINITY, -INFINITY};
	for (size_t i = 0; i < c->n; i++) {
		double v = of_x ? c->x[i] : curve_scaled(c, c->y[i]);
		r.low = fmin(r.low, v);
		r.high = fmax(r.high, v);
	}
	double air = of_x ? 0 : 0.04 * (r.high - r.low);
	if (!(r.high > r.low))
		air = fabs(r.low) > 1e-300 ? 0.1 * fabs(r.low) : 1;
	return (struct range){r.low - air, r.high + air};
}

// 1, 2 or 5 times a power of ten, at least v
static double round_up(double v)
{
	double power = pow(10, floor(log10(v)));
	for (int i = 0; i < 3; i++) {
		double step = (i == 0 ? 1 : i == 1 ? 2 : 5) * power;
		if (step >= v * (1 - 1e-12))
			return step;
	}
	return 10 * power;
}

size_t range_ticks(struct range r, size_t most, double *ret)
{
	double step = round_up((r.high - r.low) / (double)most), first = ceil(r.low / step - 1e-9);
	size_t n = 0;
	while (n < most && (first + (double)n) * step <= r.high + 1e-9 * step) {
		ret[n] = (first + (double)n) * step;
		n++;
	}
	return n;
}

// ---- in a terminal: Braille signs are 2 x 4 dots each

static void dot_set(unsigned char *cells, size_t width, size_t x, size_t y)
{
	static const unsigned char dots[4][2] = {{0x01, 0x08}, {0x02, 0x10}, {0x04, 0x20}, {0x40, 0x80}};
	cells[y / 4 * width + x / 2] |= dots[y % 4][x % 2];
}

static size_t place(double v, struct range r, size_t n)
{
	double at = floor((v - r.low) / (r.high - r.low) * (double)n);
	return !(at > 0) ? 0 : at >= (double)n ? n - 1 : (size_t)at;      // NaN too, where steps do not ascend
}

// Each column of dots shows the values between the neighbouring points: a line, not a scatter.
static void cells_fill(const struct curve *c, unsigned char *cells, size_t width, size_t height)
{
	struct range rx = curve_range(c, true), ry = curve_range(c, false);
	size_t columns = 2 * width, rows = 4 * height, i = 0;
	for (size_t column = 0; column < columns; column++) {
		double x = rx.low + ((double)column + 0.5) / (double)columns * (rx.high - rx.low);
		while (i + 1 < c->n && c->x[i + 1] <= x)
			i++;
		if (x < c->x[0] && c->n > 1)
			continue;
		double y = curve_scaled(c, c->y[i]);
		if (i + 1 < c->n && x > c->x[i])
			y += (curve_scaled(c, c->y[i + 1]) - y) * (x - c->x[i]) / (c->x[i + 1] - c->x[i]);
		dot_set(cells, width, column, rows - 1 - place(y, ry, rows));
	}
}

static void cell_print(unsigned char dots, FILE *to)
{
	unsigned code = 0x2800u + dots;      // U+2800, in UTF-8
	fputc((int)(0xe0 | code >> 12), to);
	fputc((int)(0x80 | (code >> 6 & 0x3f)), to);
	fputc((int)(0x80 | (code & 0x3f)), to);
}

int curve_draw(const struct curve *c, size_t width, size_t height, FILE *to)
{
	unsigned char *cells = calloc(width * height, 1);
	if (!cells)
		return -ENOMEM;
	struct range r = curve_range(c, false);
	cells_fill(c, cells, width, height);
	for (size_t row = 0; row < height; row++) {
		double edge = row ? r.low : r.high;
		if (row == 0 || row + 1 == height)
			fprintf(to, "%*.4g ", LABEL_WIDTH - 1, c->logarithmic ? pow(10, edge) : edge);
		else
			fprintf(to, "%*s", LABEL_WIDTH, "");
		for (size_t i = 0; i < width; i++)
			cell_print(cells[row * width + i], to);
		fputc('\n', to);
	}
	free(cells);
	return 0;
}
