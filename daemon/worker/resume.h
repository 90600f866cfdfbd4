// SPDX-License-Identifier: Apache-2.0
// What a run keeps of itself, and how it goes on from there: parameters and the optimizer's arrays, where it is, what its schedules and its
// policy remember, the buffer of rollouts.
#pragma once

struct error;
struct trainer;

// A checkpoint of the last whole step, by process 0; the others do nothing.
int resume_save(struct trainer *t, struct error *err);
// With --resume the run becomes what its newest good checkpoint holds; without, there must be none. Process 0 alone.
int resume_load(struct trainer *t, struct error *err);
// The other processes become what process 0 is, beyond what share.c gives them. Collective.
int resume_share(struct trainer *t, struct error *err);
