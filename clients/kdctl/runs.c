// SPDX-License-Identifier: Apache-2.0
// kdctl train and kdctl runs: training runs of the server.
#include <getopt.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "clients/kdctl/runs.h"

#define POLL_MS 500

static const char *text_of(const json_t *run, const char *key)
{
	const char *text = json_string_value(json_object_get(run, key));
	return text ? text : "";
}

static double number_of(const json_t *run, const char *key)
{
	const json_t *v = json_object_get(json_object_get(run, "progress"), key);
	return json_is_number(v) ? json_number_value(v) : NAN;
}

// Ids come back from the server and go into a path: only what an id may hold.
static bool id_is_valid(const char *id)
{
	size_t n = strlen(id);
	return n && n <= 64 && strspn(id, "abcdefghijklmnopqrstuvwxyz0123456789_-") == n;
}

json_t *runs_call(struct kdctl *k, const char *method, const char *id, const char *rest)
{
	char path[112];
	if (!id_is_valid(id)) {
		kdctl_fail(k, "%s: not the id of a run (a to z, 0 to 9, _ and -)", id);
		return NULL;
	}
	snprintf(path, sizeof path, "/v1/runs/%s%s", id, rest);
	return kdctl_call(k, method, path, NULL);
}

bool runs_state_is_final(const json_t *run)
{
	const char *state = text_of(run, "state");
	return strcmp(state, "succeeded") == 0 || strcmp(state, "failed") == 0 || strcmp(state, "stopped") == 0;
}

// "running", or of a run whose worker died "restarting in 4 s".
static const char *state_words(const json_t *run, char *ret, size_t room)
{
	const json_t *wait = json_object_get(run, "restarting_in_s");
	if (json_is_number(wait))
		snprintf(ret, room, "%.20s in %.0f s", text_of(run, "state"), ceil(json_number_value(wait)));
	else
		snprintf(ret, room, "%.40s", text_of(run, "state"));
	return ret;
}

static void show_progress(struct progress *p, const json_t *run)
{
	char note[128], part[48];
	double step = number_of(run, "step"), steps = number_of(run, "steps");
	double loss = number_of(run, "loss"), kl = number_of(run, "held_out_kl");
	double speed = number_of(run, "tokens_per_second");
	state_words(run, note, sizeof note);
	if (steps > 0) {
		snprintf(part, sizeof part, " step %.0f/%.0f", step, steps);
		strncat(note, part, sizeof note - strlen(note) - 1);
	}
	const struct { const char *format; double v; } more[] = {
		{", loss %.4f", loss}, {", held-out KL %.4f", kl}, {", %.0f tokens/s", speed},
	};
	for (size_t i = 0; i < 3; i++) {
		if (isnan(more[i].v))
			continue;
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
		snprintf(part, sizeof part, more[i].format, more[i].v);
#pragma GCC diagnostic pop
		strncat(note, part, sizeof note - strlen(note) - 1);
	}
	progress_show(p, steps > 0 && !isnan(step) ? step : 0, steps > 0 ? steps : 1, note);
}

int runs_conclude(const struct kdctl *k, const char *id, const json_t *run)
{
	const char *state = text_of(run, "state"), *reason = text_of(run, "reason");
	if (k->json)
		kdctl_print_json(run);
	else
		kdctl_print_object(run);
	if (strcmp(state, "succeeded") == 0)
		return 0;
	return kdctl_fail(k, "run %s %s%s%s", id, strcmp(state, "failed") == 0 ? "failed" : "was stopped", *reason ? ": " : "", reason);
}

// Until the run has ended: 0 when it succeeded.
static int follow(struct kdctl *k, const char *id)
{
	struct progress p = progress_start();
	for (;;) {
		json_t *run = runs_call(k, "GET", id, "");
		if (!run) {
			progress_stop(&p);
			return 1;
		}
		if (runs_state_is_final(run)) {
			progress_stop(&p);
			int status = runs_conclude(k, id, run);
			json_decref(run);
			return status;
		}
		show_progress(&p, run);
		json_decref(run);
		nanosleep(&(struct timespec){.tv_nsec = POLL_MS * 1000000L}, NULL);
	}
}

static int start(struct kdctl *k, const char *path, const char *name, bool detach)
{
	char id[80];
	size_t n;
	char *config = read_text_file(k, path, &n);
	if (!config)
		return 1;
	json_t *body = json_pack("{s:s%}", "config", config, n);
	free(config);
	if (!body)
		return kdctl_fail(k, "%s: not UTF-8", path);
	if (name)
		json_object_set_new(body, "name", json_string(name));
	json_t *run = kdctl_call(k, "POST", "/v1/runs", body);
	if (!run)
		return 1;
	snprintf(id, sizeof id, "%s", text_of(run, "id"));
	if (detach && k->json)
		kdctl_print_json(run);
	else if (detach)
		puts(id);
	json_decref(run);
	if (detach)
		return 0;
	if (!k->json)
		printf("run                      %s\n", id);
	fflush(stdout);
	return follow(k, id);
}

int command_train(struct kdctl *k, int argc, char **argv)
{
	static const struct option options[] = {{"help", no_argument, NULL, 'h'}, {"name", required_argument, NULL, 'n'},
		{"detach", no_argument, NULL, 'd'}, {0}};
	const char *name = NULL;
	bool detach = false;
	for (int c; (c = getopt_long(argc, argv, ":", options, NULL)) != -1;) {
		switch (c) {
		case 'h':
			puts("Usage: kdctl train [--name NAME] [--detach] RUN.conf\n"
			     "Starts a training run on the server (- = configuration from stdin) and follows it to its end.\n"
			     "Leaving kdctl does not stop the run; kdctl runs stop ID does.\n\n"
			     "  --name NAME          id of the run: a to z, 0 to 9, _ and -\n"
			     "  --detach             print the id and do not follow");
			return 0;
		case 'n': name = optarg; break;
		case 'd': detach = true; break;
		default: return kdctl_bad_option(k, argc, argv);
		}
	}
	if (optind + 1 != argc)
		return kdctl_usage(k, "one RUN.conf is expected (kdctl train --help)");
	if (name && !id_is_valid(name))
		return kdctl_usage(k, "--name %s: only a to z, 0 to 9, _ and -, at most 64 of them", name);
	int status = kdctl_connect(k);
	return status ? status : start(k, argv[optind], name, detach);
}

static int list(struct kdctl *k)
{
	size_t i;
	json_t *reply = kdctl_call(k, "GET", "/v1/runs", NULL), *run;
	if (!reply)
		return 1;
	if (k->json) {
		kdctl_print_json(reply);
	} else {
		printf("%-24s %-20s %12s %10s\n", "ID", "STATE", "STEP", "LOSS");
		json_array_foreach(json_object_get(reply, "runs"), i, run) {
			char step[32] = "-", loss[32] = "-", state[64];
			if (!isnan(number_of(run, "step")))
				snprintf(step, sizeof step, "%.0f/%.0f", number_of(run, "step"), number_of(run, "steps"));
			if (!isnan(number_of(run, "loss")))
				snprintf(loss, sizeof loss, "%.4f", number_of(run, "loss"));
			printf("%-24s %-20s %12s %10s\n", text_of(run, "id"), state_words(run, state, sizeof state), step, loss);
		}
	}
	json_decref(reply);
	return 0;
}

int command_runs(struct kdctl *k, int argc, char **argv)
{
	static const struct option options[] = {{"help", no_argument, NULL, 'h'}, {0}};
	if (argc > 1 && strcmp(argv[1], "watch") == 0)
		return runs_watch(k, argc - 1, argv + 1);
	if (argc > 1 && strcmp(argv[1], "plot") == 0)
		return runs_plot(k, argc - 1, argv + 1);
	for (int c; (c = getopt_long(argc, argv, ":", options, NULL)) != -1;) {
		if (c != 'h')
			return kdctl_bad_option(k, argc, argv);
		puts("Usage: kdctl runs [ID | stop ID | watch ID | plot ID]\n"
		     "Lists the server's training runs, shows one, or stops one (it keeps its last checkpoint);\n"
		     "watch shows its curves live, plot draws them as a picture.");
		return 0;
	}
	int n = argc - optind;
	bool stop = n == 2 && strcmp(argv[optind], "stop") == 0;
	if (n > 1 && !stop)
		return kdctl_usage(k, "nothing, an ID, stop ID, watch ID or plot ID is expected");
	int status = kdctl_connect(k);
	if (status)
		return status;
	if (!n)
		return list(k);
	json_t *run = runs_call(k, stop ? "DELETE" : "GET", argv[argc - 1], "");
	if (!run)
		return 1;
	if (k->json)
		kdctl_print_json(run);
	else
		kdctl_print_object(run);
	json_decref(run);
	return 0;
}
