// SPDX-License-Identifier: Apache-2.0
// What the model layer says it will make is what it asks the device for, element by element, for every family, served and trained; and a
// device that reserved just that at open has room for all of it and is never asked for more.
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "common/error.h"
#include "daemon/model/cache.h"
#include "daemon/model/forward.h"
#include "daemon/model/head.h"
#include "daemon/model/model.h"
#include "tests/golden/golden.h"

#ifndef DEVICE
#define DEVICE "cpu"
#endif

enum { MAX_ROWS = 40, N_SLOTS = 24, ROUNDING = 4096 };

static const char *const names[] = {"llama", "llama-tied", "llama3", "qwen2", "qwen3", "linear", "gpt2", "bert", "train-bias"};
#define N_NAMES (sizeof names / sizeof *names)
static const char *const only_served[] = {"gemma2", "gemma3", "mixtral", "qwen3-moe", "phi3", "smollm3", "granite"};
#define N_ONLY_SERVED (sizeof only_served / sizeof *only_served)

// ---- a backend that counts what is asked of it

static const struct backend_ops *real_ops;
static struct backend_count made;
static uint64_t largest;               // elements of a loaded matrix

static struct real *counted_real_new(struct backend *be, size_t n, struct error *err)
{
	made.n_real += n;
	made.n_arrays++;
	return real_ops->real_new(be, n, err);
}

static struct act *counted_act_new(struct backend *be, size_t n, struct error *err)
{
	made.n_act += n;
	made.n_arrays++;
	return real_ops->act_new(be, n, err);
}

static struct weight *counted_weight_load(struct backend *be, enum weight_kind kind, const struct tensor *parts, uint32_t n_parts,
					  struct error *err)
{
	uint64_t before = made.n_weight;
	for (uint32_t i = 0; i < n_parts; i++)
		made.n_weight += parts[i].dims[0] * parts[i].dims[1];
	for (uint32_t i = 0; i < n_parts && kind == WEIGHT_BLOCK; i++) {
		made.n_block += parts[i].dims[0] * parts[i].dims[1];
		made.fp8_bytes += backend_fp8_bytes(parts[i].dims[0], parts[i].dims[1]);
	}
	uint64_t n = made.n_weight - before;
	largest = n > largest ? n : largest;
	made.n_arrays++;
	return real_ops->weight_load(be, kind, parts, n_parts, err);
}

static struct weight *counted_weight_view(struct backend *be, struct real *array, uint32_t n_rows, uint32_t n_columns, struct error *err)
{
	made.n_view += (uint64_t)n_rows * n_columns;
	made.n_arrays++;
	return real_ops->weight_view(be, array, n_rows, n_columns, err);
}

static struct backend *open_counted(const struct backend_need *need, enum backend_numeric numeric)
{
	static struct backend_ops counted;
	struct backend_options options = {.n_threads = 1, .numeric = numeric, .max_rows = MAX_ROWS, .need = *need};
	struct backend *be;
	struct error err = {0};
	if (backend_open(DEVICE, &options, &be, &err))
		fail_msg("%s", err.message);
	real_ops = be->ops;
	counted = *real_ops;
	counted.real_new = counted_real_new;
	counted.act_new = counted_act_new;
	counted.weight_load = counted_weight_load;
	counted.weight_view = counted_weight_view;
	be->ops = &counted;
	made = (struct backend_count){0};
	largest = 0;
	return be;
}

static struct backend_count all_parts(const struct backend_need *need)
{
	struct backend_count sum = {0};
	for (int i = 0; i < N_BACKEND_PARTS; i++) {
		sum.n_real += need->parts[i].n_real;
		sum.n_act += need->parts[i].n_act;
		sum.n_weight += need->parts[i].n_weight;
		sum.n_block += need->parts[i].n_block;
		sum.fp8_bytes += need->parts[i].fp8_bytes;
		sum.n_view += need->parts[i].n_view;
		sum.n_arrays += need->parts[i].n_arrays;
	}
	return sum;
}

static void compare(const char *name, const struct backend_need *need)
{
	struct backend_count said = all_parts(need);
	if (said.n_real != made.n_real || said.n_act != made.n_act || said.n_weight != made.n_weight || said.n_view != made.n_view ||
	    said.n_block != made.n_block || said.fp8_bytes != made.fp8_bytes || said.n_arrays < made.n_arrays)
		fail_msg("%s: said %llu real, %llu act, %llu weight (%llu of blocks, fp8 %llu), %llu view, %llu arrays; made %llu, %llu, "
			 "%llu (%llu, %llu), %llu, %llu", name,
			 (unsigned long long)said.n_real, (unsigned long long)said.n_act, (unsigned long long)said.n_weight,
			 (unsigned long long)said.n_block, (unsigned long long)said.fp8_bytes,
			 (unsigned long long)said.n_view, (unsigned long long)said.n_arrays, (unsigned long long)made.n_real,
			 (unsigned long long)made.n_act, (unsigned long long)made.n_weight, (unsigned long long)made.n_block,
			 (unsigned long long)made.fp8_bytes, (unsigned long long)made.n_view,
			 (unsigned long long)made.n_arrays);
}

// ---- the parts of a model

static uint32_t recompute;             // of activations

struct parts {
	struct weights *weights;
	struct activations *activations;
	struct head *head, *beside;
	struct cache *cache;
};

static void count(const struct architecture *a, bool training, struct backend_need *need)
{
	struct error err = {0};
	int r = weights_need(a, MAX_ROWS, training ? 2 : 0, need, &err);
	r = r ? r : activations_need(a, MAX_ROWS, training, recompute, need, &err);
	r = r ? r : head_need(a, MAX_ROWS, training, false, need, &err);
	if (!training) {
		r = r ? r : head_need(a, MAX_ROWS, false, true, need, &err);
		r = r ? r : cache_need(a, N_SLOTS, need, &err);
	}
	if (r)
		fail_msg("%s: %s", err.field, err.message);
}

static void make(struct backend *be, struct model_file *file, bool training, struct parts *p)
{
	struct error err = {0};
	const struct architecture *a = model_file_architecture(file);
	struct tensor_source source = model_file_source(file);
	int r = training ? weights_new_trainable(be, a, 1, MAX_ROWS, &p->weights, &err)
			: weights_load(be, a, &source, MAX_ROWS, &p->weights, &err);
	r = r ? r : activations_new(p->weights, MAX_ROWS, training, recompute, &p->activations, &err);
	r = r ? r : head_open(p->weights, MAX_ROWS, &p->head, &err);
	if (!training) {
		r = r ? r : head_open_beside(p->weights, p->head, &p->beside, &err);
		r = r ? r : cache_open(p->weights, N_SLOTS, &p->cache, &err);
	}
	if (r)
		fail_msg("%s: %s", err.field, err.message);
}

static void parts_done(struct parts *p)
{
	cache_close(p->cache);
	head_close(p->beside);
	head_close(p->head);
	activations_free(p->activations);
	weights_free(p->weights);
}

static void check_model(const char *name, bool training, enum backend_numeric numeric)
{
	char path[4096], what[64];
	struct model_file *file = NULL;
	struct error err = {0};
	struct backend_need need = {.n_slots = 100};
	struct parts p = {0};
	snprintf(what, sizeof what, "models/%s", name);
	golden_path(path, sizeof path, what);
	if (model_file_open(path, &file, &err))
		fail_msg("%s: %s", path, err.message);
	count(model_file_architecture(file), training, &need);
	struct backend *be = open_counted(&need, numeric);
	uint64_t reserved = be->memory_bytes;
	make(be, file, training, &p);
	compare(name, &need);
	assert_int_equal(need.n_largest, largest);
	assert_true(be->memory_bytes == reserved);
	uint64_t parts_apart = numeric == BACKEND_NUMERIC_FP8 ? all_parts(&need).n_arrays * FP8_TILE * need.widest / sizeof(float) : 0;
	if (reserved)        // what is left over is rounding; of FP8 also that each part was counted in tiles
		assert_null(real_ops->real_new(be, all_parts(&need).n_arrays * ROUNDING + parts_apart, &err));
	parts_done(&p);
	backend_close(be);
	model_file_close(file);
}

static void what_is_served_is_counted(void **state)
{
	(void)state;
	for (size_t i = 0; i < N_NAMES; i++)
		check_model(names[i], false, BACKEND_NUMERIC_AUTO);
	check_model(names[0], false, BACKEND_NUMERIC_F32);
	for (size_t i = 0; i < N_ONLY_SERVED; i++)
		check_model(only_served[i], false, BACKEND_NUMERIC_AUTO);
}

static void what_is_trained_is_counted(void **state)
{
	(void)state;
	for (size_t i = 0; i < N_NAMES; i++)
		check_model(names[i], true, BACKEND_NUMERIC_AUTO);
	check_model(names[0], true, BACKEND_NUMERIC_F32);
	for (recompute = 1; recompute <= 2; recompute++)
		for (size_t i = 0; i < N_NAMES; i++)
			check_model(names[i], true, BACKEND_NUMERIC_AUTO);
	recompute = 0;
}

// FP8's matrices are smaller, and that is what is reserved.
static void what_is_served_in_fp8_is_counted(void **state)
{
	struct backend_options options = {.n_threads = 1, .numeric = BACKEND_NUMERIC_FP8, .max_rows = 1};
	struct backend *be;
	struct error err = {0};
	(void)state;
	if (backend_open(DEVICE, &options, &be, &err) == -EOPNOTSUPP)
		skip();
	backend_close(be);
	for (size_t i = 0; i < N_NAMES; i++)
		check_model(names[i], false, BACKEND_NUMERIC_FP8);
	for (size_t i = 0; i < N_ONLY_SERVED; i++)
		check_model(only_served[i], false, BACKEND_NUMERIC_FP8);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_is_served_is_counted),
		cmocka_unit_test(what_is_served_in_fp8_is_counted),
		cmocka_unit_test(what_is_trained_is_counted),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
