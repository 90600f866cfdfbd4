// SPDX-License-Identifier: Apache-2.0
// How fast records are encoded and decoded, and how large they are. CSV:
// values,top_k,rows,bytes_per_entry,encode_M_per_s,decode_M_per_s,check_M_per_s,check_MB_per_s
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "common/error.h"
#include "common/record.h"

#define VOCABULARY 151936
#define ROWS 512
#define REPEATS 20

static double seconds(void)
{
	struct timespec t;
	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
	return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static uint32_t next(void)
{
	static uint64_t state = 1;
	state = state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
	return (uint32_t)(state >> 33);
}

// Distinct ids spread evenly (the worst case for their size), logits descending.
static void fill(struct record_rows *rows, uint32_t row)
{
	uint32_t k = rows->query.top_k, stride = VOCABULARY / k;
	for (uint32_t i = 0; i < k; i++) {
		rows->ids[(size_t)row * k + i] = (i * 37 % k) * stride + next() % stride;
		rows->logits[(size_t)row * k + i] = 20 - (float)i * 0.17f;
	}
	rows->max_logit[row] = 20;
	rows->lse[row] = 21;
}

static void measure(uint32_t k, enum query_values values)
{
	uint32_t tokens[ROWS] = {0};
	struct sequence s = {tokens, ROWS};
	struct content_id teacher = {{0}};
	struct query q = {.top_k = k, .last = -1, .values = values};
	struct query_limits limits = {.max_tokens = ROWS, .max_top_k = VOCABULARY, .vocab_size = VOCABULARY};
	struct record_rows *rows, *back;
	struct record *record = NULL;
	double encode = 0, decode = 0, check = 0, entries = (double)ROWS * k;
	size_t n = 0;
	if (query_check(&q, &s, &limits, "", NULL) || record_rows_new(&teacher, VOCABULARY, &s, &q, &rows, NULL))
		exit(1);
	for (uint32_t row = 0; row < ROWS; row++)
		fill(rows, row);
	for (int i = 0; i < REPEATS; i++) {
		double begin = seconds();
		if (record_encode(rows, &record, NULL))
			exit(1);
		double middle = seconds();
		if (record_decode(record, &back, NULL))
			exit(1);
		double end = seconds();
		if (record_check(record, NULL))
			exit(1);
		check += seconds() - end;
		decode += end - middle;
		encode += middle - begin;
		(void)record_bytes(record, &n);
		record_rows_free(back);
		record_unref(record);
	}
	static const char *const names[] = {[QUERY_VALUES_F32] = "f32", [QUERY_VALUES_F16] = "f16", [QUERY_VALUES_U8] = "u8"};
	printf("%s,%u,%d,%.3f,%.1f,%.1f,%.1f,%.0f\n", names[values], k, ROWS, (double)n / entries, entries * REPEATS / encode / 1e6,
	       entries * REPEATS / decode / 1e6, entries * REPEATS / check / 1e6, (double)n * REPEATS / check / 1e6);
	record_rows_free(rows);
}

int main(void)
{
	puts("values,top_k,rows,bytes_per_entry,encode_M_per_s,decode_M_per_s,check_M_per_s,check_MB_per_s");
	for (uint32_t k = 8; k <= 512; k *= 8) {
		measure(k, QUERY_VALUES_F16);
		measure(k, QUERY_VALUES_F32);
		measure(k, QUERY_VALUES_U8);
	}
	return 0;
}
