// SPDX-License-Identifier: Apache-2.0
// Private to the record codec: sections whose length the answer decides.
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include "common/record_layout.h"

int read_corrupt(struct error *err, const char *what, size_t row);       // returns -EBADMSG
// Not ordered: checks alone, the rows' entries stay as they lie.
int read_top(struct record_rows *rows, const struct section *ids, const struct section *values, bool ordered, struct error *err);
int read_top_counts(struct record_rows *rows, const struct section *counts, struct error *err);     // before read_top
int read_draws(struct record_rows *rows, const struct section *draws, struct error *err);           // after tail and top-k
int read_draw_ratios(struct record_rows *rows, const struct section *ratios, struct error *err);    // after draws
