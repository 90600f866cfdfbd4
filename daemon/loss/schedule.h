// SPDX-License-Identifier: Apache-2.0
// A number that may change over a run:
//     0.5                       always
//     linear:1:0                from 1 at the first step to 0 at the end of the run
//     linear:1:0:100-500        1 up to step 100, 0 from step 500 on; "100-": to the end
//     cosine:1:0:100-500        the same along half a wave of a cosine
//     piecewise:0=1,100=.5      straight lines between the points, constant before and after them
#pragma once

#include <stdbool.h>
#include <stdint.h>

#define SCHEDULE_MAX_POINTS 16

struct schedule {
	enum { SCHEDULE_CONSTANT, SCHEDULE_LINEAR, SCHEDULE_COSINE, SCHEDULE_PIECEWISE } kind;
	uint32_t n;                            // points: 1, 2 or as many as were given
	uint64_t steps[SCHEDULE_MAX_POINTS];   // increasing; UINT64_MAX is the end of the run
	double values[SCHEDULE_MAX_POINTS];
};

int schedule_parse(const char *text, struct schedule *ret);            // -EINVAL
// step: steps done before this one; n_steps: of the whole run.
double schedule_at(const struct schedule *s, uint64_t step, uint64_t n_steps);
bool schedule_within(const struct schedule *s, double min, double max);        // all of its values
bool schedule_is(const struct schedule *s, double value);              // always
