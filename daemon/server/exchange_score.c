// SPDX-License-Identifier: Apache-2.0
// POST /v1/score. Only one sequence of the reply is JSON at a time.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/error.h"
#include "common/record.h"
#include "common/buffer.h"
#include "daemon/server/exchange.h"
#include "daemon/server/json.h"
#include "daemon/server/service.h"
#include "daemon/teacher/teacher.h"

struct score {
	struct json_score asked;
	uint32_t n_replied;            // sequences written
};

// The service names what one sequence asks of its own "sequences[3].gather[2][7]"; in the body that is gather[3][2][7].
static void rename_field(struct error *err)
{
	static const char *const names[] = {"gather", "spans"};
	char rest[sizeof err->field];
	unsigned sequence;
	int n = 0;
	// NOLINTNEXTLINE(cert-err34-c): the service wrote the number, from one of this type
	if (sscanf(err->field, "sequences[%u].%n", &sequence, &n) != 1 || !n)
		return;
	for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
		size_t length = strlen(names[i]);
		if (strncmp(err->field + n, names[i], length) != 0)
			continue;
		snprintf(rest, sizeof rest, "%s", err->field + n + length);
		snprintf(err->field, sizeof err->field, "%s[%u]%.30s", names[i], sequence, rest);
		return;
	}
}

static int score_start(struct exchange *x, const char *body, size_t n, struct error *err)
{
	struct query_limits limits;
	struct json_limits bounds;
	struct score *s = x->own = calloc(1, sizeof *s);
	if (!s)
		return error_set(err, ERROR_MEMORY, NULL, "no memory for the request");
	service_limits(x->service, 0, &limits, &bounds.max_sequences);
	bounds.max_tokens = service_max_tokens(x->service);
	int r = json_read_score(body, n, teacher_tokenizer(service_teacher(x->service)), &bounds, &s->asked, err);
	x->text = s->asked.base64 ? REQUEST_BASE64 : REQUEST_JSON;
	if (!r && (r = exchange_submit(x, s->asked.request, err)))
		rename_field(err);
	else if (!r)
		s->asked.request = NULL;    // the exchange's now
	return r;
}

static int score_encode(struct exchange *x, struct buffer *b, struct error *err)
{
	struct score *s = x->own;
	struct request *r = x->requests[0];
	if (s->n_replied == 0) {
		buffer_text(b, "{\"teacher\":{");
		reply_choice(b, service_teacher(x->service), &r->choice);
		buffer_text(b, "},\"sequences\":[");
	}
	if (s->n_replied < r->n_items) {
		struct request_item *item = &r->items[s->n_replied];
		if (s->n_replied)
			buffer_text(b, ",");
		int result = reply_item(b, item, &r->query, s->asked.offsets[s->n_replied], s->asked.base64, err);
		if (result)
			return result;
		item->record = record_unref(item->record);
		s->n_replied++;
	}
	if (s->n_replied == r->n_items) {
		buffer_text(b, "]}");
		x->ended = true;
	}
	return 0;
}

static void score_done(struct exchange *x)
{
	struct score *s = x->own;
	if (s)
		json_score_done(&s->asked);
	free(s);
}

const struct exchange_kind exchange_score = {
	.path = "/v1/score", .start = score_start, .encode = score_encode, .done = score_done,
};
