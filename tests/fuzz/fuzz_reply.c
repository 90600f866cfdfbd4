// SPDX-License-Identifier: Apache-2.0
// kdctl and what a server replies to it: any bytes as the body of a reply, its status in front (2). What is JSON is shown as kdctl status
// shows it, its points are drawn as kdctl runs plot and watch draw them (from a file too),
// and every command that reads such a reply is given it.
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "clients/kdctl/curve.h"
#include "clients/kdctl/runs.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/quiet.h"
#include "tests/fuzz/scratch.h"

static const uint8_t *body;
static size_t n_body;
static int body_status;

// ---- what stands around it

int kd_call(struct kd_client *client, const char *method, const char *path, const void *bytes, size_t n_bytes, int *ret_status,
	    char **ret_body, size_t *ret_n_bytes, struct kd_error *err)
{
	(void)client, (void)method, (void)path, (void)bytes, (void)n_bytes, (void)err;
	*ret_status = body_status;
	*ret_n_bytes = n_body;
	*ret_body = malloc(n_body + 1);
	if (!*ret_body)
		abort();
	if (n_body)
		memcpy(*ret_body, body, n_body);
	(*ret_body)[n_body] = '\0';
	return 0;
}

// Nobody waits between two looks.
int nanosleep(const struct timespec *wanted, struct timespec *left)
{
	(void)wanted, (void)left;
	return 0;
}

// ---- what is done with it

static void draw(const json_t *points, FILE *to)
{
	static const char *const keys[] = {"loss", "held_out_kl", "learning_rate"};
	struct curve curves[6] = {0};
	size_t n_drawn = 0;
	for (size_t i = 0; i < 6; i++) {
		if (curve_init(&curves[i], points, keys[i / 2], i & 1))
			abort();
		n_drawn += curves[i].n > 0;
		if (curves[i].n && curve_draw(&curves[i], 60, 10, to))
			abort();
	}
	if (n_drawn)
		curves_draw_svg("a run", curves, 6, to);
	for (size_t i = 0; i < 6; i++)
		curve_done(&curves[i]);
}

// A command either says why it failed, or did what it should; a run that did not succeed says so too.
static void try_command(int (*command)(struct kdctl *k, int argc, char **argv), int argc, const char **argv)
{
	struct kdctl k = {.command = argv[0]};
	quiet_n_failures = 0;
	optind = 0;
	int status = command(&k, argc, (char **)(uintptr_t)argv);
	if ((status != 0) != (quiet_n_failures > 0))
		abort();
}

static void try_commands(const json_t *reply)
{
	char file[SCRATCH_PATH];
	scratch_write("metrics.jsonl", body, n_body, file);
	try_command(command_top, 2, (const char *[]){"top", "--once", NULL});
	try_command(command_runs, 1, (const char *[]){"runs", NULL});
	try_command(command_runs, 2, (const char *[]){"runs", "a-run", NULL});
	try_command(command_runs, 3, (const char *[]){"runs", "plot", "a-run", NULL});
	try_command(command_runs, 4, (const char *[]){"runs", "plot", "--log", file, NULL});
	if (runs_state_is_final(reply))
		try_command(command_runs, 3, (const char *[]){"runs", "watch", "a-run", NULL});
}

static void try_tokens(void)
{
	static const char text[] = "a text";
	struct kdctl k = {.command = "score"};
	uint32_t *tokens = NULL;
	size_t n = 0;
	quiet_n_failures = 0;
	int status = text_tokenize(&k, text, sizeof text - 1, &tokens, &n);
	if ((status != 0) != (quiet_n_failures > 0))
		abort();
	uint64_t sum = 0;
	for (size_t i = 0; i < n; i++)
		sum += tokens[i];
	if (sum == UINT64_MAX)
		abort();                       // it is not; but every token was read
	free(tokens);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static FILE *nowhere;
	struct kdctl k = {.command = "status"};
	quiet_stdout();
	if (!nowhere && !(nowhere = fopen("/dev/null", "we")))
		abort();
	if (size < 2)
		return 0;
	body_status = data[0] | data[1] << 8;
	body = data + 2;
	n_body = size - 2;
	quiet_n_failures = 0;
	json_t *reply = kdctl_call(&k, "GET", "/v1/status", NULL);
	if (!reply != (quiet_n_failures == 1))
		abort();                       // a reply, or the reason why there is none
	if (!reply)
		return 0;
	kdctl_print_object(reply);
	kdctl_print_json(reply);
	draw(json_object_get(reply, "points"), nowhere);
	try_commands(reply);
	try_tokens();
	json_decref(reply);
	return 0;
}
