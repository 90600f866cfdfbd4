// SPDX-License-Identifier: Apache-2.0
#include "tests/golden/golden.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/error.h"

void *golden_array(size_t n, size_t size)
{
	void *x = calloc(n ? n : 1, size);
	assert_non_null(x);
	return x;
}

void golden_path(char *to, size_t size, const char *name)
{
	const char *top = getenv("top_srcdir");
	int n = snprintf(to, size, "%s/tests/golden/%s", top ? top : ".", name);
	assert_true(n > 0 && (size_t)n < size);
}

bool golden_teacher(char *to, size_t size)
{
	const char *path = getenv("KDSERVED_TEACHER"), *home = getenv("HOME");
	if (path && *path)
		snprintf(to, size, "%s", path);
	else
		snprintf(to, size, "%s/.cache/kdserved/SmolLM2-135M-Instruct.Q4_1.gguf", home ? home : "");
	return access(to, R_OK) == 0;
}

void golden_open(struct golden_file *g, const char *name, const char magic[4])
{
	char path[4096];
	golden_path(path, sizeof path, name);
	FILE *f = fopen(path, "rb");
	if (!f)
		fail_msg("cannot open %s", path);
	assert_int_equal(fseek(f, 0, SEEK_END), 0);
	long n = ftell(f);
	assert_true(n > 4);
	rewind(f);
	g->bytes = golden_array((size_t)n, 1);
	assert_int_equal(fread(g->bytes, 1, (size_t)n, f), n);
	fclose(f);
	assert_memory_equal(g->bytes, magic, 4);
	g->reader = reader_init(g->bytes, (size_t)n);
	reader_bytes(&g->reader, 4);
}

void golden_close(struct golden_file *g)
{
	assert_false(g->reader.failed);
	assert_int_equal(reader_left(&g->reader), 0);
	free(g->bytes);
	g->bytes = NULL;
}

uint32_t *golden_u32s(struct golden_file *g, uint32_t n)
{
	uint32_t *x = golden_array(n, sizeof *x);
	for (uint32_t i = 0; i < n; i++)
		x[i] = reader_u32(&g->reader);
	assert_false(g->reader.failed);
	return x;
}

double *golden_f32s(struct golden_file *g, size_t n)
{
	double *x = golden_array(n, sizeof *x);
	for (size_t i = 0; i < n; i++)
		x[i] = reader_f32(&g->reader);
	assert_false(g->reader.failed);
	return x;
}

bool golden_device_found(void)
{
	struct backend *be = NULL;
	struct error err = {0};
	struct backend_options options = {.n_threads = 1, .max_rows = 1};
	bool found = backend_open(DEVICE, &options, &be, &err) == 0;
	backend_close(be);
	if (!found)
		fprintf(stderr, "skipped: %s\n", err.message);
	return found;
}

void golden_model_open(struct golden_model *m, const char *path, const char *device, enum backend_numeric numeric, bool training,
		       uint32_t max_positions)
{
	struct error err = {0};
	struct backend_options options = {.n_threads = 2, .numeric = numeric, .max_rows = max_positions};
	*m = (struct golden_model){0};
	if (model_file_open(path, &m->file, &err) < 0 || backend_open(device, &options, &m->backend, &err) < 0)
		fail_msg("%s: %s", path, err.message);
	const struct architecture *a = model_file_architecture(m->file);
	struct tensor_source source = model_file_source(m->file);
	int r = training ? weights_new_trainable(m->backend, a, 1, max_positions, &m->weights, &err) :
			   weights_load(m->backend, a, &source, max_positions, &m->weights, &err);
	if (r == 0 && training)
		r = weights_fill(m->weights, &source, &err);
	if (r < 0 || activations_new(m->weights, max_positions, training, 0, &m->activations, &err) < 0 ||
	    head_open(m->weights, max_positions, &m->head, &err) < 0)
		fail_msg("%s: %s: %s", path, err.field, err.message);
}

void golden_model_close(struct golden_model *m)
{
	head_close(m->head);
	activations_free(m->activations);
	weights_free(m->weights);
	backend_close(m->backend);
	model_file_close(m->file);
	*m = (struct golden_model){0};
}

void golden_score(struct golden_model *m, const uint32_t *tokens, const uint32_t *lengths, uint32_t n, struct sweep_row *out)
{
	uint32_t *starts = golden_array(n + 1, sizeof *starts), T = 0;
	for (uint32_t s = 0; s < n; s++)
		starts[s + 1] = T += lengths[s];
	uint32_t *positions = golden_array(T, sizeof *positions), *rows = golden_array(T, sizeof *rows);
	for (uint32_t s = 0; s < n; s++)
		for (uint32_t t = starts[s]; t < starts[s + 1]; t++)
			positions[t] = t - starts[s];
	for (uint32_t t = 0; t < T; t++)
		rows[t] = t;
	struct layout layout = {.n_positions = T, .n_sequences = n, .tokens = tokens, .positions = positions, .starts = starts};
	struct error err = {0};
	struct act *hidden = forward(m->weights, m->activations, &layout);
	head_score(m->head, hidden, rows, T, out);
	if (backend_sync(m->backend, &err) < 0)
		fail_msg("%s", err.message);
	free(starts);
	free(positions);
	free(rows);
}

double relative_error(const double *got, const double *want, size_t n)
{
	double difference = 0, norm = 0;
	for (size_t i = 0; i < n; i++) {
		difference += (got[i] - want[i]) * (got[i] - want[i]);
		norm += want[i] * want[i];
	}
	return sqrt(difference / norm);
}
