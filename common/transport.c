// SPDX-License-Identifier: Apache-2.0
#include "common/transport.h"

#include <arpa/inet.h>
#include <errno.h>
#include <gnutls/gnutls.h>
#include <gnutls/x509.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/error.h"

#define SERVER_MAX_HANDSHAKE 16384   // bytes of one message of a client's: it has no certificates to send

struct tls {
	atomic_uint n_references;                    // who opened it, and sessions
	gnutls_certificate_credentials_t credentials;
	gnutls_priority_t priorities;
	int64_t expiry;
	bool server;
};

struct tls_session {
	gnutls_session_t gnutls;
	struct tls *tls;
	bool server, greeted, failed, writing;       // failed: not a word more; writing: half a record is out
	char name[TLS_NAME_BYTES];
	gnutls_typed_vdata_st checks[2];             // of the certificate; GnuTLS keeps the pointer
};

// ---- credentials

static struct tls *tls_new(bool server, struct error *err)
{
	struct tls *t = calloc(1, sizeof *t);
	if (t) {
		atomic_init(&t->n_references, 1);
		t->server = server;
	}
	if (t && !gnutls_certificate_allocate_credentials(&t->credentials) && !gnutls_priority_init(&t->priorities, TLS_PRIORITIES, NULL))
		return t;
	error_set(err, ERROR_MEMORY, NULL, "no memory for TLS");
	return tls_close(t);
}

struct tls *tls_ref(struct tls *t)
{
	if (t)
		atomic_fetch_add_explicit(&t->n_references, 1, memory_order_relaxed);
	return t;
}

struct tls *tls_close(struct tls *t)
{
	if (!t || atomic_fetch_sub_explicit(&t->n_references, 1, memory_order_acq_rel) != 1)
		return NULL;
	if (t->priorities)
		gnutls_priority_deinit(t->priorities);
	if (t->credentials)
		gnutls_certificate_free_credentials(t->credentials);
	free(t);
	return NULL;
}

// Of all that are sent: a client that is to trust the first needs each of them.
static int64_t find_expiry(gnutls_certificate_credentials_t credentials)
{
	int64_t first = INT64_MAX;
	gnutls_datum_t der;
	for (unsigned i = 0; gnutls_certificate_get_crt_raw(credentials, 0, i, &der) == 0; i++) {
		gnutls_x509_crt_t c;
		if (gnutls_x509_crt_init(&c))
			continue;
		int64_t end = gnutls_x509_crt_import(c, &der, GNUTLS_X509_FMT_DER) ? INT64_MAX : gnutls_x509_crt_get_expiration_time(c);
		gnutls_x509_crt_deinit(c);
		first = end < first ? end : first;
	}
	return first;
}

int64_t tls_expiry(const struct tls *t)
{
	return t->expiry;
}

bool tls_is_same(const struct tls *a, const struct tls *b)
{
	for (unsigned i = 0;; i++) {
		gnutls_datum_t one, other;
		int r = gnutls_certificate_get_crt_raw(a->credentials, 0, i, &one),
			s = gnutls_certificate_get_crt_raw(b->credentials, 0, i, &other);
		if (r || s)
			return r && s;
		if (one.size != other.size || memcmp(one.data, other.data, one.size) != 0)
			return false;
	}
}

int tls_lend(const struct tls *t, void *gnutls_session)
{
	return gnutls_credentials_set(gnutls_session, GNUTLS_CRD_CERTIFICATE, t->credentials) ? -ENOMEM : 0;
}

int tls_open_server(const char *certificate, const char *key, struct tls **ret_tls, struct error *err)
{
	struct tls *t = tls_new(true, err);
	const gnutls_datum_t c = {(unsigned char *)(uintptr_t)certificate, (unsigned)strlen(certificate)};
	const gnutls_datum_t k = {(unsigned char *)(uintptr_t)key, (unsigned)strlen(key)};
	if (!t)
		return -ENOMEM;
	int r = gnutls_certificate_set_x509_key_mem2(t->credentials, &c, &k, GNUTLS_X509_FMT_PEM, NULL, 0);
	if (r < 0) {
		tls_close(t);
		return error_set(err, ERROR_INVALID, "tls-certificate", "not a certificate and its own key (%s)", gnutls_strerror(r));
	}
	t->expiry = find_expiry(t->credentials);
	*ret_tls = t;
	return 0;
}

int tls_open_client(const char *ca, struct tls **ret_tls, struct error *err)
{
	struct tls *t = tls_new(false, err);
	if (!t)
		return -ENOMEM;
	int n = ca ? gnutls_certificate_set_x509_trust_file(t->credentials, ca, GNUTLS_X509_FMT_PEM) :
		gnutls_certificate_set_x509_system_trust(t->credentials);
	if (n <= 0) {
		tls_close(t);
		if (!ca)
			return error_set(err, ERROR_INVALID, "ca", "the system trusts no certificates: name a file of those to be trusted");
		return access(ca, R_OK) ? error_system(err, errno, "ca", "%s", ca) :
			error_set(err, ERROR_INVALID, "ca", "%s: no PEM certificates%s%s", ca, n ? ": " : "", n ? gnutls_strerror(n) : "");
	}
	*ret_tls = t;
	return 0;
}

// ---- opening and closing

static bool is_numeric(const char *name)
{
	struct in6_addr a;
	return inet_pton(AF_INET, name, &a) == 1 || inet_pton(AF_INET6, name, &a) == 1;
}

static int expect_name(struct tls_session *s, const char *name, struct error *err)
{
	if (strlen(name) >= sizeof s->name || !*name)
		return error_set(err, ERROR_INVALID, "server_name", "a name of 1 to %zu bytes is expected", sizeof s->name - 1);
	memcpy(s->name, name, strlen(name) + 1);
	s->checks[0].type = GNUTLS_DT_DNS_HOSTNAME;          // or a numeric address
	s->checks[0].data = (unsigned char *)s->name;
	s->checks[1].type = GNUTLS_DT_KEY_PURPOSE_OID;
	s->checks[1].data = (unsigned char *)(uintptr_t)GNUTLS_KP_TLS_WWW_SERVER;
	gnutls_session_set_verify_cert2(s->gnutls, s->checks, 2, 0);
	if (!is_numeric(name) && gnutls_server_name_set(s->gnutls, GNUTLS_NAME_DNS, name, strlen(name)))
		return error_set(err, ERROR_INVALID, "server_name", "%s cannot be a host's name", name);
	return 0;
}

static void session_free(struct tls_session *s)
{
	if (s && s->gnutls)
		gnutls_deinit(s->gnutls);
	if (s)
		tls_close(s->tls);
	free(s);
}

static int session_new(int fd, struct tls *tls, const char *name, struct tls_session **ret, struct error *err)
{
	struct tls_session *s = calloc(1, sizeof *s);
	if (!s || gnutls_init(&s->gnutls, (tls->server ? GNUTLS_SERVER : GNUTLS_CLIENT) | GNUTLS_NONBLOCK | GNUTLS_NO_SIGNAL) ||
	    gnutls_priority_set(s->gnutls, tls->priorities) ||
	    gnutls_credentials_set(s->gnutls, GNUTLS_CRD_CERTIFICATE, tls->credentials)) {
		session_free(s);
		error_set(err, ERROR_MEMORY, NULL, "no memory for a TLS session");
		return -ENOMEM;
	}
	int r = tls->server ? 0 : expect_name(s, name, err);
	if (r) {
		session_free(s);
		return r;
	}
	s->tls = tls_ref(tls);
	s->server = tls->server;
	if (s->server)
		gnutls_handshake_set_max_packet_length(s->gnutls, SERVER_MAX_HANDSHAKE);
	gnutls_handshake_set_timeout(s->gnutls, GNUTLS_INDEFINITE_TIMEOUT);        // the caller has a deadline
	gnutls_transport_set_int(s->gnutls, fd);
	*ret = s;
	return 0;
}

int transport_open(int fd, struct tls *tls, const char *name, struct transport *ret_transport, struct error *err)
{
	struct transport t = {.fd = fd};
	int r = tls ? session_new(fd, tls, name, &t.session, err) : 0;
	if (r)
		return r;
	*ret_transport = t;
	return 0;
}

void transport_close(struct transport *t)
{
	if (t->fd < 0)
		return;
	if (t->session && t->session->greeted && !t->session->failed && !t->session->writing)
		(void)gnutls_bye(t->session->gnutls, GNUTLS_SHUT_WR);
	session_free(t->session);
	close(t->fd);
	*t = (struct transport){.fd = -1};
}

// ---- the handshake

static int check_certificate(const struct tls_session *s, struct error *err)
{
	static const struct { unsigned bit; const char *what; } faults[] = {
		{GNUTLS_CERT_SIGNER_NOT_FOUND, "is not trusted (none of the trusted ones vouches for it)"},
		{GNUTLS_CERT_SIGNER_NOT_CA, "is not trusted (who vouches for it may not)"},
		{GNUTLS_CERT_SIGNATURE_FAILURE, "is not signed by whom it names"},
		{GNUTLS_CERT_INSECURE_ALGORITHM, "is signed in a way that can be forged"},
		{GNUTLS_CERT_REVOKED, "was revoked"},
		{GNUTLS_CERT_EXPIRED, "has expired"},
		{GNUTLS_CERT_NOT_ACTIVATED, "is not valid yet"},
		{GNUTLS_CERT_PURPOSE_MISMATCH, "is not for servers"},
		{GNUTLS_CERT_UNEXPECTED_OWNER, "is for another name"}};
	unsigned status = gnutls_session_get_verify_cert_status(s->gnutls);
	char text[200] = "";
	for (size_t i = 0; i < sizeof faults / sizeof *faults && status != ~0u; i++) {
		size_t n = strlen(text);
		if (status & faults[i].bit)
			snprintf(text + n, sizeof text - n, "%s%s", n ? ", and " : "", faults[i].what);
	}
	return error_set(err, ERROR_UNAUTHORIZED, "server", "the certificate of %.80s %s", s->name, *text ? text : "is not trusted");
}

// GnuTLS calls an end in the middle of a record a record of the wrong length.
static bool has_left(const struct transport *t)
{
	char byte;
	return recv(t->fd, &byte, 1, MSG_PEEK) == 0;
}

static int greet_failed(struct transport *t, int r, struct error *err)
{
	struct tls_session *s = t->session;
	s->failed = true;
	switch (r == GNUTLS_E_UNEXPECTED_PACKET_LENGTH && has_left(t) ? GNUTLS_E_PREMATURE_TERMINATION : r) {
	case GNUTLS_E_PREMATURE_TERMINATION:
	case GNUTLS_E_PULL_ERROR:
	case GNUTLS_E_PUSH_ERROR:
		error_set(err, ERROR_UNAVAILABLE, "server", "the connection was closed during the TLS handshake");
		return -ECONNRESET;
	case GNUTLS_E_CERTIFICATE_VERIFICATION_ERROR:
		gnutls_alert_send_appropriate(s->gnutls, r);
		return check_certificate(s, err);
	case GNUTLS_E_FATAL_ALERT_RECEIVED:
		return error_set(err, ERROR_INVALID, "server", "TLS was refused: %s", gnutls_alert_get_name(gnutls_alert_get(s->gnutls)));
	case GNUTLS_E_UNEXPECTED_PACKET_LENGTH:
	case GNUTLS_E_UNSUPPORTED_VERSION_PACKET:
	case GNUTLS_E_UNEXPECTED_PACKET:
	case GNUTLS_E_RECORD_OVERFLOW:
		gnutls_alert_send_appropriate(s->gnutls, r);
		return error_set(err, ERROR_INVALID, "server", s->server ? "what came is not TLS" :
				 "what the server says is not TLS: is it tcp:, not tls:?");
	default:
		gnutls_alert_send_appropriate(s->gnutls, r);
		return error_set(err, ERROR_INVALID, "server", "the TLS handshake failed: %s", gnutls_strerror(r));
	}
}

int transport_greet(struct transport *t, struct error *err)
{
	struct tls_session *s = t->session;
	if (!s || s->greeted)
		return 0;
	if (s->failed)
		return -ECONNRESET;
	int r = gnutls_handshake(s->gnutls);
	if (r < 0 && !gnutls_error_is_fatal(r))
		return -EAGAIN;
	if (r < 0)
		return greet_failed(t, r, err);
	s->greeted = true;
	return 0;
}

bool transport_is_greeted(const struct transport *t)
{
	return !t->session || t->session->greeted;
}

bool transport_wants_write(const struct transport *t)
{
	return !transport_is_greeted(t) && gnutls_record_get_direction(t->session->gnutls) == 1;
}

// ---- bytes

static ssize_t plain_result(ssize_t k, const char *what, struct error *err)
{
	if (k >= 0)
		return k;
	return errno == EAGAIN || errno == EWOULDBLOCK ? -EAGAIN : error_system(err, errno, NULL, "cannot %s", what);
}

// A renegotiation counts as an error: nobody who may be here asks for one.
static ssize_t session_failed(struct tls_session *s, ssize_t r, struct error *err)
{
	if (!gnutls_error_is_fatal((int)r) && r != GNUTLS_E_REHANDSHAKE)
		return -EAGAIN;
	s->failed = true;
	if (r == GNUTLS_E_FATAL_ALERT_RECEIVED)
		return error_set(err, ERROR_INVALID, "server", "the other side ended TLS: %s",
				 gnutls_alert_get_name(gnutls_alert_get(s->gnutls)));
	if (r != GNUTLS_E_PREMATURE_TERMINATION && r != GNUTLS_E_PULL_ERROR && r != GNUTLS_E_PUSH_ERROR)
		return error_set(err, ERROR_CORRUPT, NULL, "TLS: %s", gnutls_strerror((int)r));
	error_set(err, ERROR_UNAVAILABLE, NULL, "the other side left");
	return -ECONNRESET;
}

// An end without a farewell is an end like any: what is said in frames cannot be cut short unnoticed.
static ssize_t session_read(struct transport *t, void *to, size_t n, struct error *err)
{
	struct tls_session *s = t->session;
	int r = transport_greet(t, err);
	if (r)
		return r == -ECONNRESET ? 0 : r;
	ssize_t k = s->failed ? -ECONNRESET : gnutls_record_recv(s->gnutls, to, n);
	if (k < 0 && !s->failed)
		k = session_failed(s, k, err);
	return k == -ECONNRESET ? 0 : k;
}

ssize_t transport_read(struct transport *t, void *to, size_t n, struct error *err)
{
	ssize_t k;
	if (t->session)
		return session_read(t, to, n, err);
	do
		k = recv(t->fd, to, n, 0);
	while (k < 0 && errno == EINTR);
	return plain_result(k, "read", err);
}

// Half a record that is out must be followed by its other half: GnuTLS has it, whatever the caller gives.
static ssize_t session_write(struct transport *t, const void *from, size_t n, struct error *err)
{
	struct tls_session *s = t->session;
	int r = transport_greet(t, err);
	if (r)
		return r;
	if (s->failed)
		return -EPIPE;
	ssize_t k = s->writing ? gnutls_record_send(s->gnutls, NULL, 0) : gnutls_record_send(s->gnutls, from, n);
	s->writing = k == GNUTLS_E_AGAIN || k == GNUTLS_E_INTERRUPTED;
	return k < 0 ? session_failed(s, k, err) : k;
}

ssize_t transport_write(struct transport *t, const void *from, size_t n, struct error *err)
{
	ssize_t k;
	if (t->session)
		return session_write(t, from, n, err);
	do
		k = send(t->fd, from, n, MSG_NOSIGNAL);
	while (k < 0 && errno == EINTR);
	return plain_result(k, "write", err);
}

bool transport_has_input(const struct transport *t)
{
	return t->session && t->session->greeted && !t->session->failed && gnutls_record_check_pending(t->session->gnutls) > 0;
}

int transport_finish(struct transport *t)
{
	struct tls_session *s = t->session;
	if (s && s->greeted && !s->failed) {
		int r = gnutls_bye(s->gnutls, GNUTLS_SHUT_WR);
		if (r == GNUTLS_E_AGAIN || r == GNUTLS_E_INTERRUPTED)
			return -EAGAIN;
	}
	shutdown(t->fd, SHUT_WR);
	return 0;
}
