// SPDX-License-Identifier: Apache-2.0
// A door that does not open leaves its listener to whoever opened that, and nothing else open: each call of those below fails once.
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>

#include "common/error.h"
#include "daemon/server/address.h"
#include "daemon/server/http.h"
#include "daemon/server/service.h"
#include "daemon/server/socket.h"
#include "tests/unit/leftovers.h"

#define MOST_CALLS 20

static unsigned n_left;          // calls that succeed before the one that fails; 0 = this one
static bool armed;

int __wrap_pthread_create(pthread_t *t, const pthread_attr_t *a, void *(*run)(void *), void *arg);
int __real_pthread_create(pthread_t *t, const pthread_attr_t *a, void *(*run)(void *), void *arg);
int __wrap_epoll_ctl(int epoll_fd, int what, int fd, struct epoll_event *event);
int __real_epoll_ctl(int epoll_fd, int what, int fd, struct epoll_event *event);

static bool must_fail(void)
{
	if (!armed || n_left--)
		return false;
	armed = false;
	return true;
}

int __wrap_pthread_create(pthread_t *t, const pthread_attr_t *a, void *(*run)(void *), void *arg)
{
	return must_fail() ? EAGAIN : __real_pthread_create(t, a, run, arg);
}

int __wrap_epoll_ctl(int epoll_fd, int what, int fd, struct epoll_event *event)
{
	if (!must_fail())
		return __real_epoll_ctl(epoll_fd, what, fd, event);
	errno = ENOSPC;
	return -1;
}

static struct service *service;
static char path[] = "/tmp/kdserved-doors-XXXXXX", text[sizeof path + 16];

struct door {
	int (*open)(int fd, void **ret_door);
	void (*close)(void *door);
};

static int http_start(int fd, void **ret_door)
{
	struct error err = {0};
	const struct http_options o = {.listen_fd = fd, .max_connections = 4};
	return http_open(&o, service, (struct http **)ret_door, &err);
}

static void http_end(void *door) { http_close(door, 1); }

static int socket_start(int fd, void **ret_door)
{
	struct error err = {0};
	const struct socket_options o = {.listen_fds = &fd, .n_listen_fds = 1, .max_connections = 4};
	return socket_open(&o, service, (struct socket_door **)ret_door, &err);
}

static void socket_end(void *door) { socket_close(door, 1); }

static int listener(void)
{
	struct address a;
	struct error err;
	int fd = -1;
	assert_int_equal(address_parse(text, "http", &a, &err), 0);
	assert_int_equal(address_listen(&a, "http", &fd, &err), 0);
	return fd;
}

static bool is_listening(int fd)
{
	struct stat file;
	char bound[ADDRESS_TEXT];
	address_of_socket(fd, bound);
	return strcmp(bound, text) == 0 && stat(text + 5, &file) == 0;
}

static void each_call_fails(const struct door *door)
{
	int fd = listener();
	unsigned n_before = descriptors_count(), n_failed = 0;
	void *opened = NULL;
	for (;; n_failed++) {
		n_left = n_failed;
		armed = true;
		int r = door->open(fd, &opened);
		armed = false;
		if (r == 0)
			break;
		assert_true(is_listening(fd));
		assert_int_equal(descriptors_count(), n_before);
		assert_in_range(n_failed, 0, MOST_CALLS);
	}
	assert_true(n_failed > 3);
	door->close(opened);
	assert_int_equal(descriptors_count(), n_before - 1);       // what was taken over is closed
	assert_int_equal(access(text + 5, F_OK), -1);
}

// libmicrohttpd's own calls too. In some failures it leaves open what it was given.
static void each_descriptor_fails(const struct door *door)
{
	struct rlimit all, few;
	int fd = listener(), r = -1;
	unsigned n_before = descriptors_count();
	void *opened = NULL;
	assert_int_equal(getrlimit(RLIMIT_NOFILE, &all), 0);
	few = all;
	for (unsigned n = 0; r; n++) {
		few.rlim_cur = n_before - 3 + n;        // without ".", ".." and its own
		assert_int_equal(setrlimit(RLIMIT_NOFILE, &few), 0);
		r = door->open(fd, &opened);
		assert_int_equal(setrlimit(RLIMIT_NOFILE, &all), 0);
		assert_true(is_listening(fd));
		assert_true(r == 0 || descriptors_count() == n_before);
		assert_in_range(n, 0, MOST_CALLS);
	}
	door->close(opened);
	assert_int_equal(access(text + 5, F_OK), -1);
}

static const struct door http = {http_start, http_end}, frames = {socket_start, socket_end};

static void http_that_does_not_open_leaves_its_listener(void **state)
{
	(void)state;
	each_call_fails(&http);
	each_descriptor_fails(&http);
}

static void frames_that_do_not_open_leave_their_listener(void **state)
{
	(void)state;
	each_call_fails(&frames);
	each_descriptor_fails(&frames);
}

static int setup(void **state)
{
	struct error err;
	const struct service_options o = {.doors = {.max_json = 1 << 20, .max_body = 1 << 20, .credits = 4}};
	(void)state;
	if (!mkdtemp(path))
		return -1;
	snprintf(text, sizeof text, "unix:%s/door", path);
	return service_open(&o, NULL, NULL, NULL, &service, &err);
}

static int teardown(void **state)
{
	(void)state;
	service_close(service);
	return rmdir(path);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(http_that_does_not_open_leaves_its_listener),
		cmocka_unit_test(frames_that_do_not_open_leave_their_listener),
	};
	return cmocka_run_group_tests(tests, setup, teardown);
}
