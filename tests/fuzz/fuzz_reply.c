// SPDX-License-Identifier: Apache-2.0
// kdctl and what a server replies to it: any bytes as the body of a reply, its status in front (2). What is JSON is shown as kdctl status shows
// it, and its points are drawn as kdctl runs plot and watch draw them.
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "clients/kdctl/curve.h"
#include "clients/kdctl/kdctl.h"
#include "tests/fuzz/fuzz.h"

static const uint8_t *body;
static size_t n_body;
static int body_status;
static unsigned n_failures;

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

int kdctl_fail(const struct kdctl *k, const char *format, ...)
{
	char text[1024];
	va_list arguments;
	(void)k;
	va_start(arguments, format);
	vsnprintf(text, sizeof text, format, arguments);
	va_end(arguments);
	n_failures++;
	return 1;
}

int kdctl_fail_with(const struct kdctl *k, const char *field, const char *message)
{
	return kdctl_fail(k, "%s: %s", field, message);
}

int kdctl_usage(const struct kdctl *k, const char *format, ...)
{
	(void)k, (void)format;
	return 2;
}

int kdctl_bad_option(const struct kdctl *k, int argc, char **argv) { (void)k, (void)argc, (void)argv; return 2; }
int kdctl_connect(struct kdctl *k) { (void)k; return 0; }

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

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static FILE *nowhere;
	struct kdctl k = {.command = "status"};
	if (!nowhere && (!(nowhere = fopen("/dev/null", "we")) || !freopen("/dev/null", "we", stdout)))
		abort();
	if (size < 2)
		return 0;
	body_status = data[0] | data[1] << 8;
	body = data + 2;
	n_body = size - 2;
	n_failures = 0;
	json_t *reply = kdctl_call(&k, "GET", "/v1/status", NULL);
	if (!reply != (n_failures == 1))
		abort();                       // a reply, or the reason why there is none
	if (!reply)
		return 0;
	kdctl_print_object(reply);
	kdctl_print_json(reply);
	draw(json_object_get(reply, "points"), nowhere);
	json_decref(reply);
	return 0;
}
