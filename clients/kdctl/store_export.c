// SPDX-License-Identifier: Apache-2.0
// kdctl store export: records become a file that others read. What needs a library of Python's is written by kdclient for Python.
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "clients/kdctl/store_transfer.h"
#include "common/error.h"
#include "common/output.h"
#include "common/provenance.h"
#include "daemon/store/store.h"

static const char help[] =
	"Usage: kdctl store export [OPTIONS] DIR --output FILE\n"
	"Writes the records of a directory as a file that needs no kdserved to be read.\n\n"
	"  --format F      jsonl, safetensors, npz, parquet; by the file's name, else jsonl\n"
	"                  (npz and parquet by python3 -m kdclient.export)\n"
	"  --output FILE   written whole or not at all; - = stdout (jsonl)\n"
	"  --overwrite     the file may exist\n"
	"  --teacher ID    only records of the teacher whose fingerprint begins so\n"
	"  --limit N       only the first N of them";

static const struct {
	const char *name;
	int (*run)(struct export *e);        // NULL: kdclient for Python
} formats[] = {{"jsonl", export_lines}, {"safetensors", export_tensors}, {"npz", NULL}, {"parquet", NULL}};
#define N_FORMATS (sizeof formats / sizeof *formats)

// ---- the records

static bool wanted(const struct export *e, const struct content_id *fingerprint)
{
	char teacher[CONTENT_ID_HEX];
	content_id_to_hex(fingerprint, teacher);
	return !e->teacher || strncmp(teacher, e->teacher, strlen(e->teacher)) == 0;
}

static void damaged(struct export *e, const char *place, const char *what)
{
	e->n_damaged++;
	if (!e->quiet)
		kdctl_fail(e->k, "%s: %s", place, what);
}

static int take(struct export *e, const struct record *record, const char *place, export_take_fn *fn, void *arg)
{
	struct record_rows *rows = NULL;
	struct error err = {0};
	if (record_decode(record, &rows, &err)) {
		damaged(e, place, err.message);
		return 0;
	}
	int r = fn(arg, record, rows, &e->err);
	bool disk = e->err.code == ERROR_IO || e->err.code == ERROR_STORE;      // no fault of the record's
	record_rows_free(rows);
	if (r)
		return disk ? kdctl_fail(e->k, "%s", e->err.message) : kdctl_fail(e->k, "%s: %s", place, e->err.message);
	e->n_records++;
	e->n_rows += record_n_rows(record);
	return 0;
}

static void show(struct export *e, const char *verb)
{
	char note[64];
	double done = (double)(e->record_bytes < e->total_bytes ? e->record_bytes : e->total_bytes);
	snprintf(note, sizeof note, "%" PRIu64 " records %s", e->n_records, verb);
	progress_show(&e->progress, done, (double)e->total_bytes, note);
}

int export_walk(struct export *e, const char *verb, export_take_fn *fn, void *arg)
{
	struct store_cursor cursor = {0};
	struct store_stats stats;
	int status = 0;
	store_stats(e->store, &stats);
	e->n_records = e->n_rows = e->n_damaged = e->record_bytes = 0;
	e->total_bytes = stats.n_bytes;
	e->progress = progress_start();
	while (!status && e->n_records < e->limit) {
		struct record *record = NULL;
		struct error err = {0};
		char place[96] = "";
		size_t n = 0;
		int r = store_next(e->store, &cursor, &record, place, &err);
		if (r == -ENOENT)
			break;
		if (r) {
			if (r == -EBADMSG)
				damaged(e, place, err.message);
			else
				status = kdctl_fail(e->k, "%s: %s", place, err.message);
			continue;
		}
		if (wanted(e, record_teacher(record)))
			status = take(e, record, place, fn, arg);
		(void)record_bytes(record, &n);
		record_unref(record);
		e->record_bytes += n;
		show(e, verb);
	}
	progress_stop(&e->progress);
	return status;
}

size_t export_notes(const struct export *e, struct provenance **ret_notes)
{
	struct provenance *notes = NULL;
	size_t n = 0, kept = 0;
	if (store_teachers(e->store, &notes, &n, NULL))
		return 0;
	for (size_t i = 0; i < n; i++)
		if (wanted(e, &notes[i].fingerprint))
			notes[kept++] = notes[i];
	*ret_notes = notes;
	return kept;
}

// ---- the file

static bool to_stdout(const struct export *e)
{
	return strcmp(e->path, "-") == 0;
}

static void print_totals(const struct export *e)
{
	FILE *f = to_stdout(e) ? stderr : stdout;
	if (e->k->json)
		fprintf(f, "{\"records\":%" PRIu64 ",\"rows\":%" PRIu64 ",\"damaged\":%" PRIu64 "}\n", e->n_records,
			e->n_rows, e->n_damaged);
	else
		fprintf(f, "%" PRIu64 " records, %" PRIu64 " rows exported, %" PRIu64 " damaged\n", e->n_records, e->n_rows, e->n_damaged);
}

static int write_file(struct export *e, int (*run)(struct export *e))
{
	struct output output = {.path = e->path, .fd = STDOUT_FILENO, .err = &e->err};
	int r = to_stdout(e) ? 0 : output_open(&output, e->path, &e->err), status = 0;
	e->output = &output;
	if (!r)
		status = run(e);
	if (!status && !r && !e->n_records && e->teacher)
		status = kdctl_fail(e->k, "%s: no record of a teacher whose fingerprint begins so", e->teacher);
	if (to_stdout(e))
		return status;
	r = output_close(&output, r ? r : status ? -ECANCELED : 0);
	return status ? status : r ? kdctl_fail(e->k, "%s", e->err.message) : 0;
}

static int run(struct export *e, int (*run_format)(struct export *e))
{
	struct store_options options = {.directory = e->directory, .read_only = true};
	struct error err = {0};
	if (store_open(&options, &e->store, &err))
		return kdctl_fail_with(e->k, err.field, err.message);
	int status = write_file(e, run_format);
	store_close(e->store);
	if (!status)
		print_totals(e);
	return status ? status : e->n_damaged > 0;
}

// ---- what Python writes

static int run_python(const struct export *e)
{
	const char *arguments[16] = {
		python_interpreter(), "-m", "kdclient.export", e->directory, "--format", e->format, "--output", e->path};
	char limit[24];
	unsigned n = 8;
	if (e->overwrite)
		arguments[n++] = "--overwrite";
	if (e->teacher) {
		arguments[n++] = "--teacher";
		arguments[n++] = e->teacher;
	}
	if (e->limit != UINT64_MAX) {
		snprintf(limit, sizeof limit, "%" PRIu64, e->limit);
		arguments[n++] = "--limit";
		arguments[n++] = limit;
	}
	if (e->k->json)
		arguments[n++] = "--json";
	return python_run(e->k, arguments, NULL, NULL);
}

// ---- the command line

static int check(struct export *e)
{
	struct stat s;
	if (stat(e->directory, &s) || !S_ISDIR(s.st_mode))
		return kdctl_fail(e->k, "%s: no such directory", e->directory);
	if (to_stdout(e))
		return strcmp(e->format, "jsonl") == 0 ? 0 : kdctl_usage(e->k, "only jsonl is written to stdout");
	if (!e->overwrite && lstat(e->path, &s) == 0)
		return kdctl_fail(e->k, "%s: it exists: --overwrite writes it anew", e->path);
	return 0;
}

static int run_format(struct export *e)
{
	for (size_t i = 0; i < N_FORMATS; i++) {
		if (strcmp(formats[i].name, e->format) != 0)
			continue;
		int status = check(e);
		return status ? status : formats[i].run ? run(e, formats[i].run) : run_python(e);
	}
	return kdctl_usage(e->k, "--format %s: jsonl, safetensors, npz or parquet is expected", e->format);
}

static const char *format_of(const char *path)
{
	const char *dot = strrchr(path, '.');
	for (size_t i = 0; dot && i < N_FORMATS; i++)
		if (strcmp(formats[i].name, dot + 1) == 0)
			return formats[i].name;
	return "jsonl";
}

int store_export(struct kdctl *k, int argc, char **argv)
{
	enum { OPT_FORMAT = 256, OPT_OUTPUT, OPT_OVERWRITE, OPT_TEACHER, OPT_LIMIT };
	static const struct option options[] = {{"help", no_argument, NULL, 'h'}, {"format", required_argument, NULL, OPT_FORMAT},
		{"output", required_argument, NULL, OPT_OUTPUT}, {"overwrite", no_argument, NULL, OPT_OVERWRITE},
		{"teacher", required_argument, NULL, OPT_TEACHER}, {"limit", required_argument, NULL, OPT_LIMIT},
		{"json", no_argument, NULL, 'j'}, {0}};
	struct export e = {.k = k, .limit = UINT64_MAX};
	double limit;
	for (int c; (c = getopt_long(argc, argv, ":", options, NULL)) != -1;) {
		switch (c) {
		case 'h': puts(help); return 0;
		case 'j': k->json = true; break;
		case OPT_FORMAT: e.format = optarg; break;
		case OPT_OUTPUT: e.path = optarg; break;
		case OPT_OVERWRITE: e.overwrite = true; break;
		case OPT_TEACHER: e.teacher = optarg; break;
		case OPT_LIMIT:
			if (!kdctl_number(optarg, 1, 1e15, &limit))
				return kdctl_usage(k, "--limit %s: a number from 1 is expected", optarg);
			e.limit = (uint64_t)limit;
			break;
		default: return kdctl_bad_option(k, argc, argv);
		}
	}
	if (argc - optind != 1 || !e.path || !*e.path)
		return kdctl_usage(k, "a DIR and --output FILE are expected (kdctl store export --help)");
	e.directory = argv[optind];
	if (!e.format)
		e.format = format_of(e.path);
	return run_format(&e);
}
