// SPDX-License-Identifier: Apache-2.0
// One kdserved-worker process: start it with a socket for progress lines, signal and reap it through its pidfd (never by a number that
// could have been given to someone else).
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "daemon/train/run.h"

struct error;

struct process {
	pid_t pid;                     // 0 = none
	int pidfd, progress_fd;        // -1 = none; non-blocking, close-on-exec
	char line[RUN_LINE_MAX];       // progress received so far, up to the line's end
	size_t n_line;
	bool skipping;                 // inside a line that is too long: drop it whole
};

void process_init(struct process *p);
// Runs argv[0] (a path) with stdin from /dev/null, stdout and stderr appended to log_path and progress on descriptor 3, in a process
// group of its own so that a terminal's ^C reaches the daemon alone.
int process_start(struct process *p, char *const argv[], const char *log_path, struct error *err);
// Gives each whole line that has arrived to `line`. Returns false once the worker has closed its end.
typedef void process_line_fn(void *arg, const char *line, size_t n);
bool process_read(struct process *p, process_line_fn *line, void *arg);
void process_signal(const struct process *p, int signal);
// Reaps: 0 and the status as waitpid(2) gives it, -EAGAIN while it still runs.
int process_reap(struct process *p, int *ret_status);
void process_done(struct process *p);          // closes the descriptors
