// SPDX-License-Identifier: Apache-2.0
// Training runs as seen by the daemon: start a kdserved-worker per run, watch it (pidfd), read its progress, stop it, start it again when
// it dies. A worker's death concerns one run, nothing else. Thread-safe (the doors call it);
// the main loop polls supervisor_fd and calls supervisor_dispatch.
#pragma once

#include <stddef.h>
#include <stdint.h>

struct error;
struct histogram;
struct supervisor;

#define RUN_ID_MAX 64                  // [a-z0-9_-]{1,64}

// A worker that dies (a signal; an exit status that is not its own settings' fault) is followed by another, which goes on from the last
// checkpoint, after delay_ms, twice that the next time and so on up to 5 minutes; at most so many times within the window.
struct supervisor_limits {
	uint32_t max_running;
	uint32_t restarts;                 // 0 = none
	uint64_t window_ms, delay_ms;
};

// Something happened to a run that nobody asked for. Called with the supervisor's lock held: for logs only.
typedef void supervisor_event_fn(void *arg, const char *id, const char *what);

struct supervisor_options {
	const char *directory;             // one folder per run: run.conf, status.json, log, checkpoints, student/
	const char *worker_path;           // kdserved-worker; NULL = next to this program, else PKGLIBEXECDIR
	const char *server_address;        // what workers dial when run.conf names no server: "unix:/run/kdserved/kdserved.sock"
	struct supervisor_limits limits;
	supervisor_event_fn *event;        // may be NULL
	void *event_arg;
};

int supervisor_open(const struct supervisor_options *options, struct supervisor **ret, struct error *err);
void supervisor_close(struct supervisor *s, uint64_t deadline_ms);      // SIGTERM (workers checkpoint and leave), then SIGKILL
void supervisor_change(struct supervisor *s, const struct supervisor_limits *limits);    // from now on; what runs goes on
int supervisor_fd(const struct supervisor *s);
void supervisor_dispatch(struct supervisor *s);

// config: run.conf text (kdserved-worker.8). name may be NULL (one is made). Errors name the key.
int supervisor_start(struct supervisor *s, const char *name, const char *config, size_t n, char ret_id[RUN_ID_MAX + 1], struct error *err);
int supervisor_stop(struct supervisor *s, const char *id, struct error *err);
int supervisor_get(struct supervisor *s, const char *id, char **ret_json, struct error *err);      // one run's object; caller frees
// {"id":..,"points":[{"step":..,"loss":..},..]}: its course (history.h); caller frees
int supervisor_history(struct supervisor *s, const char *id, char **ret_json, struct error *err);
int supervisor_list(struct supervisor *s, char **ret_json, struct error *err);                     // {"runs":[...]}
uint32_t supervisor_n_running(struct supervisor *s);
// How many runs are in each state (enum run_state).
#define SUPERVISOR_STATES 6
void supervisor_count(struct supervisor *s, uint32_t ret_n[SUPERVISOR_STATES]);
uint64_t supervisor_n_restarts(struct supervisor *s);          // workers started in the place of one that died, since open
const char *supervisor_state_name(unsigned state);
struct histogram *supervisor_step_seconds(struct supervisor *s);       // of training steps, of all runs
