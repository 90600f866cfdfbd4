// SPDX-License-Identifier: Apache-2.0
// The reading side of a store: answers cut out of larger ones, many at once, and a reader beside a writer.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/error.h"
#include "tests/unit/part_oracle.h"
#include "tests/unit/store_fixture.h"

static void wide_query(const struct sequence *s, struct query *q)
{
	query_init(q);
	q->top_k = 64;
	q->own = q->entropy = true;
	q->temperatures[0] = 1;
	q->temperatures[1] = 2;
	q->n_temperatures = 2;
	oracle_check(q, s);
}

static void narrow_query(const struct sequence *s, struct query *q)
{
	query_init(q);
	q->top_k = 8;
	q->first = 2;
	oracle_check(q, s);
}

static int expect_answer(struct store *st, const struct sequence *s, const struct query *q)
{
	struct record *found, *told = oracle_answer(s, q);
	int rc = store_answer(st, &(struct store_question){&oracle_teacher, s, q}, &found, NULL);
	if (rc == 0) {
		size_t n, k;
		const void *a = record_bytes(found, &n), *b = record_bytes(told, &k);
		assert_int_equal(n, k);
		assert_memory_equal(a, b, n);
		record_unref(found);
	}
	record_unref(told);
	return rc;
}

static void append_wide(struct store *st, uint64_t n, enum store_durability durability)
{
	struct sequence s;
	struct query q;
	oracle_sequence(n, &s);
	wide_query(&s, &q);
	struct record *r = oracle_answer(&s, &q);
	assert_int_equal(fixture_append(st, r, durability), 0);
	record_unref(r);
	sequence_done(&s);
}

static void expect_narrow(struct store *st, uint64_t n, int wanted)
{
	struct sequence s;
	struct query q;
	oracle_sequence(n, &s);
	narrow_query(&s, &q);
	assert_int_equal(expect_answer(st, &s, &q), wanted);
	sequence_done(&s);
}

static void a_smaller_question_is_answered_by_a_larger_record(void **state)
{
	(void)state;
	char *d = fixture_directory();
	struct store *st = fixture_open(d, 32768);
	for (uint64_t n = 0; n < 40; n++)
		append_wide(st, n, STORE_FLUSHED);
	assert_true(fixture_stats(st).n_shards >= 3);
	for (int round = 0; round < 3; round++) {
		for (uint64_t n = 0; n < 40; n++)
			expect_narrow(st, n, 0);
		expect_narrow(st, 40, -ENOENT);
		assert_int_equal(fixture_stats(st).n_contained, 40);
		assert_int_equal(fixture_stats(st).n_hits, 40);
		assert_int_equal(fixture_stats(st).n_misses, 1);
		store_close(st);
		if (round == 1)                  // the second time without index files
			for (int i = 0; i < 2; i++)
				assert_int_equal(fixture_unlink(d, i ? "00000001.index" : "00000000.index"), 0);
		st = round ? fixture_open_reader(d) : fixture_open(d, 32768);
	}
	store_close(st);
	fixture_remove(d);
}

static void of_many_answers_about_one_sequence_one_that_fits_is_found(void **state)
{
	(void)state;
	char *d = fixture_directory();
	struct store *st = fixture_open(d, 0);
	struct sequence s;
	struct query q;
	oracle_sequence(1, &s);
	for (uint32_t k = 1; k <= 12; k++) {          // only the last covers the question
		wide_query(&s, &q);
		q.top_k = k;
		struct record *r = oracle_answer(&s, &q);
		assert_int_equal(fixture_append(st, r, STORE_FLUSHED), 0);
		record_unref(r);
	}
	query_init(&q);
	q.top_k = 12;
	oracle_check(&q, &s);
	assert_int_equal(expect_answer(st, &s, &q), 0);
	q.top_k = 13;
	assert_int_equal(expect_answer(st, &s, &q), -ENOENT);
	sequence_done(&s);
	store_close(st);
	fixture_remove(d);
}

static void another_teachers_answers_do_not_serve(void **state)
{
	(void)state;
	char *d = fixture_directory();
	struct store *st = fixture_open(d, 0);
	struct sequence s;
	struct query q;
	struct record *found;
	struct content_id other = {.bytes = {8}};
	append_wide(st, 1, STORE_FLUSHED);
	oracle_sequence(1, &s);
	narrow_query(&s, &q);
	assert_int_equal(store_answer(st, &(struct store_question){&other, &s, &q}, &found, NULL), -ENOENT);
	assert_int_equal(expect_answer(st, &s, &q), 0);
	sequence_done(&s);
	store_close(st);
	fixture_remove(d);
}

#define N_MANY 300

static void many_answers_come_at_once_in_any_order(void **state)
{
	(void)state;
	char *d = fixture_directory();
	struct store *st = fixture_open(d, 65536);
	static struct sequence sequences[N_MANY];
	static struct query queries[N_MANY];
	static struct store_question questions[N_MANY];
	static struct record *found[N_MANY];
	for (unsigned n = 0; n < N_MANY; n++)
		if (n % 10)
			append_wide(st, n, STORE_NONE);
	for (unsigned i = 0; i < N_MANY; i++) {
		unsigned n = i * 7 % N_MANY;
		oracle_sequence(n, &sequences[i]);
		if (n % 3)
			wide_query(&sequences[i], &queries[i]);
		else
			narrow_query(&sequences[i], &queries[i]);
		questions[i] = (struct store_question){&oracle_teacher, &sequences[i], &queries[i]};
	}
	static const unsigned depths[] = {1, 7, 64, 1000};
	for (unsigned k = 0; k < 4; k++) {
		struct store_reader *r;
		struct store_stats before = fixture_stats(st);
		assert_int_equal(store_reader_open(st, depths[k], &r, NULL), 0);
		assert_int_equal(store_reader_answer(r, questions, N_MANY, found, NULL), 0);
		for (unsigned i = 0; i < N_MANY; i++) {
			if (i * 7 % N_MANY % 10 == 0) {
				assert_null(found[i]);
				continue;
			}
			size_t n, m;
			struct record *told = oracle_answer(&sequences[i], &queries[i]);
			assert_non_null(found[i]);
			const void *a = record_bytes(found[i], &n), *b = record_bytes(told, &m);
			assert_int_equal(n, m);
			assert_memory_equal(a, b, n);
			record_unref(told);
			record_unref(found[i]);
		}
		assert_int_equal(fixture_stats(st).n_hits - before.n_hits, N_MANY - N_MANY / 10);
		assert_int_equal(fixture_stats(st).n_misses - before.n_misses, N_MANY / 10);
		store_reader_close(r);
	}
	for (unsigned i = 0; i < N_MANY; i++)
		sequence_done(&sequences[i]);
	store_close(st);
	fixture_remove(d);
}

static void damage_met_by_many_is_none_for_the_others(void **state)
{
	(void)state;
	char *d = fixture_directory();
	struct store *st = fixture_open(d, 0);
	struct sequence sequences[8];
	struct query queries[8];
	struct store_question questions[8];
	struct record *found[8];
	for (unsigned n = 0; n < 8; n++) {
		append_wide(st, n, STORE_DURABLE);
		oracle_sequence(n, &sequences[n]);
		wide_query(&sequences[n], &queries[n]);
		questions[n] = (struct store_question){&oracle_teacher, &sequences[n], &queries[n]};
	}
	struct store_reader *r;
	fixture_flip(d, "00000000.shard", 8 * (4096 + 56 + 300));            // in the first record
	assert_int_equal(store_reader_open(st, 4, &r, NULL), 0);
	assert_int_equal(store_reader_answer(r, questions, 8, found, NULL), 0);
	assert_null(found[0]);
	for (unsigned n = 1; n < 8; n++)
		assert_non_null(found[n]);
	assert_int_equal(fixture_stats(st).n_corrupt, 1);
	for (unsigned n = 0; n < 8; n++) {
		record_unref(found[n]);
		sequence_done(&sequences[n]);
	}
	store_reader_close(r);
	store_close(st);
	fixture_remove(d);
}

struct writing { char *directory; unsigned n; };

static void *write_all(void *arg)
{
	struct writing *w = arg;
	struct store *st = fixture_open(w->directory, 65536);
	for (unsigned i = 0; i < w->n; i++) {
		struct record *r = fixture_record_sized(i);
		(void)fixture_append(st, r, i % 4 ? STORE_FLUSHED : STORE_DURABLE);
		record_unref(r);
	}
	store_close(st);
	return NULL;
}

// Whatever the writer has acknowledged a reader finds a moment later, and never anything that is not as written.
static void a_reader_keeps_up_with_a_writer(void **state)
{
	(void)state;
	struct writing w = {fixture_directory(), 600};
	pthread_t thread;
	struct store *first = fixture_open(w.directory, 65536);
	store_close(first);
	struct store *readers[2] = {fixture_open_reader(w.directory), NULL};
	assert_int_equal(pthread_create(&thread, NULL, write_all, &w), 0);
	unsigned n_waits = 0;
	for (unsigned i = 0; i < w.n; i++) {
		if (i == w.n / 4)
			readers[1] = fixture_open_reader(w.directory);       // opened while it is written
		struct record *r = fixture_record_sized(i);
		for (unsigned k = 0; k < 2; k++)
			for (int rc = -ENOENT; readers[k] && rc != 0;) {
				rc = fixture_expect(readers[k], r);
				assert_true(rc == 0 || rc == -ENOENT);
				if (rc) {
					usleep(5000);
					assert_true(n_waits++ < 12000);
				}
			}
		record_unref(r);
	}
	pthread_join(thread, NULL);
	for (unsigned k = 0; k < 2; k++) {
		assert_int_equal(fixture_stats(readers[k]).n_corrupt, 0);
		store_close(readers[k]);
	}
	fixture_remove(w.directory);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_smaller_question_is_answered_by_a_larger_record),
		cmocka_unit_test(of_many_answers_about_one_sequence_one_that_fits_is_found),
		cmocka_unit_test(another_teachers_answers_do_not_serve),
		cmocka_unit_test(many_answers_come_at_once_in_any_order),
		cmocka_unit_test(damage_met_by_many_is_none_for_the_others),
		cmocka_unit_test(a_reader_keeps_up_with_a_writer),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
