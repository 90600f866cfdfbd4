// SPDX-License-Identifier: Apache-2.0
// A teacher on the emulated device: nothing is asked of the device once it is ready, and when the device fails, at any of its calls, nobody
// gets an answer that a healthy one would not have given, byte for byte, and from then on nobody gets any.
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/error.h"
#include "tests/golden/engine.h"
#include "tests/gpu/emulate/faults.h"

enum { N_SCORES = 6, N_SAMPLES = 2, LENGTH = 40 };

static const struct engine_sizes sizes = {1, 128, 64, 512, 4};

static void model_path(char to[4096], const char *name)
{
	char what[64];
	snprintf(what, sizeof what, "models/%s", name);
	golden_path(to, 4096, what);
}

static int open_tiny(struct engine *e, struct error *err)
{
	char path[4096];
	struct teacher_source source = {.name = "teacher", .path = path};
	*err = (struct error){0};
	model_path(path, "llama");
	return engine_open_sources(e, &source, 1, "cuda", "auto", &sizes, err);
}

// ---- work of both kinds: two passes of scores, and samples beside them

struct work {
	uint32_t tokens[N_SCORES][LENGTH];
	struct sequence sequences[N_SCORES];
	struct query query;
	struct generation_query generate;
	struct request *scores, *samples;
};

static void work_init(struct work *w)
{
	static const float temperatures[] = {1, 2};
	for (uint32_t s = 0; s < N_SCORES; s++) {
		for (uint32_t i = 0; i < LENGTH; i++)
			w->tokens[s][i] = 3 + (i * 7 + (i < 36 && s < 3 ? 0 : s)) % 60;      // 1 and 2 begin as 0 does
		w->sequences[s] = (struct sequence){w->tokens[s], LENGTH - s};
	}
	query_init(&w->query);
	w->query.top_k = 4;
	w->query.own = w->query.entropy = true;
	w->query.n_temperatures = 2;
	memcpy(w->query.temperatures, temperatures, sizeof temperatures);
	w->query.last = -1;
	generation_query_init(&w->generate);
	w->generate.n = N_SAMPLES;
	w->generate.max_tokens = 5;
	w->generate.seed = 9;
	w->generate.sampling.temperature = 1;
}

static void work_run(struct engine *e, struct work *w)
{
	w->scores = engine_request_score(e, &w->query, w->sequences, N_SCORES);
	w->samples = engine_request_generate(e, &w->generate, w->sequences, 1);
	engine_submit(e, w->scores);
	engine_submit(e, w->samples);
	engine_wait(w->scores);
	engine_wait(w->samples);
}

static void work_free(struct work *w)
{
	engine_free(w->scores);
	engine_free(w->samples);
}

static struct teacher_stats stats_of(const struct engine *e)
{
	struct teacher_stats s;
	teacher_stats(e->teacher, &s);
	return s;
}

// ---- memory

static void a_ready_teacher_asks_the_device_for_nothing(void **state)
{
	(void)state;
	struct engine e;
	struct error err;
	struct work w = {0};
	emulate_mend();
	assert_int_equal(open_tiny(&e, &err), 0);
	uint64_t asked = emulate_count(EMULATE_ALLOCATION), bytes = stats_of(&e).memory_bytes;
	assert_true(bytes > 128 << 20);      // the model and the work buffers
	work_init(&w);
	work_run(&e, &w);
	for (uint32_t i = 0; i < N_SCORES; i++)
		assert_int_equal(w.scores->items[i].error.code, 0);
	assert_int_equal(w.samples->items[0].generation->n_tokens, 5);
	assert_true(stats_of(&e).n_shared > 0);      // through the cache, too
	assert_int_equal(emulate_count(EMULATE_ALLOCATION), asked);
	assert_int_equal(stats_of(&e).n_late_allocations, 0);
	assert_true(stats_of(&e).memory_bytes == bytes);
	work_free(&w);
	engine_close(&e);
}

static void a_teacher_that_does_not_fit_is_refused_before_it_is_loaded(void **state)
{
	(void)state;
	struct engine e;
	struct error err;
	emulate_mend();
	emulate_set_memory(300 << 20);
	uint64_t copies = emulate_count(EMULATE_COPY);
	assert_int_equal(open_tiny(&e, &err), -E2BIG);
	assert_non_null(strstr(err.message, "GPU memory are needed (weights 0.00, work"));
	assert_int_equal(emulate_count(EMULATE_COPY), copies);
	emulate_set_memory((size_t)8 << 30);
}

// ---- launches

// Kernels and products of the trunk: for short passes their number, not their work, is the time.
static void count_layer(const char *name, uint64_t n_kernels, uint64_t n_products)
{
	enum { T = 8 };
	char path[4096];
	uint32_t tokens[T] = {1, 2, 3, 4, 5, 6, 7, 8}, positions[T] = {0, 1, 2, 3, 4, 0, 1, 2}, starts[] = {0, 5, T};
	struct layout layout = {.n_positions = T, .n_sequences = 2, .tokens = tokens, .positions = positions, .starts = starts};
	struct golden_model m;
	struct error err = {0};
	model_path(path, name);
	golden_model_open(&m, path, "cuda", BACKEND_NUMERIC_AUTO, false, T);
	uint64_t layers = m.weights->architecture.n_layers, kernels = emulate_count(EMULATE_LAUNCH),
		products = emulate_count(EMULATE_PRODUCT);
	forward(m.weights, m.activations, &layout);
	assert_int_equal(backend_sync(m.backend, &err), 0);
	assert_int_equal(emulate_count(EMULATE_PRODUCT) - products, layers * n_products);
	assert_int_equal(emulate_count(EMULATE_LAUNCH) - kernels, 2 + layers * n_kernels);       // and the embedding and the last norm
	golden_model_close(&m);
}

static void a_layer_is_nine_launches(void **state)
{
	(void)state;
	emulate_mend();
	count_layer("llama", 5, 4);          // norm, rotation, attention, norm, swiglu; q k v, out, gate and up, down
	count_layer("qwen2", 6, 4);          // and a bias
	count_layer("qwen3", 6, 4);          // and the norm of heads
}

// ---- faults

// What a healthy device answers.
static struct work whole;

static void learn(void)
{
	struct engine e;
	struct error err;
	emulate_mend();
	work_init(&whole);
	assert_int_equal(open_tiny(&e, &err), 0);
	work_run(&e, &whole);
	engine_close(&e);
}

static void check_score(const struct request_item *got, const struct request_item *want)
{
	if (got->error.code) {
		assert_int_equal(got->error.code, ERROR_UNAVAILABLE);
		assert_null(got->record);
		return;
	}
	size_t n, n_want;
	const void *bytes = record_bytes(got->record, &n), *wanted = record_bytes(want->record, &n_want);
	assert_int_equal(n, n_want);
	assert_memory_equal(bytes, wanted, n);
}

static void check_sample(const struct request_item *got, const struct request_item *want)
{
	const struct generation *a = got->generation, *b = want->generation;
	if (got->error.code) {
		assert_int_equal(got->error.code, ERROR_UNAVAILABLE);
	} else {
		assert_int_equal(a->n_tokens, b->n_tokens);
		assert_true(a->finish != 0);
	}
	assert_memory_equal(a->tokens, b->tokens, a->n_tokens * sizeof *a->tokens);
	assert_memory_equal(a->logprobs, b->logprobs, a->n_tokens * sizeof *a->logprobs);
}

// True when all went well.
static bool check_work(const struct work *w)
{
	uint32_t n_errors = 0;
	for (uint32_t i = 0; i < N_SCORES; i++) {
		check_score(&w->scores->items[i], &whole.scores->items[i]);
		n_errors += w->scores->items[i].error.code != 0;
	}
	for (uint32_t i = 0; i < N_SAMPLES; i++) {
		check_sample(&w->samples->items[i], &whole.samples->items[i]);
		n_errors += w->samples->items[i].error.code != 0;
	}
	return n_errors == 0;
}

// The n-th of the kind fails after the teacher is ready. False when there were not so many.
static bool fail_at(enum emulate_kind kind, uint64_t n)
{
	struct engine e;
	struct error err;
	struct work first = {0}, second = {0};
	emulate_mend();
	assert_int_equal(open_tiny(&e, &err), 0);
	emulate_fail(kind, n);
	uint64_t before = emulate_count(kind);
	work_init(&first);
	work_run(&e, &first);
	bool failed = emulate_count(kind) >= before + n;
	assert_true(check_work(&first) == !failed);
	if (failed) {
		assert_int_equal(teacher_state(e.teacher), TEACHER_FAILED);
		teacher_error(e.teacher, &err);
		assert_int_not_equal(device_fault_of(err.field), DEVICE_FAULT_NONE);
		work_init(&second);
		work_run(&e, &second);
		for (uint32_t i = 0; i < N_SCORES; i++)
			assert_true(second.scores->items[i].error.code == ERROR_UNAVAILABLE && !second.scores->items[i].record);
		for (uint32_t i = 0; i < N_SAMPLES; i++)
			assert_true(second.samples->items[i].error.code == ERROR_UNAVAILABLE &&
				!second.samples->items[i].generation->n_tokens);
		work_free(&second);
	}
	work_free(&first);
	engine_close(&e);
	emulate_mend();
	return failed;
}

static void sweep_faults(enum emulate_kind kind)
{
	uint32_t n_failed = 0;
	for (uint64_t n = 1; fail_at(kind, n); n += 1 + n / 4)
		n_failed++;
	assert_true(n_failed > 8);
}

static void a_refused_kernel_ends_all_answers(void **state) { (void)state; sweep_faults(EMULATE_LAUNCH); }
static void a_kernel_that_faults_ends_all_answers(void **state) { (void)state; sweep_faults(EMULATE_KERNEL); }
static void a_failed_product_ends_all_answers(void **state) { (void)state; sweep_faults(EMULATE_PRODUCT); }
static void a_failed_copy_ends_all_answers(void **state) { (void)state; sweep_faults(EMULATE_COPY); }
static void a_failed_wait_ends_all_answers(void **state) { (void)state; sweep_faults(EMULATE_WAIT); }

// Loading: refused, never half done.
static void a_fault_while_loading_is_an_error_at_start(void **state)
{
	(void)state;
	for (int kind = 0; kind < N_EMULATE_KINDS; kind++)
		for (uint64_t n = 1; n < 200; n += 1 + n / 2) {
			struct engine e;
			struct error err;
			emulate_mend();
			emulate_fail((enum emulate_kind)kind, n);
			uint64_t before = emulate_count((enum emulate_kind)kind);
			int r = open_tiny(&e, &err);
			bool failed = emulate_count((enum emulate_kind)kind) >= before + n;
			if (failed != (r < 0))
				fail_msg("kind %d, %llu: %s", kind, (unsigned long long)n, r ? err.message : "loaded");
			if (r == 0)
				engine_close(&e);
		}
	emulate_mend();
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_ready_teacher_asks_the_device_for_nothing),
		cmocka_unit_test(a_teacher_that_does_not_fit_is_refused_before_it_is_loaded),
		cmocka_unit_test(a_layer_is_nine_launches),
		cmocka_unit_test(a_refused_kernel_ends_all_answers),
		cmocka_unit_test(a_kernel_that_faults_ends_all_answers),
		cmocka_unit_test(a_failed_product_ends_all_answers),
		cmocka_unit_test(a_failed_copy_ends_all_answers),
		cmocka_unit_test(a_failed_wait_ends_all_answers),
		cmocka_unit_test(a_fault_while_loading_is_an_error_at_start),
	};
	learn();
	int r = cmocka_run_group_tests(tests, NULL, NULL);
	work_free(&whole);
	return r;
}
