// SPDX-License-Identifier: Apache-2.0
// Everything but scoring: small resources answered at once, the same table for HTTP and for CALL frames.
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include "common/buffer.h"
#include "daemon/server/reply.h"

struct error;
struct principal;
struct service;

#define CONTROL_ALLOW_BYTES 64
#define CONTROL_PUBLIC ~0u             // no token is needed: probes of whoever restarts this server

// How long the answer takes.
enum control_pace {
	CONTROL_QUICK,                     // no file is read, nothing a client sent is decoded, nothing is waited for; or it is refused
	CONTROL_OF_BODY,                   // takes as long as its body is
	CONTROL_SLOW,
};

struct control_reply {
	int status;                        // as in HTTP
	const char *content_type;
	unsigned retry_s;                  // with 429: 0 = nobody knows
	const char *policy;                // Content-Security-Policy of a page; NULL = none
	char allow[CONTROL_ALLOW_BYTES];   // with 405: the methods there are; else empty
	struct buffer body;                // buffer_done() frees
};

// body may be NULL when n = 0. Always fills the reply. principal: who asks, logged in; NULL = nobody, to whom public resources are open.
void control_call(struct service *s, struct principal *principal, const char *method, const char *path, const char *body, size_t n,
		  struct control_reply *ret_reply);
// Whether the path exists and takes the method; else fills a reply that says so. For doors that decide before reading a body.
bool control_check(const char *method, const char *path, struct control_reply *ret_reply);
// Whether who asks may: 0, ERROR_UNAUTHORIZED or ERROR_FORBIDDEN. A resource that does not exist needs a token, so that nobody without one
// can look for them.
int control_permit(struct principal *principal, const char *method, const char *path, struct error *err);
bool control_is_public(const char *method, const char *path);
enum control_pace control_pace(const char *method, const char *path);
// Every route; "{id}" stands for one in a path. For tests.
size_t control_n_routes(void);
void control_route(size_t i, const char **ret_method, const char **ret_path);
unsigned control_scopes(size_t i);     // of bearer_scope, any of which will do; AUTH_ANY, or CONTROL_PUBLIC
// The shape of a path's errors.
enum reply_errors control_errors(const char *path);
// A reply made of an error; status 0 = the code's own.
void control_refuse(struct control_reply *ret_reply, int status, const struct error *e, enum reply_errors shape);
