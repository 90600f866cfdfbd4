// SPDX-License-Identifier: Apache-2.0
// Models in parts: what is found in them, and each way in which a part can be wrong or absent.
#include <errno.h>
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
#include "tests/unit/builder.h"

enum { U16 = 2, I32 = 5, STRING = 8, VALUES = 8 };

static char folder[] = "test_gguf_parts.XXXXXX";

static const char *path_of(const char *name)
{
	static char path[64];
	snprintf(path, sizeof path, "%s/%s", folder, name);
	return path;
}

// What a part says of itself, and its tensors: the letters of `tensors`, each a row of VALUES numbers that begin with the letter's code.
struct part { const char *name; int no, count, total; const char *tensors; };

static const struct part whole[] = {
	{"m-00001-of-00003.gguf", 0, 3, 3, ""}, {"m-00002-of-00003.gguf", 1, 3, 3, "ca"}, {"m-00003-of-00003.gguf", 2, 3, 3, "b"},
};

static void put_key(struct builder *b, const char *key, uint32_t type, int v)
{
	build_key(b, key, type);
	build_bytes(b, &(uint32_t){(uint32_t)v}, type == U16 ? 2 : 4);
}

// Keys below 0 are left out.
static void write_part(const struct part *p)
{
	struct builder b = {0};
	build_gguf(&b, 3, strlen(p->tensors), 1 + (p->no >= 0) + (p->count >= 0) + (p->total >= 0));
	build_key_string(&b, "general.name", p->name);
	if (p->no >= 0)
		put_key(&b, "split.no", U16, p->no);
	if (p->count >= 0)
		put_key(&b, "split.count", U16, p->count);
	if (p->total >= 0)
		put_key(&b, "split.tensors.count", I32, p->total);
	for (size_t i = 0; p->tensors[i]; i++)
		build_tensor(&b, (char[]){p->tensors[i], 0}, 1, VALUES, 0, 0, i * VALUES * 4);
	build_align(&b, 32);
	for (size_t i = 0; p->tensors[i]; i++)
		for (int k = 0; k < VALUES; k++)
			build_bytes(&b, &(float){(float)(p->tensors[i] + k)}, 4);
	build_write(&b, path_of(p->name));
	build_done(&b);
}

static void write_whole(void)
{
	for (size_t i = 0; i < sizeof whole / sizeof *whole; i++)
		write_part(&whole[i]);
}

static int open_whole(struct gguf **ret, struct error *err)
{
	return gguf_open(path_of(whole[0].name), ret, err);
}

static void refused_with(const char *name, int code, const char *part)
{
	struct gguf *f = NULL;
	struct error err = {0};
	int r = gguf_open(path_of(name), &f, &err);
	if (r != code || !strstr(err.message, part))
		fail_msg("wanted %d \"%s\", got %d \"%s\"", code, part, r, err.message);
}

// The whole with one part in another form.
static void refused_where(struct part changed, int code, const char *part)
{
	write_whole();
	write_part(&changed);
	refused_with(whole[0].name, code, part);
}

static void tensors_are_those_of_all_parts(void **state)
{
	(void)state;
	struct gguf *f = NULL;
	struct error err = {0};
	struct tensor t;
	float row[VALUES];
	const char *s = NULL;
	size_t n = 0;
	write_whole();
	if (open_whole(&f, &err) < 0)
		fail_msg("%s", err.message);
	assert_int_equal(gguf_count(f), 3);
	for (size_t i = 0; i < 3; i++) {
		int c = 'a' + (int)i;
		const char name[] = {(char)c, 0};
		assert_string_equal(gguf_name(f, i), name);
		assert_int_equal(gguf_find(f, name, &t), 0);
		assert_int_equal(t.n_bytes, sizeof row);
		assert_int_equal(gguf_read(f, name, &t, &err), 0);
		assert_true(((const float *)t.data)[0] == (float)c && ((const float *)t.data)[VALUES - 1] == (float)(c + VALUES - 1));
		free((void *)(uintptr_t)t.data);
		assert_int_equal(gguf_read_rows(f, name, 0, 1, row, &err), 0);
		assert_true(row[1] == (float)(c + 1));
	}
	assert_int_equal(gguf_find(f, "d", &t), -ENOENT);
	assert_int_equal(gguf_get_string(f, "general.name", &s, &n, &err), 0);
	assert_memory_equal(s, whole[0].name, n);
	gguf_close(f);
}

static void its_bytes_are_those_of_all_files(void **state)
{
	(void)state;
	struct gguf *f = NULL;
	long bytes = 0;
	write_whole();
	for (size_t i = 0; i < sizeof whole / sizeof *whole; i++) {
		FILE *file = fopen(path_of(whole[i].name), "rb");
		assert_non_null(file);
		assert_int_equal(fseek(file, 0, SEEK_END), 0);
		bytes += ftell(file);
		fclose(file);
	}
	assert_int_equal(open_whole(&f, NULL), 0);
	assert_int_equal(gguf_file_bytes(f), bytes);
	gguf_close(f);
}

static void a_part_that_changes_is_told_of_by_name(void **state)
{
	(void)state;
	struct gguf *f = NULL;
	struct error err = {0};
	struct tensor t;
	float row[VALUES];
	write_whole();
	assert_int_equal(open_whole(&f, &err), 0);
	assert_int_equal(truncate(path_of(whole[2].name), 8), 0);
	assert_int_equal(gguf_read_rows(f, "a", 0, 1, row, &err), 0);
	assert_int_equal(gguf_read_rows(f, "b", 0, 1, row, &err), error_errno(ERROR_CONFLICT));
	assert_non_null(strstr(err.message, "m-00003-of-00003.gguf was written to"));
	assert_int_equal(gguf_read(f, "b", &t, &err), -EBADMSG);
	assert_non_null(strstr(err.message, "m-00003-of-00003.gguf: the file has become shorter"));
	gguf_close(f);
}

static void another_part_than_the_first_names_the_first(void **state)
{
	(void)state;
	write_whole();
	refused_with(whole[1].name, -EINVAL, "m-00002-of-00003.gguf is part 2 of 3 of a model: open the first, test_gguf_parts.");
	refused_with(whole[2].name, -EINVAL, "/m-00001-of-00003.gguf");
	assert_int_equal(unlink(path_of(whole[0].name)), 0);
	refused_with(whole[1].name, -EINVAL, "/m-00001-of-00003.gguf");
}

static void a_missing_part_is_named(void **state)
{
	(void)state;
	write_whole();
	assert_int_equal(unlink(path_of(whole[1].name)), 0);
	refused_with(whole[0].name, -ENOENT, "part 2 of 3 of the model is missing: there is no test_gguf_parts.");
	refused_with(whole[0].name, -ENOENT, "/m-00002-of-00003.gguf");
	write_whole();
	assert_int_equal(truncate(path_of(whole[1].name), 100), 0);
	refused_with(whole[0].name, -EINVAL, "m-00002-of-00003.gguf: the file ends inside its metadata");
}

static void parts_that_do_not_fit_together_are_refused(void **state)
{
	(void)state;
	const char *second = whole[1].name, *third = whole[2].name;
	refused_where((struct part){third, 1, 3, 3, "b"}, -EINVAL,
		      "m-00003-of-00003.gguf: split.no is 1; by its name and the first part it must be 2");
	refused_where((struct part){second, 1, 4, 3, "ca"}, -EINVAL, "m-00002-of-00003.gguf: split.count is 4");
	refused_where((struct part){second, 1, 3, 4, "ca"}, -EINVAL, "m-00002-of-00003.gguf: split.tensors.count is 4");
	refused_where((struct part){second, -1, 3, 3, "ca"}, -EINVAL, "m-00002-of-00003.gguf: a part of a model without key split.no");
	refused_where((struct part){second, 1, -1, 3, "ca"}, -EINVAL, "without key split.count");
	refused_where((struct part){second, 1, 3, -1, "ca"}, -EINVAL, "without key split.tensors.count");
	refused_where((struct part){third, 2, 3, 3, ""}, -EINVAL, "the 3 parts have 2 tensors, split.tensors.count is 3");
	refused_where((struct part){third, 2, 3, 3, "bd"}, -EINVAL, "the 3 parts have 4 tensors");
	refused_where((struct part){third, 2, 3, 3, "a"}, -EINVAL, "tensor a: occurs twice (again in m-0000");
}

static void first_parts_that_make_no_sense_are_refused(void **state)
{
	(void)state;
	const char *first = whole[0].name;
	refused_where((struct part){first, 3, 3, 3, ""}, -E2BIG, "split.no is 3 (supported: at most 2)");
	refused_where((struct part){first, 0, 3, -1, ""}, -EINVAL, "without key split.tensors.count");
	refused_where((struct part){first, -1, 3, 3, ""}, -EINVAL, "without key split.no");
	refused_where((struct part){first, 0, 3, 65537, ""}, -E2BIG, "split.tensors.count is 65537 (supported: at most 65536)");
	refused_where((struct part){first, 0, 1025, 3, ""}, -E2BIG, "split.count is 1025 (supported: at most 1024)");
	refused_where((struct part){first, 0, 4, 3, ""}, -EINVAL, "is part 1 of 4 of a model: its name must end in -00001-of-00004.gguf");
	write_part(&(struct part){"model.gguf", 1, 3, 3, ""});
	refused_with("model.gguf", -EINVAL, "model.gguf is part 2 of 3 of a model: its name must end in -00002-of-00003.gguf");
	struct builder b = {0};
	build_gguf(&b, 3, 0, 1);
	build_key_string(&b, "split.count", "3");
	build_write(&b, path_of(first));
	build_done(&b);
	refused_with(first, -EINVAL, "key split.count must be an integer");
}

static void one_part_is_a_file_as_any(void **state)
{
	(void)state;
	struct gguf *f = NULL;
	for (int count = 0; count < 2; count++) {
		write_part(&(struct part){"model.gguf", -1, count, -1, "a"});
		assert_int_equal(gguf_open(path_of("model.gguf"), &f, NULL), 0);
		assert_int_equal(gguf_count(f), 1);
		gguf_close(f);
	}
}

static void a_part_in_memory_is_refused(void **state)
{
	(void)state;
	struct builder b = {0};
	struct gguf *f = NULL;
	struct error err = {0};
	build_gguf(&b, 3, 0, 1);
	build_key_u32(&b, "split.count", 3);
	assert_int_equal(gguf_open_bytes(b.bytes, b.n, &f, &err), -EOPNOTSUPP);
	assert_non_null(strstr(err.message, "one of 3 parts of a model"));
	build_done(&b);
}

static int make_folder(void **state)
{
	(void)state;
	return mkdtemp(folder) ? 0 : -1;
}

static int remove_folder(void **state)
{
	(void)state;
	for (size_t i = 0; i < sizeof whole / sizeof *whole; i++)
		unlink(path_of(whole[i].name));
	unlink(path_of("model.gguf"));
	return rmdir(folder);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(tensors_are_those_of_all_parts),
		cmocka_unit_test(its_bytes_are_those_of_all_files),
		cmocka_unit_test(a_part_that_changes_is_told_of_by_name),
		cmocka_unit_test(another_part_than_the_first_names_the_first),
		cmocka_unit_test(a_missing_part_is_named),
		cmocka_unit_test(parts_that_do_not_fit_together_are_refused),
		cmocka_unit_test(first_parts_that_make_no_sense_are_refused),
		cmocka_unit_test(one_part_is_a_file_as_any),
		cmocka_unit_test(a_part_in_memory_is_refused),
	};
	return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
