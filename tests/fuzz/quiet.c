// SPDX-License-Identifier: Apache-2.0
#include "tests/fuzz/quiet.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

unsigned quiet_n_failures;

void quiet_stdout(void)
{
	static bool done;
	if (!done && !freopen("/dev/null", "we", stdout))
		abort();
	done = true;
}

size_t quiet_part(const uint8_t **at, const uint8_t *end)
{
	const uint8_t *nul = *at < end ? memchr(*at, 0, (size_t)(end - *at)) : NULL;
	size_t n = (size_t)((nul ? nul : end) - *at);
	*at = nul ? nul + 1 : end;
	return n;
}

// Every word is formatted, so that a text that is none is noticed.
static int say(int status, const char *format, va_list arguments)
{
	char text[1024];
	vsnprintf(text, sizeof text, format, arguments);
	quiet_n_failures++;
	return status;
}

int kdctl_fail(const struct kdctl *k, const char *format, ...)
{
	va_list arguments;
	(void)k;
	va_start(arguments, format);
	int status = say(1, format, arguments);
	va_end(arguments);
	return status;
}

int kdctl_usage(const struct kdctl *k, const char *format, ...)
{
	va_list arguments;
	(void)k;
	va_start(arguments, format);
	int status = say(2, format, arguments);
	va_end(arguments);
	return status;
}

int kdctl_fail_with(const struct kdctl *k, const char *field, const char *message)
{
	return kdctl_fail(k, "%s: %s", field, message);
}

int kdctl_bad_option(const struct kdctl *k, int argc, char **argv)
{
	(void)argc, (void)argv;
	return kdctl_usage(k, "a bad option");
}

bool kdctl_number(const char *text, double min, double max, double *ret)
{
	char *end;
	*ret = strtod(text, &end);
	return *text && !*end && *ret >= min && *ret <= max;
}

int kdctl_connect(struct kdctl *k)
{
	(void)k;
	return 0;
}
