// SPDX-License-Identifier: Apache-2.0
#include "daemon/server/reply.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/error.h"
#include "common/record.h"
#include "common/record_json.h"
#include "daemon/model/tokenizer.h"
#include "common/buffer.h"
#include "daemon/teacher/request.h"
#include "daemon/teacher/teacher.h"

// The types OpenAI's clients tell apart; the code is ours.
static void openai_error(struct buffer *b, const struct error *e)
{
	int status = error_http_status(e->code);
	const char *type = status == 401 ? "authentication_error" : status == 429 ? "rate_limit_error" : status >= 500 ? "server_error"
		: "invalid_request_error";
	buffer_text(b, "{\"error\":{\"message\":");
	buffer_string(b, e->message, strlen(e->message));
	buffer_printf(b, ",\"type\":\"%s\",\"param\":", type);
	if (e->field[0])
		buffer_string(b, e->field, strlen(e->field));
	else
		buffer_text(b, "null");
	buffer_printf(b, ",\"code\":\"%s\"}}", error_name(e->code));
}

void reply_error(struct buffer *b, const struct error *e, enum reply_errors shape)
{
	if (shape == REPLY_ERRORS_OPENAI) {
		openai_error(b, e);
		return;
	}
	buffer_printf(b, "{\"error\":{\"code\":\"%s\",\"message\":", error_name(e->code));
	buffer_string(b, e->message, strlen(e->message));
	buffer_text(b, ",\"field\":");
	buffer_string(b, e->field, strlen(e->field));
	buffer_text(b, "}}");
}

void reply_provenance(struct buffer *b, const struct teacher_info *info)
{
	char fingerprint[CONTENT_ID_HEX], weights[CONTENT_ID_HEX], tokenizer[CONTENT_ID_HEX];
	content_id_to_hex(&info->fingerprint, fingerprint);
	content_id_to_hex(&info->weights_id, weights);
	content_id_to_hex(&info->tokenizer_id, tokenizer);
	buffer_printf(b, "\"id\":\"%s\",\"weights_id\":\"%s\",\"tokenizer_id\":\"%s\",\"numeric\":\"%s\",\"device\":\"%s\",\"name\":",
		      fingerprint, weights, tokenizer, info->numeric, info->device);
	buffer_string(b, info->name, strlen(info->name));
	buffer_printf(b, ",\"vocab_size\":%" PRIu32, info->architecture.vocab_size);
}

void reply_choice(struct buffer *b, const struct teacher *t, const struct choice *c)
{
	uint32_t n;
	const struct teacher_info *infos = teacher_infos(t, &n);
	char fingerprint[CONTENT_ID_HEX];
	if (!c->is_mixture) {
		reply_provenance(b, &infos[c->members[0]]);
		return;
	}
	content_id_to_hex(&c->fingerprint, fingerprint);
	buffer_printf(b, "\"id\":\"%s\",\"rule\":\"%s\",\"members\":[", fingerprint, c->rule == HEAD_MEAN ? "mean" : "logits");
	for (uint32_t i = 0; i < c->n_members; i++) {
		buffer_text(b, i ? ",{" : "{");
		reply_provenance(b, &infos[c->members[i]]);
		buffer_printf(b, ",\"weight\":%.17g}", c->weights[i]);
	}
	buffer_text(b, "]");
}

void reply_offsets(struct buffer *b, const struct token_offsets *offsets, size_t n)
{
	buffer_text(b, "[");
	for (size_t i = 0; i < n; i++)
		buffer_printf(b, "%s[%" PRIu32 ",%" PRIu32 "]", i ? "," : "", offsets[i].begin, offsets[i].end);
	buffer_text(b, "]");
}

// The record's columns of lse are sorted by temperature and without repeats; the caller's may be neither.
static int order_temperatures(struct record_rows *r, const struct query *asked, struct error *err)
{
	uint32_t n = asked->n_temperatures, has = r->query.n_temperatures;
	if (!n || !r->lse)
		return 0;
	float *lse = calloc((size_t)r->n_rows * n, sizeof *lse);
	if (!lse)
		return error_set(err, ERROR_MEMORY, NULL, "no memory for the reply");
	for (uint32_t i = 0; i < n; i++) {
		uint32_t column = 0;
		while (column + 1 < has && r->query.temperatures[column] != asked->temperatures[i])
			column++;
		for (uint32_t row = 0; row < r->n_rows; row++)
			lse[(size_t)row * n + i] = r->lse[(size_t)row * has + column];
	}
	free(r->lse);
	r->lse = lse;
	r->query.n_temperatures = n;
	memcpy(r->query.temperatures, asked->temperatures, sizeof asked->temperatures);
	return 0;
}

int reply_item(struct buffer *b, const struct request_item *item, const struct query *asked, const struct token_offsets *offsets,
	       bool base64, struct error *err)
{
	struct record_rows *rows = NULL;
	char id[CONTENT_ID_HEX];
	int r = record_decode(item->record, &rows, err);
	if (!r)
		r = order_temperatures(rows, asked, err);
	if (r) {
		record_rows_free(rows);
		return r;
	}
	struct content_id content = sequence_id(&item->sequence);
	content_id_to_hex(&content, id);
	buffer_printf(b, "{\"id\":\"%s\",\"cached\":%s,\"first\":%" PRId32 ",\"last\":%" PRId32 ",\"tokens\":", id,
		      item->cached ? "true" : "false", rows->query.first, rows->query.last);
	record_json_ids(b, item->sequence.tokens, item->sequence.n_tokens);
	if (offsets) {
		buffer_text(b, ",\"offsets\":");
		reply_offsets(b, offsets, item->sequence.n_tokens);
	}
	buffer_text(b, ",");
	if (base64)
		r = reply_packed(b, rows, err);
	else
		record_json_members(b, rows);
	buffer_text(b, "}");
	record_rows_free(rows);
	if (r)
		return r;
	return b->failed ? error_set(err, ERROR_MEMORY, NULL, "no memory for the reply") : 0;
}
