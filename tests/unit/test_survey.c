// SPDX-License-Identifier: Apache-2.0
// What the operator's tools stand on: reading ahead, going through every byte of a store, finding what it could do without.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/error.h"
#include "daemon/store/stream.h"
#include "daemon/store/surplus.h"
#include "daemon/store/survey.h"
#include "tests/unit/part_oracle.h"
#include "tests/unit/store_fixture.h"

// ---- stream

static uint64_t rng_state = 9;

static uint32_t rng(void)
{
	rng_state = rng_state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
	return (uint32_t)(rng_state >> 33);
}

static uint8_t byte_at(uint64_t i)
{
	return (uint8_t)(i * 31 + (i >> 8) * 7 + (i >> 20));
}

static void expect_view(struct stream *s, uint64_t offset, size_t n)
{
	const uint8_t *p;
	assert_int_equal(stream_view(s, offset, n, &p), 0);
	for (size_t i = 0; i < n; i += n > 4096 ? 509 : 1)
		assert_int_equal(p[i], byte_at(offset + i));
	if (n)
		assert_int_equal(p[n - 1], byte_at(offset + n - 1));
}

static void a_stream_shows_what_is_in_the_file(void **state)
{
	(void)state;
	char *d = fixture_directory();
	size_t size = (37u << 20) + 1237;
	uint8_t *bytes = malloc(size);
	assert_non_null(bytes);
	for (size_t i = 0; i < size; i++)
		bytes[i] = byte_at(i);
	fixture_write(d, "file", bytes, size);
	free(bytes);
	char path[1024];
	snprintf(path, sizeof path, "%s/file", d);
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	assert_true(fd >= 0);
	struct stream *s;
	assert_int_equal(stream_open(&s, NULL), 0);
	for (int round = 0; round < 2; round++) {
		stream_start(s, fd, size);
		for (uint64_t at = 0; at < size;) {             // front to back in pieces of any size
			size_t n = 1 + rng() % (rng() % 8 ? 5000 : 3000000);
			n = n < size - at ? n : size - at;
			expect_view(s, at, n);
			at += n;
		}
		for (int i = 0; i < 40; i++) {                  // anywhere
			uint64_t at = rng() % size;
			expect_view(s, at, 1 + rng() % (size - at));
		}
	}
	expect_view(s, 100, 20u << 20);                         // longer than what is read ahead
	stream_start(s, fd, size);
	assert_int_equal(truncate(path, 5000), 0);              // its writer cut it: what is gone is zeros
	const uint8_t *p;
	assert_int_equal(stream_view(s, 4000, 2000, &p), 0);
	assert_int_equal(p[999], byte_at(4999));
	assert_int_equal(p[1000] | p[1999], 0);
	stream_close(s);
	close(fd);
	fixture_remove(d);
}

// ---- survey

struct seen {
	pthread_mutex_t lock;
	uint64_t n_records, n_damaged, sum_offsets;
	char places[8][64];
	char message[128];
	struct surplus *surplus;
	uint64_t stop_at;
	uint64_t last_progress, all_bytes;
};

static int visit(void *arg, const struct survey_item *item)
{
	struct seen *s = arg;
	int rc = 0;
	if (item->record && s->surplus)
		assert_int_equal(surplus_append(s->surplus, item), 0);
	pthread_mutex_lock(&s->lock);
	if (item->record) {
		s->n_records++;
		s->sum_offsets += item->offset * (item->shard + 1);
		rc = s->stop_at && s->n_records == s->stop_at ? -ECANCELED : 0;
	} else {
		if (s->n_damaged < 8)
			snprintf(s->places[s->n_damaged], 64, "%s", item->place);
		snprintf(s->message, sizeof s->message, "%s", item->message);
		s->n_damaged++;
	}
	pthread_mutex_unlock(&s->lock);
	return rc;
}

static void on_progress(void *arg, uint64_t done, uint64_t all)
{
	struct seen *s = arg;
	s->last_progress = done;
	s->all_bytes = all;
}

static struct survey_totals survey(const char *directory, unsigned n_threads, struct seen *s)
{
	struct surplus *surplus = s->surplus;
	*s = (struct seen){.lock = PTHREAD_MUTEX_INITIALIZER, .surplus = surplus};
	struct survey_totals t;
	struct error err;
	struct survey_options o = {.directory = directory, .n_threads = n_threads, .rows = true, .indexes = true, .visit = visit,
				   .progress = on_progress, .arg = s};
	if (survey_run(&o, &t, &err))
		fail_msg("survey_run: %s", err.message);
	assert_int_equal(t.n_records, s->n_records);
	assert_int_equal(t.n_damaged, s->n_damaged);
	return t;
}

static void fill(const char *directory, unsigned n)
{
	struct store *st = fixture_open(directory, 256u << 10);
	for (unsigned i = 0; i < n; i++) {
		struct record *r = fixture_record_sized(i);
		assert_int_equal(fixture_append(st, r, STORE_FLUSHED), 0);
		record_unref(r);
	}
	store_close(st);
}

static void every_record_is_seen_by_any_number_of_threads(void **state)
{
	(void)state;
	char *d = fixture_directory();
	struct seen one = {0}, more = {0};
	assert_int_equal(survey(d, 2, &one).n_shards, 0);        // nothing there yet
	fill(d, 400);
	struct survey_totals t = survey(d, 1, &one);
	assert_int_equal(t.n_records, 400);
	assert_int_equal(t.n_damaged, 0);
	assert_true(t.n_shards > 5);
	assert_int_equal(t.n_sealed, t.n_shards - 1);
	assert_int_equal(t.n_unindexed, 0);
	assert_int_equal(one.last_progress, t.shard_bytes - t.n_shards * 4096);
	assert_int_equal(one.all_bytes, t.shard_bytes);
	for (unsigned n = 2; n <= 5; n++) {
		assert_int_equal(survey(d, n, &more).n_records, 400);
		assert_int_equal(more.sum_offsets, one.sum_offsets);
	}
	fixture_remove(d);
}

static void each_damaged_place_is_named(void **state)
{
	(void)state;
	char *d = fixture_directory();
	struct seen s = {0};
	fill(d, 400);
	fixture_flip(d, "00000001.shard", 8 * 4200);              // in the first record
	struct survey_totals t = survey(d, 3, &s);
	assert_int_equal(t.n_damaged, 1);
	assert_string_equal(s.places[0], "00000001.shard:4096");
	assert_int_equal(t.n_records, 399);
	fixture_flip(d, "00000001.shard", 8 * 4200);
	fixture_flip(d, "00000002.shard", 8 * 10);                // one copy of the header
	survey(d, 3, &s);
	assert_string_equal(s.places[0], "00000002.shard:0");
	assert_int_equal(s.n_records, 400);
	fixture_flip(d, "00000002.shard", 8 * 2058);              // and the other
	survey(d, 3, &s);
	assert_int_equal(s.n_damaged, 1);
	assert_non_null(strstr(s.message, "not one of ours"));
	assert_true(s.n_records < 400);
	fixture_flip(d, "00000002.shard", 8 * 10);
	fixture_flip(d, "00000002.shard", 8 * 2058);
	assert_int_equal(survey(d, 3, &s).n_damaged, 0);
	fixture_remove(d);
}

static void an_index_is_held_to_its_shard(void **state)
{
	(void)state;
	char *d = fixture_directory();
	struct seen s = {0};
	size_t n;
	fill(d, 400);
	fixture_flip(d, "00000000.index", 8 * 70);
	survey(d, 1, &s);
	assert_int_equal(s.n_damaged, 1);
	assert_string_equal(s.places[0], "00000000.index");
	fixture_flip(d, "00000000.index", 8 * 70);
	uint8_t *other = fixture_read(d, "00000001.index", &n);
	uint8_t *own = fixture_read(d, "00000000.index", &n);
	size_t n_other;
	free(other);
	other = fixture_read(d, "00000001.index", &n_other);
	fixture_write(d, "00000000.index", other, n_other);
	survey(d, 1, &s);
	assert_non_null(strstr(s.message, "of another file"));
	fixture_write(d, "00000000.index", own, n);
	// An index that is whole, but does not say what the shard does: that of a shard in which a record has been lost since.
	fixture_flip(d, "00000000.shard", 8 * 4200);
	survey(d, 1, &s);
	assert_int_equal(s.n_damaged, 1);                         // the shard's alone: the index may know more
	fixture_flip(d, "00000000.shard", 8 * 4200);
	fixture_unlink(d, "00000000.index");
	struct survey_totals t = survey(d, 1, &s);
	assert_int_equal(t.n_damaged, 0);
	assert_int_equal(t.n_unindexed, 1);
	free(own);
	free(other);
	fixture_remove(d);
}

static void what_a_visitor_says_ends_it(void **state)
{
	(void)state;
	char *d = fixture_directory();
	fill(d, 300);
	struct seen s = {.lock = PTHREAD_MUTEX_INITIALIZER, .stop_at = 17};
	struct survey_totals t;
	struct survey_options o = {.directory = d, .n_threads = 2, .visit = visit, .arg = &s};
	assert_int_equal(survey_run(&o, &t, NULL), -ECANCELED);
	assert_true(s.n_records >= 17 && s.n_records < 300);
	o.directory = "/nonexistent/store";
	struct error err;
	assert_int_equal(survey_run(&o, &t, &err), -ENOENT);
	fixture_remove(d);
}

static void *append_more(void *arg)
{
	struct store *st = arg;
	for (unsigned i = 0; i < 600; i++) {
		struct record *r = fixture_record_sized(10000 + i);
		assert_int_equal(fixture_append(st, r, STORE_FLUSHED), 0);
		record_unref(r);
	}
	return NULL;
}

static void a_store_being_written_is_not_called_damaged(void **state)
{
	(void)state;
	char *d = fixture_directory();
	pthread_t writer;
	struct seen s = {0};
	fill(d, 50);
	struct store *st = fixture_open(d, 256u << 10);
	assert_int_equal(pthread_create(&writer, NULL, append_more, st), 0);
	for (int i = 0; i < 30; i++) {
		struct survey_totals t = survey(d, 2, &s);
		if (t.n_damaged)
			fail_msg("%s: %s", s.places[0], s.message);
		assert_true(t.n_records >= 50);
	}
	pthread_join(writer, NULL);
	store_close(st);
	assert_int_equal(survey(d, 2, &s).n_records, 650);
	fixture_remove(d);
}

// ---- surplus

static struct record *oracle_record(uint64_t n, uint32_t top_k, bool own, enum query_values values)
{
	struct sequence s;
	struct query q;
	oracle_sequence(n, &s);
	query_init(&q);
	q.top_k = top_k;
	q.own = own;
	q.values = values;
	oracle_check(&q, &s);
	struct record *r = oracle_answer(&s, &q);
	query_done(&q);
	sequence_done(&s);
	return r;
}

static void append(struct store *st, struct record *r)
{
	assert_int_equal(fixture_append(st, r, STORE_FLUSHED), 0);
	record_unref(r);
}

static struct surplus_totals surplus_of(const char *directory, bool contained, struct surplus **ret)
{
	struct seen s = {.surplus = surplus_new()};
	struct error err;
	survey(directory, 2, &s);
	if (surplus_find(s.surplus, directory, contained, &err))
		fail_msg("%s", err.message);
	struct surplus_totals t = surplus_sum(s.surplus);
	if (ret)
		*ret = s.surplus;
	else
		surplus_free(s.surplus);
	return t;
}

static void contained_answers_are_found(void **state)
{
	(void)state;
	char *d = fixture_directory();
	struct store *st = fixture_open(d, 1 << 20);
	for (uint64_t n = 0; n < 20; n++) {
		append(st, oracle_record(n, 4, false, QUERY_VALUES_F32));          // in the next two
		append(st, oracle_record(n, 8, true, QUERY_VALUES_F32));           // in the next
		append(st, oracle_record(n, 64, true, QUERY_VALUES_F32));
		append(st, oracle_record(n, 64, true, QUERY_VALUES_U8));           // u8 of the same set: also cut out of f32
	}
	store_close(st);
	struct surplus_totals t = surplus_of(d, true, NULL);
	assert_int_equal(t.n_duplicates, 0);
	assert_int_equal(t.n_contained, 60);
	assert_true(t.contained_bytes > 60 * 100);
	assert_int_equal(surplus_of(d, false, NULL).n_contained, 0);
	fixture_remove(d);
}

static void a_group_with_too_many_likely_records_is_left_alone(void **state)
{
	(void)state;
	char *d = fixture_directory();
	struct store *st = fixture_open(d, 1 << 20);
	for (uint32_t k = 10; k < 15; k++)                       // a lookup tries four
		append(st, oracle_record(1, k, false, QUERY_VALUES_F32));
	append(st, oracle_record(1, 3, false, QUERY_VALUES_F32));
	store_close(st);
	struct surplus *s;
	struct surplus_totals t = surplus_of(d, true, &s);
	size_t n;
	const struct surplus_entry *e = surplus_entries(s, &n);
	assert_int_equal(n, 6);
	// of the five each but the largest; not the smallest, for which all five may do
	assert_int_equal(t.n_contained, 4);
	assert_int_equal(e[5].kind, SURPLUS_KEEP);
	surplus_free(s);
	fixture_remove(d);
}

// A record found damaged is written again; when its bytes were only misread for a while there are two good copies.
static void second_copies_are_found_and_the_later_stays(void **state)
{
	(void)state;
	char *d = fixture_directory();
	fill(d, 200);
	struct store *st = fixture_open(d, 256u << 10);
	struct record *r = fixture_record_sized(0), *found;
	fixture_flip(d, "00000000.shard", 8 * 4300);
	assert_int_equal(store_find(st, record_key(r), &found, NULL), -EBADMSG);
	assert_int_equal(fixture_append(st, r, STORE_FLUSHED), 0);
	fixture_flip(d, "00000000.shard", 8 * 4300);
	store_close(st);
	struct surplus *s;
	struct surplus_totals t = surplus_of(d, true, &s);
	assert_int_equal(t.n_duplicates, 1);
	assert_int_equal(t.n_contained, 0);
	size_t n, n_copies = 0;
	const struct surplus_entry *e = surplus_entries(s, &n);
	assert_int_equal(n, 201);
	assert_int_equal(e[0].kind, SURPLUS_DUPLICATE);
	for (size_t i = 1; i < n; i++) {
		n_copies += memcmp(&e[i].key, &e[0].key, sizeof e->key) == 0 && e[i].kind == SURPLUS_KEEP;
		assert_true(e[i - 1].shard < e[i].shard || (e[i - 1].shard == e[i].shard && e[i - 1].offset < e[i].offset));
	}
	assert_int_equal(n_copies, 1);
	surplus_fix(s, e[0].shard);                               // where the first has to stay the second stays too: it may move
	assert_int_equal(surplus_find(s, d, true, NULL), 0);
	assert_int_equal(surplus_sum(s).n_duplicates, 0);
	surplus_free(s);
	record_unref(r);
	fixture_remove(d);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_stream_shows_what_is_in_the_file),
		cmocka_unit_test(every_record_is_seen_by_any_number_of_threads),
		cmocka_unit_test(each_damaged_place_is_named),
		cmocka_unit_test(an_index_is_held_to_its_shard),
		cmocka_unit_test(what_a_visitor_says_ends_it),
		cmocka_unit_test(a_store_being_written_is_not_called_damaged),
		cmocka_unit_test(contained_answers_are_found),
		cmocka_unit_test(a_group_with_too_many_likely_records_is_left_alone),
		cmocka_unit_test(second_copies_are_found_and_the_later_stays),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
