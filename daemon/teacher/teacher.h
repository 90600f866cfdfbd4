// SPDX-License-Identifier: Apache-2.0
// The resident models and their engine thread, which alone touches the backend. It answers questions and knows nothing of stores or doors.
// They share one tokenizer and one vocabulary.
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "common/sequence.h"
#include "daemon/histogram.h"
#include "daemon/model/config.h"
#include "daemon/queue.h"

struct error;
struct provenance;
struct request_item;
struct teacher;
struct tokenizer;

#define TEACHER_NAME_BYTES 128
struct teacher_source { char name[TEACHER_NAME_BYTES]; const char *path; };

struct teacher_options {
	const struct teacher_source *sources;        // (n_sources) at least one; the first answers who names none
	uint32_t n_sources;
	const char *device, *numeric;                // numeric: "auto", "f32", "bf16", "int8", "fp8"
	uint32_t n_threads;
	uint64_t gpu_memory_bytes;                   // what a GPU may give: bytes, or a share of all it has; both 0: what is free
	double gpu_memory_share;
	uint64_t memory_bytes;                       // what a teacher on the CPU may take of memory, the program included: bytes,
	double memory_share;                         // or a share of the machine's; both 0: no limit
	const char *stream_directory;                // for the weights that have no room then
	uint32_t max_tokens;                         // per sequence; lowered to the model's context
	uint32_t batch_tokens;
	uint32_t cache_tokens;                       // places in each teacher's cache of keys and values; 0 = none, and no generation
	uint32_t max_generating;                     // samples each generates at once
	uint32_t generate_batch;                     // tokens of a pass that also generates
	uint32_t max_top_k;                          // lowered to the vocabulary
	uint32_t max_gather, max_draws;              // of one row
	const char *canary_directory;                // where the first start's answer to the known question is kept; NULL = nowhere
	bool canary_reference;                       // the reference answers it too, at start
	int event_fd;                                // an eventfd written when the state changes (kept by the caller); -1 = none
};

enum teacher_state {
	TEACHER_LOADING,
	TEACHER_READY,
	TEACHER_FAILED,          // did not load, or the device failed (then it stays so: what it would say cannot be trusted)
};

// Everything a reply says about its origin. Fixed once the state is TEACHER_READY.
struct teacher_info {
	struct content_id fingerprint;               // SHA-256 of weights id, tokenizer id, numeric format, codec version
	struct content_id weights_id, tokenizer_id;
	char name[TEACHER_NAME_BYTES];
	struct architecture architecture;
	uint64_t n_parameters;
	char dtype[16], numeric[16], device[16], description[96];
	uint32_t max_tokens, max_top_k;              // after lowering
	double load_seconds;                         // of all; of it:
	double upload_seconds;                       // reading the weights and bringing them to the device,
	uint64_t upload_bytes;                       // which are so many in the file
	uint64_t stored_bytes;                       // of its weights, as the file has them, that each pass unpacks
	uint64_t streamed_bytes;                     // of its weights, as they are computed with, that each pass reads from disk
	char room_note[192];                         // how; "" where both are 0
	char canary_note[320];                       // why the known answer was not kept; "" when it was, or nobody asked for that
	char fallback[256];                          // device "auto": why not the GPU; "" when there is nothing to say
	bool second_choice;                          // and this build could use one
};

double teacher_upload_rate(const struct teacher_info *info);    // seconds per GiB of the file's weights

struct teacher_stats {
	uint64_t n_passes, n_mixed_passes;           // forward passes; those with sequences of more than one request
	uint64_t n_sequences, n_positions, n_rows;   // computed
	uint64_t n_dropped;                          // cancelled or past their deadline before any work
	uint64_t n_not_finite;                       // rows
	uint64_t n_waiting;                          // items in the queue
	uint64_t n_shared;                           // positions of scores that another of the same pass had in common with them
	uint64_t n_generated, n_reused;              // tokens chosen; positions of prompts found in the cache
	uint64_t n_generating;                       // samples, waiting or under way
	uint64_t n_slots, n_slots_used, n_slots_idle;    // places in the cache (0 while LOADING); idle: kept for who begins alike
	uint64_t n_late_allocations;                 // times the device was asked for memory after READY: a fault, if not 0 (cuda)
	uint64_t memory_bytes;                       // of the device's own memory, taken at start; 0 on a device without any
	uint64_t streamed_bytes;                     // of weights, read from disk by passes
	uint64_t n_canaries, canary_age_ms;          // answers to the known question found right; since the last (once READY)
};

// Starts the engine thread, which loads the models: watch event_fd, then teacher_state.
int teacher_open(const struct teacher_options *options, struct teacher **ret_teacher, struct error *err);
// Items already submitted are answered first; NULL is fine. Nothing may be submitted any more.
void teacher_close(struct teacher *t);
enum teacher_state teacher_state(const struct teacher *t);
void teacher_error(const struct teacher *t, struct error *ret_error);        // why, when TEACHER_FAILED

// Valid once TEACHER_READY was seen.
const struct teacher_info *teacher_info(const struct teacher *t);            // of the first
const struct teacher_info *teacher_infos(const struct teacher *t, uint32_t *ret_n);    // (n) of all, in the order of the options
struct provenance teacher_provenance(const struct teacher_info *info);        // what its fingerprint is made of
const struct tokenizer *teacher_tokenizer(const struct teacher *t);

// Rows of a matrix of weights by token id, as they are stored, made float (n, width); of the final norm, its one row. Reads the model
// file: any thread may ask once TEACHER_READY was seen.
enum teacher_tensor { TEACHER_EMBEDDING, TEACHER_HEAD, TEACHER_FINAL_NORM };
int teacher_read_rows(const struct teacher *t, uint32_t member, enum teacher_tensor tensor, const uint32_t *ids, uint32_t n,
		      float *ret_values, struct error *err);

// Hands over a chain of checked items, linked by item->link; their request's choice says who answers. Each comes back through
// request->computed, from the engine thread, with a record or an error.
void teacher_submit(struct teacher *t, struct request_item *chain);
// Asks the known question again if that is due and nobody else asks anything (after three intervals also if somebody does). Returns in how
// many ms to call again, -1 for never. One thread's, once TEACHER_READY was seen. A wrong answer is TEACHER_FAILED, error field "canary".
int teacher_check(struct teacher *t);
void teacher_set_canary_interval(struct teacher *t, uint64_t ms);    // of the next teacher_check, whose thread it is
void teacher_stats(struct teacher *t, struct teacher_stats *ret_stats);
// Signs of life the engine has shown: of a pass each layer and each tile of the head, of an idle engine an answer to the last call of this.
// One thread's; any may call teacher_stats.
uint64_t teacher_beats(struct teacher *t);
// Where the engine's time goes, in stages: a score's wait for its pass since its request was accepted; choosing what a pass holds; the
// trunk; the head with all that is read from it, records included. Where passes overlap, no time is counted twice: of a trunk that the
// device computes while answers are read, what the engine still waits for.
struct teacher_seconds { struct histogram queue, batch, forward, epilogue; };
struct teacher_seconds *teacher_seconds(struct teacher *t);
