// SPDX-License-Identifier: Apache-2.0
// attention_cached gives the bits of attention: for any cut of sequences into passes, any company, any slots, prefixes shared or not.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "common/error.h"
#include "kernels/backend.h"
#include "tests/ops/harness.h"

enum { N = 5, MAX_LENGTH = 300, MAX_T = 700, N_SLOTS = 2000 };
static const uint32_t sequence_lengths[N] = {1, 300, 129, 64, 200};
static const struct attention_shape shapes[] = {
	{4, 2, 2, 0.7071f, false, 0, 0}, {3, 3, 16, 0.25f, false, 0, 0}, {9, 3, 64, 0.125f, false, 0, 0}, {5, 1, 6, 0.4f, false, 0, 0},
	{14, 2, 10, 0.3f, false, 0, 0}, {4, 1, 128, 0.0884f, false, 0, 0}, {4, 2, 8, 0.25f, false, 70, 0}, {3, 3, 6, 0.4f, false, 128, 4},
};

// Sequences with their q|k|v rows, what attention says of each alone, and the slots its positions have.
struct sequences {
	struct backend *be;
	const struct attention_shape *shape;
	size_t W, width;                             // of a row of q|k|v and of y
	uint32_t shared;                             // the last sequence begins with so many positions of sequence 1
	float *qkv[N];
	double *y[N];
	uint32_t slots[N][MAX_LENGTH];
};

static void check_sync(struct backend *be)
{
	struct error err = {0};
	if (backend_sync(be, &err) < 0)
		fail_msg("%s", err.message);
}

static void want(struct sequences *x, uint32_t s)
{
	const struct backend_ops *ops = x->be->ops;
	uint32_t n = sequence_lengths[s], tokens[MAX_LENGTH] = {0}, positions[MAX_LENGTH], starts[] = {0, n};
	for (uint32_t t = 0; t < n; t++)
		positions[t] = t;
	struct layout layout = {.n_positions = n, .n_sequences = 1, .tokens = tokens, .positions = positions, .starts = starts};
	struct act *qkv = ops->act_new(x->be, n * x->W, NULL), *y = ops->act_new(x->be, n * x->width, NULL);
	ops->act_write(x->be, qkv, x->qkv[s], n * x->W);
	ops->begin(x->be, &layout);
	ops->attention(x->be, y, NULL, qkv, x->shape);
	ops->act_read(x->be, x->y[s], y, n * x->width);
	check_sync(x->be);
	ops->act_free(x->be, qkv);
	ops->act_free(x->be, y);
}

static uint32_t below(uint64_t *random, uint32_t n)
{
	return (uint32_t)((random_unit(random) + 8) / 16 * 1e6) % n;
}

// Slots in a random order; those of a shared prefix belong to both.
static void give_slots(struct sequences *x, uint64_t *random)
{
	static uint32_t all[N_SLOTS];
	uint32_t used = 0;
	for (uint32_t i = 0; i < N_SLOTS; i++)
		all[i] = i;
	for (uint32_t s = 0; s < N; s++) {
		for (uint32_t t = 0; t < sequence_lengths[s]; t++) {
			uint32_t pick = used + below(random, N_SLOTS - used), slot = all[pick];
			all[pick] = all[used];
			all[used++] = slot;
			x->slots[s][t] = s == N - 1 && t < x->shared ? x->slots[1][t] : slot;
		}
	}
}

static void sequences_open(struct sequences *x, const struct attention_shape *shape, uint32_t shared, uint32_t n_threads, uint64_t *random)
{
	struct backend_options options = {.n_threads = n_threads, .max_rows = MAX_T};
	struct error err = {0};
	*x = (struct sequences){.shape = shape, .W = (shape->n_heads + 2 * (size_t)shape->n_kv_heads) * shape->head_size,
				.width = (size_t)shape->n_heads * shape->head_size, .shared = shared};
	if (backend_open(BACKEND, &options, &x->be, &err) < 0)
		fail_msg("%s", err.message);
	for (uint32_t s = 0; s < N; s++) {
		x->qkv[s] = calloc(sequence_lengths[s] * x->W, sizeof(float));
		x->y[s] = calloc(sequence_lengths[s] * x->width, sizeof(double));
		assert_true(x->qkv[s] && x->y[s]);
		random_fill(random, x->qkv[s], sequence_lengths[s] * x->W, 1.5f);
		if (s == N - 1)
			memcpy(x->qkv[s], x->qkv[1], shared * x->W * sizeof(float));
		want(x, s);
	}
	give_slots(x, random);
}

static void sequences_close(struct sequences *x)
{
	for (uint32_t s = 0; s < N; s++) {
		free(x->qkv[s]);
		free(x->y[s]);
	}
	backend_close(x->be);
}

// One pass: n[s] more rows of each sequence after done[s].
static void run_pass(struct sequences *x, struct act *cache, const uint32_t *done, const uint32_t *n)
{
	static float rows[MAX_T * (9 + 6) * 64];
	static uint32_t tokens[MAX_T], positions[MAX_T], slots[N * MAX_LENGTH];
	uint32_t starts[N + 1] = {0}, slot_starts[N + 1] = {0}, which[N], T = 0, n_slots = 0, n_sequences = 0;
	const struct backend_ops *ops = x->be->ops;
	for (uint32_t s = 0; s < N; s++) {
		if (!n[s])
			continue;
		memcpy(rows + T * x->W, x->qkv[s] + done[s] * x->W, n[s] * x->W * sizeof(float));
		memcpy(slots + n_slots, x->slots[s], (done[s] + n[s]) * sizeof *slots);
		for (uint32_t t = 0; t < n[s]; t++)
			positions[T++] = done[s] + t;
		n_slots += done[s] + n[s];
		which[n_sequences++] = s;
		starts[n_sequences] = T;
		slot_starts[n_sequences] = n_slots;
	}
	struct layout layout = {.n_positions = T, .n_sequences = n_sequences, .tokens = tokens, .positions = positions, .starts = starts,
				.slot_starts = slot_starts, .slots = slots};
	struct act *qkv = ops->act_new(x->be, T * x->W, NULL), *y = ops->act_new(x->be, T * x->width, NULL);
	double *got = calloc(T * x->width, sizeof *got);
	assert_non_null(got);
	ops->act_write(x->be, qkv, rows, T * x->W);
	ops->begin(x->be, &layout);
	ops->cache_write(x->be, cache, qkv, x->shape);
	ops->attention_cached(x->be, y, qkv, cache, x->shape);
	ops->act_read(x->be, got, y, T * x->width);
	check_sync(x->be);
	for (uint32_t i = 0; i < n_sequences; i++)
		assert_memory_equal(got + starts[i] * x->width, x->y[which[i]] + done[which[i]] * x->width,
				    (starts[i + 1] - starts[i]) * x->width * sizeof(double));
	ops->act_free(x->be, qkv);
	ops->act_free(x->be, y);
	free(got);
}

// How many rows of sequence s the next pass holds: one, a few, or many; what the shared prefix covers belongs to sequence 1 alone.
static uint32_t next_rows(uint64_t *random, uint32_t left)
{
	static const uint32_t most[] = {1, 1, 7, 40, 300};
	uint32_t n = below(random, most[below(random, 5)] + 1);
	return n < left ? n : left;
}

static void check_splits(const struct attention_shape *shape, uint32_t shared, uint32_t n_threads, uint64_t seed)
{
	struct sequences x;
	uint64_t random = seed;
	sequences_open(&x, shape, shared, n_threads, &random);
	struct act *cache = x.be->ops->act_new(x.be, N_SLOTS * 2 * (size_t)shape->n_kv_heads * shape->head_size, NULL);
	uint32_t done[N] = {0}, n[N], left = 1;
	done[N - 1] = shared;
	while (left) {
		left = 0;
		for (uint32_t s = 0; s < N; s++)
			n[s] = next_rows(&random, sequence_lengths[s] - done[s]);
		if (done[1] + n[1] < shared)
			n[N - 1] = 0;        // waits until the prefix is there (of this pass is early enough)
		run_pass(&x, cache, done, n);
		for (uint32_t s = 0; s < N; s++) {
			done[s] += n[s];
			left += sequence_lengths[s] - done[s];
		}
	}
	x.be->ops->act_free(x.be, cache);
	sequences_close(&x);
}

static void any_cut_into_passes_gives_the_same_bits(void **state)
{
	(void)state;
	for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
		for (uint32_t seed = 1; seed <= 3; seed++)
			check_splits(&shapes[i], 0, seed, 100 * i + seed);
}

static void a_prefix_computed_for_another_gives_the_same_bits(void **state)
{
	static const uint32_t shared[] = {1, 31, 64, 127, 128, 150, 199};
	(void)state;
	for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
		for (uint32_t j = 0; j < 7; j++)
			check_splits(&shapes[i], shared[j], 1 + j % 2, 1000 * i + j);
}

// A slot may be written again: what lay there is not read.
static void a_slot_given_back_holds_nothing_of_the_past(void **state)
{
	struct sequences x;
	uint64_t random = 5;
	(void)state;
	sequences_open(&x, &shapes[2], 0, 2, &random);
	struct act *cache = x.be->ops->act_new(x.be, N_SLOTS * 2 * (size_t)shapes[2].n_kv_heads * shapes[2].head_size, NULL);
	static const uint32_t zero[N], first[N] = {0, 300, 0, 0, 0}, second[N] = {0, 0, 129, 0, 0}, part[N] = {0, 0, 100, 0, 0},
			      rest[N] = {0, 0, 29, 0, 0};
	run_pass(&x, cache, zero, first);
	memcpy(x.slots[2], x.slots[1], sizeof x.slots[2]);
	run_pass(&x, cache, zero, second);
	run_pass(&x, cache, part, rest);        // rolled back to 100, appended again
	x.be->ops->act_free(x.be, cache);
	sequences_close(&x);
}

int main(void)
{
	struct backend *be = NULL;
	struct error err = {0};
	struct backend_options options = {.n_threads = 1, .max_rows = 1};
	int r = backend_open(BACKEND, &options, &be, &err);
	backend_close(be);
	if (r < 0) {
		print_message("skipped: %s\n", err.message);
		return 77;
	}
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(any_cut_into_passes_gives_the_same_bits),
		cmocka_unit_test(a_prefix_computed_for_another_gives_the_same_bits),
		cmocka_unit_test(a_slot_given_back_holds_nothing_of_the_past),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
