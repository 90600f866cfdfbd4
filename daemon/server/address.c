// SPDX-License-Identifier: Apache-2.0
#include "daemon/server/address.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "common/error.h"

#define LISTEN_BACKLOG 1024

static int parse_unix(const char *path, const char *field, struct address *a, struct error *err)
{
	struct sockaddr_un *un = (struct sockaddr_un *)&a->storage;
	if (path[0] != '/')
		return error_set(err, ERROR_INVALID, field, "%s: the path of a unix socket begins with '/', not \"%s\"", field, path);
	if (strlen(path) >= sizeof un->sun_path)
		return error_set(err, ERROR_INVALID, field, "%s: the path of a unix socket has at most %zu bytes", field,
				 sizeof un->sun_path - 1);
	un->sun_family = AF_UNIX;
	strcpy(un->sun_path, path);
	a->n_bytes = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + strlen(path) + 1);
	return 0;
}

static int parse_port(const char *text, uint16_t *ret_port)
{
	size_t n = strlen(text);
	if (n < 1 || n > 5 || strspn(text, "0123456789") != n)
		return -EINVAL;
	long port = strtol(text, NULL, 10);
	if (port > 65535)
		return -EINVAL;
	*ret_port = (uint16_t)port;
	return 0;
}

static int parse_host(const char *host, uint16_t port, struct address *a)
{
	struct sockaddr_in *in = (struct sockaddr_in *)&a->storage;
	struct sockaddr_in6 *in6 = (struct sockaddr_in6 *)&a->storage;
	size_t n = strlen(host);
	char bare[64];
	if (n > 2 && n < sizeof bare && host[0] == '[' && host[n - 1] == ']') {
		memcpy(bare, host + 1, n - 2);
		bare[n - 2] = '\0';
		in6->sin6_family = AF_INET6;
		in6->sin6_port = htons(port);
		a->n_bytes = sizeof *in6;
		return inet_pton(AF_INET6, bare, &in6->sin6_addr) == 1 ? 0 : -EINVAL;
	}
	in->sin_family = AF_INET;
	in->sin_port = htons(port);
	a->n_bytes = sizeof *in;
	return inet_pton(AF_INET, strcmp(host, "localhost") == 0 ? "127.0.0.1" : host, &in->sin_addr) == 1 ? 0 : -EINVAL;
}

int address_parse(const char *text, const char *field, struct address *ret_address, struct error *err)
{
	struct address a = {0};
	char host[64] = "";
	uint16_t port = 0;
	if (strncmp(text, "unix:", 5) == 0) {
		int r = parse_unix(text + 5, field, &a, err);
		if (r == 0)
			*ret_address = a;
		return r;
	}
	const char *inet = strncmp(text, "tcp:", 4) == 0 ? text + 4 : text;
	const char *colon = strrchr(inet, ':');
	if (!colon || (size_t)(colon - inet) >= sizeof host)
		return error_set(err, ERROR_INVALID, field, "%s: \"%s\" is not ADDR:PORT", field, text);
	memcpy(host, inet, (size_t)(colon - inet));
	if (parse_port(colon + 1, &port))
		return error_set(err, ERROR_INVALID, field, "%s: \"%s\" has no port between 0 and 65535", field, text);
	if (parse_host(host, port, &a))
		return error_set(err, ERROR_INVALID, field, "%s: \"%s\" is not a numeric address", field, host);
	*ret_address = a;
	return 0;
}

bool address_is_remote(const struct address *a)
{
	if (a->storage.ss_family == AF_UNIX)
		return false;
	if (a->storage.ss_family == AF_INET6)
		return !IN6_IS_ADDR_LOOPBACK(&((const struct sockaddr_in6 *)&a->storage)->sin6_addr);
	return ntohl(((const struct sockaddr_in *)&a->storage)->sin_addr.s_addr) >> 24 != 127;
}

// A socket file left by a process that died would make bind fail for ever; one that answers is somebody's.
static int remove_stale(const struct address *a, const char *field, struct error *err)
{
	const char *path = ((const struct sockaddr_un *)&a->storage)->sun_path;
	struct stat st;
	if (lstat(path, &st) || !S_ISSOCK(st.st_mode))
		return 0;    // absent, or not ours to remove: bind says what is wrong
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return error_system(err, errno, field, "socket");
	int r = connect(fd, (const struct sockaddr *)&a->storage, a->n_bytes);
	bool refused = r && errno == ECONNREFUSED;
	close(fd);
	if (!refused)
		return error_set(err, ERROR_CONFLICT, field, "%s: another process serves %s", field, path);
	return unlink(path) ? error_system(err, errno, field, "cannot remove the stale socket %s", path) : 0;
}

int address_listen(const struct address *a, const char *field, int *ret_fd, struct error *err)
{
	const int yes = 1;
	int r = a->storage.ss_family == AF_UNIX ? remove_stale(a, field, err) : 0;
	if (r)
		return r;
	int fd = socket(a->storage.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return error_system(err, errno, field, "%s: socket", field);
	if (a->storage.ss_family != AF_UNIX)
		setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);    // else a restart waits for old connections' TIME_WAIT
	mode_t old = umask(0177);
	r = bind(fd, (const struct sockaddr *)&a->storage, a->n_bytes) || listen(fd, LISTEN_BACKLOG) ? -errno : 0;
	umask(old);
	if (r) {
		char text[ADDRESS_TEXT] = "";
		address_close(fd, false);
		if (a->storage.ss_family == AF_UNIX)
			snprintf(text, sizeof text, "%s", ((const struct sockaddr_un *)&a->storage)->sun_path);
		return error_system(err, r, field, "%s: cannot listen on %s", field, *text ? text : "this address");
	}
	*ret_fd = fd;
	return 0;
}

void address_close(int fd, bool inherited)
{
	struct sockaddr_un un = {0};       // no path where bind failed
	socklen_t n = sizeof un;
	if (!inherited && getsockname(fd, (struct sockaddr *)&un, &n) == 0 && un.sun_family == AF_UNIX && *un.sun_path)
		unlink(un.sun_path);       // first: once nobody listens, another process may put its own there
	close(fd);
}

// NULL: the socket does not tell.
static void print_address(const struct sockaddr_storage *s, char ret_text[ADDRESS_TEXT])
{
	char host[INET6_ADDRSTRLEN] = "";
	if (!s) {
		snprintf(ret_text, ADDRESS_TEXT, "?");
	} else if (s->ss_family == AF_UNIX) {
		snprintf(ret_text, ADDRESS_TEXT, "unix:%s", ((const struct sockaddr_un *)s)->sun_path);
	} else if (s->ss_family == AF_INET6) {
		inet_ntop(AF_INET6, &((const struct sockaddr_in6 *)s)->sin6_addr, host, sizeof host);
		snprintf(ret_text, ADDRESS_TEXT, "tcp:[%s]:%u", host, ntohs(((const struct sockaddr_in6 *)s)->sin6_port));
	} else {
		inet_ntop(AF_INET, &((const struct sockaddr_in *)s)->sin_addr, host, sizeof host);
		snprintf(ret_text, ADDRESS_TEXT, "tcp:%s:%u", host, ntohs(((const struct sockaddr_in *)s)->sin_port));
	}
}

void address_of_socket(int fd, char ret_text[ADDRESS_TEXT])
{
	struct sockaddr_storage s = {0};
	socklen_t n = sizeof s;
	print_address(getsockname(fd, (struct sockaddr *)&s, &n) ? NULL : &s, ret_text);
}

void address_of_peer(int fd, char ret_text[ADDRESS_TEXT])
{
	struct sockaddr_storage s = {0};
	socklen_t n = sizeof s;
	print_address(getpeername(fd, (struct sockaddr *)&s, &n) ? NULL : &s, ret_text);
}

bool address_is_unix(int fd)
{
	struct sockaddr_storage s = {0};
	socklen_t n = sizeof s;
	return getsockname(fd, (struct sockaddr *)&s, &n) == 0 && s.ss_family == AF_UNIX;
}
