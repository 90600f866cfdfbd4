// SPDX-License-Identifier: Apache-2.0
// The course of a run, from metrics.jsonl: a bounded number of its lines, evenly spread, however long the run was.
#pragma once

#include <jansson.h>
#include <stdint.h>

struct error;

#define HISTORY_POINTS 1000            // lines of an answer: more than a curve on a screen can show

// Adds a report to a list whose steps ascend: those that a resumed run repeats leave. One without a step is not taken. Takes the
// reference. -1: no memory.
int history_add(json_t *points, json_t *point);
// A list of at most HISTORY_POINTS + 1 objects with ascending `step`, the file's last line among them. A resumed run repeats steps: what
// it said last counts. Lines that are not objects with a step are passed over; no file is an empty list. The caller's reference.
int history_read(const char *path, json_t **ret_points, struct error *err);
