// SPDX-License-Identifier: Apache-2.0
#include "daemon/train/entry.h"

#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "common/error.h"
#include "daemon/clock.h"

#define WORKER_USAGE 2                 // exit statuses of kdserved-worker(8)
#define WORKER_BAD_CONFIG 78

int entry_new(const char *id, struct entry **ret)
{
	struct entry *e = calloc(1, sizeof *e);
	if (!e)
		return -ENOMEM;
	process_init(&e->process);
	if (run_init(&e->run, id)) {
		entry_free(e);
		return -ENOMEM;
	}
	*ret = e;
	return 0;
}

struct entry *entry_free(struct entry *e)
{
	if (e) {
		run_done(&e->run);
		process_done(&e->process);
		free(e);
	}
	return NULL;
}

void entry_finish(struct entry *e, const struct entry_context *c, enum run_state state, const char *reason)
{
	e->run.state = state;
	e->run.pid = 0;
	e->run.finished = (double)time(NULL);
	snprintf(e->run.reason, sizeof e->run.reason, "%s", reason);
	run_save(c->directory, &e->run, true, NULL);   // a full disk must not stop the daemon: memory has it, a restart says "interrupted"
}

// argv of one worker; the strings are the context's or the caller's.
static void arguments_fill(const struct entry *e, const struct entry_context *c, const char *folder, const char *config,
			   const char *argv[12])
{
	int n = 0;
	argv[n++] = c->worker_path;
	argv[n++] = "--config";
	argv[n++] = config;
	argv[n++] = "--output";
	argv[n++] = folder;
	if (c->server_address) {       // only where run.conf names no server
		argv[n++] = "--default-server";
		argv[n++] = c->server_address;
	}
	argv[n++] = "--progress-fd";
	argv[n++] = "3";
	if (e->run.resume)
		argv[n++] = "--resume";
	argv[n] = NULL;
}

static int worker_start(struct entry *e, const struct entry_context *c, struct error *err)
{
	char folder[RUN_PATH_MAX], config[RUN_PATH_MAX], log_path[RUN_PATH_MAX];
	const char *argv[12];
	struct stat st;
	int r = run_path(c->directory, e->run.id, "", folder);
	r = r ? r : run_path(c->directory, e->run.id, "run.conf", config);
	r = r ? r : run_path(c->directory, e->run.id, "log", log_path);
	if (r)
		return error_system(err, r, e->run.id, "the path of the run is too long");
	arguments_fill(e, c, folder, config, argv);
	e->log_from = stat(log_path, &st) == 0 ? st.st_size : 0;
	return process_start(&e->process, (char *const *)argv, log_path, err);
}

int entry_start(struct entry *e, const struct entry_context *c)
{
	struct error err = {0};
	e->run.started = (double)time(NULL);
	e->run.finished = 0;
	e->run.reason[0] = '\0';
	e->stopping = false;
	e->step_seconds = c->step_seconds;
	e->reported_step = 0;
	e->reported_ms = 0;
	json_object_del(e->run.progress, "state");     // what an earlier worker said of its end
	json_object_del(e->run.progress, "fault");
	int r = worker_start(e, c, &err);
	if (r) {
		entry_finish(e, c, RUN_FAILED, err.message);
		return r;
	}
	e->run.state = RUN_RUNNING;
	e->run.pid = e->process.pid;
	run_save(c->directory, &e->run, true, NULL);
	return 0;
}

static void reason_of_signal(int number, const char *line, char *ret_reason, size_t size)
{
	const char *name = sigabbrev_np(number);
	snprintf(ret_reason, size, "killed by signal %d (SIG%s)%s%s", number, name ? name : "?", *line ? ": " : "", line);
}

// The sentence of an error line: what a worker's log puts before it ("kdserved-worker: error: ") is no reason.
static const char *line_sentence(const char *line)
{
	static const char *const heads[] = {"kdserved-worker: ", "error: "};
	for (size_t i = 0; i < sizeof heads / sizeof *heads; i++)
		if (strncmp(line, heads[i], strlen(heads[i])) == 0)
			line += strlen(heads[i]);
	return line;
}

static void reason_of_status(int code, const char *line, char *ret_reason, size_t size)
{
	if (*line)
		snprintf(ret_reason, size, "%s", line_sentence(line));
	else
		snprintf(ret_reason, size, "exit status %d", code);
}

// The worker says so itself where the settings, or what they name, are at fault; usage and bad settings have statuses of their own.
static bool is_own_fault(const struct entry *e, int code)
{
	const char *fault = json_string_value(json_object_get(e->run.progress, "fault"));
	return code == WORKER_USAGE || code == WORKER_BAD_CONFIG || (fault && strcmp(fault, "settings") == 0);
}

// A worker that was asked to stop says "stopped" in its last progress line and leaves with 0.
enum run_state entry_classify(struct entry *e, const struct entry_context *c, int status, char ret_reason[ENTRY_REASON_MAX],
			      bool *ret_again)
{
	char line[RUN_REASON_MAX];
	const char *said = json_string_value(json_object_get(e->run.progress, "state"));
	bool ended = e->stopping && WIFSIGNALED(status) && (WTERMSIG(status) == SIGTERM || WTERMSIG(status) == SIGKILL);
	*ret_reason = '\0';
	*ret_again = false;
	if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
		return said && strcmp(said, "stopped") == 0 ? RUN_STOPPED : RUN_SUCCEEDED;
	if (ended) {
		snprintf(ret_reason, ENTRY_REASON_MAX, "ended while being stopped; it continues from its last checkpoint");
		return RUN_STOPPED;
	}
	run_last_line(c->directory, e->run.id, e->log_from, line);
	if (WIFSIGNALED(status))
		reason_of_signal(WTERMSIG(status), line, ret_reason, ENTRY_REASON_MAX);
	else
		reason_of_status(WEXITSTATUS(status), line, ret_reason, ENTRY_REASON_MAX);
	*ret_again = !e->stopping && (WIFSIGNALED(status) || !is_own_fault(e, WEXITSTATUS(status)));
	return RUN_FAILED;
}

void entry_postpone(struct entry *e, const struct entry_context *c, const char *reason, uint64_t ms)
{
	e->run.state = RUN_RESTARTING;
	e->run.pid = 0;
	e->run.resume = true;
	e->run.restart_at_ms = clock_ms() + ms;
	snprintf(e->run.reason, sizeof e->run.reason, "%s", reason);
	run_save(c->directory, &e->run, true, NULL);
}

// A report tells how far the run is: what passed since the last one is the time of the steps between them, evenly.
static void time_steps(struct entry *e)
{
	double step = json_number_value(json_object_get(e->run.progress, "step"));
	uint64_t now = clock_ms();
	if (step == e->reported_step)
		return;
	if (e->step_seconds && e->reported_ms && step > e->reported_step)
		histogram_append(e->step_seconds, (double)(now - e->reported_ms) * 1e-3 / (step - e->reported_step));
	e->reported_step = step;
	e->reported_ms = now;
}

static void take_line(void *arg, const char *line, size_t n)
{
	struct entry *e = arg;
	run_take_progress(&e->run, line, n);   // what is not a JSON object is no news
	time_steps(e);
}

bool entry_listen(struct entry *e)
{
	return process_read(&e->process, take_line, e);
}

int entry_recover(struct entry *e, const struct entry_context *c)
{
	struct error why = {0};
	struct run found;
	int r = run_load(c->directory, e->run.id, &found, &why);
	if (r == -ENOENT || r == -ENOMEM) {
		run_done(&found);
		return r;
	}
	run_done(&e->run);
	e->run = found;
	if (r) {
		e->run.state = RUN_FAILED;     // in memory only: the damaged file stays as evidence
		snprintf(e->run.reason, sizeof e->run.reason, "%s", why.message);
	} else if (e->run.state == RUN_RUNNING || e->run.state == RUN_RESTARTING) {
		// It died with the daemon that watched it, or is writing its last checkpoint: workers leave when their socket closes.
		entry_finish(e, c, RUN_FAILED, "interrupted: the daemon ended while this run was in progress; start it again to continue");
	}
	return 0;
}

// Next to this program when it is there (a build tree, a private install), else where `make install` puts it.
char *entry_locate_worker(void)
{
	static const char name[] = "kdserved-worker";
	char path[PATH_MAX + sizeof name];
	ssize_t n = readlink("/proc/self/exe", path, PATH_MAX);
	char *slash = n > 0 ? memrchr(path, '/', (size_t)n) : NULL;
	if (slash) {
		memcpy(slash + 1, name, sizeof name);
		if (access(path, X_OK) == 0)
			return strdup(path);
	}
	return strdup(PKGLIBEXECDIR "/kdserved-worker");
}
