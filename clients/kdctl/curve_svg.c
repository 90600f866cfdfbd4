// SPDX-License-Identifier: Apache-2.0
// A run as a picture: one panel for each curve, nothing but lines and text, so that any browser, printer or paper takes it.
#include <math.h>
#include <string.h>

#include "clients/kdctl/curve.h"

#define WIDTH 720.0
#define PANEL_HEIGHT 240.0
#define LEFT 76.0
#define RIGHT 20.0
#define TOP 34.0                       // of the picture, and of each panel
#define BOTTOM 34.0

struct panel {
	const struct curve *curve;
	struct range x, y;
	double top;                    // of its frame
};

static double px(const struct panel *p, double x)
{
	return LEFT + (x - p->x.low) / (p->x.high - p->x.low) * (WIDTH - LEFT - RIGHT);
}

static double py(const struct panel *p, double scaled)
{
	return p->top + (p->y.high - scaled) / (p->y.high - p->y.low) * (PANEL_HEIGHT - TOP - BOTTOM);
}

static void text_print(const char *text, FILE *to)
{
	for (; *text; text++) {
		const char *safe = *text == '<' ? "&lt;" : *text == '&' ? "&amp;" : *text == '>' ? "&gt;" : NULL;
		if (safe)
			fputs(safe, to);
		else
			fputc(*text, to);
	}
}

static void axes_print(const struct panel *p, FILE *to)
{
	double ticks[8], bottom = p->top + PANEL_HEIGHT - TOP - BOTTOM;
	size_t n = range_ticks(p->y, 5, ticks);
	for (size_t i = 0; i < n; i++) {
		double y = py(p, ticks[i]), value = p->curve->logarithmic ? pow(10, ticks[i]) : ticks[i];
		fprintf(to, "<path class=\"grid\" d=\"M%g %.1fH%g\"/><text x=\"%g\" y=\"%.1f\" text-anchor=\"end\">%.4g</text>\n", LEFT, y,
			WIDTH - RIGHT, LEFT - 6, y + 4, value);
	}
	n = range_ticks(p->x, 8, ticks);
	for (size_t i = 0; i < n; i++)
		fprintf(to, "<path class=\"grid\" d=\"M%.1f %gV%g\"/><text x=\"%.1f\" y=\"%g\" text-anchor=\"middle\">%.6g</text>\n",
			px(p, ticks[i]), p->top, bottom, px(p, ticks[i]), bottom + 16, ticks[i]);
	fprintf(to, "<rect x=\"%g\" y=\"%g\" width=\"%g\" height=\"%g\" fill=\"none\" stroke=\"#888\"/>\n", LEFT, p->top,
		WIDTH - LEFT - RIGHT, bottom - p->top);
}

static void line_print(const struct panel *p, FILE *to)
{
	const struct curve *c = p->curve;
	double last_x = px(p, c->x[c->n - 1]), last_y = py(p, curve_scaled(c, c->y[c->n - 1]));
	fputs("<polyline points=\"", to);
	for (size_t i = 0; i < c->n; i++)
		fprintf(to, "%.1f,%.1f ", px(p, c->x[i]), py(p, curve_scaled(c, c->y[i])));
	fprintf(to, "\"/>\n<circle cx=\"%.1f\" cy=\"%.1f\" r=\"2.5\"/>\n", last_x, last_y);
}

static void panel_print(const struct panel *p, FILE *to)
{
	const struct curve *c = p->curve;
	fprintf(to, "<g>\n<text class=\"name\" x=\"%g\" y=\"%g\">", LEFT, p->top - 8);
	text_print(c->key, to);
	fprintf(to, "</text><text x=\"%g\" y=\"%g\" text-anchor=\"end\">%.5g at step %.0f</text>\n", WIDTH - RIGHT, p->top - 8,
		c->y[c->n - 1], c->x[c->n - 1]);
	axes_print(p, to);
	line_print(p, to);
	fputs("</g>\n", to);
}

void curves_draw_svg(const char *title, const struct curve *curves, size_t n, FILE *to)
{
	size_t n_panels = 0;
	for (size_t i = 0; i < n; i++)
		n_panels += curves[i].n > 0;
	fprintf(to, "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %g %g\" font-family=\"sans-serif\" font-size=\"12\">\n"
		"<style>text{fill:#333}.name{font-weight:bold}.grid{stroke:#ddd}polyline{fill:none;stroke:#1f5fa8;stroke-width:1.5}"
		"circle{fill:#1f5fa8}</style>\n<rect width=\"100%%\" height=\"100%%\" fill=\"#fff\"/>\n"
		"<text x=\"%g\" y=\"22\" font-size=\"15\">", WIDTH, TOP + PANEL_HEIGHT * (double)n_panels, LEFT);
	text_print(title, to);
	fputs("</text>\n", to);
	struct panel p = {.top = 2 * TOP};
	for (size_t i = 0; i < n; i++) {
		if (!curves[i].n)
			continue;
		p.curve = &curves[i];
		p.x = curve_range(p.curve, true);
		p.y = curve_range(p.curve, false);
		panel_print(&p, to);
		p.top += PANEL_HEIGHT;
	}
	fputs("</svg>\n", to);
}
