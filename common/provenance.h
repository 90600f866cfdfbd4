// SPDX-License-Identifier: Apache-2.0
// What a teacher's fingerprint is made of, and the note that says so beside its answers (kdserved-shard.5): a fingerprint alone tells
// nobody which tokenizer the ids of a record belong to. A note proves itself: what it names must hash to the fingerprint.
#pragma once

#include <stddef.h>

#include "common/sequence.h"

struct error;

#define PROVENANCE_CODEC "3"           // of records; part of the fingerprint, so that a new codec never answers from old bytes
#define PROVENANCE_MAX_BYTES 1024      // of a note
#define PROVENANCE_NAME_BYTES 128
#define PROVENANCE_WORD_BYTES 16

struct provenance {
	struct content_id fingerprint;             // of the four below
	struct content_id weights, tokenizer;
	char numeric[PROVENANCE_WORD_BYTES];       // number format of the teacher's products
	char codec[PROVENANCE_WORD_BYTES];
	char name[PROVENANCE_NAME_BYTES];          // what it was called; "" = nothing
};

// SHA-256 over "kdserved teacher 1\n", weights, tokenizer, numeric and codec, each of the last two with a zero behind it.
struct content_id provenance_fingerprint(const struct provenance *p);

// A text of lines; returns its length. Characters of the name that are not printable ASCII become '?'.
size_t provenance_encode(const struct provenance *p, char ret_text[PROVENANCE_MAX_BYTES]);
// Hostile bytes, not terminated. -EBADMSG when they are not a note. Sets the fingerprint to what the note proves.
int provenance_decode(const char *text, size_t n, struct provenance *ret, struct error *err);
