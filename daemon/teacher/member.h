// SPDX-License-Identifier: Apache-2.0
// One resident model and what is made for it. Several share the backend, the batch, the place of a tile of logits, and one vocabulary.
#pragma once

#include "daemon/teacher/generator.h"
#include "daemon/teacher/schedule.h"
#include "daemon/teacher/teacher.h"

struct activations;
struct backend;
struct backend_need;
struct error;
struct head;
struct model_file;
struct tokenizer;
struct weights;

struct member {
	struct teacher_info *info;         // the teacher's
	struct model_file *file;           // open for member_read_rows
	struct weights *weights;
	struct activations *activations;
	struct head *head;
	struct schedule schedule;
	struct generator_counters generated;
};

// Opens the file: architecture, tokenizer (the caller's) and what info says of them. options: of the teacher.
int member_open(struct member *m, const struct teacher_source *source, const struct teacher_options *options, struct teacher_info *info,
		struct tokenizer **ret_tokenizer, struct error *err);
// Rows of the longest pass.
uint32_t member_capacity(const struct member *m, const struct teacher_options *options);
// Adds to *need all that member_load will make. owner: as there.
int member_need(const struct member *m, bool owner, uint32_t capacity, const struct teacher_options *options, struct backend_need *need,
		struct error *err);
uint64_t member_loading_bytes(const struct member *m);     // of host memory, beside what is counted, while it is loaded
// Loads it: every buffer it will ever use. owner: of the place of logits, NULL for the first. Then info is complete.
int member_load(struct member *m, struct backend *be, struct head *owner, const struct tokenizer *tokenizer, uint32_t capacity,
		const struct teacher_options *options, struct error *err);
void member_unload(struct member *m);      // all but the file; a half-loaded one is fine. Before the backend closes, owners last
void member_close(struct member *m);
int member_read_rows(const struct member *m, enum teacher_tensor tensor, const uint32_t *ids, uint32_t n, float *ret_values,
		     struct error *err);
