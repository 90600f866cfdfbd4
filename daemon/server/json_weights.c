// SPDX-License-Identifier: Apache-2.0
// The body of POST /v1/weights.
#include <stdlib.h>

#include "common/error.h"
#include "daemon/server/json.h"
#include "daemon/server/json_internal.h"

struct weights_reader { struct json_weights *out; bool has_range; };

static int read_tensor(void *to, const json_t *v, const char *name, struct error *err)
{
	static const char *const words[] = {"embedding", "head", "final_norm", NULL};
	int i = 0;
	int r = json_read_word(v, name, words, &i, err);
	((struct weights_reader *)to)->out->tensor = (enum json_tensor)i;
	return r;
}

static int read_ids(void *to, const json_t *v, const char *name, struct error *err)
{
	struct weights_reader *w = to;
	int r = json_read_tokens(v, name, &w->out->ids, err);
	return !r && !w->out->ids.n_tokens ? error_set(err, ERROR_INVALID, name, "there are none") : r;
}

static int read_first(void *to, const json_t *v, const char *name, struct error *err)
{
	struct weights_reader *w = to;
	int64_t i = 0;
	int r = json_read_integer(v, 0, UINT32_MAX, name, &i, err);
	w->out->first = (uint32_t)i;
	w->has_range = true;
	return r;
}

static int read_count(void *to, const json_t *v, const char *name, struct error *err)
{
	struct weights_reader *w = to;
	w->has_range = true;
	return json_read_integer(v, 1, UINT32_MAX, name, &w->out->count, err);
}

static int read_dtype(void *to, const json_t *v, const char *name, struct error *err)
{
	static const char *const words[] = {"f32", "f16", "bf16", NULL};
	int i = 0;
	int r = json_read_word(v, name, words, &i, err);
	((struct weights_reader *)to)->out->dtype = (enum json_dtype)i;
	return r;
}

static int read_encoding(void *to, const json_t *v, const char *name, struct error *err)
{
	static const char *const words[] = {"json", "base64", NULL};
	int i = 0;
	int r = json_read_word(v, name, words, &i, err);
	((struct weights_reader *)to)->out->base64 = i == 1;
	return r;
}

static int read_teacher(void *to, const json_t *v, const char *name, struct error *err)
{
	return json_read_text(v, name, &((struct weights_reader *)to)->out->teacher, NULL, err);
}

int json_read_weights(const char *body, size_t n, struct json_weights *ret, struct error *err)
{
	static const struct json_field fields[] = {
		{"tensor", read_tensor, true, 0}, {"ids", read_ids, false, 0}, {"first", read_first, false, 0},
		{"count", read_count, false, 0}, {"dtype", read_dtype, false, 0}, {"encoding", read_encoding, false, 0},
		{"teacher", read_teacher, false, 0},
	};
	struct json_weights out = {.count = -1};
	struct weights_reader w = {.out = &out};
	int r = json_read_whole(body, n, fields, sizeof fields / sizeof *fields, &w, err);
	if (!r && out.ids.tokens && w.has_range)
		r = error_set(err, ERROR_INVALID, "ids", "give either ids or a range (first, count)");
	if (!r && out.ids.tokens && out.tensor == JSON_FINAL_NORM)
		r = error_set(err, ERROR_INVALID, "ids", "the final norm has one row, not one for each id");
	if (r)
		json_weights_done(&out);
	else
		*ret = out;
	return r;
}

void json_weights_done(struct json_weights *w)
{
	sequence_done(&w->ids);
	free(w->teacher);
}
