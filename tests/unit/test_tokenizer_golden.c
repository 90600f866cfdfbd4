// SPDX-License-Identifier: Apache-2.0
// 10,000 lines of mixed text give the ids that Hugging Face `tokenizers` gives, for every family of tokenizers.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "daemon/model/tokenizer.h"
#include "tests/unit/tokenizer_lines.h"

static struct tokenizer *variant_open(const char *name)
{
	json_t *base = golden_load("base.json"), *variants = golden_load("variants.json"), *wordpiece = golden_load("wordpiece.json");
	json_t *bert = json_object_get(wordpiece, name), *whole = bert ? json_incref(bert)
		: golden_variant(base, json_object_get(variants, name));
	struct tokenizer *t = golden_open(whole);

	json_decref(base);
	json_decref(variants);
	json_decref(wordpiece);
	json_decref(whole);
	return t;
}

// Also the file written from it reads back as the same tokenizer.
static void variant_check(const char *name)
{
	struct tokenizer *t = variant_open(name), *again = NULL;
	struct content_id id = tokenizer_id(t), id_again;
	char *json = NULL;
	size_t n;

	golden_compare(t, name);
	assert_int_equal(tokenizer_to_json(t, &json, &n, NULL), 0);
	assert_int_equal(tokenizer_open_json(json, n, &again, NULL), 0);
	id_again = tokenizer_id(again);
	assert_memory_equal(&id, &id_again, sizeof(id));
	golden_compare(again, name);
	free(json);
	tokenizer_close(again);
	tokenizer_close(t);
}

static void gpt2_lines_are_the_references(void **state)
{
	(void)state;
	variant_check("gpt2");
}

static void smollm_lines_are_the_references(void **state)
{
	(void)state;
	variant_check("smollm");
}

static void llama3_lines_are_the_references(void **state)
{
	(void)state;
	variant_check("llama3");
}

static void qwen2_lines_are_the_references(void **state)
{
	(void)state;
	variant_check("qwen2");
}

static void o200k_lines_are_the_references(void **state)
{
	(void)state;
	variant_check("o200k");
}

static void tekken_lines_are_the_references(void **state)
{
	(void)state;
	variant_check("tekken");
}

static void lines_under_unknown_patterns_are_the_references(void **state)
{
	(void)state;
	variant_check("regex");
}

static void wordpiece_lines_are_the_references(void **state)
{
	(void)state;
	variant_check("bert");
	variant_check("bert-cased");
	variant_check("bert-accents");
}

// The first lines' ids as text, every other one without special tokens.
static void wordpiece_ids_decode_as_the_reference_does(void **state)
{
	static const char *const names[] = { "bert", "bert-cased", "bert-accents" };
	json_t *expected = golden_load("expected.json"), *lines, *ids, *item;
	size_t i, j, n;

	(void)state;
	for (int k = 0; k < 3; k++) {
		struct tokenizer *t = variant_open(names[k]);
		const json_t *texts = json_object_get(json_object_get(expected, names[k]), "decoded");

		lines = json_object_get(json_object_get(expected, names[k]), "full");
		assert_true(json_array_size(lines) > 10 && json_array_size(texts) == json_array_size(lines));
		json_array_foreach(lines, i, ids) {
			uint32_t numbers[4096];
			char *text = NULL;

			assert_in_range(json_array_size(ids), 0, 4096);
			json_array_foreach(ids, j, item)
				numbers[j] = (uint32_t)json_integer_value(item);
			assert_int_equal(tokenizer_decode(t, numbers, json_array_size(ids), i % 2 == 0, &text, &n, NULL), 0);
			assert_string_equal(text, json_string_value(json_array_get(texts, i)));
			free(text);
		}
		tokenizer_close(t);
	}
	json_decref(expected);
}

static void each_variant_has_an_id_of_its_own(void **state)
{
	static const char *const names[] = { "gpt2", "smollm", "llama3", "qwen2", "o200k", "tekken", "regex", "bert", "bert-cased",
					     "bert-accents" };
	struct content_id ids[10];

	(void)state;
	for (int i = 0; i < 10; i++) {
		struct tokenizer *t = variant_open(names[i]);

		ids[i] = tokenizer_id(t);
		for (int j = 0; j < i; j++)
			assert_memory_not_equal(&ids[i], &ids[j], sizeof(ids[i]));
		tokenizer_close(t);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(gpt2_lines_are_the_references), cmocka_unit_test(smollm_lines_are_the_references),
		cmocka_unit_test(llama3_lines_are_the_references), cmocka_unit_test(qwen2_lines_are_the_references),
		cmocka_unit_test(o200k_lines_are_the_references), cmocka_unit_test(tekken_lines_are_the_references),
		cmocka_unit_test(lines_under_unknown_patterns_are_the_references), cmocka_unit_test(each_variant_has_an_id_of_its_own),
		cmocka_unit_test(wordpiece_lines_are_the_references), cmocka_unit_test(wordpiece_ids_decode_as_the_reference_does),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
