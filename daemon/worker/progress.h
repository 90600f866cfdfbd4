// SPDX-License-Identifier: Apache-2.0
// What a run says of itself: JSON lines to the supervisor, the same lines in metrics.jsonl, one moving line on a terminal.
#pragma once

#include <stdint.h>

#include "daemon/worker/student.h"

struct error;
struct progress;

struct progress_report {
	const char *state;                     // "starting", "waiting", "running", "stopped", "succeeded"
	const char *device;
	uint64_t step, steps;
	double loss;                           // means over the positions of this step: the weighted sum,
	const struct objective *objective;     // each of its terms, and those less the teacher's entropy (NAN: not known)
	double values[OBJECTIVE_MAX_TERMS], divergences[OBJECTIVE_MAX_TERMS];
	struct student_drawn drawn;            // of this step
	bool replayed;                         // what was drawn was drawn in steps before
	double rollout_chance;                 // where evaluations set it; else NAN
	uint64_t n_replay;                     // sequences in the buffer of rollouts
	double learning_rate, gradient_norm, tokens_per_second;
	uint64_t n_parameters;                 // of the student
	uint64_t n_positions, n_masked;        // of the whole run
	double seconds;                        // in training steps, of the whole run
	double wait_share;                     // of the time, spent waiting for the teacher
	double cached_share;                   // of the answers, that came from a store
	uint64_t n_evaluations;
	struct student_evaluation before, last, best;
	double guard_residual, guard_alarms;   // guard.h; NAN where there is no curve
	double teacher_parameters, best_teacher;       // of the run's own teacher, 0 = not known; what guard_best_teacher says
	double eta_seconds;                    // < 0: not known
};

// fd: of the supervisor's socket, -1 = none. The file is appended to; a resumed run repeats the steps since its checkpoint.
int progress_open(const char *metrics_path, int fd, struct progress **ret, struct error *err);
void progress_close(struct progress *p);               // ends the terminal's line; NULL is fine
// A step (or an evaluation, or a change of state) to everyone who listens. -EPIPE: the supervisor is gone.
int progress_say(struct progress *p, const struct progress_report *r);
