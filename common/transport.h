// SPDX-License-Identifier: Apache-2.0
// Bytes in and out of a connected stream socket, plain or TLS (the one user of GnuTLS): who reads and writes does not know which. Nothing
// here blocks: the descriptor must not either. A transport belongs to one thread at a time.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct error;
// what a server shows, or whom a client trusts; any number of sessions and threads use one, and it goes with the last
struct tls;
struct tls_session;

// GnuTLS's words, at both doors and in clients, for: TLS 1.2 and 1.3, no cipher below 128 bits.
#define TLS_PRIORITIES "SECURE128:-VERS-ALL:+VERS-TLS1.3:+VERS-TLS1.2:%SERVER_PRECEDENCE"
#define TLS_ALERT 0x15     // first byte of what a TLS server says to a client that speaks something else
#define TLS_NAME_BYTES 256

// Both PEM: certificate with those that vouch for it, its own first.
int tls_open_server(const char *certificate, const char *key, struct tls **ret_tls, struct error *err);
// ca: file of PEM certificates that are trusted; NULL = the system's. Field "ca".
int tls_open_client(const char *ca, struct tls **ret_tls, struct error *err);
struct tls *tls_ref(struct tls *tls);        // another hold; any thread. NULL is fine
struct tls *tls_close(struct tls *tls);      // one hold less: sessions have their own; NULL is fine; returns NULL
int64_t tls_expiry(const struct tls *tls);   // a server's: when the first of its certificates expires, seconds since 1970
bool tls_is_same(const struct tls *a, const struct tls *b);      // servers' that show the same certificates
// A session of GnuTLS's that somebody else makes, before its handshake: it shows tls's certificate. Hold tls until it is over.
int tls_lend(const struct tls *tls, void *gnutls_session);

struct transport {
	int fd;                              // -1 = closed
	struct tls_session *session;         // NULL = plain
};

// tls NULL: plain, which cannot fail. name: whose certificate a client expects, a host's name or numeric address; NULL in a server. fd is
// taken on success.
int transport_open(int fd, struct tls *tls, const char *name, struct transport *ret_transport, struct error *err);
void transport_close(struct transport *t);   // at once, with TLS's farewell if the socket takes it; closed before is fine

// Does what can be done of the handshake. 0: it is over (of plain ones at once). -EAGAIN: wait for the descriptor. -ECONNRESET: the other
// side left. -EACCES (ERROR_UNAUTHORIZED): its certificate is not good. Any other: it speaks no TLS that we speak.
int transport_greet(struct transport *t, struct error *err);
bool transport_is_greeted(const struct transport *t);
// While greeting: it waits for room to write, not for bytes to read.
bool transport_wants_write(const struct transport *t);

// Greet first if that is left to do. Bytes, 0 = the end, -EAGAIN, or another -errno with the reason.
ssize_t transport_read(struct transport *t, void *to, size_t n, struct error *err);
// Likewise; after -EAGAIN the next write begins with the same bytes. -EPIPE or -ECONNRESET: the other side left.
ssize_t transport_write(struct transport *t, const void *from, size_t n, struct error *err);
bool transport_has_input(const struct transport *t);         // bytes are here that the descriptor no longer shows: read before sleeping
int transport_finish(struct transport *t);   // nothing more will be written: tells the other side. 0, or -EAGAIN
