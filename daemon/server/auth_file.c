// SPDX-License-Identifier: Apache-2.0
#include "daemon/server/auth_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/bearer.h"
#include "common/error.h"
#include "daemon/server/auth.h"

static int by_name(const void *a, const void *b)
{
	return strcmp(((const struct bearer *)a)->name, ((const struct bearer *)b)->name);
}

static int by_digest(const void *a, const void *b)
{
	return memcmp(&((const struct bearer *)a)->digest, &((const struct bearer *)b)->digest, sizeof(struct content_id));
}

// Two lines of one name could not be told apart in the metrics; two of one digest would give one secret two scopes.
static int check_unique(const struct bearer *tokens, size_t n, const char *source, struct error *err)
{
	static int (*const orders[])(const void *, const void *) = {by_name, by_digest};
	struct bearer *sorted = malloc((n ? n : 1) * sizeof *sorted);
	int r = 0;
	if (!sorted)
		return error_set(err, ERROR_MEMORY, "tokens", "no memory for the tokens");
	if (n)
		memcpy(sorted, tokens, n * sizeof *sorted);
	for (size_t k = 0; k < 2 && !r; k++) {
		qsort(sorted, n, sizeof *sorted, orders[k]);
		for (size_t i = 1; i < n && !r; i++)
			if (orders[k](&sorted[i - 1], &sorted[i]) == 0)
				r = error_set(err, ERROR_INVALID, "tokens", k ? "%s: the token of \"%s\" is another's too" :
					      "%s: \"%s\" stands there twice", source, sorted[i].name);
	}
	free(sorted);
	return r;
}

static bool is_nothing(const char *line, size_t n)
{
	size_t i = 0;
	while (i < n && (line[i] == ' ' || line[i] == '\t'))
		i++;
	return i == n || line[i] == '#';
}

struct list { struct bearer *items; size_t n, capacity; };

static int list_append(struct list *l, const char *line, size_t n, struct error *err)
{
	if (l->n == AUTH_MAX_TOKENS)
		return error_set(err, ERROR_TOO_LARGE, "tokens", "more than %d tokens", AUTH_MAX_TOKENS);
	if (l->n == l->capacity) {
		size_t capacity = l->capacity ? 2 * l->capacity : 16;
		struct bearer *more = realloc(l->items, capacity * sizeof *more);
		if (!more)
			return error_set(err, ERROR_MEMORY, "tokens", "no memory for it");
		l->items = more;
		l->capacity = capacity;
	}
	int r = bearer_decode(line, n, &l->items[l->n], err);
	l->n += r == 0;
	return r;
}

int auth_file_decode(const char *text, size_t n, const char *source, struct bearer **ret_tokens, size_t *ret_n, struct error *err)
{
	struct list list = {0};
	struct error why = {0};
	size_t line = 1;
	int r = 0;
	for (size_t at = 0; at < n && !r; line++) {
		const char *end = memchr(text + at, '\n', n - at);
		size_t length = end ? (size_t)(end - (text + at)) : n - at;
		if (!is_nothing(text + at, length) && (r = list_append(&list, text + at, length, &why)))
			error_set(err, why.code, "tokens", "%s:%zu: %s", source, line, why.message);
		at += length + 1;
	}
	r = r ? r : check_unique(list.items, list.n, source, err);
	if (r) {
		free(list.items);
		return r;
	}
	*ret_tokens = list.items;
	*ret_n = list.n;
	return 0;
}

static int read_all(int fd, const char *path, char *text, size_t *ret_n, struct error *err)
{
	struct stat st;
	size_t n = 0;
	if (fstat(fd, &st))
		return error_system(err, errno, "tokens", "tokens = %s", path);
	if (st.st_mode & 022)
		return error_set(err, ERROR_INVALID, "tokens", "tokens = %s: others may write to it: chmod go-w", path);
	for (ssize_t k = 1; k && n <= AUTH_MAX_FILE;) {
		k = read(fd, text + n, AUTH_MAX_FILE + 1 - n);
		if (k < 0 && errno != EINTR)
			return error_system(err, errno, "tokens", "tokens = %s", path);
		n += k > 0 ? (size_t)k : 0;
	}
	if (n > AUTH_MAX_FILE)
		return error_set(err, ERROR_TOO_LARGE, "tokens", "tokens = %s: more than %u bytes", path, AUTH_MAX_FILE);
	*ret_n = n;
	return 0;
}

int auth_file_read(const char *path, struct bearer **ret_tokens, size_t *ret_n, struct error *err)
{
	size_t n = 0;
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return error_system(err, errno, "tokens", "tokens = %s", path);
	char *text = malloc(AUTH_MAX_FILE + 1);
	int r = text ? read_all(fd, path, text, &n, err) : error_set(err, ERROR_MEMORY, "tokens", "no memory for the tokens");
	if (!r)
		r = auth_file_decode(text, n, path, ret_tokens, ret_n, err);
	free(text);
	close(fd);
	return r;
}
