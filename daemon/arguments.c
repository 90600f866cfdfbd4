// SPDX-License-Identifier: Apache-2.0
#include "daemon/arguments.h"

#include <config.h>    // of configure; in quotes it would be daemon/config.h
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/error.h"
#include "daemon/options.h"

#define PREFIX "KDSERVED_"

static const struct { const char *name; enum arguments_mode mode; } modes[] = {
	{"--check-config", MODE_CHECK}, {"--help", MODE_HELP}, {"-h", MODE_HELP}, {"--version", MODE_VERSION},
	{"--print-config", MODE_PRINT_CONFIG}, {"--print-man", MODE_PRINT_MAN},
};

static void print_help(void)
{
	printf("Usage: kdserved --teacher PATH [OPTION]...\n"
	       "Serves a teacher language model to those who train students.\n\n"
	       "  --config FILE                 read settings from FILE first; $KDSERVED_NAME, then the command line win\n"
	       "  --check-config                say all that is wrong with the settings, and leave: 0 or 78\n"
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
	const struct config_option *o = config_find(options_table, options_count, name);
	return o && o->type == CONFIG_BOOL;
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
	if (!config && !config_find(options_table, options_count, name)) {
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

// "max-tokens" is $KDSERVED_MAX_TOKENS.
static void variable_of(const char *name, char ret[80])
{
	snprintf(ret, 80, "%s%s", PREFIX, name);
	for (char *p = ret; *p; p++)
		*p = *p == '-' ? '_' : (char)toupper((unsigned char)*p);
}

static int read_environment(struct options *o, struct config_errors *all)
{
	char where[81] = "$";
	int r = 0;
	for (size_t i = 0; i < options_count; i++) {
		struct error err = {0};
		variable_of(options_table[i].name, where + 1);
		const char *value = getenv(where + 1);
		if (!value || !config_set(options_table, options_count, o, options_table[i].name, value, where, &err))
			continue;
		config_errors_add(all, &err);
		r = EXIT_BAD_CONFIG;
	}
	return r;
}

// Of other programs (kdctl, this server's own workers, tests), and those Kubernetes makes for a service called kdserved.
static bool is_somebody_elses(const char *rest)
{
	static const char *const names[] = {"SERVER", "TOKEN", "TOKEN_FILE", "WORKER_TOKEN", "WORKER_TOKEN_FOR", "CPU", "PYTHON", "BROWSER",
					    "PORT"};
	static const char *const beginnings[] = {"TEST_", "SERVICE_", "PORT_"};
	bool found = false;
	for (size_t i = 0; i < sizeof names / sizeof *names; i++)
		found |= strcmp(rest, names[i]) == 0;
	for (size_t i = 0; i < sizeof beginnings / sizeof *beginnings; i++)
		found |= strncmp(rest, beginnings[i], strlen(beginnings[i])) == 0;
	return found;
}

static void warn_of(const char *rest, struct config_errors *all)
{
	char name[64] = "", variable[80] = "";
	struct error e = {0};
	for (size_t i = 0; rest[i] && i + 1 < sizeof name; i++)
		name[i] = rest[i] == '_' ? '-' : (char)tolower((unsigned char)rest[i]);
	if (config_find(options_table, options_count, name) && strlen(name) == strlen(rest) &&
		!strpbrk(rest, "-abcdefghijklmnopqrstuvwxyz"))
		return;
	const char *best = config_nearest(options_table, options_count, name);
	if (best)
		variable_of(best, variable);
	error_set(&e, ERROR_INVALID, rest, best ? "$%s%.60s is no setting: did you mean $%s?" : "$%s%.60s is no setting", PREFIX,
		rest, variable);
	config_errors_add(all, &e);
}

void arguments_warn(struct config_errors *all)
{
	for (char **v = environ; v && *v; v++) {
		char rest[128];
		if (strncmp(*v, PREFIX, strlen(PREFIX)) != 0)
			continue;
		snprintf(rest, sizeof rest, "%.*s", (int)strcspn(*v + strlen(PREFIX), "="), *v + strlen(PREFIX));
		if (!is_somebody_elses(rest))
			warn_of(rest, all);
	}
}

// Twice over the command line: first for --config, then, once that file and the environment are read, for the rest.
int arguments_read(struct options *o, char **argv, enum arguments_mode *ret_mode, struct config_errors *all)
{
	const char *config = NULL;
	int status = 0;
	for (int pass = 0; pass < 2; pass++) {
		for (int i = 1; argv[i] && status != EXIT_USAGE; i++) {
			struct error err = {0};
			int r = find_mode(argv[i], ret_mode) ? 0 : read_argument(o, argv, &i, pass == 1, &config, &err);
			if (r)
				config_errors_add(all, &err);
			status = r ? r : status;
		}
		if (pass == 0 && !status && config && config_check_file(options_table, options_count, o, config, all))
			status = EXIT_BAD_CONFIG;
		if (pass == 0 && status != EXIT_USAGE && read_environment(o, all))
			status = EXIT_BAD_CONFIG;
	}
	return status;
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
