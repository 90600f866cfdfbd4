// SPDX-License-Identifier: Apache-2.0
// The record as an object: reference count, header checks. What it holds is record_sections.c, record_encode.c and record_decode.c.
#include "common/record_layout.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "common/crc32c.h"
#include "common/cursor.h"
#include "common/error.h"

struct record *record_new(size_t n_bytes)
{
	struct record *record = malloc(sizeof *record + n_bytes);
	if (!record)
		return NULL;
	memset(record, 0, sizeof *record);
	atomic_init(&record->n_references, 1);
	record->n_bytes = n_bytes;
	return record;
}

uint32_t record_checksum(const uint8_t *bytes, size_t n)
{
	return crc32c(crc32c(0, bytes, RECORD_CRC_AT), bytes + RECORD_CRC_AT + 4, n - RECORD_CRC_AT - 4);
}

// Magic, version, length, checksum: after this the bytes are what somebody wrote, though perhaps somebody hostile.
static int check_frame(const uint8_t *bytes, size_t n, struct error *err)
{
	struct reader r = reader_init(bytes, n);
	uint32_t magic = reader_u32(&r);
	uint16_t version = reader_u16(&r), flags = reader_u16(&r);
	uint32_t total = reader_u32(&r), crc = reader_u32(&r);
	if (n < RECORD_HEADER_BYTES || n > RECORD_MAX_BYTES)
		return error_set(err, ERROR_CORRUPT, "record", "%zu bytes cannot be a record", n);
	if (magic != RECORD_MAGIC)
		return error_set(err, ERROR_CORRUPT, "record", "not a record (magic 0x%08" PRIx32 ")", magic);
	if (version != RECORD_VERSION)
		return error_set(err, ERROR_UNSUPPORTED, "record", "version %d, this build reads version %d only", version, RECORD_VERSION);
	if (total != n)
		return error_set(err, ERROR_CORRUPT, "record", "says it has %" PRIu32 " bytes, there are %zu", total, n);
	if (crc != record_checksum(bytes, n))
		return error_set(err, ERROR_CORRUPT, "record", "checksum is wrong");
	if (flags == RECORD_FLAG_SHORT)
		return error_set(err, ERROR_UNSUPPORTED, "record", "a short record: its question is missing");
	if (flags)
		return error_set(err, ERROR_UNSUPPORTED, "record", "unknown flags 0x%04x", flags);
	return 0;
}

int check_canonical(const struct query *q, const struct sequence *s, uint32_t vocab_size, uint32_t n_rows, struct error *err)
{
	struct query again;
	struct query_limits limits = {.max_tokens = UINT32_MAX, .max_top_k = UINT32_MAX, .max_gather = UINT32_MAX, .max_draws = UINT32_MAX,
				      .max_spans = UINT32_MAX, .vocab_size = vocab_size, .n_layers = UINT16_MAX + 1};
	struct error why = {0};
	if (query_copy(&again, q))
		return error_set(err, ERROR_MEMORY, NULL, "no memory for a question");
	int r = query_check(&again, s, &limits, "", &why);
	if (r)
		r = error_set(err, why.code == ERROR_MEMORY ? why.code : ERROR_CORRUPT, "record", "its question is not valid: %s: %s",
			      why.field, why.message);
	else if (!query_equal(q, &again))
		r = error_set(err, ERROR_CORRUPT, "record", "its query is not canonical");
	else if (query_rows(q) != n_rows)
		r = error_set(err, ERROR_CORRUPT, "record", "%" PRIu32 " rows, the query asks for %" PRIu32, n_rows, query_rows(q));
	query_done(&again);
	return r;
}

// The question: tokens within the vocabulary, the query canonical, the key its hash.
static int check_question(const struct record *record, const struct query *q, const uint8_t *tokens, struct error *err)
{
	struct sequence s = {0};
	struct content_id teacher, key;
	memcpy(teacher.bytes, record->bytes + RECORD_TEACHER_AT, sizeof teacher.bytes);
	s.tokens = malloc(4 * (size_t)record->n_tokens + 1);
	if (!s.tokens)
		return error_set(err, ERROR_MEMORY, NULL, "no memory for %" PRIu32 " tokens", record->n_tokens);
	s.n_tokens = record->n_tokens;
	load_numbers(s.tokens, tokens, s.n_tokens);
	int r = check_canonical(q, &s, record->vocab_size, record->n_rows, err);
	if (!r) {
		key = query_key(&teacher, &s, q);
		if (memcmp(key.bytes, record->bytes + RECORD_KEY_AT, sizeof key.bytes) != 0)
			r = error_set(err, ERROR_CORRUPT, "record", "its key is not the hash of its question");
	}
	sequence_done(&s);
	return r;
}

int record_check_sections(const struct record *record, struct error *err)
{
	struct section sections[N_SECTIONS_MAX];
	uint32_t given = load_u32(record->bytes + RECORD_HEADER_BYTES - 4, 0);    // u16, and a reserved u16 of 0 above it
	unsigned n = section_list(&record->query, record->n_rows, record->vocab_size, sections);
	return given == n ? 0 : error_set(err, ERROR_CORRUPT, "record", "%" PRIu32 " sections, the query calls for %u", given, n);
}

// Fills record->query even where it fails: record_unref frees it.
static int parse_query(struct record *record, struct reader *q, const uint8_t *tokens, struct error *err)
{
	struct error why = {0};
	if (query_decode(q, &record->query, &why))
		return error_set(err, why.code == ERROR_UNSUPPORTED || why.code == ERROR_MEMORY ? why.code : ERROR_CORRUPT, "record",
				 "query: %s", why.message);
	if (reader_left(q))
		return error_set(err, ERROR_CORRUPT, "record", "query: %zu bytes too many", reader_left(q));
	int r = check_question(record, &record->query, tokens, err);
	return r ? r : record_check_sections(record, err);
}

static int parse_header(struct record *record, struct error *err)
{
	struct reader r = reader_init(record->bytes, record->n_bytes);
	(void)reader_bytes(&r, RECORD_KEY_AT + CONTENT_ID_BYTES);
	record->vocab_size = reader_u32(&r);
	record->n_tokens = reader_u32(&r);
	record->n_rows = reader_u32(&r);
	uint32_t query_bytes = reader_u32(&r);
	(void)reader_u32(&r);    // the number of sections: once the query is known
	struct reader q = reader_init(reader_bytes(&r, query_bytes), query_bytes);
	const uint8_t *tokens = reader_bytes(&r, 4 * (size_t)record->n_tokens);
	if (r.failed || !record->vocab_size || record->vocab_size > QUERY_MAX_VOCABULARY)
		return error_set(err, ERROR_CORRUPT, "record", "header counts are out of range");
	record->sections_at = r.position;
	return parse_query(record, &q, tokens, err);
}

int record_from_bytes(const void *bytes, size_t n, struct record **ret_record, struct error *err)
{
	int r = check_frame(bytes, n, err);
	if (r)
		return r;
	struct record *record = record_new(n);
	if (!record)
		return error_set(err, ERROR_MEMORY, NULL, "no memory for a record of %zu bytes", n);
	memcpy(record->bytes, bytes, n);
	r = parse_header(record, err);
	if (r)
		record_unref(record);
	else
		*ret_record = record;
	return r;
}

struct record *record_ref(struct record *record)
{
	atomic_fetch_add_explicit(&record->n_references, 1, memory_order_relaxed);
	return record;
}

struct record *record_unref(struct record *record)
{
	// acq_rel: the thread that frees must see everything the others did with the record before they let go.
	if (record && atomic_fetch_sub_explicit(&record->n_references, 1, memory_order_acq_rel) == 1) {
		query_done(&record->query);
		free(record);
	}
	return NULL;
}

const void *record_bytes(const struct record *record, size_t *ret_n)
{
	*ret_n = record->n_bytes;
	return record->bytes;
}

// An id is 32 bytes without alignment, so it can be looked at where it lies.
const struct content_id *record_key(const struct record *record)
{
	return (const struct content_id *)(record->bytes + RECORD_KEY_AT);
}

// The checksum they carry is that of the bytes before it and after it.
uint32_t record_crc(const struct record *record)
{
	const uint8_t *bytes = record->bytes;
	uint32_t before = crc32c(0, bytes, RECORD_CRC_AT), with = crc32c(0, bytes, RECORD_CRC_AT + 4), carried;
	memcpy(&carried, bytes + RECORD_CRC_AT, sizeof carried);
	return crc32c_join(before ^ with, le32toh(carried), record->n_bytes - RECORD_CRC_AT - 4);
}

const struct content_id *record_teacher(const struct record *record)
{
	return (const struct content_id *)(record->bytes + RECORD_TEACHER_AT);
}

uint32_t record_n_rows(const struct record *record)
{
	return record->n_rows;
}

const struct query *record_query(const struct record *record)
{
	return &record->query;
}

uint32_t record_n_tokens(const struct record *record)
{
	return record->n_tokens;
}

uint32_t record_vocab_size(const struct record *record)
{
	return record->vocab_size;
}

int record_sequence(const struct record *record, struct sequence *ret_sequence)
{
	const uint8_t *tokens = record->bytes + record->sections_at - 4 * (size_t)record->n_tokens;
	struct sequence s = {.tokens = malloc(4 * (size_t)record->n_tokens), .n_tokens = record->n_tokens};
	if (!s.tokens)
		return -ENOMEM;
	for (uint32_t i = 0; i < s.n_tokens; i++)
		s.tokens[i] = load_u32(tokens, i);
	*ret_sequence = s;
	return 0;
}
