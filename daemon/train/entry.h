// SPDX-License-Identifier: Apache-2.0
// A run and the worker that does it: start, listen, and put into words how it ended. The supervisor's table is made of these.
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "daemon/histogram.h"
#include "daemon/train/process.h"
#include "daemon/train/run.h"

struct error;

struct entry_context {
	char *directory;               // of all runs
	char *worker_path;
	char *server_address;          // may be NULL
	struct histogram *step_seconds;    // of training, as workers report them
};

struct entry {
	struct run run;
	struct process process;
	uint32_t index;                // in the supervisor's table
	bool stopping;
	uint64_t kill_at_ms, saved_at_ms;
	uint32_t n_restarts;           // within the window that began then
	uint64_t window_began_ms;
	struct histogram *step_seconds;
	double reported_step;          // the last report's, and when it came; 0 = none yet
	uint64_t reported_ms;
	int64_t log_from;              // where this worker's part of the log begins
};

int entry_new(const char *id, struct entry **ret);     // -ENOMEM
struct entry *entry_free(struct entry *e);             // returns NULL; NULL is fine

// Starts the worker; on failure the run is failed with the reason and -errno returned.
int entry_start(struct entry *e, const struct entry_context *c);
// Marks the run as ended and saves it.
void entry_finish(struct entry *e, const struct entry_context *c, enum run_state state, const char *reason);
// The worker was reaped with this status (waitpid): the run succeeded, stopped or failed, and why. ret_again: it failed by no fault of its
// settings, and another worker may get further.
#define ENTRY_REASON_MAX (RUN_REASON_MAX + 64)
enum run_state entry_classify(struct entry *e, const struct entry_context *c, int status, char ret_reason[ENTRY_REASON_MAX],
			      bool *ret_again);
// Another worker is to follow in so many ms, and goes on from the last checkpoint. Saves it.
void entry_postpone(struct entry *e, const struct entry_context *c, const char *reason, uint64_t ms);
// Reads what the worker says; false once it has closed its end.
bool entry_listen(struct entry *e);
// Fills the entry from disk. A run that was in progress is failed as interrupted. -ENOENT: not a run's folder; -ENOMEM.
int entry_recover(struct entry *e, const struct entry_context *c);
// The worker's path when none was configured; NULL = out of memory. The caller frees.
char *entry_locate_worker(void);
