// SPDX-License-Identifier: Apache-2.0
#include "daemon/arguments.h"

#include <config.h>    // of configure; in quotes it would be daemon/config.h
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/error.h"
#include "daemon/options.h"

static const struct { const char *name; enum arguments_mode mode; } modes[] = {
	{"--check-config", MODE_CHECK}, {"--help", MODE_HELP}, {"-h", MODE_HELP}, {"--version", MODE_VERSION},
	{"--print-config", MODE_PRINT_CONFIG}, {"--print-man", MODE_PRINT_MAN},
};

static void print_help(void)
{
	printf("Usage: kdserved --teacher PATH [OPTION]...\n"
	       "Serves a teacher language model to those who train students.\n\n"
	       "  --config FILE                 read settings from FILE first; $KDSERVED_NAME, then the command line win\n"
	       "  --check-config                check the settings and leave\n"
	       "  --print-config                print a settings file with every default and leave\n"
	       "  --help, --version\n\n");
	config_print_help(stdout, options_table, options_count);
	printf("\nSee kdserved(8), kdserved.conf(5), kdserved-http(7), kdserved-protocol(7).\n");
}

static bool find_mode(const char *argument, enum arguments_mode *ret_mode)
{
	for (size_t i = 0; i < sizeof modes / sizeof *modes; i++)
		if (strcmp(argument, modes[i].name) == 0) {
			*ret_mode = modes[i].mode;
			return true;
		}
	return false;
}

static bool is_flag(const char *name)
{
	for (size_t i = 0; i < options_count; i++)
		if (strcmp(options_table[i].name, name) == 0)
			return options_table[i].type == CONFIG_BOOL;
	return false;
}

static bool is_known(const char *name)
{
	for (size_t i = 0; i < options_count; i++)
		if (strcmp(options_table[i].name, name) == 0)
			return true;
	return false;
}

// One "--name=value", "--name value" or "--flag" at argv[*i]; leaves *i at its last word. 0, or an exit status with err filled.
static int read_argument(struct options *o, char **argv, int *i, bool settings, const char **ret_config, struct error *err)
{
	char name[64], where[72];
	const char *argument = argv[*i], *equals = strchr(argument, '='), *value;
	if (strncmp(argument, "--", 2) != 0) {
		error_set(err, ERROR_INVALID, NULL, "unexpected argument \"%s\"; see --help", argument);
		return EXIT_USAGE;
	}
	snprintf(name, sizeof name, "%.*s", equals ? (int)(equals - argument - 2) : (int)strlen(argument + 2), argument + 2);
	snprintf(where, sizeof where, "--%s", name);
	bool config = strcmp(name, "config") == 0;
	value = equals ? equals + 1 : is_flag(name) ? "yes" : argv[*i + 1];
	if (!config && !is_known(name)) {
		config_set(options_table, options_count, o, name, "", where, err);    // for its message
		return EXIT_USAGE;
	}
	if (!value) {
		error_set(err, ERROR_INVALID, name, "%s needs a value", where);
		return EXIT_USAGE;
	}
	*i += !equals && !is_flag(name);
	if (config)
		*ret_config = value;
	return !config && settings && config_set(options_table, options_count, o, name, value, where, err) ? EXIT_BAD_CONFIG : 0;
}

// "max-tokens" is $KDSERVED_MAX_TOKENS. Variables of other names are somebody else's (kdctl's, an orchestrator's).
static int read_environment(struct options *o, struct error *err)
{
	char where[80];
	int r = 0;
	for (size_t i = 0; i < options_count && !r; i++) {
		snprintf(where, sizeof where, "$KDSERVED_%s", options_table[i].name);
		for (char *p = where; *p; p++)
			*p = *p == '-' ? '_' : (char)toupper((unsigned char)*p);
		const char *value = getenv(where + 1);
		r = value ? config_set(options_table, options_count, o, options_table[i].name, value, where, err) : 0;
	}
	return r;
}

// Twice over the command line: first for --config, then, once that file and the environment are read, for the rest.
int arguments_read(struct options *o, char **argv, enum arguments_mode *ret_mode, struct error *err)
{
	const char *config = NULL;
	int status = 0;
	for (int pass = 0; pass < 2; pass++) {
		for (int i = 1; argv[i] && !status; i++)
			if (!find_mode(argv[i], ret_mode))
				status = read_argument(o, argv, &i, pass == 1, &config, err);
		if (status)
			return status;
		if (pass == 0 && config && config_read_file(options_table, options_count, o, config, err))
			return EXIT_BAD_CONFIG;
		if (pass == 0 && read_environment(o, err))
			return EXIT_BAD_CONFIG;
	}
	return 0;
}

static void print_config(void)
{
	printf("# Settings of kdserved, each with its default; see kdserved.conf(5). Made from options.def by kdserved "
	       "--print-config.\n\n");
	config_print_example(stdout, options_table, options_count);
}

bool arguments_print(enum arguments_mode mode)
{
	switch (mode) {
	case MODE_HELP: print_help(); return true;
	case MODE_VERSION: puts("kdserved " PACKAGE_VERSION); return true;
	case MODE_PRINT_CONFIG: print_config(); return true;
	case MODE_PRINT_MAN: config_print_man(stdout, options_table, options_count); return true;
	case MODE_RUN:
	case MODE_CHECK: break;
	}
	return false;
}
