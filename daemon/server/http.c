// SPDX-License-Identifier: Apache-2.0
// libmicrohttpd runs inside our own loop (its epoll descriptor lies in ours), because two things it cannot do are needed: deadlines that
// a slow trickle does not push back, and seeing that a client left while its connection is suspended. All of it is one thread, so
// nothing here is locked; items come back from other threads through a queue.
#include "daemon/server/http.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/transport.h"
#include "daemon/clock.h"
#include "daemon/queue.h"
#include "daemon/server/address.h"
#include "daemon/server/http_internal.h"
#include "daemon/server/tls.h"
#include "daemon/teacher/request.h"

#define CONNECTION_MEMORY 32768      // of libmicrohttpd, per connection: headers over about half of it get 431
#define TICK_MS 250                  // how often deadlines are looked at
#define MAX_EVENTS 64
#define SPARE_SHARE 4                // a fourth of max-connections
#define FRESH_MS 1000                // a handshake and a request's headers take less
#define ROUND_SECONDS 0.001          // of small work between two looks at the sockets: probes wait for no more
// Once the listener is closed, from the last request that ended until those under way are given up:
#define LAST_WORDS_MS 1000           // some are (small ones: exchanges have the whole drain)
#define NEW_MS 300                   // none but connections that were accepted just before and have not asked yet
#define NEW_INHERITED_MS 1000        // the same, where whoever connects now will not be refused: they should not be either
#define LEFT_MS 1000                 // for bytes of a client who left that are still to be read

struct http_thread { struct http http; pthread_t thread; _Atomic uint64_t stop_deadline_ms; };

// libmicrohttpd does not see a client leave while its connection is suspended, nor (0.9.75 reads on edges, and takes a short read for the
// last) when the end comes with bytes that are no whole request. So each connection is in our own epoll besides.
static void watch(struct http *h, struct http_connection *c)
{
	struct epoll_event e = {.events = EPOLLRDHUP | EPOLLET, .data.ptr = c};
	// Failure only means that a client's leaving is seen later, when its answer is written or its time is over.
	epoll_ctl(h->epoll_fd, EPOLL_CTL_ADD, c->fd, &e);
}

void http_set_deadline(struct http_connection *c, uint64_t ms, bool reading)
{
	if (reading && c->left)
		ms = LEFT_MS;
	c->deadline_ms = ms ? clock_ms() + ms : 0;
}

static void client_left(struct http_connection *c)
{
	struct http_request *q = c->request;
	c->left = true;
	if (q && (q->at_desk || q->exchange))
		http_request_cancel(q);
	else if (!q || q->state == HTTP_HEADERS || q->state == HTTP_BODY)
		http_set_deadline(c, LEFT_MS, true);
}

// libmicrohttpd knows one certificate, that of its start; its session is given the one of now.
static void show_certificate(struct http *h, struct http_connection *c, struct MHD_Connection *mhd)
{
	const union MHD_ConnectionInfo *info = h->encrypted ? MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_GNUTLS_SESSION) : NULL;
	if (!info)
		return;
	c->tls = tls_current_ref(h->options.tls);
	(void)tls_lend(c->tls, info->tls_session);     // without it there is no_certificate(), and the handshake fails
}

static void connection_changed(void *arg, struct MHD_Connection *mhd, void **context, enum MHD_ConnectionNotificationCode what)
{
	struct http *h = arg;
	struct http_connection *c = *context;
	if (what == MHD_CONNECTION_NOTIFY_STARTED) {
		const union MHD_ConnectionInfo *info = MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_CONNECTION_FD);
		if (!info || !(c = calloc(1, sizeof *c)))
			return;    // its requests will be refused: http_request_begin finds no connection
		c->fd = info->connect_fd;
		c->began_ms = clock_ms();
		c->deadline_ms = c->began_ms + h->settings.header_timeout_ms;
		c->next = h->connections;
		if (c->next)
			c->next->previous = c;
		h->connections = c;
		*context = c;
		show_certificate(h, c, mhd);
		watch(h, c);
	} else if (c) {
		epoll_ctl(h->epoll_fd, EPOLL_CTL_DEL, c->fd, NULL);
		if (c->next)
			c->next->previous = c->previous;
		*(c->previous ? &c->previous->next : &h->connections) = c->next;
		tls_close(c->tls);
		free(c);
		*context = NULL;
	}
}

static void cut(struct http_connection *c)
{
	shutdown(c->fd, SHUT_RDWR);    // libmicrohttpd sees the end of the stream and closes
	c->deadline_ms = 0;
}

static void cut_late(struct http *h)
{
	uint64_t now = clock_ms();
	for (struct http_connection *c = h->connections; c; c = c->next)
		if (c->deadline_ms && now >= c->deadline_ms)
			cut(c);
}

// The last quarter of the door is for who is let in: while more is taken, strangers make room, who came first first. Else they could hold
// all of it by asking what is public, and resting. Who has just come is given the time to say who he is.
static void cut_strangers(struct http *h)
{
	uint32_t n = 0, most = h->options.max_connections - h->options.max_connections / SPARE_SHARE;
	uint64_t now = clock_ms();
	struct http_connection *c = h->connections;
	for (; c && c->next; c = c->next)
		n++;
	for (n += c != NULL; c && n > most; c = c->previous)
		if (!c->known && now - c->began_ms >= FRESH_MS) {
			cut(c);
			n--;
		}
}

static bool has_room(const struct http *h)
{
	uint32_t n = 0;
	for (const struct http_connection *c = h->connections; c; c = c->next)
		n++;
	return n < h->options.max_connections;
}

// Without a descriptor for a client, libmicrohttpd accepts no more until one of its connections ends, though descriptors may be there
// again long before. So when clients wait outside while there is room, it is given a connection of nobody's, which ends at once.
static void accept_again(struct http *h)
{
	const struct sockaddr nobody = {.sa_family = AF_UNIX};
	struct pollfd outside = {.fd = h->options.listen_fd, .events = POLLIN};
	int ends[2];
	bool waiting = poll(&outside, 1, 0) > 0 && has_room(h), before = h->waited;
	h->waited = waiting;
	if (!waiting || !before || socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends))
		return;
	close(ends[1]);
	(void)MHD_add_connection(h->daemon, ends[0], &nobody, sizeof nobody);    // which closes it, added or not
}

static void cancel_waiting(struct http *h)
{
	for (struct http_connection *c = h->connections; c; c = c->next)
		if (c->request)
			http_request_cancel(c->request);
}

static void clear_eventfd(int fd)
{
	uint64_t n;
	while (read(fd, &n, sizeof n) < 0 && errno == EINTR)
		;
}

static void take_returned(struct http *h)
{
	struct queue_item *item;
	while ((item = queue_pop(h->returned, false)))
		http_request_returned((struct request_item *)item);
}

static void take_worked(struct http *h)
{
	struct desk_job *job;
	while ((job = desk_take(h->desk)))
		http_request_worked((struct http_request *)job);
}

static int loop_timeout(struct http *h)
{
	MHD_UNSIGNED_LONG_LONG ms;
	return MHD_get_timeout(h->daemon, &ms) == MHD_YES && ms < TICK_MS ? (int)ms : TICK_MS;
}

static void loop_once(struct http *h)
{
	struct epoll_event events[MAX_EVENTS];
	int n = epoll_wait(h->epoll_fd, events, MAX_EVENTS, loop_timeout(h));
	h->settings = service_doors(h->service);
	for (int i = 0; i < n; i++) {
		void *what = events[i].data.ptr;
		if (what == &h->returned_fd || what == &h->stop_fd) {
			clear_eventfd(*(int *)what);
		} else if (what) {
			client_left(what);
		}
	}
	take_returned(h);
	take_worked(h);
	desk_begin_round(h->desk);
	MHD_run(h->daemon);
}

static void stop_listening(struct http *h)
{
	int given = MHD_quiesce_daemon(h->daemon);
	if (given >= 0)
		close(given);
	address_close(h->options.listen_fd, h->options.inherited);
}

static bool any_new(const struct http *h)
{
	for (const struct http_connection *c = h->connections; c; c = c->next)
		if (!c->asked && !c->left)
			return true;
	return false;
}

// On a busy machine the last requests take their time; they are waited for while any of them end.
static void finish_small(struct http *h, uint64_t deadline)
{
	uint64_t moved = clock_ms(), n_ended = h->n_ended, new_ms = h->options.inherited ? NEW_INHERITED_MS : NEW_MS;
	h->finishing = true;
	while ((h->n_requests || any_new(h)) && clock_ms() < deadline && clock_ms() - moved < (h->n_requests ? LAST_WORDS_MS : new_ms)) {
		loop_once(h);
		if (h->n_ended != n_ended)
			moved = clock_ms();
		n_ended = h->n_ended;
	}
}

// After the stop: answer the exchanges under way (still listening, so that /ready can say 503, unless another process will), stop
// listening, let small requests end, cancel what is left and wait until it is back from other threads.
static void finish(struct http_thread *t)
{
	struct http *h = &t->http;
	uint64_t deadline = atomic_load(&t->stop_deadline_ms);
	if (h->options.inherited)
		stop_listening(h);
	while ((h->n_exchanges || !desk_is_empty(h->desk)) && clock_ms() < deadline) {
		loop_once(h);
		cut_late(h);
	}
	if (!h->options.inherited)
		stop_listening(h);
	finish_small(h, deadline);
	cancel_waiting(h);
	while (h->n_waiting || !desk_is_empty(h->desk))
		loop_once(h);
}

static void *http_loop(void *arg)
{
	struct http_thread *t = arg;
	struct http *h = &t->http;
	uint64_t looked = clock_ms();
	pthread_setname_np(pthread_self(), "http");
	while (!atomic_load(&t->stop_deadline_ms)) {
		loop_once(h);
		if (clock_ms() - looked >= TICK_MS) {
			cut_late(h);
			cut_strangers(h);
			accept_again(h);
			looked = clock_ms();
		}
	}
	finish(t);
	MHD_stop_daemon(h->daemon);
	return NULL;
}

static int epoll_add(struct http *h, int fd, void *what)
{
	struct epoll_event e = {.events = EPOLLIN, .data.ptr = what};
	return epoll_ctl(h->epoll_fd, EPOLL_CTL_ADD, fd, &e) ? -errno : 0;
}

// A gnutls_certificate_retrieve_function2 for a session without a certificate: GnuTLS ends the handshake.
static int no_certificate(void *session, const void *authorities, int n_authorities, const void *algorithms, int n_algorithms,
			  void *ret_chain, unsigned *ret_n, void *ret_key)
{
	(void)session, (void)authorities, (void)n_authorities, (void)algorithms, (void)n_algorithms, (void)ret_chain,
		(void)ret_n, (void)ret_key;
	return -1;
}

// A copy of the listener that libmicrohttpd may have closed, and who knows what has its number by now.
static void close_copy(int fd, int listen_fd)
{
	struct stat copy, original;
	if (!fstat(fd, &copy) && !fstat(listen_fd, &original) && copy.st_dev == original.st_dev && copy.st_ino == original.st_ino)
		close(fd);
}

static int start_daemon(struct http *h, struct error *err)
{
	struct MHD_OptionItem encrypted[] = {{MHD_OPTION_HTTPS_CERT_CALLBACK, 0, (void *)no_certificate},
		{MHD_OPTION_HTTPS_PRIORITIES, 0, (char[]){TLS_PRIORITIES}}, {MHD_OPTION_END, 0, NULL}};
	h->encrypted = h->options.tls && tls_current_is_on(h->options.tls);
	if (h->encrypted && MHD_is_feature_supported(MHD_FEATURE_TLS) != MHD_YES)
		return error_set(err, ERROR_UNSUPPORTED, "tls-certificate", "tls-certificate: this libmicrohttpd was built without TLS");
	// One of its own, for it to close: it does so when it is stopped, and in some of its failures.
	int listen_fd = fcntl(h->options.listen_fd, F_DUPFD_CLOEXEC, 0);
	if (listen_fd < 0)
		return error_system(err, errno, "http", "the listening socket");
	unsigned flags = MHD_USE_EPOLL | MHD_ALLOW_SUSPEND_RESUME | (h->encrypted ? MHD_USE_TLS : 0u);
	h->daemon = MHD_start_daemon(flags, 0, NULL, NULL, http_request_handle, h,
				     MHD_OPTION_LISTEN_SOCKET, (MHD_socket)listen_fd,
				     MHD_OPTION_CONNECTION_LIMIT, (unsigned)h->options.max_connections,
				     MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)CONNECTION_MEMORY,
				     MHD_OPTION_STRICT_FOR_CLIENT, 1,
				     MHD_OPTION_URI_LOG_CALLBACK, http_request_begin, h,
				     MHD_OPTION_NOTIFY_COMPLETED, http_request_end, h,
				     MHD_OPTION_NOTIFY_CONNECTION, connection_changed, h,
				     MHD_OPTION_ARRAY, h->encrypted ? encrypted : &encrypted[2],
				     MHD_OPTION_END);
	if (!h->daemon) {
		close_copy(listen_fd, h->options.listen_fd);
		return error_set(err, ERROR_IO, "http", "libmicrohttpd did not start");
	}
	const union MHD_DaemonInfo *info = MHD_get_daemon_info(h->daemon, MHD_DAEMON_INFO_EPOLL_FD);
	if (!info)
		return error_set(err, ERROR_IO, "http", "libmicrohttpd has no epoll descriptor");
	int r = epoll_add(h, info->epoll_fd, NULL);
	return r ? error_system(err, r, "http", "epoll") : 0;
}

static void http_free(struct http_thread *t)
{
	desk_close(t->http.desk);
	queue_close(t->http.returned);
	if (t->http.epoll_fd >= 0)
		close(t->http.epoll_fd);
	if (t->http.returned_fd >= 0)
		close(t->http.returned_fd);
	if (t->http.stop_fd >= 0)
		close(t->http.stop_fd);
	free(t);
}

int http_open(const struct http_options *options, struct service *service, struct http **ret_http, struct error *err)
{
	struct http_thread *t = calloc(1, sizeof *t);
	if (!t)
		return error_set(err, ERROR_MEMORY, "http", "no memory for the HTTP door");
	struct http *h = &t->http;
	h->options = *options;
	h->service = service;
	h->settings = service_doors(service);
	h->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	h->returned_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	h->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	int r = 0;
	if (h->epoll_fd < 0 || h->returned_fd < 0 || h->stop_fd < 0)
		r = error_system(err, errno, "http", "epoll");
	if (!r && queue_open(NULL, h->returned_fd, &h->returned))
		r = error_set(err, ERROR_MEMORY, "http", "no memory for the HTTP door");
	if (!r && (epoll_add(h, h->returned_fd, &h->returned_fd) || epoll_add(h, h->stop_fd, &h->stop_fd)))
		r = error_system(err, errno, "http", "epoll");
	if (!r)
		r = desk_open(h->returned_fd, ROUND_SECONDS, &h->desk, err);
	if (!r)
		r = start_daemon(h, err);
	if (!r && (r = pthread_create(&t->thread, NULL, http_loop, t)))
		r = error_system(err, r, "http", "cannot start the http thread");
	if (r) {
		if (h->daemon)
			MHD_stop_daemon(h->daemon);
		http_free(t);
		return r;
	}
	*ret_http = h;
	return 0;
}

void http_stop(struct http *h, uint64_t deadline_ms)
{
	const uint64_t one = 1;
	struct http_thread *t = (struct http_thread *)h;    // http is its first member
	if (!t)
		return;
	atomic_store(&t->stop_deadline_ms, deadline_ms ? deadline_ms : 1);
	if (write(h->stop_fd, &one, sizeof one) < 0)
		atomic_store(&t->stop_deadline_ms, 1);    // full: the thread is awake already
}

void http_close(struct http *h, uint64_t deadline_ms)
{
	struct http_thread *t = (struct http_thread *)h;
	if (!t)
		return;
	http_stop(h, deadline_ms);
	pthread_join(t->thread, NULL);
	http_free(t);
}
