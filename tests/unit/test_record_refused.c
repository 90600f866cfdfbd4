// SPDX-License-Identifier: Apache-2.0
// What is no record is refused, by name, and what no record can hold is not encoded.
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

#include "common/error.h"
#include "common/record_layout.h"
#include "common/record_short.h"
#include "tests/unit/record_golden.h"
#include "tests/unit/rows_example.h"

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
		struct record *record = rows_encode(rows);
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
	struct record *record = rows_encode(rows);
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
	return (struct record_question){.teacher = &rows->teacher, .key = record_key(record), .sequence = &rows->sequence,
		.query = &rows->query, .vocab_size = rows->vocab_size};
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
		struct record *record = rows_encode(rows), *back = NULL;
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
	struct record *record = rows_encode(rows), *other = rows_encode(others), *back = NULL;
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
	struct record *record = rows_encode(rows);
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
	const float above = 25, tail = 0.5f, minus_infinity = -INFINITY, infinite = INFINITY, sum = -1, nothing = 0,
		much = 1.5f, range = -1;
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
	size_t n;
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
	record = rows_encode(rows);                 // as f32 they fit
	const void *bytes = record_bytes(record, &n);
	assert_int_equal(decode_bytes(bytes, n), 0);
	record_unref(record);
	record_rows_free(rows);
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

int main(void)
{
	const struct CMUnitTest tests[] = {
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
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
