// SPDX-License-Identifier: Apache-2.0
// The one table of error codes: wire name, errno, HTTP status.
#include "common/error.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#undef error_set        // wrapped for the analyser alone
#undef error_system

static const struct {
	const char *name;
	int number;
	int http_status;
} codes[N_ERROR_CODES] = {
	[ERROR_NONE] = {"none", 0, 200},
	[ERROR_INVALID] = {"invalid", -EINVAL, 400},
	[ERROR_UNSUPPORTED] = {"unsupported", -EOPNOTSUPP, 422},
	[ERROR_TOO_LARGE] = {"too_large", -E2BIG, 413},
	[ERROR_NOT_FOUND] = {"not_found", -ENOENT, 404},
	[ERROR_CONFLICT] = {"conflict", -EEXIST, 409},
	[ERROR_UNAUTHORIZED] = {"unauthorized", -EACCES, 401},
	[ERROR_FORBIDDEN] = {"forbidden", -EPERM, 403},
	[ERROR_OVERLOADED] = {"overloaded", -EAGAIN, 429},
	[ERROR_UNAVAILABLE] = {"unavailable", -ESHUTDOWN, 503},
	[ERROR_DEADLINE] = {"deadline", -ETIMEDOUT, 504},
	[ERROR_CANCELLED] = {"cancelled", -ECANCELED, 499},
	[ERROR_NOT_FINITE] = {"not_finite", -EDOM, 500},
	[ERROR_STORE] = {"store", -ENOSPC, 507},
	[ERROR_CORRUPT] = {"corrupt", -EBADMSG, 500},
	[ERROR_IO] = {"io", -EIO, 500},
	[ERROR_MEMORY] = {"memory", -ENOMEM, 503},
	[ERROR_INTERNAL] = {"internal", -EPROTO, 500},
};

static void escape(char *to, size_t size, const char *from)
{
	size_t n = 0;
	for (; *from; from++) {
		unsigned char c = (unsigned char)*from;
		char piece[8];
		int k = c >= 0x20 && c < 0x7f ? snprintf(piece, sizeof piece, "%c", c) : snprintf(piece, sizeof piece, "\\x%02x", c);
		if (n + (size_t)k >= size)
			break;
		memcpy(to + n, piece, (size_t)k);
		n += (size_t)k;
	}
	to[n] = '\0';
}

__attribute__((format(printf, 5, 0)))
static void fill(struct error *err, enum error_code code, const char *field, const char *suffix, const char *format, va_list arguments)
{
	char raw[sizeof err->message];
	int n = vsnprintf(raw, sizeof raw, format, arguments);
	if (suffix && n >= 0 && (size_t)n < sizeof raw)
		snprintf(raw + n, sizeof raw - (size_t)n, ": %s", suffix);
	err->code = code;
	err->retry_s = 0;
	escape(err->field, sizeof err->field, field ? field : "");
	escape(err->message, sizeof err->message, raw);
}

int error_set(struct error *err, enum error_code code, const char *field, const char *format, ...)
{
	if (err) {
		va_list arguments;
		va_start(arguments, format);
		fill(err, code, field, NULL, format, arguments);
		va_end(arguments);
	}
	return error_errno(code);
}

static enum error_code code_of_errno(int number)
{
	switch (number) {
	case ENOENT: return ERROR_NOT_FOUND;
	case ENOTDIR: case EISDIR: case ELOOP: case ENAMETOOLONG: return ERROR_INVALID;      // a path that is none for this, now and later
	case ENOMEM: return ERROR_MEMORY;
	case ENOSPC: case EDQUOT: case EFBIG: return ERROR_STORE;
	case EEXIST: case EBUSY: case EADDRINUSE: return ERROR_CONFLICT;
	case EACCES: case EPERM: return ERROR_UNAUTHORIZED;
	case ETIMEDOUT: return ERROR_DEADLINE;
	default: return ERROR_IO;
	}
}

int error_system(struct error *err, int errno_value, const char *field, const char *format, ...)
{
	int number = errno_value < 0 ? -errno_value : errno_value;
	if (err) {
		char text[128];
		va_list arguments;
		va_start(arguments, format);
		fill(err, code_of_errno(number), field, strerror_r(number, text, sizeof text), format, arguments);
		va_end(arguments);
	}
	return number ? -number : error_errno(ERROR_INTERNAL);
}

const char *error_name(enum error_code code)
{
	return (unsigned)code < N_ERROR_CODES ? codes[code].name : codes[ERROR_INTERNAL].name;
}

enum error_code error_from_name(const char *name)
{
	for (int i = 0; i < N_ERROR_CODES; i++)
		if (strcmp(codes[i].name, name) == 0)
			return (enum error_code)i;
	return ERROR_INTERNAL;
}

int error_errno(enum error_code code)
{
	return (unsigned)code < N_ERROR_CODES ? codes[code].number : codes[ERROR_INTERNAL].number;
}

int error_http_status(enum error_code code)
{
	return (unsigned)code < N_ERROR_CODES ? codes[code].http_status : codes[ERROR_INTERNAL].http_status;
}
