// SPDX-License-Identifier: Apache-2.0
// One small pass of each kind before the first request: what a device refuses it refuses at start, its code is loaded and its plans are
// made, so that nothing is asked of it later that it has not done before.
#pragma once

struct backend;
struct error;
struct member;

// With a member that is loaded. Leaves nothing behind, in the cache neither.
int rehearsal_run(const struct member *m, struct backend *be, struct error *err);
