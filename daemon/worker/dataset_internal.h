// SPDX-License-Identifier: Apache-2.0
// The dataset as its own files see it: dataset.c makes the list and the order of training, dataset_file.c writes the list down.
#pragma once

#include "daemon/model/packing.h"
#include "daemon/worker/dataset.h"

struct dataset_item {
	uint32_t start, n;             // tokens[start] .. tokens[start + n - 1]
	uint32_t place;                // number in the order of appending
	uint32_t first;                // token that is the first to be learned; 0 as 1
};

struct dataset {
	struct dataset_options options;
	struct packing packing;
	uint32_t *tokens;              // of sequences appended whole
	size_t n_tokens, capacity;
	struct dataset_item *items;    // the list
	uint32_t n_items, item_capacity;
	bool listed;
	uint64_t n_held_out;
	uint32_t *train, *held_out;    // numbers of items
	uint32_t *order;               // (n_places) numbers of places, of `epoch`
	uint64_t epoch;
	uint32_t n_places, per_place;
	uint32_t n_domains, domain_ends[DATASET_MAX_DOMAINS];  // places of items below which each ends
	uint32_t *domain_places, *domain_order;                // (n_train) places by domain, as they are and in the order
	                                                       // of the epochs below
	uint32_t domain_starts[DATASET_MAX_DOMAINS + 1];
	uint64_t domain_epochs[DATASET_MAX_DOMAINS];
	struct dataset_domains drawn_from, drawn;              // as set, and moved on to the position last asked for
	uint32_t *place_starts, *placed;       // (n_places + 1), (n_train) items of each place; NULL: place i is train[i]
};

// The places, from the items of `train`; with documents and sequential order train must be in the order of appending.
int dataset_fill_places(struct dataset *d, struct error *err);

int dataset_fill_domains(struct dataset *d, struct error *err);
uint32_t dataset_domain_place(struct dataset *d, uint64_t position);

// Items and tokens as they are read back: already in the order of the list.
int dataset_add_item(struct dataset *d, uint32_t n, uint32_t place, struct error *err);        // its tokens are the next ones appended
int dataset_add_tokens(struct dataset *d, const uint32_t *tokens, size_t n, struct error *err);
const uint32_t *dataset_tokens(const struct dataset *d);       // what items point into
bool dataset_has_prompts(const struct dataset *d);             // some sequence begins with tokens that are not learned
