// SPDX-License-Identifier: Apache-2.0
// Training runs: a table of them, at most max_running workers, the rest in a queue. One lock; an epoll descriptor gathers every pidfd
// and progress socket (and a ticking timer while a worker is being stopped), so the main loop watches one descriptor.
#include "daemon/train/supervisor.h"

#include <dirent.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/stat.h>
#include <sys/timerfd.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "common/error.h"
#include "daemon/clock.h"
#include "daemon/train/entry.h"
#include "daemon/train/history.h"
#include "daemon/train/settings.h"

#define SUPERVISOR_MAX_RUNS 10000      // folders listed; more are for the operator to archive
#define SUPERVISOR_MAX_QUEUED 64
#define SUPERVISOR_MAX_CONFIG (64u << 10)
#define SUPERVISOR_STOP_MS 60000       // a worker has this long to finish its step and write a checkpoint before SIGKILL
#define SUPERVISOR_SAVE_MS 1000        // progress reaches status.json at most this often

struct supervisor {
	pthread_mutex_t lock;
	struct entry_context context;
	uint32_t max_running, n_running, n_queued;
	int epoll_fd, timer_fd;
	bool closing;                  // nothing new is started
	struct entry **entries;        // never removed: an index stays good
	uint32_t n_entries;
};

enum watch_kind { WATCH_PIDFD, WATCH_PROGRESS, WATCH_TIMER };

static int watch(struct supervisor *s, int fd, uint32_t index, enum watch_kind kind)
{
	struct epoll_event e = {.events = EPOLLIN, .data.u64 = (uint64_t)index << 2 | kind};
	return epoll_ctl(s->epoll_fd, EPOLL_CTL_ADD, fd, &e) < 0 ? -errno : 0;
}

static struct entry *table_find(const struct supervisor *s, const char *id)
{
	for (uint32_t i = 0; i < s->n_entries; i++)
		if (strcmp(s->entries[i]->run.id, id) == 0)
			return s->entries[i];
	return NULL;
}

static int table_add(struct supervisor *s, struct entry *e, struct error *err)
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

static void queue_start(struct supervisor *s)
{
	for (uint32_t i = 0; !s->closing && s->n_queued && i < s->n_entries && s->n_running < s->max_running; i++)
		if (s->entries[i]->run.state == RUN_QUEUED) {
			s->n_queued--;
			worker_start(s, s->entries[i]);
		}
}

static void timer_set(struct supervisor *s, bool on)
{
	struct itimerspec t = {.it_interval.tv_sec = on, .it_value.tv_sec = on};
	timerfd_settime(s->timer_fd, 0, &t, NULL);
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
	entry_classify(e, &s->context, status);
	e->stopping = false;
}

static void stopping_check(struct supervisor *s)
{
	uint64_t ticks, now = clock_ms();
	bool any = false;
	if (read(s->timer_fd, &ticks, sizeof ticks) < 0 && errno != EAGAIN)
		return;
	for (uint32_t i = 0; i < s->n_entries; i++) {
		struct entry *e = s->entries[i];
		if (e->process.pid == 0 || !e->stopping)
			continue;
		any = true;
		if (now >= e->kill_at_ms)
			process_signal(&e->process, SIGKILL);
	}
	timer_set(s, any);
}

static void dispatch(struct supervisor *s)
{
	struct epoll_event events[32];
	int n = epoll_wait(s->epoll_fd, events, 32, 0);
	for (int i = 0; i < n; i++) {
		uint32_t index = (uint32_t)(events[i].data.u64 >> 2);
		switch ((enum watch_kind)(events[i].data.u64 & 3)) {
		case WATCH_TIMER:
			stopping_check(s);
			break;
		case WATCH_PROGRESS:
			on_progress(s, s->entries[index]);
			break;
		case WATCH_PIDFD:
			on_exit_of(s, s->entries[index]);
			break;
		}
	}
	queue_start(s);
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
	r = table_add(s, e, err);
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
	if (mkdir(directory, 0750) < 0 && errno != EEXIST)
		return error_system(err, errno, NULL, "cannot make the runs directory %s", directory);
	int n = scandir(directory, &names, NULL, alphasort), r = 0;
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
	s->max_running = o->max_running ? o->max_running : 1;
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
	queue_start(s);
	*ret = s;
	return 0;
}

static void signal_all(struct supervisor *s, int number)
{
	for (uint32_t i = 0; i < s->n_entries; i++)
		if (s->entries[i]->process.pid) {
			s->entries[i]->stopping = true;
			process_signal(&s->entries[i]->process, number);
		}
}

static void workers_end(struct supervisor *s, uint64_t deadline_ms)
{
	uint64_t until = clock_ms() + deadline_ms, now;
	bool killed = false;
	signal_all(s, SIGTERM);
	while (s->n_running) {
		now = clock_ms();
		if (now >= until && !killed) {
			signal_all(s, SIGKILL);
			killed = true;
		}
		struct pollfd p = {.fd = s->epoll_fd, .events = POLLIN};
		poll(&p, 1, killed ? 1000 : (int)(until - now < 1000 ? until - now : 1000));
		dispatch(s);
	}
}

void supervisor_close(struct supervisor *s, uint64_t deadline_ms)
{
	if (!s)
		return;
	s->closing = true;
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

// The daemon has no folder of its own that a relative path could mean.
static int path_check(const char *key, const char *path, struct error *err)
{
	return !path || *path == '/' ? 0 : error_set(err, ERROR_INVALID, key, "%s = %s: a run of the daemon needs absolute paths", key, path);
}

static int config_check(const char *config, size_t n, struct error *err)
{
	struct run_settings s;
	size_t n_options;
	const struct config_option *table = settings_table(&n_options);
	if (n > SUPERVISOR_MAX_CONFIG)
		return error_set(err, ERROR_TOO_LARGE, "config", "over %u bytes", SUPERVISOR_MAX_CONFIG);
	int r = settings_init(&s, err);
	r = r ? r : config_read_text(table, n_options, &s, config, n, "run.conf", err);
	r = r ? r : settings_check(&s, err);
	for (size_t i = 0; r == 0 && i < s.corpus.n; i++)
		r = path_check("corpus", s.corpus.items[i], err);
	if (r == 0 && strcmp(s.student, "random") != 0)
		r = path_check("student", s.student, err);
	r = r ? r : path_check("store", s.store, err);
	r = r ? r : path_check("token-file", s.token_file, err);
	settings_done(&s);
	return r;
}

static bool config_same(struct supervisor *s, const char *id, const char *config, size_t n)
{
	char path[RUN_PATH_MAX], *old = malloc(SUPERVISOR_MAX_CONFIG + 1);
	FILE *f = old && run_path(s->context.directory, id, "run.conf", path) == 0 ? fopen(path, "re") : NULL;
	size_t got = f ? fread(old, 1, SUPERVISOR_MAX_CONFIG + 1, f) : 0;
	bool same = f && got == n && memcmp(old, config, n) == 0;
	if (f)
		fclose(f);
	free(old);
	return same;
}

// A known name: the same question again continues a run that did not finish.
static int run_again(struct supervisor *s, struct entry *e, const char *config, size_t n, struct error *err)
{
	const char *id = e->run.id;
	if (e->run.state == RUN_RUNNING || e->run.state == RUN_QUEUED || e->run.state == RUN_SUCCEEDED)
		return error_set(err, ERROR_CONFLICT, "name", "run %s is %s", id, run_state_name(e->run.state));
	if (!config_same(s, id, config, n))
		return error_set(err, ERROR_CONFLICT, "name", "run %s exists with another configuration", id);
	e->run.resume = true;
	return 0;
}

// "run-20260131-235959", "-2" and so on when that is taken.
static void name_make(const struct supervisor *s, char ret_id[RUN_ID_MAX + 1])
{
	time_t now = time(NULL);
	struct tm t;
	char stem[32];
	gmtime_r(&now, &t);
	strftime(stem, sizeof stem, "run-%Y%m%d-%H%M%S", &t);
	snprintf(ret_id, RUN_ID_MAX + 1, "%s", stem);
	for (uint32_t i = 2; table_find(s, ret_id); i++)
		snprintf(ret_id, RUN_ID_MAX + 1, "%s-%u", stem, i);
}

static int run_create(struct supervisor *s, const char *id, const char *config, size_t n, struct entry **ret, struct error *err)
{
	char folder[RUN_PATH_MAX];
	struct entry *e = NULL;
	int r = run_path(s->context.directory, id, "", folder);
	if (r || (mkdir(folder, 0750) < 0 && (r = -errno)))
		return error_system(err, r, "name", "cannot make the folder of run %s", id);
	if (entry_new(id, &e)) {
		r = error_set(err, ERROR_MEMORY, NULL, "out of memory");
		goto out;
	}
	r = run_write_file(s->context.directory, id, "run.conf", config, n, err);
	r = r ? r : run_save(s->context.directory, &e->run, true, err);
	r = r ? r : table_add(s, e, err);
out:
	if (r) {                       // leave no half-made folder behind; whatever else is in it was not ours
		static const char *const leaves[] = {"run.conf", "status.json", ""};
		for (int i = 0; i < 3; i++)
			if (run_path(s->context.directory, id, leaves[i], folder) == 0)
				remove(folder);
		entry_free(e);
	} else {
		*ret = e;
	}
	return r;
}

static int start_locked(struct supervisor *s, const char *id, const char *config, size_t n, struct error *err)
{
	struct entry *e = table_find(s, id);
	if (s->closing)
		return error_set(err, ERROR_UNAVAILABLE, NULL, "the daemon is shutting down");
	if (s->n_queued >= SUPERVISOR_MAX_QUEUED)
		return error_set(err, ERROR_OVERLOADED, NULL, "%u runs are waiting already", s->n_queued);
	int r = e ? run_again(s, e, config, n, err) : run_create(s, id, config, n, &e, err);
	if (r)
		return r;
	e->run.state = RUN_QUEUED;
	s->n_queued++;
	run_save(s->context.directory, &e->run, true, NULL);
	queue_start(s);
	return 0;
}

int supervisor_start(struct supervisor *s, const char *name, const char *config, size_t n, char ret_id[RUN_ID_MAX + 1], struct error *err)
{
	char id[RUN_ID_MAX + 1];
	if (name && !run_id_valid(name))
		return error_set(err, ERROR_INVALID, "name", "must be 1 to %d of a-z, 0-9, _ and -", RUN_ID_MAX);
	int r = config_check(config, n, err);
	if (r)
		return r;
	pthread_mutex_lock(&s->lock);
	if (name)
		snprintf(id, sizeof id, "%s", name);
	else
		name_make(s, id);
	r = start_locked(s, id, config, n, err);
	pthread_mutex_unlock(&s->lock);
	if (r == 0)
		memcpy(ret_id, id, sizeof id);
	return r;
}

static int stop_locked(struct supervisor *s, const char *id, struct error *err)
{
	struct entry *e = table_find(s, id);
	if (!e)
		return error_set(err, ERROR_NOT_FOUND, "id", "no such run");
	if (e->run.state == RUN_QUEUED) {
		s->n_queued--;
		entry_finish(e, &s->context, RUN_STOPPED, "");
		return 0;
	}
	if (e->run.state != RUN_RUNNING)
		return error_set(err, ERROR_CONFLICT, "id", "run %s is %s", id, run_state_name(e->run.state));
	if (!e->stopping)
		e->kill_at_ms = clock_ms() + SUPERVISOR_STOP_MS;
	e->stopping = true;
	process_signal(&e->process, SIGTERM);
	timer_set(s, true);
	return 0;
}

int supervisor_stop(struct supervisor *s, const char *id, struct error *err)
{
	pthread_mutex_lock(&s->lock);
	int r = stop_locked(s, id, err);
	pthread_mutex_unlock(&s->lock);
	return r;
}

static int text_of(json_t *j, char **ret_json, struct error *err)
{
	char *text = j ? json_dumps(j, JSON_COMPACT) : NULL;
	json_decref(j);
	if (!text)
		return error_set(err, ERROR_MEMORY, NULL, "out of memory");
	*ret_json = text;
	return 0;
}

int supervisor_get(struct supervisor *s, const char *id, char **ret_json, struct error *err)
{
	pthread_mutex_lock(&s->lock);
	struct entry *e = table_find(s, id);
	json_t *j = e ? run_to_json(&e->run) : NULL;
	pthread_mutex_unlock(&s->lock);
	return e ? text_of(j, ret_json, err) : error_set(err, ERROR_NOT_FOUND, "id", "no such run");
}

// Reads the disk without the lock: the file only grows.
int supervisor_history(struct supervisor *s, const char *id, char **ret_json, struct error *err)
{
	char path[RUN_PATH_MAX];
	json_t *points = NULL;
	pthread_mutex_lock(&s->lock);
	bool known = table_find(s, id) != NULL;
	pthread_mutex_unlock(&s->lock);
	if (!known)
		return error_set(err, ERROR_NOT_FOUND, "id", "no such run");
	if (run_path(s->context.directory, id, "metrics.jsonl", path) < 0)
		return error_set(err, ERROR_TOO_LARGE, NULL, "the path of its metrics is too long");
	int r = history_read(path, &points, err);
	return r ? r : text_of(json_pack("{s:s, s:o}", "id", id, "points", points), ret_json, err);
}

int supervisor_list(struct supervisor *s, char **ret_json, struct error *err)
{
	json_t *list = json_array();
	pthread_mutex_lock(&s->lock);
	int bad = !list;
	for (uint32_t i = 0; list && i < s->n_entries; i++)
		bad |= json_array_append_new(list, run_to_json(&s->entries[i]->run));
	pthread_mutex_unlock(&s->lock);
	json_t *whole = bad ? NULL : json_pack("{s:O}", "runs", list);
	json_decref(list);
	return text_of(whole, ret_json, err);
}

uint32_t supervisor_n_running(struct supervisor *s)
{
	pthread_mutex_lock(&s->lock);
	uint32_t n = s->n_running;
	pthread_mutex_unlock(&s->lock);
	return n;
}
