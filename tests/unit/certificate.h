// SPDX-License-Identifier: Apache-2.0
// Certificates for tests, as PEM texts: made anew each time, valid for a day.
#pragma once

#include <stddef.h>

#define CERTIFICATE_BYTES 4096

struct certificate_kind {
	const char *name;          // of the subject
	const char *dns, *ip;      // whom it is for; NULL = nobody
	long begin_s, end_s;       // from now
	int for_clients;           // not for servers
};

struct certificate_pair { char certificate[CERTIFICATE_BYTES], key[CERTIFICATE_BYTES]; };

// issuer NULL: it vouches for itself, and may for others. Ends the program on failure.
void certificate_make(const struct certificate_kind *kind, const struct certificate_pair *issuer, struct certificate_pair *ret);
