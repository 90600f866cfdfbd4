// SPDX-License-Identifier: Apache-2.0
// Private to libkdclient: the caller's structures become ours. Theirs may come from a program built with another header.
#pragma once

#include "clients/kdclient.h"
#include "common/error.h"
#include "common/query.h"

// `from` and `to` begin with their size_t size. What an older program does not know is zero; what we do not know must be.
int convert_sized(void *to, size_t size, const void *from, const char *what, struct error *err);

int convert_query(const struct kd_query *from, struct query *ret, struct error *err);             // query_done it
int convert_part(const struct kd_sequence *from, struct query_part *ret, struct error *err);      // query_part_done it
bool convert_has_part(const struct kd_sequence *s);
