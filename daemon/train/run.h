// SPDX-License-Identifier: Apache-2.0
// One training run as it lies on disk and is shown to clients: a folder named by its id with run.conf, status.json, log, metrics.jsonl,
// checkpoints/ and student/. status.json is what a restarted daemon knows of a run.
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "daemon/train/supervisor.h"

enum run_state { RUN_QUEUED, RUN_RUNNING, RUN_SUCCEEDED, RUN_FAILED, RUN_STOPPED, RUN_RESTARTING, N_RUN_STATES };

#define RUN_REASON_MAX 320
#define RUN_LINE_MAX 4096              // longest progress line taken; a longer one is dropped whole
#define RUN_PATH_MAX 4096

struct run {
	char id[RUN_ID_MAX + 1];
	enum run_state state;
	char reason[RUN_REASON_MAX];   // why it failed or was stopped; empty otherwise
	double created, started, finished;     // seconds since 1970; 0 = not yet
	uint64_t restart_at_ms;        // clock_ms(), of a run that is RUN_RESTARTING
	uint32_t restarts;             // workers started in the place of one that died
	int64_t pid;                   // 0 = none
	bool resume;                   // the next worker continues from the newest checkpoint
	json_t *progress;              // what the worker said last: scalars by name
};

int run_init(struct run *r, const char *id);           // queued, created now; -ENOMEM
void run_done(struct run *r);

bool run_id_valid(const char *id);                     // [a-z0-9_-]{1,64}
const char *run_state_name(enum run_state state);
// ROOT/ID/LEAF; the only place that joins a run's paths. -ENAMETOOLONG.
int run_path(const char *root, const char *id, const char *leaf, char ret_path[RUN_PATH_MAX]);

// -ENOENT: no such run. Whatever it returns, *ret has been initialised.
int run_load(const char *root, const char *id, struct run *ret, struct error *err);
// The old content or the new, also after a power cut; `durable`: the new.
int run_save(const char *root, const struct run *r, bool durable, struct error *err);
// A small file written whole and fsynced under a name that was free or is replaced.
int run_write_file(const char *root, const char *id, const char *leaf, const void *bytes, size_t n, struct error *err);
json_t *run_to_json(const struct run *r);              // new reference, NULL = out of memory
// Takes the scalars of one JSON object over into the progress; false when the line is not such an object.
bool run_take_progress(struct run *r, const char *line, size_t n);
// The last line that is not empty of the log after `from` bytes; "" when there is none.
void run_last_line(const char *root, const char *id, int64_t from, char ret_line[RUN_REASON_MAX]);
