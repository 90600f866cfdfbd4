// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "common/cursor.h"
#include "common/error.h"
#include "common/query.h"

static const struct query_limits limits = {.max_tokens = 8, .max_top_k = 100, .max_gather = 100, .max_draws = 60, .max_spans = 4,
					   .vocab_size = 49152, .n_layers = 30};
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

// A question that asks for everything, for 5 tokens; its lists are the caller's.
static uint32_t all_offsets[] = {0, 2, 2, 5, 6, 6}, all_ids[] = {9, 300, 9, 9, 40000, 49151}, all_keep[] = {9, 300, 301, 40000, 49151};
static struct query_span all_spans[] = {{1, 5}, {2, 3}, {2, 3}};
static const struct query everything = {
	.top_k = 4, .top_mass = 0.5f, .dense = true, .n_temperatures = 2, .temperatures = {1, 3}, .own = true, .entropy = true,
	.max_prob = true, .argmax = true, .sum_squares = true, .tail = true, .first = 0, .last = 4, .values = QUERY_VALUES_U8,
	.draws = {.n = 50, .tau = 0.5f, .seed = UINT64_C(0x0123456789abcdef), .tail = true}, .gather = {5, all_offsets, all_ids},
	.n_keep = 5, .keep = all_keep, .n_spans = 3, .spans = all_spans, .n_features = 3,
	.features = {{QUERY_FEATURE_HIDDEN, 30}, {QUERY_FEATURE_FINAL, 0}, {QUERY_FEATURE_V, 29}}, .pooling = QUERY_POOLING_LAST,
	.feature_values = QUERY_FEATURE_BF16,
};

static struct query deep_copy(const struct query *q)
{
	struct query copy;
	assert_int_equal(query_copy(&copy, q), 0);
	return copy;
}

// Changes exactly one thing; false when there is no i-th.
static bool change(struct query *q, int i)
{
	switch (i) {
	case 0: q->top_k--; return true;
	case 1: q->top_mass = 0.25f; return true;
	case 2: q->dense = false; return true;
	case 3: q->temperatures[1] = 4; return true;
	case 4: q->n_temperatures = 1; return true;
	case 5: q->own = false; return true;
	case 6: q->entropy = false; return true;
	case 7: q->max_prob = false; return true;
	case 8: q->argmax = false; return true;
	case 9: q->sum_squares = false; return true;
	case 10: q->tail = false; return true;
	case 11: q->first++; return true;
	case 12: q->last--; return true;
	case 13: q->values = QUERY_VALUES_F16; return true;
	case 14: q->draws.n--; return true;
	case 15: q->draws.tau = 1; return true;
	case 16: q->draws.seed ^= UINT64_C(1) << 63; return true;
	case 17: q->draws.tail = false; return true;
	case 18: q->gather.ids[0] = 300; return true;
	case 19: q->gather.offsets[1] = 1; return true;
	case 20: q->gather.n_lists = 4; return true;
	case 21: q->keep[4]--; return true;
	case 22: q->n_keep--; return true;
	case 23: q->spans[1].begin = 1; return true;
	case 24: q->spans[2].end = 4; return true;
	case 25: q->n_spans--; return true;
	case 26: q->features[0].layer--; return true;
	case 27: q->features[2].kind = QUERY_FEATURE_K; return true;
	case 28: q->n_features--; return true;
	case 29: q->pooling = QUERY_POOLING_MEAN; return true;
	case 30: q->feature_values = QUERY_FEATURE_F16; return true;
	default: return false;
	}
}

static void every_part_is_part_of_equality_key_and_bytes(void **state)
{
	(void)state;
	struct sequence s = {some_tokens, 5};
	struct content_id teacher = {{7}}, key = query_key(&teacher, &s, &everything);
	struct query same = deep_copy(&everything);
	assert_true(query_equal(&same, &everything));
	for (int i = 0;; i++) {
		struct query q = deep_copy(&everything), back;
		bool more = change(&q, i);
		struct content_id other = query_key(&teacher, &s, &q);
		if (more && (query_equal(&q, &everything) || memcmp(&other, &key, sizeof key) == 0))
			fail_msg("change %d goes unnoticed", i);
		uint8_t bytes[512];
		struct writer w = writer_init(bytes, sizeof bytes);
		query_encode(&q, &w);
		assert_int_equal(w.position, query_bytes(&q));
		struct reader r = reader_init(bytes, w.position);
		struct error err;
		if (query_decode(&r, &back, &err))
			fail_msg("change %d: %s", i, err.message);
		assert_int_equal(reader_left(&r), 0);
		assert_true(query_equal(&q, &back));
		query_done(&back);
		query_done(&q);
		if (!more)
			break;
	}
	query_done(&same);
}

// Long lists are hashed in pieces.
static void the_key_is_the_hash_of_the_bytes(void **state)
{
	(void)state;
	enum { N = 3000 };
	uint32_t *ids = calloc(N, sizeof *ids), offsets[] = {0, N};
	size_t size = 15 + 32 + 32 + 20 + 3 + 3 * (N + 1);
	uint8_t *bytes = malloc(size);
	assert_true(ids && bytes);
	for (uint32_t i = 0; i < N; i++)
		ids[i] = i * 7;
	struct sequence s = {some_tokens, 5};
	struct query q = {.last = -1, .gather = {1, offsets, ids}};
	struct content_id teacher = {{7}}, sequence = sequence_id(&s), want, key = query_key(&teacher, &s, &q);
	struct writer w = writer_init(bytes, size);
	writer_bytes(&w, "kdserved key 1\n", 15);
	writer_bytes(&w, &teacher, 32);
	writer_bytes(&w, &sequence, 32);
	query_encode(&q, &w);
	assert_false(w.failed);
	want = content_id_of(bytes, w.position);
	assert_memory_equal(&key, &want, sizeof want);
	free(ids);
	free(bytes);
}

static void bytes_cut_short_or_strange_are_refused(void **state)
{
	(void)state;
	uint8_t bytes[256];
	struct writer w = writer_init(bytes, sizeof bytes);
	struct query back;
	query_encode(&everything, &w);
	for (size_t n = 0; n < w.position; n++) {
		uint8_t *exact = malloc(n + 1);    // so that a sanitizer sees a byte too far
		assert_non_null(exact);
		memcpy(exact, bytes, n);
		struct reader r = reader_init(exact, n);
		assert_int_equal(query_decode(&r, &back, NULL), -EINVAL);
		free(exact);
	}
	const size_t gather = 20 + 8 + 4, draws = gather + 1 + 5 + 1 + 2 + 1 + 1 + 3 + 3, keep = draws + 13 + 1, spans = keep + 1 + 9;
	const size_t features = spans + 1 + 6;
	assert_int_equal(w.position, features + 3 + 9);
	const struct { size_t at; uint8_t value; int want; } strange[] = {
		{0, 1, -EOPNOTSUPP}, {1, 3, -EOPNOTSUPP}, {2, 17, -E2BIG}, {3, 1, -EOPNOTSUPP}, {5, 0x3f, -EOPNOTSUPP}, {7, 1, -EOPNOTSUPP},
		{gather, 0, -EINVAL}, {gather, 200, -EINVAL}, {gather + 1, 250, -EINVAL}, {draws, 0, -EINVAL}, {keep - 1, 2, -EINVAL},
		{keep, 0, -EINVAL}, {spans, 0, -EINVAL}, {features, 0, -EINVAL}, {features, 65, -E2BIG}, {features + 1, 3, -EOPNOTSUPP},
		{features + 2, 3, -EOPNOTSUPP}, {features + 3, 5, -EOPNOTSUPP},
	};
	for (size_t i = 0; i < sizeof strange / sizeof *strange; i++) {
		uint8_t copy[256];
		memcpy(copy, bytes, sizeof copy);
		copy[strange[i].at] = strange[i].value;
		struct reader r = reader_init(copy, w.position);
		if (query_decode(&r, &back, NULL) != strange[i].want)
			fail_msg("case %zu", i);
	}
	const uint8_t long_form[] = {2, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0x81, 0x00, 5};
	struct reader r = reader_init(long_form, sizeof long_form);
	assert_int_equal(query_decode(&r, &back, NULL), -EINVAL);
}

static void what_does_not_matter_is_the_same_question(void **state)
{
	(void)state;
	struct sequence s = {some_tokens, 5};
	uint32_t shuffled[] = {40000, 9, 301, 9, 300, 49151};
	struct query a = deep_copy(&everything), b = deep_copy(&everything), c, d;
	memcpy(b.temperatures, (float[]){3, 1, 3}, 12);
	b.n_temperatures = 3;
	b.first = -5;
	b.last = -1;
	b.tail = false;            // comes with draws.tail
	free(b.keep);
	b.keep = malloc(sizeof shuffled);
	assert_non_null(b.keep);
	memcpy(b.keep, shuffled, sizeof shuffled);
	b.n_keep = 6;
	assert_int_equal(query_check(&a, &s, &limits, NULL, NULL), 0);
	assert_true(query_equal(&a, &everything));
	assert_int_equal(query_check(&b, &s, &limits, NULL, NULL), 0);
	assert_true(query_equal(&b, &everything));
	query_done(&a);
	query_done(&b);
	// Spans alone: neither rows, nor formats, nor temperatures.
	c = (struct query){.last = -1, .n_spans = 1, .spans = all_spans};
	d = (struct query){.first = 2, .last = 3, .values = QUERY_VALUES_F16, .draws = {.seed = 9}, .pooling = QUERY_POOLING_MEAN,
			   .feature_values = QUERY_FEATURE_F16, .n_spans = 1, .spans = all_spans, .top_mass = -0.0f};
	assert_int_equal(query_check(&c, &s, &limits, NULL, NULL), 0);
	assert_int_equal(query_check(&d, &s, &limits, NULL, NULL), 0);
	assert_true(query_equal(&c, &d));
	assert_int_equal(c.n_temperatures, 0);
	assert_int_equal(query_rows(&c), 5);
	assert_false(query_has_rows(&c));
}

struct refusal {
	struct query q;
	uint32_t n_tokens;
	int want;
	const char *field, *message;
};

static uint32_t wide_ids[102];

static void what_is_wrong_is_named(void **state)
{
	(void)state;
#define ONE(...) {1, (uint32_t[]){0, sizeof((uint32_t[]){__VA_ARGS__}) / 4}, (uint32_t[]){__VA_ARGS__}}
#define KEEP(...) .n_keep = sizeof((uint32_t[]){__VA_ARGS__}) / 4, .keep = (uint32_t[]){__VA_ARGS__}
#define SPAN(...) .n_spans = 2, .spans = (struct query_span[]){{1, 2}, {__VA_ARGS__}}
	const struct refusal cases[] = {
		{{.last = -1}, 3, -EINVAL, "top_k",
		 "the query asks for nothing: give top_k, gather, draws, own, entropy, temperatures, spans or another signal"},
		{{.last = -1, KEEP(1, 2)}, 3, -EINVAL, "top_k", "the query asks for nothing: give top_k, gather, draws, own, entropy, "
		 "temperatures, spans or another signal"},
		{{.last = -1, .top_k = 49153}, 3, -EINVAL, "top_k", "49153 is more than the vocabulary (49152)"},
		{{.last = -1, .top_k = 101}, 3, -E2BIG, "top_k", "101 is over the limit (100)"},
		{{.last = -1, .top_k = 3, .top_mass = 1.5f}, 3, -EINVAL, "top_mass", "1.5 is not a probability above 0, at most 1"},
		{{.last = -1, .top_k = 3, .top_mass = -0.5f}, 3, -EINVAL, "top_mass", "-0.5 is not a probability above 0, at most 1"},
		{{.last = -1, .top_k = 3, .top_mass = NAN}, 3, -EINVAL, "top_mass", "nan is not a probability above 0, at most 1"},
		{{.last = -1, .own = true, .top_mass = 0.5f}, 3, -EINVAL, "top_mass", "needs top_k, the most ids a row may have"},
		{{.last = -1, .tail = true}, 3, -EINVAL, "tail", "needs top_k: it is the probability outside those ids"},
		{{.last = -1, .own = true, .values = 3}, 3, -EINVAL, "values", "unknown value format 3"},
		{{.last = -1, .n_temperatures = 17}, 3, -E2BIG, "temperatures", "17 temperatures, the limit is 16"},
		{{.last = -1, .n_temperatures = 1, .temperatures = {NAN}}, 3, -EINVAL, "temperatures[0]",
		 "nan is not a temperature from 0.0001 to 1e+06"},
		{{.last = -1, .n_temperatures = 2, .temperatures = {1, 0}}, 3, -EINVAL, "temperatures[1]",
		 "0 is not a temperature from 0.0001 to 1e+06"},
		{{.last = -1, .n_temperatures = 2, .temperatures = {1, -1}}, 3, -EINVAL, "temperatures[1]",
		 "-1 is not a temperature from 0.0001 to 1e+06"},
		{{.last = -1, .n_temperatures = 1, .temperatures = {INFINITY}}, 3, -EINVAL, "temperatures[0]",
		 "inf is not a temperature from 0.0001 to 1e+06"},
		{{.last = -1, .draws = {.n = 61, .tau = 1}}, 3, -E2BIG, "draws.n", "61 is over the limit (60)"},
		{{.last = -1, .draws = {.n = 5}}, 3, -EINVAL, "draws.tau", "0 is not from 0.01 to 100"},
		{{.last = -1, .draws = {.n = 5, .tau = 101}}, 3, -EINVAL, "draws.tau", "101 is not from 0.01 to 100"},
		{{.last = -1, .draws = {.n = 5, .tau = NAN}}, 3, -EINVAL, "draws.tau", "nan is not from 0.01 to 100"},
		{{.last = -1, .draws = {.n = 5, .tau = 1, .tail = true}}, 3, -EINVAL, "draws.tail",
			"needs top_k: it draws outside those ids"},
		{{.last = -1, .own = true, .draws = {.tail = true}}, 3, -EINVAL, "draws.tail", "needs draws.n"},
		{{.last = -1, .n_features = 65}, 3, -E2BIG, "features", "65 features, the limit is 64"},
		{{.last = -1, .n_features = 1, .features = {{5, 0}}}, 3, -EINVAL, "features[0].kind", "unknown kind 5"},
		{{.last = -1, .n_features = 2, .features = {{0, 30}, {0, 31}}}, 3, -EINVAL, "features[1].layer",
		 "31: the teacher has 31 of this kind, from 0"},
		{{.last = -1, .n_features = 2, .features = {{2, 29}, {2, 30}}}, 3, -EINVAL, "features[1].layer",
		 "30: the teacher has 30 of this kind, from 0"},
		{{.last = -1, .n_features = 1, .features = {{1, 3}}}, 3, -EINVAL, "features[0].layer",
		 "3: what follows the final norm has layer 0"},
		{{.last = -1, .n_features = 1, .pooling = 3}, 3, -EINVAL, "pooling", "unknown pooling 3"},
		{{.last = -1, .n_features = 1, .feature_values = 3}, 3, -EINVAL, "feature_values", "unknown value format 3"},
		{{.last = -1, .own = true}, 0, -EINVAL, "sequences[3].tokens", "the sequence is empty"},
		{{.last = -1, .own = true}, 9, -E2BIG, "sequences[3].tokens", "9 tokens, the limit is 8"},
		{{.first = 3, .last = -1, .own = true}, 3, -EINVAL, "first", "3 is outside sequences[3].tokens (3)"},
		{{.first = -4, .last = -1, .own = true}, 3, -EINVAL, "first", "-4 is outside sequences[3].tokens (3)"},
		{{.last = 3, .own = true}, 3, -EINVAL, "last", "3 is outside sequences[3].tokens (3)"},
		{{.last = INT32_MIN, .own = true}, 3, -EINVAL, "last", "-2147483648 is outside sequences[3].tokens (3)"},
		{{.first = 2, .last = 1, .own = true}, 3, -EINVAL, "first", "position 2 lies after last (1)"},
		{{.last = -1, SPAN(0, 2)}, 3, -EINVAL, "spans[1].begin", "nothing comes before token 0: a span begins at 1 or later"},
		{{.last = -1, SPAN(2, 2)}, 3, -EINVAL, "spans[1].begin", "2 does not lie before the span's end (2)"},
		{{.last = -1, SPAN(2, 4)}, 3, -EINVAL, "spans[1].end", "4 is beyond sequences[3].tokens (3)"},
		{{.last = -1, .n_spans = 5}, 3, -E2BIG, "spans", "5 spans, the limit is 4"},
		{{.last = -1, .own = true, KEEP(1, 49152)}, 3, -EINVAL, "keep[1]", "id 49152 is outside the vocabulary (49152)"},
		{{.last = -1, .own = true, .n_keep = 49153}, 3, -EINVAL, "keep", "49153 ids are more than the vocabulary (49152)"},
		{{.last = -1, .top_k = 3, KEEP(5, 1, 5)}, 3, -EINVAL, "top_k", "3 is more than the ids of keep (2)"},
		{{.last = -1, .gather = ONE(5, 49152)}, 3, -EINVAL, "gather[1]", "id 49152 is outside the vocabulary (49152)"},
		{{.last = -1, .gather = ONE(5, 6), KEEP(7, 5)}, 3, -EINVAL, "gather[1]", "id 6 is not in keep"},
		{{.last = -1, .gather = {1, (uint32_t[]){0, 101}, wide_ids}}, 3, -E2BIG, "gather", "101 ids for a row, the limit is 100"},
		{{.last = -1, .gather = {3, (uint32_t[]){0, 1, 1, 102}, wide_ids}}, 3, -E2BIG, "gather[2]",
			"101 ids for a row, the limit is 100"},
		{{.last = -1, .gather = {3, (uint32_t[]){0, 1, 1, 3}, (uint32_t[]){1, 2, 50000}}}, 3, -EINVAL, "gather[2][1]",
		 "id 50000 is outside the vocabulary (49152)"},
		{{.last = -1, .gather = {2, (uint32_t[]){0, 1, 2}, (uint32_t[]){1, 2}}}, 3, -EINVAL, "gather",
		 "2 lists for the 3 rows of sequences[3].tokens"},
		{{.last = -1, .gather = {3, (uint32_t[]){0, 2, 1, 2}, (uint32_t[]){1, 2}}}, 3, -EINVAL, "gather[1]", "its offsets descend"},
	};
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		struct sequence s = {some_tokens, cases[i].n_tokens};
		struct query q = cases[i].q;
		struct error err = {0};
		if (query_check(&q, &s, &limits, "sequences[3].", &err) != cases[i].want)
			fail_msg("case %zu: %s: %s", i, err.field, err.message);
		assert_string_equal(err.field, cases[i].field);
		assert_string_equal(err.message, cases[i].message);
		assert_memory_equal(&q, &cases[i].q, sizeof q);
	}
}

// Each limit at n; n + 1 is above.
static void limits_are_inclusive(void **state)
{
	(void)state;
	struct sequence s = {some_tokens, 8};
	uint32_t offsets[] = {0, 100};
	struct query_span spans[4] = {{1, 8}, {1, 8}, {1, 8}, {7, 8}};
	struct query q = {.last = -1, .top_k = 100, .top_mass = 1, .draws = {.n = 60, .tau = QUERY_MAX_TAU}, .n_spans = 4, .spans = spans,
			  .gather = {1, offsets, wide_ids}, .n_features = 64};
	assert_int_equal(query_check(&q, &s, &limits, NULL, NULL), 0);
	q.draws.tau = QUERY_MIN_TAU;
	assert_int_equal(query_check(&q, &s, &limits, NULL, NULL), 0);
}

static void copies_stand_alone(void **state)
{
	(void)state;
	struct query copy = deep_copy(&everything), empty, again;
	assert_ptr_not_equal(copy.gather.ids, everything.gather.ids);
	assert_ptr_not_equal(copy.gather.offsets, everything.gather.offsets);
	assert_ptr_not_equal(copy.keep, everything.keep);
	assert_ptr_not_equal(copy.spans, everything.spans);
	query_done(&copy);
	query_done(&copy);
	query_done(NULL);
	query_init(&empty);
	assert_int_equal(query_copy(&again, &empty), 0);
	assert_true(query_equal(&again, &empty));
	query_done(&again);
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
		cmocka_unit_test(every_part_is_part_of_equality_key_and_bytes),
		cmocka_unit_test(the_key_is_the_hash_of_the_bytes),
		cmocka_unit_test(bytes_cut_short_or_strange_are_refused),
		cmocka_unit_test(what_does_not_matter_is_the_same_question),
		cmocka_unit_test(limits_are_inclusive),
		cmocka_unit_test(copies_stand_alone),
		cmocka_unit_test(what_is_wrong_is_named),
		cmocka_unit_test(token_outside_the_vocabulary_is_named),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
