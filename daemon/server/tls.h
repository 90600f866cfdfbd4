// SPDX-License-Identifier: Apache-2.0
// What both doors show: a certificate and its key, read from files, and exchanged while the server runs. Connections keep what they
// began with.
#pragma once

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

struct error;
struct tls;

// certificate: with those that vouch for it, one after the other, its own first. A key that everybody may read is refused. Both texts are
// gone from memory (the key wiped) when this returns. Errors name the setting, the file and the reason.
int tls_open_files(const char *certificate_path, const char *key_path, struct tls **ret_tls, struct error *err);

struct tls_current {
	pthread_mutex_t lock;              // of tls
	struct tls *tls;                   // NULL = nothing is encrypted: that is so from start to end, or never
	uint64_t look_ms;                  // the main thread's: when its expiry is looked at again
};

void tls_current_init(struct tls_current *c, struct tls *tls);       // takes tls, which may be NULL
void tls_current_done(struct tls_current *c);
bool tls_current_is_on(struct tls_current *c);
// what a connection that begins shows: a hold of the caller's. NULL = nothing
struct tls *tls_current_ref(struct tls_current *c);
// The main thread's: who connects from now on is shown this one, which is taken. False: it is the same.
bool tls_current_change(struct tls_current *c, struct tls *tls);
int64_t tls_current_expiry(struct tls_current *c);                   // seconds since 1970; INT64_MAX without one
// The main thread's, now and then: a warning in the log, once a day, about a certificate that has expired or will within two weeks.
void tls_current_watch(struct tls_current *c);
#define TLS_DATE_BYTES 32
void tls_current_date(struct tls_current *c, char ret_text[TLS_DATE_BYTES]);      // its expiry, "2027-01-31T12:00:00Z"
