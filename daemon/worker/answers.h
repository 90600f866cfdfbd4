// SPDX-License-Identifier: Apache-2.0
// The teacher as a training run sees it: ask for micro-batches ahead, take the answers in order. Behind it is a server, or the shards that
// one (or a capture) left. A thread of its own fetches, so answers arrive while the student trains. A server that goes away is waited for;
// an answer that is an error never becomes a number: it is asked again where that can help, else it ends the run with its reason. What a
// server said may be kept in a store. A record that is damaged or gone is reported, and its rows are masked.
#pragma once

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/provenance.h"
#include "common/query.h"

struct answers;
struct id_lists;
struct error;
struct record_rows;
struct tokenizer;

struct answers_options {
	const char *shards;                    // directories, separated by commas: no server is asked. NULL = server
	const struct tokenizer *labels;        // nobody is asked: the next token is the answer, in its vocabulary. NULL = server
	uint32_t max_tokens;                   // of a question, with labels
	const char *server;                    // "unix:PATH", "tcp:ADDRESS:PORT" or "tls:HOST:PORT"
	const char *ca, *server_name;          // with tls: as in struct kd_options
	const char *teacher;                   // name of one of the server's teachers; NULL = its first
	bool masked;                           // of a server: the teacher must name masked tokens; else the ones that follow
	const char *teacher_id;                // fingerprint that is wanted, 64 hexadecimal digits; NULL = any
	const char *token;                     // NULL = none
	const char *store_directory;           // of what a server said; NULL = keep nothing
	uint64_t patience_ms;                  // without any answer of a server for this long: give up
	const atomic_bool *stop;              // set: calls return -ECANCELED soon
};

// Connects, waiting for the server if need be; or opens the shards, which others may go on writing. From then on the teacher must stay the
// same (its fingerprint).
int answers_open(const struct answers_options *options, struct answers **ret, struct error *err);
void answers_close(struct answers *a);         // NULL is fine

struct answers_info {
	struct content_id teacher;
	uint32_t vocab_size;
	uint32_t max_tokens, max_top_k, max_gather, max_draws; // of a question
	uint32_t n_layers;                     // of the teacher; 0 = not known (shards)
	uint64_t n_parameters;                 // of the teacher; 0 = not known (shards)
	bool described;                        // whether it is known what the fingerprint is made of:
	struct provenance provenance;
};
const struct answers_info *answers_info(const struct answers *a);
bool answers_are_shards(const struct answers *a);

// A control resource of the server ("/v1/tokenizer"): its bytes, NUL-terminated, the caller frees. ERROR_UNSUPPORTED without one. Like the
// next two only before the first answers_submit.
int answers_get(struct answers *a, const char *path, char **ret_body, size_t *ret_n, struct error *err);

// Which of the questions shards answer: ret_has (n), and how many they do not. A server answers all.
int answers_count(struct answers *a, const struct query *query, const struct sequence *sequences, uint32_t n, bool *ret_has,
		  uint32_t *ret_n_missing, struct error *err);

// Every sequence of 2 to max_tokens tokens to which the shards have the answer, in shard order; one that occurs twice is told twice.
struct answers_survey {
	uint64_t n_told;
	uint64_t n_other_teacher, n_too_long, n_too_short;
	uint64_t n_unfit;                      // does not hold the answer: fewer ids, other temperatures, values or rows
	uint64_t n_damaged;                    // stretches of shards, each reported
	struct query unfit;                    // what one of n_unfit does hold; query_done
};
typedef int answers_told_fn(void *arg, const struct sequence *s, struct error *err);
int answers_survey(struct answers *a, const struct query *query, uint32_t max_tokens, answers_told_fn *told, void *arg,
		   struct answers_survey *ret, struct error *err);

// Asks one query of n sequences; everything is copied. Any number may be outstanding. gather (n), or NULL: the ids asked about in each, row
// by row, beside the query, which then names none itself.
int answers_submit(struct answers *a, const struct query *query, const struct sequence *sequences, const struct id_lists *gather,
		   uint32_t n, struct error *err);
// Waits for the oldest question: fills ret_rows (as many as were asked, in order), each the caller's to free.
int answers_next(struct answers *a, struct record_rows **ret_rows, struct error *err);

struct answers_stats {
	uint64_t n_answers, n_cached;          // n_cached: came from the server's store, from our own, or from shards
	uint64_t n_lost;                       // sequences whose record is damaged or gone: their rows are masked
	uint64_t n_reconnects;
	uint64_t n_kept, n_keep_failures;      // appended to the run's own store, or not (the run goes on)
};
void answers_stats(struct answers *a, struct answers_stats *ret);
