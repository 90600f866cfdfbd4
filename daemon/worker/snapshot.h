// SPDX-License-Identifier: Apache-2.0
// Checkpoints of a run: DIR/step-NNNNNNNNN/ with the parameters, the optimizer's arrays, what else it remembers, and state.json. Written
// beside, synced, renamed into place; every file's size and checksum stand in state.json, and a checkpoint that does not verify is passed
// over for the one before.
#pragma once

#include <stdint.h>

#include "common/sequence.h"
#include "common/error.h"
#include "daemon/worker/dataset.h"
#include "daemon/worker/guard.h"
#include "daemon/worker/optimizer.h"
#include "daemon/worker/student.h"

struct weights;

#define SNAPSHOT_MAX_ADAPTIVE (4 * OBJECTIVE_MAX_TERMS)

// Where a run is. What must be the same when it goes on (the questions it asks and their order) is checked by snapshot_compare.
struct snapshot_state {
	uint64_t step;                         // optimizer steps done
	uint64_t position;                     // sequences of the training stream consumed
	uint64_t n_positions, n_masked;        // trained so far; rows without an answer so far
	double seconds;                        // spent training
	struct content_id teacher, dataset;
	uint64_t seed, sequence_length, batch; // batch: sequences per step
	uint64_t n_held_out, sequential;       // sequences kept from training; 1 = trained in the order of the list's making
	double rollout_chance, rollout_reference;      // rollouts = adaptive: the chance, and the held-out loss it is measured by
	struct guard_state guard;
	uint64_t n_adaptive;                   // what the objective's adaptive schedules remember
	double adaptive[SNAPSHOT_MAX_ADAPTIVE];
	struct dataset_domains domains;        // of drawn domains: since they were measured last
	uint64_t n_evaluations;                // the three below are set when it is not 0
	struct student_evaluation before, last, best;
	uint64_t best_evaluation;              // which one it was, from 0
};

// What a checkpoint holds: the parameters, and arrays of the same layout, each in a file of its name.
struct snapshot_arrays {
	struct weights *weights;
	uint32_t n;
	struct optimizer_array list[OPTIMIZER_MAX_ARRAYS];
	// One more file, NAME.bin: the bytes to write; read into memory that is the caller's. NULL: none.
	const char *name;
	uint8_t *bytes;
	size_t n_bytes;
	const char *settings;                  // to write: lines "key = value" that a run that goes on must repeat. NULL: none
};

// Writes DIR/step-N and removes all but the newest `keep` and what an interrupted write left.
int snapshot_save(const char *directory, const struct snapshot_arrays *arrays, const struct snapshot_state *state, uint32_t keep,
		  struct error *err);
// The newest checkpoint that verifies: fills parameters and arrays; one that has other arrays does not.
// -ENOENT (err untouched) when there is none at all; ERROR_CORRUPT when none of those there verifies. *ret_skipped: why the last one
// passed over was, its code ERROR_NONE when none was.
int snapshot_load(const char *directory, struct snapshot_arrays *arrays, struct snapshot_state *ret_state, struct error *ret_skipped,
		  struct error *err);
// What state.json of the newest checkpoint says where it can be read, and the settings it was written with (the caller's); the arrays are
// not looked at. -ENOENT (err untouched): there is none.
int snapshot_peek(const char *directory, struct snapshot_state *ret_state, char **ret_settings, struct error *err);
// The setting because of which `b` would not go on where `a` is; NULL when it would.
const char *snapshot_difference(const struct snapshot_state *a, const struct snapshot_state *b);
// ERROR_CONFLICT naming the setting when `now` would not continue what `saved` began.
int snapshot_compare(const struct snapshot_state *saved, const struct snapshot_state *now, struct error *err);

// One array in parameter layout as a file of its own, whole or not at all; and back.
int snapshot_array_write(const char *path, const struct weights *w, const struct real *array, struct error *err);
int snapshot_array_read(const char *path, struct weights *w, struct real *array, struct error *err);
