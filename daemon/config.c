// SPDX-License-Identifier: Apache-2.0
// The one reader of settings. Every value, defaults included, goes through config_set, so a default that breaks its own row's limits
// is found by the first test that calls config_init.
#include "daemon/config.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/error.h"

#define CONFIG_NAME_MAX 63

static void *field_of(const struct config_option *o, void *target)
{
	return (char *)target + o->offset;
}

static char **where_of(const struct config_option *o, void *target)
{
	return (char **)(void *)((char *)target + o->where_offset);
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

const char *config_nearest(const struct config_option *table, size_t n, const char *name)
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
	return best;
}

static int name_unknown(const struct config_option *table, size_t n, const char *name, const char *where, struct error *err)
{
	const char *best = config_nearest(table, n, name);
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
	case CONFIG_DURATION: return "a duration (digits, then ms, s, min, h or d)";
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

const struct config_option *config_find(const struct config_option *table, size_t n, const char *name)
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
		if (o->where_offset)
			*where_of(o, target) = NULL;
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
		if (table[i].where_offset)
			set_string(where_of(&table[i], target), "");
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
	const struct config_option *o = config_find(table, n, name);
	if (!o)
		return name_unknown(table, n, name, where, err);
	enum config_origin origin = origin_of(where);
	int r = set_value(o, target, value, origin, where, err);
	if (r == 0 && o->where_offset && set_string(where_of(o, target), origin == CONFIG_FROM_DEFAULT ? "" : where))
		r = error_set(err, ERROR_MEMORY, o->name, "%s: out of memory", where);
	return r;
}

static bool lists_are_same(const struct config_list *a, const struct config_list *b)
{
	bool same = a->n == b->n;
	for (size_t i = 0; same && i < a->n; i++)
		same = strcmp(a->items[i], b->items[i]) == 0;
	return same;
}

static bool texts_are_same(const char *a, const char *b)
{
	return a && b ? strcmp(a, b) == 0 : a == b;
}

bool config_is_same(const struct config_option *o, const void *a, const void *b)
{
	const void *x = (const char *)a + o->offset, *y = (const char *)b + o->offset;
	switch (o->type) {
	case CONFIG_STRING: return texts_are_same(*(char *const *)x, *(char *const *)y);
	case CONFIG_LIST: return lists_are_same(x, y);
	case CONFIG_AMOUNT: {
		const struct config_amount *p = x, *q = y;
		return p->bytes == q->bytes && p->share == q->share;
	}
	case CONFIG_BOOL: return *(const bool *)x == *(const bool *)y;
	case CONFIG_CHOICE: return *(const int *)x == *(const int *)y;
	default: return memcmp(x, y, sizeof(uint64_t)) == 0;
	}
}

static void swap_bytes(void *a, void *b, size_t n)
{
	unsigned char kept[sizeof(struct config_list)];
	memcpy(kept, a, n);
	memcpy(a, b, n);
	memcpy(b, kept, n);
}

void config_swap(const struct config_option *o, void *a, void *b)
{
	static const size_t sizes[] = {
		[CONFIG_STRING] = sizeof(char *), [CONFIG_LIST] = sizeof(struct config_list), [CONFIG_INTEGER] = sizeof(int64_t),
		[CONFIG_SIZE] = sizeof(uint64_t), [CONFIG_AMOUNT] = sizeof(struct config_amount), [CONFIG_DURATION] = sizeof(uint64_t),
		[CONFIG_REAL] = sizeof(double), [CONFIG_BOOL] = sizeof(bool), [CONFIG_CHOICE] = sizeof(int),
	};
	swap_bytes(field_of(o, a), field_of(o, b), sizes[o->type]);
	if (o->where_offset)
		swap_bytes(where_of(o, a), where_of(o, b), sizeof(char *));
}
