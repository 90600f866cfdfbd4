// SPDX-License-Identifier: Apache-2.0
// One training run from start to export. prepare.c brings everything together (server, tokenizer, corpus, student, checkpoint);
// trainer.c is the loop.
#pragma once

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "common/query.h"
#include "daemon/model/tokenizer.h"
#include "daemon/loss/reweight.h"
#include "daemon/train/settings.h"
#include "daemon/worker/features.h"
#include "daemon/worker/bridge.h"
#include "daemon/worker/optimizer.h"
#include "daemon/worker/progress.h"
#include "daemon/worker/snapshot.h"

struct error;
struct partner;
struct passages;
struct policy;
struct record_rows;
struct rollout;
struct team;

struct trainer_options {
	const struct run_settings *settings;   // outlive the trainer
	const char *output;                    // the run's folder; made when missing
	bool resume;
	int progress_fd;                       // -1 = none
	const atomic_bool *stop;              // set by a signal: checkpoint and leave
	struct team *team;                     // of processes that train together; NULL = this one alone
};

// Micro-batches asked for ahead of the one in training: one being answered and one that is ready, so that neither side waits for the
// other's slower turns.
#define TRAINER_AHEAD 2
#define TRAINER_AHEAD_MAX 64           // of shards, when the disk's answers come in bursts

struct trainer {
	struct trainer_options options;
	const struct run_settings *settings;
	int lock_fd;
	char *checkpoints, *student_path, *best_path, *token, *store;
	struct progress *progress;             // of process 0
	struct progress_report report;
	struct answers *answers;               // of the run's own teacher
	struct answers *others[OBJECTIVE_MAX_TEACHERS];        // those of the other teachers of the objective, from [1] on (panel.h)
	struct tokenizer *tokenizer;
	struct dataset *dataset;
	struct objective *objective;
	struct policy *policy;                 // NULL: text alone
	struct rollout *rollout;               // with it
	struct partner *partner;               // that writes some of its tokens; NULL: none does
	struct features *features;             // of losses on features, or NULL
	struct feature_widths widths;          // of the teacher's rows that they look at
	struct student *student;
	struct optimizer_options optimizing;
	struct optimizer *optimizer;
	struct group *groups;                  // of optimizing
	struct query query, held_out_query;    // query: of the first step, whose kind all are
	struct reweight reweight;              // of a micro-batch's sequences
	struct mask *mask;                     // of masked language modelling, else NULL
	struct passages *held_out_passages;    // the held-out sequences as they are masked; NULL: they are not
	struct record_rows **held_out;         // (n_held_out) the teacher's answers, asked once
	uint32_t n_held_out;
	struct snapshot_state state;
	uint32_t vocab_size;                   // of the teacher
	uint32_t student_vocab, student_length;        // the student's, and the most tokens it reads of a sequence
	struct tokenizer *student_tokenizer;   // NULL: it has the teacher's
	bool bridged;                          // its vocabulary is another than the teacher's:
	struct bridge bridge;
	uint32_t *id_bytes;                    // (vocab_size)
	uint64_t steps;                        // of the whole run
	uint64_t asked;                        // position of the next place to ask for
	uint32_t n_outstanding;                // micro-batches asked for and not yet taken
	uint32_t ahead;                        // how many are to be asked for ahead of the one in training
	struct passages *outstanding;          // those micro-batches, the oldest first
	struct record_rows **rows;             // (n_teachers, sequences) of the micro-batch in training
	double waited, trained;                // seconds of this process: in answers_next, in steps
	uint64_t n_tokens;                     // of the step in progress
	uint32_t n_empty;                      // steps in a row without any answer
	double step_seconds;                   // of a step, smoothed
	bool supervisor_gone;
	bool told_to_stop;                     // by another process
};

enum trainer_end { TRAINER_SUCCEEDED, TRAINER_STOPPED };

int trainer_open(const struct trainer_options *options, struct trainer **ret, struct error *err);
// 0 with how it ended, or -errno with the reason. A stopped run has a checkpoint and can be resumed.
int trainer_run(struct trainer *t, enum trainer_end *ret_end, struct error *err);
struct trainer *trainer_close(struct trainer *t);      // returns NULL; NULL is fine

int trainer_prepare(struct trainer *t, struct error *err);     // prepare.c, for trainer_open
bool trainer_stopping(const struct trainer *t);
void trainer_say(struct trainer *t, const char *state);        // a progress report
