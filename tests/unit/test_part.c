// SPDX-License-Identifier: Apache-2.0
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/error.h"
#include "daemon/store/part.h"
#include "tests/unit/part_oracle.h"

static struct sequence sequence;

static bool same_bytes(const struct record *a, const struct record *b)
{
	size_t n, k;
	const void *x = record_bytes(a, &n), *y = record_bytes(b, &k);
	return n == k && memcmp(x, y, n) == 0;
}

// What is cut out must be what the teacher says when asked that. Returns whether anything was.
static bool try_part(const struct record *stored, const struct query *asked)
{
	struct record *part = NULL, *told;
	int rc = part_extract(stored, asked, &part, NULL);
	if (rc == 0) {
		told = oracle_answer(&sequence, asked);
		if (!same_bytes(part, told))
			fail_msg("cut out: top %u of %u, values %d of %d, mass %g", asked->top_k, record_query(stored)->top_k,
				 (int)asked->values, (int)record_query(stored)->values, (double)asked->top_mass);
		assert_memory_equal(record_key(part), record_key(told), sizeof(struct content_id));
		record_unref(told);
		record_unref(part);
		assert_true(part_shape_covers(part_shape(record_query(stored)), part_shape(asked)));
	} else {
		assert_int_equal(rc, -ENOENT);
	}
	return rc == 0;
}

static uint32_t below(uint64_t *state, uint32_t n)
{
	return (uint32_t)(oracle_random(state) % n);
}

// Drops some of the lists of gathered ids, and some ids of those that stay.
static void less_gathered(uint64_t *random, const struct query *wide, struct query *less)
{
	const struct id_lists *from = &wide->gather;
	struct id_lists *to = &less->gather;
	uint32_t first = from->n_lists > 1 ? (uint32_t)(less->first - wide->first) : 0, at = 0;
	to->n_lists = from->n_lists > 1 ? query_rows(less) : from->n_lists;
	for (uint32_t i = 0; i < to->n_lists; i++) {
		uint32_t begin = from->offsets[first + i], end = from->offsets[first + i + 1];
		to->offsets[i] = at;
		for (uint32_t k = begin; k < end; k++)
			if (k == begin || below(random, 2))
				to->ids[at++] = from->ids[k];
	}
	if (to->n_lists)
		to->offsets[to->n_lists] = at;
}

// The same question, asking for less.
static void less_random(uint64_t *random, const struct query *wide, struct query *ret)
{
	struct query q;
	assert_int_equal(query_copy(&q, wide), 0);
	uint32_t n_kept = 0;
	for (uint32_t i = 0; i < q.n_temperatures; i++)
		if (below(random, 2))
			q.temperatures[n_kept++] = q.temperatures[i];
	q.n_temperatures = n_kept ? n_kept : q.n_temperatures;
	q.first += (int32_t)below(random, 3);
	q.last -= (int32_t)below(random, 3);
	less_gathered(random, wide, &q);
	q.own &= below(random, 2);
	q.entropy &= below(random, 2);
	q.argmax &= below(random, 2);
	q.dense &= below(random, 2);
	if (q.top_k > 1 && !q.tail && !q.draws.tail && below(random, 2))
		q.top_k = 1 + below(random, q.top_k);
	if (below(random, 3) == 0)
		q.draws = (struct query_draws){.tau = 1};
	q.n_spans -= q.n_spans ? below(random, q.n_spans) : 0;
	if (q.pooling == QUERY_POOLING_NONE && q.n_features > 1)
		q.n_features -= below(random, q.n_features);
	if (q.values == QUERY_VALUES_F32)
		q.values = (enum query_values)below(random, 3);
	if (!query_has_rows(&q) && !q.n_spans && !q.n_features)
		q.n_temperatures = 1, q.temperatures[0] = wide->temperatures[0];
	oracle_check(&q, &sequence);
	*ret = q;
}

static void what_is_cut_out_is_what_the_teacher_says(void **state)
{
	(void)state;
	uint64_t random = 1;
	unsigned n_cut = 0;
	for (unsigned i = 0; i < 400; i++) {
		struct query wide, narrow;
		oracle_query(&random, &sequence, true, &wide);
		struct record *stored = oracle_answer(&sequence, &wide);
		assert_true(try_part(stored, &wide));                  // itself
		for (unsigned k = 0; k < 20; k++) {
			if (k % 2)
				oracle_query(&random, &sequence, k % 4 == 1, &narrow);
			else
				less_random(&random, &wide, &narrow);
			bool covers = part_covers(&wide, &narrow);
			if (covers)
				assert_true(part_shape_covers(part_shape(&wide), part_shape(&narrow)));
			bool cut = try_part(stored, &narrow);
			assert_true(covers || !cut);
			n_cut += cut;
			query_done(&narrow);
		}
		record_unref(stored);
		query_done(&wide);
	}
	print_message("%u of 8000 questions were answered by another's record\n", n_cut);
	assert_true(n_cut > 2000);
}

static void base_query(struct query *q)
{
	query_init(q);
	q->top_k = 64;
	q->n_temperatures = 3;
	q->temperatures[0] = 1;
	q->temperatures[1] = 2;
	q->temperatures[2] = 4;
	q->own = q->entropy = true;
}

// Every way of asking for less, each alone and in each format.
static void every_kind_of_less_is_served(void **state)
{
	(void)state;
	for (enum query_values values = QUERY_VALUES_F32; values <= QUERY_VALUES_U8; values++) {
		for (unsigned kind = 0; kind < 8; kind++) {
			struct query wide, less;
			base_query(&wide);
			base_query(&less);
			wide.values = less.values = values;
			switch (kind) {
			case 0: less.top_k = values == QUERY_VALUES_U8 ? 64 : 1; break;
			case 1: less.n_temperatures = 1; less.temperatures[0] = 2; break;
			case 2: less.first = 3; less.last = 7; break;
			case 3: less.own = false; break;
			case 4: less.entropy = false; break;
			case 5: less.top_k = 0; break;
			case 6: less.last = -2; break;
			default: less.top_k = 0; less.own = less.entropy = false; less.n_temperatures = 1; break;
			}
			oracle_check(&wide, &sequence);
			oracle_check(&less, &sequence);
			struct record *stored = oracle_answer(&sequence, &wide);
			if (kind == 0 && values == QUERY_VALUES_F16)       // may be too close to call
				try_part(stored, &less);
			else
				assert_true(try_part(stored, &less));
			record_unref(stored);
			query_done(&wide);
			query_done(&less);
		}
	}
}

static void gathered_ids_come_from_wherever_they_are(void **state)
{
	(void)state;
	struct query wide, less;
	base_query(&wide);
	wide.dense = true;
	oracle_check(&wide, &sequence);
	uint32_t ids[] = {5, 299, 5, 17}, offsets[] = {0, 4};
	query_init(&less);
	less.gather = (struct id_lists){1, offsets, ids};
	oracle_check(&less, &sequence);
	struct record *stored = oracle_answer(&sequence, &wide);
	assert_true(try_part(stored, &less));
	record_unref(stored);
	wide.dense = false;
	wide.top_k = 0;
	wide.gather = (struct id_lists){1, (uint32_t[]){0, 3}, (uint32_t[]){17, 299, 5}};
	stored = oracle_answer(&sequence, &wide);
	assert_true(try_part(stored, &less));
	ids[2] = 6;                                                      // not among them
	assert_false(try_part(stored, &less));
	record_unref(stored);
}

// More than the record has is never served.
static void more_is_refused(void **state)
{
	(void)state;
	for (unsigned kind = 0; kind < 12; kind++) {
		struct query stored, more;
		base_query(&stored);
		base_query(&more);
		stored.first = 2;
		more.first = 2;
		switch (kind) {
		case 0: more.top_k = 65; break;
		case 1: more.temperatures[2] = 8; break;
		case 2: more.first = 1; break;
		case 3: more.max_prob = true; break;
		case 4: more.tail = true; break;
		case 5: more.draws = (struct query_draws){10, 1, 1, false}; break;
		case 6: more.dense = true; break;
		case 7: more.top_mass = 0.5f; break;
		case 8: stored.draws = more.draws = (struct query_draws){10, 1, 1, false}; more.draws.seed = 2; break;
		case 9: stored.tail = more.tail = true; more.top_k = 32; break;
		case 10: stored.values = QUERY_VALUES_F16; break;
		default: stored.values = more.values = QUERY_VALUES_U8; more.top_k = 32; break;
		}
		oracle_check(&stored, &sequence);
		oracle_check(&more, &sequence);
		struct record *record = oracle_answer(&sequence, &stored);
		assert_false(try_part(record, &more));
		record_unref(record);
	}
}

static void a_row_that_is_not_finite_is_not_cut(void **state)
{
	(void)state;
	struct query wide, less;
	struct record_rows *rows;
	struct record *stored, *part;
	base_query(&wide);
	base_query(&less);
	less.first = 4;
	oracle_check(&wide, &sequence);
	oracle_check(&less, &sequence);
	struct record *whole = oracle_answer(&sequence, &wide);
	assert_int_equal(record_decode(whole, &rows, NULL), 0);
	rows->status[5] = ROW_NOT_FINITE;
	assert_int_equal(record_encode(rows, &stored, NULL), 0);
	assert_int_equal(part_extract(stored, &less, &part, NULL), -ENOENT);
	record_unref(stored);
	record_unref(whole);
	record_rows_free(rows);
}

static void a_trainer_takes_rounded_values_as_they_stand(void **state)
{
	(void)state;
	struct query wide, less;
	struct record_rows *rows, *cut;
	struct record *stored, *part;
	query_init(&wide);
	wide.top_k = 8;
	wide.values = QUERY_VALUES_F16;
	less = wide;
	less.top_k = 4;
	less.first = 1;
	oracle_check(&wide, &sequence);
	oracle_check(&less, &sequence);
	struct record *whole = oracle_answer(&sequence, &wide);
	assert_int_equal(record_decode(whole, &rows, NULL), 0);
	for (uint32_t j = 0; j < 8; j++)               // of row 6 all but the first are equal: nobody can tell which are the four largest
		rows->ids[6 * 8 + j] = 10 * j, rows->logits[6 * 8 + j] = rows->max_logit[6] - (j ? 3 : 0);
	rows->status[3] = ROW_NOT_FINITE;
	assert_int_equal(record_encode(rows, &stored, NULL), 0);
	assert_int_equal(part_extract(stored, &less, &part, NULL), -ENOENT);
	assert_int_equal(part_extract_rounded(stored, &less, &part, NULL), 0);
	assert_int_equal(record_decode(part, &cut, NULL), 0);
	for (uint32_t r = 0; r < cut->n_rows; r++) {
		assert_int_equal(cut->status[r], r == 2 ? ROW_NOT_FINITE : ROW_OK);
		for (uint32_t j = 0; j < 4 && r != 2; j++) {
			assert_int_equal(cut->ids[r * 4 + j], rows->ids[(r + 1) * 8 + j]);
			assert_float_equal(cut->logits[r * 4 + j], rows->logits[(r + 1) * 8 + j], 1e-3f * (1 + rows->max_logit[r + 1]));
		}
	}
	less.top_k = 9;
	assert_int_equal(part_extract_rounded(stored, &less, &part, NULL), -ENOENT);
	record_rows_free(cut);
	record_rows_free(rows);
	record_unref(part);
	record_unref(stored);
	record_unref(whole);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_is_cut_out_is_what_the_teacher_says),
		cmocka_unit_test(every_kind_of_less_is_served),
		cmocka_unit_test(gathered_ids_come_from_wherever_they_are),
		cmocka_unit_test(more_is_refused),
		cmocka_unit_test(a_row_that_is_not_finite_is_not_cut),
		cmocka_unit_test(a_trainer_takes_rounded_values_as_they_stand),
	};
	oracle_sequence(3, &sequence);
	int rc = cmocka_run_group_tests(tests, NULL, NULL);
	sequence_done(&sequence);
	return rc;
}
