// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "common/error.h"
#include "daemon/model/checkpoint.h"
#include "daemon/model/weights.h"

// A source in memory: every parameter with values that tell where they came from, in a dtype of choice; one may be missing or misshapen.
struct memory {
	struct parameter *list;
	size_t n;
	enum dtype dtype;
	const char *missing;
	const char *taller;      // has one more row
	int held;                // found and not yet released
};

static float value_at(size_t parameter, size_t i)
{
	return (float)((parameter * 31 + i * 7) % 256) / 64 - 2;      // exact in bf16
}

static int memory_find(void *file, const char *name, struct tensor *ret, struct error *err)
{
	(void)err;
	struct memory *m = file;
	if (m->missing && !strcmp(name, m->missing))
		return -ENOENT;
	for (size_t p = 0; p < m->n; p++) {
		const struct parameter *q = &m->list[p];
		if (strcmp(q->name, name))
			continue;
		struct tensor t = {.dtype = q->n_dims == 1 ? DTYPE_F32 : m->dtype, .n_dims = q->n_dims, .dims = {q->dims[0], q->dims[1]}};
		if (m->taller && !strcmp(name, m->taller))
			t.dims[0]++;
		size_t n = t.dims[0] * (q->n_dims == 2 ? q->dims[1] : 1);
		t.n_bytes = n * dtype_block_bytes(t.dtype);
		uint8_t *bytes = malloc(t.n_bytes);
		for (size_t i = 0; i < n; i++) {
			float f = value_at(p, i);
			uint16_t h = float_to_bf16(f);
			memcpy(bytes + i * dtype_block_bytes(t.dtype), t.dtype == DTYPE_F32 ? (void *)&f : (void *)&h,
				dtype_block_bytes(t.dtype));
		}
		t.data = bytes;
		m->held++;
		*ret = t;
		return 0;
	}
	return -ENOENT;
}

static void memory_release(void *file, struct tensor *t)
{
	((struct memory *)file)->held--;
	free((void *)(uintptr_t)t->data);
}

static struct architecture tiny(void)
{
	return (struct architecture){.name = "qwen3", .n_layers = 2, .width = 8, .ffn_width = 12, .n_heads = 4, .n_kv_heads = 2,
				     .head_size = 4, .vocab_size = 11, .context_length = 16, .norm_epsilon = 1e-6f, .rope_theta = 10000,
				     .qkv_bias = true, .qk_norm = true, .bos_id = -1, .eos_id = -1};
}

static struct backend *open_ref(void)
{
	struct backend *be = NULL;
	struct backend_options options = {.n_threads = 1, .max_rows = 64};
	assert_int_equal(backend_open("ref", &options, &be, NULL), 0);
	return be;
}

static struct memory memory_new(const struct architecture *a, enum dtype dtype)
{
	struct memory m = {.dtype = dtype};
	assert_int_equal(parameters_list(a, &m.list, &m.n, NULL), 0);
	return m;
}

// Rows of a matrix as the backend sees them: its product with the unit vectors.
static double *matrix_values(struct backend *be, const struct weight *w, uint32_t N, uint32_t K)
{
	float *unit = calloc((size_t)K * K, sizeof *unit);
	for (uint32_t i = 0; i < K; i++)
		unit[i * K + i] = 1;
	double *y = malloc((size_t)N * K * sizeof *y), *transposed = malloc((size_t)N * K * sizeof *transposed);
	struct act *x = be->ops->act_new(be, (size_t)K * K, NULL), *out = be->ops->act_new(be, (size_t)K * N, NULL);
	be->ops->act_write(be, x, unit, (size_t)K * K);
	be->ops->linear(be, out, x, w, NULL, K);
	be->ops->act_read(be, y, out, (size_t)K * N);
	for (uint32_t n = 0; n < N; n++)
		for (uint32_t k = 0; k < K; k++)
			transposed[n * K + k] = y[k * N + n];
	be->ops->act_free(be, x);
	be->ops->act_free(be, out);
	free(unit);
	free(y);
	return transposed;
}

static void assert_matrix(struct backend *be, const struct weight *w, const struct memory *m, const char *first, uint32_t n, uint32_t K)
{
	size_t p = 0, rows = 0, at = 0;
	while (strcmp(m->list[p].name, first))
		p++;
	for (uint32_t i = 0; i < n; i++)
		rows += m->list[p + i].dims[0];
	double *values = matrix_values(be, w, (uint32_t)rows, K);
	for (uint32_t i = 0; i < n; i++)
		for (size_t j = 0; j < m->list[p + i].n; j++)
			assert_true(values[at++] == (double)value_at(p + i, j));
	assert_int_equal(at, rows * K);
	free(values);
}

static void assert_vector(struct backend *be, const struct real *x, const struct memory *m, const char *first, uint32_t n)
{
	size_t p = 0;
	while (strcmp(m->list[p].name, first))
		p++;
	size_t total = m->list[p + n - 1].offset + m->list[p + n - 1].n - m->list[p].offset, at = 0;
	double *values = malloc(total * sizeof *values);
	be->ops->real_read(be, values, x, total);
	for (uint32_t i = 0; i < n; i++)
		for (size_t j = 0; j < m->list[p + i].n; j++)
			assert_true(values[at++] == (double)value_at(p + i, j));
	free(values);
}

static void assert_all(struct weights *w, const struct memory *m)
{
	struct backend *be = w->backend;
	assert_matrix(be, w->embedding, m, "model.embed_tokens.weight", 1, 8);
	assert_matrix(be, w->head, m, "lm_head.weight", 1, 8);
	assert_vector(be, w->vectors.final_norm, m, "model.norm.weight", 1);
	const struct layer_weights *l = &w->layers[1];
	assert_matrix(be, l->qkv, m, "model.layers.1.self_attn.q_proj.weight", 3, 8);
	assert_matrix(be, l->out, m, "model.layers.1.self_attn.o_proj.weight", 1, 16);
	assert_matrix(be, l->gate_up, m, "model.layers.1.mlp.gate_proj.weight", 2, 8);
	assert_matrix(be, l->down, m, "model.layers.1.mlp.down_proj.weight", 1, 12);
	assert_vector(be, l->attention_norm, m, "model.layers.1.input_layernorm.weight", 1);
	assert_vector(be, l->ffn_norm, m, "model.layers.1.post_attention_layernorm.weight", 1);
	assert_vector(be, l->qkv_bias, m, "model.layers.1.self_attn.q_proj.bias", 3);
	assert_vector(be, l->q_norm, m, "model.layers.1.self_attn.q_norm.weight", 1);
	assert_vector(be, l->k_norm, m, "model.layers.1.self_attn.k_norm.weight", 1);
}

static void loaded_matrices_hold_the_sources_rows(void **state)
{
	(void)state;
	struct architecture a = tiny();
	struct backend *be = open_ref();
	for (enum dtype t = DTYPE_F32; t <= DTYPE_BF16; t += 2) {
		struct memory m = memory_new(&a, t);
		struct tensor_source source = {.file = &m, .find = memory_find, .release = memory_release};
		struct weights *w = NULL;
		assert_int_equal(weights_load(be, &a, &source, 16, &w, NULL), 0);
		assert_int_equal(m.held, 0);
		assert_all(w, &m);
		weights_free(w);
		free(m.list);
	}
	backend_close(be);
}

static void trainable_is_filled_and_exported_unchanged(void **state)
{
	(void)state;
	struct architecture a = tiny();
	struct backend *be = open_ref();
	struct memory m = memory_new(&a, DTYPE_F32);
	struct tensor_source source = {.file = &m, .find = memory_find, .release = memory_release};
	struct weights *w = NULL;
	assert_int_equal(weights_new_trainable(be, &a, 1, 16, &w, NULL), 0);
	assert_int_equal(w->parameters->n_values, architecture_n_parameters(&a));
	assert_int_equal(weights_fill(w, &source, NULL), 0);
	assert_int_equal(m.held, 0);
	assert_all(w, &m);
	struct checkpoint_tensor *tensors = NULL;
	size_t n = 0;
	assert_int_equal(weights_export(w, w->parameters->value, DTYPE_BF16, &tensors, &n, NULL), 0);
	assert_int_equal(n, m.n);
	for (size_t p = 0; p < n; p++) {
		assert_string_equal(tensors[p].name, m.list[p].name);
		assert_int_equal(tensors[p].tensor.n_bytes, 2 * m.list[p].n);
		for (size_t i = 0; i < m.list[p].n; i++) {
			uint16_t h;
			memcpy(&h, (const uint8_t *)tensors[p].tensor.data + 2 * i, 2);
			assert_true(float_from_bf16(h) == value_at(p, i));
		}
	}
	weights_export_free(tensors, n);
	struct error err = {0};
	assert_int_equal(weights_export(w, w->parameters->value, DTYPE_Q8_0, &tensors, &n, &err), -EOPNOTSUPP);
	weights_free(w);
	free(m.list);
	backend_close(be);
}

static void gradients_lie_beside_values(void **state)
{
	(void)state;
	struct architecture a = tiny();
	struct backend *be = open_ref();
	struct memory m = memory_new(&a, DTYPE_F32);
	struct weights *w = NULL;
	assert_int_equal(weights_new_trainable(be, &a, 1, 16, &w, NULL), 0);
	const struct { const char *name; struct real *gradient; } places[] = {
		{"model.embed_tokens.weight", w->embedding_gradient},
		{"model.layers.0.self_attn.q_proj.weight", w->gradients[0].qkv},
		{"model.layers.1.self_attn.q_proj.bias", w->gradients[1].qkv_bias},
		{"model.layers.1.self_attn.k_norm.weight", w->gradients[1].k_norm},
		{"model.layers.1.self_attn.o_proj.weight", w->gradients[1].out},
		{"model.layers.1.mlp.gate_proj.weight", w->gradients[1].gate_up},
		{"model.layers.0.mlp.down_proj.weight", w->gradients[0].down},
		{"model.layers.0.post_attention_layernorm.weight", w->gradients[0].ffn_norm},
		{"model.norm.weight", w->vector_gradients.final_norm},
		{"lm_head.weight", w->head_gradient},
	};
	for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
		size_t p = 0;
		while (strcmp(m.list[p].name, places[i].name))
			p++;
		assert_ptr_equal(places[i].gradient, be->ops->real_at(w->parameters->gradient, m.list[p].offset));
	}
	weights_free(w);
	a.tied_head = true;
	assert_int_equal(weights_new_trainable(be, &a, 1, 16, &w, NULL), 0);
	assert_ptr_equal(w->head, w->embedding);
	assert_ptr_equal(w->head_gradient, w->embedding_gradient);
	weights_free(w);
	free(m.list);
	backend_close(be);
}

static double *start_values(struct backend *be, const struct architecture *a, uint64_t seed, size_t *ret_n)
{
	struct weights *w = NULL;
	assert_int_equal(weights_new_trainable(be, a, seed, 4, &w, NULL), 0);
	double *values = malloc(w->parameters->n_values * sizeof *values);
	be->ops->real_read(be, values, w->parameters->value, w->parameters->n_values);
	*ret_n = w->parameters->n_values;
	weights_free(w);
	return values;
}

static void random_start_is_a_function_of_the_seed(void **state)
{
	(void)state;
	struct architecture a = tiny();
	a.width = 64;
	a.vocab_size = 500;
	struct backend *be = open_ref();
	size_t n, n_same = 0, embedding = 500 * 64;
	double *first = start_values(be, &a, 7, &n), *again = start_values(be, &a, 7, &n), *other = start_values(be, &a, 8, &n);
	assert_memory_equal(first, again, n * sizeof *first);
	double sum = 0, squares = 0, cross = 0;
	for (size_t i = 0; i < embedding; i++) {
		n_same += first[i] == other[i];
		sum += first[i];
		squares += first[i] * first[i];
		cross += first[i] * other[i];
	}
	assert_true(n_same < 10);
	assert_true(fabs(sum / (double)embedding) < 5 * 0.02 / sqrt((double)embedding));
	assert_true(fabs(squares / (double)embedding - 4e-4) < 5 * 4e-4 * sqrt(2.0 / (double)embedding));
	assert_true(fabs(cross / (double)embedding) < 5 * 4e-4 / sqrt((double)embedding));
	// The values themselves are pinned: a student's start must not change between releases (made in Python).
	assert_true(fabs(first[0] - -0.0130807491) < 1e-9 && fabs(first[1] - -0.0061756945) < 1e-9);
	free(first);
	free(again);
	free(other);
	backend_close(be);
}

static void bad_tensors_are_named(void **state)
{
	(void)state;
	struct architecture a = tiny();
	struct backend *be = open_ref();
	struct memory m = memory_new(&a, DTYPE_F32);
	struct tensor_source source = {.file = &m, .find = memory_find, .release = memory_release};
	struct weights *w = NULL;
	struct error err = {0};
	for (size_t p = 0; p < m.n; p++) {      // each one missing in turn: every clean-up path
		m.missing = m.list[p].name;
		assert_int_equal(weights_load(be, &a, &source, 16, &w, &err), -EINVAL);
		assert_string_equal(err.field, m.missing);
		assert_non_null(strstr(err.message, "missing"));
		assert_int_equal(m.held, 0);
	}
	m.missing = NULL;
	m.taller = "model.layers.1.mlp.up_proj.weight";
	assert_int_equal(weights_load(be, &a, &source, 16, &w, &err), -EINVAL);
	assert_string_equal(err.message, "tensor model.layers.1.mlp.up_proj.weight is 13 x 8; the architecture needs 12 x 8");
	m.taller = "model.norm.weight";
	assert_int_equal(weights_load(be, &a, &source, 16, &w, &err), -EINVAL);
	assert_string_equal(err.message, "tensor model.norm.weight has 9 elements; the architecture needs 8");
	assert_int_equal(m.held, 0);
	assert_int_equal(weights_load(be, &a, &source, 0, &w, &err), -EINVAL);
	free(m.list);
	backend_close(be);
}

static void padding_rows_of_the_vocabulary_are_cut(void **state)
{
	(void)state;
	struct architecture a = tiny();
	struct backend *be = open_ref();
	struct memory m = memory_new(&a, DTYPE_F32);
	struct tensor_source source = {.file = &m, .find = memory_find, .release = memory_release};
	const char *padded[] = {"model.embed_tokens.weight", "lm_head.weight"};
	for (int i = 0; i < 2; i++) {
		struct weights *w = NULL;
		m.taller = padded[i];
		assert_int_equal(weights_load(be, &a, &source, 16, &w, NULL), 0);
		assert_all(w, &m);      // a product of exactly V rows
		weights_free(w);
	}
	free(m.list);
	backend_close(be);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(loaded_matrices_hold_the_sources_rows),
		cmocka_unit_test(trainable_is_filled_and_exported_unchanged),
		cmocka_unit_test(gradients_lie_beside_values),
		cmocka_unit_test(random_start_is_a_function_of_the_seed),
		cmocka_unit_test(bad_tensors_are_named),
		cmocka_unit_test(padding_rows_of_the_vocabulary_are_cut),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
