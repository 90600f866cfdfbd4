// SPDX-License-Identifier: Apache-2.0
// kdctl store import: files of kdctl store export become records of a directory again. What a file says of a record is checked against the
// record that its numbers make; the first that does not fit ends the work. What came before it stays: every record stands for itself.
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "clients/kdctl/store_note.h"
#include "clients/kdctl/store_tensors.h"
#include "clients/kdctl/store_transfer.h"
#include "common/error.h"
#include "common/provenance.h"
#include "daemon/store/store.h"

static const char help[] =
	"Usage: kdctl store import DIR FILE...\n"
	"Adds the records of files that kdctl store export wrote (jsonl, safetensors, npz, parquet; - = jsonl from\n"
	"stdin) to a directory, which is made when missing, and the notes on who answered. No kdserved may be using it.\n"
	"Records that it has already are left as they are. npz and parquet are read by python3 -m kdclient.export.";

struct import {
	struct kdctl *k;
	const char *path;                // of the file being read
	struct store *store;
	struct progress progress;
	uint64_t n_records, n_rows, file_bytes;
	pthread_mutex_t lock;            // of what follows
	pthread_cond_t acknowledged;
	uint64_t n_waiting;
	struct error err;                // of the first append that failed
};

static void acknowledge(void *arg, const struct error *err)
{
	struct import *i = arg;
	pthread_mutex_lock(&i->lock);
	i->n_waiting--;
	if (err && i->err.code == ERROR_NONE)
		i->err = *err;
	pthread_cond_signal(&i->acknowledged);
	pthread_mutex_unlock(&i->lock);
}

// Until at most n are on their way to the disk. An exit status.
static int wait_for(struct import *i, uint64_t n)
{
	pthread_mutex_lock(&i->lock);
	while (i->n_waiting > n)
		pthread_cond_wait(&i->acknowledged, &i->lock);
	bool failed = i->err.code != ERROR_NONE;
	pthread_mutex_unlock(&i->lock);
	return failed ? kdctl_fail(i->k, "cannot store: %s", i->err.message) : 0;
}

// Takes the record.
static int append(struct import *i, struct record *record)
{
	struct error err = {0};
	int r, status = 0;
	do {
		pthread_mutex_lock(&i->lock);
		uint64_t waiting = i->n_waiting++;
		pthread_mutex_unlock(&i->lock);
		r = store_append(i->store, record, STORE_DURABLE, acknowledge, i, &err);
		if (!r)
			break;
		pthread_mutex_lock(&i->lock);
		i->n_waiting--;
		pthread_mutex_unlock(&i->lock);
		if (r != -EAGAIN || !waiting)
			status = kdctl_fail(i->k, "cannot store: %s", err.message);
		else
			status = wait_for(i, waiting - 1);
	} while (!status);
	i->n_records++;
	i->n_rows += record_n_rows(record);
	record_unref(record);
	return status;
}

// ---- who answered

static int describe(struct import *i, const struct provenance *p)
{
	struct error err = {0};
	return store_describe(i->store, p, &err) ? kdctl_fail(i->k, "cannot store: %s", err.message) : 0;
}

static int import_notes(struct import *i, const struct tensors *t)
{
	struct provenance *notes = NULL;
	struct error err = {0};
	char *text = NULL;
	size_t n = 0;
	int status = 0, r = tensors_metadata(t, &text, &err);
	if (!r && text)
		r = note_decode_metadata(text, t->n_metadata, &notes, &n, &err);
	if (r)
		status = kdctl_fail(i->k, "%s: %s%s%s", i->path, err.field, *err.field ? ": " : "", err.message);
	for (size_t at = 0; at < n && !status; at++)
		status = describe(i, &notes[at]);
	free(text);
	free(notes);
	return status;
}

// ---- lines

// A whole line without its end into *text, which grows; *ret_n SIZE_MAX at the end of the file.
static int next_line(struct import *i, FILE *f, char **text, size_t *size, size_t *ret_n)
{
	size_t n = 0;
	int c;
	while ((c = getc_unlocked(f)) != EOF && c != '\n') {
		if (n + 2 > *size) {
			size_t larger = *size ? 2 * *size : 65536;
			char *moved = n > LINE_MAX_BYTES ? NULL : realloc(*text, larger);
			if (!moved)
				return kdctl_fail(i->k, "%s: %s", i->path, n > LINE_MAX_BYTES
					? "a line that is longer than any record's" : "no memory");
			*text = moved;
			*size = larger;
		}
		(*text)[n++] = (char)c;
	}
	if (ferror(f))
		return kdctl_fail(i->k, "%s: %s", i->path, strerror(errno));
	if (c == EOF && n)
		return kdctl_fail(i->k, "%s: its last line has no end: the file is not whole", i->path);
	if (n)
		(*text)[n] = '\0';
	*ret_n = c == EOF ? SIZE_MAX : n;
	return 0;
}

static void show(struct import *i, FILE *f)
{
	char note[64];
	if (!i->progress.shown)
		return;
	snprintf(note, sizeof note, "%" PRIu64 " records imported", i->n_records);
	progress_show(&i->progress, i->file_bytes ? (double)ftello(f) : 0, i->file_bytes ? (double)i->file_bytes : 1, note);
}

// A record or a note.
static int import_line(struct import *i, const char *text, size_t n, uint64_t number)
{
	struct record *record;
	struct provenance note;
	struct error err = {0};
	bool is_note = note_is_line(text, n);
	if (is_note ? note_decode_line(text, n, &note, &err) : line_decode(text, n, &record, &err))
		return kdctl_fail(i->k, "%s: line %" PRIu64 ": %s%s%s", i->path, number, err.field, *err.field ? ": " : "", err.message);
	return is_note ? describe(i, &note) : append(i, record);
}

static int import_lines(void *arg, FILE *f)
{
	struct import *i = arg;
	char *text = NULL;
	size_t size = 0, n = 0;
	uint64_t number = 0;
	int status = 0;
	while (!status) {
		status = next_line(i, f, &text, &size, &n);
		if (status || n == SIZE_MAX)
			break;
		number++;
		if (!n)
			continue;
		status = import_line(i, text, n, number);
		show(i, f);
	}
	free(text);
	return status;
}

// ---- arrays

static int import_tensors(struct import *i, int fd)
{
	struct tensors t;
	struct error err = {0};
	char note[64];
	int status = 0;
	if (tensors_open(&t, fd, &err))
		return kdctl_fail(i->k, "%s: %s%s%s", i->path, err.field, *err.field ? ": " : "", err.message);
	status = import_notes(i, &t);
	for (uint64_t n = 0; !status && n < t.n_records; n++) {
		struct record *record;
		if (tensors_record(&t, n, &record, &err))
			status = kdctl_fail(i->k, "%s: record %" PRIu64 ": %s%s%s", i->path, n + 1, err.field,
				*err.field ? ": " : "", err.message);
		else
			status = append(i, record);
		snprintf(note, sizeof note, "%" PRIu64 " records imported", i->n_records);
		progress_show(&i->progress, (double)n, (double)t.n_records, note);
	}
	return status;
}

// ---- files

static int import_python(struct import *i)
{
	const char *arguments[] = {python_interpreter(), "-m", "kdclient.export", "--lines", i->path, NULL};
	i->file_bytes = 0;
	return python_run(i->k, arguments, import_lines, i);
}

// By its first bytes.
static int import_file(struct import *i, const char *path)
{
	bool standard = strcmp(path, "-") == 0;
	FILE *f = standard ? stdin : fopen(path, "re");
	char head[9] = "";
	struct stat s;
	int status;
	i->path = path;
	if (!f || fstat(fileno(f), &s))
		return kdctl_fail(i->k, "%s: %s", path, strerror(errno));
	i->file_bytes = S_ISREG(s.st_mode) ? (uint64_t)s.st_size : 0;
	if (!standard && S_ISREG(s.st_mode) && pread(fileno(f), head, sizeof head, 0) < 0)
		status = kdctl_fail(i->k, "%s: %s", path, strerror(errno));
	else if (memcmp(head, "PAR1", 4) == 0 || memcmp(head, "PK\3\4", 4) == 0)        // npz is a zip
		status = import_python(i);
	else if (standard || *head == '{' || !i->file_bytes)
		status = import_lines(i, f);
	else if (head[8] == '{')         // behind the header's length
		status = import_tensors(i, fileno(f));
	else
		status = kdctl_fail(i->k, "%s: neither jsonl nor safetensors, npz or parquet", path);
	if (!standard)
		fclose(f);
	return status;
}

static int import_files(struct import *i, char **paths, int n)
{
	int status = 0;
	i->progress = progress_start();
	for (int at = 0; at < n && !status; at++)
		status = import_file(i, paths[at]);
	int last = wait_for(i, 0);
	progress_stop(&i->progress);
	return status ? status : last;
}

static void print_totals(const struct import *i, uint64_t n_there)
{
	if (i->k->json)
		printf("{\"records\":%" PRIu64 ",\"rows\":%" PRIu64 ",\"already_there\":%" PRIu64 "}\n", i->n_records, i->n_rows, n_there);
	else
		printf("%" PRIu64 " records, %" PRIu64 " rows imported, %" PRIu64 " of them were already there\n", i->n_records,
			i->n_rows, n_there);
}

int store_import(struct kdctl *k, int argc, char **argv)
{
	static const struct option options[] = {{"help", no_argument, NULL, 'h'}, {"json", no_argument, NULL, 'j'}, {0}};
	struct import i = {.k = k, .lock = PTHREAD_MUTEX_INITIALIZER, .acknowledged = PTHREAD_COND_INITIALIZER};
	struct store_stats stats;
	struct error err = {0};
	for (int c; (c = getopt_long(argc, argv, ":", options, NULL)) != -1;) {
		if (c != 'h' && c != 'j')
			return kdctl_bad_option(k, argc, argv);
		k->json = k->json || c == 'j';
		if (c == 'h') {
			puts(help);
			return 0;
		}
	}
	if (argc - optind < 2)
		return kdctl_usage(k, "a DIR and FILEs are expected (kdctl store import --help)");
	struct store_options o = {.directory = argv[optind]};
	if (store_open(&o, &i.store, &err))
		return kdctl_fail_with(k, err.field, err.message);
	int status = import_files(&i, argv + optind + 1, argc - optind - 1);
	store_stats(i.store, &stats);
	store_close(i.store);
	if (!status)
		print_totals(&i, stats.n_duplicates);
	return status;
}
