// SPDX-License-Identifier: Apache-2.0
// Matrices on a shelf, or as stored, give the bits that the same ones packed in memory give; a shelf that gives back anything else is found
// out.
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "common/error.h"
#include "kernels/cpu/cpu.h"
#include "tests/ops/harness.h"
#include "tests/ops/quantised.h"

enum { MAX_PIECES = 512, T = 70, LONGEST = 9000 };

// Pieces in memory; every find overwrites what the one before gave, as a buffer that is used again would be.
struct memory_shelf { struct backend_shelf door; uint8_t *made, *given, *pieces[MAX_PIECES]; size_t sizes[MAX_PIECES]; uint32_t n,
	bad; bool fails; };

static void *memory_begin(void *arg, struct error *err)
{
	const struct memory_shelf *s = arg;
	(void)err;
	return s->made;
}

static int memory_append(void *arg, size_t n, struct error *err)
{
	struct memory_shelf *s = arg;
	(void)err;
	assert_true(s->n < MAX_PIECES && n <= s->door.piece_bytes && n > 0);
	assert_non_null(s->pieces[s->n] = malloc(s->door.piece_bytes));
	memcpy(s->pieces[s->n], s->made, n);
	s->sizes[s->n++] = n;
	memset(s->made, 0xff, s->door.piece_bytes);
	return 0;
}

static void *memory_find(void *arg, uint32_t piece, const uint32_t *next, uint32_t n_next, struct error *err)
{
	struct memory_shelf *s = arg;
	assert_true(piece < s->n && n_next <= s->door.n_ahead);
	for (uint32_t i = 0; i < n_next; i++)
		assert_true(next[i] < s->n && next[i] != piece);
	if (s->fails) {
		error_set(err, ERROR_IO, "stream-directory", "the disk is gone");
		return NULL;
	}
	memset(s->given, 0xff, s->door.piece_bytes);
	memcpy(s->given, s->pieces[piece], s->sizes[piece]);
	if (piece == s->bad)
		s->given[s->sizes[piece] / 2] ^= 1;
	return s->given;
}

static void shelf_init(struct memory_shelf *s, size_t piece_bytes)
{
	*s = (struct memory_shelf){.bad = UINT32_MAX};
	s->door = (struct backend_shelf){.shelf = s, .piece_bytes = piece_bytes, .n_ahead = 2, .begin = memory_begin,
					 .append = memory_append, .find = memory_find};
	assert_int_equal(posix_memalign((void **)&s->made, 4096, piece_bytes), 0);
	assert_int_equal(posix_memalign((void **)&s->given, 4096, piece_bytes), 0);
}

static void shelf_done(struct memory_shelf *s)
{
	for (uint32_t i = 0; i < s->n; i++)
		free(s->pieces[i]);
	free(s->made);
	free(s->given);
}

static struct backend *open_cpu(enum backend_numeric numeric, const struct memory_shelf *shelf)
{
	struct backend_options options = {.n_threads = 2, .numeric = numeric, .max_rows = MAX_ROWS, .shelf = &shelf->door};
	struct backend *be = NULL;
	struct error err = {0};
	if (backend_open("cpu", &options, &be, &err) < 0)
		fail_msg("%s", err.message);
	return be;
}

// What embed, linear and linear_real give of one matrix: (T, K), (T, N), (T, N) added to what was there.
struct results { double *embedded, *y, *sum; };

// A tensor whose rows are read; `broken` from that row on.
struct file_rows { struct tensor_rows rows; const float *values; uint32_t n_columns; uint64_t broken; };

static int file_read(const struct tensor_rows *rows, uint64_t first, uint64_t n, void *to, struct error *err)
{
	const struct file_rows *f = (const struct file_rows *)rows;
	if (first + n > f->broken)
		return error_set(err, ERROR_IO, "model", "the model is gone");
	memcpy(to, f->values + first * f->n_columns, (size_t)n * f->n_columns * sizeof *f->values);
	return 0;
}

// The upper half is data, the lower is read by rows, so that blocks straddle them; or all of it is data.
enum how { APART = 1, BY_ROWS = 2, BROKEN = 4 };

static struct weight *load_or_not(struct backend *be, int how, uint32_t N, uint32_t K, struct error *err)
{
	uint64_t seed = N * 31 + K;
	float *values = calloc((size_t)N * K, sizeof *values), *lower = values + N / 2 * (size_t)K;
	assert_non_null(values);
	random_fill(&seed, values, (size_t)N * K, 0.1f);
	struct file_rows rows = {{file_read}, lower, K, how & BROKEN ? (N - N / 2) / 2 : UINT64_MAX};
	struct tensor parts[] = {tensor_matrix(DTYPE_F32, N / 2, K, values), tensor_matrix(DTYPE_F32, N - N / 2, K, lower)};
	if (how & BY_ROWS) {
		parts[1].data = NULL;
		parts[1].rows = &rows.rows;
	}
	struct weight *w = (how & APART ? be->ops->weight_load_apart : be->ops->weight_load)(be, WEIGHT_PLAIN, parts, 2, err);
	free(values);
	return w;
}

static struct weight *load(struct backend *be, int how, uint32_t N, uint32_t K)
{
	struct error err = {0};
	struct weight *w = load_or_not(be, how, N, K, &err);
	if (!w)
		fail_msg("%s", err.message);
	return w;
}

static void begin(struct backend *be, uint32_t N, uint32_t rows)
{
	uint32_t tokens[T], positions[T], starts[] = {0, rows};
	for (uint32_t t = 0; t < rows; t++) {
		tokens[t] = rows == 1 ? N - 1 : t * 7919 % N;
		positions[t] = t;
	}
	struct layout layout = {.n_positions = rows, .n_sequences = 1, .tokens = tokens, .positions = positions, .starts = starts};
	be->ops->begin(be, &layout);
}

static void compute(struct backend *be, const struct weight *w, uint32_t N, uint32_t K, uint32_t rows, struct results *ret)
{
	const struct backend_ops *ops = be->ops;
	uint64_t seed = 5;
	size_t n_x = (size_t)rows * K, n_y = (size_t)rows * N, most = n_x > n_y ? n_x : n_y;
	float *values = calloc(most, sizeof *values);
	struct real *x = ops->real_new(be, n_x, NULL), *sum = ops->real_new(be, n_y, NULL), *bias = ops->real_new(be, N, NULL);
	struct act *h = ops->act_new(be, n_x, NULL), *y = ops->act_new(be, n_y, NULL);
	*ret = (struct results){calloc(n_x, 8), calloc(n_y, 8), calloc(n_y, 8)};
	assert_true(values && x && sum && bias && h && y && ret->embedded && ret->y && ret->sum);
	begin(be, N, rows);
	ops->embed(be, x, w);
	random_fill(&seed, values, most, 1);
	ops->act_write(be, h, values, n_x);
	ops->real_write(be, sum, values, n_y);
	ops->real_write(be, bias, values, N);
	ops->linear(be, y, h, w, bias, rows);
	ops->linear_real(be, sum, true, h, w, NULL, rows);
	ops->real_read(be, ret->embedded, x, n_x);
	ops->act_read(be, ret->y, y, n_y);
	ops->real_read(be, ret->sum, sum, n_y);
	ops->real_free(be, x);
	ops->real_free(be, sum);
	ops->real_free(be, bias);
	ops->act_free(be, h);
	ops->act_free(be, y);
	free(values);
}

static void results_done(struct results *r)
{
	free(r->embedded);
	free(r->y);
	free(r->sum);
}

static void assert_same_bits(enum backend_numeric numeric, uint32_t N, uint32_t K, uint32_t rows, size_t piece_bytes)
{
	struct memory_shelf shelf;
	struct results here, apart;
	struct error err = {0};
	shelf_init(&shelf, piece_bytes);
	struct backend *be = open_cpu(numeric, &shelf);
	// another before and one after it: its pieces are not the only ones
	struct weight *before = load(be, APART, 300, 40), *w = load(be, APART | BY_ROWS, N, K), *after = load(be, APART, 5, 7),
		*resident = load(be, 0, N, K);
	compute(be, resident, N, K, rows, &here);
	compute(be, w, N, K, rows, &apart);
	if (backend_sync(be, &err) < 0)
		fail_msg("%s", err.message);
	assert_memory_equal(here.embedded, apart.embedded, (size_t)rows * K * 8);
	assert_memory_equal(here.y, apart.y, (size_t)rows * N * 8);
	assert_memory_equal(here.sum, apart.sum, (size_t)rows * N * 8);
	results_done(&here);
	results_done(&apart);
	struct weight *all[] = {before, w, after, resident};
	for (int i = 0; i < 4; i++)
		be->ops->weight_free(be, all[i]);
	backend_close(be);
	shelf_done(&shelf);
}

// A backend that has no room for packed matrices but for them as stored.
static struct backend *open_storing(enum backend_numeric numeric, uint32_t n_threads)
{
	struct backend_options options = {
		.n_threads = n_threads, .numeric = numeric, .max_rows = MAX_ROWS, .host_bytes = UINT64_C(1) << 30};
	options.need.parts[BACKEND_PART_WEIGHTS] = (struct backend_count){.n_weight = UINT64_C(1) << 30, .stored_bytes = 1};
	options.need.widest = LONGEST;
	struct backend *be = NULL;
	struct error err = {0};
	if (backend_open("cpu", &options, &be, &err) < 0)
		fail_msg("%s", err.message);
	assert_true(be->stores);
	return be;
}

static void assert_stored_bits(enum backend_numeric numeric, enum dtype type, uint32_t N, uint32_t K, uint32_t rows)
{
	struct backend *be = open_storing(numeric, 2), *alone = open_storing(numeric, 1);
	struct results packed, stored, by_one;
	struct weight *p = quantised_load(be, false, type, N, K), *s = quantised_load(be, true, type, N, K);
	struct weight *o = quantised_load(alone, true, type, N, K);
	assert_int_equal(be->stored_bytes, N / 2 * dtype_row_bytes(type, K) + (N - N / 2) * dtype_row_bytes(DTYPE_Q8_0, K));
	compute(be, p, N, K, rows, &packed);
	compute(be, s, N, K, rows, &stored);
	compute(alone, o, N, K, rows, &by_one);
	assert_int_equal(backend_sync(be, NULL), 0);
	struct results *others[] = {&stored, &by_one};
	for (int i = 0; i < 2; i++) {
		assert_memory_equal(packed.embedded, others[i]->embedded, (size_t)rows * K * 8);
		assert_memory_equal(packed.y, others[i]->y, (size_t)rows * N * 8);
		assert_memory_equal(packed.sum, others[i]->sum, (size_t)rows * N * 8);
		results_done(others[i]);
	}
	results_done(&packed);
	be->ops->weight_free(be, p);
	be->ops->weight_free(be, s);
	alone->ops->weight_free(alone, o);
	backend_close(be);
	backend_close(alone);
}

// Every type; several pieces, chunks of the sum and last blocks that are not whole.
static void stored_matrices_have_the_bits_of_packed_ones(void **state)
{
	static const enum backend_numeric numerics[] = {BACKEND_NUMERIC_AUTO, BACKEND_NUMERIC_F32, BACKEND_NUMERIC_BF16};
	(void)state;
	for (size_t i = 0; i < sizeof numerics / sizeof *numerics; i++) {
		for (int type = 0; type < N_DTYPES; type++)
			assert_stored_bits(numerics[i], (enum dtype)type, 331, 512, T);
		assert_stored_bits(numerics[i], DTYPE_Q4_1, 5000, 4128, 3);
		assert_stored_bits(numerics[i], DTYPE_Q4_0, 2, 32, 1);
	}
}

static void rows_that_have_no_memory_are_told_of(void **state)
{
	(void)state;
	struct error err = {0};
	struct tensor huge = {.dtype = DTYPE_F32, .n_dims = 2, .dims = {INT32_MAX, INT32_MAX / 8}, .n_bytes = SIZE_MAX};
	assert_null(stored_new(&huge, 1, &err));
	assert_int_equal(err.code, ERROR_MEMORY);
	struct backend *be = open_storing(BACKEND_NUMERIC_AUTO, 2);
	assert_null(load_or_not(be, APART | BY_ROWS | BROKEN, 2000, 96, &err));
	assert_string_equal(err.message, "the model is gone");
	assert_int_equal(be->stored_bytes, 0);
	backend_close(be);
}

// Integers are packed otherwise, in memory alone.
static void int8_is_not_stored(void **state)
{
	(void)state;
	struct backend_options options = {.n_threads = 1, .numeric = BACKEND_NUMERIC_INT8, .max_rows = 1, .host_bytes = UINT64_C(1) << 30};
	struct error err = {0};
	struct backend *be = NULL;
	options.need.parts[BACKEND_PART_WEIGHTS] = (struct backend_count){.n_weight = UINT64_C(1) << 30, .stored_bytes = 1};
	assert_true(backend_open("cpu", &options, &be, &err) < 0);
	assert_non_null(strstr(err.message, "its matrices can only be in memory"));
}

// From one piece for all to one for each block; several chunks of the sum; last blocks and chunks that are not whole.
static void every_shape_has_the_bits_it_has_in_memory(void **state)
{
	const struct { uint32_t N, K, rows; size_t piece_bytes; } shapes[] = {
		{1000, 96, T, 1 << 20}, {1000, 96, T, backend_piece_bytes(96)}, {1000, 96, 1, backend_piece_bytes(96) * 2},
		{700, LONGEST, T, backend_piece_bytes(LONGEST)}, {2, 500, 33, 1 << 20}, {193, 64, 5, backend_piece_bytes(64)},
	};
	static const enum backend_numeric numerics[] = {BACKEND_NUMERIC_AUTO, BACKEND_NUMERIC_F32, BACKEND_NUMERIC_BF16};
	(void)state;
	for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
		for (size_t j = 0; j < sizeof numerics / sizeof *numerics; j++)
			assert_same_bits(numerics[j], shapes[i].N, shapes[i].K, shapes[i].rows, shapes[i].piece_bytes);
}

// The message of a backend one of whose pieces is bad, or cannot be read.
static void expect_failure(bool bad, const char *message)
{
	struct memory_shelf shelf;
	struct results r;
	struct error err = {0};
	shelf_init(&shelf, backend_piece_bytes(96));
	struct backend *be = open_cpu(BACKEND_NUMERIC_AUTO, &shelf);
	struct weight *w = load(be, APART, 2000, 96);
	assert_true(shelf.n > 2);
	shelf.bad = bad ? 2 : UINT32_MAX;
	shelf.fails = !bad;
	compute(be, w, 2000, 96, T, &r);
	assert_true(backend_sync(be, &err) < 0);
	if (!strstr(err.message, message))
		fail_msg("%s", err.message);
	results_done(&r);
	be->ops->weight_free(be, w);
	backend_close(be);
	shelf_done(&shelf);
}

static void one_changed_bit_fails_the_backend(void **state)
{
	(void)state;
	expect_failure(true, "not what was written");
}

static void a_piece_that_cannot_be_read_fails_the_backend(void **state)
{
	(void)state;
	expect_failure(false, "the disk is gone");
}

static const enum backend_numeric loaded_numerics[] = {
	BACKEND_NUMERIC_AUTO, BACKEND_NUMERIC_F32, BACKEND_NUMERIC_BF16, BACKEND_NUMERIC_INT8};

static void rows_that_are_read_make_the_same_matrix(void **state)
{
	enum { N = 300, K = 96 };
	(void)state;
	for (size_t i = 0; i < sizeof loaded_numerics / sizeof *loaded_numerics; i++) {
		struct backend *be = open_cpu(loaded_numerics[i], &(struct memory_shelf){0});
		struct results whole, rows;
		struct weight *data = load(be, 0, N, K), *read = load(be, BY_ROWS, N, K);
		compute(be, data, N, K, T, &whole);
		compute(be, read, N, K, T, &rows);
		assert_int_equal(backend_sync(be, NULL), 0);
		assert_memory_equal(whole.embedded, rows.embedded, T * K * 8);
		assert_memory_equal(whole.y, rows.y, T * N * 8);
		results_done(&whole);
		results_done(&rows);
		be->ops->weight_free(be, data);
		be->ops->weight_free(be, read);
		backend_close(be);
	}
}

static void rows_that_cannot_be_read_are_told_of(void **state)
{
	(void)state;
	for (size_t i = 0; i < sizeof loaded_numerics / sizeof *loaded_numerics; i++)
		for (int how = 0; how <= APART; how++) {
			struct memory_shelf shelf;
			struct error err = {0};
			shelf_init(&shelf, backend_piece_bytes(96));
			struct backend *be = open_cpu(loaded_numerics[i], &shelf);
			assert_null(load_or_not(be, how | BY_ROWS | BROKEN, 2000, 96, &err));
			assert_string_equal(err.message, "the model is gone");
			backend_close(be);
			shelf_done(&shelf);
		}
}

static void without_a_shelf_all_stays_in_memory(void **state)
{
	(void)state;
	struct backend_options options = {.n_threads = 1, .max_rows = MAX_ROWS};
	struct backend *be = NULL;
	assert_int_equal(backend_open("cpu", &options, &be, NULL), 0);
	struct weight *w = load(be, APART, 50, 20);
	assert_int_equal(be->apart_bytes, 0);
	be->ops->weight_free(be, w);
	backend_close(be);
}

static void a_backend_keeps_what_there_is_room_for(void **state)
{
	(void)state;
	struct backend_options options = {.n_threads = 1, .max_rows = MAX_ROWS};
	struct backend *be = NULL;
	assert_int_equal(backend_open("cpu", &options, &be, NULL), 0);
	assert_true(backend_keeps(be, UINT64_MAX, 0));      // no limit
	be->room = backend_matrix_bytes(1000, be->element_bytes) * 2;
	assert_true(backend_keeps(be, 1000, 0));
	assert_false(backend_keeps(be, 1001, 0));
	assert_true(backend_keeps(be, 1000, 0));
	assert_false(backend_keeps(be, 1, 0));
	assert_false(backend_keeps(be, UINT64_MAX, 0));
	be->stores = true;      // what they take more than as stored
	be->room = backend_matrix_bytes(1000, be->element_bytes) - 600;
	assert_false(backend_keeps(be, 1000, 599));
	assert_true(backend_keeps(be, 1000, 600));
	assert_false(backend_keeps(be, 1, 0));
	assert_true(backend_keeps(be, 1000, UINT64_MAX));
	backend_close(be);
	assert_int_equal(backend_open("ref", &(struct backend_options){.max_rows = 1, .host_bytes = 1}, &be, NULL), -EOPNOTSUPP);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_shape_has_the_bits_it_has_in_memory), cmocka_unit_test(one_changed_bit_fails_the_backend),
		cmocka_unit_test(stored_matrices_have_the_bits_of_packed_ones), cmocka_unit_test(rows_that_have_no_memory_are_told_of),
		cmocka_unit_test(int8_is_not_stored),
		cmocka_unit_test(a_piece_that_cannot_be_read_fails_the_backend), cmocka_unit_test(without_a_shelf_all_stays_in_memory),
		cmocka_unit_test(rows_that_are_read_make_the_same_matrix), cmocka_unit_test(rows_that_cannot_be_read_are_told_of),
		cmocka_unit_test(a_backend_keeps_what_there_is_room_for),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
