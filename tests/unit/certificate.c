// SPDX-License-Identifier: Apache-2.0
#include "tests/unit/certificate.h"

#include <arpa/inet.h>
#include <gnutls/gnutls.h>
#include <gnutls/x509.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static void must(int r, const char *what)
{
	if (r >= 0)
		return;
	fprintf(stderr, "certificate: %s: %s\n", what, gnutls_strerror(r));
	exit(99);
}

static void name_subject(gnutls_x509_crt_t c, const struct certificate_kind *k)
{
	struct in_addr a;
	must(gnutls_x509_crt_set_dn_by_oid(c, GNUTLS_OID_X520_COMMON_NAME, 0, k->name, (unsigned)strlen(k->name)), "name");
	if (k->dns)
		must(gnutls_x509_crt_set_subject_alt_name(c, GNUTLS_SAN_DNSNAME, k->dns, (unsigned)strlen(k->dns), GNUTLS_FSAN_APPEND),
			"dns");
	if (k->ip && inet_pton(AF_INET, k->ip, &a) == 1)
		must(gnutls_x509_crt_set_subject_alt_name(c, GNUTLS_SAN_IPADDRESS, &a, sizeof a, GNUTLS_FSAN_APPEND), "ip");
}

static void describe(gnutls_x509_crt_t c, gnutls_x509_privkey_t key, const struct certificate_kind *k, int is_ca)
{
	static unsigned n_made;
	unsigned char id[64];
	size_t n_id = sizeof id;
	const unsigned serial = htonl(++n_made);
	must(gnutls_x509_crt_set_version(c, 3), "version");
	must(gnutls_x509_crt_set_serial(c, &serial, sizeof serial), "serial");
	must(gnutls_x509_crt_set_activation_time(c, time(NULL) + k->begin_s), "begin");
	must(gnutls_x509_crt_set_expiration_time(c, time(NULL) + k->end_s), "end");
	must(gnutls_x509_crt_set_key(c, key), "key");
	must(gnutls_x509_crt_set_basic_constraints(c, (unsigned)is_ca, -1), "constraints");
	must(gnutls_x509_crt_set_key_usage(c, GNUTLS_KEY_DIGITAL_SIGNATURE | (is_ca ? GNUTLS_KEY_KEY_CERT_SIGN | GNUTLS_KEY_CRL_SIGN : 0u)),
		"usage");
	if (!is_ca)
		must(gnutls_x509_crt_set_key_purpose_oid(c, k->for_clients ? GNUTLS_KP_TLS_WWW_CLIENT : GNUTLS_KP_TLS_WWW_SERVER, 0),
			"purpose");
	must(gnutls_x509_crt_get_key_id(c, 0, id, &n_id), "id");
	must(gnutls_x509_crt_set_subject_key_id(c, id, n_id), "id");
	name_subject(c, k);
}

static void sign(gnutls_x509_crt_t c, gnutls_x509_privkey_t key, const struct certificate_pair *issuer)
{
	gnutls_x509_crt_t by = c;
	gnutls_x509_privkey_t with = key;
	unsigned char id[64];
	size_t n_id = sizeof id;
	if (issuer) {
		const gnutls_datum_t certificate = {(unsigned char *)(uintptr_t)issuer->certificate, (unsigned)strlen(issuer->certificate)};
		const gnutls_datum_t secret = {(unsigned char *)(uintptr_t)issuer->key, (unsigned)strlen(issuer->key)};
		must(gnutls_x509_crt_init(&by), "issuer");
		must(gnutls_x509_crt_import(by, &certificate, GNUTLS_X509_FMT_PEM), "issuer");
		must(gnutls_x509_privkey_init(&with), "issuer");
		must(gnutls_x509_privkey_import(with, &secret, GNUTLS_X509_FMT_PEM), "issuer");
	}
	must(gnutls_x509_crt_get_subject_key_id(by, id, &n_id, NULL), "issuer");
	must(gnutls_x509_crt_set_authority_key_id(c, id, n_id), "issuer");
	must(gnutls_x509_crt_sign2(c, by, with, GNUTLS_DIG_SHA256, 0), "sign");
	if (issuer) {
		gnutls_x509_crt_deinit(by);
		gnutls_x509_privkey_deinit(with);
	}
}

void certificate_make(const struct certificate_kind *kind, const struct certificate_pair *issuer, struct certificate_pair *ret)
{
	gnutls_x509_crt_t c;
	gnutls_x509_privkey_t key;
	size_t n = sizeof ret->certificate - 1, n_key = sizeof ret->key - 1;
	*ret = (struct certificate_pair){0};
	must(gnutls_x509_crt_init(&c), "certificate");
	must(gnutls_x509_privkey_init(&key), "key");
	must(gnutls_x509_privkey_generate(key, GNUTLS_PK_ECDSA, GNUTLS_CURVE_TO_BITS(GNUTLS_ECC_CURVE_SECP256R1), 0), "key");
	describe(c, key, kind, !issuer);
	sign(c, key, issuer);
	must(gnutls_x509_crt_export(c, GNUTLS_X509_FMT_PEM, ret->certificate, &n), "certificate");
	must(gnutls_x509_privkey_export_pkcs8(key, GNUTLS_X509_FMT_PEM, NULL, GNUTLS_PKCS_PLAIN, ret->key, &n_key), "key");
	gnutls_x509_crt_deinit(c);
	gnutls_x509_privkey_deinit(key);
}
