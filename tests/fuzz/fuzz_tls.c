// SPDX-License-Identifier: Apache-2.0
// Certificates and keys: a PEM file with a certificate, and behind the first NUL one with its key, as a server reads them; the first also
// as what a client trusts. GnuTLS reads what is in them; what it refuses has a reason in which nothing of a key stands.
#include <stdlib.h>
#include <string.h>

#include "common/error.h"
#include "common/transport.h"
#include "daemon/server/tls.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/quiet.h"
#include "tests/fuzz/scratch.h"

static void require(bool holds)
{
	if (!holds)
		abort();
}

// No line of the key is told.
static void secret_check(const char *key, const struct error *err)
{
	char line[33];
	for (const char *at = key; (at = strchr(at, '\n')) && strlen(++at) >= sizeof line;) {
		memcpy(line, at, sizeof line - 1);
		line[sizeof line - 1] = '\0';
		require(*line == '-' || !strstr(err->message, line));
	}
}

static void try_server(const char *certificate, const char *key)
{
	struct tls *tls = NULL, *again = NULL;
	struct tls_current current;
	struct error err = {0};
	char date[TLS_DATE_BYTES];
	size_t n;
	char *secret = scratch_read("key.pem", &n);
	require(secret != NULL);
	if (tls_open_files(certificate, key, &tls, &err)) {
		require(err.code && strncmp(err.field, "tls-", 4) == 0 && !tls);
		secret_check(secret, &err);
		free(secret);
		return;
	}
	free(secret);
	tls_current_init(&current, tls);
	tls_current_date(&current, date);
	require(*date && tls_current_is_on(&current) && tls_open_files(certificate, key, &again, NULL) == 0);
	require(!tls_current_change(&current, again));
	tls_current_done(&current);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	const uint8_t *at = data, *end = data + size;
	char certificate[SCRATCH_PATH], key[SCRATCH_PATH];
	struct tls *trusted = NULL;
	struct error err = {0};
	size_t n = quiet_part(&at, end);
	scratch_write("certificate.pem", data, n, certificate);
	scratch_write("key.pem", at, (size_t)(end - at), key);
	try_server(certificate, key);
	if (tls_open_client(certificate, &trusted, &err))
		require(err.code && strcmp(err.field, "ca") == 0);
	tls_close(trusted);
	return 0;
}

// GnuTLS 3.7 forgets the certificates it has read of a file of which one does not hold.
const char *__lsan_default_suppressions(void);
const char *__lsan_default_suppressions(void)
{
	return "leak:gnutls_x509_crt_init\nleak:gnutls_subject_alt_names_init\n";
}
