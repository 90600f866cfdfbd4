// SPDX-License-Identifier: Apache-2.0
// 10,000 lines of mixed text give the ids that Hugging Face `tokenizers` gives, for five families of tokenizers.
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
	json_t *base = golden_load("base.json"), *variants = golden_load("variants.json");
	json_t *whole = golden_variant(base, json_object_get(variants, name));
	struct tokenizer *t = golden_open(whole);

	json_decref(base);
	json_decref(variants);
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

static void lines_under_unknown_patterns_are_the_references(void **state)
{
	(void)state;
	variant_check("regex");
}

static void each_variant_has_an_id_of_its_own(void **state)
{
	static const char *const names[] = { "gpt2", "smollm", "llama3", "qwen2", "regex" };
	struct content_id ids[5];

	(void)state;
	for (int i = 0; i < 5; i++) {
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
		cmocka_unit_test(lines_under_unknown_patterns_are_the_references), cmocka_unit_test(each_variant_has_an_id_of_its_own),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
