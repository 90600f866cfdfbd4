// SPDX-License-Identifier: Apache-2.0
// Every supported kind of model with its matrices on disk, or unpacked from what is stored: the bits of the same model packed in memory.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/error.h"
#include "daemon/teacher/shelf.h"
#include "tests/golden/golden.h"

static const char *const names[] = {"llama", "llama-tied", "llama3", "linear", "qwen2", "qwen3", "gpt2", "bert", "mistral", "qwen3-window",
				    "gemma2", "gemma3", "gemma3-vision", "mixtral", "qwen3-moe", "mixtral/model.gguf", "yarn", "bias",
				    "phi3", "phi3/model.gguf", "smollm3", "granite"};
#ifndef DEVICE
#define DEVICE "cpu"
#endif

enum { TOKENS = 90, TOP_K = 5, MAX_POSITIONS = 128 };

// room: for packed matrices; what has none is stored, or goes to the shelf.
static void load(struct golden_model *m, const char *path, struct shelf *shelf, bool stored, uint64_t room)
{
	struct error err = {0};
	struct backend_options options = {.n_threads = 2, .max_rows = MAX_POSITIONS, .shelf = shelf_door(shelf)};
	if (stored) {        // more than there is room for, less as stored
		options.host_bytes = options.memory_bytes = UINT64_C(1) << 30;
		options.need.n_largest = 1 << 20;
		options.need.parts[BACKEND_PART_WEIGHTS] = (struct backend_count){.n_weight = UINT64_C(1) << 30, .stored_bytes = 1};
	}
	*m = (struct golden_model){0};
	if (model_file_open(path, &m->file, &err) < 0 || backend_open(DEVICE, &options, &m->backend, &err) < 0)
		fail_msg("%s: %s", path, err.message);
	struct tensor_source source = model_file_source(m->file);
	m->backend->room = room;
	if (weights_load(m->backend, model_file_architecture(m->file), &source, MAX_POSITIONS, &m->weights, &err) < 0 ||
	    activations_new(m->weights, MAX_POSITIONS, false, 0, &m->activations, &err) < 0 ||
	    head_open(m->weights, MAX_POSITIONS, &m->head, &err) < 0)
		fail_msg("%s: %s: %s", path, err.field, err.message);
}

struct answers { double lse[TOKENS], entropy[TOKENS], logits[TOKENS][TOP_K]; uint32_t ids[TOKENS][TOP_K]; };

static struct answers *ask(struct golden_model *m)
{
	static const float one = 1;
	static const uint32_t lengths[] = {1, 40, 49};
	struct answers *a = golden_array(1, sizeof *a);
	struct sweep_row *rows = golden_array(TOKENS, sizeof *rows);
	uint32_t tokens[TOKENS], V = model_file_architecture(m->file)->vocab_size;
	for (uint32_t i = 0; i < TOKENS; i++) {
		tokens[i] = i * 7919 % V;
		rows[i] = (struct sweep_row){.top_k = TOP_K, .n_temperatures = 1, .temperatures = &one, .want_entropy = true,
					     .lse = &a->lse[i], .ids = a->ids[i], .logits = a->logits[i]};
	}
	golden_score(m, tokens, lengths, 3, rows);
	for (uint32_t i = 0; i < TOKENS; i++)
		a->entropy[i] = rows[i].entropy;
	free(rows);
	return a;
}

// Twice: the second pass begins where the first one ended.
static void expect_bits(const char *path, const struct answers *want, bool stored, uint64_t room, bool all)
{
	struct golden_model m;
	struct shelf *shelf;
	struct error err = {0};
	const char *tmp = getenv("TMPDIR");
	if (shelf_open(tmp ? tmp : "/tmp", 0, backend_piece_bytes(512), &shelf, &err) < 0)
		fail_msg("%s", err.message);
	load(&m, path, shelf, stored, room);
	if (all)
		assert_true(m.weights->head_apart);
	// where the head has room packed, what others take more than as stored may have room too
	assert_true(stored ? !all || m.backend->stored_bytes > 0 : m.backend->apart_bytes > 0);
	assert_true((stored ? m.backend->apart_bytes : m.backend->stored_bytes) == 0);
	for (int pass = 0; pass < 2; pass++) {
		struct answers *got = ask(&m);
		assert_memory_equal(got, want, sizeof *got);
		free(got);
	}
	golden_model_close(&m);
	shelf_close(shelf);
}

static void every_kind_gives_the_bits_it_gives_in_memory(void **state)
{
	(void)state;
	for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
		char path[4096], what[128];
		struct golden_model m;
		snprintf(what, sizeof what, "models/%s", names[i]);
		golden_path(path, sizeof path, what);
		golden_model_open(&m, path, DEVICE, BACKEND_NUMERIC_AUTO, false, MAX_POSITIONS);
		const struct architecture *a = model_file_architecture(m.file);
		uint64_t head = backend_matrix_bytes((uint64_t)a->vocab_size * a->width, m.backend->element_bytes);
		struct answers *want = ask(&m);
		printf("# %s\n", names[i]);
		for (int stored = strcmp(DEVICE, "cpu") != 0; stored < 2; stored++) {      // only the CPU has a shelf
			expect_bits(path, want, stored, 0, true);
			expect_bits(path, want, stored, head, false);      // the head packed in memory, the layers not
		}
		free(want);
		golden_model_close(&m);
	}
}

int main(void)
{
	if (!golden_device_found())
		return 77;
	const struct CMUnitTest tests[] = {cmocka_unit_test(every_kind_gives_the_bits_it_gives_in_memory)};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
