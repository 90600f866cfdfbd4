// SPDX-License-Identifier: Apache-2.0
// What a run that goes on must repeat: every setting that changes its numbers, as lines "key = value", each key once. A new setting is
// among them unless it is named here.
#include "daemon/train/settings.h"

#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/error.h"
#include "common/text.h"

// Where things lie and how fast they go; and what is compared by what it comes to (the teacher's fingerprint, the list of sequences, the
// number of held-out ones, steps, the device and its numeric format: resume.c).
static const char *const free_keys[] = {
	"teacher", "server", "ca", "server-name", "teacher-id", "other-teacher", "token-file", "patience", "store", "missing", "tokenizer",
	"corpus", "held-out", "held-out-max", "student", "student-tokenizer", "student-type", "gradient-checkpointing",
	"gradient-checkpointing-layers", "steps", "epochs", "early-stop", "checkpoint-every", "keep", "threads", "device", "precision",
	"guard", "guard-fit", "guard-checks",
};

static bool matters(const struct run_settings *s, const char *name)
{
	for (size_t i = 0; i < sizeof free_keys / sizeof *free_keys; i++)
		if (strcmp(name, free_keys[i]) == 0)
			return false;
	if (text_begins(name, "student-") && strcmp(name, "student-from-layers") != 0)
		return strcmp(s->student, "random") == 0;      // a model has its own
	if (text_begins(name, "rollout-"))
		return settings_rollouts(s);
	if (strcmp(name, "mlm-probability") == 0)
		return s->mlm;
	return strcmp(name, "evaluate-every") != 0 || settings_adaptive(s);
}

// Blanks do not matter: one stands for many.
static void text_print(FILE *to, const char *text)
{
	bool blank = false;
	for (; *text; text++) {
		if (isspace((unsigned char)*text)) {
			blank = true;
			continue;
		}
		if (blank)
			fputc(' ', to);
		blank = false;
		fputc(*text, to);
	}
}

static void choice_print(FILE *to, const char *choices, int which)
{
	for (; which > 0; which--)
		choices += strcspn(choices, "|") + 1;
	fprintf(to, "%.*s", (int)strcspn(choices, "|"), choices);
}

static void value_print(FILE *to, const struct config_option *o, const struct run_settings *s)
{
	const void *field = (const char *)s + o->offset;
	const struct config_list *list = field;
	switch (o->type) {
	case CONFIG_STRING:
		text_print(to, *(char *const *)field ? *(char *const *)field : "");
		break;
	case CONFIG_LIST:
		for (size_t i = 0; i < list->n; i++) {
			fputs(i ? "; " : "", to);
			text_print(to, list->items[i]);
		}
		break;
	case CONFIG_INTEGER:
		fprintf(to, "%lld", (long long)*(const int64_t *)field);
		break;
	case CONFIG_REAL:
		fprintf(to, "%.17g", *(const double *)field);
		break;
	case CONFIG_BOOL:
		fputs(*(const bool *)field ? "yes" : "no", to);
		break;
	case CONFIG_CHOICE:
		choice_print(to, o->choices, *(const int *)field);
		break;
	case CONFIG_SIZE:
	case CONFIG_DURATION:
		fprintf(to, "%llu", (unsigned long long)*(const uint64_t *)field);
		break;
	case CONFIG_AMOUNT:            // no run has one
		break;
	}
}

void settings_print_lines(FILE *to, const struct run_settings *s)
{
	size_t n;
	const struct config_option *table = settings_table(&n);
	for (size_t i = 0; i < n; i++) {
		if (!matters(s, table[i].name))
			continue;
		fprintf(to, "%s = ", table[i].name);
		value_print(to, &table[i], s);
		fputc('\n', to);
	}
}

// The value of `key` (n bytes) among the lines, to its end; NULL: it is not there.
static const char *line_find(const char *lines, const char *key, size_t n, size_t *ret_n)
{
	for (const char *next; *lines; lines = next) {
		size_t length = strcspn(lines, "\n");
		next = lines + length + (lines[length] == '\n');
		if (length < n + 3 || memcmp(lines, key, n) != 0 || memcmp(lines + n, " = ", 3) != 0)
			continue;
		*ret_n = length - n - 3;
		return lines + n + 3;
	}
	return NULL;
}

int settings_compare_lines(const char *began, const char *now, struct error *err)
{
	for (const char *next; *now; now = next) {
		size_t length = strcspn(now, "\n"), n_key = strcspn(now, " "), n_was;
		next = now + length + (now[length] == '\n');
		const char *was = line_find(began, now, n_key, &n_was), *is = now + n_key + 3;
		char key[64];
		if (!was || length < n_key + 3)
			continue;
		size_t n_is = length - n_key - 3;
		if (n_was == n_is && memcmp(was, is, n_is) == 0)
			continue;
		snprintf(key, sizeof key, "%.*s", (int)n_key, now);
		return error_set(err, ERROR_CONFLICT, key, "is \"%.*s\", this run began with \"%.*s\": it cannot be resumed",
				 (int)(n_is < 80 ? n_is : 80), is, (int)(n_was < 80 ? n_was : 80), was);
	}
	return 0;
}
