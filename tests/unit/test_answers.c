// SPDX-License-Identifier: Apache-2.0
// Shards as a run's teacher: answers in the order of asking, from wherever they lie, and never a number where there is none.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "common/error.h"
#include "common/provenance.h"
#include "daemon/worker/answers.h"
#include "tests/unit/part_oracle.h"
#include "tests/unit/store_fixture.h"

#define EACH 40                                // records of a directory

static atomic_bool stop;

struct fixture {
	char *directories[2];
	char list[600];
	struct answers *answers;
};

static void wide_query(const struct sequence *s, struct query *q)
{
	query_init(q);
	q->top_k = 24;
	q->temperatures[0] = 1;
	q->temperatures[1] = 2;
	q->n_temperatures = 2;
	oracle_check(q, s);
}

// What a run asks: fewer ids, one temperature, all rows that have a label.
static struct query asked(void)
{
	struct query q;
	query_init(&q);
	q.top_k = 8;
	q.last = -2;
	return q;
}

static void record_append(struct store *st, uint64_t n)
{
	struct sequence s;
	struct query q;
	oracle_sequence(n, &s);
	wide_query(&s, &q);
	struct record *r = oracle_answer(&s, &q);
	assert_int_equal(fixture_append(st, r, STORE_FLUSHED), 0);
	record_unref(r);
	sequence_done(&s);
}

// Sequences 0 .. EACH - 1 in one directory, EACH / 2 .. 3 EACH / 2 - 1 in the other.
static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof *f);
	for (uint64_t i = 0; i < 2; i++) {
		f->directories[i] = fixture_directory();
		struct store *st = fixture_open(f->directories[i], 16384);
		for (uint64_t n = 0; n < EACH; n++)
			record_append(st, n + i * EACH / 2);
		store_close(st);
	}
	snprintf(f->list, sizeof f->list, "%s,%s", f->directories[0], f->directories[1]);
	atomic_store(&stop, false);
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;
	answers_close(f->answers);
	fixture_remove(f->directories[0]);
	fixture_remove(f->directories[1]);
	free(f);
	return 0;
}

static int fixture_answers(struct fixture *f, const char *teacher_id, struct error *err)
{
	struct answers_options o = {.shards = f->list, .teacher_id = teacher_id, .stop = &stop};
	return answers_open(&o, &f->answers, err);
}

static void expect_rows(struct record_rows *rows, uint64_t n)
{
	struct sequence s;
	struct query q = asked();
	struct record *got = NULL;
	size_t n_got, n_told;
	oracle_sequence(n, &s);
	oracle_check(&q, &s);
	struct record *told = oracle_answer(&s, &q);
	assert_int_equal(record_encode(rows, &got, NULL), 0);
	const void *a = record_bytes(got, &n_got), *b = record_bytes(told, &n_told);
	assert_int_equal(n_got, n_told);
	assert_memory_equal(a, b, n_told);
	record_unref(got);
	record_unref(told);
	record_rows_free(rows);
	sequence_done(&s);
}

static void submit(struct answers *a, uint64_t first, uint64_t step, uint32_t n)
{
	struct sequence sequences[8];
	struct query q = asked();
	for (uint32_t i = 0; i < n; i++)
		oracle_sequence(first + i * step, &sequences[i]);
	assert_int_equal(answers_submit(a, &q, sequences, NULL, n, NULL), 0);
	for (uint32_t i = 0; i < n; i++)
		sequence_done(&sequences[i]);
}

static void answers_come_in_the_order_of_asking_from_every_directory(void **state)
{
	struct fixture *f = *state;
	struct record_rows *rows[8];
	assert_int_equal(fixture_answers(f, NULL, NULL), 0);
	assert_int_equal(answers_info(f->answers)->vocab_size, ORACLE_VOCABULARY);
	assert_memory_equal(&answers_info(f->answers)->teacher, &oracle_teacher, sizeof oracle_teacher);
	for (uint64_t i = 0; i < 96; i++)              // more than are joined at once, of changing sizes
		submit(f->answers, i % 40, 2, 1 + i % 8);
	for (uint64_t i = 0; i < 96; i++) {
		assert_int_equal(answers_next(f->answers, rows, NULL), 0);
		for (uint64_t k = 0; k < 1 + i % 8; k++)
			expect_rows(rows[k], i % 40 + 2 * k);
	}
	struct answers_stats stats;
	answers_stats(f->answers, &stats);
	assert_int_equal(stats.n_lost, 0);
	assert_int_equal(stats.n_answers, 12 * 36);
	assert_int_equal(stats.n_cached, 12 * 36);
}

static void what_is_not_there_is_masked_and_counted(void **state)
{
	struct fixture *f = *state;
	struct record_rows *rows[3];
	struct answers_stats stats;
	assert_int_equal(fixture_answers(f, NULL, NULL), 0);
	submit(f->answers, 3, 1000, 3);                // of 3, 1003, 2003 only the first is there
	assert_int_equal(answers_next(f->answers, rows, NULL), 0);
	expect_rows(rows[0], 3);
	for (int i = 1; i < 3; i++) {
		assert_int_equal(rows[i]->n_rows, rows[i]->sequence.n_tokens - 1);
		for (uint32_t r = 0; r < rows[i]->n_rows; r++)
			assert_int_not_equal(rows[i]->status[r], ROW_OK);
		record_rows_free(rows[i]);
	}
	answers_stats(f->answers, &stats);
	assert_int_equal(stats.n_lost, 2);
	assert_int_equal(stats.n_cached, 1);
}

static void what_is_there_can_be_counted_without_asking(void **state)
{
	struct fixture *f = *state;
	struct sequence sequences[70];
	bool has[70];
	uint32_t missing = 0;
	struct query q = asked();
	for (uint32_t i = 0; i < 70; i++)
		oracle_sequence(i, &sequences[i]);
	assert_int_equal(fixture_answers(f, NULL, NULL), 0);
	assert_int_equal(answers_count(f->answers, &q, sequences, 70, has, &missing, NULL), 0);
	assert_int_equal(missing, 10);
	for (uint32_t i = 0; i < 70; i++)
		assert_int_equal(has[i], i < 60);
	q.top_k = 25;                                  // more than any record holds
	assert_int_equal(answers_count(f->answers, &q, sequences, 70, has, &missing, NULL), 0);
	assert_int_equal(missing, 70);
	struct query exact;                            // the very question that was stored
	query_init(&exact);
	exact.top_k = 24;
	exact.temperatures[0] = 1;
	exact.temperatures[1] = 2;
	exact.n_temperatures = 2;
	assert_int_equal(answers_count(f->answers, &exact, sequences, 70, has, &missing, NULL), 0);
	assert_int_equal(missing, 10);
	for (uint32_t i = 0; i < 70; i++)
		sequence_done(&sequences[i]);
}

static int told_count(void *arg, const struct sequence *s, struct error *err)
{
	uint64_t *sums = arg;
	(void)err;
	sums[0]++;
	sums[1] += s->n_tokens;
	return sums[0] == sums[2] ? error_set(err, ERROR_TOO_LARGE, NULL, "enough") : 0;
}

static void a_survey_tells_every_record_that_holds_the_answer(void **state)
{
	struct fixture *f = *state;
	struct answers_survey v;
	uint64_t sums[3] = {0};
	struct query q = asked();
	char *other = fixture_directory();
	struct store *st = fixture_open(other, 0);
	for (uint64_t n = 0; n < 3; n++) {             // another teacher's, unlike those of the fixture
		struct record *r = fixture_record(n, 9, 2);
		assert_int_equal(fixture_append(st, r, STORE_FLUSHED), 0);
		record_unref(r);
	}
	store_close(st);
	size_t n = strlen(f->list);
	snprintf(f->list + n, sizeof f->list - n, ",%s", other);
	char hex[CONTENT_ID_HEX];
	struct error err = {0};
	content_id_to_hex(&oracle_teacher, hex);
	assert_int_equal(fixture_answers(f, NULL, &err), error_errno(ERROR_INVALID));
	assert_string_equal(err.field, "teacher-id");
	assert_non_null(strstr(err.message, hex));
	assert_int_equal(fixture_answers(f, hex, NULL), 0);
	assert_int_equal(answers_survey(f->answers, &q, ORACLE_TOKENS, told_count, sums, &v, NULL), 0);
	assert_int_equal(v.n_told, 2 * EACH);
	assert_int_equal(sums[0], 2 * EACH);
	assert_int_equal(v.n_other_teacher, 3);
	assert_int_equal(v.n_damaged + v.n_unfit + v.n_too_short, 0);
	query_done(&v.unfit);
	assert_int_equal(answers_survey(f->answers, &q, 2, told_count, sums, &v, NULL), 0);
	assert_int_equal(v.n_told, 0);
	assert_int_equal(v.n_too_long, 2 * EACH);
	q.top_k = 25;
	assert_int_equal(answers_survey(f->answers, &q, ORACLE_TOKENS, told_count, sums, &v, NULL), 0);
	assert_int_equal(v.n_unfit, 2 * EACH);
	assert_int_equal(v.unfit.top_k, 24);
	query_done(&v.unfit);
	sums[0] = 0, sums[2] = 5;                      // whoever is told may end it
	q.top_k = 8;
	assert_int_equal(answers_survey(f->answers, &q, ORACLE_TOKENS, told_count, sums, &v, NULL), error_errno(ERROR_TOO_LARGE));
	assert_int_equal(sums[0], 5);
	fixture_remove(other);
}

static void a_note_names_the_tokenizer(void **state)
{
	struct fixture *f = *state;
	struct provenance p = {.weights = {{1}}, .tokenizer = {{2}}, .numeric = "f32", .codec = PROVENANCE_CODEC, .name = "one"};
	struct error err = {0};
	p.fingerprint = provenance_fingerprint(&p);
	struct store *st = fixture_open(f->directories[1], 0);
	assert_int_equal(store_describe(st, &p, NULL), 0);
	store_close(st);
	assert_int_equal(fixture_answers(f, NULL, &err), error_errno(ERROR_NOT_FOUND));    // the only one named has no record
	char hex[CONTENT_ID_HEX];
	content_id_to_hex(&oracle_teacher, hex);
	answers_close(f->answers);
	f->answers = NULL;
	assert_int_equal(fixture_answers(f, hex, NULL), 0);
	assert_false(answers_info(f->answers)->described);
}

static void closing_and_stopping_do_not_wait_for_what_was_asked(void **state)
{
	struct fixture *f = *state;
	struct record_rows *rows[8];
	struct error err = {0};
	assert_int_equal(fixture_answers(f, NULL, NULL), 0);
	for (uint64_t i = 0; i < 200; i++)
		submit(f->answers, i % 40, 1, 8);
	atomic_store(&stop, true);
	int r = answers_next(f->answers, rows, &err);
	if (r == 0)                                    // it may have been ready
		for (int i = 0; i < 8; i++)
			record_rows_free(rows[i]);
	else
		assert_int_equal(r, error_errno(ERROR_CANCELLED));
}

static void bad_directories_are_refused(void **state)
{
	struct fixture *f = *state;
	struct error err = {0};
	static const char *const lists[] = {"", ",", "/nowhere"};
	for (int i = 0; i < 3; i++) {
		snprintf(f->list, sizeof f->list, "%s", lists[i]);
		assert_true(fixture_answers(f, NULL, &err) < 0);
		assert_string_equal(err.field, "teacher");
		assert_null(f->answers);
	}
	char *empty = fixture_directory();
	snprintf(f->list, sizeof f->list, "%s", empty);
	assert_int_equal(fixture_answers(f, NULL, &err), error_errno(ERROR_NOT_FOUND));
	fixture_remove(empty);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(answers_come_in_the_order_of_asking_from_every_directory, setup, teardown),
		cmocka_unit_test_setup_teardown(what_is_not_there_is_masked_and_counted, setup, teardown),
		cmocka_unit_test_setup_teardown(what_is_there_can_be_counted_without_asking, setup, teardown),
		cmocka_unit_test_setup_teardown(a_survey_tells_every_record_that_holds_the_answer, setup, teardown),
		cmocka_unit_test_setup_teardown(a_note_names_the_tokenizer, setup, teardown),
		cmocka_unit_test_setup_teardown(closing_and_stopping_do_not_wait_for_what_was_asked, setup, teardown),
		cmocka_unit_test_setup_teardown(bad_directories_are_refused, setup, teardown),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
