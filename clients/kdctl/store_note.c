// SPDX-License-Identifier: Apache-2.0
#include "clients/kdctl/store_note.h"

#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "clients/kdctl/pull.h"
#include "common/buffer.h"
#include "common/error.h"
#include "common/provenance.h"
#include "daemon/jansson.h"

#define LINE_BYTES 4096                  // a note has at most PROVENANCE_MAX_BYTES, of which few are escaped
#define METADATA_BYTES (2u << 20)        // thousands of notes; a tree of it stays far below what a record may take
#define ID_DIGITS 16                     // of a fingerprint at least: those of the note's file name

static void encode_members(struct buffer *b, const struct provenance *p)
{
	char weights[CONTENT_ID_HEX], tokenizer[CONTENT_ID_HEX];
	content_id_to_hex(&p->weights, weights);
	content_id_to_hex(&p->tokenizer, tokenizer);
	buffer_printf(b, "\"weights\":\"%s\",\"tokenizer\":\"%s\",\"numeric\":", weights, tokenizer);
	buffer_string(b, p->numeric, strlen(p->numeric));
	buffer_text(b, ",\"codec\":");
	buffer_string(b, p->codec, strlen(p->codec));
	buffer_text(b, ",\"name\":");
	buffer_string(b, p->name, strlen(p->name));
}

void note_encode_line(struct buffer *b, const struct provenance *p)
{
	char id[CONTENT_ID_HEX];
	content_id_to_hex(&p->fingerprint, id);
	buffer_printf(b, "{\"note\":\"teacher\",\"teacher\":\"%s\",", id);
	encode_members(b, p);
	buffer_text(b, "}\n");
}

void note_encode_list(struct buffer *b, const struct provenance *notes, size_t n)
{
	buffer_text(b, "{");
	for (size_t i = 0; i < n; i++) {
		char id[CONTENT_ID_HEX];
		content_id_to_hex(&notes[i].fingerprint, id);
		buffer_printf(b, "%s\"%s\":{", i ? "," : "", id);
		encode_members(b, &notes[i]);
		buffer_text(b, "}");
	}
	buffer_text(b, "}");
}

bool note_is_line(const char *text, size_t n)
{
	struct pull t = pull_init(text, n);
	char name[8];
	pull_open(&t, '{');
	return pull_next_member(&t, name, sizeof name) && strcmp(name, "note") == 0;
}

// False when it is missing or longer.
static bool copy_text(const json_t *j, const char *name, char *ret, size_t size)
{
	const char *text = json_string_value(json_object_get(j, name));
	size_t n = text ? strlen(text) : size;
	if (n >= size)
		return false;
	memcpy(ret, text, n + 1);
	return true;
}

// Goes through the text of a note file, whose rules are those of provenance_decode. -ENOENT: it does not say its codec, which was another.
static int decode(const json_t *j, const char *id, struct provenance *ret, struct error *err)
{
	struct provenance p = {0};
	char weights[CONTENT_ID_HEX], tokenizer[CONTENT_ID_HEX], text[PROVENANCE_MAX_BYTES], hex[CONTENT_ID_HEX];
	bool codec = json_object_get(j, "codec");
	if (!copy_text(j, "weights", weights, sizeof weights) || content_id_from_hex(weights, &p.weights) ||
	    !copy_text(j, "tokenizer", tokenizer, sizeof tokenizer) || content_id_from_hex(tokenizer, &p.tokenizer) ||
	    !copy_text(j, "numeric", p.numeric, sizeof p.numeric) || !copy_text(j, "name", p.name, sizeof p.name) ||
	    (codec && !copy_text(j, "codec", p.codec, sizeof p.codec)))
		return error_set(err, ERROR_INVALID, "note", "weights, tokenizer, numeric, codec or name of a teacher is missing or wrong");
	if (!codec)
		memcpy(p.codec, PROVENANCE_CODEC, sizeof PROVENANCE_CODEC);
	if (provenance_decode(text, provenance_encode(&p, text), &p, NULL))
		return error_set(err, ERROR_INVALID, "note", "a teacher's numeric or codec is none");
	content_id_to_hex(&p.fingerprint, hex);
	if (strlen(id) < ID_DIGITS || strncmp(hex, id, strlen(id)) != 0)
		return codec ? error_set(err, ERROR_INVALID, "note", "it does not make the fingerprint of its teacher") : -ENOENT;
	*ret = p;
	return 0;
}

// *ret: an object, or NULL when the text is none, which is no error here.
static int load(const char *text, size_t n, size_t most, json_t **ret, struct error *err)
{
	bool starved = false;
	json_t *j = n > most ? NULL : jansson_load(text, n, JSON_REJECT_DUPLICATES, NULL, &starved);
	if (starved)
		return error_set(err, ERROR_MEMORY, "note", "no memory for it");
	if (!json_is_object(j)) {
		json_decref(j);
		j = NULL;
	}
	*ret = j;
	return 0;
}

int note_decode_line(const char *text, size_t n, struct provenance *ret, struct error *err)
{
	json_t *j = NULL;
	int r = load(text, n, LINE_BYTES, &j, err);
	const char *kind = json_string_value(json_object_get(j, "note")), *id = json_string_value(json_object_get(j, "teacher"));
	if (r)
		return r;
	if (!kind || !id || strcmp(kind, "teacher") != 0)
		r = error_set(err, ERROR_INVALID, "note", "not one about a teacher");
	else if (!json_object_get(j, "codec"))
		r = error_set(err, ERROR_INVALID, "note", "codec is missing");
	else
		r = decode(j, id, ret, err);
	json_decref(j);
	return r;
}

static int decode_list(const json_t *list, struct provenance **ret_notes, size_t *ret_n, struct error *err)
{
	struct provenance *notes = calloc(json_object_size(list) + 1, sizeof *notes);
	const char *id;
	json_t *j;
	size_t n = 0;
	int r = notes ? 0 : error_set(err, ERROR_MEMORY, NULL, "no memory for notes about teachers");
	json_object_foreach((json_t *)list, id, j) {
		r = r ? r : decode(j, id, &notes[n], err);
		n += r == 0;
		r = r == -ENOENT ? 0 : r;
	}
	if (r) {
		free(notes);
		return r;
	}
	*ret_notes = notes;
	*ret_n = n;
	return 0;
}

int note_decode_metadata(const char *text, size_t n, struct provenance **ret_notes, size_t *ret_n, struct error *err)
{
	json_t *metadata = NULL, *list = NULL;
	*ret_notes = NULL;
	*ret_n = 0;
	int r = load(text, n, METADATA_BYTES, &metadata, err);
	const char *told = json_string_value(json_object_get(metadata, "teachers"));
	if (told)
		r = load(told, strlen(told), METADATA_BYTES, &list, err);
	if (r)
		;
	else if (!metadata || (told && !list))
		r = error_set(err, ERROR_INVALID, "__metadata__", "it is no JSON, or longer than any of ours");
	else if (list)
		r = decode_list(list, ret_notes, ret_n, err);
	json_decref(list);
	json_decref(metadata);
	return r;
}
