// SPDX-License-Identifier: Apache-2.0
// What the doors ask of the supervisor: start a run, stop one, what is known of them.
#include "daemon/train/supervisor_internal.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "common/error.h"
#include "common/output.h"
#include "daemon/clock.h"
#include "daemon/jansson.h"
#include "daemon/train/history.h"
#include "daemon/train/settings.h"

#define SUPERVISOR_MAX_QUEUED 64
#define SUPERVISOR_MAX_CONFIG (64u << 10)
#define SUPERVISOR_STOP_MS 60000       // a worker has this long to finish its step and write a checkpoint before SIGKILL

// The daemon has no folder of its own that a relative path could mean.
static int path_check(const char *key, const char *path, struct error *err)
{
	return !path || *path == '/' ? 0
		: error_set(err, ERROR_INVALID, key, "%s = %s: a run of the daemon needs absolute paths", key, path);
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
	r = r ? r : path_check("ca", s.ca, err);
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
	if (e->run.state == RUN_RUNNING || e->run.state == RUN_QUEUED || e->run.state == RUN_RESTARTING || e->run.state == RUN_SUCCEEDED)
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
	for (uint32_t i = 2; supervisor_find(s, ret_id); i++)
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
	r = output_sync_name(folder, err);
	r = r ? r : run_write_file(s->context.directory, id, "run.conf", config, n, err);
	r = r ? r : run_save(s->context.directory, &e->run, true, err);
	r = r ? r : supervisor_add(s, e, err);
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
	struct entry *e = supervisor_find(s, id);
	if (s->closing)
		return error_set(err, ERROR_UNAVAILABLE, NULL, "the daemon is shutting down");
	if (s->n_queued >= SUPERVISOR_MAX_QUEUED)
		return error_set(err, ERROR_OVERLOADED, NULL, "%u runs are waiting already", s->n_queued);
	int r = e ? run_again(s, e, config, n, err) : run_create(s, id, config, n, &e, err);
	if (r)
		return r;
	e->run.state = RUN_QUEUED;
	e->n_restarts = 0;                     // somebody looked at it
	s->n_queued++;
	run_save(s->context.directory, &e->run, true, NULL);
	supervisor_queue_start(s);
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
	struct entry *e = supervisor_find(s, id);
	if (!e)
		return error_set(err, ERROR_NOT_FOUND, "id", "%.64s: no such run", id);
	if (e->run.state == RUN_QUEUED) {
		s->n_queued--;
		entry_finish(e, &s->context, RUN_STOPPED, "");
		return 0;
	}
	if (e->run.state == RUN_RESTARTING) {
		entry_finish(e, &s->context, RUN_STOPPED,
			"stopped before another worker was started; it continues from its last checkpoint");
		supervisor_timer_arm(s);
		return 0;
	}
	if (e->run.state != RUN_RUNNING)
		return error_set(err, ERROR_CONFLICT, "id", "run %s is %s", id, run_state_name(e->run.state));
	if (!e->stopping)
		e->kill_at_ms = clock_ms() + SUPERVISOR_STOP_MS;
	e->stopping = true;
	process_signal(&e->process, SIGTERM);
	supervisor_timer_arm(s);
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
	char *text = j ? jansson_dump(j, JSON_COMPACT) : NULL;
	json_decref(j);
	if (!text)
		return error_set(err, ERROR_MEMORY, NULL, "out of memory");
	*ret_json = text;
	return 0;
}

int supervisor_get(struct supervisor *s, const char *id, char **ret_json, struct error *err)
{
	pthread_mutex_lock(&s->lock);
	struct entry *e = supervisor_find(s, id);
	json_t *j = e ? run_to_json(&e->run) : NULL;
	pthread_mutex_unlock(&s->lock);
	return e ? text_of(j, ret_json, err) : error_set(err, ERROR_NOT_FOUND, "id", "%.64s: no such run", id);
}

// Reads the disk without the lock: the file only grows.
int supervisor_history(struct supervisor *s, const char *id, char **ret_json, struct error *err)
{
	char path[RUN_PATH_MAX];
	json_t *points = NULL;
	pthread_mutex_lock(&s->lock);
	bool known = supervisor_find(s, id) != NULL;
	pthread_mutex_unlock(&s->lock);
	if (!known)
		return error_set(err, ERROR_NOT_FOUND, "id", "%.64s: no such run", id);
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

void supervisor_count(struct supervisor *s, uint32_t ret_n[SUPERVISOR_STATES])
{
	_Static_assert(SUPERVISOR_STATES == N_RUN_STATES, "one for each state of a run");
	memset(ret_n, 0, SUPERVISOR_STATES * sizeof *ret_n);
	pthread_mutex_lock(&s->lock);
	for (uint32_t i = 0; i < s->n_entries; i++)
		ret_n[s->entries[i]->run.state]++;
	pthread_mutex_unlock(&s->lock);
}

uint64_t supervisor_n_restarts(struct supervisor *s)
{
	pthread_mutex_lock(&s->lock);
	uint64_t n = s->n_restarts;
	pthread_mutex_unlock(&s->lock);
	return n;
}

void supervisor_change(struct supervisor *s, const struct supervisor_limits *limits)
{
	pthread_mutex_lock(&s->lock);
	s->limits = *limits;
	supervisor_queue_start(s);
	pthread_mutex_unlock(&s->lock);
}

const char *supervisor_state_name(unsigned state)
{
	return run_state_name((enum run_state)state);
}

struct histogram *supervisor_step_seconds(struct supervisor *s)
{
	return &s->step_seconds;
}
