// SPDX-License-Identifier: Apache-2.0
// The real teacher's file (SmolLM2-135M-Instruct, Q4_1), where it is at hand: exit 77 = skipped.
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
#include "daemon/model/model.h"

static char path[4096];

static void the_real_teacher_opens(void **state)
{
	(void)state;
	struct model_file *m = NULL;
	struct error err = {0};
	if (model_file_open(path, &m, &err) < 0)
		fail_msg("%s", err.message);
	const struct architecture *a = model_file_architecture(m);
	assert_string_equal(a->name, "llama");
	assert_int_equal(a->n_layers, 30);
	assert_int_equal(a->width, 576);
	assert_int_equal(a->n_heads, 9);
	assert_int_equal(a->n_kv_heads, 3);
	assert_int_equal(a->head_size, 64);
	assert_int_equal(a->vocab_size, 49152);
	assert_int_equal(a->context_length, 8192);
	assert_true(a->rope_theta == 100000 && a->tied_head && a->eos_id == 2);
	assert_int_equal(architecture_n_parameters(a), 134515008);
	assert_string_equal(model_file_dtype(m), "Q4_1");
	model_file_close(m);
}

static void its_weights_have_one_id(void **state)
{
	(void)state;
	struct model_file *m = NULL;
	struct content_id id;
	char hex[CONTENT_ID_HEX];
	assert_int_equal(model_file_open(path, &m, NULL), 0);
	assert_int_equal(model_file_weights_id(m, &id, NULL), 0);
	content_id_to_hex(&id, hex);
	// Pinned: stored records are found again only while it stays the same.
	assert_string_equal(hex, "385418efe3c1526b332c024d62f7e1446504946db43b19cae3e8574aaaef9d47");
	model_file_close(m);
}

int main(void)
{
	const char *given = getenv("KDSERVED_TEACHER"), *cache = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
	const char *file = "kdserved/SmolLM2-135M-Instruct.Q4_1.gguf";
	if (given && *given)
		snprintf(path, sizeof path, "%s", given);
	else if (cache && *cache)
		snprintf(path, sizeof path, "%s/%s", cache, file);
	else
		snprintf(path, sizeof path, "%s/.cache/%s", home ? home : "", file);
	const char *name = strrchr(path, '/');      // $KDSERVED_TEACHER may be another model
	if (access(path, R_OK) < 0 || strcmp(name ? name + 1 : path, strrchr(file, '/') + 1)) {
		printf("SKIP: no teacher at %s\n", path);
		return 77;
	}
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_real_teacher_opens),
		cmocka_unit_test(its_weights_have_one_id),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
