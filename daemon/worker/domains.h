// SPDX-License-Identifier: Apache-2.0
// Domain factors (DDK): how much of each file of the corpus a run trains on follows, every so many steps, how far the student is behind the
// teacher on the held-out sequences of that file.
#pragma once

#include <stdbool.h>
#include <stdint.h>

struct error;
struct trainer;

// With the held-out answers at hand and before the first question of training: measures, or takes what a checkpoint says.
int domains_begin(struct trainer *t, struct error *err);
// After a step and its evaluation: measures again where it is time.
int domains_renew(struct trainer *t, struct error *err);
// Whether the shares of that step are not known yet.
bool domains_wait(const struct trainer *t, uint64_t step);
