// SPDX-License-Identifier: Apache-2.0
// The tokenizer inside the real teacher's GGUF gives the reference's ids for the same 10,000 lines. Skipped where the file is not.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/error.h"
#include "daemon/model/gguf.h"
#include "daemon/model/tokenizer.h"
#include "tests/unit/tokenizer_lines.h"

static char path[4096];

static void teacher_lines_are_the_references(void **state)
{
	struct tokenizer *t = NULL, *again = NULL;
	struct content_id id, id_again;
	struct gguf *file = NULL;
	struct error err = { 0 };
	char *json = NULL;
	size_t n;

	(void)state;
	if (gguf_open(path, &file, &err) || tokenizer_open_gguf(file, &t, &err))
		fail_msg("%s: %s", path, err.message);
	gguf_close(file);
	assert_int_equal(tokenizer_vocab_size(t), 49152);
	assert_int_equal(tokenizer_bos(t), 1);
	assert_int_equal(tokenizer_eos(t), 2);
	golden_compare(t, "teacher");
	assert_int_equal(tokenizer_to_json(t, &json, &n, &err), 0);
	assert_int_equal(tokenizer_open_json(json, n, &again, &err), 0);
	id = tokenizer_id(t);
	id_again = tokenizer_id(again);
	assert_memory_equal(&id, &id_again, sizeof(id));
	free(json);
	tokenizer_close(again);
	tokenizer_close(t);
}

int main(void)
{
	const struct CMUnitTest tests[] = { cmocka_unit_test(teacher_lines_are_the_references) };
	const char *given = getenv("KDSERVED_TEACHER"), *cache = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");

	if (given)
		snprintf(path, sizeof(path), "%s", given);
	else
		snprintf(path, sizeof(path), "%s%s/kdserved/SmolLM2-135M-Instruct.Q4_1.gguf", cache ? cache : home ? home : "",
			 cache ? "" : "/.cache");
	if (access(path, R_OK)) {
		printf("skipped: no teacher at %s\n", path);
		return 77;
	}
	return cmocka_run_group_tests(tests, NULL, NULL);
}
