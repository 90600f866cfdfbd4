// SPDX-License-Identifier: Apache-2.0
// Where answers come from, as answers.c sees it: a server (source_server.c), shards (source_shards.c) or
// the text alone (source_labels.c). Opened by one thread, then used by
// answers.c's own; only the counters are shared.
#pragma once

#include "daemon/worker/answers.h"

struct source;

struct question {
	const struct sequence *sequence;
	const struct query *query;             // canonical
	struct record_rows **rows;             // where the answer goes; NULL until then
};

struct source_ops {
	// Answers n questions that were all asked by `asked` (before it was made canonical). 0: every one has its rows.
	int (*answer)(struct source *s, const struct query *asked, const struct question *questions, size_t n, struct error *err);
	int (*get)(struct source *s, const char *path, char **ret_body, size_t *ret_n, struct error *err);
	int (*count)(struct source *s, const struct question *questions, uint32_t n, bool *ret_has, struct error *err);
	int (*survey)(struct source *s, const struct query *query, uint32_t max_tokens, answers_told_fn *told, void *arg,
		      struct answers_survey *ret, struct error *err);
	void (*close)(struct source *s);       // half-open ones too
};

struct source {
	const struct source_ops *ops;
	struct answers_info info;
	size_t max_questions;                  // of one call that joins several submitted ones; 0 = never joined
	const atomic_bool *stop, *closing;
	struct {
		atomic_uint_fast64_t n_answers, n_cached, n_lost, n_kept, n_keep_failures, n_reconnects;
	} counters;
};

// Each gives what close takes also when it fails, or NULL.
int source_server_open(const struct answers_options *options, const atomic_bool *closing, struct source **ret, struct error *err);
int source_labels_open(const struct answers_options *options, const atomic_bool *closing, struct source **ret, struct error *err);
int source_shards_open(const struct answers_options *options, const atomic_bool *closing, struct source **ret, struct error *err);

// The question as the teacher's limits allow it, with `gather` where that is not NULL, canonical; query_done it, also after a failure.
int source_question(const struct source *s, const struct query *asked, const struct sequence *sequence, const struct id_lists *gather,
		    struct query *ret, struct error *err);

static inline bool source_ending(const struct source *s)
{
	return atomic_load(s->closing) || atomic_load(s->stop);
}
