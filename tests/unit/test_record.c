// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "common/crc32c.h"
#include "common/cursor.h"
#include "common/error.h"
#include "common/half.h"
#include "common/record_layout.h"
#include "common/record_short.h"
#include "common/golomb.h"
#include "tests/unit/rows_example.h"

static struct record *encode(const struct record_rows *rows)
{
	struct record *record = NULL;
	struct error err = {0};
	int r = record_encode(rows, &record, &err);
	if (r)
		fail_msg("%s: %s", err.field, err.message);
	return record;
}

static int decode_bytes(const void *bytes, size_t n)
{
	struct record *record = NULL;
	struct record_rows *rows = NULL;
	int r = record_from_bytes(bytes, n, &record, NULL);
	if (!r) {
		r = record_decode(record, &rows, NULL);
		assert_int_equal(record_check(record, NULL), r);
	}
	record_rows_free(rows);
	record_unref(record);
	return r;
}

static void expect_parts(const struct record *record)
{
	uint64_t parts[RECORD_N_PARTS], sum = 0;
	size_t n;
	(void)record_bytes(record, &n);
	assert_int_equal(record_parts(record, parts), 0);
	for (unsigned i = 0; i < RECORD_N_PARTS; i++)
		sum += parts[i];
	assert_int_equal(sum, n);
}

static void round_trip(struct record_rows *rows)
{
	struct record *made = encode(rows), *received = NULL;
	struct record_rows *back = NULL;
	struct error err = {0};
	size_t n, again;
	const void *bytes = record_bytes(made, &n);
	struct query_limits limits = {.vocab_size = rows->vocab_size, .width = 100, .q_width = 100, .kv_width = 100};
	assert_true(n <= record_max_bytes(&rows->query, rows->sequence.n_tokens, &limits));
	assert_int_equal(record_from_bytes(bytes, n, &received, &err), 0);
	assert_memory_equal(record_bytes(received, &again), bytes, n);
	assert_int_equal(again, n);
	assert_int_equal(record_crc(received), crc32c(0, bytes, n));
	assert_memory_equal(record_key(received), record_key(made), CONTENT_ID_BYTES);
	assert_int_equal(record_n_rows(received), rows->n_rows);
	if (record_decode(received, &back, &err) || record_check(received, &err))
		fail_msg("%s: %s", err.field, err.message);
	expect_parts(received);
	assert_rows_equal(rows, back);
	record_rows_free(back);
	record_rows_free(rows);
	record_unref(received);
	record_unref(made);
}

static void comes_back_as_it_was(void **state)
{
	(void)state;
	uint32_t one[] = {0, 4}, ids[] = {5, 49151, 5, 0};
	const struct query queries[] = {
		{.last = -1, .own = true},
		{.last = -1, .entropy = true, .n_temperatures = 3, .temperatures = {2, 1, 0.5f}},
		{.last = -1, .n_temperatures = 1, .temperatures = {4}},
		{.last = -1, .top_k = 1},
		{.last = -1, .top_k = 64, .own = true, .entropy = true, .n_temperatures = 2, .temperatures = {1, 2}},
		{.first = -1, .last = -1, .top_k = 7},
		{.first = 3, .last = 20, .top_k = 100, .own = true},
		{.last = -1, .max_prob = true},
		{.last = -1, .argmax = true},
		{.last = -1, .sum_squares = true},
		{.last = -1, .top_k = 5, .tail = true},
		{.last = -1, .top_k = 40, .top_mass = 0.5f},
		{.last = -1, .top_k = 1, .top_mass = 0.5f},
		{.last = -1, .gather = {1, one, ids}},
		{.last = -1, .draws = {.n = 50, .tau = 1}},
		{.last = -1, .draws = {.n = 1, .tau = 1}},
		{.last = -1, .draws = {.n = 50, .tau = 2}},
		{.last = -1, .top_k = 20, .draws = {.n = 50, .tau = 1, .tail = true}},
	};
	for (size_t i = 0; i < sizeof queries / sizeof *queries; i++)
		for (uint32_t n_tokens = 21; n_tokens < 24; n_tokens++)
			for (int variant = 0; variant < 6; variant++) {
				struct query q = queries[i];
				q.values = (enum query_values)(variant / 2);
				round_trip(rows_random(i, &q, n_tokens, 49152, variant % 2));
			}
}

// Each signal alone and everything at once, in every format, with and without kept ids.
static void every_signal_comes_back_alone_and_with_all_others(void **state)
{
	(void)state;
	for (int i = 0; i < 13; i++) {
		struct query all, q;
		rows_everything(&all);
		q = i ? (struct query){.last = -1, .draws.tau = 1} : all;
		switch (i) {
		case 1: q.dense = true; break;
		case 2: q.gather = all.gather; break;
		case 3: q.n_spans = all.n_spans, q.spans = all.spans; break;
		case 4: q.n_features = all.n_features, memcpy(q.features, all.features, sizeof q.features); break;
		case 5: q = all, q.top_k = 0, q.top_mass = 0, q.tail = q.draws.tail = false; break;
		case 6: q = all, q.top_mass = 0; break;
		case 7: q = all, q.draws.tail = false, q.draws.tau = 1; break;
		case 8: q = all, q.pooling = QUERY_POOLING_MEAN; break;
		case 9: q.n_features = all.n_features, memcpy(q.features, all.features, sizeof q.features), q.pooling = QUERY_POOLING_LAST; break;
		case 10: q = all, q.n_temperatures = 0; break;
		case 11: q = all, q.dense = false; break;
		case 12: q.own = true; break;
		}
		for (int variant = 0; variant < 36; variant++) {
			struct query v = q;
			v.values = (enum query_values)(variant % 3);
			v.feature_values = (enum query_feature_values)(variant / 3 % 3);
			if (variant / 9 % 2)
				v.n_keep = all.n_keep, v.keep = all.keep;
			round_trip(rows_random((uint64_t)(100 * i + variant), &v, 9, 500 + (uint32_t)variant, variant / 18));
		}
	}
}

static void spans_alone_take_a_header_and_four_bytes_each(void **state)
{
	(void)state;
	struct query_span spans[] = {{1, 1000}, {500, 600}};
	struct query q = {.last = -1, .n_spans = 2, .spans = spans};
	struct record_rows *rows = rows_random(4, &q, 1000, 49152, true);
	struct record *record = encode(rows);
	size_t n;
	(void)record_bytes(record, &n);
	assert_null(rows->status);
	assert_int_equal(n, RECORD_HEADER_BYTES + query_bytes(&rows->query) + 4 * 1000 + SECTION_HEADER_BYTES + 4 * 2);
	record_rows_free(rows);
	record_unref(record);
}

static void comes_back_for_every_k_and_vocabulary(void **state)
{
	(void)state;
	const uint32_t vocabularies[] = {1, 2, 3, 31, 64, 1000};
	for (size_t v = 0; v < sizeof vocabularies / sizeof *vocabularies; v++)
		for (uint32_t k = 1; k <= vocabularies[v] && k <= 70; k++) {
			struct query q = {.last = -1, .top_k = k};
			round_trip(rows_random(k, &q, 6, vocabularies[v], true));
		}
	struct query all = {.last = -1, .top_k = 1000}, huge = {.last = -1, .top_k = 3};
	round_trip(rows_random(1, &all, 3, 1000, false));
	round_trip(rows_random(2, &huge, 40, 1 << 24, false));
}

static void f16_values_are_near_and_still_in_order(void **state)
{
	(void)state;
	struct query q = {.last = -1, .top_k = 64, .own = true, .values = QUERY_VALUES_F16};
	// Values are multiples of 2^-6 within 32 of the maximum: exact in binary16, so ids keep their order too.
	round_trip(rows_random(3, &q, 40, 49152, true));
}

// Half of the 255 steps between the maximum and the smallest value sent, whatever the size of either.
static void u8_values_are_within_half_a_step(void **state)
{
	(void)state;
	struct query q = {.last = -1, .top_k = 3, .values = QUERY_VALUES_U8};
	const float rows_of_three[][3] = {{20, 19.5f, -30}, {1e-30f, 0, -1e-30f}, {3e38f, 0, -1e37f}, {5, 5, 5}, {-1, -2, -1e30f},
					  {0x1p-149f, 0, 0}, {1, 1 - 0x1p-24f, 1 - 0x1p-23f}};
	for (size_t i = 0; i < sizeof rows_of_three / sizeof *rows_of_three; i++) {
		struct record_rows *rows = rows_random(1, &q, 1, 100, false), *back;
		const float *v = rows_of_three[i];
		memcpy(rows->logits, v, 12);
		rows->max_logit[0] = v[0];
		struct record *record = encode(rows);
		assert_int_equal(record_decode(record, &back, NULL), 0);
		double range = (double)v[0] - (double)v[2];
		for (int j = 0; j < 3; j++) {
			double off = fabs((double)back->logits[j] - (double)v[j]);
			assert_true(off <= range / 510 * (1 + 1e-6) + fabs((double)v[j]) * 0x1p-24 + 0x1p-150);
		}
		assert_true(back->logits[0] == v[0]);
		record_rows_free(rows);
		record_rows_free(back);
		record_unref(record);
	}
}

static void values_that_round_together_go_to_the_lower_id(void **state)
{
	(void)state;
	struct record_rows *rows = rows_example(), *back;
	memcpy(rows->ids, (uint32_t[]){7, 4, 9, 0}, 16);
	rows->max_logit[0] = rows->logits[0] = 20;
	rows->logits[1] = 10;
	rows->max_logit[1] = rows->logits[2] = 1.5f;
	rows->logits[3] = 1.5f - 0x1p-23f;    // above half the smallest f16: survives, but not in f32 beside 1.5
	struct record *record = encode(rows);
	assert_int_equal(record_decode(record, &back, NULL), 0);
	assert_true(back->logits[3] <= back->logits[2]);
	if (back->logits[3] == back->logits[2])
		assert_true(back->ids[2] == 0 && back->ids[3] == 9);
	record_rows_free(back);
	record_unref(record);
	rows->logits[3] = 1.5f - 0x1p-25f;    // == 1.5f
	record = encode(rows);
	assert_int_equal(record_decode(record, &back, NULL), 0);
	assert_int_equal(back->ids[2], 0);
	assert_int_equal(back->ids[3], 9);
	record_rows_free(back);
	record_rows_free(rows);
	record_unref(record);
}

#include "tests/unit/record_golden.h"

static void expect_golden(struct record_rows *rows, const uint8_t *want, size_t n_want)
{
	struct record *record = encode(rows);
	size_t n;
	const uint8_t *bytes = record_bytes(record, &n);
	assert_int_equal(n, n_want);
	assert_memory_equal(bytes, want, n);
	round_trip(rows);
	record_unref(record);
}

static void examples_have_the_bytes_of_the_manual(void **state)
{
	(void)state;
	expect_golden(rows_example(), record_golden, sizeof record_golden);
	expect_golden(rows_second_example(), record_golden_2, sizeof record_golden_2);
}

static void every_truncation_and_extension_is_refused(void **state)
{
	(void)state;
	uint8_t longer[sizeof record_golden + 1] = {0};
	memcpy(longer, record_golden, sizeof record_golden);
	assert_int_equal(decode_bytes(longer, sizeof record_golden), 0);
	for (size_t n = 0; n < sizeof record_golden; n++)
		assert_int_equal(decode_bytes(longer, n), -EBADMSG);
	assert_int_equal(decode_bytes(longer, sizeof longer), -EBADMSG);
}

// Of records of everything, in each format.
static void every_flipped_bit_and_truncation_is_refused(void **state)
{
	(void)state;
	for (int format = 0; format < 3; format++) {
		struct query q;
		rows_everything(&q);
		q.dense = format == 1;         // long
		q.values = (enum query_values)format;
		struct record_rows *rows = rows_random(9, &q, 9, 500, true);
		struct record *record = encode(rows);
		size_t n;
		const void *good = record_bytes(record, &n);
		uint8_t *bytes = malloc(n);
		assert_non_null(bytes);
		memcpy(bytes, good, n);
		for (size_t bit = 0; bit < 8 * n; bit += format == 1 ? 7 : 1) {
			bytes[bit / 8] ^= (uint8_t)(1 << bit % 8);
			assert_int_not_equal(decode_bytes(bytes, n), 0);
			bytes[bit / 8] ^= (uint8_t)(1 << bit % 8);
		}
		for (size_t cut = 0; cut < n; cut++)
			assert_int_equal(decode_bytes(bytes, cut), -EBADMSG);
		assert_int_equal(decode_bytes(bytes, n), 0);
		free(bytes);
		record_rows_free(rows);
		record_unref(record);
	}
}

static uint64_t next(uint64_t *seed)
{
	*seed = *seed * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
	return *seed >> 33;
}

// Mutations with the checksum (and sometimes the key) mended, as an attacker would: refused or decoded, never worse (run it with ASan).
static void mended_mutations_do_no_harm(void **state)
{
	(void)state;
	uint64_t seed = 1;
	struct query q;
	rows_everything(&q);
	q.dense = false;
	struct record_rows *rows = rows_random(9, &q, 9, 500, true);
	struct record *record = encode(rows);
	size_t n, n_decoded = 0;
	const uint8_t *good = record_bytes(record, &n);
	uint8_t *bytes = malloc(n);
	assert_non_null(bytes);
	for (int i = 0; i < 20000; i++) {
		memcpy(bytes, good, n);
		for (uint64_t changes = 1 + next(&seed) % 3; changes; changes--)
			bytes[next(&seed) % 2 ? record->sections_at + next(&seed) % (n - record->sections_at) : next(&seed) % n] ^=
				(uint8_t)(1 << next(&seed) % 8);
		store_u32(bytes + RECORD_CRC_AT, 0, record_checksum(bytes, n));
		n_decoded += decode_bytes(bytes, n) == 0;
	}
	assert_true(n_decoded > 0);    // a change of a value's low bits is another valid record
	free(bytes);
	record_rows_free(rows);
	record_unref(record);
}

// With the checksum mended, as an attacker would: the codec's own checks must hold.
static int decode_with(size_t at, const void *data, size_t n)
{
	uint8_t bytes[sizeof record_golden];
	memcpy(bytes, record_golden, sizeof bytes);
	memcpy(bytes + at, data, n);
	store_u32(bytes + RECORD_CRC_AT, 0, record_checksum(bytes, sizeof bytes));
	return decode_bytes(bytes, sizeof bytes);
}

static struct record_question question_of(const struct record_rows *rows, const struct record *record)
{
	return (struct record_question){.teacher = &rows->teacher, .key = record_key(record), .sequence = &rows->sequence, .query = &rows->query,
		.vocab_size = rows->vocab_size};
}

static void short_form_is_restored_to_the_same_bytes(void **state)
{
	(void)state;
	for (int i = 0; i < 3; i++) {
		struct query_span span = {1, 200};
		struct query q = {.last = -1, .n_spans = 1, .spans = &span}, top = {.last = -1, .top_k = 3};
		if (i == 1)
			q = top;
		if (i == 2)
			rows_everything(&q);
		struct record_rows *rows = rows_random(2, &q, i == 2 ? 9 : 200, 500, true);
		struct record *record = encode(rows), *back = NULL;
		struct record_question question = question_of(rows, record);
		size_t n, n_back, n_short = record_short_bytes(record);
		const void *bytes = record_bytes(record, &n);
		uint8_t *brief = malloc(n_short);
		assert_non_null(brief);
		record_shorten(record, brief);
		assert_int_equal(n_short, n - 32 - query_bytes(&rows->query) - 4 * (size_t)rows->sequence.n_tokens);
		if (!i)
			assert_int_equal(n_short, 68 + 8 + 4);
		assert_int_equal(record_restore(brief, n_short, &question, &back, NULL), 0);
		assert_memory_equal(record_bytes(back, &n_back), bytes, n);
		assert_int_equal(n_back, n);
		assert_memory_equal(record_key(back), record_key(record), CONTENT_ID_BYTES);
		assert_true(query_equal(record_query(back), &rows->query));
		struct record_rows *decoded;
		assert_int_equal(record_decode(back, &decoded, NULL), 0);
		assert_rows_equal(rows, decoded);
		record_rows_free(decoded);
		record_unref(back);
		assert_int_equal(decode_bytes(brief, n_short), -EBADMSG);    // nothing else takes it
		free(brief);
		record_rows_free(rows);
		record_unref(record);
	}
}

static void damaged_or_foreign_short_forms_are_refused(void **state)
{
	(void)state;
	struct query q = {.last = -1, .top_k = 3, .own = true};
	struct record_rows *rows = rows_random(2, &q, 5, 500, true), *others = rows_random(3, &q, 5, 500, true);
	struct record *record = encode(rows), *other = encode(others), *back = NULL;
	struct record_question question = question_of(rows, record), foreign = question_of(others, other), shorter = question;
	struct sequence four = {rows->sequence.tokens, 4};
	size_t n = record_short_bytes(record);
	uint8_t *brief = malloc(n + 1);
	assert_non_null(brief);
	record_shorten(record, brief);
	assert_int_equal(record_restore(brief, n, &foreign, &back, NULL), -EBADMSG);
	shorter.sequence = &four;
	assert_int_equal(record_restore(brief, n, &shorter, &back, NULL), -EBADMSG);
	for (size_t cut = 0; cut < n; cut++)
		assert_int_equal(record_restore(brief, cut, &question, &back, NULL), -EBADMSG);
	brief[n] = 0;
	assert_int_equal(record_restore(brief, n + 1, &question, &back, NULL), -EBADMSG);
	for (size_t bit = 0; bit < 8 * n; bit++) {
		brief[bit / 8] ^= (uint8_t)(1 << bit % 8);
		if (record_restore(brief, n, &question, &back, NULL) == 0)
			fail_msg("bit %zu", bit);
		brief[bit / 8] ^= (uint8_t)(1 << bit % 8);
	}
	assert_int_equal(record_restore(brief, n, &question, &back, NULL), 0);
	record_unref(back);
	free(brief);
	record_rows_free(rows);
	record_rows_free(others);
	record_unref(record);
	record_unref(other);
}

static void hostile_bytes_are_refused_by_name(void **state)
{
	(void)state;
	const size_t query = RECORD_HEADER_BYTES, tokens = query + 24, sections = tokens + 12;
	const size_t status = sections + 8, max = status + 2 + 8, lse = max + 8 + 8, ids = lse + 8 + 8;
	const size_t own = sizeof record_golden - 8, values = own - 8 - 8;
	struct { size_t at; uint8_t value; int want; } cases[] = {
		{4, 2, -EOPNOTSUPP},               // record version: nothing of the first two was ever released
		{4, 4, -EOPNOTSUPP},
		{6, 2, -EOPNOTSUPP},               // flags
		{6, 1, -EOPNOTSUPP},               // a short record, which this is not
		{16, 9, -EBADMSG},                 // teacher: the key no longer fits
		{48, 0, -EBADMSG},                 // key
		{80, 3, -EBADMSG},                 // vocabulary of 3: token outside
		{80, 0, -EBADMSG},                 // none at all
		{84, 2, -EBADMSG},                 // n_tokens
		{87, 255, -EBADMSG},               // n_tokens beyond the record
		{88, 3, -EBADMSG},                 // n_rows
		{92, 28, -EBADMSG},                // query bytes
		{95, 255, -EBADMSG},
		{96, 7, -EBADMSG},                 // n_sections
		{98, 1, -EBADMSG},                 // reserved
		{query, 1, -EOPNOTSUPP},           // query version
		{query + 5, 0x20, -EOPNOTSUPP},    // unknown signal
		{query + 12, 255, -EBADMSG},       // first: not resolved
		{tokens, 2, -EBADMSG},             // another token: the key no longer fits
		{sections, 2, -EBADMSG},           // tag
		{sections + 2, 1, -EBADMSG},       // reserved
		{sections + 4, 1, -EBADMSG},       // length
		{status, 2, -EBADMSG},             // unknown status
		{status, 1, -EBADMSG},             // not OK, yet numbers are there
		{ids, 24, -EBADMSG},               // parameter
		{ids + 1, 0xff, -EBADMSG},         // ids leave the vocabulary
	};
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
		if (decode_with(cases[i].at, &cases[i].value, 1) != cases[i].want)
			fail_msg("case %zu (byte %zu)", i, cases[i].at);
	const uint32_t not_a_number = 0x7fc00000, infinite = 0x7f800000, zero = 0;
	assert_int_equal(decode_with(max, &not_a_number, 4), -EBADMSG);
	assert_int_equal(decode_with(lse, &infinite, 4), -EBADMSG);
	assert_int_equal(decode_with(own, &not_a_number, 4), -EBADMSG);     // a token follows this row
	assert_int_equal(decode_with(own + 4, &zero, 4), -EBADMSG);         // none follows this one
	const uint16_t above = 0x3c00, half_infinite = 0xfc00;
	assert_int_equal(decode_with(values, &above, 2), -EBADMSG);         // more than the maximum
	assert_int_equal(decode_with(values, &half_infinite, 2), -EBADMSG);
	assert_int_equal(decode_with(0, record_golden, 1), 0);
}

// A record of one signal beside the others of 8 tokens, with changes to the rows' own section and all checks mended.
static int decode_section(const struct query *asked, enum section_tag tag, size_t at, const void *data, size_t n_data)
{
	struct record_rows *rows = rows_random(12, asked, 8, 500, false);
	struct record *record = encode(rows);
	struct section sections[N_SECTIONS_MAX];
	size_t n, position = record->sections_at;
	const uint8_t *good = record_bytes(record, &n);
	uint8_t *bytes = malloc(n);
	assert_non_null(bytes);
	memcpy(bytes, good, n);
	unsigned n_sections = section_list(&rows->query, rows->n_rows, 500, sections);
	for (unsigned i = 0; i < n_sections && sections[i].tag != tag; i++)
		position += SECTION_HEADER_BYTES + load_u32(bytes + position + 4, 0);
	position += SECTION_HEADER_BYTES + at;
	assert_true(position + n_data <= n);
	memcpy(bytes + position, data, n_data);
	store_u32(bytes + RECORD_CRC_AT, 0, record_checksum(bytes, n));
	int r = decode_bytes(bytes, n);
	free(bytes);
	record_rows_free(rows);
	record_unref(record);
	return r;
}

static void hostile_sections_are_refused(void **state)
{
	(void)state;
	uint32_t one[] = {0, 3}, ids[] = {5, 5, 6}, keep[] = {5, 6, 7, 400}, bad_id = 8, outside = 500;
	const float above = 25, tail = 0.5f, minus_infinity = -INFINITY, infinite = INFINITY, sum = -1, nothing = 0, much = 1.5f, range = -1;
	const uint8_t code = 255, codes[] = {255, 0, 254, 7}, ff[4] = {255, 255, 255, 255};
	struct query_span span = {1, 8};
	struct query top = {.last = -1, .top_k = 3, .top_mass = 0.5f}, ids_of = {.last = -1, .argmax = true, .n_keep = 4, .keep = keep};
	struct query gather = {.last = -1, .gather = {1, one, ids}}, gather_u8 = gather, dense = {.last = -1, .dense = true};
	struct query draws = {.last = -1, .top_k = 1, .draws = {.n = 10, .tau = 1, .tail = true}}, ratios = {.last = -1,
		.draws = {.n = 10, .tau = 2}}, scalars = {.last = -1, .top_k = 1, .tail = true, .max_prob = true, .sum_squares = true};
	struct query spans = {.last = -1, .n_spans = 1, .spans = &span};
	struct query features = {.last = -1, .n_features = 1}, pooled = {.last = -1, .n_features = 2, .pooling = QUERY_POOLING_MEAN};
	gather_u8.values = QUERY_VALUES_U8;
	const uint32_t width = 4, no_width = 0;
	const struct { const struct query *q; enum section_tag tag; size_t at; const void *data; size_t n; int want; } cases[] = {
		{&top, SECTION_TOP_COUNTS, 1, ff, 2, -EBADMSG},                         // more than top_k
		{&top, SECTION_TOP_COUNTS, 0, &code, 1, -EBADMSG},                      // parameter
		{&ids_of, SECTION_ARGMAX, 0, &bad_id, 4, -EBADMSG},                     // not kept
		{&ids_of, SECTION_ARGMAX, 0, &outside, 4, -EBADMSG},
		{&ids_of, SECTION_ARGMAX, 0, &keep[3], 4, 0},
		{&gather, SECTION_GATHERED, 0, &above, 4, -EBADMSG},                    // above the maximum
		{&gather, SECTION_GATHERED, 4, &minus_infinity, 4, -EBADMSG},
		{&gather_u8, SECTION_GATHERED, 0, &range, 4, -EBADMSG},                 // negative range
		{&gather_u8, SECTION_GATHERED, 0, &infinite, 4, -EBADMSG},
		{&gather_u8, SECTION_GATHERED, 0, &nothing, 4, -EBADMSG},               // no range, yet codes
		{&gather_u8, SECTION_GATHERED, 32, codes, 3, 0},
		{&gather_u8, SECTION_GATHERED, 32, codes + 1, 3, -EBADMSG},              // none reaches the range
		{&dense, SECTION_DENSE, 0, &above, 4, -EBADMSG},
		{&scalars, SECTION_TAIL, 0, &tail, 4, -EBADMSG},                        // a probability above 1
		{&scalars, SECTION_TAIL, 0, &minus_infinity, 4, 0},
		{&scalars, SECTION_MAX_PROB, 0, &much, 4, -EBADMSG},
		{&scalars, SECTION_SUM_SQUARES, 0, &sum, 4, -EBADMSG},
		{&draws, SECTION_DRAWS, 0, &code, 1, -EBADMSG},
		{&draws, SECTION_DRAWS, 1, ff, 4, -EBADMSG},
		{&draws, SECTION_TAIL, 0, &minus_infinity, 4, -EBADMSG},                // then no draws may follow
		{&ratios, SECTION_DRAW_RATIOS, 0, &infinite, 4, -EBADMSG},
		{&spans, SECTION_SPANS, 0, &infinite, 4, -EBADMSG},
		{&spans, SECTION_SPANS, 0, ff, 4, -EBADMSG},                            // another NaN
		{&spans, SECTION_SPANS, 0, &sum, 4, 0},
		{&features, SECTION_FEATURE, 0, &width, 4, -EBADMSG},                   // 3 were written
		{&features, SECTION_FEATURE, 0, &no_width, 4, -EBADMSG},
		{&features, SECTION_FEATURE, 4, &infinite, 4, -EBADMSG},
		{&pooled, SECTION_FEATURE, 4, ff, 4, -EBADMSG},                         // NaN, but not throughout
	};
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
		if (decode_section(cases[i].q, cases[i].tag, cases[i].at, cases[i].data, cases[i].n) != cases[i].want)
			fail_msg("case %zu", i);
}

static void rows_that_break_the_rules_are_not_encoded(void **state)
{
	(void)state;
	struct error err;
	struct record *record = NULL;
	for (int i = 0; i < 9; i++) {
		struct record_rows *rows = rows_example();
		switch (i) {
		case 0: rows->ids[1] = rows->ids[0]; break;
		case 1: rows->ids[1] = 10; break;
		case 2: rows->logits[1] = NAN; break;
		case 3: rows->max_logit[0] = 3; break;
		case 4: rows->lse[1] = INFINITY; break;
		case 5: rows->own_logit[0] = NAN; break;
		case 6: rows->status[0] = 2; break;
		case 7: rows->query.last = -1; break;
		case 8: rows->logits[1] = 3; break;
		}
		if (record_encode(rows, &record, &err) != -EPROTO)
			fail_msg("case %d", i);
		assert_string_equal(err.field, "record");
		record_rows_free(rows);
	}
	struct record_rows *rows = rows_example();
	rows->logits[1] = -70000;
	assert_int_equal(record_encode(rows, &record, &err), -EOPNOTSUPP);
	assert_string_equal(err.field, "values");
	record_rows_free(rows);
	assert_null(record);
}

// Breaks one rule of a row of everything; false when there is no i-th.
static bool break_rule(struct record_rows *rows, int i)
{
	uint32_t drawn = rows->draw_starts[0];
	switch (i) {
	case 0: rows->max_prob[0] = 1.5f; return true;
	case 1: rows->sum_squares[0] = NAN; return true;
	case 2: rows->tail[0] = 0.5f; return true;
	case 3: rows->argmax[0] = 2; return true;              // not kept
	case 4: rows->n_top[0] = 7; return true;
	case 5: rows->n_top[0] = 0; return true;
	case 6: rows->dense[3] = INFINITY; return true;
	case 7: rows->max_logit[0] += 1; return true;
	case 8: rows->gathered[record_gather_at(rows, 2)] = 100; return true;
	case 9: rows->draw_counts[drawn]++; return true;
	case 10: rows->draw_counts[drawn] = 0; return true;
	case 11: rows->draw_ids[drawn] = 2; return true;
	case 12: rows->draw_ids[drawn] = rows->draw_ids[drawn + 1]; return true;
	case 13: rows->draw_ids[drawn] = 1000; return true;
	case 14: rows->draw_log_ratios[drawn] = NAN; return true;
	case 15: rows->tail[0] = -INFINITY; return true;       // yet ids were drawn
	case 16: rows->span_sums[0] = -INFINITY; return true;
	case 17: rows->features[1][0] = NAN; return true;
	case 18: rows->feature_widths[1] = 0; return true;
	case 19: free(rows->dense); rows->dense = NULL; return true;
	case 20: free(rows->draw_starts); rows->draw_starts = NULL; return true;
	default: return false;
	}
}

static void every_signal_that_breaks_a_rule_is_not_encoded(void **state)
{
	(void)state;
	bool more = true;
	for (int i = 0; more; i++) {
		struct query q;
		struct record *record = NULL;
		rows_everything(&q);
		struct record_rows *rows = rows_random(3, &q, 9, 500, false);
		more = break_rule(rows, i);
		if (record_encode(rows, &record, NULL) != (more ? -EPROTO : 0))
			fail_msg("rule %d", i);
		record_unref(record);
		record_rows_free(rows);
	}
}

static void an_id_of_the_top_k_is_not_drawn_from_outside_it(void **state)
{
	(void)state;
	struct query q = {.last = -1, .top_k = 1, .draws = {.n = 5, .tau = 1, .tail = true}};
	struct record_rows *rows = rows_random(3, &q, 1, 500, false);
	struct record *record = NULL;
	rows->draw_starts[1] = 1;
	rows->draw_ids[0] = rows->ids[0];
	rows->draw_counts[0] = 5;
	assert_int_equal(record_encode(rows, &record, NULL), -EPROTO);
	rows->draw_ids[0] = (rows->ids[0] + 1) % 500;
	assert_int_equal(record_encode(rows, &record, NULL), 0);
	record_unref(record);
	record_rows_free(rows);
}

static void numbers_beyond_the_format_are_refused_by_name(void **state)
{
	(void)state;
	struct error err;
	struct record *record = NULL;
	struct query features = {.last = -1, .n_features = 1, .feature_values = QUERY_FEATURE_F16};
	struct record_rows *rows = rows_random(3, &features, 2, 500, false);
	rows->features[0][1] = 70000;
	assert_int_equal(record_encode(rows, &record, &err), -EOPNOTSUPP);
	assert_string_equal(err.field, "feature_values");
	record_rows_free(rows);
	struct query q = {.last = -1, .top_k = 2, .values = QUERY_VALUES_U8};
	rows = rows_random(3, &q, 1, 500, false);
	rows->logits[0] = rows->max_logit[0] = 3e38f;
	rows->logits[1] = -3e38f;
	assert_int_equal(record_encode(rows, &record, &err), -EOPNOTSUPP);
	assert_string_equal(err.field, "values");
	record_rows_free(rows);
	q.values = QUERY_VALUES_F32;
	rows = rows_random(3, &q, 1, 500, false);
	rows->logits[0] = rows->max_logit[0] = 3e38f;
	rows->logits[1] = -3e38f;
	round_trip(rows);
}

static void what_no_record_can_hold_is_too_large(void **state)
{
	(void)state;
	uint32_t offsets[] = {0, UINT32_MAX};
	struct query dense = {.last = (1 << 30) - 1, .dense = true, .n_temperatures = 1, .temperatures = {1}};
	struct query gather = {.last = INT32_MAX - 1, .gather = {1, offsets, NULL}, .n_temperatures = 1, .temperatures = {1}};
	struct query_limits limits = {.vocab_size = 1 << 24, .width = UINT32_MAX};
	struct sequence s = {(uint32_t[]){1}, 1};
	struct content_id teacher = {{0}};
	struct record_rows *rows = NULL;
	assert_true(record_max_bytes(&dense, 1 << 30, &limits) > RECORD_MAX_BYTES);
	dense.n_features = 1;
	dense.last = INT32_MAX - 1;
	assert_true(record_max_bytes(&dense, 1 << 30, &limits) > RECORD_MAX_BYTES);
	dense.n_features = 0;
	assert_int_equal(record_rows_new(&teacher, 1 << 24, &s, &dense, &rows, NULL), -E2BIG);
	gather.gather.n_lists = 0;
	gather.top_k = 1 << 24;
	assert_true(record_max_bytes(&gather, 1, &limits) > RECORD_MAX_BYTES);
}

static double bytes_per_entry(const struct query *q, uint32_t n_tokens)
{
	struct record_rows *rows = rows_random(5, q, n_tokens, 151936, false);
	struct record *record = encode(rows);
	size_t n;
	(void)record_bytes(record, &n);
	double entries = q->top_k ? (double)n_tokens * q->top_k : rows->draw_starts[n_tokens];
	record_rows_free(rows);
	record_unref(record);
	return (double)n / entries;
}

static void top_k_entry_costs_little(void **state)
{
	(void)state;
	// Ids spread evenly are the worst case; a real row's lean to low ids.
	struct query f16 = {.last = -1, .top_k = 64, .values = QUERY_VALUES_F16}, u8 = f16;
	u8.values = QUERY_VALUES_U8;
	print_message("%.3f bytes per f16 top-k entry, %.3f per u8 one, all included\n", bytes_per_entry(&f16, 512), bytes_per_entry(&u8, 512));
	assert_true(bytes_per_entry(&f16, 512) <= 4.3);
	assert_true(bytes_per_entry(&u8, 512) <= 3.3);
}

// 50 draws from rows like a model's: p(rank) falls as a power of the rank, some rows sharp and some flat, ids anywhere in the vocabulary.
static void draw_rows_like_a_teacher(struct record_rows *rows, uint64_t *seed)
{
	enum { RANKS = 4096 };
	static double sums[RANKS];
	for (uint32_t row = 0; row < rows->n_rows; row++) {
		uint32_t drawn[50], at = rows->draw_starts[row];
		double power = 0.8 + (double)(next(seed) % 1000) / 1000 * 1.6, sum = 0;
		uint64_t base = next(seed);
		for (int i = 0; i < RANKS; i++)
			sums[i] = sum += pow(i + 1, -power);
		for (int i = 0; i < 50; i++) {
			double u = (double)next(seed) / (double)(UINT64_C(1) << 31) * sum;
			uint32_t rank = 0;
			while (rank < RANKS - 1 && sums[rank] < u)
				rank++;
			uint64_t hash = base + rank;
			drawn[i] = (uint32_t)(next(&hash) % rows->vocab_size);
			for (int j = i; j && drawn[j] < drawn[j - 1]; j--) {
				uint32_t swap = drawn[j];
				drawn[j] = drawn[j - 1];
				drawn[j - 1] = swap;
			}
		}
		assert_int_equal(record_rows_reserve_draws(rows, at + 50, NULL), 0);
		for (int i = 0; i < 50; i++) {
			if (i && drawn[i] == drawn[i - 1]) {
				rows->draw_counts[at - 1]++;
				continue;
			}
			rows->draw_ids[at] = drawn[i];
			rows->draw_counts[at++] = 1;
		}
		rows->draw_starts[row + 1] = at;
	}
}

static void drawn_id_costs_little(void **state)
{
	(void)state;
	struct query q = {.last = -1, .draws = {.n = 50, .tau = 1}};
	struct record_rows *rows = rows_random(5, &q, 512, 151936, false), *back;
	uint64_t seed = 3;
	draw_rows_like_a_teacher(rows, &seed);
	struct record *record = encode(rows);
	size_t position = record->sections_at, n_distinct = rows->draw_starts[512];
	while (record->bytes[position] != SECTION_DRAWS)
		position += SECTION_HEADER_BYTES + load_u32(record->bytes + position + 4, 0);
	double bytes = load_u32(record->bytes + position + 4, 0);
	print_message("%.3f bytes per distinct drawn id (%.1f a row)\n", bytes / (double)n_distinct, (double)n_distinct / 512);
	assert_true(bytes / (double)n_distinct <= 2.2);
	assert_int_equal(record_decode(record, &back, NULL), 0);
	assert_rows_equal(rows, back);
	record_rows_free(back);
	record_rows_free(rows);
	record_unref(record);
}

static void half_precision_is_exact_both_ways(void **state)
{
	(void)state;
	for (uint32_t h = 0; h < 0x10000; h++) {
		float v = half_to_float((uint16_t)h);
		if (isnan(v))
			assert_true((h & 0x7fff) > 0x7c00);
		else
			assert_int_equal(half_from_float(v), h);
	}
	assert_int_equal(half_from_float(1.0f + 0x1p-11f), 0x3c00);              // half way: to even
	assert_int_equal(half_from_float(1.0f + 0x1p-11f + 0x1p-20f), 0x3c01);
	assert_int_equal(half_from_float(1.0f + 0x3p-11f), 0x3c02);
	assert_int_equal(half_from_float(65519.99f), 0x7bff);
	assert_int_equal(half_from_float(65520.0f), 0x7c00);
	assert_int_equal(half_from_float(0x1p-25f), 0);                          // half the smallest: to even
	assert_int_equal(half_from_float(0x1.8p-25f), 1);
	assert_int_equal(half_from_float(-0x1p-24f), 0x8001);
	assert_int_equal(half_from_float(NAN) & 0x7c00, 0x7c00);
}

static void bfloat_is_the_upper_half_rounded(void **state)
{
	(void)state;
	for (uint32_t b = 0; b < 0x10000; b++) {
		float v = bfloat_to_float((uint16_t)b);
		if (isnan(v))
			assert_true((bfloat_from_float(v) & 0x7fff) > 0x7f80);
		else
			assert_int_equal(bfloat_from_float(v), b);
	}
	assert_int_equal(bfloat_from_float(1.0f + 0x1p-8f), 0x3f80);             // half way: to even
	assert_int_equal(bfloat_from_float(1.0f + 0x3p-8f), 0x3f82);
	assert_int_equal(bfloat_from_float(__FLT_MAX__), 0x7f80);
	assert_int_equal(bfloat_from_float(NAN), 0x7fc0);
}

static void golomb_streams_of_every_parameter_come_back(void **state)
{
	(void)state;
	const uint32_t ids[] = {0, 1, 2, 40, 1000, 1001, 65535, (1 << 20) - 1};
	uint32_t gaps[8], back[8], count = 0;
	uint64_t least = UINT64_MAX, best_bits;
	for (int i = 0; i < 8; i++)
		gaps[i] = i ? ids[i] - ids[i - 1] - 1 : ids[i];
	unsigned best = golomb_best(gaps, 8, &best_bits), first_best = 0;
	for (unsigned b = 0; b <= GOLOMB_MAX_PARAMETER; b++) {
		uint64_t bits = golomb_count_bits(300);
		for (int i = 0; i < 8; i++)
			for (uint32_t rest = gaps[i] + (1u << b), length = 0; rest; rest >>= 1, length++)
				bits += rest == 1 ? 2 * length + 1 - b : 0;
		if (bits < least) {
			least = bits;
			first_best = b;
		}
		size_t n = (size_t)(bits + 7) / 8;
		uint8_t *bytes = malloc(n);
		assert_non_null(bytes);
		struct golomb_writer w = golomb_writer_init(bytes, b);
		golomb_writer_append(&w, gaps, 8);
		golomb_writer_append_count(&w, 300);
		golomb_writer_done(&w);
		assert_ptr_equal(w.to, bytes + n);
		struct golomb_reader r = golomb_reader_init(bytes, n, b);
		assert_int_equal(golomb_reader_next_many(&r, 1 << 20, back, 8), 0);
		assert_int_equal(golomb_reader_next_count(&r, 300, &count), 0);
		assert_int_equal(count, 300);
		assert_int_equal(golomb_reader_done(&r), 0);
		assert_memory_equal(back, gaps, sizeof gaps);
		r = golomb_reader_init(bytes, n, b);
		assert_int_equal(golomb_reader_next_many(&r, gaps[7] - 1, back, 8), -EBADMSG);
		r = golomb_reader_init(bytes, n, b);
		assert_int_equal(golomb_reader_next_many(&r, 1 << 20, back, 8), 0);
		assert_int_equal(golomb_reader_next_count(&r, 299, &count), -EBADMSG);
		r = golomb_reader_init(bytes, n - 1, b);
		assert_true(golomb_reader_next_many(&r, 1 << 20, back, 8) || golomb_reader_next_count(&r, 300, &count) || golomb_reader_done(&r));
		free(bytes);
	}
	assert_int_equal(best, first_best);
	assert_int_equal(best_bits + golomb_count_bits(300), least);
}

static void counts_of_every_size_come_back(void **state)
{
	(void)state;
	for (uint32_t count = 1; count <= 70000; count += 1 + count / 50) {
		uint8_t bytes[8];
		uint32_t back = 0;
		struct golomb_writer w = golomb_writer_init(bytes, 0);
		golomb_writer_append_count(&w, count);
		golomb_writer_done(&w);
		assert_int_equal(w.to - bytes, (golomb_count_bits(count) + 7) / 8);
		struct golomb_reader r = golomb_reader_init(bytes, (size_t)(w.to - bytes), 0);
		assert_int_equal(golomb_reader_next_count(&r, count, &back), 0);
		assert_int_equal(back, count);
		assert_int_equal(golomb_reader_done(&r), 0);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(half_precision_is_exact_both_ways),
		cmocka_unit_test(bfloat_is_the_upper_half_rounded),
		cmocka_unit_test(golomb_streams_of_every_parameter_come_back),
		cmocka_unit_test(counts_of_every_size_come_back),
		cmocka_unit_test(comes_back_as_it_was),
		cmocka_unit_test(every_signal_comes_back_alone_and_with_all_others),
		cmocka_unit_test(spans_alone_take_a_header_and_four_bytes_each),
		cmocka_unit_test(u8_values_are_within_half_a_step),
		cmocka_unit_test(comes_back_for_every_k_and_vocabulary),
		cmocka_unit_test(f16_values_are_near_and_still_in_order),
		cmocka_unit_test(values_that_round_together_go_to_the_lower_id),
		cmocka_unit_test(examples_have_the_bytes_of_the_manual),
		cmocka_unit_test(every_truncation_and_extension_is_refused),
		cmocka_unit_test(every_flipped_bit_and_truncation_is_refused),
		cmocka_unit_test(mended_mutations_do_no_harm),
		cmocka_unit_test(hostile_sections_are_refused),
		cmocka_unit_test(short_form_is_restored_to_the_same_bytes),
		cmocka_unit_test(damaged_or_foreign_short_forms_are_refused),
		cmocka_unit_test(hostile_bytes_are_refused_by_name),
		cmocka_unit_test(rows_that_break_the_rules_are_not_encoded),
		cmocka_unit_test(every_signal_that_breaks_a_rule_is_not_encoded),
		cmocka_unit_test(an_id_of_the_top_k_is_not_drawn_from_outside_it),
		cmocka_unit_test(numbers_beyond_the_format_are_refused_by_name),
		cmocka_unit_test(what_no_record_can_hold_is_too_large),
		cmocka_unit_test(top_k_entry_costs_little),
		cmocka_unit_test(drawn_id_costs_little),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
