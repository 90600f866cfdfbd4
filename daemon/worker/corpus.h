// SPDX-License-Identifier: Apache-2.0
// What a run trains on: its texts, or the sequences that shards hold. Answers that are missing are counted before anything is trained.
#pragma once

#include <stddef.h>
#include <stdint.h>

struct error;
struct trainer;

// Fills t->dataset, split. Offline the list is fixed here: what a resumed run trains on is what it began with, whatever was stored since.
// Needs answers, tokenizer and the question; may take `own` out of held_out_query.
int corpus_open(struct trainer *t, struct error *err);
// The list that another process of the team made, as dataset_encode wrote it, and where its domains end: fills t->dataset, split.
int corpus_take(struct trainer *t, const void *bytes, size_t n, const uint32_t *domain_ends, uint32_t n_domains, struct error *err);
// Once the steps are planned: whether shards answer what schedules will ask in the course of the run, by samples.
int corpus_check_schedules(struct trainer *t, struct error *err);
