// SPDX-License-Identifier: Apache-2.0
#include "daemon/train/group.h"

#include <fnmatch.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/error.h"

#define GROUP_TEXT_MAX 256

static int refuse(const char *text, const char *what, struct error *err)
{
	return error_set(err, ERROR_INVALID, "parameters", "%.80s: %s", text, what);
}

static int number_set(const char *text, const char *value, double max, double *ret, struct error *err)
{
	char *end;
	*ret = strtod(value, &end);
	if (end == value || *end || !(*ret >= 0 && *ret <= max))
		return error_set(err, ERROR_INVALID, "parameters", "%.80s: a number from 0 to %g is expected", text, max);
	return 0;
}

int group_parse(const char *text, struct group *ret, struct error *err)
{
	char copy[GROUP_TEXT_MAX], *rest = copy, *word;
	size_t n = strlen(text);
	*ret = (struct group){.learning_rate = 1, .weight_decay = NAN};
	if (n >= sizeof copy)
		return refuse(text, "the line is too long", err);
	memcpy(copy, text, n + 1);
	word = strsep(&rest, " \t");
	if (!*word || strlen(word) >= sizeof ret->pattern || strchr(word, '='))
		return refuse(text, "a pattern for names of parameters is expected first", err);
	strcpy(ret->pattern, word);
	int r = 0, n_words = 0;
	while (r == 0 && (word = strsep(&rest, " \t"))) {
		if (!*word)
			continue;
		n_words++;
		if (strncmp(word, "learning-rate=", 14) == 0)
			r = number_set(text, word + 14, 1000, &ret->learning_rate, err);
		else if (strncmp(word, "weight-decay=", 13) == 0)
			r = number_set(text, word + 13, 10, &ret->weight_decay, err);
		else
			r = refuse(text, "learning-rate=FACTOR or weight-decay=NUMBER is expected after the pattern", err);
	}
	return r || n_words ? r : refuse(text, "it changes nothing: learning-rate= or weight-decay= is missing", err);
}

const struct group *group_find(const struct group *groups, size_t n, const char *name)
{
	while (n--)
		if (fnmatch(groups[n].pattern, name, 0) == 0)
			return &groups[n];
	return NULL;
}
