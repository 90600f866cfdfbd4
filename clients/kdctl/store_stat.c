// SPDX-License-Identifier: Apache-2.0
// kdctl store stat: what a store holds and what its bytes are spent on, for each teacher and kind of question.
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "clients/kdctl/store.h"
#include "common/error.h"
#include "common/record.h"
#include "daemon/store/surplus.h"
#include "daemon/store/survey.h"

#define KIND_MAX 160
#define MAX_CELLS 1024           // kinds of questions told apart for each thread; further ones are one kind, "others"

// Records of one teacher that answer one kind of question.
struct cell {
	struct content_id teacher;
	char kind[KIND_MAX];
	uint64_t n_records, n_rows, n_tokens, n_bytes, n_surplus;
	uint64_t saved_bytes;            // by compression
	uint64_t parts[RECORD_N_PARTS];
};

struct cells {
	_Alignas(64) struct cell *cells;
	size_t n, last;
};

struct statistics {
	const struct kdctl *k;
	struct progress progress;
	struct surplus *surplus;
	struct cells threads[SURVEY_MAX_THREADS];
	struct cells all;
};

static void add_word(char kind[KIND_MAX], bool asked, const char *format, ...) __attribute__((format(printf, 3, 4)));
static void add_word(char kind[KIND_MAX], bool asked, const char *format, ...)
{
	size_t n = strlen(kind);
	va_list arguments;
	if (!asked || n + 2 >= KIND_MAX)
		return;
	if (n)
		kind[n++] = ' ';
	va_start(arguments, format);
	vsnprintf(kind + n, KIND_MAX - n, format, arguments);
	va_end(arguments);
}

// A question but for what differs from one sequence to the next: its rows, ids, spans and seeds.
static void name_kind(const struct query *q, char kind[KIND_MAX])
{
	static const char *const values[] = {[QUERY_VALUES_F32] = "f32", [QUERY_VALUES_F16] = "f16", [QUERY_VALUES_U8] = "u8"};
	kind[0] = '\0';
	add_word(kind, q->top_k && q->top_mass == 0, "top-%" PRIu32, q->top_k);
	add_word(kind, q->top_mass != 0, "top-mass-%g-of-%" PRIu32, (double)q->top_mass, q->top_k);
	add_word(kind, q->dense, "dense");
	add_word(kind, q->gather.n_lists, "gather");
	add_word(kind, q->top_k || q->dense || q->gather.n_lists, "%s", values[q->values]);
	add_word(kind, q->draws.n, "draws-%" PRIu32 "%s", q->draws.n, q->draws.tail ? "-tail" : "");
	add_word(kind, q->draws.n && q->draws.tau != 1, "tau-%g", (double)q->draws.tau);
	add_word(kind, q->own, "own");
	add_word(kind, q->entropy, "entropy");
	add_word(kind, q->max_prob, "max-prob");
	add_word(kind, q->argmax, "argmax");
	add_word(kind, q->sum_squares, "sum-squares");
	add_word(kind, q->tail, "tail");
	add_word(kind, q->n_temperatures > 1, "lse-%" PRIu32, q->n_temperatures);
	add_word(kind, q->n_keep, "keep");
	add_word(kind, q->n_spans, "spans");
	add_word(kind, q->n_features, "features-%" PRIu32, q->n_features);
}

static struct cell *cell_find(struct cells *c, const struct content_id *teacher, const char *kind)
{
	for (size_t i = 0; i < c->n; i++) {
		struct cell *at = &c->cells[(c->last + i) % c->n];
		if (strcmp(at->kind, kind) == 0 && memcmp(&at->teacher, teacher, sizeof *teacher) == 0) {
			c->last = (size_t)(at - c->cells);
			return at;
		}
	}
	if (c->n == MAX_CELLS && strcmp(kind, "others") != 0)
		return cell_find(c, teacher, "others");
	struct cell *more = reallocarray(c->cells, c->n + 1, sizeof *more);
	if (!more)
		return NULL;
	c->cells = more;
	c->last = c->n++;
	more[c->last] = (struct cell){.teacher = *teacher};
	snprintf(more[c->last].kind, KIND_MAX, "%s", kind);
	return &more[c->last];
}

static int visit(void *arg, const struct survey_item *item)
{
	struct statistics *s = arg;
	char kind[KIND_MAX];
	uint64_t parts[RECORD_N_PARTS];
	size_t n;
	if (!item->record) {
		progress_stop(&s->progress);
		store_report_damage(s->k, item->place, item->offset, item->n_bytes, item->message);
		return 0;
	}
	if (record_parts(item->record, parts) < 0)       // survey_run checked it
		return 0;
	name_kind(record_query(item->record), kind);
	struct cell *c = cell_find(&s->threads[item->thread], record_teacher(item->record), kind);
	if (!c || surplus_append(s->surplus, item) < 0)
		return -ENOMEM;
	(void)record_bytes(item->record, &n);
	c->n_records++;
	c->n_rows += record_n_rows(item->record);
	c->n_tokens += record_n_tokens(item->record);
	c->n_bytes += n;
	c->saved_bytes += n - item->stored_bytes;
	for (unsigned i = 0; i < RECORD_N_PARTS; i++)
		c->parts[i] += parts[i];
	return 0;
}

static void show_progress(void *arg, uint64_t done, uint64_t all)
{
	store_progress(&((struct statistics *)arg)->progress, done, all);
}

static void cell_add(struct cell *to, const struct cell *from)
{
	to->n_records += from->n_records;
	to->n_rows += from->n_rows;
	to->n_tokens += from->n_tokens;
	to->n_bytes += from->n_bytes;
	to->saved_bytes += from->saved_bytes;
	for (unsigned i = 0; i < RECORD_N_PARTS; i++)
		to->parts[i] += from->parts[i];
}

static int compare_cells(const void *a, const void *b)
{
	const struct cell *x = a, *y = b;
	int c = memcmp(&x->teacher, &y->teacher, sizeof x->teacher);
	return c ? c : (x->n_bytes < y->n_bytes) - (x->n_bytes > y->n_bytes);
}

// What every thread has counted, by teacher, the largest kind first.
static int cells_merge(struct statistics *s)
{
	for (size_t t = 0; t < SURVEY_MAX_THREADS; t++) {
		for (size_t i = 0; i < s->threads[t].n; i++) {
			const struct cell *from = &s->threads[t].cells[i];
			struct cell *to = cell_find(&s->all, &from->teacher, from->kind);
			if (!to)
				return kdctl_fail(s->k, "no memory");
			cell_add(to, from);
		}
	}
	if (s->all.n)
		qsort(s->all.cells, s->all.n, sizeof *s->all.cells, compare_cells);
	return 0;
}

// ---- for machines

static json_t *cell_json(const struct cell *c)
{
	json_t *parts = json_object();
	for (unsigned i = 0; i < RECORD_N_PARTS; i++)
		if (c->parts[i])
			json_object_set_new(parts, record_part_name(i), json_integer((json_int_t)c->parts[i]));
	return json_pack("{s:I, s:I, s:I, s:I, s:o}", "records", (json_int_t)c->n_records, "rows", (json_int_t)c->n_rows, "tokens",
			 (json_int_t)c->n_tokens, "bytes", (json_int_t)c->n_bytes, "parts", parts);
}

static json_t *teachers_json(const struct cells *all)
{
	json_t *teachers = json_array(), *teacher = NULL, *kinds = NULL;
	struct cell sum = {0};
	for (size_t i = 0; i < all->n; i++) {
		const struct cell *c = &all->cells[i];
		if (!i || memcmp(&c->teacher, &c[-1].teacher, sizeof c->teacher) != 0) {
			sum = (struct cell){0};
			kinds = json_array();
		}
		cell_add(&sum, c);
		json_t *j = cell_json(c);
		json_object_set_new(j, "kind", json_string(c->kind));
		json_array_append_new(kinds, j);
		if (i + 1 < all->n && memcmp(&c->teacher, &c[1].teacher, sizeof c->teacher) == 0)
			continue;
		char id[CONTENT_ID_HEX];
		content_id_to_hex(&c->teacher, id);
		teacher = cell_json(&sum);
		json_object_set_new(teacher, "teacher", json_string(id));
		json_object_set_new(teacher, "kinds", kinds);
		json_array_append_new(teachers, teacher);
	}
	return teachers;
}

static void print_json(const struct cells *all, const struct cell *sum, const struct survey_totals *t, const struct surplus_totals *x,
		       json_t *server)
{
	json_t *j = cell_json(sum), *parts = json_object_get(j, "parts");
	json_object_set_new(parts, "framing", json_integer((json_int_t)(t->shard_bytes + sum->saved_bytes - sum->n_bytes)));
	json_object_set_new(parts, "index", json_integer((json_int_t)t->index_bytes));
	json_t *more = json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:o}", "shards", (json_int_t)t->n_shards,
				 "sealed", (json_int_t)t->n_sealed, "shard_bytes", (json_int_t)t->shard_bytes,
				 "index_bytes", (json_int_t)t->index_bytes, "saved_bytes", (json_int_t)sum->saved_bytes,
				 "duplicates", (json_int_t)x->n_duplicates, "duplicate_bytes", (json_int_t)x->duplicate_bytes,
				 "contained", (json_int_t)x->n_contained, "contained_bytes", (json_int_t)x->contained_bytes,
				 "damaged", (json_int_t)t->n_damaged, "torn_bytes", (json_int_t)t->torn_bytes,
				 "teachers", teachers_json(all));
	json_object_update(j, more);
	json_decref(more);
	if (server)
		json_object_set(j, "server", server);
	kdctl_print_json(j);
	json_decref(j);
}

// ---- for people

static void print_part(const char *name, uint64_t n_bytes, const struct cell *sum, uint64_t all_bytes)
{
	if (n_bytes)
		printf("  %-16s %16" PRIu64 " %12.2f %6.1f %%\n", name, n_bytes, (double)n_bytes / (double)(sum->n_rows ? sum->n_rows : 1),
		       100 * (double)n_bytes / (double)all_bytes);
}

static void print_kinds(const struct cells *all)
{
	for (size_t i = 0; i < all->n; i++) {
		const struct cell *c = &all->cells[i];
		char id[CONTENT_ID_HEX];
		content_id_to_hex(&c->teacher, id);
		if (!i || memcmp(&c->teacher, &c[-1].teacher, sizeof c->teacher) != 0)
			printf("teacher %s\n  %10s %12s %14s %10s  question\n", id, "records", "rows", "bytes", "a row");
		printf("  %10" PRIu64 " %12" PRIu64 " %14" PRIu64 " %10.2f  %s\n", c->n_records, c->n_rows, c->n_bytes,
		       (double)c->n_bytes / (double)(c->n_rows ? c->n_rows : 1), c->kind);
	}
}

static void print_text(const struct cells *all, const struct cell *sum, const struct survey_totals *t, const struct surplus_totals *x)
{
	char text[24];
	uint64_t bytes = t->shard_bytes + t->index_bytes;
	store_bytes_text(bytes, text);
	printf("%" PRIu64 " records, %" PRIu64 " rows, %" PRIu64 " tokens in %" PRIu64 " shards (%" PRIu64 " sealed), %s\n", sum->n_records,
	       sum->n_rows, sum->n_tokens, t->n_shards, t->n_sealed, text);
	if (bytes) {
		printf("  %-16s %16s %12s %8s\n", "part", "bytes", "a row", "share");
		for (unsigned i = 0; i < RECORD_N_PARTS; i++)
			print_part(record_part_name(i), sum->parts[i], sum, bytes);
		print_part("framing", t->shard_bytes + sum->saved_bytes - sum->n_bytes, sum, bytes);
		print_part("index", t->index_bytes, sum, bytes);
		print_part("all", bytes, sum, bytes);
	}
	store_bytes_text(sum->saved_bytes, text);
	if (sum->saved_bytes)
		printf("  the parts are those of the records; compression saves %s of them\n", text);
	print_kinds(all);
	store_bytes_text(x->duplicate_bytes, text);
	printf("%" PRIu64 " second copies (%s)", x->n_duplicates, text);
	store_bytes_text(x->contained_bytes, text);
	printf(", %" PRIu64 " records contained in larger ones (%s), %" PRIu64 " damaged places\n", x->n_contained, text, t->n_damaged);
}

static void print_server(const struct kdctl *k, const json_t *store)
{
	double hits = json_number_value(json_object_get(store, "hits")), misses = json_number_value(json_object_get(store, "misses"));
	double contained = json_number_value(json_object_get(store, "contained")), asked = hits + misses > 0 ? hits + misses : 1;
	printf("server %s: %.0f hits (%.1f %%), %.0f of them contained in larger answers, %.0f misses\n", k->server, hits,
	       100 * hits / asked, contained, misses);
}

// What the running server says of its store; NULL when it has none (said so).
static json_t *ask_server(struct kdctl *k)
{
	json_t *status = kdctl_connect(k) ? NULL : kdctl_call(k, "GET", "/v1/status", NULL);
	json_t *store = json_incref(json_object_get(status, "store"));
	if (status && !store)
		kdctl_fail(k, "%s: this server has no store", k->server);
	json_decref(status);
	return store;
}

static int report(struct statistics *s, const char *directory, const struct survey_totals *t, json_t *server)
{
	struct error err = {0};
	struct cell sum = {0};
	if (cells_merge(s))
		return 1;
	if (surplus_find(s->surplus, directory, true, &err))
		return store_failure(s->k, &err);
	struct surplus_totals x = surplus_sum(s->surplus);
	for (size_t i = 0; i < s->all.n; i++)
		cell_add(&sum, &s->all.cells[i]);
	if (s->k->json)
		print_json(&s->all, &sum, t, &x, server);
	else
		print_text(&s->all, &sum, t, &x);
	if (server && !s->k->json)
		print_server(s->k, server);
	return t->n_damaged > 0;
}

static int stat_run(struct kdctl *k, const char *directory, unsigned n_threads, json_t *server)
{
	struct statistics *s = calloc(1, sizeof *s);
	struct survey_totals t;
	struct error err = {0};
	int status = 1;
	if (!s || !(s->surplus = surplus_new())) {
		free(s);
		return kdctl_fail(k, "no memory");
	}
	s->k = k;
	s->progress = progress_start();
	struct survey_options o = {.directory = directory, .n_threads = n_threads, .visit = visit, .progress = show_progress, .arg = s};
	int rc = survey_run(&o, &t, &err);
	progress_stop(&s->progress);
	if (rc)
		status = kdctl_fail(k, "%s", *err.message ? err.message : "no memory");
	else
		status = report(s, directory, &t, server);
	for (size_t i = 0; i < SURVEY_MAX_THREADS; i++)
		free(s->threads[i].cells);
	free(s->all.cells);
	surplus_free(s->surplus);
	free(s);
	return status;
}

int store_stat(struct kdctl *k, int argc, char **argv)
{
	static const struct option options[] = {
		{"threads", required_argument, NULL, 't'}, {"server", required_argument, NULL, 's'},
		STORE_OPTIONS, {0}};
	static const char help[] = "stat [--threads N] [--server ADDRESS] DIR\n"
		"What a store holds: records, rows, shards; bytes of each part of a record and per row; teachers and kinds of\n"
		"questions; second copies, and records contained in larger ones. --server: also how often a running server\n"
		"found answers. --threads: shards read at once; default: processors.\n";
	const char *threads = NULL;
	unsigned n_threads;
	int status = 0;
	for (int c; (c = store_option(k, argc, argv, options, help, &status)) != -1;) {
		switch (c) {
		case 't': threads = optarg; break;
		case 's': k->server = optarg; k->server_given = true; break;
		default: return status;
		}
	}
	if (!store_threads(threads, &n_threads))
		return kdctl_usage(k, "--threads %s: 1 to %d is expected", threads, SURVEY_MAX_THREADS);
	if (argc - optind != 1)
		return kdctl_usage(k, "stat: a DIR is expected (kdctl store stat --help)");
	if (store_expect_directory(k, argv[optind]))
		return 1;
	json_t *server = k->server_given ? ask_server(k) : NULL;
	if (k->server_given && !server)
		return 1;
	status = stat_run(k, argv[optind], n_threads, server);
	json_decref(server);
	return status;
}
