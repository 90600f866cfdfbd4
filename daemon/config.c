// SPDX-License-Identifier: Apache-2.0
// The one reader of settings. Every value, defaults included, goes through config_set, so a default that breaks its own row's limits
// is found by the first test that calls config_init.
#include "daemon/config.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/error.h"

#define CONFIG_NAME_MAX 63
#define CONFIG_MAX_FILE_BYTES (1u << 20)    // settings, not data: a bigger file is the wrong file

static void *field_of(const struct config_option *o, void *target)
{
	return (char *)target + o->offset;
}

static void list_clear(struct config_list *list)
{
	for (size_t i = 0; i < list->n; i++)
		free(list->items[i]), free(list->where[i]);
	free(list->items), free(list->where);
	list->items = list->where = NULL;
	list->n = 0;
}

static int array_grow(char ***array, size_t n)
{
	char **longer = reallocarray(*array, n + 1, sizeof *longer);
	if (!longer)
		return -ENOMEM;
	*array = longer;
	return 0;
}

static int list_add(struct config_list *list, const char *value, enum config_origin origin, const char *where)
{
	if (origin != list->origin || !*value)
		list_clear(list);
	list->origin = origin;
	if (!*value)
		return 0;
	if (array_grow(&list->items, list->n) || array_grow(&list->where, list->n))
		return -ENOMEM;
	char *item = strdup(value), *place = strdup(where);
	if (!item || !place) {
		free(item), free(place);
		return -ENOMEM;
	}
	list->items[list->n] = item;
	list->where[list->n++] = place;
	return 0;
}

static size_t smaller(size_t a, size_t b)
{
	return a < b ? a : b;
}

// Edits needed to turn a into b (Levenshtein): for "did you mean". Both are short.
static size_t name_distance(const char *a, const char *b)
{
	size_t row[CONFIG_NAME_MAX + 1];
	size_t n_b = strlen(b);
	if (strlen(a) > CONFIG_NAME_MAX || n_b > CONFIG_NAME_MAX)
		return SIZE_MAX;
	for (size_t j = 0; j <= n_b; j++)
		row[j] = j;
	for (size_t i = 0; a[i]; i++) {
		size_t diagonal = row[0];
		row[0] = i + 1;
		for (size_t j = 0; j < n_b; j++) {
			size_t change = diagonal + (a[i] != b[j]);
			diagonal = row[j + 1];
			row[j + 1] = smaller(change, 1 + smaller(row[j], row[j + 1]));
		}
	}
	return row[n_b];
}

static int name_unknown(const struct config_option *table, size_t n, const char *name, const char *where, struct error *err)
{
	const char *best = NULL;
	size_t best_distance = 4;    // further away than three edits is a guess, not a typing error
	for (size_t i = 0; i < n; i++) {
		size_t d = name_distance(name, table[i].name);
		if (d < best_distance && d < strlen(table[i].name)) {
			best = table[i].name;
			best_distance = d;
		}
	}
	if (best)
		return error_set(err, ERROR_INVALID, name, "%s: unknown setting \"%s\"; did you mean \"%s\"?", where, name, best);
	return error_set(err, ERROR_INVALID, name, "%s: unknown setting \"%s\"", where, name);
}

// Digits, then a suffix from `units` ("K" ...) that multiplies; the value before range checks.
struct config_unit { const char *suffix; uint64_t factor; };

static int read_units(const char *text, const struct config_unit *units, uint64_t *ret_value)
{
	uint64_t v = 0;
	const char *p = text;
	if (!isdigit((unsigned char)*p))
		return -EINVAL;
	for (; isdigit((unsigned char)*p); p++)
		if (__builtin_mul_overflow(v, 10, &v) || __builtin_add_overflow(v, (uint64_t)(*p - '0'), &v))
			return -EINVAL;
	while (*p == ' ')
		p++;
	for (; units->suffix; units++)
		if (strcmp(p, units->suffix) == 0)
			return __builtin_mul_overflow(v, units->factor, ret_value) ? -EINVAL : 0;
	return -EINVAL;
}

static const struct config_unit size_units[] = {
	{"", 1}, {"K", UINT64_C(1) << 10}, {"M", UINT64_C(1) << 20}, {"G", UINT64_C(1) << 30}, {"T", UINT64_C(1) << 40}, {NULL, 0},
};
static const struct config_unit duration_units[] = {
	{"", 1000}, {"ms", 1}, {"s", 1000}, {"min", 60000}, {"h", 3600000}, {"d", 86400000}, {NULL, 0},
};

static int read_integer(const char *text, int64_t *ret_value)
{
	char *end;
	if (!isdigit((unsigned char)text[*text == '-']))
		return -EINVAL;
	errno = 0;
	long long v = strtoll(text, &end, 10);
	if (errno || *end)
		return -EINVAL;
	*ret_value = v;
	return 0;
}

static int read_real(const char *text, double *ret_value)
{
	char *end;
	if (!*text || strspn(text, "0123456789+-.eE") != strlen(text))
		return -EINVAL;    // no "nan", "inf", hexadecimal
	double v = strtod(text, &end);
	if (*end || !isfinite(v))
		return -EINVAL;
	*ret_value = v;
	return 0;
}

static int read_bool(const char *text, bool *ret_value)
{
	static const char *const words[] = {"no", "yes", "off", "on", "false", "true", "0", "1"};
	for (size_t i = 0; i < sizeof words / sizeof *words; i++)
		if (strcmp(text, words[i]) == 0) {
			*ret_value = i % 2;
			return 0;
		}
	return -EINVAL;
}

// Index of `text` in "auto|cpu|cuda".
static int read_choice(const char *choices, const char *text, int *ret_index)
{
	size_t n = strlen(text);
	int i = 0;
	for (const char *p = choices; n && p; i++) {
		const char *end = strchrnul(p, '|');
		if ((size_t)(end - p) == n && memcmp(p, text, n) == 0) {
			*ret_index = i;
			return 0;
		}
		p = *end ? end + 1 : NULL;
	}
	return -EINVAL;
}

static const char *type_words(enum config_type type)
{
	switch (type) {
	case CONFIG_INTEGER: return "a whole number";
	case CONFIG_SIZE: return "a size (digits, then K, M, G or T)";
	case CONFIG_AMOUNT: return "a size (digits, then K, M, G or T) or a share (0.9)";
	case CONFIG_DURATION: return "a duration (digits, then ms, s, min or h)";
	case CONFIG_REAL: return "a number";
	case CONFIG_BOOL: return "yes or no";
	default: return "text";
	}
}

static int check_range(const struct config_option *o, double v, const char *value, const char *where, struct error *err)
{
	if (v >= o->min && v <= o->max)
		return 0;
	bool low = v < o->min, duration = o->type == CONFIG_DURATION;
	return error_set(err, ERROR_INVALID, o->name, "%s: %s = %s is %s %.15g%s%s", where, o->name, value,
			 low ? "below the minimum" : "above the maximum", low ? o->min : o->max,
			 duration ? " ms" : *o->unit ? " " : "", duration ? "" : o->unit);
}

static int set_number(const struct config_option *o, void *field, const char *value, const char *where, struct error *err)
{
	union { int64_t integer; uint64_t count; double real; } v = {0};
	int r = o->type == CONFIG_INTEGER ? read_integer(value, &v.integer) : o->type == CONFIG_REAL ? read_real(value, &v.real)
		: read_units(value, o->type == CONFIG_SIZE ? size_units : duration_units, &v.count);
	if (r)
		return error_set(err, ERROR_INVALID, o->name, "%s: %s = %s: expected %s", where, o->name, value, type_words(o->type));
	double as_real = o->type == CONFIG_INTEGER ? (double)v.integer : o->type == CONFIG_REAL ? v.real : (double)v.count;
	r = check_range(o, as_real, value, where, err);
	if (r)
		return r;
	if (o->type == CONFIG_INTEGER)
		*(int64_t *)field = v.integer;
	else if (o->type == CONFIG_REAL)
		*(double *)field = v.real;
	else
		*(uint64_t *)field = v.count;
	return 0;
}

static int set_amount(const struct config_option *o, struct config_amount *field, const char *value, const char *where, struct error *err)
{
	struct config_amount amount = {0};
	int r = strchr(value, '.') ? read_real(value, &amount.share) : *value ? read_units(value, size_units, &amount.bytes) : 0;
	if (r == 0 && *value && !amount.bytes && !(amount.share > 0 && amount.share <= 1))
		r = -EINVAL;
	if (r)
		return error_set(err, ERROR_INVALID, o->name, "%s: %s = %s: expected %s", where, o->name, value, type_words(o->type));
	if (amount.bytes && (r = check_range(o, (double)amount.bytes, value, where, err)))
		return r;
	*field = amount;
	return 0;
}

static int set_string(char **field, const char *value)
{
	char *copy = NULL;
	if (*value && !(copy = strdup(value)))
		return -ENOMEM;
	free(*field);
	*field = copy;
	return 0;
}

static int set_value(const struct config_option *o, void *target, const char *value, enum config_origin origin, const char *where,
		     struct error *err)
{
	void *field = field_of(o, target);
	switch (o->type) {
	case CONFIG_STRING:
		return set_string(field, value) ? error_set(err, ERROR_MEMORY, o->name, "%s: out of memory", where) : 0;
	case CONFIG_LIST:
		return list_add(field, value, origin, where) ? error_set(err, ERROR_MEMORY, o->name, "%s: out of memory", where) : 0;
	case CONFIG_AMOUNT:
		return set_amount(o, field, value, where, err);
	case CONFIG_BOOL:
		if (read_bool(value, field) == 0)
			return 0;
		return error_set(err, ERROR_INVALID, o->name, "%s: %s = %s: expected yes or no", where, o->name, value);
	case CONFIG_CHOICE:
		if (read_choice(o->choices, value, field) == 0)
			return 0;
		return error_set(err, ERROR_INVALID, o->name, "%s: %s = %s: expected one of %s", where, o->name, value, o->choices);
	default:
		return set_number(o, field, value, where, err);
	}
}

static const struct config_option *option_find(const struct config_option *table, size_t n, const char *name)
{
	for (size_t i = 0; i < n; i++)
		if (strcmp(table[i].name, name) == 0)
			return &table[i];
	return NULL;
}

int config_init(const struct config_option *table, size_t n, void *target, struct error *err)
{
	for (size_t i = 0; i < n; i++) {
		const struct config_option *o = &table[i];
		if (o->type == CONFIG_STRING)
			*(char **)field_of(o, target) = NULL;
		if (o->type == CONFIG_LIST)
			*(struct config_list *)field_of(o, target) = (struct config_list){0};
	}
	for (size_t i = 0; i < n; i++) {
		int r = set_value(&table[i], target, table[i].fallback, CONFIG_FROM_DEFAULT, "default", err);
		if (r)
			return r;
	}
	return 0;
}

void config_done(const struct config_option *table, size_t n, void *target)
{
	for (size_t i = 0; i < n; i++) {
		if (table[i].type == CONFIG_LIST)
			list_clear(field_of(&table[i], target));
		if (table[i].type == CONFIG_STRING)
			set_string(field_of(&table[i], target), "");
	}
}

static enum config_origin origin_of(const char *where)
{
	if (strncmp(where, "--", 2) == 0)
		return CONFIG_FROM_COMMAND;
	return *where == '$' ? CONFIG_FROM_ENVIRONMENT : strcmp(where, "default") == 0 ? CONFIG_FROM_DEFAULT : CONFIG_FROM_FILE;
}

int config_set(const struct config_option *table, size_t n, void *target, const char *name, const char *value, const char *where,
	       struct error *err)
{
	const struct config_option *o = option_find(table, n, name);
	if (!o)
		return name_unknown(table, n, name, where, err);
	return set_value(o, target, value, origin_of(where), where, err);
}

static char *trim(char *text)
{
	while (*text == ' ' || *text == '\t')
		text++;
	size_t n = strlen(text);
	while (n && strchr(" \t\r", text[n - 1]))
		n--;
	text[n] = '\0';
	return text;
}

static void cut_comment(char *line)
{
	for (char *p = line; *p; p++)
		if (*p == '#' && (p == line || p[-1] == ' ' || p[-1] == '\t')) {
			*p = '\0';
			return;
		}
}

// What reading one text needs; `seen` marks the rows already set by it.
struct config_text { const struct config_option *table; size_t n; void *target; const char *source; bool *seen; };

static int read_line(const struct config_text *t, char *line, size_t number, struct error *err)
{
	char where[160];
	snprintf(where, sizeof where, "%s:%zu", t->source, number);
	cut_comment(line);
	line = trim(line);
	if (!*line)
		return 0;
	char *equals = strchr(line, '=');
	if (!equals)
		return error_set(err, ERROR_INVALID, NULL, "%s: expected \"key = value\", found \"%s\"", where, line);
	*equals = '\0';
	const char *name = trim(line), *value = trim(equals + 1);
	const struct config_option *o = option_find(t->table, t->n, name);
	if (o && o->type != CONFIG_LIST) {
		if (t->seen[o - t->table])
			return error_set(err, ERROR_INVALID, name, "%s: %s is set twice", where, name);
		t->seen[o - t->table] = true;
	}
	return config_set(t->table, t->n, t->target, name, value, where, err);
}

int config_read_text(const struct config_option *table, size_t n, void *target, const char *text, size_t n_bytes, const char *source,
		     struct error *err)
{
	int r = 0;
	if (memchr(text, '\0', n_bytes))
		return error_set(err, ERROR_INVALID, NULL, "%s: holds a zero byte: not a text file", source);
	char *copy = strndup(text, n_bytes);
	bool *seen = calloc(n ? n : 1, sizeof *seen);
	if (!copy || !seen) {
		r = error_set(err, ERROR_MEMORY, NULL, "%s: out of memory", source);
		goto out;
	}
	struct config_text t = {table, n, target, source, seen};
	char *rest = copy, *line;
	for (size_t number = 1; r == 0 && (line = strsep(&rest, "\n")); number++)
		r = read_line(&t, line, number, err);
out:
	free(copy);
	free(seen);
	return r;
}

static int read_all(int fd, size_t n, char *to, size_t *ret_n)
{
	size_t have = 0;
	while (have < n) {
		ssize_t k = read(fd, to + have, n - have);
		if (k < 0 && errno == EINTR)
			continue;
		if (k < 0)
			return -errno;
		if (k == 0)
			break;
		have += (size_t)k;
	}
	*ret_n = have;
	return 0;
}

int config_read_file(const struct config_option *table, size_t n, void *target, const char *path, struct error *err)
{
	int r;
	size_t n_bytes = 0;
	char *text = NULL;
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return error_system(err, errno, path, "cannot open %s", path);
	text = malloc(CONFIG_MAX_FILE_BYTES + 1);
	if (!text) {
		r = error_set(err, ERROR_MEMORY, path, "out of memory");
		goto out;
	}
	r = read_all(fd, CONFIG_MAX_FILE_BYTES + 1, text, &n_bytes);
	if (r)
		r = error_system(err, r, path, "cannot read %s", path);
	else if (n_bytes > CONFIG_MAX_FILE_BYTES)
		r = error_set(err, ERROR_TOO_LARGE, path, "%s is over %u bytes: not a settings file", path, CONFIG_MAX_FILE_BYTES);
	else
		r = config_read_text(table, n, target, text, n_bytes, path, err);
out:
	free(text);
	close(fd);
	return r;
}

static const char *value_word(const struct config_option *o)
{
	switch (o->type) {
	case CONFIG_CHOICE: return o->choices;
	case CONFIG_BOOL: return "yes|no";
	case CONFIG_SIZE: return "SIZE";
	case CONFIG_AMOUNT: return "SIZE|SHARE";
	case CONFIG_DURATION: return "DURATION";
	case CONFIG_INTEGER: return "N";
	case CONFIG_REAL: return "X";
	default: return *o->unit ? o->unit : "TEXT";
	}
}

void config_print_help(FILE *to, const struct config_option *table, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		const struct config_option *o = &table[i];
		int width = fprintf(to, "  --%s %s", o->name, value_word(o));
		fprintf(to, "%*s%s", width < 30 ? 32 - width : 2, "", o->help);
		if (*o->fallback)
			fprintf(to, " [%s]", o->fallback);
		fputc('\n', to);
	}
}

// mdoc items. Texts of tables hold no backslash and no leading dot, so nothing needs escaping but the hyphen of names.
void config_print_man(FILE *to, const struct config_option *table, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		const struct config_option *o = &table[i];
		fprintf(to, ".It Ic %s No = Ar %s\n", o->name, value_word(o));
		fprintf(to, "%c%s.\n", o->help[0] >= 'a' && o->help[0] <= 'z' ? o->help[0] - 'a' + 'A' : o->help[0], o->help + 1);
		if (o->type == CONFIG_LIST)
			fprintf(to, "May be repeated.\n");
		if (o->type == CONFIG_INTEGER || o->type == CONFIG_SIZE || o->type == CONFIG_REAL)
			fprintf(to, "From %.15g to %.15g%s%s.\n", o->min, o->max, *o->unit ? " " : "", o->unit);
		if (o->type == CONFIG_DURATION)
			fprintf(to, "From %.15g to %.15g ms.\n", o->min, o->max);
		if (o->type == CONFIG_AMOUNT)
			fprintf(to, "From %.15g to %.15g%s%s, or a share up to 1.0.\n", o->min, o->max, *o->unit ? " " : "", o->unit);
		fprintf(to, *o->fallback ? "Default: %s.\n" : "Default: unset.\n", o->fallback);
	}
}

void config_print_example(FILE *to, const struct config_option *table, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		const struct config_option *o = &table[i];
		fprintf(to, "%s# %s\n", i ? "\n" : "", o->help);
		if (o->type == CONFIG_CHOICE)
			fprintf(to, "# One of %s.\n", o->choices);
		if (o->type == CONFIG_LIST)
			fprintf(to, "# May be repeated.\n");
		fprintf(to, "#%s =%s%s\n", o->name, *o->fallback ? " " : "", o->fallback);
	}
}
