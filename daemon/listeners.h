// SPDX-License-Identifier: Apache-2.0
// The listening sockets of both doors: those systemd passes (kdserved.socket, kdserved-http.socket), and for a door it passes none for,
// those the settings name.
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include "daemon/server/address.h"
#include "daemon/server/socket.h"

struct error;
struct options;

struct listeners {
	int http_fd;                                    // -1 = the door is closed
	int socket_fds[SOCKET_MAX_LISTENERS];
	size_t n_sockets;
	bool http_inherited, sockets_inherited;         // systemd's: they outlive this process
	char address[ADDRESS_TEXT];                     // of the first of socket_fds that is plain, for workers
};

// Before other threads start (umask, environment). On failure what was opened is still in *l: listeners_close() it in any case,
// or hand it over.
int listeners_open(const struct options *o, struct listeners *l, struct error *err);
void listeners_close(struct listeners *l);
