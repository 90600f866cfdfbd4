// SPDX-License-Identifier: Apache-2.0
// JSON read while memory runs out: each allocation fails once, and what is read then is all there, or called a lack of memory; never a
// broken file, never a part of it.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>

#include "clients/kdctl/store_note.h"
#include "common/buffer.h"
#include "common/error.h"
#include "common/provenance.h"
#include "daemon/train/history.h"
#include "daemon/train/run.h"
#include "tests/unit/leftovers.h"
#include "tests/unit/starve.h"

// jansson's own calls are in a library, where nothing is wrapped.
static void *allocate(size_t n)
{
	return malloc(n);
}

static char root[] = "/tmp/kdserved-starved-XXXXXX";

static char *under(const char *leaf)
{
	static char path[256];
	snprintf(path, sizeof path, "%s/%s", root, leaf);
	return path;
}

// What `read` makes as text; NULL and *err = it fails.
typedef char *read_fn(struct error *err);

static void each_allocation_fails(read_fn *read)
{
	struct error err = {0};
	n_left = 0;
	char *whole = read(&err);
	assert_non_null(whole);
	uint64_t n = 1;
	for (;; n++) {
		n_left = n;
		starved = false;
		char *text = read(&err);
		n_left = 0;
		if (text)
			assert_string_equal(text, whole);
		else
			assert_int_equal(err.code, ERROR_MEMORY);
		free(text);
		if (!starved)
			break;
	}
	assert_true(n > 5);
	free(whole);
}

// A json_t, as it is when there is memory again.
static char *text_of(json_t *j)
{
	n_left = 0;
	char *text = json_dumps(j, JSON_COMPACT | JSON_SORT_KEYS);
	json_decref(j);
	return text;
}

static char *points(struct error *err)
{
	json_t *list = NULL;
	return history_read(under("metrics.jsonl"), &list, err) ? NULL : text_of(list);
}

static void of_a_history(void **state)
{
	(void)state;
	FILE *f = fopen(under("metrics.jsonl"), "we");
	for (int i = 1; i <= 10; i++)
		fprintf(f, "{\"step\":%d,\"loss\":%d.12345678901234567,\"what\":\"a text that is longer than a few characters, %d\"}\n",
			i, i, i);
	assert_int_equal(fclose(f), 0);
	each_allocation_fails(points);
}

static char *status(struct error *err)
{
	struct run run;
	char *text = NULL;
	if (run_load(root, "one", &run, err) == 0) {
		n_left = 0;
		assert_true(asprintf(&text, "%d %.3f %s", run.state, run.created, run.reason) > 0);
	}
	run_done(&run);
	return text;
}

static void of_a_status(void **state)
{
	(void)state;
	assert_int_equal(mkdir(under("one"), 0750), 0);
	FILE *f = fopen(under("one/status.json"), "we");
	fputs("{\"id\":\"one\",\"state\":\"succeeded\",\"created\":1790000000.125,\"reason\":\"as good as can be, or nearly so\"}", f);
	assert_int_equal(fclose(f), 0);
	each_allocation_fails(status);
}

static struct buffer line;

static char *note(struct error *err)
{
	struct provenance p;
	char *text = NULL;
	if (note_decode_line(line.data, line.n, &p, err))
		return NULL;
	n_left = 0;
	assert_true(asprintf(&text, "%s %s %s", p.name, p.numeric, p.codec) > 0);
	return text;
}

static void of_a_note(void **state)
{
	struct provenance p = {.numeric = "f32", .codec = PROVENANCE_CODEC, .name = "a-teacher-with-a-rather-long-name"};
	(void)state;
	p.fingerprint = provenance_fingerprint(&p);
	note_encode_line(&line, &p);
	assert_false(line.failed);
	each_allocation_fails(note);
	buffer_done(&line);
}

static int setup(void **state)
{
	(void)state;
	json_set_alloc_funcs(allocate, free);
	return mkdtemp(root) ? 0 : -1;
}

static int teardown(void **state)
{
	(void)state;
	return tree_remove(root);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(of_a_history),
		cmocka_unit_test(of_a_status),
		cmocka_unit_test(of_a_note),
	};
	return cmocka_run_group_tests(tests, setup, teardown);
}
