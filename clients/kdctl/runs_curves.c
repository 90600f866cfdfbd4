// SPDX-License-Identifier: Apache-2.0
// kdctl runs watch and plot: the course of a run, live in the terminal or as a picture.
#include <errno.h>
#include <getopt.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#include "clients/kdctl/curve.h"
#include "clients/kdctl/runs.h"
#include "daemon/jansson.h"
#include "daemon/train/history.h"

#define MAX_CURVES 16
#define DEFAULT_PLOT "loss,held_out_kl,learning_rate"
#define DEFAULT_WATCH "loss,held_out_kl"

struct curve_options {
	char *keys;                      // separated by commas; cut up while parsing
	const char *names[MAX_CURVES];
	size_t n;
	bool logarithmic;
	const char *output;
	double seconds;
};

static int keys_split(struct kdctl *k, const char *list, struct curve_options *o)
{
	o->keys = strdup(list);
	if (!o->keys)
		return kdctl_fail(k, "no memory");
	char *rest = o->keys;
	for (char *key; (key = strsep(&rest, ","));) {
		if (!*key || o->n == MAX_CURVES)
			return kdctl_usage(k, "--keys %s: up to %d names separated by commas are expected", list, MAX_CURVES);
		o->names[o->n++] = key;
	}
	return 0;
}

// Every line of a metrics.jsonl on this machine.
static json_t *points_read(struct kdctl *k, const char *path)
{
	FILE *f = fopen(path, "re");
	json_t *points = json_array();
	char *line = NULL;
	size_t size = 0;
	bool good = f && points;
	if (!good)
		kdctl_fail(k, "%s: %s", path, f ? "no memory" : strerror(errno));
	for (ssize_t n; good && (n = getline(&line, &size, f)) > 0;) {
		bool starved;
		json_t *point = jansson_load(line, (size_t)n, 0, NULL, &starved);
		if (starved || (point && history_add(points, point)))
			good = kdctl_fail(k, "no memory") == 0;
	}
	free(line);
	if (f)
		fclose(f);
	if (!good) {
		json_decref(points);
		return NULL;
	}
	return points;
}

// New reference; NULL: said why.
static json_t *points_ask(struct kdctl *k, const char *id)
{
	json_t *reply = runs_call(k, "GET", id, "/metrics"), *points = json_incref(json_object_get(reply, "points"));
	if (reply && !points)
		kdctl_fail(k, "%s: the server's reply has no points", id);
	json_decref(reply);
	return points;
}

// ---- plot

static int plot(struct kdctl *k, const char *title, const json_t *points, const struct curve_options *o, FILE *to)
{
	struct curve curves[MAX_CURVES] = {0};
	size_t n_drawn = 0;
	int status = 0;
	for (size_t i = 0; i < o->n; i++) {
		if (curve_init(&curves[i], points, o->names[i], o->logarithmic && strcmp(o->names[i], "learning_rate") != 0))
			status = kdctl_fail(k, "no memory");
		n_drawn += curves[i].n > 0;
	}
	if (!status && !n_drawn)
		status = kdctl_fail(k, "%s: there are no such numbers yet", title);
	if (!status)
		curves_draw_svg(title, curves, o->n, to);
	for (size_t i = 0; i < o->n; i++)
		curve_done(&curves[i]);
	return status;
}

static int plot_to(struct kdctl *k, const char *title, const json_t *points, const struct curve_options *o)
{
	if (!o->output)
		return plot(k, title, points, o, stdout);
	FILE *to = fopen(o->output, "we");
	if (!to)
		return kdctl_fail(k, "%s: %s", o->output, strerror(errno));
	int status = plot(k, title, points, o, to);
	bool bad = ferror(to);
	if ((fclose(to) || bad) && !status)
		status = kdctl_fail(k, "%s: cannot be written", o->output);
	if (status)
		unlink(o->output);
	return status;
}

static int parse(struct kdctl *k, int argc, char **argv, const char *help, const char *keys, struct curve_options *o)
{
	static const struct option options[] = {{"help", no_argument, NULL, 'h'}, {"keys", required_argument, NULL, 'k'},
		{"log", no_argument, NULL, 'l'}, {"output", required_argument, NULL, 'o'}, {"seconds", required_argument, NULL, 's'}, {0}};
	optind = 0;
	for (int c; (c = getopt_long(argc, argv, ":", options, NULL)) != -1;) {
		switch (c) {
		case 'h': puts(help); return -1;
		case 'k': keys = optarg; break;
		case 'l': o->logarithmic = true; break;
		case 'o': o->output = optarg; break;
		case 's':
			if (!kdctl_number(optarg, 0.1, 3600, &o->seconds))
				return kdctl_usage(k, "--seconds %s: a number from 0.1 to 3600 is expected", optarg);
			break;
		default: return kdctl_bad_option(k, argc, argv);
		}
	}
	if (optind + 1 != argc)
		return kdctl_usage(k, "one ID is expected (kdctl runs %s --help)", argv[0]);
	return keys_split(k, keys, o);
}

int runs_plot(struct kdctl *k, int argc, char **argv)
{
	struct curve_options o = {0};
	json_t *points = NULL;
	int status = parse(k, argc, argv,
			   "Usage: kdctl runs plot [OPTIONS] ID|FILE.jsonl\n"
			   "Draws the course of a run (or of a metrics.jsonl on this machine) as an SVG picture.\n\n"
			   "  --keys LIST      numbers to draw [" DEFAULT_PLOT "]\n"
			   "  --log            logarithmic, but for the learning rate\n"
			   "  --output FILE    default: stdout", DEFAULT_PLOT, &o);
	if (!status) {
		const char *what = argv[optind];
		bool file = strchr(what, '/') || strchr(what, '.');
		status = file ? 0 : kdctl_connect(k);
		if (!status)
			points = file ? points_read(k, what) : points_ask(k, what);
		if (!status)
			status = points ? plot_to(k, what, points, &o) : 1;
	}
	json_decref(points);
	free(o.keys);
	return status < 0 ? 0 : status;
}

// ---- watch

static void terminal_size(size_t *ret_width, size_t *ret_height)
{
	struct winsize w;
	bool known = ioctl(STDOUT_FILENO, TIOCGWINSZ, &w) == 0 && w.ws_col > 30 && w.ws_row > 8;
	*ret_width = known ? w.ws_col : 80;
	*ret_height = known ? w.ws_row : 24;
}

static void state_print(const json_t *run, const char *id)
{
	const json_t *p = json_object_get(run, "progress");
	const char *state = json_string_value(json_object_get(run, "state"));
	double left = json_number_value(json_object_get(p, "eta_seconds"));
	printf("%s  %s  step %.0f/%.0f  %.0f tokens/s", id, state ? state : "",
	       json_number_value(json_object_get(p, "step")), json_number_value(json_object_get(p, "steps")),
	       json_number_value(json_object_get(p, "tokens_per_second")));
	if (left > 0)
		printf("  %.0f:%02.0f left", floor(left / 60), fmod(left, 60));
	putchar('\n');
}

// A frame: on a terminal it takes the place of the one before.
static int frame_print(struct kdctl *k, const char *id, const json_t *run, const json_t *points, const struct curve_options *o)
{
	size_t width, height;
	bool terminal = isatty(STDOUT_FILENO);
	terminal_size(&width, &height);
	if (terminal)
		fputs("\033[H\033[2J", stdout);
	state_print(run, id);
	size_t rows = (height - 2) / o->n;
	for (size_t i = 0; i < o->n; i++) {
		struct curve c;
		if (curve_init(&c, points, o->names[i], o->logarithmic))
			return kdctl_fail(k, "no memory");
		if (c.n && terminal)
			printf("%s  %.5g\n", c.key, c.y[c.n - 1]);
		if (c.n && terminal && rows > 2 && curve_draw(&c, width - 12, rows - 2, stdout))
			return kdctl_fail(k, "no memory");
		curve_done(&c);
	}
	return fflush(stdout) ? 1 : 0;
}

static int watch(struct kdctl *k, const char *id, const struct curve_options *o)
{
	for (;;) {
		json_t *run = runs_call(k, "GET", id, ""), *points = run ? points_ask(k, id) : NULL;
		int status = points ? frame_print(k, id, run, points, o) : 1;
		bool ended = !status && runs_state_is_final(run);
		if (ended)
			status = runs_conclude(k, id, run);
		json_decref(points);
		json_decref(run);
		if (status || ended)
			return status;
		double whole;
		double part = modf(o->seconds, &whole);
		nanosleep(&(struct timespec){(time_t)whole, (long)(part * 1e9)}, NULL);
	}
}

int runs_watch(struct kdctl *k, int argc, char **argv)
{
	struct curve_options o = {.seconds = 2};
	int status = parse(k, argc, argv,
			   "Usage: kdctl runs watch [OPTIONS] ID\n"
			   "Shows a run's curves until it ends; without a terminal, a line at a time.\n\n"
			   "  --keys LIST      numbers to draw [" DEFAULT_WATCH "]\n"
			   "  --log            logarithmic\n"
			   "  --seconds S      between two looks [2]", DEFAULT_WATCH, &o);
	if (!status)
		status = kdctl_connect(k);
	if (!status)
		status = watch(k, argv[optind], &o);
	free(o.keys);
	return status < 0 ? 0 : status;
}
