// SPDX-License-Identifier: Apache-2.0
// A record as one line of JSON: rows in the form of /v1/score, the question under its names, and what makes the line a whole record again.
#include <inttypes.h>

#include "clients/kdctl/store_transfer.h"
#include "common/buffer.h"
#include "common/record_json.h"

static void encode_lists(struct buffer *b, const struct query *q)
{
	const struct id_lists *l = &q->gather;
	if (l->n_lists)
		buffer_text(b, ",\"gather\":[");
	for (uint32_t i = 0; i < l->n_lists; i++) {
		if (i)
			buffer_text(b, ",");
		record_json_ids(b, l->ids + l->offsets[i], l->offsets[i + 1] - l->offsets[i]);
	}
	if (l->n_lists)
		buffer_text(b, "]");
	if (q->n_keep) {
		buffer_text(b, ",\"keep\":");
		record_json_ids(b, q->keep, q->n_keep);
	}
	for (uint32_t i = 0; i < q->n_spans; i++)
		buffer_printf(b, "%s[%" PRIu32 ",%" PRIu32 "]", i ? "," : ",\"spans\":[", q->spans[i].begin, q->spans[i].end);
	if (q->n_spans)
		buffer_text(b, "]");
}

static void encode_features(struct buffer *b, const struct query *q)
{
	for (uint32_t i = 0; i < q->n_features; i++)
		buffer_printf(b, "%s{\"kind\":\"%s\",\"layer\":%d}", i ? "," : ",\"features\":[", question_kinds[q->features[i].kind],
			      q->features[i].layer);
	if (q->n_features)
		buffer_printf(b, "],\"pooling\":\"%s\",\"feature_values\":\"%s\"", question_poolings[q->pooling],
			      question_feature_values[q->feature_values]);
}

void line_encode_question(struct buffer *b, const struct query *q)
{
	buffer_printf(b, "{\"first\":%" PRId32 ",\"last\":%" PRId32, q->first, q->last);
	if (q->top_k)
		buffer_printf(b, ",\"top_k\":%" PRIu32, q->top_k);
	if (q->top_mass != 0) {
		buffer_text(b, ",\"top_mass\":");
		buffer_float(b, q->top_mass);
	}
	if (q->n_temperatures) {
		buffer_text(b, ",\"temperatures\":");
		record_json_numbers(b, q->temperatures, q->n_temperatures);
	}
	for (size_t i = 0; i < N_QUESTION_FLAGS; i++)
		if (*(const bool *)((const char *)q + question_flags[i].at))
			buffer_printf(b, ",\"%s\":true", question_flags[i].name);
	if (q->draws.n) {
		buffer_printf(b, ",\"draws\":{\"n\":%" PRIu32 ",\"tau\":", q->draws.n);
		buffer_float(b, q->draws.tau);
		buffer_printf(b, ",\"seed\":%" PRIu64 ",\"tail\":%s}", q->draws.seed, q->draws.tail ? "true" : "false");
	}
	encode_lists(b, q);
	encode_features(b, q);
	buffer_printf(b, ",\"values\":\"%s\"}", question_values[q->values]);
}

static void encode_widths(struct buffer *b, const struct record_rows *rows)
{
	if (!rows->query.n_features)
		return;
	buffer_text(b, "\"feature_widths\":");
	record_json_ids(b, rows->feature_widths, rows->query.n_features);
	buffer_text(b, ",");
}

void line_encode(struct buffer *b, const struct record *record, const struct record_rows *rows, bool exact)
{
	char key[CONTENT_ID_HEX], teacher[CONTENT_ID_HEX];
	size_t n;
	const void *bytes = record_bytes(record, &n);
	content_id_to_hex(record_key(record), key);
	content_id_to_hex(record_teacher(record), teacher);
	buffer_printf(b, "{\"version\":%d,\"key\":\"%s\",\"teacher\":\"%s\",\"vocab_size\":%" PRIu32 ",\"checksum\":%" PRIu32
		      ",\"tokens\":", RECORD_VERSION, key, teacher, rows->vocab_size, claims_checksum(record));
	record_json_ids(b, rows->sequence.tokens, rows->sequence.n_tokens);
	buffer_text(b, ",\"question\":");
	line_encode_question(b, &rows->query);
	buffer_text(b, ",");
	encode_widths(b, rows);
	if (rows->max_logit) {
		buffer_text(b, "\"max_logit\":");
		record_json_numbers(b, rows->max_logit, rows->n_rows);
		buffer_text(b, ",");
	}
	record_json_members(b, rows);
	if (exact) {
		buffer_text(b, ",\"record\":\"");
		buffer_base64(b, bytes, n);
		buffer_text(b, "\"");
	}
	buffer_text(b, "}");
}
