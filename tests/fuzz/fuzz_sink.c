// SPDX-License-Identifier: Apache-2.0
// kdctl score --resume: what it finds in the file of its answers. First byte: records, or lines of JSON (1). Then the file, in which byte 1
// and one more stand for the true answer to that sequence. What is gone on with holds the first of the answers, whole;
// what is refused stays as it was.
#include <stdlib.h>
#include <string.h>

#include "clients/client.h"
#include "clients/convert.h"
#include "clients/kdctl/score.h"
#include "common/buffer.h"
#include "common/record.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/quiet.h"
#include "tests/fuzz/scratch.h"

#define TEACHER "0700000000000000000000000000000000000000000000000000000000000000"
#define N_ITEMS 3
#define N_TOKENS 3

static struct kd_client client = {
	.server = {.teacher = TEACHER, .vocab_size = 50, .max_tokens = 64, .max_top_k = 8, .max_sequences = 8, .max_gather = 8,
		   .max_draws = 8, .max_spans = 8}};
static uint32_t tokens[N_ITEMS][N_TOKENS] = {{1, 2, 3}, {4, 5, 6}, {7, 8, 9}};

static void require(bool holds)
{
	if (!holds)
		abort();
}

static struct item item_of(uint64_t i)
{
	return (struct item){.number = i, .line = i + 1, .tokens = tokens[i], .n_tokens = N_TOKENS};
}

static struct record *record_make(const struct score_options *o, uint32_t i)
{
	const struct content_id teacher = {{7}};
	const struct sequence s = {tokens[i], N_TOKENS};
	struct item item = item_of(i);
	struct content_id key;
	struct query asked, q;
	struct record_rows *rows = NULL;
	struct record *record = NULL;
	require(convert_query(&o->query, &asked, NULL) == 0 && item_key(&client.server, &teacher, &asked, &item, &key, &q, NULL) == 0);
	require(record_rows_new(&teacher, 50, &s, &q, &rows, NULL) == 0);
	rows->own_logit[N_TOKENS - 1] = __builtin_nanf("");
	require(record_encode(rows, &record, NULL) == 0 && memcmp(record_key(record), &key, sizeof key) == 0);
	record_rows_free(rows);
	query_done(&asked);
	query_done(&q);
	return record;
}

static void answer_write(const struct score_options *o, uint32_t i, struct buffer *b)
{
	static struct record *records[N_ITEMS];
	char hex[CONTENT_ID_HEX];
	if (!o->records_path) {
		const struct sequence s = {tokens[i], N_TOKENS};
		struct content_id id = sequence_id(&s);
		content_id_to_hex(&id, hex);
		buffer_printf(b, "{\"id\":\"%s\",\"rows\":[]}\n", hex);
		return;
	}
	if (!records[i])
		records[i] = record_make(o, i);
	size_t n;
	const void *bytes = record_bytes(records[i], &n);
	buffer_add(b, bytes, n);
}

static void file_make(const struct score_options *o, const uint8_t *at, const uint8_t *end, struct buffer *b)
{
	for (; at < end; at++) {
		if (*at == 1 && end - at >= 2)
			answer_write(o, *++at % N_ITEMS, b);
		else
			buffer_add(b, (const char *)at, 1);
	}
	require(!b->failed);
}

// 0 and how many answers were there, or that it was refused.
static int resume(struct kdctl *k, const struct score_options *o, uint32_t *ret_n)
{
	struct sink *s = NULL;
	bool there = true;
	*ret_n = 0;
	int status = sink_open(k, o, &s);
	while (!status && there && *ret_n < N_ITEMS) {
		struct item i = item_of(*ret_n);
		status = sink_resume(s, &i, &there);
		*ret_n += !status && there;
	}
	if (!status && *ret_n == N_ITEMS)
		status = sink_check_rest(s);
	int closed = sink_close(s);
	return status ? status : closed;
}

static void file_check(const struct score_options *o, const struct buffer *before, uint32_t n_answers, bool refused)
{
	size_t n, n_lines = 0;
	char *now = scratch_read("answers", &n);
	require(now && n <= before->n && (n == 0 || memcmp(now, before->data, n) == 0));
	if (refused) {
		require(n == before->n);
	} else if (o->records_path) {
		struct buffer whole = {0};
		for (uint32_t i = 0; i < n_answers; i++)
			answer_write(o, i, &whole);
		require(!whole.failed && whole.n == n);
		buffer_done(&whole);
	} else {
		for (size_t i = 0; i < n; i++)
			n_lines += now[i] == '\n';
		require(n_lines == n_answers && (n == 0 || now[n - 1] == '\n'));
	}
	free(now);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct kdctl k = {.command = "score", .client = &client};
	struct score_options o = {.resume = true, .query = KD_QUERY_INIT};
	struct buffer before = {0};
	char path[SCRATCH_PATH];
	uint32_t n, n_again;
	if (!size)
		return 0;
	o.query.own = true;
	*(data[0] & 1 ? &o.lines_path : &o.records_path) = scratch_path("answers", path);
	file_make(&o, data + 1, data + size, &before);
	scratch_write("answers", before.data ? before.data : "", before.n, path);
	quiet_n_failures = 0;
	bool refused = resume(&k, &o, &n) != 0;
	require(refused == (quiet_n_failures > 0));
	file_check(&o, &before, n, refused);
	if (!refused)
		require(resume(&k, &o, &n_again) == 0 && n_again == n);
	buffer_done(&before);
	return 0;
}
