// SPDX-License-Identifier: Apache-2.0
// systemd passes sockets by name (FileDescriptorName=): "http" or "socket", the settings they stand in for. Passed sockets are shared with
// the process before and the process after this one, so they are never shut down and their files never removed.
#include "daemon/listeners.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <systemd/sd-daemon.h>

#include "common/error.h"
#include "daemon/log.h"
#include "daemon/options.h"

// The directory of a socket in /run is gone after each boot; only the last part is made.
static void make_parent(const char *path)
{
	char parent[108];
	const char *slash = strrchr(path, '/');
	if (slash && slash > path && (size_t)(slash - path) < sizeof parent) {
		snprintf(parent, sizeof parent, "%.*s", (int)(slash - path), path);
		if (mkdir(parent, 0755) && errno != EEXIST)
			log_debug("cannot make %s: %s", parent, strerror(errno));    // bind will say what is wrong
	}
}

static void announce(const struct options *o, const char *field, int fd, const char *who)
{
	char bound[ADDRESS_TEXT], certificate[OPTIONS_PATH_BYTES], key[OPTIONS_PATH_BYTES];
	address_of_socket(fd, bound);
	bool tcp = strncmp(bound, "tcp:", 4) == 0, encrypted = tcp && options_tls(o, certificate, key);
	if (tcp && strcmp(field, "http") == 0)
		log_notice("listening on http%s://%s%s", encrypted ? "s" : "", bound + strlen("tcp:"), who);
	else
		log_notice("listening on %s%s%s", encrypted ? "tls:" : "", encrypted ? bound + strlen("tcp:") : bound, who);
}

static int listen_on(const struct options *o, const char *text, const char *field, int *ret_fd, struct error *err)
{
	struct address a;
	int r = address_parse(text, field, &a, err);
	if (!r && strncmp(text, "unix:", 5) == 0)
		make_parent(text + 5);
	if (!r)
		r = address_listen(&a, field, ret_fd, err);
	if (!r)
		announce(o, field, *ret_fd, "");
	return r;
}

// Of a family whose addresses we can read: who can reach a vsock is not told by the rule for the others.
static bool is_listener(int fd)
{
	static const int families[] = {AF_UNIX, AF_INET, AF_INET6};
	for (size_t i = 0; i < sizeof families / sizeof *families; i++)
		if (sd_is_socket(fd, families[i], SOCK_STREAM, 1) > 0)
			return true;
	return false;
}

// Takes one passed socket; the same rule about other machines as for the settings.
static int take_passed(const struct options *o, struct listeners *l, int fd, const char *name, struct error *err)
{
	char bound[ADDRESS_TEXT];
	bool http = strcmp(name, "http") == 0;
	if (!http && strcmp(name, "socket") != 0)
		return error_set(err, ERROR_INVALID, NULL,
			"systemd passed a socket named \"%.60s\": FileDescriptorName= must be http or socket", name);
	if (!is_listener(fd))
		return error_set(err, ERROR_INVALID, name, "what systemd passed for %s is not a listening stream socket (unix or TCP)",
			name);
	if (http ? l->http_fd >= 0 : l->n_sockets == SOCKET_MAX_LISTENERS)
		return error_set(err, ERROR_INVALID, name, "systemd passed too many sockets for %s (at most %d)", name,
			http ? 1 : SOCKET_MAX_LISTENERS);
	address_of_socket(fd, bound);
	int r = options_check_address(o, name, bound, err);
	if (r)
		return r;
	if (fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK) < 0)
		return error_system(err, errno, name, "the socket systemd passed for %s", name);
	if (http) {
		l->http_fd = fd;
		l->http_inherited = true;
	} else {
		l->socket_fds[l->n_sockets++] = fd;
		l->sockets_inherited = true;
	}
	announce(o, name, fd, " (systemd's socket)");
	return 0;
}

static int take_all_passed(const struct options *o, struct listeners *l, struct error *err)
{
	char **names = NULL;
	int n = sd_listen_fds_with_names(1, &names);
	int r = n < 0 ? error_system(err, -n, NULL, "the sockets that systemd passes") : 0;
	for (int i = 0; i < n; i++) {
		if (!r)
			r = take_passed(o, l, SD_LISTEN_FDS_START + i, names[i], err);
		free(names[i]);
	}
	free(names);
	return r;
}

static int open_sockets(const struct options *o, struct listeners *l, struct error *err)
{
	const struct config_list *list = &o->socket;
	int r = 0;
	for (size_t i = 0; i < list->n && !r; i++) {
		if (l->n_sockets == SOCKET_MAX_LISTENERS)
			return error_set(err, ERROR_TOO_LARGE, "socket", "more than %d sockets", SOCKET_MAX_LISTENERS);
		r = listen_on(o, list->items[i], "socket", &l->socket_fds[l->n_sockets], err);
		// Nobody asked for the default socket by name: an ordinary user, who may not write to /run, can still serve HTTP.
		if (r && list->origin == CONFIG_FROM_DEFAULT && l->http_fd >= 0 && !o->runs) {
			log_warning("%s; going on without the binary door", err->message);
			return 0;
		}
		if (!r)
			l->n_sockets++;
	}
	return r;
}

// Workers of this machine come through a plain socket: the certificate is not for an address of theirs.
static int choose_for_workers(const struct options *o, struct listeners *l, struct error *err)
{
	char certificate[OPTIONS_PATH_BYTES], key[OPTIONS_PATH_BYTES];
	bool encrypted = options_tls(o, certificate, key);
	for (size_t i = 0; i < l->n_sockets && !*l->address; i++)
		if (!encrypted || address_is_unix(l->socket_fds[i]))
			address_of_socket(l->socket_fds[i], l->address);
	if (o->runs && !*l->address)
		return error_set(err, ERROR_INVALID, "socket",
				 "the workers of runs come through a unix socket where tls-certificate is set: set socket = unix:PATH too");
	return 0;
}

int listeners_open(const struct options *o, struct listeners *l, struct error *err)
{
	*l = (struct listeners){.http_fd = -1};
	int r = take_all_passed(o, l, err);
	if (!r && o->http && !l->http_inherited)
		r = listen_on(o, o->http, "http", &l->http_fd, err);
	if (!r && !l->sockets_inherited)
		r = open_sockets(o, l, err);
	return r ? r : choose_for_workers(o, l, err);
}

void listeners_close(struct listeners *l)
{
	for (size_t i = 0; i < l->n_sockets; i++)
		address_close(l->socket_fds[i], l->sockets_inherited);
	l->n_sockets = 0;
	if (l->http_fd >= 0)
		address_close(l->http_fd, l->http_inherited);
	l->http_fd = -1;
}
