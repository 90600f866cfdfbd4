// SPDX-License-Identifier: Apache-2.0
// The answer that the first start kept, as a later one finds it: bytes as they are, and again as a record whose checksum holds. What is no
// record, or one of another question, gives way to today's answer; what answers this one differs with a reason,
// or is as good as today's and stays.
#include <stdlib.h>
#include <string.h>

#include "common/error.h"
#include "common/record.h"
#include "daemon/teacher/canary.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/record_mend.h"
#include "tests/fuzz/scratch.h"

#define VOCABULARY 50
#define TOP 4
#define LEAF "0700000000000000.canary"

static void require(bool holds)
{
	if (!holds)
		abort();
}

static struct record *today_make(void)
{
	static uint32_t tokens[] = {5, 6, 7};
	const struct content_id teacher = {{7}};
	const struct sequence s = {tokens, 3};
	const struct query_limits limits = {.max_tokens = 64, .max_top_k = 8, .vocab_size = VOCABULARY};
	struct record_rows *rows = NULL;
	struct record *record = NULL;
	struct query q;
	query_init(&q);
	q.top_k = TOP;
	q.own = q.entropy = true;
	require(query_check(&q, &s, &limits, NULL, NULL) == 0 && record_rows_new(&teacher, VOCABULARY, &s, &q, &rows, NULL) == 0);
	for (uint32_t i = 0; i < rows->n_rows; i++) {
		rows->max_logit[i] = 10;
		rows->lse[i] = 11;
		rows->entropy[i] = 1;
		rows->own_logit[i] = i + 1 < s.n_tokens ? 10 - (float)tokens[i + 1] : __builtin_nanf("");
		for (uint32_t j = 0; j < TOP; j++) {
			rows->ids[i * TOP + j] = j;
			rows->logits[i * TOP + j] = 10 - (float)j;
		}
	}
	require(record_encode(rows, &record, NULL) == 0);
	record_rows_free(rows);
	return record;
}

static bool is_record(const uint8_t *bytes, size_t n)
{
	struct record *record = NULL;
	int r = record_from_bytes(bytes, n, &record, NULL);
	record_unref(record);
	return r == 0;
}

static void try_kept(const uint8_t *bytes, size_t n, const struct record *now)
{
	char path[SCRATCH_PATH];
	struct error err = {0};
	bool known = is_record(bytes, n);
	size_t n_now, n_there;
	const void *today = record_bytes(now, &n_now);
	scratch_write(LEAF, bytes, n, path);
	int r = canary_keep(scratch_folder(), now, canary_tolerance("f32"), &err);
	char *there = scratch_read(LEAF, &n_there);
	require(there != NULL);
	bool renewed = n_there == n_now && memcmp(there, today, n_now) == 0;
	require((known || r == 0) && (r == 0 || err.message[0]));
	require(renewed ? r == 0 : known && n_there == n && memcmp(there, bytes, n) == 0);
	free(there);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct record *now;
	if (!now)
		now = today_make();
	uint8_t *copy = malloc(size + 1);
	require(copy != NULL);
	memcpy(copy, data, size);
	try_kept(copy, size, now);
	record_mend(copy, size);
	try_kept(copy, size, now);
	free(copy);
	return 0;
}
