// SPDX-License-Identifier: Apache-2.0
// A record without its question (kdserved-record.5, Short form): for whoever asked it and so knows teacher, tokens and query. The
// restored bytes are the record's own: checksum and all.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "common/record.h"

struct record_question {
	const struct content_id *teacher;
	const struct content_id *key;          // query_key() of the three
	const struct sequence *sequence;
	const struct query *query;             // canonical
	uint32_t vocab_size;
};

size_t record_short_bytes(const struct record *record);
void record_shorten(const struct record *record, uint8_t *to);      // record_short_bytes()
// -EBADMSG when the bytes are damaged or answer another question.
int record_restore(const void *bytes, size_t n, const struct record_question *question, struct record **ret_record, struct error *err);
