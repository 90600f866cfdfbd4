// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>

#include "common/error.h"
#include "daemon/model/checkpoint.h"
#include "daemon/model/safetensors.h"
#include "tests/unit/builder.h"

#define VALID "{\"__metadata__\":{\"format\":\"pt\"},\"b\":{\"dtype\":\"BF16\",\"shape\":[2,3],\"data_offsets\":[8,20]}," \
	      "\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}"

static void tensors_are_found_and_read(void **state)
{
	(void)state;
	struct builder b = {0};
	struct safetensors *s = NULL;
	struct tensor t;
	struct error err = {0};
	build_safetensors(&b, VALID, 20);
	assert_int_equal(safetensors_open_bytes(b.bytes, b.n, &s, &err), 0);
	assert_int_equal(safetensors_count(s), 2);
	assert_string_equal(safetensors_name(s, 0), "a");
	assert_int_equal(safetensors_find(s, "b", &t, &err), 0);
	assert_int_equal(t.dtype, DTYPE_BF16);
	assert_int_equal(t.n_dims, 2);
	assert_int_equal(t.dims[0], 2);
	assert_int_equal(t.dims[1], 3);
	assert_int_equal(safetensors_read(s, "b", &t, &err), 0);
	assert_int_equal(t.n_bytes, 12);
	assert_int_equal(((const uint8_t *)t.data)[0], 8);
	assert_int_equal(((const uint8_t *)t.data)[11], 19);
	free((void *)(uintptr_t)t.data);
	assert_int_equal(safetensors_find(s, "c", &t, &err), -ENOENT);
	assert_int_equal(safetensors_read(s, "__metadata__", &t, &err), -ENOENT);
	safetensors_close(s);
	build_done(&b);
}

static void every_truncation_is_an_error(void **state)
{
	(void)state;
	struct builder b = {0};
	build_safetensors(&b, VALID, 20);
	for (size_t n = 0; n < b.n; n++) {
		struct safetensors *s = NULL;
		struct error err = {0};
		uint8_t *copy = malloc(n ? n : 1);
		memcpy(copy, b.bytes, n);
		assert_int_equal(safetensors_open_bytes(copy, n, &s, &err), -EINVAL);
		assert_true(err.message[0] != '\0');
		free(copy);
	}
	build_done(&b);
}

static void refused(const char *header, size_t n_data, int code, const char *part)
{
	struct builder b = {0};
	struct safetensors *s = NULL;
	struct error err = {0};
	build_safetensors(&b, header, n_data);
	int r = safetensors_open_bytes(b.bytes, b.n, &s, &err);
	if (r != code || !strstr(err.message, part))
		fail_msg("%s: wanted %d \"%s\", got %d \"%s\"", header, code, part, r, err.message);
	build_done(&b);
}

#define T(dtype, shape, begin, end) "{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":[" #begin "," #end "]}"

static void wrong_headers_are_refused(void **state)
{
	(void)state;
	refused("[]", 0, -EINVAL, "does not start with '{'");
	refused(" {}", 0, -EINVAL, "does not start with '{'");
	refused("{", 0, -EINVAL, "not valid JSON");
	refused("{} {}", 0, -EINVAL, "not valid JSON");
	refused("{\"a\":" T("F32", "[1]", 0, 4) ",\"a\":" T("F32", "[1]", 4, 8) "}", 8, -EINVAL, "duplicate");
	refused("{\"a\":" T("F32", "[1]", 0, 4) ",\"\\u0061\":" T("F32", "[1]", 4, 8) "}", 8, -EINVAL, "duplicate");
	refused("{\"__metadata__\":{\"x\":1}}", 0, -EINVAL, "__metadata__ must map strings to strings");
	refused("{\"__metadata__\":[]}", 0, -EINVAL, "__metadata__");
	refused("{\"a\":[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]}", 0, -EINVAL, "nested deeper than 32");
	struct builder b = {0};
	struct safetensors *s = NULL;
	struct error err = {0};
	build_u64(&b, (16 << 20) + 1);
	for (int i = 0; i < (17 << 20) / 8; i++)
		build_bytes(&b, "        ", 8);
	assert_int_equal(safetensors_open_bytes(b.bytes, b.n, &s, &err), -EINVAL);
	assert_non_null(strstr(err.message, "a header of 16777217 bytes (at most 16777216"));
	build_done(&b);
	build_u64(&b, UINT64_MAX - 7);      // 8 + this wraps to 0
	build_u64(&b, 0);
	assert_int_equal(safetensors_open_bytes(b.bytes, b.n, &s, &err), -EINVAL);
	build_done(&b);
}

static void a_header_of_too_many_values_is_refused_before_parsing(void **state)
{
	(void)state;
	size_t n = 4 << 20;
	char *header = malloc(n + 16);
	memcpy(header, "{\"a\":[0", 7);
	for (size_t i = 7; i < n; i += 2)
		memcpy(header + i, ",0", 3);
	strcat(header + n - 2, "]}");
	refused(header, 0, -E2BIG, "JSON with more than");
	free(header);
}

static void wrong_entries_are_refused(void **state)
{
	(void)state;
	refused("{\"a\":1}", 0, -EINVAL, "tensor a: must have dtype, shape and data_offsets");
	refused("{\"a\":{\"dtype\":\"F32\",\"shape\":[1]}}", 4, -EINVAL, "must have dtype");
	refused("{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4],\"x\":1}}", 4, -EINVAL, "nothing else");
	refused("{\"a\":{\"dtype\":3,\"shape\":[1],\"data_offsets\":[0,4]}}", 4, -EINVAL, "must have dtype");
	refused("{\"a\":" T("F32", "[-1]", 0, 4) "}", 4, -EINVAL, "shape must be a list");
	refused("{\"a\":" T("F32", "[1.0]", 0, 4) "}", 4, -EINVAL, "shape must be a list");
	refused("{\"a\":" T("F32", "1", 0, 4) "}", 4, -EINVAL, "shape must be a list");
	refused("{\"a\":" T("F32", "[2]", 0, 4) "}", 4, -EINVAL, "make 8 bytes, data_offsets 4");
	refused("{\"a\":" T("F32", "[4611686018427387904]", 0, 0) "}", 0, -EINVAL, "overflows");
	refused("{\"a\":" T("F32", "[4294967296,4294967296]", 0, 0) "}", 0, -EINVAL, "overflows");
	refused("{\"a\":" T("F32", "[1]", 4, 0) "}", 4, -EINVAL, "begin and end");
	refused("{\"a\":" T("F32", "[1]", -4, 0) "}", 4, -EINVAL, "begin and end");
	refused("{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4,4]}}", 4, -EINVAL, "two integers");
	refused("{\"a\":" T("F32", "[2]", 0, 8) "}", 4, -EINVAL, "ends at 8 of 4 bytes");
	refused("{\"a\":" T("F32", "[1]", 0, 18446744073709551616) "}", 4, -EINVAL, "not valid JSON");
	refused("{\"a\":" T("F32", "[1]", 4, 8) "}", 8, -EINVAL, "tensor a: begins at 4 where the previous ends at 0");
	refused("{\"a\":" T("F32", "[2]", 0, 8) ",\"b\":" T("F32", "[1]", 4, 8) "}", 8, -EINVAL,
		"begins at 4 where the previous ends at 8");
	refused("{\"a\":" T("F32", "[1]", 0, 4) ",\"b\":" T("F32", "[1]", 8, 12) "}", 12, -EINVAL,
		"begins at 8 where the previous ends at 4");
	refused("{\"a\":" T("F32", "[1]", 0, 4) "}", 5, -EINVAL, "1 bytes after the last tensor");
}

static void other_dtypes_are_refused_only_when_asked_for(void **state)
{
	(void)state;
	struct builder b = {0};
	struct safetensors *s = NULL;
	struct tensor t;
	struct error err = {0};
	build_safetensors(&b, "{\"a\":" T("I64", "[1]", 0, 8) ",\"b\":" T("F4_WEIRD_AND_LONG_NAME", "[9]", 8, 12) ",\"c\":" T("F32",
			  "[]", 12, 16) ",\"d\":" T("F32", "[1,1,1,1,1]", 16, 20) ",\"e\":" T("F32", "[0]", 20, 20) ",\"f\":" T("F16",
			  "[2]", 20, 24) "}", 24);
	assert_int_equal(safetensors_open_bytes(b.bytes, b.n, &s, &err), 0);
	assert_int_equal(safetensors_find(s, "a", &t, &err), -EOPNOTSUPP);
	assert_string_equal(err.message, "safetensors: tensor a: dtype I64 is not supported (supported: F32 F16 BF16)");
	assert_int_equal(safetensors_read(s, "b", &t, &err), -EOPNOTSUPP);
	assert_int_equal(safetensors_find(s, "c", &t, &err), -EOPNOTSUPP);
	assert_int_equal(safetensors_find(s, "d", &t, &err), -EOPNOTSUPP);
	assert_int_equal(safetensors_find(s, "e", &t, &err), -EOPNOTSUPP);
	assert_int_equal(safetensors_find(s, "f", &t, &err), 0);
	safetensors_close(s);
	build_done(&b);
}

// A directory with two shards and an index of choice.
static int open_shards(const char *index, struct safetensors **ret, struct error *err)
{
	struct builder b = {0};
	char directory[] = "test_shards.XXXXXX";
	assert_non_null(mkdtemp(directory));
	assert_int_equal(chdir(directory), 0);
	build_safetensors(&b, "{\"a\":" T("F32", "[1]", 0, 4) "}", 4);
	build_write(&b, "model-1.safetensors");
	build_done(&b);
	build_safetensors(&b, "{\"b\":" T("F32", "[2]", 0, 8) "}", 8);
	build_write(&b, "model-2.safetensors");
	build_done(&b);
	build_safetensors(&b, "{\"a\":" T("F32", "[2]", 0, 8) "}", 8);
	build_write(&b, "model-a.safetensors");
	build_done(&b);
	build_bytes(&b, index, strlen(index));
	build_write(&b, "model.safetensors.index.json");
	build_done(&b);
	int r = safetensors_open_directory(".", ret, err);
	const char *names[] = {"model-1.safetensors", "model-2.safetensors", "model-a.safetensors", "model.safetensors.index.json"};
	for (size_t i = 0; i < 4; i++)
		unlink(names[i]);
	assert_int_equal(chdir(".."), 0);
	rmdir(directory);
	return r;
}

static void shards_make_one_set(void **state)
{
	(void)state;
	struct safetensors *s = NULL;
	struct error err = {0};
	struct tensor t;
	int r = open_shards("{\"metadata\":{\"total_size\":12},\"weight_map\":{\"a\":\"model-1.safetensors\","
		"\"b\":\"model-2.safetensors\"}}", &s, &err);
	if (r < 0)
		fail_msg("%s", err.message);
	assert_int_equal(safetensors_count(s), 2);
	assert_int_equal(safetensors_read(s, "b", &t, &err), 0);
	assert_int_equal(t.n_bytes, 8);
	free((void *)(uintptr_t)t.data);
	safetensors_close(s);
}

static void wrong_indexes_are_refused(void **state)
{
	(void)state;
	static const struct { const char *index, *part; } cases[] = {
		{"{\"weight_map\":{\"a\":\"../model-1.safetensors\"}}", "beside the index"},
		{"{\"weight_map\":{\"a\":\"/etc/model-1.safetensors\"}}", "beside the index"},
		{"{\"weight_map\":{\"a\":\"sub/model-1.safetensors\"}}", "beside the index"},
		{"{\"weight_map\":{\"a\":\"..\"}}", "beside the index"},
		{"{\"weight_map\":{\"a\":\".safetensors\"}}", "beside the index"},
		{"{\"weight_map\":{\"a\":\"model-1.bin\"}}", "beside the index"},
		{"{\"weight_map\":{\"a\":1}}", "beside the index"},
		{"{\"weight_map\":[]}", "weight_map must be an object"},
		{"{}", "weight_map must be an object"},
		{"{\"weight_map\":{\"a\":\"model-9.safetensors\"}}", "cannot open"},
		{"{\"weight_map\":{\"a\":\"model-1.safetensors\",\"c\":\"model-2.safetensors\"}}", "tensor b: the index does not list it"},
		{"{\"weight_map\":{\"a\":\"model-2.safetensors\",\"b\":\"model-1.safetensors\"}}", "the index places it in another file"},
		{"{\"weight_map\":{\"a\":\"model-1.safetensors\",\"c\":\"model-1.safetensors\"}}", "lists 2 tensors, its files have 1"},
		{"{\"weight_map\":{\"a\":\"model-1.safetensors\",\"b\":\"model-a.safetensors\"}}", "the index places it in another file"},
	};
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		struct safetensors *s = NULL;
		struct error err = {0};
		if (open_shards(cases[i].index, &s, &err) >= 0 || !strstr(err.message, cases[i].part))
			fail_msg("%s: wanted \"%s\", got \"%s\"", cases[i].index, cases[i].part, err.message);
	}
	struct safetensors *s = NULL;
	struct error err = {0};
	assert_int_equal(safetensors_open_directory("no-such-directory", &s, &err), -ENOENT);
}

static void what_checkpoint_writes_reads_back(void **state)
{
	(void)state;
	static const float one[6] = {1, 2, 3, 4, 5, 6};
	static const uint16_t two[2] = {0x3f80, 0x4000};
	const struct checkpoint_tensor tensors[] = {
		{"model.norm.weight", {.dtype = DTYPE_BF16, .n_dims = 1, .dims = {2}, .data = two, .n_bytes = 4}},
		{"a.weight", {.dtype = DTYPE_F32, .n_dims = 2, .dims = {2, 3}, .data = one, .n_bytes = 24}},
	};
	struct safetensors *s = NULL;
	struct error err = {0};
	struct tensor t;
	char path[] = "test_checkpoint.XXXXXX", temporary[64];
	int fd = mkstemp(path);
	snprintf(temporary, sizeof temporary, "%s.tmp", path);
	assert_int_equal(checkpoint_write_safetensors(path, tensors, 2, &err), 0);
	assert_int_not_equal(access(temporary, F_OK), 0);
	assert_int_equal(safetensors_open(path, &s, &err), 0);
	assert_int_equal(safetensors_count(s), 2);
	assert_int_equal(safetensors_read(s, "a.weight", &t, &err), 0);
	assert_memory_equal(t.data, one, 24);
	free((void *)(uintptr_t)t.data);
	assert_int_equal(safetensors_read(s, "model.norm.weight", &t, &err), 0);
	assert_memory_equal(t.data, two, 4);
	free((void *)(uintptr_t)t.data);
	safetensors_close(s);
	close(fd);
	unlink(path);
}

static void failed_checkpoints_leave_the_old_file(void **state)
{
	(void)state;
	static const float one = 1;
	struct checkpoint_tensor t = {"a", {.dtype = DTYPE_F32, .n_dims = 1, .dims = {1}, .data = &one, .n_bytes = 4}};
	struct error err = {0};
	char path[] = "test_checkpoint.XXXXXX", temporary[64], text[8] = "";
	int fd = mkstemp(path);
	snprintf(temporary, sizeof temporary, "%s.tmp", path);
	assert_int_equal(checkpoint_write_file(path, "old", 3, &err), 0);
	t.name = "quo\"te";
	assert_int_equal(checkpoint_write_safetensors(path, &t, 1, &err), -EINVAL);
	t.name = "a";
	t.tensor.n_bytes = 8;
	assert_int_equal(checkpoint_write_safetensors(path, &t, 1, &err), -EINVAL);
	t.tensor.n_bytes = 4;
	t.tensor.dtype = DTYPE_Q8_0;
	assert_int_equal(checkpoint_write_safetensors(path, &t, 1, &err), -EOPNOTSUPP);
	t.tensor.dtype = DTYPE_F32;
	assert_int_equal(mkdir(temporary, 0700), 0);      // the temporary cannot be made
	assert_true(checkpoint_write_safetensors(path, &t, 1, &err) < 0);
	assert_true(checkpoint_write_file(path, "new", 3, &err) < 0);
	rmdir(temporary);
	assert_true(checkpoint_write_file("/no-such-directory/x", "new", 3, &err) < 0);
	FILE *f = fopen(path, "r");
	assert_int_equal(fread(text, 1, sizeof text, f), 3);
	assert_string_equal(text, "old");
	fclose(f);
	assert_int_equal(checkpoint_write_file(path, "new", 3, &err), 0);
	f = fopen(path, "r");
	assert_int_equal(fread(text, 1, sizeof text, f), 3);
	assert_string_equal(text, "new");
	fclose(f);
	close(fd);
	unlink(path);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(tensors_are_found_and_read),
		cmocka_unit_test(every_truncation_is_an_error),
		cmocka_unit_test(wrong_headers_are_refused),
		cmocka_unit_test(a_header_of_too_many_values_is_refused_before_parsing),
		cmocka_unit_test(wrong_entries_are_refused),
		cmocka_unit_test(other_dtypes_are_refused_only_when_asked_for),
		cmocka_unit_test(shards_make_one_set),
		cmocka_unit_test(wrong_indexes_are_refused),
		cmocka_unit_test(what_checkpoint_writes_reads_back),
		cmocka_unit_test(failed_checkpoints_leave_the_old_file),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
