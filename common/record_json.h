// SPDX-License-Identifier: Apache-2.0
// Rows as JSON, in the form of /v1/score (kdserved-http.7): the one writer of it, for the server's replies and for kdctl.
#pragma once

#include <stddef.h>
#include <stdint.h>

struct buffer;
struct record_rows;

void record_json_ids(struct buffer *b, const uint32_t *ids, size_t n);                 // [..]
void record_json_numbers(struct buffer *b, const float *numbers, size_t n);            // NaN and infinity become null
// The weights of a row's drawn ids (methods: sum of weight ln q is an unbiased estimate of the cross-entropy): count / n of the draws times
// p / proposal; with tail draws of the tail's probability besides. As many as the row has distinct ids.
void record_json_weights(const struct record_rows *rows, uint32_t row, float *ret_weights);
// {"status":"ok","lse":[..],...}: the row's signals, those that were asked for.
void record_json_row(struct buffer *b, const struct record_rows *rows, uint32_t row);
// "rows":[..] and, where asked for, ,"spans":[..] (sums) and ,"pooled":[[..],..] (one vector per feature): members of an object that the
// caller has opened. Rows are left out when every signal is one of the whole sequence.
void record_json_members(struct buffer *b, const struct record_rows *rows);
