// SPDX-License-Identifier: Apache-2.0
// Runs kdclient for Python where a format needs a library of Python's.
#include <errno.h>
#include <fcntl.h>
#include <spawn.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "clients/kdctl/store_transfer.h"

extern char **environ;

static int explain(const struct kdctl *k, int status)
{
	if (WIFSIGNALED(status))
		return kdctl_fail(k, "python3 was ended by signal %d", WTERMSIG(status));
	if (WEXITSTATUS(status) == 127)
		return kdctl_fail(k, "python3 cannot be run: this format is read and written by kdclient for Python");
	return kdctl_fail(k, "python3 -m kdclient.export did not do it (exit status %d): it needs kdclient for Python (pip install clients/python) "
			  "with numpy, and for parquet pyarrow", WEXITSTATUS(status));
}

static int start(const char *const *arguments, int out, pid_t *ret_pid)
{
	posix_spawn_file_actions_t actions;
	int r = posix_spawn_file_actions_init(&actions);
	if (r)
		return r;
	if (out >= 0)
		r = posix_spawn_file_actions_adddup2(&actions, out, STDOUT_FILENO);
	if (!r)
		r = posix_spawnp(ret_pid, arguments[0], &actions, NULL, (char *const *)arguments, environ);
	posix_spawn_file_actions_destroy(&actions);
	return r;
}

int python_run(struct kdctl *k, const char *const *arguments, int (*take)(void *arg, FILE *f), void *arg)
{
	int ends[2] = {-1, -1}, status = 0, waited;
	pid_t pid;
	FILE *f = NULL;
	if (take && (pipe2(ends, O_CLOEXEC) || !(f = fdopen(ends[0], "r"))))
		return kdctl_fail(k, "no pipe to python3: %s", strerror(errno));
	int r = start(arguments, ends[1], &pid);
	if (take)
		close(ends[1]);
	if (r) {
		if (f)
			fclose(f);
		return kdctl_fail(k, "python3: %s: this format is read and written by kdclient for Python", strerror(r));
	}
	if (take) {
		status = take(arg, f);
		fclose(f);             // should there be more, it dies of the closed pipe
	}
	while (waitpid(pid, &waited, 0) < 0 && errno == EINTR)
		;
	return status ? status : waited ? explain(k, waited) : 0;
}
