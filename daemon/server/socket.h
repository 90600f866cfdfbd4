// SPDX-License-Identifier: Apache-2.0
// The binary door (kdserved-protocol.7): one thread, any number of listening sockets.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct error;
struct service;
struct socket_door;
struct tls_current;

#define SOCKET_MAX_LISTENERS 16

struct socket_options {
	const int *listen_fds;             // taken over on success
	size_t n_listen_fds;               // <= SOCKET_MAX_LISTENERS
	bool inherited;                    // they outlive this process: the files of unix sockets stay
	uint32_t max_connections;
	struct tls_current *tls;           // must stay; if it is on, TCP listeners speak TLS and nothing else. NULL: all is plain
};

int socket_open(const struct socket_options *options, struct service *service, struct socket_door **ret_door, struct error *err);
// Stops accepting, says GOAWAY, finishes what is under way until the deadline (clock_ms()), cancels the rest, ends the thread. NULL is
// fine.
void socket_close(struct socket_door *d, uint64_t deadline_ms);
