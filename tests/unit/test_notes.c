// SPDX-License-Identifier: Apache-2.0
// Notes about teachers beside the shards: written once, proving themselves, left alone by everything else.
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
#include "tests/unit/store_fixture.h"

static struct provenance example(uint8_t which)
{
	struct provenance p = {.weights = {{which, 1}}, .tokenizer = {{2}}, .numeric = "f32-fast", .codec = PROVENANCE_CODEC,
		.name = "SmolLM2"};
	p.fingerprint = provenance_fingerprint(&p);
	return p;
}

static void the_fingerprint_is_the_documented_hash(void **state)
{
	(void)state;
	struct provenance p = example(0);
	uint8_t bytes[19 + 64 + 9 + 2] = "kdserved teacher 1\n";
	memcpy(bytes + 19, p.weights.bytes, 32);
	memcpy(bytes + 51, p.tokenizer.bytes, 32);
	memcpy(bytes + 83, "f32-fast", 9);
	memcpy(bytes + 92, PROVENANCE_CODEC, 2);
	struct content_id id = content_id_of(bytes, sizeof bytes);
	assert_memory_equal(&id, &p.fingerprint, sizeof id);
}

static void a_note_survives_the_store_and_proves_its_name(void **state)
{
	(void)state;
	char *d = fixture_directory();
	struct provenance a = example(1), b = example(2), *notes = NULL;
	size_t n = 0, size;
	struct store *s = fixture_open(d, 0);
	assert_int_equal(store_describe(s, &a, NULL), 0);
	assert_int_equal(store_describe(s, &a, NULL), 0);
	assert_int_equal(store_describe(s, &b, NULL), 0);
	store_close(s);
	s = fixture_open_reader(d);
	assert_int_equal(store_describe(s, &a, NULL), error_errno(ERROR_UNAVAILABLE));
	assert_int_equal(store_teachers(s, &notes, &n, NULL), 0);
	assert_int_equal(n, 2);
	bool first = memcmp(&a.fingerprint, &b.fingerprint, sizeof a.fingerprint) < 0;
	assert_memory_equal(&notes[0], first ? &a : &b, sizeof a);
	assert_memory_equal(&notes[1], first ? &b : &a, sizeof a);
	free(notes);
	char hex[CONTENT_ID_HEX], name[32];
	content_id_to_hex(&a.fingerprint, hex);
	snprintf(name, sizeof name, "%.16s.teacher", hex);
	uint8_t *bytes = fixture_read(d, name, &size);
	fixture_write(d, "0123456789abcdef.teacher", bytes, size);     // under another's name: not taken
	bytes[30] ^= 1;                                                // and damaged: no longer proves its own
	fixture_write(d, name, bytes, size);
	free(bytes);
	assert_int_equal(store_teachers(s, &notes, &n, NULL), 0);
	assert_int_equal(n, 1);
	assert_memory_equal(&notes[0], &b, sizeof b);
	free(notes);
	store_close(s);
	s = fixture_open(d, 0);                                        // a damaged one is written anew
	assert_int_equal(store_describe(s, &a, NULL), 0);
	assert_int_equal(store_teachers(s, &notes, &n, NULL), 0);
	assert_int_equal(n, 2);
	free(notes);
	store_close(s);
	fixture_remove(d);
}

static void names_that_would_break_a_line_are_cleaned(void **state)
{
	(void)state;
	struct provenance p = example(1), back;
	char text[PROVENANCE_MAX_BYTES];
	snprintf(p.name, sizeof p.name, "a\nb\x80");
	size_t n = provenance_encode(&p, text);
	assert_int_equal(provenance_decode(text, n, &back, NULL), 0);
	assert_string_equal(back.name, "a?b?");
	memset(p.name, 'x', sizeof p.name - 1);
	n = provenance_encode(&p, text);
	assert_true(n < sizeof text);
	assert_int_equal(provenance_decode(text, n, &back, NULL), 0);
	for (size_t cut = 0; cut < n; cut++)
		assert_int_equal(provenance_decode(text, cut, &back, NULL), error_errno(ERROR_CORRUPT));
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_fingerprint_is_the_documented_hash),
		cmocka_unit_test(a_note_survives_the_store_and_proves_its_name),
		cmocka_unit_test(names_that_would_break_a_line_are_cleaned),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
