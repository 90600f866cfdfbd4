// SPDX-License-Identifier: Apache-2.0
// kdctl top: what the server does now. On a terminal it is drawn anew until it is interrupted; in a pipe it is said once, plainly.
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "clients/kdctl/kdctl.h"

#define BAR_WIDTH 24
#define MAX_RUNS 8                // the newest
#define TEXT_COLUMNS 60           // of what others wrote: a run's reason

struct view {
	json_t *status, *before;       // before: NULL the first time
	json_t *runs;                  // NULL: none, or not for this token
	double seconds;                // between the two
	bool no_runs;
};

static double number(const json_t *j, const char *group, const char *key)
{
	return json_number_value(json_object_get(group ? json_object_get(j, group) : j, key));
}

static const char *string(const json_t *j, const char *group, const char *key)
{
	const char *text = json_string_value(json_object_get(group ? json_object_get(j, group) : j, key));
	return text ? text : "";
}

// Per second since the last look; 0 the first time, and when another process answers now.
static double rate(const struct view *v, const char *group, const char *key)
{
	double n = v->before ? number(v->status, group, key) - number(v->before, group, key) : 0;
	return n > 0 && v->seconds > 0 ? n / v->seconds : 0;
}

static void print_bar(const char *name, double n, double limit)
{
	double share = limit > 0 ? n / limit : 0;
	int filled = share > 0 ? (int)lround((share > 1 ? 1 : share) * BAR_WIDTH) : 0;
	printf("           %-9s[", name);
	for (int i = 0; i < BAR_WIDTH; i++)
		putchar(i < filled ? '#' : '.');
	printf("] %.4g of %.4g\n", n, limit);
}

static void print_duration(double seconds)
{
	uint64_t s = seconds > 0 && seconds < 1e15 ? (uint64_t)seconds : 0;
	if (s >= 86400)
		printf("%" PRIu64 " d %" PRIu64 " h", s / 86400, s / 3600 % 24);
	else if (s >= 3600)
		printf("%" PRIu64 " h %" PRIu64 " min", s / 3600, s / 60 % 60);
	else
		printf("%" PRIu64 " min %" PRIu64 " s", s / 60, s % 60);
}

static void print_head(const struct view *v)
{
	const json_t *degraded = json_object_get(v->status, "degraded");
	bool ready = json_is_true(json_object_get(v->status, "ready"));
	printf("kdserved %s  %s", string(v->status, NULL, "version"),
	       ready ? json_array_size(degraded) ? "degraded" : "ready" : "NOT READY");
	for (size_t i = 0; i < json_array_size(degraded); i++) {
		const char *what = json_string_value(json_array_get(degraded, i));
		printf("%s%s", i ? ", " : ": ", what ? what : "?");
	}
	printf("  %s %s  up ", string(v->status, "device", "name"), string(v->status, "device", "numeric"));
	print_duration(number(v->status, NULL, "uptime_s"));
	printf("\n%s%s", string(v->status, NULL, "why"), ready ? "" : "\n");
}

static void print_work(const struct view *v)
{
	const json_t *s = v->status;
	double passes = number(s, "forward", "passes"), hits = rate(v, "sequences", "cached"),
		all = hits + rate(v, "sequences", "computed");
	printf("requests   %.4g answered/s  %.4g refused/s  %.4g left/s  %.0f under way  %.0f sequences waiting\n",
	       rate(v, "requests", "answered"), rate(v, "requests", "rejected"), rate(v, "requests", "cancelled"),
	       number(s, "requests", "in_flight"), number(s, "queue", "sequences_waiting"));
	printf("teacher    %.4g positions/s  %.4g passes/s  %.0f %% shared by several requests\n", rate(v, "forward", "positions"),
	       rate(v, "forward", "passes"), passes > 0 ? 100 * number(s, "forward", "mixed_passes") / passes : 0);
	print_bar("requests", number(s, "queue", "requests"), number(s, "queue", "requests_limit"));
	print_bar("tokens", number(s, "queue", "tokens"), number(s, "queue", "tokens_limit"));
	print_bar("bytes", number(s, "queue", "bytes"), number(s, "queue", "bytes_limit"));
	if (json_object_get(s, "store"))
		printf("store      %.0f records  %.2f MiB  %.4g appended/s  %.0f %% of sequences found%s\n", number(s, "store", "records"),
		       number(s, "store", "bytes") * 0x1p-20, rate(v, "store", "appended"), all > 0 ? 100 * hits / all : 0,
		       json_is_true(json_object_get(json_object_get(s, "store"), "failing")) ? "  THE DISK REFUSES" : "");
	if (json_object_get(s, "canary"))
		printf("canary     right %.0f times, the last %.0f s ago\n", number(s, "canary", "right"), number(s, "canary", "age_s"));
}

static void print_runs(const struct view *v)
{
	const json_t *list = json_object_get(v->runs, "runs");
	size_t n = json_array_size(list);
	if (!json_object_get(v->status, "runs"))
		return;
	printf("runs       %.0f under way\n", number(v->status, "runs", "running"));
	for (size_t i = n; i-- > 0 && n - i <= MAX_RUNS;) {
		const json_t *run = json_array_get(list, i);
		printf("           %-20s %-9s", string(run, NULL, "id"), string(run, NULL, "state"));
		if (number(run, "progress", "steps") > 0)
			printf(" step %.0f of %.0f", number(run, "progress", "step"), number(run, "progress", "steps"));
		if (json_object_get(json_object_get(run, "progress"), "loss"))
			printf("  loss %.4g", number(run, "progress", "loss"));
		printf("  %.*s\n", TEXT_COLUMNS, string(run, NULL, "reason"));
	}
}

// Asks anew: what was `status` becomes `before`.
static int look(struct kdctl *k, struct view *v, double seconds)
{
	json_t *status = kdctl_call(k, "GET", "/v1/status", NULL);
	if (!status)
		return 1;
	json_decref(v->before);
	v->before = v->status;
	v->status = status;
	v->seconds = seconds;
	if (!json_object_get(status, "runs") || v->no_runs)
		return 0;
	json_decref(v->runs);
	v->runs = kdctl_call(k, "GET", "/v1/runs", NULL);
	v->no_runs = !v->runs;         // it was said why; it will not be otherwise the next time
	return 0;
}

static double now_seconds(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void rest(double seconds)
{
	struct timespec t = {(time_t)seconds, (long)((seconds - floor(seconds)) * 1e9)};
	while (nanosleep(&t, &t) && errno == EINTR)
		;
}

static int watch(struct kdctl *k, double interval, bool live)
{
	struct view v = {0};
	double looked = now_seconds();
	int r = look(k, &v, 0);
	for (bool more = true; more && !r; more = live) {
		rest(interval);
		double now = now_seconds();
		r = look(k, &v, now - looked);
		looked = now;
		if (r)
			break;
		if (k->json) {
			kdctl_print_json(v.status);
			continue;
		}
		if (live)
			fputs("\033[H\033[J", stdout);
		print_head(&v);
		print_work(&v);
		print_runs(&v);
		r = fflush(stdout) ? 1 : 0;
	}
	json_decref(v.status);
	json_decref(v.before);
	json_decref(v.runs);
	return r;
}

int command_top(struct kdctl *k, int argc, char **argv)
{
	static const struct option options[] = {
		{"help", no_argument, NULL, 'h'}, {"interval", required_argument, NULL, 'i'}, {"once", no_argument, NULL, 'o'}, {0}};
	double interval = 1;
	bool live = isatty(STDOUT_FILENO);
	for (int c; (c = getopt_long(argc, argv, "+:", options, NULL)) != -1;) {
		switch (c) {
		case 'h':
			puts("Usage: kdctl top [--interval SECONDS] [--once]\n"
			     "Shows what the server does now: on a terminal until interrupted, else once. Rates are over one interval.");
			return 0;
		case 'i':
			if (!kdctl_number(optarg, 0.05, 3600, &interval))
				return kdctl_usage(k, "--interval: seconds from 0.05 to 3600");
			break;
		case 'o':
			live = false;
			break;
		default:
			return kdctl_bad_option(k, argc, argv);
		}
	}
	if (optind != argc)
		return kdctl_usage(k, "%s: no argument is expected", argv[optind]);
	int status = kdctl_connect(k);
	return status ? status : watch(k, interval, live);
}
