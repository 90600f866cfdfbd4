// SPDX-License-Identifier: Apache-2.0
#include "daemon/stop.h"

#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <unistd.h>

_Atomic int stop_signal;
static int stop_fd;

static void block(int how)
{
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigprocmask(how, &set, NULL);
}

static void leave(const char *why, size_t n)
{
	ssize_t ignored = write(STDERR_FILENO, why, n);
	(void)ignored;
	_exit(EXIT_FAILURE);
}

// What is called here may be called in a handler.
static void on_signal(int signal_number)
{
	static const char again[] = "kdserved: second signal: leaving\n";
	const uint64_t one = 1;
	int before = 0, saved = errno;
	if (!atomic_compare_exchange_strong(&stop_signal, &before, signal_number))
		leave(again, sizeof again - 1);
	ssize_t ignored = write(stop_fd, &one, sizeof one);    // fails when it is full: the loop is awake already
	(void)ignored;
	errno = saved;
}

static void on_alarm(int signal_number)
{
	static const char late[] = "kdserved: the drain deadline passed: leaving\n";
	(void)signal_number;
	leave(late, sizeof late - 1);
}

void stop_block(void)
{
	block(SIG_BLOCK);
}

void stop_watch(int event_fd)
{
	struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
	stop_fd = event_fd;
	sigaction(SIGTERM, &action, NULL);
	sigaction(SIGINT, &action, NULL);
	block(SIG_UNBLOCK);
}

void stop_arm(unsigned seconds)
{
	struct sigaction action = {.sa_handler = on_alarm};
	sigaction(SIGALRM, &action, NULL);
	alarm(seconds);
}
