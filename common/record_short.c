// SPDX-License-Identifier: Apache-2.0
#include "common/record_short.h"

#include <inttypes.h>

#include "common/cursor.h"
#include "common/error.h"
#include "common/record_layout.h"

#define SHORT_HEADER_BYTES (RECORD_HEADER_BYTES - CONTENT_ID_BYTES)    // all but the teacher
#define SHORT_KEY_AT RECORD_TEACHER_AT

size_t record_short_bytes(const struct record *record)
{
	return SHORT_HEADER_BYTES + record->n_bytes - record->sections_at;
}

void record_shorten(const struct record *record, uint8_t *to)
{
	const uint16_t flags = htole16(RECORD_FLAG_SHORT);
	memcpy(to, record->bytes, RECORD_TEACHER_AT);
	memcpy(to + RECORD_FLAGS_AT, &flags, sizeof flags);
	memcpy(to + SHORT_KEY_AT, record->bytes + RECORD_KEY_AT, RECORD_HEADER_BYTES - RECORD_KEY_AT);
	memcpy(to + SHORT_HEADER_BYTES, record->bytes + record->sections_at, record->n_bytes - record->sections_at);
}

static int corrupt(struct error *err, const char *what)
{
	return error_set(err, ERROR_CORRUPT, "record", "a short record %s", what);
}

// What the header says must be what the question makes of it; returns the size of the whole record.
static int check_header(const uint8_t *bytes, size_t n, const struct record_question *q, size_t n_query, size_t *ret_total,
			struct error *err)
{
	struct reader r = reader_init(bytes, n);
	struct content_id key;
	uint32_t magic = reader_u32(&r);
	uint16_t version = reader_u16(&r), flags = reader_u16(&r);
	uint32_t total = reader_u32(&r);
	(void)reader_u32(&r);
	reader_copy(&r, key.bytes, sizeof key.bytes);
	uint32_t vocab_size = reader_u32(&r), n_tokens = reader_u32(&r), n_rows = reader_u32(&r), query_size = reader_u32(&r);
	(void)reader_u32(&r);
	if (r.failed || magic != RECORD_MAGIC || flags != RECORD_FLAG_SHORT)
		return corrupt(err, "is none");
	if (version != RECORD_VERSION)
		return error_set(err, ERROR_UNSUPPORTED, "record", "version %d, this build reads version %d only", version, RECORD_VERSION);
	if (memcmp(&key, q->key, sizeof key) != 0)
		return corrupt(err, "answers another question");
	uint64_t whole = (uint64_t)n - SHORT_HEADER_BYTES + RECORD_HEADER_BYTES + n_query + 4 * (uint64_t)q->sequence->n_tokens;
	if (vocab_size != q->vocab_size || n_tokens != q->sequence->n_tokens || n_rows != query_rows(q->query) || query_size != n_query ||
	    total != whole || total > RECORD_MAX_BYTES)
		return corrupt(err, "does not fit its question");
	*ret_total = total;
	return 0;
}

static void write_whole(struct record *record, const uint8_t *bytes, size_t n, const struct record_question *q)
{
	struct writer w = writer_init(record->bytes, record->n_bytes);
	writer_bytes(&w, bytes, RECORD_TEACHER_AT);
	writer_bytes(&w, q->teacher->bytes, sizeof q->teacher->bytes);
	writer_bytes(&w, bytes + SHORT_KEY_AT, RECORD_HEADER_BYTES - RECORD_KEY_AT);
	query_encode(q->query, &w);
	store_numbers(record->bytes + w.position, q->sequence->tokens, q->sequence->n_tokens);
	w.position += 4 * (size_t)q->sequence->n_tokens;
	record->sections_at = w.position;
	writer_bytes(&w, bytes + SHORT_HEADER_BYTES, n - SHORT_HEADER_BYTES);
	memset(record->bytes + RECORD_FLAGS_AT, 0, 2);
	record->n_tokens = q->sequence->n_tokens;
	record->n_rows = query_rows(q->query);
	record->vocab_size = q->vocab_size;
}

int record_restore(const void *bytes, size_t n, const struct record_question *question, struct record **ret_record, struct error *err)
{
	size_t total = 0;
	int r = n < SHORT_HEADER_BYTES ? corrupt(err, "is cut short")
		: check_header(bytes, n, question, query_bytes(question->query), &total, err);
	if (r)
		return r;
	struct record *record = record_new(total);
	if (!record || query_copy(&record->query, question->query)) {
		free(record);
		return error_set(err, ERROR_MEMORY, NULL, "no memory for a record of %zu bytes", total);
	}
	write_whole(record, bytes, n, question);
	if (load_u32(record->bytes + RECORD_CRC_AT, 0) != record_checksum(record->bytes, total))
		r = corrupt(err, "has a wrong checksum");
	if (!r)
		r = record_check_sections(record, err);
	if (r)
		record_unref(record);
	else
		*ret_record = record;
	return r;
}
