// SPDX-License-Identifier: Apache-2.0
#include "daemon/train/other.h"

#include <stdlib.h>
#include <string.h>

#include "common/error.h"
#include "common/sequence.h"
#include "daemon/config.h"
#include "daemon/loss/objective.h"

static int refuse(const char *where, const char *text, const char *what, struct error *err)
{
	return error_set(err, ERROR_INVALID, "other-teacher", "%s: other-teacher %.80s: %s", where, text, what);
}

// What stands after the word's key; NULL: it is another key.
static const char *value_of(const char *word, const char *key)
{
	size_t n = strlen(key);
	return strncmp(word, key, n) == 0 ? word + n : NULL;
}

static bool is_name(const char *word)
{
	static const char letters[] = "abcdefghijklmnopqrstuvwxyz0123456789_-";
	return *word && strlen(word) <= OTHER_NAME_MAX && strspn(word, letters) == strlen(word);
}

static const char *word_fault(struct other *o, const char *word)
{
	static const char *const keys[] = {"server:", "shards:", "model=", "id=", "ca=", "server-name="};
	const char **fields[] = {&o->server, &o->shards, &o->model, &o->id, &o->ca, &o->server_name}, *value;
	struct content_id id;
	for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
		if (!(value = value_of(word, keys[i])))
			continue;
		if (!*value || *fields[i])
			return "a word has nothing after its key, or stands twice";
		if (fields[i] == &o->id && content_id_from_hex(value, &id))
			return "id= takes 64 hexadecimal digits";
		*fields[i] = value;
		return NULL;
	}
	return "server:ADDRESS or shards:DIR is expected after the name, then model=NAME, id=ID, ca=FILE, server-name=NAME";
}

static const char *mix_fault(const struct other *o)
{
	if (!o->server == !o->shards)
		return "either server:ADDRESS or shards:DIR is expected";
	if ((o->ca || o->server_name) && (!o->server || strncmp(o->server, "tls:", 4) != 0))
		return "ca= and server-name= are for server:tls:HOST:PORT";
	return o->shards && o->model ? "model= chooses among a server's teachers; shards tell theirs apart by id=" : NULL;
}

int other_parse(const char *text, const char *where, struct other *ret, struct error *err)
{
	*ret = (struct other){.memory = strdup(text)};
	char *rest = ret->memory, *word;
	const char *fault = NULL;
	if (!rest)
		return error_set(err, ERROR_MEMORY, "other-teacher", "out of memory");
	word = strsep(&rest, " \t");
	if (!is_name(word))
		return refuse(where, text, "a name is expected first: a-z, 0-9, _ and -, at most 28", err);
	if (strcmp(word, OBJECTIVE_OWN) == 0)
		return refuse(where, text, "own is the name of the run's own teacher", err);
	strcpy(ret->name, word);
	while (!fault && (word = strsep(&rest, " \t")))
		fault = *word ? word_fault(ret, word) : NULL;
	fault = fault ? fault : mix_fault(ret);
	return fault ? refuse(where, text, fault, err) : 0;
}

void other_done(struct other *o)
{
	free(o->memory);
	*o = (struct other){0};
}

int other_find(const struct config_list *lines, const char *name, struct other *ret, const char **ret_where, struct error *err)
{
	*ret = (struct other){0};
	for (size_t i = 0; i < lines->n; i++) {
		int r = other_parse(lines->items[i], lines->where[i], ret, err);
		*ret_where = lines->where[i];
		if (r || strcmp(ret->name, name) == 0)
			return r;
		other_done(ret);
	}
	return error_set(err, ERROR_NOT_FOUND, "loss", "no other-teacher has the name %s", name);
}

int other_check(const struct config_list *lines, struct error *err)
{
	int r = lines->n <= OTHER_MAX ? 0 : error_set(err, ERROR_TOO_LARGE, "other-teacher", "at most %d lines", OTHER_MAX);
	for (size_t i = 0; r == 0 && i < lines->n; i++) {
		struct other one, first = {0};
		const char *where = NULL;
		r = other_parse(lines->items[i], lines->where[i], &one, err);
		r = r ? r : other_find(lines, one.name, &first, &where, err);
		if (r == 0 && where != lines->where[i])
			r = refuse(lines->where[i], lines->items[i], "another line has this name", err);
		other_done(&first);
		other_done(&one);
	}
	return r;
}
