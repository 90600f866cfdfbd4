// SPDX-License-Identifier: Apache-2.0
// What a run asks its teachers, and when.
#pragma once

#include <stdint.h>

struct error;
struct query;
struct trainer;

// The kind of question that training asks (that of its first step), and that of evaluation.
void questions_prepare(struct trainer *t);
// That of one step to one teacher (of the objective's): schedules change it. query_done it.
void questions_at(const struct trainer *t, uint32_t teacher, uint64_t step, struct query *ret);
// Asks for the next micro-batches of the stream until `ahead` are outstanding or the run has no more. Where the student's own ids are
// wanted, those of its present parameters: then it never asks beyond the step in progress.
int questions_ask(struct trainer *t, uint32_t ahead, struct error *err);
