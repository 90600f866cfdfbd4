// SPDX-License-Identifier: Apache-2.0
// libmicrohttpd 0.9.75 accepts requests whose end two parsers can place differently (Content-Length with Transfer-Encoding, two lengths,
// "Transfer-Encoding :"). Behind a proxy that is request smuggling; so they are refused here and the connection is closed. Bare CR or LF,
// NUL bytes and folded lines cannot be seen from here: kdserved-http.7 says never to share upstream connections between clients.
#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "common/frame.h"
#include "daemon/server/http_internal.h"

struct gate { unsigned n_lengths, n_encodings, n_hosts, n_content_encodings, n_authorizations; bool bad_name, bad_encoding; };

static bool is_token(const char *name, size_t n)
{
	for (size_t i = 0; i < n; i++)
		if (!isalnum((unsigned char)name[i]) && !strchr("!#$%&'*+-.^_`|~", name[i]))
			return false;
	return n > 0;
}

static enum MHD_Result count_header(void *arg, enum MHD_ValueKind kind, const char *name, size_t n_name, const char *value, size_t n_value)
{
	struct gate *g = arg;
	(void)kind;
	(void)n_value;
	g->bad_name |= !is_token(name, n_name);
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

static struct gate count_headers(struct MHD_Connection *mhd)
{
	struct gate g = {0};
	MHD_get_connection_values_n(mhd, MHD_HEADER_KIND, count_header, &g);
	return g;
}

int http_gate_check(struct MHD_Connection *mhd, const char *method, const char *version, struct error *err)
{
	struct gate g = count_headers(mhd);
	bool has_body = g.n_encodings || (g.n_lengths && strcmp(method, "POST") != 0 &&
		strcmp(MHD_lookup_connection_value(mhd, MHD_HEADER_KIND, "Content-Length"), "0") != 0);
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
			return error_set(err, ERROR_UNAUTHORIZED, "Authorization", "a token has at most %d printable characters", FRAME_TOKEN_MAX);
	*ret_secret = value;
	return 0;
}

// Exactly application/json, with or without parameters, not compressed.
bool http_gate_is_json(struct MHD_Connection *mhd)
{
	static const char json[] = "application/json";
	const char *type = MHD_lookup_connection_value(mhd, MHD_HEADER_KIND, "Content-Type");
	if (!type || strncasecmp(type, json, sizeof json - 1) != 0 || !strchr("; \t", type[sizeof json - 1]))
		return false;    // strchr also finds the terminator
	return count_headers(mhd).n_content_encodings == 0;
}
