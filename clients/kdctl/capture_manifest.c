// SPDX-License-Identifier: Apache-2.0
// The account beside the shards: what was captured from what, and what has come of it. One file for all captures into a directory; the one
// at work replaces its own entry, which it knows by teacher, question, form and the hashes of the corpus.
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "clients/kdctl/capture.h"
#include "clients/kdctl/store.h"
#include "common/error.h"
#include "common/output.h"
#include "daemon/jansson.h"

#define MANIFEST_FORMAT 1

static void add_list(json_t *j, const char *name, const uint32_t *ids, uint32_t n)
{
	json_t *list = n ? json_array() : NULL;
	for (uint32_t i = 0; i < n; i++)
		json_array_append_new(list, json_integer(ids[i]));
	if (list)
		json_object_set_new(j, name, list);
}

// As it was asked, before it meets a sequence; names as in /v1/score. Lists in full: they are part of what a capture is.
static json_t *question(const struct query *q)
{
	json_t *j = json_object();
	store_add_query(j, q);
	if (q->gather.n_lists)
		add_list(j, "gather", q->gather.ids, q->gather.offsets[1]);
	add_list(j, "keep", q->keep, q->n_keep);
	json_t *features = q->n_features ? json_array() : NULL;
	for (uint32_t i = 0; i < q->n_features; i++)
		json_array_append_new(features, json_pack("[i, i]", (int)q->features[i].kind, (int)q->features[i].layer));
	if (features) {
		json_object_set_new(j, "features", features);
		json_object_set_new(j, "pooling", json_integer(q->pooling));
		json_object_set_new(j, "feature_values", json_integer(q->feature_values));
	}
	return j;
}

static json_t *form(const struct capture *c)
{
	static const char *const formats[] = {"", "text", "jsonl", "u16", "u32", "npy"};
	const struct capture_options *o = c->options;
	json_t *j = json_pack("{s:s, s:b, s:I}", "format", formats[o->score.format], "packed", (int)o->packed, "length",
			      (json_int_t)o->score.length);
	if (o->score.format == SOURCE_LINES)
		json_object_set_new(j, "too_long", json_string(o->score.too_long == LONG_CUT ? "cut" : "refuse"));
	if (o->packed)
		json_object_set_new(j, "invalid_utf8", json_string(o->replace ? "replace" : "refuse"));
	if (o->packed)
		add_list(j, "prefix", c->corpus.packing.prefix, c->corpus.packing.n_prefix);
	json_object_set_new(j, "specials", json_boolean(c->k->specials));
	json_object_set_new(j, "sum", json_boolean(o->score.sum));
	return j;
}

static json_t *files(const struct capture *c)
{
	json_t *list = json_array();
	for (size_t i = 0; i < c->options->n_paths; i++) {
		const struct corpus_file *f = &c->corpus.files[i];
		char hash[CONTENT_ID_HEX];
		content_id_to_hex(&f->hash, hash);
		json_t *j = json_pack("{s:s?, s:I, s:s}", "path", f->path, "bytes", (json_int_t)f->n_bytes, "sha256", hash);
		if (f->n_ill_formed)
			json_object_set_new(j, "replaced", json_integer((json_int_t)f->n_ill_formed));
		json_array_append_new(list, j);
	}
	return list;
}

static json_t *identity(const struct capture *c)
{
	json_t *hashes = json_array();
	for (size_t i = 0; i < c->options->n_paths; i++) {
		char hash[CONTENT_ID_HEX];
		content_id_to_hex(&c->corpus.files[i].hash, hash);
		json_array_append_new(hashes, json_string(hash));
	}
	return json_pack("{s:s, s:o, s:o, s:o}", "teacher", c->server.teacher, "question", question(&c->query), "form", form(c),
			 "files", hashes);
}

static json_t *tally_json(const struct tally *t)
{
	return json_pack("{s:I, s:I, s:I, s:I}", "sequences", (json_int_t)t->n_sequences, "tokens", (json_int_t)t->n_tokens, "positions",
			 (json_int_t)t->n_positions, "record_bytes", (json_int_t)t->n_bytes);
}

static json_t *account_json(const struct capture *c)
{
	const struct account *a = &c->account;
	json_t *answered = tally_json(&a->answered), *codes = json_object();
	for (size_t i = 0; i < a->n_codes; i++)
		json_object_set_new(codes, a->codes[i].code, json_integer((json_int_t)a->codes[i].n));
	json_object_set_new(answered, "cached", json_integer((json_int_t)a->n_cached));
	json_object_set_new(answered, "rows_not_finite", json_integer((json_int_t)a->n_bad_rows));
	if (c->keep)
		json_object_set_new(answered, "repeated", json_integer((json_int_t)keep_n_duplicates(c->keep)));
	uint64_t settled = a->answered.n_sequences + a->found.n_sequences + a->refused.n_sequences;
	return json_pack("{s:{s:I, s:I, s:I, s:I, s:I, s:I, s:I}, s:o, s:o, s:{s:I, s:I, s:o, s:O}}", "input", "sequences",
			 (json_int_t)a->input.n_sequences, "tokens", (json_int_t)a->input.n_tokens, "unsettled",
			 (json_int_t)(a->input.n_sequences - settled), "left_over_tokens", (json_int_t)c->corpus.n_left_over, "empty_lines",
			 (json_int_t)c->corpus.n_empty, "cut_sequences", (json_int_t)c->corpus.n_cut, "cut_tokens",
			 (json_int_t)c->corpus.n_cut_tokens, "answered", answered, "from_store", tally_json(&a->found), "refused",
			 "sequences", (json_int_t)a->refused.n_sequences, "tokens", (json_int_t)a->refused.n_tokens, "codes", codes,
			 "first", a->told);
}

static json_t *teacher_json(const struct capture *c)
{
	static const char *const names[] = {"weights_id", "tokenizer_id", "numeric", "name", "vocab_size"};
	json_t *j = json_pack("{s:s}", "id", c->server.teacher);
	for (size_t i = 0; i < sizeof names / sizeof *names; i++)
		if (json_object_get(c->model, names[i]))
			json_object_set(j, names[i], json_object_get(c->model, names[i]));
	return j;
}

json_t *manifest_entry(const struct capture *c, const char *state)
{
	json_t *j = account_json(c);
	json_object_set_new(j, "id", json_string(c->id));
	json_object_set_new(j, "state", json_string(state));
	json_object_set_new(j, "program", json_sprintf("kdctl %s", kd_version()));
	json_object_set_new(j, "teacher", teacher_json(c));
	json_object_set_new(j, "question", question(&c->query));
	json_object_set_new(j, "form", form(c));
	json_object_set_new(j, "corpus", files(c));
	json_object_set_new(j, "began", json_real(c->began));
	json_object_set_new(j, "written", json_real((double)time(NULL)));
	json_object_set_new(j, "seconds", json_real(progress_seconds(&c->progress)));
	return j;
}

// The entries of other captures; a file that is not ours is not written over.
static int read_others(struct capture *c)
{
	json_error_t why;
	bool starved;
	json_t *j = jansson_load_file(c->manifest_path, JSON_REJECT_DUPLICATES, &why, &starved);
	json_t *list = json_object_get(j, "captures"), *entry;
	size_t i;
	int status = 0;
	if (starved)
		return kdctl_fail(c->k, "no memory for a manifest");
	if (!j && access(c->manifest_path, F_OK) && errno == ENOENT)
		return 0;
	if (!json_is_array(list) || json_integer_value(json_object_get(j, "format")) != MANIFEST_FORMAT)
		status = kdctl_fail(c->k, "%s: not a manifest of captures (%s): move it away", c->manifest_path, j ? "format" : why.text);
	json_array_foreach(list, i, entry) {
		const char *id = json_string_value(json_object_get(entry, "id"));
		if (!status && (!id || strcmp(id, c->id) != 0))
			json_array_append(c->others, entry);
	}
	json_decref(j);
	return status;
}

int manifest_open(struct capture *c)
{
	json_t *j = identity(c);
	char *text = j ? jansson_dump(j, JSON_COMPACT | JSON_SORT_KEYS) : NULL;
	json_decref(j);
	c->others = json_array();
	if (!text || !c->others) {
		free(text);
		return kdctl_fail(c->k, "no memory for a manifest");
	}
	struct content_id id = content_id_of(text, strlen(text));
	content_id_to_hex(&id, c->id);
	free(text);
	c->manifest_path = c->options->manifest;
	if (!c->manifest_path && c->options->store) {
		if (asprintf(&c->own_path, "%s/manifest.json", c->options->store) < 0)
			return kdctl_fail(c->k, "no memory");
		c->manifest_path = c->own_path;
	}
	return c->manifest_path ? read_others(c) : 0;
}

int manifest_write(struct capture *c, const char *state)
{
	struct error err = {0};
	struct output out;
	if (!c->manifest_path)
		return 0;
	json_t *list = json_copy(c->others), *entry = manifest_entry(c, state);
	json_array_append_new(list, entry);
	json_t *j = json_pack("{s:i, s:o}", "format", MANIFEST_FORMAT, "captures", list);
	char *text = j ? jansson_dump(j, JSON_INDENT(1)) : NULL;
	json_decref(j);
	if (!text)
		return kdctl_fail(c->k, "no memory for a manifest");
	int r = output_open(&out, c->manifest_path, &err);
	r = r ? r : output_write(&out, text, strlen(text));
	r = r ? r : output_write(&out, "\n", 1);
	r = output_close(&out, r);
	free(text);
	return r ? kdctl_fail(c->k, "%s", err.message) : 0;
}

void manifest_close(struct capture *c)
{
	json_decref(c->others);
	free(c->own_path);
}
