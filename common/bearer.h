// SPDX-License-Identifier: Apache-2.0
// A bearer token as a server knows it: whose it is, the digest of its secret, what it allows, how much, until when. One line of a tokens
// file (kdserved.conf.5); the secret itself is in no file of the server's.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/sequence.h"

struct buffer;
struct error;

#define BEARER_NAME_MAX 64
#define BEARER_LINE_MAX 1024                // bytes
#define BEARER_SECRET_BYTES 48              // "kds_", 43 digits of base64url (256 bits), and the terminator
#define BEARER_MAX_RATE UINT64_C(1000000000000)
#define BEARER_MAX_IN_FLIGHT 1000000
#define BEARER_MAX_K (1u << 24)

enum bearer_scope { BEARER_SCORE = 1, BEARER_GENERATE = 2, BEARER_TRAIN = 4, BEARER_ADMIN = 8 };      // admin: all of them

struct bearer {
	char name[BEARER_NAME_MAX + 1];     // letters, digits, '.', '_', '-'; not like a secret
	struct content_id digest;           // SHA-256 of the secret's bytes
	unsigned scopes;                    // of bearer_scope; 0 = may only look
	uint64_t rate;                      // tokens of questions and answers per second; 0 = no limit
	uint32_t in_flight;                 // requests under way; 0 = no limit
	uint32_t k_max;                     // ids of one row, however they are asked for; 0 = no limit
	int64_t expires;                    // seconds since 1970, UTC; 0 = never
};

// NAME DIGEST SCOPES [rate=N] [in-flight=N] [k-max=N] [expires=YYYY-MM-DD[Thh:mm:ssZ]]; a message never holds what stands in the place
// of the digest, for that may be a secret put there by mistake.
int bearer_decode(const char *line, size_t n, struct bearer *ret_bearer, struct error *err);
void bearer_encode(struct buffer *b, const struct bearer *t);        // without a line's end
bool bearer_name_is_valid(const char *name);
int bearer_decode_scopes(const char *text, unsigned *ret_scopes);    // "score,train" or "none"; -EINVAL
int bearer_decode_date(const char *text, int64_t *ret_seconds);      // -EINVAL

struct content_id bearer_digest(const char *secret, size_t n);
int bearer_new_secret(char ret_secret[BEARER_SECRET_BYTES]);         // from the system's random numbers
