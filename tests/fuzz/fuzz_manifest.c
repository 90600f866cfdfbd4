// SPDX-License-Identifier: Apache-2.0
// The manifest that kdctl capture finds in its directory: what it goes on with keeps the captures of others when it is written again, what
// it does not know stays as it is.
#include <stdlib.h>
#include <string.h>

#include "clients/kdctl/capture.h"
#include "clients/kdctl/store.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/quiet.h"
#include "tests/fuzz/scratch.h"

// What else of kdctl the manifest asks.
void store_add_query(json_t *j, const struct query *q)
{
	json_object_set_new(j, "top_k", json_integer(q->top_k));
}

uint64_t keep_n_duplicates(struct keep *s)
{
	(void)s;
	return 0;
}

static void require(bool holds)
{
	if (!holds)
		abort();
}

static void capture_begin(struct capture *c, struct kdctl *k, struct capture_options *o, struct corpus_file *file)
{
	*c = (struct capture){.k = k, .options = o, .corpus.files = file, .server.teacher = "0011"};
	query_init(&c->query);
	c->account.told = json_array();
	c->model = json_pack("{s:s}", "name", "letters");
}

static void capture_end(struct capture *c)
{
	manifest_close(c);
	json_decref(c->account.told);
	json_decref(c->model);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct kdctl k = {.command = "capture"};
	struct corpus_file file = {.path = "corpus.jsonl", .n_bytes = 3};
	struct capture_options o = {.n_paths = 1, .score = {.format = SOURCE_LINES, .length = 16}};
	struct capture c, again;
	char path[SCRATCH_PATH];
	o.manifest = scratch_write("manifest.json", data, size, path);
	quiet_n_failures = 0;
	capture_begin(&c, &k, &o, &file);
	if (manifest_open(&c)) {
		require(quiet_n_failures > 0);
	} else {
		require(quiet_n_failures == 0 && manifest_write(&c, "running") == 0 && manifest_write(&c, "done") == 0);
		capture_begin(&again, &k, &o, &file);
		require(manifest_open(&again) == 0 && json_equal(again.others, c.others) && strcmp(again.id, c.id) == 0);
		capture_end(&again);
	}
	capture_end(&c);
	return 0;
}
