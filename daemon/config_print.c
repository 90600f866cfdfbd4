// SPDX-License-Identifier: Apache-2.0
// Settings in words: one value, --help, the manual page, the example file.
#include "daemon/config.h"

#include <inttypes.h>
#include <string.h>

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
		fprintf(to, o->reloadable ? "SIGHUP changes it.\n" : "Needs a restart.\n");
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
		if (o->reloadable)
			fprintf(to, "# SIGHUP changes it.\n");
		fprintf(to, "#%s =%s%s\n", o->name, *o->fallback ? " " : "", o->fallback);
	}
}

// The largest unit that leaves a whole number.
static void format_units(uint64_t v, const uint64_t *factors, const char *const *words, size_t n, char *ret, size_t room)
{
	size_t i = n - 1;
	while (v && i && v % factors[i])
		i--;
	snprintf(ret, room, "%" PRIu64 "%s", v ? v / factors[i] : 0, v ? words[i] : "");
}

static void format_size(uint64_t v, char *ret, size_t room)
{
	static const uint64_t factors[] = {1, UINT64_C(1) << 10, UINT64_C(1) << 20, UINT64_C(1) << 30, UINT64_C(1) << 40};
	static const char *const words[] = {"", "K", "M", "G", "T"};
	format_units(v, factors, words, 5, ret, room);
}

static void format_duration(uint64_t ms, char *ret, size_t room)
{
	static const uint64_t factors[] = {1, 1000, 60000, 3600000, 86400000};
	static const char *const words[] = {"ms", "s", "min", "h", "d"};
	format_units(ms, factors, words, 5, ret, room);
}

static void format_list(const struct config_list *list, char *ret, size_t room)
{
	size_t n = 0;
	*ret = '\0';
	for (size_t i = 0; i < list->n && n < room; i++)
		n += (size_t)snprintf(ret + n, room - n, "%s%s", i ? ", " : "", list->items[i]);
}

static void format_choice(const char *choices, int index, char *ret, size_t room)
{
	while (index-- > 0)
		choices = strchrnul(choices, '|') + 1;
	snprintf(ret, room, "%.*s", (int)strcspn(choices, "|"), choices);
}

void config_format(const struct config_option *o, const void *target, char *ret, size_t room)
{
	const void *field = (const char *)target + o->offset;
	const char *text = o->type == CONFIG_STRING ? *(char *const *)field : NULL;
	const struct config_amount *amount = field;
	switch (o->type) {
	case CONFIG_STRING: snprintf(ret, room, "%s", text ? text : ""); break;
	case CONFIG_LIST: format_list(field, ret, room); break;
	case CONFIG_INTEGER: snprintf(ret, room, "%" PRId64, *(const int64_t *)field); break;
	case CONFIG_SIZE: format_size(*(const uint64_t *)field, ret, room); break;
	case CONFIG_AMOUNT: amount->bytes ? format_size(amount->bytes, ret, room) : (void)snprintf(ret, room, "%.6g", amount->share); break;
	case CONFIG_DURATION: format_duration(*(const uint64_t *)field, ret, room); break;
	case CONFIG_REAL: snprintf(ret, room, "%.15g", *(const double *)field); break;
	case CONFIG_BOOL: snprintf(ret, room, "%s", *(const bool *)field ? "yes" : "no"); break;
	case CONFIG_CHOICE: format_choice(o->choices, *(const int *)field, ret, room); break;
	}
}
