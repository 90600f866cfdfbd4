// SPDX-License-Identifier: Apache-2.0
// Workers' lives: a table of runs, at most max_running workers, the rest in a queue. One lock; an epoll descriptor gathers every pidfd
// and progress socket (and a ticking timer while a worker is being stopped), so the main loop watches one descriptor.
#include "daemon/train/supervisor_internal.h"

#include <dirent.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/error.h"
#include "common/output.h"
#include "daemon/clock.h"

#define SUPERVISOR_MAX_RUNS 10000      // folders listed; more are for the operator to archive
#define SUPERVISOR_SAVE_MS 1000        // progress reaches status.json at most this often

enum watch_kind { WATCH_PIDFD, WATCH_PROGRESS, WATCH_TIMER };

static int watch(struct supervisor *s, int fd, uint32_t index, enum watch_kind kind)
{
	struct epoll_event e = {.events = EPOLLIN, .data.u64 = (uint64_t)index << 2 | kind};
	return epoll_ctl(s->epoll_fd, EPOLL_CTL_ADD, fd, &e) < 0 ? -errno : 0;
}

struct entry *supervisor_find(const struct supervisor *s, const char *id)
{
	for (uint32_t i = 0; i < s->n_entries; i++)
		if (strcmp(s->entries[i]->run.id, id) == 0)
			return s->entries[i];
	return NULL;
}

int supervisor_add(struct supervisor *s, struct entry *e, struct error *err)
{
	if (s->n_entries >= SUPERVISOR_MAX_RUNS)
		return error_set(err, ERROR_TOO_LARGE, NULL, "the runs directory holds %u runs: move old ones away", s->n_entries);
	struct entry **entries = realloc(s->entries, (s->n_entries + 1) * sizeof *entries);
	if (!entries)
		return error_set(err, ERROR_MEMORY, NULL, "out of memory");
	s->entries = entries;
	e->index = s->n_entries;
	s->entries[s->n_entries++] = e;
	return 0;
}

static void worker_start(struct supervisor *s, struct entry *e)
{
	if (entry_start(e, &s->context))
		return;
	s->n_running++;
	int r = watch(s, e->process.pidfd, e->index, WATCH_PIDFD);
	r = r ? r : watch(s, e->process.progress_fd, e->index, WATCH_PROGRESS);
	if (r == 0)
		return;
	// No memory to watch it with: end it now and reap it here, since no event will come.
	process_signal(&e->process, SIGKILL);
	waitpid(e->process.pid, NULL, 0);
	process_done(&e->process);
	s->n_running--;
	entry_finish(e, &s->context, RUN_FAILED, "the worker could not be watched");
}

void supervisor_queue_start(struct supervisor *s)
{
	for (uint32_t i = 0; !s->closing && s->n_queued && i < s->n_entries && s->n_running < s->limits.max_running; i++)
		if (s->entries[i]->run.state == RUN_QUEUED) {
			s->n_queued--;
			worker_start(s, s->entries[i]);
		}
}

static void on_progress(struct supervisor *s, struct entry *e)
{
	if (e->process.progress_fd < 0)
		return;
	if (!entry_listen(e)) {
		close(e->process.progress_fd);         // also leaves the epoll set
		e->process.progress_fd = -1;
	}
	if (clock_ms() - e->saved_at_ms >= SUPERVISOR_SAVE_MS) {
		run_save(s->context.directory, &e->run, false, NULL);
		e->saved_at_ms = clock_ms();
	}
}

static void on_exit_of(struct supervisor *s, struct entry *e)
{
	int status = 0;
	if (e->process.pid == 0 || process_reap(&e->process, &status) == -EAGAIN)
		return;
	for (int turn = 0; turn < 64 && e->process.progress_fd >= 0; turn++)   // its last words may still lie in the socket
		if (!entry_listen(e))
			break;
	process_done(&e->process);
	s->n_running--;
	supervisor_ended(s, e, status);
	e->stopping = false;
}

static void dispatch(struct supervisor *s)
{
	struct epoll_event events[32];
	int n = epoll_wait(s->epoll_fd, events, 32, 0);
	for (int i = 0; i < n; i++) {
		uint32_t index = (uint32_t)(events[i].data.u64 >> 2);
		switch ((enum watch_kind)(events[i].data.u64 & 3)) {
		case WATCH_TIMER:
			supervisor_timer_fired(s);
			break;
		case WATCH_PROGRESS:
			on_progress(s, s->entries[index]);
			break;
		case WATCH_PIDFD:
			on_exit_of(s, s->entries[index]);
			break;
		}
	}
	supervisor_queue_start(s);
}

void supervisor_dispatch(struct supervisor *s)
{
	pthread_mutex_lock(&s->lock);
	dispatch(s);
	pthread_mutex_unlock(&s->lock);
}

int supervisor_fd(const struct supervisor *s)
{
	return s->epoll_fd;
}

static int folder_recover(struct supervisor *s, const char *id, struct error *err)
{
	struct entry *e = NULL;
	int r = entry_new(id, &e);
	if (r == 0)
		r = entry_recover(e, &s->context);
	if (r) {
		entry_free(e);
		return r == -ENOENT ? 0 : error_set(err, ERROR_MEMORY, NULL, "out of memory");
	}
	r = supervisor_add(s, e, err);
	if (r)
		entry_free(e);
	else if (e->run.state == RUN_QUEUED)
		s->n_queued++;
	return r;
}

static int directory_scan(struct supervisor *s, struct error *err)
{
	const char *directory = s->context.directory;
	struct dirent **names;
	int r = output_folder(directory, 0750, NULL, err);
	if (r)
		return r;
	int n = scandir(directory, &names, NULL, alphasort);
	if (n < 0)
		return error_system(err, errno, NULL, "cannot read the runs directory %s", directory);
	for (int i = 0; i < n; i++) {
		if (r == 0 && run_id_valid(names[i]->d_name))
			r = folder_recover(s, names[i]->d_name, err);
		free(names[i]);
	}
	free(names);
	return r;
}

static int supervisor_init(struct supervisor *s, const struct supervisor_options *o, struct error *err)
{
	struct entry_context *c = &s->context;
	pthread_mutex_init(&s->lock, NULL);
	s->limits = o->limits;
	s->event = o->event;
	s->event_arg = o->event_arg;
	c->directory = strdup(o->directory);
	c->worker_path = o->worker_path ? strdup(o->worker_path) : entry_locate_worker();
	c->server_address = o->server_address ? strdup(o->server_address) : NULL;
	if (!c->directory || !c->worker_path || (o->server_address && !c->server_address))
		return error_set(err, ERROR_MEMORY, NULL, "out of memory");
	s->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	s->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	if (s->epoll_fd < 0 || s->timer_fd < 0 || watch(s, s->timer_fd, 0, WATCH_TIMER))
		return error_system(err, errno, NULL, "cannot watch workers");
	return 0;
}

int supervisor_open(const struct supervisor_options *options, struct supervisor **ret, struct error *err)
{
	struct supervisor *s = calloc(1, sizeof *s);
	if (!s)
		return error_set(err, ERROR_MEMORY, NULL, "out of memory");
	s->epoll_fd = s->timer_fd = -1;
	int r = supervisor_init(s, options, err);
	r = r ? r : directory_scan(s, err);
	if (r) {
		supervisor_close(s, 0);
		return r;
	}
	s->context.step_seconds = &s->step_seconds;
	supervisor_queue_start(s);
	*ret = s;
	return 0;
}

// kill_at_ms: until then the timer too leaves them alone.
static void signal_all(struct supervisor *s, int number, uint64_t kill_at_ms)
{
	for (uint32_t i = 0; i < s->n_entries; i++)
		if (s->entries[i]->process.pid) {
			s->entries[i]->stopping = true;
			s->entries[i]->kill_at_ms = kill_at_ms;
			process_signal(&s->entries[i]->process, number);
		}
}

static void workers_end(struct supervisor *s, uint64_t deadline_ms)
{
	uint64_t until = clock_ms() + deadline_ms, now;
	bool killed = false;
	signal_all(s, SIGTERM, until);
	while (s->n_running) {
		now = clock_ms();
		if (now >= until && !killed) {
			signal_all(s, SIGKILL, until);
			killed = true;
		}
		struct pollfd p = {.fd = s->epoll_fd, .events = POLLIN};
		poll(&p, 1, killed ? 1000 : (int)(until - now < 1000 ? until - now : 1000));
		dispatch(s);
	}
}

// Like those that run: started again when somebody asks.
static void waiting_end(struct supervisor *s)
{
	for (uint32_t i = 0; i < s->n_entries; i++)
		if (s->entries[i]->run.state == RUN_RESTARTING)
			entry_finish(s->entries[i], &s->context, RUN_STOPPED,
				     "the daemon ended before the worker was started again; it continues from its last checkpoint");
}

void supervisor_close(struct supervisor *s, uint64_t deadline_ms)
{
	if (!s)
		return;
	s->closing = true;
	waiting_end(s);
	if (s->n_running)
		workers_end(s, deadline_ms);
	for (uint32_t i = 0; i < s->n_entries; i++)
		entry_free(s->entries[i]);
	free(s->entries);
	if (s->epoll_fd >= 0)
		close(s->epoll_fd);
	if (s->timer_fd >= 0)
		close(s->timer_fd);
	free(s->context.directory);
	free(s->context.worker_path);
	free(s->context.server_address);
	pthread_mutex_destroy(&s->lock);
	free(s);
}
