// SPDX-License-Identifier: Apache-2.0
// A run's numbers over its steps: read, scaled, drawn in a terminal or as an SVG picture.
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

struct curve {
	const char *key;                 // "loss"
	size_t n;
	double *x, *y;                   // (n) steps ascending, and values; owned
	bool logarithmic;                // values above 0 alone
};

// From a run's points (GET /v1/runs/ID/metrics). A number that is said again unchanged, as evaluations are between two of them, counts
// once. n = 0 when no point has the key. -ENOMEM.
int curve_init(struct curve *c, const json_t *points, const char *key, bool logarithmic);
void curve_done(struct curve *c);

// Bounds with some air, in the curve's scale (log10 when it is logarithmic); never empty. n must not be 0.
struct range { double low, high; };
struct range curve_range(const struct curve *c, bool of_x);
double curve_scaled(const struct curve *c, double y);            // y in the range's scale
// Up to `most` round numbers within the range, ascending; returns how many.
size_t range_ticks(struct range r, size_t most, double *ret);

// width x height characters (of 2 x 4 dots each), a line each with '\n'; the value at the top and at the bottom stand left.
int curve_draw(const struct curve *c, size_t width, size_t height, FILE *to);          // -ENOMEM

// A whole picture, the curves (those with n > 0) one below the other.
void curves_draw_svg(const char *title, const struct curve *curves, size_t n, FILE *to);
