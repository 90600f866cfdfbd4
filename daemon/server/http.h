// SPDX-License-Identifier: Apache-2.0
// The HTTP door (kdserved-http.7): one thread around libmicrohttpd.
#pragma once

#include <stdbool.h>
#include <stdint.h>

struct error;
struct http;
struct service;
struct tls_current;

struct http_options {
	int listen_fd;                     // taken over on success
	struct tls_current *tls;           // must stay; if it is on, TLS is spoken and nothing else. NULL: it is not
	bool inherited;                    // it outlives this process: from the stop on, who connects waits in its backlog for the next one
	uint32_t max_connections;
};

int http_open(const struct http_options *options, struct service *service, struct http **ret_http, struct error *err);
// Stops accepting, finishes what is under way until the deadline (clock_ms()), cancels the rest: begins with that, and returns.
void http_stop(struct http *h, uint64_t deadline_ms);
// The same, and ends the thread. NULL is fine, here and there.
void http_close(struct http *h, uint64_t deadline_ms);
