// SPDX-License-Identifier: Apache-2.0
// Gradient checkpointing: whatever is kept of the layers' arrays, backward gives the same bits, for every family; what is counted for it is
// what is made, and it is less.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/error.h"
#include "tests/golden/golden.h"

enum { N_LAYERS = 5, T = 13 };

static const char *const names[] = {"llama", "qwen3", "gpt2", "bert"};
#define N_NAMES (sizeof names / sizeof *names)
static const uint32_t starts[] = {0, 7, 8, T};

static struct architecture architecture_named(const char *name)
{
	char path[4096], what[64];
	struct model_file *file = NULL;
	struct error err = {0};
	snprintf(what, sizeof what, "models/%s", name);
	golden_path(path, sizeof path, what);
	if (model_file_open(path, &file, &err))
		fail_msg("%s: %s", path, err.message);
	struct architecture a = *model_file_architecture(file);
	model_file_close(file);
	a.n_layers = N_LAYERS;
	return a;
}

// Starts are near zero and one: larger values, so that a layer computed from the wrong input would differ.
static void start_anew(struct weights *w)
{
	size_t n = w->parameters->n_values;
	float *values = golden_array(n, sizeof *values);
	for (size_t i = 0; i < n; i++)
		values[i] = (float)((i * 2654435761u >> 7) % 2048) / 4096 - 0.2f;
	w->backend->ops->real_write(w->backend, w->parameters->value, values, n);
	weights_refresh(w);
	free(values);
}

static struct layout layout_make(const struct architecture *a)
{
	static uint32_t tokens[T], positions[T];
	for (uint32_t s = 0; s + 1 < sizeof starts / sizeof *starts; s++)
		for (uint32_t t = starts[s]; t < starts[s + 1]; t++) {
			tokens[t] = t * 13 % a->vocab_size;
			positions[t] = t - starts[s];
		}
	return (struct layout){.n_positions = T, .n_sequences = 3, .tokens = tokens, .positions = positions, .starts = starts};
}

static struct act *slope_make(struct backend *be, const struct architecture *a)
{
	size_t n = (size_t)T * a->width;
	float *values = golden_array(n, sizeof *values);
	struct act *slope = be->ops->act_new(be, n, NULL);
	assert_non_null(slope);
	for (size_t i = 0; i < n; i++)
		values[i] = (float)(i * 40503 % 1000) / 1000 - 0.5f;
	be->ops->act_write(be, slope, values, n);
	free(values);
	return slope;
}

// Gradients of two passes, one on the other, and what forward gave.
static double *gradients(const struct architecture *a, const char *device, uint32_t recompute, size_t *ret_n)
{
	struct backend_options options = {.n_threads = 2, .max_rows = T};
	struct error err = {0};
	struct backend *be = NULL;
	struct weights *w = NULL;
	struct activations *x = NULL;
	struct layout layout = layout_make(a);
	if (backend_open(device, &options, &be, &err) || weights_new_trainable(be, a, 1, 64, &w, &err) ||
	    activations_new(w, T, true, recompute, &x, &err))
		fail_msg("%s", err.message);
	start_anew(w);
	struct act *slope = slope_make(be, a);
	size_t n = w->parameters->n_values, n_rows = (size_t)T * a->width;
	double *all = golden_array(n + n_rows, sizeof *all);
	for (int i = 0; i < 2; i++) {
		struct act *rows = forward(w, x, &layout);
		be->ops->act_read(be, all + n, rows, n_rows);
		backward(w, x, &layout, slope);
	}
	be->ops->real_read(be, all, w->parameters->gradient, n);
	if (backend_sync(be, &err))
		fail_msg("%s", err.message);
	be->ops->act_free(be, slope);
	activations_free(x);
	weights_free(w);
	backend_close(be);
	*ret_n = n + n_rows;
	return all;
}

static void compare(const char *name, const char *device)
{
	static const uint32_t kept[] = {1, 2, 3, 4, 5, 9};
	struct architecture a = architecture_named(name);
	size_t n, n_again;
	double *want = gradients(&a, device, 0, &n), largest = 0;
	for (size_t i = 0; i < n; i++)
		largest = want[i] > largest ? want[i] : largest;
	assert_true(largest > 1e-3);
	for (size_t k = 0; k < sizeof kept / sizeof *kept; k++) {
		double *got = gradients(&a, device, kept[k], &n_again);
		assert_int_equal(n, n_again);
		for (size_t i = 0; i < n; i++)
			if (memcmp(&got[i], &want[i], sizeof *got))
				fail_msg("%s, every %u: [%zu] %.17g, kept whole %.17g", name, kept[k], i, got[i], want[i]);
		free(got);
	}
	free(want);
}

static void recomputed_layers_give_the_same_bits(void **state)
{
	(void)state;
	for (size_t i = 0; i < N_NAMES; i++) {
		compare(names[i], "ref");
		compare(names[i], DEVICE);
	}
}

static struct backend_count need_of(const struct architecture *a, uint32_t recompute)
{
	struct backend_need need = {0};
	assert_int_equal(activations_need(a, T, true, recompute, &need, NULL), 0);
	return need.parts[BACKEND_PART_TRAINING];
}

// Per layer (T, W), (T, NH D), (T, 2C + F + up), and as real (T, 2C + NH): one of five of each but the inputs.
static void keeping_inputs_alone_needs_less(void **state)
{
	(void)state;
	struct architecture a = architecture_named("llama");
	struct backend_count all = need_of(&a, 0), one = need_of(&a, 1), two = need_of(&a, 2), most = need_of(&a, N_LAYERS);
	uint64_t heads = a.n_heads * a.head_size, W = heads + 2 * a.n_kv_heads * a.head_size;
	uint64_t act = T * (W + heads + 2 * (uint64_t)a.width + a.ffn_width + architecture_up_width(&a));
	uint64_t real = T * ((uint64_t)a.width + a.n_heads), input = T * (uint64_t)a.width;
	assert_int_equal(all.n_act - one.n_act, 4 * act);
	assert_int_equal(all.n_real - one.n_real, 4 * real);
	assert_int_equal(all.n_act - two.n_act, 3 * act);
	assert_int_equal(all.n_real - two.n_real, 3 * real + (5 - 4) * input);     // inputs of layers 0 to 2 and 4: layer 3's is layer 1's
	assert_int_equal(most.n_act, all.n_act);
	assert_int_equal(most.n_real, all.n_real);
}

int main(void)
{
	if (!golden_device_found())
		return 77;
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(recomputed_layers_give_the_same_bits),
		cmocka_unit_test(keeping_inputs_alone_needs_less),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
