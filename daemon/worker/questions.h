// SPDX-License-Identifier: Apache-2.0
// What a run asks its teacher, and when.
#pragma once

#include <stdint.h>

struct error;
struct trainer;

// The kind of question that training asks (that of its first step), and that of evaluation.
void questions_prepare(struct trainer *t);
// Asks for the next micro-batches of the stream until `ahead` are outstanding or the run has no more. Where the student's own ids are
// wanted, those of its present parameters: then it never asks beyond the step in progress.
int questions_ask(struct trainer *t, uint32_t ahead, struct error *err);
