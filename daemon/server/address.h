// SPDX-License-Identifier: Apache-2.0
// Addresses to listen on: "unix:PATH", "tcp:ADDR:PORT", or "ADDR:PORT" (ADDR numeric, [v6] in brackets, or "localhost").
#pragma once

#include <stdbool.h>
#include <sys/socket.h>

struct error;

struct address {
	struct sockaddr_storage storage;
	socklen_t n_bytes;
};

#define ADDRESS_TEXT 160

// `field` is the setting's name, for errors.
int address_parse(const char *text, const char *field, struct address *ret_address, struct error *err);
bool address_is_remote(const struct address *a);      // neither unix nor loopback
// A non-blocking, close-on-exec listening socket. A unix socket is made with mode 0600 (umask, before bind: nobody can connect in
// between), so call it before other threads start; a stale socket file is replaced, one that somebody serves is ERROR_CONFLICT.
int address_listen(const struct address *a, const char *field, int *ret_fd, struct error *err);
// What address_listen gave: the file of a unix socket goes too. inherited: it is somebody else's, and its file stays.
void address_close(int fd, bool inherited);
// Where `fd` is really bound (port 0 was resolved), as text that address_parse reads.
void address_of_socket(int fd, char ret_text[ADDRESS_TEXT]);
void address_of_peer(int fd, char ret_text[ADDRESS_TEXT]);        // who is connected; "?" when nobody is any more
bool address_is_unix(int fd);
