// SPDX-License-Identifier: Apache-2.0
// libmicrohttpd 0.9.75 accepts requests whose end two parsers can place differently (Content-Length with Transfer-Encoding, two lengths,
// "Transfer-Encoding :"). Behind a proxy that is request smuggling; so they are refused here and the connection is closed. What it makes of
// bare CR or LF, NUL bytes and folded lines looks like any header, except for where it lies: each string is left where it was received, its
// end made zero. So between the end of one line's text and the next one's beginning there are two bytes, CR and LF, or something is wrong.
// That is how 0.9 does it; 1.0 refuses such lines itself. What cannot be told from CR and LF is a zero byte sent in the CR's place, nor
// from the four bytes that end the headers others with a zero byte or a colon for the empty line (fuzz_header_gate has the list); any
// proxy refuses both. Line ends within a chunked body are not seen from here: such a body is the last thing that is read of its connection
// (http_request.c).
#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "common/frame.h"
#include "daemon/server/http_internal.h"

#define LINE_END 2                     // CR LF
#define MAX_HEADERS 16384              // bytes, from the request line to the empty line

struct gate { unsigned n_lengths, n_encodings, n_hosts, n_content_encodings, n_authorizations; bool bad_name, bad_encoding, bad_line;
	const char *end;               // of the line before, without its CR and LF; NULL = not looked at
};

static bool is_token(const char *name, size_t n)
{
	for (size_t i = 0; i < n; i++)
		if (!isalnum((unsigned char)name[i]) && !strchr("!#$%&'*+-.^_`|~", name[i]))
			return false;
	return n > 0;
}

// Of control characters only a tab may stand in a value; what stands after a zero byte is not in it.
static bool is_text(const char *value, size_t n)
{
	for (size_t i = 0; i < n; i++)
		if (((unsigned char)value[i] < 0x20 && value[i] != '\t') || value[i] == 0x7f)
			return false;
	return true;
}

static enum MHD_Result count_header(void *arg, enum MHD_ValueKind kind, const char *name, size_t n_name, const char *value, size_t n_value)
{
	struct gate *g = arg;
	(void)kind;
	if (g->end)
		g->bad_line |= name != g->end + LINE_END;
	g->end = g->end && value ? value + n_value : NULL;
	g->bad_name |= !is_token(name, n_name);
	g->bad_line |= value && !is_text(value, n_value);
	g->n_lengths += strcasecmp(name, "Content-Length") == 0;
	g->n_hosts += strcasecmp(name, "Host") == 0;
	g->n_authorizations += strcasecmp(name, "Authorization") == 0;
	g->n_content_encodings += strcasecmp(name, "Content-Encoding") == 0;
	if (strcasecmp(name, "Transfer-Encoding") == 0) {
		g->n_encodings++;
		g->bad_encoding |= !value || strcasecmp(value, "chunked") != 0;
	}
	return MHD_YES;
}

// The bytes from the request's first to the empty line: the last line's end is checked by them.
static size_t header_bytes(struct MHD_Connection *mhd)
{
	const union MHD_ConnectionInfo *info = MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_REQUEST_HEADER_SIZE);
	return info ? info->header_size : 0;
}

// Whether nothing but the line's end and an empty line stands between the last line's text and the end of `n` bytes of headers.
static bool ends_there(const char *text_end, const char *begin, size_t n)
{
	static const char zeroes[2 * LINE_END];
	return n == (size_t)(text_end - begin) + sizeof zeroes && memcmp(text_end, zeroes, sizeof zeroes) == 0;
}

static struct gate count_headers(struct MHD_Connection *mhd, const char *version)
{
	struct gate g = {.end = version ? version + strlen(version) : NULL};
	MHD_get_connection_values_n(mhd, MHD_HEADER_KIND, count_header, &g);
	return g;
}

struct http_target http_gate_target(const char *target)
{
	const char *end = target;
	while ((unsigned char)*end > 0x20 && *end != 0x7f)
		end++;
	return (struct http_target){target, *end ? NULL : end};
}

int http_gate_check(struct MHD_Connection *mhd, const char *method, struct http_target target, const char *version, struct error *err)
{
	size_t n = header_bytes(mhd);
	bool lines = strncmp(MHD_get_version(), "0.9.", 4) == 0;
	struct gate g = count_headers(mhd, lines ? version : NULL);
	bool has_body = g.n_encodings || (g.n_lengths && strcmp(method, "POST") != 0 &&
		strcmp(MHD_lookup_connection_value(mhd, MHD_HEADER_KIND, "Content-Length"), "0") != 0);
	if (n > MAX_HEADERS)
		return error_set(err, ERROR_TOO_LARGE, "headers", "%zu bytes, the limit is %d", n, MAX_HEADERS);
	if (!is_token(method, strlen(method)))
		return error_set(err, ERROR_INVALID, "method", "holds a character that methods cannot have");
	if (!target.end)
		return error_set(err, ERROR_INVALID, "target", "holds a blank or a control character");
	if (lines && (target.begin != method + strlen(method) + 1 || version != target.end + 1))
		return error_set(err, ERROR_INVALID, "target", "a zero byte or more than one blank stands beside it");
	if (g.bad_line || (lines && (!g.end || !ends_there(g.end, method, n))))
		return error_set(err, ERROR_INVALID, "headers",
			"a line holds a control character, goes on in the next, or does not end with CR and LF");
	if (g.bad_name)
		return error_set(err, ERROR_INVALID, "headers", "a header name holds a character that names cannot have");
	if (g.n_hosts > 1)
		return error_set(err, ERROR_INVALID, "Host", "given more than once");
	if (g.n_authorizations > 1)
		return error_set(err, ERROR_INVALID, "Authorization", "given more than once");
	if (g.n_lengths > 1)
		return error_set(err, ERROR_INVALID, "Content-Length", "given more than once");
	if (g.n_lengths && g.n_encodings)
		return error_set(err, ERROR_INVALID, "Transfer-Encoding", "given together with Content-Length");
	if (g.n_encodings > 1 || g.bad_encoding)
		return error_set(err, ERROR_INVALID, "Transfer-Encoding", "only \"chunked\" is understood");
	if (g.n_encodings && strcmp(version, "HTTP/1.1") != 0)
		return error_set(err, ERROR_INVALID, "Transfer-Encoding", "not with %s", version);
	if (has_body && strcmp(method, "POST") != 0)
		return error_set(err, ERROR_INVALID, "body", "a %s has no body", method);
	return 0;
}

int http_gate_body(struct MHD_Connection *mhd, uint64_t *ret_n, bool *ret_chunked, struct error *err)
{
	const char *length = MHD_lookup_connection_value(mhd, MHD_HEADER_KIND, "Content-Length");
	char *end;
	*ret_chunked = MHD_lookup_connection_value(mhd, MHD_HEADER_KIND, "Transfer-Encoding") != NULL;
	*ret_n = 0;
	if (!length)
		return 0;
	errno = 0;
	unsigned long long n = strtoull(length, &end, 10);
	if (!isdigit((unsigned char)*length) || *end || errno)
		return error_set(err, ERROR_INVALID, "Content-Length", "not a number");
	*ret_n = n;
	return 0;
}

int http_gate_secret(struct MHD_Connection *mhd, const char **ret_secret, struct error *err)
{
	static const char scheme[] = "Bearer ";
	const char *value = MHD_lookup_connection_value(mhd, MHD_HEADER_KIND, "Authorization");
	*ret_secret = NULL;
	if (!value)
		return 0;
	if (strncasecmp(value, scheme, sizeof scheme - 1) != 0)
		return error_set(err, ERROR_UNAUTHORIZED, "Authorization", "only bearer tokens are understood");
	value += strspn(value + sizeof scheme - 1, " ") + sizeof scheme - 1;
	size_t n = strlen(value);
	for (size_t i = 0; i < n; i++)
		if (value[i] < 0x21 || value[i] > 0x7e || n > FRAME_TOKEN_MAX)
			return error_set(err, ERROR_UNAUTHORIZED, "Authorization", "a token has at most %d printable characters",
				FRAME_TOKEN_MAX);
	*ret_secret = value;
	return 0;
}

void http_gate_forget(const char *secret)
{
	if (secret)
		explicit_bzero((char *)(uintptr_t)secret, strlen(secret));     // in the connection's own memory, which is not constant
}

// Exactly application/json, with or without parameters, not compressed.
bool http_gate_is_json(struct MHD_Connection *mhd)
{
	static const char json[] = "application/json";
	const char *type = MHD_lookup_connection_value(mhd, MHD_HEADER_KIND, "Content-Type");
	if (!type || strncasecmp(type, json, sizeof json - 1) != 0 || !strchr("; \t", type[sizeof json - 1]))
		return false;    // strchr also finds the terminator
	return count_headers(mhd, NULL).n_content_encodings == 0;
}
