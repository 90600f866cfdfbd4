// SPDX-License-Identifier: Apache-2.0
// Private to libkdclient: what was asked about each sequence of a request. Kept until the answers are in, because the server leaves the
// question out of its records. Never changed once made, so the reading thread may use it without the client's lock.
#pragma once

#include <stdatomic.h>
#include <stdint.h>

#include "common/query.h"

struct error;

struct question {
	struct content_id key;           // of the record that answers it: any other is refused
	struct sequence sequence;
	struct query query;              // canonical
};

struct questions {
	atomic_uint n_references;
	uint32_t n;
	struct question items[];         // (n)
};

struct questions *questions_new(uint32_t n, struct error *err);     // NULL with the reason
struct questions *questions_ref(struct questions *q);
struct questions *questions_unref(struct questions *q);             // returns NULL; NULL is fine
