// SPDX-License-Identifier: Apache-2.0
// Trainable weights: two flat device arrays (value and gradient) in the order of parameters.c, matrices as views of the first.
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/error.h"
#include "daemon/model/checkpoint.h"
#include "daemon/model/weights.h"
#include "daemon/model/weights_internal.h"

#define CHUNK 65536      // elements converted at a time: 256 KiB of floats stays in the cache

// Walks the list in order, as in weights.c: the first failure sticks.
struct binding {
	struct weights *w;
	size_t next;
	int result;
	struct error *err;
};

static void bind_vector(struct binding *b, uint32_t n, struct real **ret_value, struct real **ret_gradient)
{
	struct parameters *p = b->w->parameters;
	const struct backend_ops *ops = b->w->backend->ops;
	size_t offset = p->list[b->next].offset;
	*ret_value = ops->real_at(p->value, offset);
	*ret_gradient = ops->real_at(p->gradient, offset);
	b->next += n;
}

static void bind_matrix(struct binding *b, uint32_t n, struct weight **ret_matrix, struct real **ret_gradient)
{
	const struct parameter *p = &b->w->parameters->list[b->next];
	struct real *value;
	uint64_t rows = 0;
	for (uint32_t i = 0; i < n; i++)
		rows += p[i].dims[0];
	bind_vector(b, n, &value, ret_gradient);
	if (b->result < 0)
		return;
	*ret_matrix = b->w->backend->ops->weight_view(b->w->backend, value, (uint32_t)rows, (uint32_t)p->dims[1], b->err);
	if (!*ret_matrix)
		b->result = -ENOMEM;
}

static void bind_norm(struct binding *b, struct real **ret_gain, struct real **ret_bias, struct real **ret_gain_gradient,
		      struct real **ret_bias_gradient)
{
	bind_vector(b, 1, ret_gain, ret_gain_gradient);
	if (b->w->architecture.norm == NORM_LAYER)
		bind_vector(b, 1, ret_bias, ret_bias_gradient);
}

static void bind_layer(struct binding *b, struct layer_weights *l, struct layer_gradients *g)
{
	const struct architecture *a = &b->w->architecture;
	uint32_t n_qkv = parameters_qkv_parts(a);
	bind_norm(b, &l->attention_norm, &l->attention_norm_bias, &g->attention_norm, &g->attention_norm_bias);
	bind_matrix(b, n_qkv, &l->qkv, &g->qkv);
	if (a->qkv_bias)
		bind_vector(b, n_qkv, &l->qkv_bias, &g->qkv_bias);
	if (a->qk_norm) {
		bind_vector(b, 1, &l->q_norm, &g->q_norm);
		bind_vector(b, 1, &l->k_norm, &g->k_norm);
	}
	bind_matrix(b, 1, &l->out, &g->out);
	if (a->out_bias)
		bind_vector(b, 1, &l->out_bias, &g->out_bias);
	bind_norm(b, &l->ffn_norm, &l->ffn_norm_bias, &g->ffn_norm, &g->ffn_norm_bias);
	bind_matrix(b, parameters_up_parts(a), &l->gate_up, &g->gate_up);
	if (a->ffn_bias)
		bind_vector(b, parameters_up_parts(a), &l->up_bias, &g->up_bias);
	bind_matrix(b, 1, &l->down, &g->down);
	if (a->ffn_bias)
		bind_vector(b, 1, &l->down_bias, &g->down_bias);
}

static void bind_embeddings(struct binding *b)
{
	struct weights *w = b->w;
	bind_matrix(b, 1, &w->embedding, &w->embedding_gradient);
	if (w->architecture.learned_positions)
		bind_vector(b, 1, &w->vectors.positions, &w->vector_gradients.positions);
	if (w->architecture.n_token_types)
		bind_vector(b, 1, &w->vectors.token_types, &w->vector_gradients.token_types);
}

static void bind_head(struct binding *b)
{
	struct weights *w = b->w;
	struct model_vectors *v = &w->vectors, *g = &w->vector_gradients;
	bind_norm(b, &v->final_norm, &v->final_norm_bias, &g->final_norm, &g->final_norm_bias);
	if (w->architecture.masked) {
		bind_matrix(b, 1, &w->transform, &w->transform_gradient);
		bind_vector(b, 1, &v->transform_bias, &g->transform_bias);
		bind_norm(b, &v->transform_norm, &v->transform_norm_bias, &g->transform_norm, &g->transform_norm_bias);
		bind_vector(b, 1, &v->head_bias, &g->head_bias);
	}
	if (w->architecture.tied_head) {
		w->head = w->embedding;
		w->head_gradient = w->embedding_gradient;
	} else {
		bind_matrix(b, 1, &w->head, &w->head_gradient);
	}
}

static void bind_beside(struct binding *b)
{
	const struct parameters *p = b->w->parameters;
	while (b->next < p->n_parameters && b->result == 0) {
		size_t i = b->next - p->n_model;
		struct real *none;
		if (p->list[b->next].n_dims == 2)
			bind_matrix(b, 1, &b->w->beside[i], &none);
		else
			b->next++;
	}
}

static int bind(struct weights *w, struct error *err)
{
	struct binding b = {.w = w, .err = err};
	bind_embeddings(&b);
	for (uint32_t i = 0; i < w->architecture.n_layers; i++)
		bind_layer(&b, &w->layers[i], &w->gradients[i]);
	bind_head(&b);
	bind_beside(&b);
	return b.result;
}

// Makes the list longer by what stands beside the model.
static int list_extend(struct weights *w, const struct parameters_beside *beside)
{
	struct parameters *p = w->parameters;
	size_t n = p->n_model + beside->n;
	struct parameter *list = reallocarray(p->list, n, sizeof *list);
	w->beside = calloc(beside->n, sizeof *w->beside);
	if (list)
		p->list = list;
	if (!list || !w->beside)
		return -ENOMEM;
	for (uint32_t i = 0; i < beside->n; i++) {
		const struct parameter_beside *b = &beside->list[i];
		struct parameter *q = &list[p->n_parameters++];
		*q = (struct parameter){.n_dims = b->columns ? 2 : 1, .dims = {b->rows, b->columns}, .offset = p->n_values,
					.n = (size_t)b->rows * (b->columns ? b->columns : 1), .decay = b->columns != 0};
		memcpy(q->name, b->name, sizeof q->name);
		p->n_values += q->n;
	}
	return 0;
}

static int new_arrays(struct weights *w, const struct parameters_beside *beside, struct error *err)
{
	const struct backend_ops *ops = w->backend->ops;
	struct parameters *p = calloc(1, sizeof *p);
	w->parameters = p;
	w->gradients = calloc(w->architecture.n_layers, sizeof *w->gradients);
	if (!p || !w->gradients)
		return error_set(err, ERROR_MEMORY, NULL, "no memory for parameters");
	int r = parameters_list(&w->architecture, &p->list, &p->n_model, err);
	if (r < 0)
		return r;
	const struct parameter *last = &p->list[p->n_model - 1];
	p->n_values = p->n_model_values = last->offset + last->n;
	p->n_parameters = p->n_model;
	if (beside->n && list_extend(w, beside))
		return error_set(err, ERROR_MEMORY, NULL, "no memory for parameters");
	struct real **arrays[] = {&p->value, &p->gradient};
	for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++)
		if (!(*arrays[i] = ops->real_new(w->backend, p->n_values, err)))
			return -ENOMEM;
	return 0;
}

// A counter-based generator (the splitmix64 stream of `key`, entered at any place): value i depends on key and i alone.
static uint64_t mix(uint64_t x)
{
	x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
	x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
	return x ^ x >> 31;
}

static double uniform(uint64_t key, uint64_t i)      // (0, 1]
{
	return (double)((mix(key + (i + 1) * UINT64_C(0x9e3779b97f4a7c15)) >> 11) + 1) * 0x1p-53;
}

static float normal(uint64_t key, uint64_t i)        // Box-Muller
{
	return (float)(sqrt(-2 * log(uniform(key, 2 * i))) * cos(2 * M_PI * uniform(key, 2 * i + 1)));
}

static bool name_ends_with(const char *name, const char *end)
{
	size_t n = strlen(name), k = strlen(end);
	return n >= k && !strcmp(name + n - k, end);
}

// Vectors start at 1 (norms) or 0 (biases); matrices at normal(0, 0.02), those that write to the residual stream smaller by
// sqrt(2 n_layers), so that its variance does not grow with depth (GPT-2).
static void start_parameter(const struct weights *w, const struct parameter *p, uint64_t key, float *buffer)
{
	bool residual = name_ends_with(p->name, "o_proj.weight") || name_ends_with(p->name, "down_proj.weight") ||
			name_ends_with(p->name, ".c_proj.weight");
	float scale = residual ? (float)(0.02 / sqrt(2.0 * w->architecture.n_layers)) : 0.02f;
	float constant = name_ends_with(p->name, ".bias") ? 0 : 1;
	for (size_t done = 0; done < p->n; done += CHUNK) {
		size_t n = p->n - done < CHUNK ? p->n - done : CHUNK;
		for (size_t i = 0; i < n; i++)
			buffer[i] = p->n_dims == 2 ? scale * normal(key, p->offset + done + i) : constant;
		w->backend->ops->real_write(w->backend, w->backend->ops->real_at(w->parameters->value, p->offset + done), buffer, n);
	}
}

int weights_new_trainable(struct backend *be, const struct architecture *a, uint64_t seed, uint32_t max_positions,
			  struct weights **ret_weights, struct error *err)
{
	const struct parameters_beside none = {0};
	return weights_new_beside(be, a, &none, seed, max_positions, ret_weights, err);
}

int weights_new_beside(struct backend *be, const struct architecture *a, const struct parameters_beside *beside, uint64_t seed,
		       uint32_t max_positions, struct weights **ret_weights, struct error *err)
{
	struct weights *w = NULL;
	if (!architecture_trains(a))
		return error_set(err, ERROR_UNSUPPORTED, "student", "models of the family %s cannot be trained yet", a->name);
	float *buffer = malloc(CHUNK * sizeof *buffer);
	int r = buffer ? weights_new_empty(be, a, max_positions, &w, err) : error_set(err, ERROR_MEMORY, NULL, "no memory for parameters");
	if (r < 0 || (r = new_arrays(w, beside, err)) < 0)
		goto out;
	uint64_t key = mix(seed ^ UINT64_C(0x6b64736572766564));      // neighbouring seeds far apart
	for (size_t i = 0; i < w->parameters->n_parameters; i++)
		start_parameter(w, &w->parameters->list[i], key, buffer);
	if ((r = bind(w, err)) < 0)
		goto out;
	weights_refresh(w);
	r = backend_sync(be, err);
out:
	free(buffer);
	if (r < 0)
		weights_free(w);
	else
		*ret_weights = w;
	return r;
}

void weights_refresh(struct weights *w)
{
	const struct backend_ops *ops = w->backend->ops;
	ops->weight_refresh(w->backend, w->embedding);
	if (w->head != w->embedding)
		ops->weight_refresh(w->backend, w->head);
	if (w->transform)
		ops->weight_refresh(w->backend, w->transform);
	for (size_t i = 0; i < w->parameters->n_parameters - w->parameters->n_model; i++)
		if (w->beside[i])
			ops->weight_refresh(w->backend, w->beside[i]);
	for (uint32_t i = 0; i < w->architecture.n_layers; i++) {
		ops->weight_refresh(w->backend, w->layers[i].qkv);
		ops->weight_refresh(w->backend, w->layers[i].out);
		ops->weight_refresh(w->backend, w->layers[i].gate_up);
		ops->weight_refresh(w->backend, w->layers[i].down);
	}
}

// Converts row by row (blocks run along a row), as many rows at a time as fit in the buffer of `capacity` floats.
static void fill_parameter(const struct weights *w, struct real *array, const struct parameter *p, const struct tensor *t, float *buffer,
			   size_t capacity)
{
	size_t columns = p->dims[p->n_dims - 1], rows = p->n / columns, step = capacity / columns,
		row_bytes = dtype_row_bytes(t->dtype, columns);
	for (size_t i = 0; i < rows; i += step) {
		size_t n = (rows - i < step ? rows - i : step) * columns;
		dtype_to_float(t->dtype, (const uint8_t *)t->data + i * row_bytes, buffer, n);
		w->backend->ops->real_write(w->backend, w->backend->ops->real_at(array, p->offset + i * columns), buffer, n);
	}
}

static size_t widest_row(const struct parameters *p)
{
	size_t n = CHUNK;
	for (size_t i = 0; i < p->n_parameters; i++)
		if (p->list[i].dims[p->list[i].n_dims - 1] > n)
			n = p->list[i].dims[p->list[i].n_dims - 1];
	return n;
}

// The first n parameters of the list.
static int fill(struct weights *w, struct real *array, const struct tensor_source *source, size_t n, struct error *err)
{
	const struct parameters *p = w->parameters;
	size_t capacity = widest_row(p);
	float *buffer = malloc(capacity * sizeof *buffer);
	int r = buffer ? 0 : error_set(err, ERROR_MEMORY, NULL, "no memory to convert weights");
	for (size_t i = 0; i < n && r == 0; i++) {
		struct tensor t;
		r = weights_find(source, &p->list[i], &t, err);
		if (r == 0) {
			fill_parameter(w, array, &p->list[i], &t, buffer, capacity);
			weights_release(source, &p->list[i], &t);
		}
	}
	free(buffer);
	return r < 0 ? r : backend_sync(w->backend, err);
}

int weights_fill_array(struct weights *w, struct real *array, const struct tensor_source *source, struct error *err)
{
	return fill(w, array, source, w->parameters->n_parameters, err);
}

int weights_fill(struct weights *w, const struct tensor_source *source, struct error *err)
{
	int r = fill(w, w->parameters->value, source, w->parameters->n_model, err);
	if (r < 0)
		return r;
	weights_refresh(w);
	return backend_sync(w->backend, err);
}

static void convert_one(enum dtype dtype, double from, uint8_t *to)
{
	float f = (float)from;
	uint16_t h = dtype == DTYPE_BF16 ? float_to_bf16(f) : float_to_f16(f);
	if (dtype == DTYPE_F32)
		memcpy(to, &f, 4);
	else
		memcpy(to, &h, 2);
}

// Elements first..first+n-1 of p, each to where the file has it.
static void convert(enum dtype dtype, const struct parameter *p, const double *from, size_t first, size_t n, uint8_t *to)
{
	size_t element = dtype_block_bytes(dtype), N = p->dims[0], K = p->dims[1];
	for (size_t i = first; i < first + n; i++)
		convert_one(dtype, from[i - first], to + element * (p->transposed ? i % K * N + i / K : i));
}

static int export_parameter(const struct weights *w, const struct real *array, enum dtype dtype, const struct parameter *p, double *buffer,
			    struct checkpoint_tensor *ret)
{
	const struct backend_ops *ops = w->backend->ops;
	size_t element = dtype_block_bytes(dtype);
	uint8_t *bytes = malloc(p->n * element);
	char *name = strdup(p->name);
	*ret = (struct checkpoint_tensor){name, {
		.dtype = dtype, .n_dims = p->n_dims, .dims = {p->dims[p->transposed], p->dims[!p->transposed]},
		.data = bytes, .n_bytes = p->n * element}};
	if (!bytes || !name)
		return -ENOMEM;
	for (size_t done = 0; done < p->n; done += CHUNK) {
		size_t n = p->n - done < CHUNK ? p->n - done : CHUNK;
		// real_at is pointer arithmetic: the cast gives nothing away.
		ops->real_read(w->backend, buffer, ops->real_at((struct real *)(uintptr_t)array, p->offset + done), n);
		convert(dtype, p, buffer, done, n, bytes);
	}
	return 0;
}

int weights_export(const struct weights *w, const struct real *array, enum dtype dtype, struct checkpoint_tensor **ret_tensors,
		   size_t *ret_n, struct error *err)
{
	const struct parameters *p = w->parameters;
	if (dtype != DTYPE_F32 && dtype != DTYPE_F16 && dtype != DTYPE_BF16)
		return error_set(err, ERROR_UNSUPPORTED, NULL, "cannot write parameters as %s (supported: F32 F16 BF16)",
			dtype_name(dtype));
	struct checkpoint_tensor *tensors = calloc(p->n_parameters, sizeof *tensors);
	double *buffer = malloc(CHUNK * sizeof *buffer);
	int r = tensors && buffer ? 0 : -ENOMEM;
	for (size_t i = 0; i < p->n_parameters && r == 0; i++)
		r = export_parameter(w, array, dtype, &p->list[i], buffer, &tensors[i]);
	free(buffer);
	if (r == -ENOMEM)
		error_set(err, ERROR_MEMORY, NULL, "no memory to copy %zu parameters", p->n_values);
	else
		r = backend_sync(w->backend, err);
	if (r < 0) {
		weights_export_free(tensors, p->n_parameters);
		return r;
	}
	*ret_tensors = tensors;
	*ret_n = p->n_parameters;
	return 0;
}

void weights_export_free(struct checkpoint_tensor *tensors, size_t n)
{
	for (size_t i = 0; tensors && i < n; i++) {
		free((void *)(uintptr_t)tensors[i].name);
		free((void *)(uintptr_t)tensors[i].tensor.data);
	}
	free(tensors);
}
