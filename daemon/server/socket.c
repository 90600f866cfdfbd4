// SPDX-License-Identifier: Apache-2.0
// The thread of the binary door: accepts, waits, gives each connection its turn, frees the dead ones.
#include "daemon/server/socket.h"

#include <errno.h>
#include <math.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/error.h"
#include "daemon/clock.h"
#include "daemon/queue.h"
#include "daemon/server/address.h"
#include "daemon/server/connection.h"
#include "daemon/server/desk.h"
#include "daemon/server/service.h"
#include "daemon/server/tls.h"
#include "daemon/teacher/request.h"

#define TICK_MS 250                  // how often deadlines are looked at
#define MAX_EVENTS 64
#define ACCEPT_SHARE 64              // clients let in at one listener before those who are in have their turn

struct socket_door {
	struct connection_context context;
	uint32_t max_connections, n_connections;
	struct connection *connections;
	struct connection_complaints complaints;
	int listen_fds[SOCKET_MAX_LISTENERS];
	bool encrypted[SOCKET_MAX_LISTENERS];
	size_t n_listeners;
	bool pending;                      // some connection has bytes that epoll does not show
	bool listening;                    // the listeners are in epoll
	bool inherited;
	int epoll_fd, returned_fd, stop_fd;
	pthread_t thread;
	_Atomic uint64_t stop_deadline_ms;
};

static int epoll_add(struct socket_door *d, int fd, uint32_t events, void *what)
{
	struct epoll_event e = {.events = events, .data.ptr = what};
	return epoll_ctl(d->epoll_fd, EPOLL_CTL_ADD, fd, &e) ? -errno : 0;
}

static void listen_pause(struct socket_door *d)
{
	for (size_t i = 0; i < d->n_listeners && d->listening; i++)
		epoll_ctl(d->epoll_fd, EPOLL_CTL_DEL, d->listen_fds[i], NULL);
	d->listening = false;
}

static int listen_resume(struct socket_door *d)
{
	int r = 0;
	for (size_t i = 0; i < d->n_listeners && !d->listening && !r; i++)
		r = epoll_add(d, d->listen_fds[i], EPOLLIN, &d->listen_fds[i]);
	d->listening = true;
	return r;
}

static void connection_add(struct socket_door *d, int fd, bool encrypted)
{
	const int yes = 1;
	struct connection *c = NULL;
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);    // fails on unix sockets, which do not need it
	setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &yes, sizeof yes);    // a client may rest for days; one whose machine is gone may not
	if (d->n_connections >= d->max_connections || connection_new(&d->context, fd, encrypted, &c)) {
		close(fd);
		return;
	}
	c->epoll_events = EPOLLIN;
	if (epoll_add(d, fd, EPOLLIN, c)) {
		connection_close(c);
		connection_free(c);
		return;
	}
	c->next = d->connections;
	if (c->next)
		c->next->previous = c;
	d->connections = c;
	d->n_connections++;
}

// Up to a fair share: who connects faster than we accept would never let us go. epoll shows the rest again.
static void accept_some(struct socket_door *d, size_t listener)
{
	for (int i = 0; i < ACCEPT_SHARE; i++) {
		int fd = accept4(d->listen_fds[listener], NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
		if (fd >= 0) {
			connection_add(d, fd, d->encrypted[listener]);
		} else if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
			listen_pause(d);    // until the next tick: a listener that stays readable would keep us spinning
			return;
		} else if (errno != EINTR && errno != ECONNABORTED) {
			return;
		}
	}
}

static void connection_remove(struct socket_door *d, struct connection *c)
{
	if (c->next)
		c->next->previous = c->previous;
	*(c->previous ? &c->previous->next : &d->connections) = c->next;
	d->n_connections--;
	connection_free(c);
}

// After every turn: frees the dead, tells epoll what the others wait for.
static void tidy(struct socket_door *d)
{
	struct connection *next;
	d->pending = false;
	for (struct connection *c = d->connections; c; c = next) {
		next = c->next;
		if (connection_is_dead(c)) {
			connection_remove(d, c);
			continue;
		}
		c->n_turn = 0;
		d->pending |= connection_has_input(c);
		struct epoll_event e = {.events = (connection_wants_read(c) ? EPOLLIN : 0u) | (connection_wants_write(c) ? EPOLLOUT : 0u),
					.data.ptr = c};
		if (c->state == CONNECTION_CLOSED || e.events == c->epoll_events)
			continue;
		if (epoll_ctl(d->epoll_fd, EPOLL_CTL_MOD, c->transport.fd, &e))
			connection_close(c);
		c->epoll_events = e.events;
	}
}

static void clear_eventfd(int fd)
{
	uint64_t n;
	while (read(fd, &n, sizeof n) < 0 && errno == EINTR)
		;
}

static void handle_event(struct socket_door *d, const struct epoll_event *e)
{
	void *what = e->data.ptr;
	int *fd = what;
	if (fd >= d->listen_fds && fd < d->listen_fds + d->n_listeners) {
		accept_some(d, (size_t)(fd - d->listen_fds));
	} else if (what == &d->returned_fd || what == &d->stop_fd) {
		clear_eventfd(*fd);
	} else {
		struct connection *c = what;
		if (c->state != CONNECTION_CLOSED && e->events & (EPOLLERR | EPOLLHUP) && !(e->events & EPOLLIN))
			connection_close(c);
		if (c->state != CONNECTION_CLOSED && e->events & EPOLLOUT)
			connection_write(c);
		if (c->state != CONNECTION_CLOSED && e->events & EPOLLIN)
			connection_read(c);
	}
}

// A record of TLS is decrypted whole; what a turn left of it lies in the process.
static void read_pending(struct socket_door *d)
{
	for (struct connection *c = d->connections; c && d->pending; c = c->next)
		if (connection_has_input(c))
			connection_read(c);
}

static void loop_once(struct socket_door *d)
{
	struct epoll_event events[MAX_EVENTS];
	struct queue_item *item;
	struct desk_job *job;
	int n = epoll_wait(d->epoll_fd, events, MAX_EVENTS, d->pending ? 0 : TICK_MS);
	d->context.settings = service_doors(d->context.service);
	for (int i = 0; i < n; i++)
		handle_event(d, &events[i]);
	read_pending(d);
	while ((item = queue_pop(d->context.returned, false)))
		connection_returned((struct request_item *)item);
	while ((job = desk_take(d->context.desk)))
		connection_worked(job);
	tidy(d);
}

static void tick(struct socket_door *d)
{
	uint64_t now = clock_ms();
	for (struct connection *c = d->connections; c; c = c->next)
		connection_check_deadlines(c, now);
	tidy(d);
}

static bool any_busy(const struct socket_door *d)
{
	for (const struct connection *c = d->connections; c; c = c->next)
		if (connection_is_busy(c))
			return true;
	return false;
}

static void close_listeners(struct socket_door *d)
{
	for (size_t i = 0; i < d->n_listeners; i++)
		address_close(d->listen_fds[i], d->inherited);
	d->n_listeners = 0;
}

static void finish(struct socket_door *d)
{
	listen_pause(d);
	close_listeners(d);
	for (struct connection *c = d->connections; c; c = c->next)
		connection_goaway(c);
	while (any_busy(d) && clock_ms() < atomic_load(&d->stop_deadline_ms)) {
		loop_once(d);
		tick(d);
	}
	for (struct connection *c = d->connections; c; c = c->next)
		connection_close(c);
	while (d->connections)
		loop_once(d);    // until everything is back from the other threads
}

static void *socket_loop(void *arg)
{
	struct socket_door *d = arg;
	uint64_t looked = clock_ms();
	pthread_setname_np(pthread_self(), "socket");
	while (!atomic_load(&d->stop_deadline_ms)) {
		loop_once(d);
		if (clock_ms() - looked < TICK_MS)
			continue;
		listen_resume(d);
		tick(d);
		looked = clock_ms();
	}
	finish(d);
	return NULL;
}

static void socket_free(struct socket_door *d)
{
	desk_close(d->context.desk);
	queue_close(d->context.returned);
	if (d->epoll_fd >= 0)
		close(d->epoll_fd);
	if (d->returned_fd >= 0)
		close(d->returned_fd);
	if (d->stop_fd >= 0)
		close(d->stop_fd);
	free(d);
}

static int socket_init(struct socket_door *d, struct error *err)
{
	int r;
	d->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	d->returned_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	d->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (d->epoll_fd < 0 || d->returned_fd < 0 || d->stop_fd < 0)
		return error_system(err, errno, "socket", "epoll");
	if (queue_open(NULL, d->returned_fd, &d->context.returned))
		return error_set(err, ERROR_MEMORY, "socket", "no memory for the binary door");
	if ((r = epoll_add(d, d->returned_fd, EPOLLIN, &d->returned_fd)) || (r = epoll_add(d, d->stop_fd, EPOLLIN, &d->stop_fd)) ||
	    (r = listen_resume(d)))
		return error_system(err, r, "socket", "epoll");
	// A small call stays in its line, however long that is: a client has its share of a turn (connection_read).
	if ((r = desk_open(d->returned_fd, INFINITY, &d->context.desk, err)))
		return r;
	if ((r = pthread_create(&d->thread, NULL, socket_loop, d)))
		return error_system(err, r, "socket", "cannot start the socket thread");
	return 0;
}

int socket_open(const struct socket_options *options, struct service *service, struct socket_door **ret_door, struct error *err)
{
	struct socket_door *d = calloc(1, sizeof *d);
	if (!d)
		return error_set(err, ERROR_MEMORY, "socket", "no memory for the binary door");
	d->context = (struct connection_context){.service = service, .settings = service_doors(service), .tls = options->tls,
						 .complaints = &d->complaints};
	d->max_connections = options->max_connections;
	d->inherited = options->inherited;
	for (size_t i = 0; i < options->n_listen_fds; i++) {
		d->encrypted[d->n_listeners] = options->tls && tls_current_is_on(options->tls) && !address_is_unix(options->listen_fds[i]);
		d->listen_fds[d->n_listeners++] = options->listen_fds[i];
	}
	int r = socket_init(d, err);
	if (r)
		socket_free(d);
	else
		*ret_door = d;
	return r;
}

void socket_close(struct socket_door *d, uint64_t deadline_ms)
{
	const uint64_t one = 1;
	if (!d)
		return;
	atomic_store(&d->stop_deadline_ms, deadline_ms ? deadline_ms : 1);
	if (write(d->stop_fd, &one, sizeof one) < 0)
		atomic_store(&d->stop_deadline_ms, 1);    // full: the thread is awake already
	pthread_join(d->thread, NULL);
	socket_free(d);
}
