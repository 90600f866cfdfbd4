// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "common/error.h"
#include "daemon/model/gguf_internal.h"
#include "tests/unit/builder.h"

enum { U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 };

static void opens(const struct builder *b, struct gguf **ret)
{
	struct error err = {0};
	if (gguf_open_bytes(b->bytes, b->n, ret, &err) < 0)
		fail_msg("%s", err.message);
}

static void refused_with(struct builder *b, int code, const char *part)
{
	struct gguf *f = NULL;
	struct error err = {0};
	int r = gguf_open_bytes(b->bytes, b->n, &f, &err);
	if (r != code || !strstr(err.message, part))
		fail_msg("wanted %d \"%s\", got %d \"%s\"", code, part, r, err.message);
	build_done(b);
}

static void valid_file(struct builder *b)
{
	build_gguf(b, 3, 2, 8);
	build_key_u32(b, "general.alignment", 64);
	build_key(b, "signed", I8);
	build_bytes(b, "\xff", 1);
	build_key(b, "big", U64);
	build_u64(b, UINT64_C(1) << 63);
	build_key_f32(b, "real", 0.5f);
	build_key(b, "flag", BOOL);
	build_bytes(b, "\1", 1);
	build_key_string(b, "text", "llama");
	build_key_array(b, "words", STRING, 3);
	build_string(b, "a");
	build_string(b, "");
	build_string(b, "ccc");
	build_key_array(b, "ids", I16, 2);
	build_bytes(b, "\xfe\xff\x07\x00", 4);
	build_tensor(b, "m", 2, 32, 3, 8, 64);        // Q8_0: 3 rows of 34 bytes
	build_tensor(b, "v", 1, 4, 0, 0, 0);          // F32
	build_align(b, 64);
	for (int i = 0; i < 64 + 102; i++)
		build_bytes(b, &(uint8_t){(uint8_t)i}, 1);
}

static void metadata_is_read_by_key_and_type(void **state)
{
	(void)state;
	struct builder b = {0};
	struct gguf *f = NULL;
	struct error err = {0};
	valid_file(&b);
	opens(&b, &f);
	uint64_t u = 0, n = 0;
	double d = 0;
	bool flag = false;
	const char *s = NULL;
	size_t s_n = 0;
	int32_t *ids = NULL;
	assert_int_equal(gguf_get_u64(f, "big", &u, &err), 0);
	assert_true(u == UINT64_C(1) << 63);
	assert_int_equal(gguf_get_u64(f, "signed", &u, &err), -EINVAL);      // -1
	assert_non_null(strstr(err.message, "signed must be an integer of at least 0"));
	assert_int_equal(gguf_get_u64(f, "real", &u, &err), -EINVAL);
	assert_int_equal(gguf_get_u64(f, "ids", &u, &err), -EINVAL);
	assert_int_equal(gguf_get_u64(f, "flag", &u, &err), -EINVAL);
	assert_int_equal(gguf_get_u64(f, "absent", &u, &err), -ENOENT);
	assert_int_equal(gguf_get_f64(f, "real", &d, &err), 0);
	assert_true(d == 0.5);
	assert_int_equal(gguf_get_f64(f, "big", &d, &err), -EINVAL);
	assert_int_equal(gguf_get_bool(f, "flag", &flag, &err), 0);
	assert_true(flag);
	assert_int_equal(gguf_get_bool(f, "signed", &flag, &err), -EINVAL);
	assert_int_equal(gguf_get_string(f, "text", &s, &s_n, &err), 0);
	assert_int_equal(s_n, 5);
	assert_memory_equal(s, "llama", 5);
	assert_int_equal(gguf_get_string(f, "words", &s, &s_n, &err), -EINVAL);
	assert_int_equal(gguf_get_strings(f, "words", &n, &err), 0);
	assert_int_equal(n, 3);
	assert_int_equal(gguf_get_strings(f, "text", &n, &err), -EINVAL);
	assert_int_equal(gguf_get_strings(f, "ids", &n, &err), -EINVAL);
	assert_int_equal(gguf_string_at(f, "words", 2, &s, &s_n), 0);
	assert_int_equal(s_n, 3);
	assert_memory_equal(s, "ccc", 3);
	assert_int_equal(gguf_string_at(f, "words", 3, &s, &s_n), -ENOENT);
	assert_int_equal(gguf_string_at(f, "ids", 0, &s, &s_n), -ENOENT);
	assert_int_equal(gguf_get_int32s(f, "ids", &ids, &n, &err), 0);
	assert_int_equal(n, 2);
	assert_int_equal(ids[0], -2);
	assert_int_equal(ids[1], 7);
	free(ids);
	assert_int_equal(gguf_get_int32s(f, "words", &ids, &n, &err), -EINVAL);
	assert_int_equal(gguf_get_int32s(f, "signed", &ids, &n, &err), -EINVAL);
	gguf_close(f);
	build_done(&b);
}

static void tensors_are_found_and_read(void **state)
{
	(void)state;
	struct builder b = {0};
	struct gguf *f = NULL;
	struct error err = {0};
	struct tensor t;
	valid_file(&b);
	opens(&b, &f);
	assert_int_equal(gguf_count(f), 2);
	assert_string_equal(gguf_name(f, 0), "m");
	assert_int_equal(gguf_find(f, "m", &t), 0);
	assert_int_equal(t.dtype, DTYPE_Q8_0);
	assert_int_equal(t.n_dims, 2);
	assert_int_equal(t.dims[0], 3);
	assert_int_equal(t.dims[1], 32);
	assert_int_equal(t.n_bytes, 102);
	assert_null(t.data);
	assert_int_equal(gguf_read(f, "m", &t, &err), 0);
	assert_int_equal(((const uint8_t *)t.data)[0], 64);
	assert_int_equal(((const uint8_t *)t.data)[101], 165);
	free((void *)(uintptr_t)t.data);
	assert_int_equal(gguf_find(f, "x", &t), -ENOENT);
	assert_int_equal(gguf_read(f, "x", &t, &err), -ENOENT);
	gguf_close(f);
	build_done(&b);
}

static void every_truncation_is_an_error(void **state)
{
	(void)state;
	struct builder b = {0};
	valid_file(&b);
	for (size_t n = 0; n < b.n; n++) {
		struct gguf *f = NULL;
		struct error err = {0};
		uint8_t *copy = malloc(n ? n : 1);      // exact size, so that the sanitizer sees one byte too far
		memcpy(copy, b.bytes, n);
		assert_int_equal(gguf_open_bytes(copy, n, &f, &err), -EINVAL);
		assert_true(err.message[0] != '\0');
		free(copy);
	}
	build_done(&b);
}

static void wrong_headers_are_refused(void **state)
{
	(void)state;
	struct builder b = {0};
	build_bytes(&b, "GGML\3\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", 24);
	refused_with(&b, -EINVAL, "not a GGUF file");
	build_gguf(&b, 1, 0, 0);
	refused_with(&b, -EOPNOTSUPP, "GGUF version 1 (supported: 2 and 3)");
	build_gguf(&b, 4, 0, 0);
	refused_with(&b, -EOPNOTSUPP, "GGUF version 4");
	build_gguf(&b, 3 << 24, 0, 0);
	refused_with(&b, -EOPNOTSUPP, "big-endian");
	build_gguf(&b, 3, UINT64_MAX, 0);
	refused_with(&b, -EINVAL, "18446744073709551615 tensors");
	build_gguf(&b, 3, 0, UINT64_MAX / 2);
	refused_with(&b, -EINVAL, "metadata keys");
	build_gguf(&b, 3, 1, 0);      // within the limit, but no bytes follow
	refused_with(&b, -EINVAL, "1 tensors");
	build_gguf(&b, 3, 0, 1);
	refused_with(&b, -EINVAL, "1 metadata keys");
}

// One key of this type, then the value's bytes, then room.
static void key_refused(uint32_t type, const void *value, size_t n, const char *part)
{
	struct builder b = {0};
	build_gguf(&b, 3, 0, 1);
	build_key(&b, "k", type);
	build_bytes(&b, value, n);
	build_bytes(&b, "                                ", 32);
	refused_with(&b, -EINVAL, part);
}

static void wrong_keys_are_refused(void **state)
{
	(void)state;
	key_refused(13, "", 0, "key k: value type 13 is not supported");
	key_refused(BOOL, "\2", 1, "a boolean is neither 0 nor 1");
	key_refused(STRING, "\xff\xff\xff\xff\xff\xff\xff\xff", 8, "18446744073709551615 elements of 1 bytes do not fit");
	key_refused(ARRAY, "\x09\0\0\0\0\0\0\0\0\0\0\0", 12, "array element type 9");
	key_refused(ARRAY, "\x20\0\0\0\0\0\0\0\0\0\0\0", 12, "array element type 32");
	key_refused(ARRAY, "\x04\0\0\0\0\0\0\0\0\0\0\x40", 12, "elements of 4 bytes do not fit");      // times 4 wraps to 0
	key_refused(ARRAY, "\x0a\0\0\0\0\0\0\0\0\0\0\x20", 12, "elements of 8 bytes do not fit");
	key_refused(ARRAY, "\x08\0\0\0\0\0\0\0\0\0\0\x20", 12, "strings does not fit");
	key_refused(ARRAY, "\x08\0\0\0\1\0\0\0\0\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff", 20, "string 0 has 18446744073709551615 bytes");
	struct builder b = {0};
	build_gguf(&b, 3, 0, 1);
	build_u64(&b, 0);
	build_bytes(&b, "\0\0\0\0        ", 12);
	refused_with(&b, -EINVAL, "a key of 0 bytes");
	build_gguf(&b, 3, 0, 1);
	build_u64(&b, UINT64_MAX);
	build_bytes(&b, "\0\0\0\0        ", 12);
	refused_with(&b, -EINVAL, "a key of 18446744073709551615 bytes");
	build_gguf(&b, 3, 0, 3);
	build_key_u32(&b, "twice", 1);
	build_key_u32(&b, "once", 1);
	build_key_string(&b, "twice", "");
	refused_with(&b, -EINVAL, "key twice: occurs twice");
}

static void alignment_is_a_power_of_two_from_8_to_4096(void **state)
{
	(void)state;
	static const uint32_t bad[] = {0, 1, 4, 12, 24, 4097, 8192, UINT32_MAX, 1u << 31};
	for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
		struct builder b = {0};
		build_gguf(&b, 3, 0, 1);
		build_key_u32(&b, "general.alignment", bad[i]);
		refused_with(&b, -EINVAL, "supported: powers of two from 8 to 4096");
	}
	for (uint32_t good = 8; good <= 4096; good *= 2) {
		struct builder b = {0};
		struct gguf *f = NULL;
		build_gguf(&b, 2, 1, 1);
		build_key_u32(&b, "general.alignment", good);
		build_tensor(&b, "v", 1, 1, 0, 0, 0);
		build_align(&b, good);
		build_u32(&b, 7);
		opens(&b, &f);
		gguf_close(f);
		build_done(&b);
	}
	struct builder b = {0};
	build_gguf(&b, 3, 0, 1);
	build_key_string(&b, "general.alignment", "32");
	refused_with(&b, -EINVAL, "general.alignment: must be a u32");
}

// One tensor over 4096 bytes of data.
static void tensor_refused(const char *name, uint32_t n_dims, uint64_t d0, uint64_t d1, uint32_t type, uint64_t offset, int code,
			   const char *part)
{
	struct builder b = {0};
	build_gguf(&b, 3, 1, 0);
	build_tensor(&b, name, n_dims, d0, d1, type, offset);
	build_align(&b, 32);
	for (int i = 0; i < 1024; i++)
		build_u32(&b, 0);
	refused_with(&b, code, part);
}

static void wrong_tensors_are_refused(void **state)
{
	(void)state;
	char long_name[200];
	memset(long_name, 'n', sizeof long_name);
	long_name[199] = '\0';
	tensor_refused("", 1, 1, 0, 0, 0, -EINVAL, "a tensor name of 0 bytes");
	tensor_refused(long_name, 1, 1, 0, 0, 0, -EINVAL, "a tensor name of 199 bytes");
	tensor_refused("t", 0, 0, 0, 0, 0, -EINVAL, "0 dimensions (supported: 1 to 4)");
	tensor_refused("t", 5, 1, 1, 0, 0, -EINVAL, "5 dimensions");
	tensor_refused("t", 1, 0, 0, 0, 0, -EINVAL, "no such shape");
	tensor_refused("t", 2, 4, 0, 0, 0, -EINVAL, "no such shape");
	tensor_refused("t", 1, UINT64_C(1) << 62, 0, 0, 0, -EINVAL, "no such shape");                      // x 4 overflows
	tensor_refused("t", 2, UINT64_C(1) << 32, UINT64_C(1) << 32, 0, 0, -EINVAL, "no such shape");      // wraps to 0
	tensor_refused("t", 2, 33, 1, 2, 0, -EINVAL, "not whole blocks of 32");
	tensor_refused("t", 2, 128, 1, 12, 0, -EINVAL, "not whole blocks of 256");
	tensor_refused("blk.3.ffn_up.weight", 2, 64, 1, 40, 0, -EOPNOTSUPP,
		       "gguf: tensor blk.3.ffn_up.weight: type NVFP4 is not supported (supported: F32 F16 BF16 Q8_0 Q4_0 Q4_1 Q5_0 "
		       "Q5_1 IQ4_NL MXFP4 Q2_K Q3_K Q4_K Q5_K Q6_K IQ4_XS TQ1_0 TQ2_0 IQ1_S IQ1_M IQ2_XXS IQ2_XS "
		       "IQ2_S IQ3_XXS IQ3_S)");
	tensor_refused("t", 1, 1, 0, 26, 0, -EOPNOTSUPP, "type I32 is not supported");
	tensor_refused("t", 1, 1, 0, 41, 0, -EOPNOTSUPP, "type number 41 is unknown");
	tensor_refused("t", 1, 1, 0, UINT32_MAX, 0, -EOPNOTSUPP, "type number 4294967295 is unknown");
	tensor_refused("t", 1, 1, 0, 0, 4, -EINVAL, "offset 4 is not a multiple of the alignment 32");
	tensor_refused("t", 1, 1025, 0, 0, 0, -EINVAL, "4100 bytes at 0 lie beyond the end of the file");
	tensor_refused("t", 1, 1, 0, 0, 4096, -EINVAL, "4 bytes at 4096 lie beyond");
	tensor_refused("t", 1, 1, 0, 0, UINT64_MAX - 31, -EINVAL, "lie beyond");
	tensor_refused("t", 1, (UINT64_C(1) << 61) - 9, 0, 0, 32, -EINVAL, "lie beyond");      // offset + bytes near 2^63
}

static void overlapping_and_repeated_tensors_are_refused(void **state)
{
	(void)state;
	struct builder b = {0};
	build_gguf(&b, 3, 3, 0);
	build_tensor(&b, "first", 1, 4, 0, 0, 0);
	build_tensor(&b, "third", 1, 4, 0, 0, 32);
	build_tensor(&b, "second", 1, 9, 0, 0, 0);
	build_align(&b, 32);
	for (int i = 0; i < 64; i++)
		build_u32(&b, 0);
	refused_with(&b, -EINVAL, "overlaps tensor");
	build_gguf(&b, 3, 2, 0);
	build_tensor(&b, "same", 1, 4, 0, 0, 0);
	build_tensor(&b, "same", 1, 4, 0, 0, 32);
	build_align(&b, 32);
	for (int i = 0; i < 64; i++)
		build_u32(&b, 0);
	refused_with(&b, -EINVAL, "tensor same: occurs twice");
	build_gguf(&b, 3, 1, 0);      // a name with a NUL byte would be two names to two readers
	build_u64(&b, 3);
	build_bytes(&b, "a\0b", 3);
	build_u32(&b, 1);
	build_u64(&b, 1);
	build_u32(&b, 0);
	build_u64(&b, 0);
	build_align(&b, 32);
	build_u32(&b, 0);
	refused_with(&b, -EINVAL, "NUL byte");
}

static uint64_t random_u64(uint64_t *x)
{
	*x += UINT64_C(0x9e3779b97f4a7c15);
	uint64_t z = *x;
	z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
	z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
	return z ^ z >> 31;
}

// A product that saturates far above 2^63 but below 2^127, so that 128 bits never wrap.
static unsigned __int128 times(unsigned __int128 a, uint64_t b)
{
	unsigned __int128 limit = (unsigned __int128)1 << 63;
	unsigned __int128 v = a * b;
	return a >= limit && b ? limit << 1 : v;
}

static void extent_equals_128_bit_arithmetic(void **state)
{
	(void)state;
	static const uint64_t near[] = {0, 1, 31, 32, 255, 256, UINT64_C(1) << 31, UINT64_C(1) << 32, UINT64_C(1) << 61, UINT64_C(1) << 62,
					UINT64_C(1) << 63, UINT64_MAX};
	uint64_t x = 1, n_good = 0;
	for (int i = 0; i < 10000000; i++) {
		enum dtype t = (enum dtype)(random_u64(&x) % N_DTYPES);
		uint32_t n_dims = (uint32_t)(random_u64(&x) % 6);
		uint64_t alignment = UINT64_C(8) << random_u64(&x) % 10, dims[4], bytes = 0, padded = 0;
		for (int k = 0; k < 4; k++) {
			uint64_t r = random_u64(&x);
			dims[k] = r & 1 ? near[(r >> 8) % 12] + (r >> 16) % 3 - 1 : random_u64(&x) >> (r >> 8) % 64;
			if (r & 2)
				dims[k] &= ~(uint64_t)255;
		}
		bool good = n_dims >= 1 && n_dims <= 4 && dims[0] % dtype_block_elements(t) == 0;
		unsigned __int128 want = good ? times(dims[0] / dtype_block_elements(t), dtype_block_bytes(t)) : 0;
		for (uint32_t k = 1; good && k < n_dims; k++)
			want = times(want, dims[k]);
		unsigned __int128 want_padded = (want + alignment - 1) / alignment * alignment;
		good = good && want && want + alignment - 1 <= INT64_MAX;
		assert_int_equal(gguf_extent(t, n_dims, dims, alignment, &bytes, &padded), good ? 0 : -EINVAL);
		if (good) {
			assert_true(bytes == want && padded == want_padded);
			n_good++;
		}
	}
	assert_true(n_good > 500000);      // the comparison is not all refusals
}

static void files_are_read_and_shrinking_is_an_error(void **state)
{
	(void)state;
	struct builder b = {0};
	struct gguf *f = NULL;
	struct error err = {0};
	struct tensor t;
	char path[] = "test_gguf.XXXXXX";
	int fd = mkstemp(path);
	assert_true(fd >= 0);
	valid_file(&b);
	build_write(&b, path);
	assert_int_equal(gguf_open(path, &f, &err), 0);
	assert_int_equal(gguf_read(f, "m", &t, &err), 0);
	free((void *)(uintptr_t)t.data);
	assert_int_equal(truncate(path, (off_t)b.n - 1), 0);
	assert_int_equal(gguf_read(f, "m", &t, &err), -EBADMSG);
	assert_non_null(strstr(err.message, "has become shorter"));
	gguf_close(f);
	assert_int_equal(gguf_open(path, &f, &err), -EINVAL);
	assert_int_equal(gguf_open("/", &f, &err), -EINVAL);
	assert_int_equal(gguf_open("no-such-file.gguf", &f, &err), -ENOENT);
	close(fd);
	unlink(path);
	build_done(&b);
}

// More metadata than the first piece that is read (8 MiB).
static void long_metadata_is_read_in_larger_pieces(void **state)
{
	(void)state;
	struct builder b = {0};
	struct gguf *f = NULL;
	struct error err = {0};
	const char *s = NULL;
	size_t n = 0;
	char path[] = "test_gguf.XXXXXX";
	int fd = mkstemp(path);
	char *text = malloc((6 << 20) + 1);
	memset(text, 'x', 6 << 20);
	text[6 << 20] = '\0';
	build_gguf(&b, 3, 0, 3);
	build_key_array(&b, "words", STRING, 2);
	build_string(&b, "one");
	build_string(&b, text);
	build_key_string(&b, "text", text);
	build_key_string(&b, "last", "end");
	build_write(&b, path);
	assert_int_equal(gguf_open(path, &f, &err), 0);
	assert_int_equal(gguf_get_string(f, "last", &s, &n, &err), 0);
	assert_memory_equal(s, "end", 3);
	assert_int_equal(gguf_string_at(f, "words", 1, &s, &n), 0);
	assert_int_equal(n, 6 << 20);
	gguf_close(f);
	assert_int_equal(truncate(path, (off_t)b.n - 1), 0);
	assert_int_equal(gguf_open(path, &f, &err), -EINVAL);
	assert_non_null(strstr(err.message, "do not fit in the file"));
	close(fd);
	unlink(path);
	free(text);
	build_done(&b);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(metadata_is_read_by_key_and_type),
		cmocka_unit_test(tensors_are_found_and_read),
		cmocka_unit_test(every_truncation_is_an_error),
		cmocka_unit_test(wrong_headers_are_refused),
		cmocka_unit_test(wrong_keys_are_refused),
		cmocka_unit_test(alignment_is_a_power_of_two_from_8_to_4096),
		cmocka_unit_test(wrong_tensors_are_refused),
		cmocka_unit_test(overlapping_and_repeated_tensors_are_refused),
		cmocka_unit_test(extent_equals_128_bit_arithmetic),
		cmocka_unit_test(files_are_read_and_shrinking_is_an_error),
		cmocka_unit_test(long_metadata_is_read_in_larger_pieces),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
