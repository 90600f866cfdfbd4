// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "common/cursor.h"
#include "common/error.h"
#include "common/query.h"

static const struct query_limits limits = {.max_tokens = 8, .max_top_k = 100, .vocab_size = 49152};
static uint32_t some_tokens[9] = {1, 2, 3, 4, 5, 6, 7, 8, 9};

static void ids_are_the_published_hashes(void **state)
{
	(void)state;
	char hex[CONTENT_ID_HEX];
	struct content_id id = content_id_of("abc", 3), back;
	content_id_to_hex(&id, hex);
	assert_string_equal(hex, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");    // FIPS 180-2
	assert_int_equal(content_id_from_hex(hex, &back), 0);
	assert_memory_equal(&id, &back, sizeof id);
	struct sequence s = {some_tokens, 2};
	id = sequence_id(&s);
	struct content_id want = content_id_of("kdserved sequence 1\n\1\0\0\0\2\0\0\0", 28);
	assert_memory_equal(&id, &want, sizeof id);
	struct hasher *h = hasher_new();
	assert_non_null(h);
	hasher_update(h, "a", 1);
	hasher_update(h, "bc", 2);
	id = hasher_free(h);
	assert_memory_equal(&id, &back, sizeof id);
}

static void long_sequences_hash_across_buffers(void **state)
{
	(void)state;
	uint32_t tokens[1000];
	uint8_t bytes[20 + sizeof tokens];
	struct writer w = writer_init(bytes, sizeof bytes);
	writer_bytes(&w, "kdserved sequence 1\n", 20);
	for (uint32_t i = 0; i < 1000; i++) {
		tokens[i] = i * 7919;
		writer_u32(&w, tokens[i]);
	}
	struct sequence s = {tokens, 1000};
	struct content_id id = sequence_id(&s), want = content_id_of(bytes, sizeof bytes);
	assert_memory_equal(&id, &want, sizeof id);
}

static void bad_hex_is_refused(void **state)
{
	(void)state;
	struct content_id id;
	char hex[CONTENT_ID_HEX + 1];
	memset(hex, 'a', sizeof hex);
	hex[64] = '\0';
	assert_int_equal(content_id_from_hex(hex, &id), 0);
	hex[64] = 'a', hex[65] = '\0';
	assert_int_equal(content_id_from_hex(hex, &id), -EINVAL);
	hex[63] = '\0';
	assert_int_equal(content_id_from_hex(hex, &id), -EINVAL);
	memcpy(hex, "0x", 2);
	assert_int_equal(content_id_from_hex(hex, &id), -EINVAL);
	assert_int_equal(content_id_from_hex("", &id), -EINVAL);
}

static void canonical_form_is_one_form(void **state)
{
	(void)state;
	struct sequence s = {some_tokens, 5};
	struct query a = {.top_k = 3, .first = -2, .last = -1, .n_temperatures = 4, .temperatures = {2, 1, 2, 0.5f}};
	struct query b = {.top_k = 3, .first = 3, .last = 4, .n_temperatures = 3, .temperatures = {0.5f, 1, 2}};
	struct content_id teacher = {{7}};
	assert_int_equal(query_check(&a, &s, &limits, "", NULL), 0);
	assert_int_equal(query_check(&b, &s, &limits, "", NULL), 0);
	struct content_id x = query_key(&teacher, &s, &a), y = query_key(&teacher, &s, &b);
	assert_memory_equal(&x, &y, sizeof x);
	assert_int_equal(a.first, 3);
	assert_int_equal(a.last, 4);
	assert_int_equal(query_rows(&a), 2);
	assert_int_equal(a.n_temperatures, 3);
	struct query empty;
	query_init(&empty);
	empty.own = true;
	assert_int_equal(query_check(&empty, &s, &limits, "", NULL), 0);
	assert_int_equal(empty.n_temperatures, 1);
	assert_true(empty.temperatures[0] == 1);
	assert_int_equal(query_rows(&empty), 5);
}

static void every_part_of_the_question_changes_the_key(void **state)
{
	(void)state;
	struct sequence s = {some_tokens, 5}, other = {some_tokens + 1, 5};
	struct content_id teacher = {{7}}, another = {{8}}, keys[9];
	struct query q = {.top_k = 3, .first = 0, .last = 4, .n_temperatures = 1, .temperatures = {1}};
	for (int i = 0; i < 9; i++) {
		struct query v = q;
		v.top_k += i == 1;
		v.own = i == 2;
		v.entropy = i == 3;
		v.first += i == 4;
		v.last -= i == 5;
		v.temperatures[0] += i == 6;
		keys[i] = query_key(i == 7 ? &another : &teacher, i == 8 ? &other : &s, &v);
		for (int j = 0; j < i; j++)
			assert_memory_not_equal(&keys[i], &keys[j], sizeof *keys);
	}
	q.values = QUERY_VALUES_F16;
	struct content_id f16 = query_key(&teacher, &s, &q);
	assert_memory_not_equal(&f16, &keys[0], sizeof f16);
}

static void bytes_come_back_and_strange_ones_do_not(void **state)
{
	(void)state;
	struct query q = {.top_k = 9, .own = true, .entropy = true, .first = -3, .last = -1, .values = QUERY_VALUES_F16,
			  .n_temperatures = 2,
			  .temperatures = {3, 1}}, back;
	uint8_t bytes[QUERY_MAX_BYTES];
	struct writer w = writer_init(bytes, sizeof bytes);
	query_encode(&q, &w);
	assert_int_equal(w.position, 24);
	struct reader r = reader_init(bytes, w.position);
	assert_int_equal(query_decode(&r, &back, NULL), 0);
	assert_int_equal(reader_left(&r), 0);
	assert_int_equal(back.top_k, 9);
	assert_true(back.own && back.entropy && back.first == -3 && back.last == -1 && back.values == QUERY_VALUES_F16);
	assert_true(back.n_temperatures == 2 && back.temperatures[0] == 3 && back.temperatures[1] == 1);
	for (size_t n = 0; n < w.position; n++) {
		r = reader_init(bytes, n);
		assert_int_equal(query_decode(&r, &back, NULL), -EINVAL);
	}
	const struct { size_t at; uint8_t value; int want; } strange[] = {{0, 2, -EOPNOTSUPP}, {1, 4, -EOPNOTSUPP}, {2, 2, -EOPNOTSUPP},
									{3, 17, -E2BIG}};
	for (size_t i = 0; i < 4; i++) {
		uint8_t copy[24];
		memcpy(copy, bytes, sizeof copy);
		copy[strange[i].at] = strange[i].value;
		r = reader_init(copy, sizeof copy);
		assert_int_equal(query_decode(&r, &back, NULL), strange[i].want);
	}
}

struct refusal {
	struct query q;
	uint32_t n_tokens;
	int want;
	const char *field, *message;
};

static void what_is_wrong_is_named(void **state)
{
	(void)state;
	const struct refusal cases[] = {
		{{.last = -1}, 3, -EINVAL, "top_k", "the query asks for nothing: give top_k, own, entropy or temperatures"},
		{{.last = -1, .top_k = 49153}, 3, -EINVAL, "top_k", "49153 is more than the vocabulary (49152)"},
		{{.last = -1, .top_k = 101}, 3, -E2BIG, "top_k", "101 is over the limit (100)"},
		{{.last = -1, .own = true, .values = 2}, 3, -EINVAL, "values", "unknown value format 2"},
		{{.last = -1, .n_temperatures = 17}, 3, -E2BIG, "temperatures", "17 temperatures, the limit is 16"},
		{{.last = -1, .n_temperatures = 1, .temperatures = {NAN}}, 3, -EINVAL, "temperatures[0]",
		 "nan is not a temperature from 0.0001 to 1e+06"},
		{{.last = -1, .n_temperatures = 2, .temperatures = {1, 0}}, 3, -EINVAL, "temperatures[1]",
		 "0 is not a temperature from 0.0001 to 1e+06"},
		{{.last = -1, .n_temperatures = 2, .temperatures = {1, -1}}, 3, -EINVAL, "temperatures[1]",
		 "-1 is not a temperature from 0.0001 to 1e+06"},
		{{.last = -1, .n_temperatures = 1, .temperatures = {INFINITY}}, 3, -EINVAL, "temperatures[0]",
		 "inf is not a temperature from 0.0001 to 1e+06"},
		{{.last = -1, .own = true}, 0, -EINVAL, "sequences[3].tokens", "the sequence is empty"},
		{{.last = -1, .own = true}, 9, -E2BIG, "sequences[3].tokens", "9 tokens, the limit is 8"},
		{{.first = 3, .last = -1, .own = true}, 3, -EINVAL, "first", "3 is outside sequences[3].tokens (3)"},
		{{.first = -4, .last = -1, .own = true}, 3, -EINVAL, "first", "-4 is outside sequences[3].tokens (3)"},
		{{.last = 3, .own = true}, 3, -EINVAL, "last", "3 is outside sequences[3].tokens (3)"},
		{{.last = INT32_MIN, .own = true}, 3, -EINVAL, "last", "-2147483648 is outside sequences[3].tokens (3)"},
		{{.first = 2, .last = 1, .own = true}, 3, -EINVAL, "first", "position 2 lies after last (1)"},
	};
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		struct sequence s = {some_tokens, cases[i].n_tokens};
		struct query q = cases[i].q;
		struct error err = {0};
		if (query_check(&q, &s, &limits, "sequences[3].", &err) != cases[i].want)
			fail_msg("case %zu", i);
		assert_string_equal(err.field, cases[i].field);
		assert_string_equal(err.message, cases[i].message);
		assert_memory_equal(&q, &cases[i].q, sizeof q);
	}
}

static void token_outside_the_vocabulary_is_named(void **state)
{
	(void)state;
	uint32_t tokens[] = {1, 49151, 50000};
	struct sequence s = {tokens, 3};
	struct query q = {.last = -1, .own = true};
	struct error err = {0};
	assert_int_equal(query_check(&q, &s, &limits, "sequences[3].", &err), -EINVAL);
	assert_string_equal(err.field, "sequences[3].tokens[2]");
	assert_string_equal(err.message, "id 50000 is outside the vocabulary (49152)");
	tokens[2] = 49152;
	assert_int_equal(query_check(&q, &s, &limits, NULL, &err), -EINVAL);
	assert_string_equal(err.field, "tokens[2]");
	tokens[2] = 49151;
	assert_int_equal(query_check(&q, &s, &limits, NULL, &err), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(ids_are_the_published_hashes),
		cmocka_unit_test(long_sequences_hash_across_buffers),
		cmocka_unit_test(bad_hex_is_refused),
		cmocka_unit_test(canonical_form_is_one_form),
		cmocka_unit_test(every_part_of_the_question_changes_the_key),
		cmocka_unit_test(bytes_come_back_and_strange_ones_do_not),
		cmocka_unit_test(what_is_wrong_is_named),
		cmocka_unit_test(token_outside_the_vocabulary_is_named),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
