// SPDX-License-Identifier: Apache-2.0
// Records as lines of JSON and back: the same bytes, or a refusal.
#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "clients/kdctl/pull.h"
#include "clients/kdctl/store_transfer.h"
#include "common/buffer.h"
#include "common/error.h"
#include "tests/unit/rows_example.h"

static struct record *encode(const struct record_rows *rows)
{
	struct record *record;
	struct error err;
	if (record_encode(rows, &record, &err))
		fail_msg("%s", err.message);
	return record;
}

static char *line_of(const struct record *record, bool *ret_exact)
{
	struct record_rows *rows;
	struct buffer b = {0};
	struct error err;
	assert_int_equal(record_decode(record, &rows, &err), 0);
	assert_int_equal(claims_needed(record, rows, ret_exact, &err), 0);
	line_encode(&b, record, rows, *ret_exact);
	assert_false(b.failed);
	record_rows_free(rows);
	return b.data;
}

static void assert_same(const struct record *a, const struct record *b)
{
	size_t n_a, n_b;
	const void *bytes_a = record_bytes(a, &n_a), *bytes_b = record_bytes(b, &n_b);
	assert_int_equal(n_a, n_b);
	assert_memory_equal(bytes_a, bytes_b, n_a);
}

// Takes the record. Whether its line held its bytes besides its numbers.
static bool round_trip(struct record *record)
{
	bool exact;
	char *line = line_of(record, &exact);
	struct record *back;
	struct error err = {0};
	if (line_decode(line, strlen(line), &back, &err))
		fail_msg("%s: %s: %.300s", err.field, err.message, line);
	assert_same(record, back);
	record_unref(record);
	record_unref(back);
	free(line);
	return exact;
}

static struct record *random_record(uint64_t seed, const struct query *q, bool broken)
{
	struct record_rows *rows = rows_random(seed, q, 9, 500, broken);
	struct record *record = encode(rows);
	record_rows_free(rows);
	return record;
}

static void every_signal_comes_back(void **state)
{
	(void)state;
	for (uint64_t seed = 0; seed < 60; seed++) {
		struct query q;
		rows_everything(&q);
		q.values = seed % 3;
		q.dense = seed % 4 < 2;
		q.top_mass = seed % 5 ? q.top_mass : 0;
		q.pooling = seed % 2 ? QUERY_POOLING_NONE : QUERY_POOLING_MEAN;
		q.feature_values = seed % 3;
		round_trip(random_record(seed, &q, seed % 7 == 3));
	}
}

static void single_signals_come_back(void **state)
{
	(void)state;
	struct query q;
	struct query_span span = {2, 5};
	uint32_t offsets[] = {0, 3}, ids[] = {7, 7, 499};
	for (unsigned signal = 0; signal < 12; signal++) {
		query_init(&q);
		switch (signal) {
		case 0: q.top_k = 5; break;
		case 1: q.own = true; q.n_temperatures = 3; memcpy(q.temperatures, (float[]){0.1f, 1, 3.3f}, 12); break;
		case 2: q.entropy = true; break;
		case 3: q.max_prob = q.argmax = q.sum_squares = true; break;
		case 4: q.dense = true; break;
		case 5: q.gather = (struct id_lists){1, offsets, ids}; break;
		case 6: q.draws = (struct query_draws){.n = 20, .tau = 0.7f, .seed = UINT64_MAX}; break;
		case 7: q.top_k = 4; q.draws = (struct query_draws){.n = 5, .tau = 1, .seed = 1, .tail = true}; break;
		case 8: q.n_spans = 1; q.spans = &span; break;
		case 9: q.n_features = 2; q.features[1] = (struct query_feature){QUERY_FEATURE_V, 3}; break;
		case 10: q.n_features = 2; q.pooling = QUERY_POOLING_LAST; q.feature_values = QUERY_FEATURE_F16; break;
		default: q.n_temperatures = 1; q.temperatures[0] = 2; q.first = 3; q.last = -2; break;
		}
		assert_false(round_trip(random_record(signal, &q, false)));      // f32: the numbers are enough
	}
}

// A difference too small for f16 is a zero with a sign, which no logit shows: such a record's line holds its bytes besides.
static void rounded_values_come_back_to_the_bit(void **state)
{
	(void)state;
	struct record_rows *rows = rows_example();
	assert_false(round_trip(encode(rows)));
	memcpy(rows->logits, (float[]){0.25f, 0.25f - 0x1p-26f, 1.5f, -0.5f}, 16);
	rows->max_logit[0] = 0.25f;
	rows->own_logit[0] = 0.25f;
	assert_true(round_trip(encode(rows)));
	record_rows_free(rows);
}

// Such a line, its rows or its bytes changed.
static void rows_and_bytes_must_agree(void **state)
{
	(void)state;
	bool exact;
	struct record_rows *rows = rows_example();
	memcpy(rows->logits, (float[]){0.25f, 0.25f - 0x1p-26f, 1.5f, -0.5f}, 16);
	rows->max_logit[0] = rows->own_logit[0] = 0.25f;
	struct record *record = encode(rows);
	static const char *const cases[][2] = {{"0.25,0.25]", "0.25,0.24]"}, {"\"lse\":[2.5]", "\"lse\":[2.51]"}, {"[3,1,4]", "[3,1,5]"},
		{"\"values\":\"f16\"", "\"values\":\"f32\""}};
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		char *line = line_of(record, &exact), *at = strstr(line, cases[i][0]);
		struct record *back;
		struct error err = {0};
		assert_true(exact);
		assert_non_null(at);
		struct buffer b = {0};
		buffer_add(&b, line, (size_t)(at - line));
		buffer_text(&b, cases[i][1]);
		buffer_text(&b, at + strlen(cases[i][0]));
		assert_int_equal(line_decode(b.data, b.n, &back, &err), -EINVAL);
		assert_string_equal(err.field, "record");
		buffer_done(&b);
		free(line);
	}
	record_unref(record);
	record_rows_free(rows);
}

static void examples_of_the_manual_come_back(void **state)
{
	(void)state;
	struct record_rows *rows[] = {rows_example(), rows_second_example()};
	for (int i = 0; i < 2; i++) {
		round_trip(encode(rows[i]));
		record_rows_free(rows[i]);
	}
}

// ---- refusals

// The example's line with one piece replaced.
static char *changed(const char *what, const char *with)
{
	bool exact;
	struct record_rows *rows = rows_example();
	rows->query.values = QUERY_VALUES_F32;
	struct record *record = encode(rows);
	char *line = line_of(record, &exact), *at = strstr(line, what);
	struct buffer b = {0};
	record_rows_free(rows);
	record_unref(record);
	if (!at)
		fail_msg("%s is not in %s", what, line);
	buffer_add(&b, line, (size_t)(at - line));
	buffer_text(&b, with);
	buffer_text(&b, at + strlen(what));
	free(line);
	return b.data;
}

static void what_does_not_fit_is_refused(void **state)
{
	(void)state;
	static const struct { const char *what, *with, *message; } cases[] = {
		{"{\"version\"", "[\"version\"", "an object is expected"},
		{"\"key\":\"", "\"key\":\"00", "none of those known"},
		{"\"key\":\"c", "\"key\":\"d", "is not the key"},
		{"\"key\":\"c", "\"key\":\"x", "hexadecimal"},
		{"\"checksum\":", "\"checksum\":99999999999", "too large"},
		{"\"tokens\":[3,1,4]", "\"tokens\":[3,1,10]", "outside the vocabulary"},
		{"\"tokens\":[3,1,4]", "\"tokens\":[3,1,4,1]", "own_logit"},
		{"\"tokens\":[3,1,4]", "\"tokens\":[3,1,4.5]", "whole number"},
		{"\"tokens\":[3,1,4]", "\"tokens\":[3,1,-4]", "whole number"},
		{"\"tokens\":[3,1,4],", "", "is missing"},
		{"\"tokens\":[3,1,4]", "\"tokens\":[3,1,4],\"tokens\":[3,1,4]", "occurs twice"},
		{"\"vocab_size\":10", "\"vocab_size\":16777217", "too large"},
		{"\"top_k\":2", "\"top_k\":3", "fewer ids"},
		{"\"top_k\":2", "\"top_k\":2,\"entropy\":true", "missing"},
		{"\"top_k\":2", "\"top_k\":2,\"speed\":1", "unknown"},
		{"\"own\":true", "\"own\":1", "true or false"},
		{"\"own\":true", "\"own\":false", "not asked"},
		{"\"values\":\"f32\"", "\"values\":\"f64\"", "none of those known"},
		{"\"ids\":[7,4]", "\"ids\":[7,4,2]", "more ids"},
		{"\"ids\":[7,4]", "\"ids\":[7,7]", "repeat"},
		{"\"ids\":[7,4]", "\"ids\":[7,10]", "leave the vocabulary"},
		{"\"logits\":[2,1]", "\"logits\":[2]", "too short"},
		{"\"logits\":[2,1]", "\"logits\":[1,2]", "maximum"},
		{"\"logits\":[2,1]", "\"logits\":[2,1.5]", "not the numbers that were exported"},
		{"\"logits\":[2,1]", "\"logits\":[2,-1e999]", "maximum"},
		{"\"logits\":[2,1]", "\"logits\":[2,0x1]", "comma"},
		{"\"logits\":[2,1]", "\"logits\":[2,nan]", "a value is expected"},
		{"\"logits\":[2,1]", "\"logits\":[2,.5]", "a value is expected"},
		{"\"logits\":[2,1]", "\"logits\":[2,null]", "a number is expected"},
		{"\"lse\":[2.5]", "\"lse\":[2.5],\"lse\":[2.5]", "occurs twice"},
		{"\"max_logit\":[2,1.5]", "\"max_logit\":[2,1.5,1]", "too long"},
		{"\"own_logit\":1", "\"own_logit\":null", "own"},
		{"{\"status\":\"ok\"", "{\"status\":\"fine\"", "unknown status"},
		{"{\"status\":\"ok\"", "{\"status\":\"not_finite\"", "not finite"},
		{"\"rows\":[", "\"rows\":[{\"status\":\"not_finite\"},{\"status\":\"not_finite\"},", "more rows"},
		{"\"rows\":[", "\"rows\":[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[", "without end"},
		{"null}]}", "null}],\"record\":\"KDRC\"}", "record"}, {"null}]}", "null}],\"record\":\"K\"}", "base64"},
		{"null}]}", "null}]} 1", "behind the value"}, {"null}]}", "null}]", "comma"},
	};
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		char *line = changed(cases[i].what, cases[i].with), text[400];
		struct record *record;
		struct error err = {0};
		if (!line_decode(line, strlen(line), &record, &err))
			fail_msg("taken: %s", line);
		snprintf(text, sizeof text, "%s: %s", err.field, err.message);
		if (!strstr(text, cases[i].message))
			fail_msg("%s -> %s: %s", cases[i].what, cases[i].with, text);
		free(line);
	}
}

static void notes_and_missing_claims_are_no_fault(void **state)
{
	(void)state;
	static const char *const cases[][2] = {{"\"version\":3,\"key\":\"c", "\"version\":2,\"key\":\"d"},
		{"\"own_logit\":1", "\"note\":{\"a\":[1,\"x\\\"\",null]},\"own_logit\":1"},
		{"{\"version\":3,\"key\"", " { \"text\" : \"\\u00e9\" , \"old_key\""}, {"\"checksum\"", "\"sum\""}};
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		char *line = changed(cases[i][0], cases[i][1]);
		struct record *record;
		struct error err = {0};
		if (line_decode(line, strlen(line), &record, &err))
			fail_msg("%s: %s", err.field, err.message);
		record_unref(record);
		free(line);
	}
}

// A few bytes ask for the largest arrays there are: refused before anything is allocated.
static void a_short_line_cannot_ask_for_much(void **state)
{
	(void)state;
	char line[1024], teacher[] = "0000000000000000000000000000000000000000000000000000000000000000";
	struct record *record;
	struct error err = {0};
	int n = snprintf(line, sizeof line, "{\"teacher\":\"%s\",\"vocab_size\":16777216,\"tokens\":[1,2,3,4,5,6,7,8,9,10,11,12,13],"
			 "\"question\":{\"first\":0,\"last\":12,\"top_k\":16777216},\"max_logit\":[],\"rows\":[]}", teacher);
	assert_int_equal(line_decode(line, (size_t)n, &record, &err), -EINVAL);
	assert_non_null(strstr(err.message, "which are not in"));
}

// By mass a row may have one id where top_k allows the whole vocabulary.
static void few_ids_of_many_allowed_come_back(void **state)
{
	(void)state;
	struct query q;
	query_init(&q);
	q.top_k = 40000;
	q.top_mass = 0.5f;
	struct record_rows *rows = rows_random(1, &q, 3, 50000, false);
	for (uint32_t row = 0; row < 3; row++) {
		rows->n_top[row] = 1;
		for (uint32_t i = 1; i < q.top_k; i++) {
			rows->ids[row * q.top_k + i] = RECORD_NO_ID;
			rows->logits[row * q.top_k + i] = 0;
		}
	}
	round_trip(encode(rows));
	record_rows_free(rows);
}

static void numbers_are_read_to_the_bit(void **state)
{
	(void)state;
	for (uint32_t i = 0; i < 200000; i++) {
		uint32_t bits = i * 2654435761u, back;
		float v, w;
		struct buffer b = {0};
		memcpy(&v, &bits, 4);
		if (!isfinite(v))
			continue;
		buffer_float(&b, v);
		struct pull t = pull_init(b.data, b.n);
		w = pull_f32(&t);
		pull_end(&t);
		memcpy(&back, &w, 4);
		if (t.failed || back != bits)
			fail_msg("%s is %08x, not %08x", b.data, back, bits);
		buffer_done(&b);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_signal_comes_back), cmocka_unit_test(single_signals_come_back),
		cmocka_unit_test(rounded_values_come_back_to_the_bit), cmocka_unit_test(rows_and_bytes_must_agree),
		cmocka_unit_test(examples_of_the_manual_come_back),
		cmocka_unit_test(what_does_not_fit_is_refused), cmocka_unit_test(notes_and_missing_claims_are_no_fault),
		cmocka_unit_test(a_short_line_cannot_ask_for_much), cmocka_unit_test(few_ids_of_many_allowed_come_back),
		cmocka_unit_test(numbers_are_read_to_the_bit),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
