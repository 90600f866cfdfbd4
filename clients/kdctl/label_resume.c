// SPDX-License-Identifier: Apache-2.0
// Prompts in order, and where an earlier kdctl label ended: whole items count, a torn line and an item without all of its samples do not.
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "clients/kdctl/label.h"
#include "common/buffer.h"
#include "daemon/jansson.h"

static bool is_lines(const char *path)
{
	size_t n = strlen(path);
	return n >= 6 && strcmp(path + n - 6, ".jsonl") == 0;
}

static int prompt_of(struct label *l, size_t n, char **ret_prompt)
{
	if (!is_lines(l->path)) {
		if (strlen(l->line) != n || !buffer_is_utf8(l->line, n))
			return kdctl_fail(l->k, "%s:%" PRIu64 ": not UTF-8 text", l->path, l->number);
		*ret_prompt = strdup(l->line);
		return *ret_prompt ? 0 : kdctl_fail(l->k, "out of memory");
	}
	json_error_t why;
	json_t *j = jansson_load(l->line, n, JSON_REJECT_DUPLICATES, &why, NULL);
	const char *prompt = json_string_value(json_object_get(j, l->field));
	int status = 0;
	if (!j)
		status = kdctl_fail(l->k, "%s:%" PRIu64 ": %s", l->path, l->number, why.text);
	else if (!prompt)
		status = kdctl_fail(l->k, "%s:%" PRIu64 ": has no \"%s\" that is a text", l->path, l->number, l->field);
	else if (!(*ret_prompt = strdup(prompt)))
		status = kdctl_fail(l->k, "out of memory");
	json_decref(j);
	return status;
}

int label_next(struct label *l, char **ret_prompt)
{
	for (ssize_t n; (n = getline(&l->line, &l->line_size, l->in)) > 0;) {
		l->number++;
		while (n > 0 && (l->line[n - 1] == '\n' || l->line[n - 1] == '\r'))
			l->line[--n] = '\0';
		if (n > 0)
			return prompt_of(l, (size_t)n, ret_prompt);
	}
	return ferror(l->in) ? kdctl_fail(l->k, "cannot read %s: %m", l->path) : -1;
}

// ---- what is there

struct earlier {
	off_t end;                           // of whole items
	uint64_t n_lines;
	char prompt_id[CONTENT_ID_HEX];      // of the item at hand
};

static int line_check(struct label *l, const json_t *j, const json_t *sampler, struct earlier *e)
{
	uint64_t item = e->n_lines / l->ask.n, sample = e->n_lines % l->ask.n;
	const char *id = json_string_value(json_object_get(j, "prompt_id")), *teacher = json_string_value(json_object_get(j, "teacher"));
	if (!id || strlen(id) + 1 != sizeof e->prompt_id || !teacher || !json_object_get(j, "sampler"))
		return kdctl_fail(l->k, "%s: line %" PRIu64 " is not of kdctl label", l->output, e->n_lines + 1);
	if (strcmp(teacher, l->server->teacher) != 0)
		return kdctl_fail(l->k, "%s: was answered by another teacher (%s)", l->output, teacher);
	if (!json_equal(json_object_get(j, "sampler"), sampler))
		return kdctl_fail(l->k, "%s: was made with other options", l->output);
	if (json_integer_value(json_object_get(j, "item")) != (json_int_t)item ||
	    json_integer_value(json_object_get(j, "sample")) != (json_int_t)sample)
		return kdctl_fail(l->k, "%s: line %" PRIu64 " is not item %" PRIu64, l->output, e->n_lines + 1, item);
	memcpy(e->prompt_id, id, sizeof e->prompt_id);
	return 0;
}

// The prompt of the item that is whole now must be the one that the input has here.
static int item_check(struct label *l, const struct earlier *e)
{
	char *prompt = NULL, hex[CONTENT_ID_HEX];
	int status = label_next(l, &prompt);
	if (status)
		return status < 0 ? kdctl_fail(l->k, "%s: has more items than %s has prompts", l->output, l->path) : status;
	struct content_id id = label_prompt_id(prompt);
	content_id_to_hex(&id, hex);
	free(prompt);
	if (strcmp(hex, e->prompt_id) != 0)
		return kdctl_fail(l->k, "%s: item %" PRIu64 " answers another prompt than that of %s:%" PRIu64, l->output, l->n_items,
				  l->path, l->number);
	l->n_items++;
	return 0;
}

static int earlier_read(struct label *l, FILE *f, const json_t *sampler, struct earlier *e)
{
	char *line = NULL;
	size_t size = 0;
	off_t end = 0;
	int status = 0;
	for (ssize_t n; !status && (n = getline(&line, &size, f)) > 0 && line[n - 1] == '\n';) {
		bool starved;
		json_t *j = jansson_load(line, (size_t)n, JSON_REJECT_DUPLICATES, NULL, &starved);
		status = starved ? kdctl_fail(l->k, "out of memory") : line_check(l, j, sampler, e);
		json_decref(j);
		e->n_lines++;
		end += n;
		if (!status && e->n_lines % l->ask.n == 0) {
			status = item_check(l, e);
			e->end = end;
		}
	}
	if (!status && ferror(f))
		status = kdctl_fail(l->k, "cannot read %s: %m", l->output);
	free(line);
	return status;
}

static int resume(struct label *l)
{
	struct earlier e = {0};
	json_t *sampler = NULL, *plain = label_sampler(l);
	char *text = plain ? jansson_dump(plain, JSON_COMPACT) : NULL;
	int status = 0;
	if (text)
		sampler = jansson_load(text, strlen(text), 0, NULL, NULL);           // as it reads back from a line
	FILE *f = fopen(l->output, "r+e");
	if (!sampler)
		status = kdctl_fail(l->k, "out of memory");
	else if (!f)
		status = errno == ENOENT ? 0 : kdctl_fail(l->k, "cannot open %s: %m", l->output);
	else
		status = earlier_read(l, f, sampler, &e);
	if (!status && f && ftruncate(fileno(f), e.end) < 0)
		status = kdctl_fail(l->k, "cannot cut off %s: %m", l->output);
	if (f)
		fclose(f);
	free(text);
	json_decref(sampler);
	json_decref(plain);
	l->n_kept = l->n_items;
	return status;
}

int label_open(struct label *l)
{
	int status = l->resume ? resume(l) : 0;
	if (status)
		return status;
	l->out = fopen(l->output, l->resume ? "ae" : "wxe");
	if (!l->out && errno == EEXIST)
		return kdctl_fail(l->k, "%s is there already: --resume goes on where it ends", l->output);
	return l->out ? 0 : kdctl_fail(l->k, "cannot open %s: %m", l->output);
}
