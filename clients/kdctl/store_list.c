// SPDX-License-Identifier: Apache-2.0
// kdctl store ls and cat: one record after the other. Opens the store read-only, so a running server's may be read too.
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "clients/kdctl/store.h"
#include "common/buffer.h"
#include "common/error.h"
#include "common/record_json.h"
#include "daemon/jansson.h"
#include "daemon/store/store.h"

struct totals {
	uint64_t n_records, n_damaged, n_rows, n_bytes;
};

static const char *const value_names[] = {[QUERY_VALUES_F32] = "f32", [QUERY_VALUES_F16] = "f16", [QUERY_VALUES_U8] = "u8"};

void store_add_query(json_t *j, const struct query *q)
{
	json_t *temperatures = json_array();
	for (uint32_t i = 0; i < q->n_temperatures; i++)
		json_array_append_new(temperatures, json_real((double)q->temperatures[i]));
	json_object_set_new(j, "first", json_integer(q->first));
	json_object_set_new(j, "last", json_integer(q->last));
	json_object_set_new(j, "top_k", json_integer(q->top_k));
	json_object_set_new(j, "temperatures", temperatures);
	json_object_set_new(j, "values", json_string(value_names[q->values]));
	const struct { const char *name; bool asked; } flags[] = {{"own", q->own}, {"entropy", q->entropy}, {"max_prob", q->max_prob},
		{"argmax", q->argmax}, {"sum_squares", q->sum_squares}, {"tail", q->tail}, {"dense", q->dense}};
	for (size_t i = 0; i < sizeof flags / sizeof *flags; i++)
		json_object_set_new(j, flags[i].name, json_boolean(flags[i].asked));
	if (q->top_mass > 0)
		json_object_set_new(j, "top_mass", json_real((double)q->top_mass));
	if (q->draws.n)
		json_object_set_new(j, "draws", json_pack("{s:I, s:f, s:I, s:b}", "n", (json_int_t)q->draws.n, "tau", (double)q->draws.tau,
							  "seed", (json_int_t)q->draws.seed, "tail", (int)q->draws.tail));
	const struct { const char *name; uint64_t n; } lists[] = {
		{"n_gather", q->gather.n_lists ? q->gather.offsets[q->gather.n_lists] : 0},
		{"n_keep", q->n_keep}, {"n_spans", q->n_spans}, {"n_features", q->n_features}};
	for (size_t i = 0; i < sizeof lists / sizeof *lists; i++)
		if (lists[i].n)
			json_object_set_new(j, lists[i].name, json_integer((json_int_t)lists[i].n));
}

static json_t *describe(const struct record *record, const char *place)
{
	char key[CONTENT_ID_HEX], teacher[CONTENT_ID_HEX];
	size_t n;
	(void)record_bytes(record, &n);
	content_id_to_hex(record_key(record), key);
	content_id_to_hex(record_teacher(record), teacher);
	json_t *j = json_pack("{s:s, s:s, s:s, s:I, s:I, s:I}", "key", key, "teacher", teacher, "place", place, "tokens",
			      (json_int_t)record_n_tokens(record), "rows", (json_int_t)record_n_rows(record), "bytes", (json_int_t)n);
	store_add_query(j, record_query(record));
	return j;
}

static int print_rows(const struct kdctl *k, const struct record *record, const struct record_rows *rows, const char *place)
{
	struct buffer b = {0};
	json_t *j = describe(record, place);
	int status = 0;
	json_object_del(j, "tokens");        // their number: here they are listed
	json_object_del(j, "rows");
	char *head = jansson_dump(j, JSON_COMPACT | JSON_REAL_PRECISION(10));
	if (head) {
		buffer_add(&b, head, strlen(head) - 1);      // without its end
		buffer_text(&b, ",\"tokens\":");
		record_json_ids(&b, rows->sequence.tokens, rows->sequence.n_tokens);
		buffer_text(&b, ",");
		record_json_members(&b, rows);
		buffer_text(&b, "}\n");
	}
	if (!head || b.failed)
		status = kdctl_fail(k, "%s: no memory for its rows", place);
	else
		fwrite(b.data, 1, b.n, stdout);
	buffer_done(&b);
	free(head);
	json_decref(j);
	return status;
}

static void print_line(const struct kdctl *k, const struct record *record, const char *place)
{
	if (k->json) {
		json_t *j = describe(record, place);
		kdctl_print_json(j);
		json_decref(j);
		return;
	}
	char key[CONTENT_ID_HEX];
	size_t n;
	const struct query *q = record_query(record);
	(void)record_bytes(record, &n);
	content_id_to_hex(record_key(record), key);
	printf("%.16s  %-28s %7" PRIu32 " tokens %7" PRIu32 " rows  top-%-5" PRIu32 " %s%s%s%s%s%s%s%s %10zu bytes\n", key, place,
	       record_n_tokens(record), record_n_rows(record), q->top_k, value_names[q->values], q->own ? " own" : "",
	       q->entropy ? " entropy" : "", q->gather.n_lists ? " gather" : "", q->draws.n ? " draws" : "", q->dense ? " dense" : "",
	       q->n_spans ? " spans" : "", q->n_features ? " features" : "", n);
}

// One sound record.
static int visit(const struct kdctl *k, bool rows, const struct record *record, const char *place, const char *wanted, struct totals *t)
{
	struct record_rows *decoded = NULL;
	struct error err = {0};
	char key[CONTENT_ID_HEX];
	size_t n;
	int status = 0;
	content_id_to_hex(record_key(record), key);
	if (wanted && strncmp(key, wanted, strlen(wanted)) != 0)
		return 0;
	if (rows && record_decode(record, &decoded, &err))
		return kdctl_fail(k, "%s: %s", place, err.message);
	if (rows)
		status = print_rows(k, record, decoded, place);
	else
		print_line(k, record, place);
	record_rows_free(decoded);
	(void)record_bytes(record, &n);
	t->n_records++;
	t->n_rows += record_n_rows(record);
	t->n_bytes += n;
	return status;
}

static int walk(const struct kdctl *k, bool rows, struct store *store, const char *wanted, struct totals *t)
{
	struct store_cursor cursor = {0};
	for (;;) {
		struct record *record = NULL;
		struct error err = {0};
		char place[96] = "";
		int r = store_next(store, &cursor, &record, place, &err);
		if (r == -ENOENT)
			return 0;
		if (r && r != -EBADMSG)
			return kdctl_fail(k, "%s: %s", place, err.message);
		if (r) {
			kdctl_fail(k, "%s: %s", place, err.message);
			t->n_damaged++;
			continue;
		}
		t->n_damaged += (uint64_t)visit(k, rows, record, place, wanted, t);
		record_unref(record);
	}
}

static void print_totals(const struct kdctl *k, const struct totals *t)
{
	if (k->json)
		printf("{\"summary\":{\"records\":%" PRIu64 ",\"rows\":%" PRIu64 ",\"bytes\":%" PRIu64 ",\"damaged\":%" PRIu64 "}}\n",
		       t->n_records, t->n_rows, t->n_bytes, t->n_damaged);
	else
		printf("%" PRIu64 " records, %" PRIu64 " rows, %" PRIu64 " bytes, %" PRIu64 " damaged\n", t->n_records, t->n_rows,
		       t->n_bytes, t->n_damaged);
}

static int list(struct kdctl *k, bool rows, int argc, char **argv, const char *help)
{
	static const struct option options[] = {STORE_OPTIONS, {0}};
	int status = 0;
	if (store_option(k, argc, argv, options, help, &status) != -1)
		return status;
	if (argc - optind < 1 || argc - optind > 2)
		return kdctl_usage(k, "%s: a DIR is expected, perhaps a KEY (kdctl store %s --help)", argv[0], argv[0]);
	const char *directory = argv[optind], *wanted = argc - optind == 2 ? argv[optind + 1] : NULL;
	struct store_options open = {.directory = directory, .read_only = true};
	struct store *store = NULL;
	struct error err = {0};
	struct totals t = {0};
	if (store_expect_directory(k, directory))
		return 1;
	if (store_open(&open, &store, &err))
		return store_failure(k, &err);
	status = walk(k, rows, store, wanted, &t);
	store_close(store);
	if (!status && !rows)
		print_totals(k, &t);
	if (!status && wanted && !t.n_records)
		status = kdctl_fail(k, "%s: no record whose key begins so", wanted);
	return status ? status : t.n_damaged > 0;
}

int store_ls(struct kdctl *k, int argc, char **argv)
{
	return list(k, false, argc, argv,
		"ls DIR [KEY]\nOne line a record: key, place, sizes, question. KEY: only records whose key begins so.\n");
}

int store_cat(struct kdctl *k, int argc, char **argv)
{
	return list(k, true, argc, argv,
		"cat DIR [KEY]\nRecords as JSON lines, rows as in /v1/score. KEY: only records whose key begins so.\n");
}
