// SPDX-License-Identifier: Apache-2.0
// POST /v1/weights: rows of the embedding or of the LM head, read from the model file a piece at a time. Its one complication is its bound:
// the reply is made at once by the door's thread, so a piece is limited to what that takes in tens of milliseconds.
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/error.h"
#include "common/half.h"
#include "common/buffer.h"
#include "daemon/server/control_internal.h"
#include "daemon/server/json.h"
#include "daemon/server/reply.h"
#include "daemon/server/auth.h"
#include "daemon/server/service.h"
#include "daemon/teacher/choice.h"
#include "daemon/teacher/teacher.h"

#define MAX_JSON_VALUES (1u << 18)     // as decimal numbers: some 3 MB
#define MAX_PACKED_VALUES (1u << 22)   // as base64: 22 MB of f32

struct piece { uint32_t n, width, n_rows; const uint32_t *ids; uint32_t *made; float *values; };    // n_rows: of the whole tensor

static void piece_done(struct piece *p)
{
	free(p->made);
	free(p->values);
}

static int check_ids(const struct json_weights *w, uint32_t n_rows, struct error *err)
{
	for (uint32_t i = 0; i < w->ids.n_tokens; i++) {
		char field[32];
		if (w->ids.tokens[i] < n_rows)
			continue;
		snprintf(field, sizeof field, "ids[%" PRIu32 "]", i);
		return error_set(err, ERROR_INVALID, field, "id %" PRIu32 " is not in the vocabulary of %" PRIu32,
			w->ids.tokens[i], n_rows);
	}
	return 0;
}

// Which rows; a range is made a list.
static int choose_rows(const struct json_weights *w, struct piece *p, struct error *err)
{
	uint32_t limit = (w->base64 ? MAX_PACKED_VALUES : MAX_JSON_VALUES) / p->width;
	if (w->first >= p->n_rows)
		return error_set(err, ERROR_INVALID, "first", "%" PRIu32 " is not below %" PRIu32, w->first, p->n_rows);
	if (w->count > (int64_t)(p->n_rows - w->first))
		return error_set(err, ERROR_INVALID, "count", "there are %" PRIu32 " rows from %" PRIu32 " on",
			p->n_rows - w->first, w->first);
	p->n = w->ids.tokens ? w->ids.n_tokens : w->count < 0 ? p->n_rows - w->first : (uint32_t)w->count;
	if (p->n > limit)
		return error_set(err, ERROR_TOO_LARGE, w->ids.tokens ? "ids" : "count",
				 "%" PRIu32 " rows of %" PRIu32 " numbers, the limit is %" PRIu32 " rows%s", p->n, p->width, limit,
				 w->base64 ? "" : " (more with base64)");
	p->ids = w->ids.tokens;
	if (p->ids)
		return check_ids(w, p->n_rows, err);
	p->ids = p->made = calloc(p->n, sizeof *p->made);
	for (uint32_t i = 0; p->made && i < p->n; i++)
		p->made[i] = w->first + i;
	return p->made ? 0 : error_set(err, ERROR_MEMORY, NULL, "no memory for %" PRIu32 " rows", p->n);
}

static int read_piece(const struct teacher *t, uint32_t member, const struct json_weights *w, struct piece *p, struct error *err)
{
	uint32_t n;
	static const enum teacher_tensor tensors[] = {TEACHER_EMBEDDING, TEACHER_HEAD, TEACHER_FINAL_NORM};
	const struct architecture *a = &teacher_infos(t, &n)[member].architecture;
	p->width = a->width;
	p->n_rows = w->tensor == JSON_FINAL_NORM ? 1 : a->vocab_size;
	int r = choose_rows(w, p, err);
	if (r)
		return r;
	p->values = malloc((size_t)p->n * p->width * sizeof *p->values);
	if (!p->values)
		return error_set(err, ERROR_MEMORY, NULL, "no memory for %" PRIu32 " rows", p->n);
	return teacher_read_rows(t, member, tensors[w->tensor], p->ids, p->n, p->values, err);
}

static uint16_t narrow(float v, enum json_dtype dtype)
{
	return dtype == JSON_F16 ? half_from_float(v) : bfloat_from_float(v);
}

static void encode_packed(struct buffer *b, const struct piece *p, enum json_dtype dtype)
{
	static const char *const names[] = {"f32", "f16", "bf16"};
	size_t n = (size_t)p->n * p->width;
	uint16_t *narrowed = (uint16_t *)p->values;      // in place: a narrow number lies before the wide one it is made of
	for (size_t i = 0; i < n && dtype != JSON_F32; i++) {
		uint16_t v = narrow(p->values[i], dtype);
		memcpy((char *)narrowed + 2 * i, &v, sizeof v);
	}
	buffer_printf(b, "{\"dtype\":\"%s\",\"shape\":[%" PRIu32 ",%" PRIu32 "],\"data\":\"", names[dtype], p->n, p->width);
	buffer_base64(b, p->values, n * (dtype == JSON_F32 ? 4 : 2));
	buffer_text(b, "\"}");
}

static void encode_rows(struct buffer *b, const struct piece *p, enum json_dtype dtype)
{
	for (uint32_t i = 0; i < p->n; i++) {
		buffer_text(b, i ? ",[" : "[[");
		for (uint32_t j = 0; j < p->width; j++) {
			float v = p->values[(size_t)i * p->width + j];
			if (dtype != JSON_F32)
				v = dtype == JSON_F16 ? half_to_float(narrow(v, dtype)) : bfloat_to_float(narrow(v, dtype));
			buffer_text(b, j ? "," : "");
			buffer_float(b, v);
		}
		buffer_text(b, "]");
	}
	buffer_text(b, "]");
}

static int find_member(const struct teacher *t, const struct json_weights *w, uint32_t *ret, struct error *err)
{
	uint32_t n;
	const struct teacher_info *infos = teacher_infos(t, &n);
	return w->teacher ? choice_find(w->teacher, "teacher", infos, n, ret, err) : 0;
}

int control_post_weights(const struct control_input *in, struct control_reply *out, struct error *err)
{
	static const char *const names[] = {"embedding", "head", "final_norm"};
	struct json_weights w = {0};
	struct piece p = {0};
	uint32_t member = 0;
	struct buffer *b = &out->body;
	int r = control_check_loaded(in->service, err);
	if (!r && auth_k_max(in->principal))
		r = error_set(err, ERROR_FORBIDDEN, "token", "the token bounds the ids of a row, and a row of weights says more");
	if (!r)
		r = json_read_weights(in->body, in->n, &w, err);
	if (!r)
		r = find_member(service_teacher(in->service), &w, &member, err);
	if (!r)
		r = read_piece(service_teacher(in->service), member, &w, &p, err);
	if (!r) {
		uint32_t n;
		const struct teacher_info *info = &teacher_infos(service_teacher(in->service), &n)[member];
		buffer_text(b, "{\"teacher\":{");
		reply_provenance(b, info);
		buffer_printf(b, "},\"tensor\":\"%s\",\"rows\":%" PRIu32 ",\"width\":%" PRIu32 ",\"tied\":%s,\"values\":", names[w.tensor],
			      p.n_rows, p.width, info->architecture.tied_head ? "true" : "false");
		(w.base64 ? encode_packed : encode_rows)(b, &p, w.dtype);
		buffer_text(b, "}");
		if (!b->failed)
			auth_serve(in->principal, p.n, (uint64_t)p.n * p.width);
	}
	piece_done(&p);
	json_weights_done(&w);
	return r;
}
