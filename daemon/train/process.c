// SPDX-License-Identifier: Apache-2.0
#include "daemon/train/process.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/pidfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/error.h"

#define PROCESS_PROGRESS_FD 3

void process_init(struct process *p)
{
	*p = (struct process){.pidfd = -1, .progress_fd = -1};
}

void process_done(struct process *p)
{
	if (p->pidfd >= 0)
		close(p->pidfd);
	if (p->progress_fd >= 0)
		close(p->progress_fd);
	process_init(p);
}

static int actions_fill(posix_spawn_file_actions_t *a, int log_fd, int socket_fd)
{
	int r = posix_spawn_file_actions_addopen(a, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
	r = r ? r : posix_spawn_file_actions_adddup2(a, log_fd, STDOUT_FILENO);
	r = r ? r : posix_spawn_file_actions_adddup2(a, log_fd, STDERR_FILENO);
	r = r ? r : posix_spawn_file_actions_adddup2(a, socket_fd, PROCESS_PROGRESS_FD);
	return r ? r : posix_spawn_file_actions_addclosefrom_np(a, PROCESS_PROGRESS_FD + 1);
}

// The daemon blocks signals it reads elsewhere and ignores SIGPIPE; a worker starts with everything as usual.
static int attributes_fill(posix_spawnattr_t *a)
{
	sigset_t none, all;
	sigemptyset(&none);
	sigfillset(&all);
	int r = posix_spawnattr_setsigmask(a, &none);
	r = r ? r : posix_spawnattr_setsigdefault(a, &all);
	r = r ? r : posix_spawnattr_setpgroup(a, 0);
	return r ? r : posix_spawnattr_setflags(a, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETPGROUP);
}

static int spawn(pid_t *ret_pid, char *const argv[], int log_fd, int socket_fd)
{
	posix_spawn_file_actions_t actions;
	posix_spawnattr_t attributes;
	int r = posix_spawn_file_actions_init(&actions);
	if (r)
		return -r;
	r = posix_spawnattr_init(&attributes);
	if (r == 0) {
		r = actions_fill(&actions, log_fd, socket_fd);
		r = r ? r : attributes_fill(&attributes);
		r = r ? r : posix_spawn(ret_pid, argv[0], &actions, &attributes, argv, environ);
		posix_spawnattr_destroy(&attributes);
	}
	posix_spawn_file_actions_destroy(&actions);
	return -r;
}

int process_start(struct process *p, char *const argv[], const char *log_path, struct error *err)
{
	int pair[2] = {-1, -1}, r = 0;
	int log_fd = open(log_path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0640);
	if (log_fd < 0)
		return error_system(err, errno, NULL, "cannot open the run's log");
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0 || fcntl(pair[0], F_SETFL, O_NONBLOCK) < 0) {
		r = error_system(err, errno, NULL, "cannot make the worker's socket");
		goto out;
	}
	r = spawn(&p->pid, argv, log_fd, pair[1]);
	if (r) {
		p->pid = 0;
		r = error_system(err, r, NULL, "cannot start %s", argv[0]);
		goto out;
	}
	p->pidfd = pidfd_open(p->pid, 0);
	if (p->pidfd < 0) {            // no descriptor left: it could not be watched
		r = error_system(err, errno, NULL, "cannot watch the worker");
		kill(p->pid, SIGKILL);
		waitpid(p->pid, NULL, 0);
		p->pid = 0;
		goto out;
	}
	p->progress_fd = pair[0];
	pair[0] = -1;
out:
	close(log_fd);
	for (int i = 0; i < 2; i++)
		if (pair[i] >= 0)
			close(pair[i]);
	return r;
}

static void take_bytes(struct process *p, const char *bytes, size_t n, process_line_fn *line, void *arg)
{
	for (size_t i = 0; i < n; i++) {
		if (bytes[i] != '\n') {
			if (p->n_line < sizeof p->line)
				p->line[p->n_line++] = bytes[i];
			else
				p->skipping = true;
			continue;
		}
		if (!p->skipping && p->n_line)
			line(arg, p->line, p->n_line);
		p->n_line = 0;
		p->skipping = false;
	}
}

bool process_read(struct process *p, process_line_fn *line, void *arg)
{
	char bytes[4096];
	for (int turn = 0; turn < 16; turn++) {        // a worker that floods gets the next turn, not this whole one
		ssize_t n = recv(p->progress_fd, bytes, sizeof bytes, 0);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return errno == EAGAIN;
		if (n == 0)
			return false;
		take_bytes(p, bytes, (size_t)n, line, arg);
	}
	return true;
}

void process_signal(const struct process *p, int number)
{
	if (p->pidfd >= 0)
		pidfd_send_signal(p->pidfd, number, NULL, 0);
}

int process_reap(struct process *p, int *ret_status)
{
	pid_t got;
	do
		got = waitpid(p->pid, ret_status, WNOHANG);
	while (got < 0 && errno == EINTR);
	if (got == 0)
		return -EAGAIN;
	if (got < 0)                   // someone else reaped it: how it ended is unknown, which is not success
		*ret_status = 1 << 8;
	p->pid = 0;
	return 0;
}
