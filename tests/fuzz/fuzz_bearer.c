// SPDX-License-Identifier: Apache-2.0
// Who is let in: a file of tokens, then secrets, each after a NUL; a part that begins with "#" is another file of tokens, read as by a
// reload. Whoever is let in has the digest that a line names and only that line's scopes; nobody else is.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "common/error.h"
#include "daemon/queue.h"
#include "daemon/server/auth.h"
#include "daemon/server/auth_internal.h"
#include "tests/fuzz/fuzz.h"

static void require(bool holds)
{
	if (!holds)
		abort();
}

struct scene { int fd; char path[32]; struct auth *auth; struct bearer *tokens; size_t n; };

static void file_write(struct scene *s, const char *text, size_t n)
{
	require(ftruncate(s->fd, 0) == 0 && pwrite(s->fd, text, n, 0) == (ssize_t)n);
}

// What the lines say by themselves; false: they are refused.
static bool tokens_read(struct scene *s, const char *text, size_t n)
{
	struct bearer *tokens = NULL;
	size_t n_tokens;
	if (auth_file_decode(text, n, "tokens", &tokens, &n_tokens, NULL))
		return false;
	free(s->tokens);
	s->tokens = tokens;
	s->n = n_tokens;
	return true;
}

static void try_secret(struct scene *s, const char *secret)
{
	struct content_id digest = bearer_digest(secret, strlen(secret));
	struct principal *p = NULL;
	struct error err = {0};
	const struct bearer *line = NULL;
	for (size_t i = 0; i < s->n; i++)
		line = content_id_is_same(&s->tokens[i].digest, &digest) ? &s->tokens[i] : line;
	int r = auth_login(s->auth, secret, &p, &err);
	if (r) {
		require(err.code == ERROR_UNAUTHORIZED && (!line || line->expires));
		require(strlen(secret) < 8 || !strstr(err.message, secret));
		return;
	}
	require(line != NULL && (!line->expires || line->expires > time(NULL) - 5));
	for (unsigned scope = 1; scope < 16; scope <<= 1)
		require(!auth_permit(p, scope, NULL) == ((line->scopes & (scope | BEARER_ADMIN)) != 0));
	require(auth_k_max(p) == line->k_max);
	const struct queue_cost cost = {1, 3, 100};
	if (auth_begin(p, &cost, &err) == 0)
		auth_end(p, &cost, strlen(secret) % 4);
	else
		require(err.code == ERROR_OVERLOADED);
	principal_unref(p);
}

static void reload(struct scene *s, const char *text, size_t n)
{
	struct error err = {0};
	file_write(s, text, n);
	require((auth_reload(s->auth, s->path, &err) == 0) == tokens_read(s, text, n));
}

static void try_parts(struct scene *s, const char *at, const char *end)
{
	char part[4096];
	while (at < end) {
		size_t n = strnlen(at, (size_t)(end - at));
		if (*at == '#') {
			reload(s, at, n);
		} else if (n < sizeof part) {
			memcpy(part, at, n);
			part[n] = '\0';
			try_secret(s, part);
		}
		at += n + 1;
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static int fd = -1;
	struct scene s = {0};
	struct error err = {0};
	const char *text = (const char *)data, *end = text + size;
	size_t n = size ? strnlen(text, size) : 0;
	if (fd < 0)
		require((fd = memfd_create("tokens", MFD_CLOEXEC)) >= 0 && fchmod(fd, 0600) == 0);
	s.fd = fd;
	snprintf(s.path, sizeof s.path, "/proc/self/fd/%d", fd);
	file_write(&s, text, n);
	bool good = tokens_read(&s, text, n);
	if (auth_open(s.path, &s.auth, &err)) {
		require(!good && err.code && !strstr(err.message, "kds_"));
	} else {
		require(good && auth_is_closed(s.auth) && auth_permit(NULL, AUTH_ANY, NULL) != 0);
		try_parts(&s, text + n, end);
	}
	auth_close(s.auth);
	free(s.tokens);
	return 0;
}
