// SPDX-License-Identifier: Apache-2.0
// A principal outlives its line: connections and requests hold references. What a reload changes of it, it changes under the lock.
#include "daemon/server/auth.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/buffer.h"
#include "common/error.h"
#include "common/query.h"
#include "daemon/clock.h"
#include "daemon/log.h"
#include "daemon/server/auth_internal.h"

#define ALL_SCOPES (BEARER_SCORE | BEARER_GENERATE | BEARER_TRAIN | BEARER_ADMIN)

struct served { uint64_t n_requests, n_rows, n_values; };

struct principal {
	struct auth *auth;
	struct principal *next;            // of the dead
	uint32_t n_references;             // one of them the table's
	struct bearer bearer;
	bool revoked;                      // its line is gone
	double balance, balance_seconds;   // tokens that may be asked for, and when that was so; below zero = to be waited for
	uint32_t in_flight;
	struct queue_cost held, places;    // of what is under way
	uint64_t n_tokens, n_refused;
	struct served served, audited;     // audited: what the lines of the log add up to
};

struct auth {
	pthread_mutex_t lock;
	bool closed;                       // fixed at start: there are tokens
	struct principal **principals;     // (n) in the order of the file; the first is anybody, or this server's own workers
	size_t n;
	char worker_secret[BEARER_SECRET_BYTES];
	uint64_t audited_ms;               // auth_audit's thread alone
};

static struct principal *principal_new(struct auth *a, const struct bearer *t)
{
	struct principal *p = calloc(1, sizeof *p);
	if (p) {
		p->auth = a;
		p->n_references = 1;
		p->bearer = *t;
		p->balance = (double)t->rate;
		p->balance_seconds = clock_seconds();
	}
	return p;
}

struct audit_line { char name[sizeof ((struct bearer *)NULL)->name]; struct served more, all; };

// The lock is held, or the principal is dead: what the line adds is what the counters were. False: there is nothing to say.
static bool audit_take(struct principal *p, struct audit_line *ret)
{
	const struct served *all = &p->served, *before = &p->audited;
	ret->more = (struct served){all->n_requests - before->n_requests, all->n_rows - before->n_rows, all->n_values - before->n_values};
	ret->all = *all;
	memcpy(ret->name, p->bearer.name, sizeof ret->name);
	p->audited = *all;
	return p->auth->closed && (ret->more.n_requests || ret->more.n_rows || ret->more.n_values);
}

// Never under the lock: the journal may be slow, and nobody is let in meanwhile.
static void audit_write(const struct audit_line *l)
{
	log_about(LOG_NOTICE, "KD_TOKEN", l->name, "audit: token=%s requests=%" PRIu64 " rows=%" PRIu64 " values=%" PRIu64
		  " all_requests=%" PRIu64 " all_rows=%" PRIu64 " all_values=%" PRIu64, l->name, l->more.n_requests, l->more.n_rows,
		  l->more.n_values, l->all.n_requests, l->all.n_rows, l->all.n_values);
}

// The lock is held. Nobody knows the dead any more; bury them when it is not.
static void drop(struct principal *p, struct principal **dead)
{
	if (--p->n_references)
		return;
	p->next = *dead;
	*dead = p;
}

static void bury(struct principal *dead)
{
	struct audit_line line;
	while (dead) {
		struct principal *p = dead;
		dead = p->next;
		if (audit_take(p, &line))
			audit_write(&line);
		free(p);
	}
}

struct principal *principal_ref(struct principal *p)
{
	pthread_mutex_lock(&p->auth->lock);
	p->n_references++;
	pthread_mutex_unlock(&p->auth->lock);
	return p;
}

struct principal *principal_unref(struct principal *p)
{
	if (p) {
		struct principal *dead = NULL;
		struct auth *a = p->auth;
		pthread_mutex_lock(&a->lock);
		drop(p, &dead);
		pthread_mutex_unlock(&a->lock);
		bury(dead);
	}
	return NULL;
}

// ---- the table

static struct principal *find_digest(struct auth *a, const struct content_id *digest)
{
	struct principal *found = NULL;
	for (size_t i = 0; i < a->n; i++)                  // all of them, whichever it is
		if (content_id_is_same(&a->principals[i]->bearer.digest, digest))
			found = a->principals[i];
	return found;
}

// The new table: whose digest was there before stays the same principal, with its quota used and its requests under way.
static int replace(struct auth *a, const struct bearer *tokens, size_t n, struct principal **dead, struct error *err)
{
	struct principal **made = calloc(n + 1, sizeof *made);
	size_t n_made = 0;
	for (; made && n_made < n; n_made++) {
		struct principal *old = find_digest(a, &tokens[n_made].digest);
		made[n_made + 1] = old ? old : principal_new(a, &tokens[n_made]);
		if (!made[n_made + 1])
			break;
	}
	if (!made || n_made < n) {
		for (size_t i = 0; i < n_made; i++)
			if (!find_digest(a, &tokens[i].digest))
				free(made[i + 1]);
		free(made);
		return error_set(err, ERROR_MEMORY, "tokens", "no memory for the tokens");
	}
	for (size_t i = 1; i < a->n; i++)
		a->principals[i]->revoked = true;
	for (size_t i = 0; i < n; i++) {
		made[i + 1]->bearer = tokens[i];
		made[i + 1]->revoked = false;
	}
	for (size_t i = 1; i < a->n; i++)
		if (a->principals[i]->revoked)
			drop(a->principals[i], dead);
	made[0] = a->principals[0];
	free(a->principals);
	a->principals = made;
	a->n = n + 1;
	return 0;
}

int auth_reload(struct auth *a, const char *path, struct error *err)
{
	struct bearer *tokens = NULL;
	struct principal *dead = NULL;
	size_t n = 0;
	if (!a->closed)
		return 0;
	int r = auth_file_read(path, &tokens, &n, err);
	if (!r) {
		pthread_mutex_lock(&a->lock);
		r = replace(a, tokens, n, &dead, err);
		pthread_mutex_unlock(&a->lock);
		bury(dead);
	}
	free(tokens);
	return r;
}

// Anybody, where there are no tokens; else this server's own workers.
static int add_first(struct auth *a, struct error *err)
{
	struct bearer t = {.name = "(anybody)", .scopes = ALL_SCOPES};
	if (a->closed) {
		if (bearer_new_secret(a->worker_secret))
			return error_set(err, ERROR_IO, "tokens", "the system has no random numbers");
		t = (struct bearer){.name = "(workers)", .scopes = BEARER_SCORE | BEARER_GENERATE};
		t.digest = bearer_digest(a->worker_secret, strlen(a->worker_secret));
	}
	a->principals = calloc(1, sizeof *a->principals);
	struct principal *p = a->principals ? principal_new(a, &t) : NULL;
	if (!p)
		return error_set(err, ERROR_MEMORY, "tokens", "no memory for the tokens");
	a->principals[a->n++] = p;
	return 0;
}

int auth_open(const char *path, struct auth **ret_auth, struct error *err)
{
	struct auth *a = calloc(1, sizeof *a);
	if (!a)
		return error_set(err, ERROR_MEMORY, "tokens", "no memory for the tokens");
	pthread_mutex_init(&a->lock, NULL);
	a->closed = path;
	int r = add_first(a, err);
	if (!r)
		r = auth_reload(a, path, err);
	if (r)
		auth_close(a);
	else
		*ret_auth = a;
	return r;
}

struct auth *auth_close(struct auth *a)
{
	struct principal *dead = NULL;
	if (!a)
		return NULL;
	for (size_t i = 0; i < a->n; i++)
		drop(a->principals[i], &dead);
	bury(dead);
	free(a->principals);
	pthread_mutex_destroy(&a->lock);
	explicit_bzero(a->worker_secret, sizeof a->worker_secret);
	free(a);
	return NULL;
}

size_t auth_n_tokens(const struct auth *a)
{
	return a->n - 1;
}

bool auth_is_closed(const struct auth *a)
{
	return a->closed;
}

const char *auth_worker_secret(const struct auth *a)
{
	return a->closed ? a->worker_secret : NULL;
}

// ---- who

static bool is_expired(const struct bearer *t)
{
	return t->expires && time(NULL) >= t->expires;
}

// The lock is held.
static int check_valid(const struct principal *p, struct error *err)
{
	if (p->revoked)
		return error_set(err, ERROR_UNAUTHORIZED, "token", "the token counts no longer");
	if (is_expired(&p->bearer))
		return error_set(err, ERROR_UNAUTHORIZED, "token", "the token has expired");
	return 0;
}

int auth_login(struct auth *a, const char *secret, struct principal **ret_principal, struct error *err)
{
	int r = 0;
	struct principal *p = NULL;
	struct content_id digest = {0};
	if (a->closed && !secret)
		return error_set(err, ERROR_UNAUTHORIZED, "token", "a bearer token is needed");
	if (a->closed)
		digest = bearer_digest(secret, strlen(secret));
	pthread_mutex_lock(&a->lock);
	p = a->closed ? find_digest(a, &digest) : a->principals[0];
	if (!p)
		r = error_set(err, ERROR_UNAUTHORIZED, "token", "nobody here has this token");
	else
		r = check_valid(p, err);
	if (!r) {
		p->n_references++;
		*ret_principal = p;
	}
	pthread_mutex_unlock(&a->lock);
	return r;
}

int auth_permit(struct principal *p, unsigned scopes, struct error *err)
{
	if (!p)
		return error_set(err, ERROR_UNAUTHORIZED, "token", "a bearer token is needed");
	pthread_mutex_lock(&p->auth->lock);
	int r = check_valid(p, err);
	if (!r && scopes && !(p->bearer.scopes & (scopes | BEARER_ADMIN)))
		r = error_set(err, ERROR_FORBIDDEN, "token", "the token's scopes do not allow this");
	pthread_mutex_unlock(&p->auth->lock);
	return r;
}

// ---- how much

// A bucket of one second's tokens. A request is let in while there are any, whatever it costs, and may leave the bucket in debt: so the
// rate holds in the long run and no request is too large for it.
static void fill_bucket(struct principal *p)
{
	double now = clock_seconds(), rate = (double)p->bearer.rate;
	p->balance += (now - p->balance_seconds) * rate;
	if (p->balance > rate)
		p->balance = rate;
	p->balance_seconds = now;
}

static int check_quota(struct principal *p, struct error *err)
{
	const struct bearer *t = &p->bearer;
	if (t->in_flight && p->in_flight >= t->in_flight)
		return error_set(err, ERROR_OVERLOADED, "token",
			"the token's quota of %" PRIu32 " requests under way is used up", t->in_flight);
	if (!t->rate)
		return 0;
	fill_bucket(p);
	if (p->balance > 0)
		return 0;
	double seconds = -p->balance / (double)t->rate;
	unsigned retry = seconds < 86400 ? (unsigned)seconds + 1 : 86400;
	error_set(err, ERROR_OVERLOADED, "token", "the token's quota of %" PRIu64 " tokens per second is used up: try again in %u s",
		  t->rate, retry);
	if (err)
		err->retry_s = retry;
	return error_errno(ERROR_OVERLOADED);
}

int auth_check_quota(struct principal *p, struct error *err)
{
	pthread_mutex_lock(&p->auth->lock);
	int r = check_quota(p, err);
	p->n_refused += r != 0;
	pthread_mutex_unlock(&p->auth->lock);
	return r;
}

int auth_begin(struct principal *p, const struct queue_cost *cost, struct error *err)
{
	pthread_mutex_lock(&p->auth->lock);
	int r = check_quota(p, err);
	if (r) {
		p->n_refused++;
	} else {
		p->balance -= p->bearer.rate ? (double)cost->tokens : 0;
		p->in_flight++;
		p->held.requests += cost->requests;
		p->held.tokens += cost->tokens;
		p->held.bytes += cost->bytes;
		p->served.n_requests++;
	}
	pthread_mutex_unlock(&p->auth->lock);
	return r;
}

void auth_end(struct principal *p, const struct queue_cost *cost, uint64_t n_used)
{
	pthread_mutex_lock(&p->auth->lock);
	p->in_flight--;
	p->balance += p->bearer.rate ? (double)(cost->tokens - n_used) : 0;       // fill_bucket() keeps it within one second's
	p->n_tokens += n_used;
	p->held.requests -= cost->requests;
	p->held.tokens -= cost->tokens;
	p->held.bytes -= cost->bytes;
	pthread_mutex_unlock(&p->auth->lock);
}

void auth_serve(struct principal *p, uint64_t n_rows, uint64_t n_values)
{
	pthread_mutex_lock(&p->auth->lock);
	p->served.n_rows += n_rows;
	p->served.n_values += n_values;
	pthread_mutex_unlock(&p->auth->lock);
}

bool auth_held(struct principal *p, struct queue_cost *ret_held, struct queue_cost *ret_places)
{
	pthread_mutex_lock(&p->auth->lock);
	*ret_held = p->held;
	*ret_places = p->places;
	pthread_mutex_unlock(&p->auth->lock);
	return p->auth->closed;
}

const void *auth_asker(const struct principal *p)
{
	return p && p->auth->closed ? p : NULL;
}

void auth_hold(struct principal *p, uint64_t n_places)
{
	pthread_mutex_lock(&p->auth->lock);
	p->places.tokens += n_places;
	pthread_mutex_unlock(&p->auth->lock);
}

void auth_give(struct principal *p, uint64_t n_places)
{
	pthread_mutex_lock(&p->auth->lock);
	p->places.tokens -= n_places;
	pthread_mutex_unlock(&p->auth->lock);
}

uint32_t auth_k_max(struct principal *p)
{
	pthread_mutex_lock(&p->auth->lock);
	uint32_t k = p->bearer.k_max;
	pthread_mutex_unlock(&p->auth->lock);
	return k;
}

void auth_limit(struct principal *p, struct query_limits *limits)
{
	uint32_t k = auth_k_max(p), *bounded[] = {&limits->max_top_k, &limits->max_gather, &limits->max_draws};
	for (size_t i = 0; k && i < sizeof bounded / sizeof *bounded; i++)
		*bounded[i] = *bounded[i] < k ? *bounded[i] : k;
}

// ---- watching

int auth_audit(struct auth *a, uint64_t interval_ms)
{
	uint64_t now = clock_ms();
	if (!a->closed || !interval_ms)
		return -1;
	if (!a->audited_ms)
		a->audited_ms = now;
	if (now - a->audited_ms < interval_ms)
		return (int)(interval_ms - (now - a->audited_ms));
	a->audited_ms = now;
	for (size_t i = 0; i < a->n; i++) {        // the table is the calling thread's to change (auth_reload)
		struct audit_line line;
		pthread_mutex_lock(&a->lock);
		bool any = audit_take(a->principals[i], &line);
		pthread_mutex_unlock(&a->lock);
		if (any)
			audit_write(&line);
	}
	return (int)interval_ms;
}

void auth_metrics(struct auth *a, struct buffer *b)
{
	static const struct { const char *name, *type, *help; } rows[] = {
		{"kd_token_requests_total", "counter", "Requests let in, by the token's name."},
		{"kd_token_tokens_total", "counter", "Tokens of those that ended: what was read, and what was generated."},
		{"kd_token_rows_total", "counter", "Rows given to them: of questions and of weights, and tokens generated."},
		{"kd_token_values_total", "counter",
			"Numbers of those rows: logits by id (top-k, gathered, dense, own), draws, spans, hidden states, weights."},
		{"kd_token_refused_total", "counter", "Requests refused because the quota was used up."},
		{"kd_token_in_flight", "gauge", "Requests under way."}};
	if (!a->closed)
		return;
	pthread_mutex_lock(&a->lock);
	for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
		buffer_printf(b, "# HELP %s %s\n# TYPE %s %s\n", rows[i].name, rows[i].help, rows[i].name, rows[i].type);
		for (size_t j = 0; j < a->n; j++) {
			const struct principal *p = a->principals[j];
			const struct served *s = &p->served;
			const uint64_t values[] = {s->n_requests, p->n_tokens, s->n_rows, s->n_values, p->n_refused, p->in_flight};
			buffer_printf(b, "%s{token=\"%s\"} %" PRIu64 "\n", rows[i].name, p->bearer.name, values[i]);
		}
	}
	pthread_mutex_unlock(&a->lock);
}
