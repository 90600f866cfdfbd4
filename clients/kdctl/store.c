// SPDX-License-Identifier: Apache-2.0
// kdctl store: which of its commands, and what they share.
#include "clients/kdctl/store.h"

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "common/error.h"
#include "daemon/store/survey.h"

static const struct {
	const char *name;
	int (*run)(struct kdctl *k, int argc, char **argv);
	const char *arguments, *help;
} commands[] = {
	{"ls", store_ls, "DIR [KEY]", "one line a record"},
	{"cat", store_cat, "DIR [KEY]", "records as JSON lines"},
	{"stat", store_stat, "DIR", "what is in it, and what its bytes are spent on"},
	{"verify", store_verify, "DIR [KEY]", "checks every byte; exit status 1 when something is damaged"},
	{"compact", store_compact, "DIR", "rewrites shards without copies and contained records"},
	{"merge", store_merge, "DIR FROM ...", "adds the records of other directories"},
	{"prune", store_prune, "LIMITS DIR", "removes the oldest shards"},
	{"export", store_export, "DIR --output FILE", "records as a file that needs no kdserved to be read"},
	{"import", store_import, "DIR FILE ...", "adds the records of such files"},
};
#define N_COMMANDS (sizeof commands / sizeof *commands)

static void print_help(void)
{
	puts("Usage: kdctl store COMMAND [OPTION ...] DIR ...\n\nCommands:");
	for (size_t i = 0; i < N_COMMANDS; i++) {
		char left[64];
		snprintf(left, sizeof left, "%s %s", commands[i].name, commands[i].arguments);
		printf("  %-26s %s\n", left, commands[i].help);
	}
	puts("\nKEY: only records whose key begins so. All take --json, and say more with --help.");
}

static int bad_command(const struct kdctl *k, const char *name)
{
	char names[128] = "";
	for (size_t i = 0; i < N_COMMANDS; i++)
		snprintf(names + strlen(names), sizeof names - strlen(names), "%s%s", !i ? "" : i + 1 < N_COMMANDS ? ", " : " or ",
			 commands[i].name);
	return name ? kdctl_usage(k, "%s: %s is expected", name, names)
		    : kdctl_usage(k, "%s, and a DIR are expected (kdctl store --help)", names);
}

int command_store(struct kdctl *k, int argc, char **argv)
{
	static const struct option options[] = {STORE_OPTIONS, {0}};
	for (int c; (c = getopt_long(argc, argv, "+:", options, NULL)) != -1;) {
		if (c != 'j' && c != 'h')
			return kdctl_bad_option(k, argc, argv);
		k->json = k->json || c == 'j';
		if (c == 'h') {
			print_help();
			return 0;
		}
	}
	if (optind == argc)
		return bad_command(k, NULL);
	for (size_t i = 0; i < N_COMMANDS; i++) {
		if (strcmp(argv[optind], commands[i].name) != 0)
			continue;
		int at = optind;
		optind = 0;
		return commands[i].run(k, argc - at, argv + at);
	}
	return bad_command(k, argv[optind]);
}

int store_option(struct kdctl *k, int argc, char **argv, const struct option *options, const char *help, int *ret_status)
{
	int c = getopt_long(argc, argv, ":", options, NULL);
	switch (c) {
	case 'j': k->json = true; return store_option(k, argc, argv, options, help, ret_status);
	case 'h': printf("Usage: kdctl store %s", help); *ret_status = 0; return -2;
	case ':':
	case '?': *ret_status = kdctl_usage(k, "%s: unknown option, or its value is missing (kdctl store %s --help)",
		argv[optind - 1], argv[0]);
		return -2;
	default: return c;
	}
}

int store_expect_directory(const struct kdctl *k, const char *directory)
{
	struct stat s;
	errno = 0;
	if (stat(directory, &s) == 0 && S_ISDIR(s.st_mode))
		return 0;
	return kdctl_fail(k, "%s: %s", directory, errno && errno != ENOENT ? strerror(errno) : "no such directory");
}

int store_failure(const struct kdctl *k, const struct error *err)
{
	return kdctl_fail_with(k, err->field, err->message);
}

bool store_threads(const char *text, unsigned *ret_threads)
{
	double v = 1;
	cpu_set_t processors;
	if (text && (!kdctl_number(text, 1, SURVEY_MAX_THREADS, &v) || v != (unsigned)v))
		return false;
	if (!text && sched_getaffinity(0, sizeof processors, &processors) == 0)
		v = CPU_COUNT(&processors);
	*ret_threads = v > SURVEY_MAX_THREADS ? SURVEY_MAX_THREADS : (unsigned)v;
	return true;
}

struct unit { const char *suffix; uint64_t factor; };

static bool read_units(const char *text, const struct unit *units, uint64_t *ret_value)
{
	char *end;
	errno = 0;
	unsigned long long v = strtoull(text, &end, 10);
	if (*text < '0' || *text > '9' || errno)
		return false;
	for (; units->suffix; units++)
		if (strcmp(end, units->suffix) == 0)
			return v && !__builtin_mul_overflow(v, units->factor, ret_value);
	return false;
}

bool store_size(const char *text, uint64_t *ret_bytes)
{
	static const struct unit units[] = {{"", 1}, {"K", UINT64_C(1) << 10}, {"M", UINT64_C(1) << 20}, {"G", UINT64_C(1) << 30},
					    {"T", UINT64_C(1) << 40}, {NULL, 0}};
	return read_units(text, units, ret_bytes);
}

bool store_duration(const char *text, uint64_t *ret_s)
{
	static const struct unit units[] = {{"", 1}, {"s", 1}, {"min", 60}, {"h", 3600}, {"d", 86400}, {"w", 7 * 86400}, {NULL, 0}};
	return read_units(text, units, ret_s);
}

void store_report_damage(const struct kdctl *k, const char *place, uint64_t offset, uint64_t n_bytes, const char *message)
{
	kdctl_fail(k, "%s: %s", place, message);
	if (!k->json)
		return;
	json_t *j = json_pack("{s:{s:s, s:I, s:I, s:s}}", "damage", "place", place, "offset", (json_int_t)offset,
			      "bytes", (json_int_t)n_bytes, "error", message);
	kdctl_print_json(j);
	json_decref(j);
}

void store_bytes_text(uint64_t n, char ret_text[24])
{
	static const char *const units[] = {"bytes", "KiB", "MiB", "GiB", "TiB", "PiB"};
	double v = (double)n;
	size_t i = 0;
	for (; v >= 1024 && i + 1 < sizeof units / sizeof *units; i++)
		v /= 1024;
	snprintf(ret_text, 24, i ? "%.1f %s" : "%.0f %s", v, units[i]);
}

void store_progress(struct progress *p, uint64_t done, uint64_t all)
{
	char note[96], of[24];
	double seconds = progress_seconds(p), rate = (double)done / seconds,
		left = rate > 0 && all > done ? (double)(all - done) / rate : 0;
	store_bytes_text(all, of);
	snprintf(note, sizeof note, "of %s, %.0f MB/s, %.0f s left", of, rate / 1e6, left);
	progress_show(p, (double)done, (double)all, note);
}
