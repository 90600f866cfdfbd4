// SPDX-License-Identifier: Apache-2.0
// Several stores as one source, as its own files see it: source_shards.c answers, source_survey.c walks through everything.
#pragma once

#include "daemon/worker/source.h"

struct shards_store {
	char *directory;
	struct store *store;
	struct store_reader *reader;
};

struct source_shards {
	struct source base;
	struct shards_store *stores;           // (n_stores) asked in this order
	size_t n_stores;
};

// Whose answers they are: the one wanted, or the only one there is. Sets base.info.
int survey_teacher(struct source_shards *s, const char *teacher_id, struct error *err);
int survey_sequences(struct source *base, const struct query *query, uint32_t max_tokens, answers_told_fn *told, void *arg,
		     struct answers_survey *ret, struct error *err);
