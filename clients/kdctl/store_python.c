// SPDX-License-Identifier: Apache-2.0
// Runs kdclient for Python where a format needs a library of Python's.
#include <errno.h>
#include <fcntl.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "clients/kdctl/store_transfer.h"

extern char **environ;

const char *python_interpreter(void)
{
	const char *python = getenv("KDSERVED_PYTHON");
	return python && *python ? python : "python3";
}

// out: what becomes its standard output, -1 = ours; quiet: nothing of its errors is seen.
static int start(const char *const *arguments, int out, bool quiet, pid_t *ret_pid)
{
	posix_spawn_file_actions_t actions;
	int r = posix_spawn_file_actions_init(&actions);
	if (r)
		return r;
	if (out >= 0)
		r = posix_spawn_file_actions_adddup2(&actions, out, STDOUT_FILENO);
	if (!r && quiet)
		r = posix_spawn_file_actions_addopen(&actions, STDERR_FILENO, "/dev/null", O_WRONLY, 0);
	if (!r)
		r = posix_spawnp(ret_pid, arguments[0], &actions, NULL, (char *const *)arguments, environ);
	posix_spawn_file_actions_destroy(&actions);
	return r;
}

// An exit status; 128 when a signal ended it.
static int wait_for(pid_t pid)
{
	int status;
	while (waitpid(pid, &status, 0) < 0)
		if (errno != EINTR)
			return 128;
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128;
}

// Python's own words about a missing module are a page long.
static int check_module(struct kdctl *k, const char *python)
{
	const char *const arguments[] = {python, "-c", "import kdclient.export", NULL};
	pid_t pid;
	int r = start(arguments, -1, true, &pid);
	if (r)
		return kdctl_fail(k, "%s: %s: kdclient for Python reads and writes this format", python, strerror(r));
	if (wait_for(pid))
		return kdctl_fail(k, "%s has no kdclient, which reads and writes this format: "
				  "pip install clients/python (with numpy; pyarrow for parquet)", python);
	return 0;
}

int python_run(struct kdctl *k, const char *const *arguments, int (*take)(void *arg, FILE *f), void *arg)
{
	int ends[2] = {-1, -1}, status = check_module(k, arguments[0]);
	pid_t pid;
	FILE *f = NULL;
	if (status)
		return status;
	if (take && (pipe2(ends, O_CLOEXEC) || !(f = fdopen(ends[0], "r"))))
		return kdctl_fail(k, "no pipe to %s: %s", arguments[0], strerror(errno));
	int r = start(arguments, ends[1], false, &pid);
	if (take)
		close(ends[1]);
	if (!r && take)
		status = take(arg, f);
	if (f)
		fclose(f);             // should there be more, it dies of the closed pipe
	if (r)
		return kdctl_fail(k, "%s: %s", arguments[0], strerror(r));
	r = wait_for(pid);
	if (r > 2 && !status)          // it says itself why it gives up with 1 or 2
		status = kdctl_fail(k, "%s -m kdclient.export ended in the middle of its work", arguments[0]);
	return status ? status : r;
}
