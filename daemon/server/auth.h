// SPDX-License-Identifier: Apache-2.0
// THE gate: who asks, what they may, and how much. Both doors take whoever speaks to auth_login() first, and everything they do asks
// auth_permit(), auth_begin() and auth_limit() through the service and the table of resources, so neither door can forget one.
//
// Tokens are lines of a file (common/bearer.h); secrets are never kept, only their digests, all of which are compared at each login, in
// time that says nothing. Without a file there is one principal, anybody, who may everything: main.c allows that on this machine only.
// Any thread may call; a lock within is held for a moment only.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/bearer.h"
#include "daemon/queue.h"

struct auth;
struct buffer;
struct error;
struct principal;              // whoever a token names: scopes, quota and what is under way
struct query_limits;

#define AUTH_MAX_TOKENS 4096
#define AUTH_MAX_FILE (1u << 20)            // bytes
#define AUTH_ANY 0u                         // a scope every token has
#define AUTH_WORKER_ENV "KDSERVED_WORKER_TOKEN"     // read by kdserved-worker (daemon/worker/link.c)

// path NULL: there are no tokens. Errors name the file and the line.
int auth_open(const char *path, struct auth **ret_auth, struct error *err);
struct auth *auth_close(struct auth *a);    // nobody is logged in; NULL is fine; returns NULL
// Reads the file again, or another: all of it or, on error, nothing. Who is logged in with a line that is gone is refused from then on; new
// limits hold at once. Opened without a file: no change.
int auth_reload(struct auth *a, const char *path, struct error *err);
size_t auth_n_tokens(const struct auth *a);
bool auth_is_closed(const struct auth *a);  // there is a file of tokens: nobody may anything without one
// A secret made at start for training runs on this machine: scopes score and generate, no limits. NULL without a file.
const char *auth_worker_secret(const struct auth *a);

// secret may be NULL (none was given). The reference is the caller's. A secret nobody knows, a wrong and an old one take as long.
int auth_login(struct auth *a, const char *secret, struct principal **ret_principal, struct error *err);
struct principal *principal_ref(struct principal *p);
struct principal *principal_unref(struct principal *p);       // NULL is fine; returns NULL

// The token still counts, and has one of the scopes (or AUTH_ANY). NULL is nobody, who may nothing.
int auth_permit(struct principal *p, unsigned scopes, struct error *err);
// A request of that cost begins: ERROR_OVERLOADED with retry_s when the quota is used up. auth_end, with the same cost, when it is over:
// the quota gets back what it did not use.
int auth_begin(struct principal *p, const struct queue_cost *cost, struct error *err);
// The same answer before it is known of how many tokens.
int auth_check_quota(struct principal *p, struct error *err);
void auth_end(struct principal *p, const struct queue_cost *cost, uint64_t n_used /* tokens, <= cost's */);
// What is under way of theirs, and of places in the caches (auth_hold, auth_give): for queue_reserve. False where there are no tokens, so
// that all who ask are one.
bool auth_held(struct principal *p, struct queue_cost *ret_held, struct queue_cost *ret_places);
// The same for who keeps such accounts himself: who asks; NULL where all are one.
const void *auth_asker(const struct principal *p);
void auth_hold(struct principal *p, uint64_t n_places);
void auth_give(struct principal *p, uint64_t n_places);
// Rows were given to them, of so many numbers that tell of single ids or of the teacher's inside.
void auth_serve(struct principal *p, uint64_t n_rows, uint64_t n_values);
// The audit trail: a line of the log for each token that was served anything since its last line, every interval_ms, and before a token is
// forgotten (auth_close, a reload); their numbers add up to those of auth_metrics. Returns in how many ms to call again, -1 = never
// (interval_ms 0). One thread calls it, the one that calls auth_reload.
int auth_audit(struct auth *a, uint64_t interval_ms);
uint32_t auth_k_max(struct principal *p);                      // 0 = no limit
void auth_limit(struct principal *p, struct query_limits *limits);    // lowers those that k-max bounds
void auth_metrics(struct auth *a, struct buffer *b);           // per token, by name
