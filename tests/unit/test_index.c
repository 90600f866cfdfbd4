// SPDX-License-Identifier: Apache-2.0
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/store/index.h"

static struct content_id key_of(uint64_t n)
{
	struct content_id key = {0};
	for (unsigned i = 0; i < 4; i++) {
		n = (n + UINT64_C(0x9e3779b97f4a7c15)) * UINT64_C(0xbf58476d1ce4e5b9);
		n ^= n >> 29;
		memcpy(key.bytes + 8 * i, &n, 8);
	}
	return key;
}

static struct index_entry entry_of(uint64_t n)
{
	return (struct index_entry){.shard = (uint32_t)(n % 7), .record_bytes = 1 + (uint32_t)n, .offset = 4096 + 8 * n,
		.shape = (uint32_t)n ^ 5};
}

static void expect(const struct index *index, uint64_t n, bool there)
{
	struct content_id key = key_of(n);
	struct index_entry found, wanted = entry_of(n);
	int rc = index_find(index, &key, &found);
	assert_int_equal(rc, there ? 0 : -ENOENT);
	if (there)
		assert_true(found.shard == wanted.shard && found.record_bytes == wanted.record_bytes && found.offset == wanted.offset &&
			    found.shape == wanted.shape);
}

static void finds_a_hundred_thousand_and_nothing_else(void **state)
{
	(void)state;
	struct index *index = index_new();
	for (uint64_t n = 0; n < 100000; n++) {
		struct content_id key = key_of(n);
		struct index_entry e = entry_of(n);
		assert_int_equal(index_append(index, &key, &e), 0);
	}
	assert_int_equal(index_count(index), 100000);
	for (uint64_t n = 0; n < 200000; n++)
		expect(index, n, n < 100000);
	index_free(index);
}

static void a_later_place_replaces_the_earlier(void **state)
{
	(void)state;
	struct index *index = index_new();
	struct content_id key = key_of(5);
	struct index_entry a = entry_of(1), b = entry_of(2), found;
	assert_int_equal(index_append(index, &key, &a), 0);
	assert_int_equal(index_append(index, &key, &b), 0);
	assert_int_equal(index_count(index), 1);
	assert_int_equal(index_find(index, &key, &found), 0);
	assert_true(found.shard == b.shard && found.offset == b.offset && found.record_bytes == b.record_bytes);
	index_remove(index, &key, &a);        // not its place any more: stays
	assert_int_equal(index_count(index), 1);
	index_remove(index, &key, &b);
	assert_int_equal(index_find(index, &key, &found), -ENOENT);
	index_free(index);
}

static void removing_leaves_the_others_findable(void **state)
{
	(void)state;
	struct index *index = index_new();
	bool there[5000] = {false};
	uint64_t rng = 1, n_there = 0;
	for (int round = 0; round < 200000; round++) {
		rng = rng * UINT64_C(6364136223846793005) + 1442695040888963407;
		uint64_t n = (rng >> 33) % 5000;
		struct content_id key = key_of(n);
		struct index_entry e = entry_of(n);
		if (there[n])
			index_remove(index, &key, &e);
		else
			assert_int_equal(index_append(index, &key, &e), 0);
		there[n] = !there[n];
		n_there += there[n] ? 1 : (uint64_t)-1;
	}
	assert_int_equal(index_count(index), n_there);
	for (uint64_t n = 0; n < 5000; n++)
		expect(index, n, there[n]);
	index_free(index);
}

static void keys_that_agree_in_their_first_half_share_a_slot(void **state)
{
	(void)state;
	// Documented: whoever reads the place compares the whole key.
	struct index *index = index_new();
	struct content_id a = key_of(1), b = a;
	b.bytes[31] ^= 1;
	struct index_entry e = entry_of(1), found;
	assert_int_equal(index_append(index, &a, &e), 0);
	assert_int_equal(index_find(index, &b, &found), 0);
	index_free(index);
}

static void a_group_has_its_records_up_to_a_limit(void **state)
{
	(void)state;
	struct index *index = index_new();
	struct index_entry found[INDEX_GROUP_MAX];
	for (uint64_t n = 0; n < 20000; n++) {               // groups of 1 to 7 records
		struct content_id key = key_of(n);
		struct index_entry e = entry_of(n);
		e.group = 1 + n / 7 * 3 + (n % 7 ? 0 : 1);
		assert_int_equal(index_append(index, &key, &e), 0);
		assert_int_equal(index_append(index, &key, &e), 0);         // again: nothing new
	}
	assert_int_equal(index_find_group(index, 1 + 5 * 3, found), 6);
	assert_int_equal(index_find_group(index, 1 + 5 * 3 + 1, found), 1);
	assert_int_equal(found[0].offset, entry_of(35).offset);
	assert_int_equal(index_find_group(index, 3, found), 0);
	for (uint64_t n = 20000; n < 21000; n++) {           // one group of a thousand
		struct content_id key = key_of(n);
		struct index_entry e = entry_of(n);
		e.group = 999999;
		assert_int_equal(index_append(index, &key, &e), 0);
	}
	assert_int_equal(index_find_group(index, 999999, found), INDEX_GROUP_MAX);
	for (uint64_t n = 0; n < 21000; n++)
		expect(index, n, true);
	struct content_id key = key_of(35);
	struct index_entry e = entry_of(35);
	index_remove(index, &key, &e);
	assert_int_equal(index_find_group(index, 1 + 5 * 3 + 1, found), 0);
	index_free(index);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_group_has_its_records_up_to_a_limit),
		cmocka_unit_test(finds_a_hundred_thousand_and_nothing_else),
		cmocka_unit_test(a_later_place_replaces_the_earlier),
		cmocka_unit_test(removing_leaves_the_others_findable),
		cmocka_unit_test(keys_that_agree_in_their_first_half_share_a_slot),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
