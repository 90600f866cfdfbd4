// SPDX-License-Identifier: Apache-2.0
// Several teachers in one engine: each by its name, and mixtures against numpy (mixture.bin), beside each other and with caches.
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/error.h"
#include "tests/golden/engine.h"
#include "tests/golden/signals_golden.h"

#define N_TEACHERS 3
static const char *const names[N_TEACHERS] = {"llama", "qwen2", "linear"};
static const struct choice_query mean = {.is_mixture = true, .rule = HEAD_MEAN, .n_members = 2,
	.members = {{"llama", 0.7}, {"linear", 0.3}}};
static const struct choice_query arithmetic = {.is_mixture = true, .rule = HEAD_SUM, .n_members = 3,
	.members = {{"llama", 1}, {"qwen2", 0.5}, {"linear", -0.5}}};

static void model_path(char to[4096], const char *model)
{
	char name[256];
	snprintf(name, sizeof name, "models/%s", model);
	golden_path(to, 4096, name);
}

static void open_teachers(struct engine *e, const char *device, const struct engine_sizes *sizes)
{
	static char paths[N_TEACHERS][4096];
	struct teacher_source sources[N_TEACHERS];
	struct error err = {0};
	for (int i = 0; i < N_TEACHERS; i++) {
		model_path(paths[i], names[i]);
		sources[i].path = paths[i];
		strcpy(sources[i].name, names[i]);
	}
	if (engine_open_sources(e, sources, N_TEACHERS, device, "f32", sizes, &err))
		fail_msg("%s", err.message);
}

static const struct engine_sizes plain = {.n_threads = 2, .batch_tokens = 256};
static const struct engine_sizes generating = {.n_threads = 2, .batch_tokens = 256, .generate_batch = 64, .cache_tokens = 1024,
	.max_generating = 4};

struct mixture_golden { uint32_t V, n, *tokens; double *mean, *arithmetic; };

static void mixture_open(struct mixture_golden *m)
{
	struct golden_file g;
	golden_open(&g, "mixture.bin", "KDGX");
	m->V = reader_u32(&g.reader);
	m->n = reader_u32(&g.reader);
	assert_in_range(m->n, 1, 1024);
	m->tokens = golden_u32s(&g, m->n);
	m->mean = golden_f32s(&g, (size_t)m->n * m->V);
	m->arithmetic = golden_f32s(&g, (size_t)m->n * m->V);
	golden_close(&g);
}

static void mixture_close(struct mixture_golden *m)
{
	free(m->tokens);
	free(m->mean);
	free(m->arithmetic);
}

static struct record_rows *ask_dense(struct engine *e, const struct choice_query *asked, const uint32_t *tokens, uint32_t n)
{
	struct query q;
	query_init(&q);
	q.dense = q.entropy = q.own = true;
	q.top_k = 8;
	e->asked = *asked;
	struct record_rows *r = engine_ask_one(e, &q, tokens, n);
	query_done(&q);
	return r;
}

static void compare_dense(const struct record_rows *r, const double *want, uint32_t V, double bound)
{
	size_t size = (size_t)r->n_rows * V;
	double *got = golden_array(size, sizeof *got);
	for (size_t i = 0; i < size; i++)
		got[i] = (double)r->dense[i];
	double error = relative_error(got, want, size);
	if (!(error <= bound))
		fail_msg("relative error %.3g, bound %.3g", error, bound);
	free(got);
	for (uint32_t i = 0; i < r->n_rows; i++) {
		double sum = 0;
		for (uint32_t j = 0; j < V; j++)
			sum += exp(want[(size_t)i * V + j]);
		assert_true(fabs((double)r->lse[i] - log(sum)) <= 1e-4);
		assert_true(r->logits[i * 8] == r->dense[(size_t)i * V + r->ids[i * 8]] && r->logits[i * 8] == r->max_logit[i]);
	}
}

static void mixtures_equal_numpy(void **state)
{
	(void)state;
	static const char *const devices[] = {"cpu", "ref"};
	struct mixture_golden m;
	mixture_open(&m);
	for (int i = 0; i < 4; i++) {
		struct engine e;
		open_teachers(&e, devices[i % 2], i / 2 ? &generating : &plain);
		struct record_rows *r = ask_dense(&e, &mean, m.tokens, m.n);
		compare_dense(r, m.mean, m.V, 1e-5);
		record_rows_free(r);
		r = ask_dense(&e, &arithmetic, m.tokens, m.n);
		compare_dense(r, m.arithmetic, m.V, 1e-5);
		record_rows_free(r);
		engine_close(&e);
	}
	mixture_close(&m);
}

static void each_teacher_answers_to_its_name(void **state)
{
	(void)state;
	struct engine e;
	struct signals golden;
	uint32_t n;
	open_teachers(&e, "cpu", &plain);
	const struct teacher_info *infos = teacher_infos(e.teacher, &n);
	assert_int_equal(n, N_TEACHERS);
	for (int i = 0; i < 2; i++) {    // signals.bin of "linear" there is none
		struct choice_query asked = {.n_members = 1};
		strcpy(asked.members[0].name, names[i]);
		signals_open(&golden, names[i]);
		const struct sequence *s = &golden.sequences[3].sequence;
		struct record_rows *r = ask_dense(&e, &asked, s->tokens, s->n_tokens);
		compare_dense(r, golden.sequences[3].logits, golden.V, 1e-5);
		assert_memory_equal(&r->teacher, &infos[i].fingerprint, sizeof r->teacher);
		record_rows_free(r);
		content_id_to_hex(&infos[i].fingerprint, asked.members[0].name);    // a fingerprint is a name too
		r = ask_dense(&e, &asked, s->tokens, s->n_tokens);
		compare_dense(r, golden.sequences[3].logits, golden.V, 1e-5);
		record_rows_free(r);
		signals_close(&golden);
	}
	struct choice_query nobody = {0};
	signals_open(&golden, "llama");
	struct record_rows *r = ask_dense(&e, &nobody, golden.sequences[3].sequence.tokens, golden.sequences[3].sequence.n_tokens);
	assert_memory_equal(&r->teacher, &infos[0].fingerprint, sizeof r->teacher);
	record_rows_free(r);
	signals_close(&golden);
	engine_close(&e);
}

// Two mixtures, two teachers and a generation, all submitted before anything is waited for: each has the bytes it has alone.
static void company_changes_no_byte(void **state)
{
	(void)state;
	struct engine e;
	struct mixture_golden m;
	struct choice_query asked[5] = {mean, arithmetic, {.n_members = 1, .members = {{"linear", 0}}}, {0}, mean};
	struct request *together[5], *generation;
	struct record_rows *alone[5];
	struct query q;
	struct generation_query g;
	mixture_open(&m);
	open_teachers(&e, "cpu", &generating);
	asked[4].members[0].weight = 0.2;
	query_init(&q);
	q.dense = true;
	generation_query_init(&g);
	for (int i = 0; i < 5; i++) {
		e.asked = asked[i];
		alone[i] = engine_ask_one(&e, &q, m.tokens, m.n);
	}
	struct sequence s[2] = {{m.tokens, m.n}, {m.tokens, m.n / 2}};
	e.asked = (struct choice_query){.n_members = 1, .members = {{"qwen2", 0}}};
	generation = engine_request_generate(&e, &g, s, 1);
	engine_submit(&e, generation);
	for (int i = 0; i < 5; i++) {
		e.asked = asked[i];
		together[i] = engine_request_score(&e, &q, s, 2);
		engine_submit(&e, together[i]);
	}
	for (int i = 0; i < 5; i++) {
		struct record_rows *r;
		engine_wait(together[i]);
		assert_int_equal(record_decode(together[i]->items[0].record, &r, NULL), 0);
		assert_memory_equal(r->dense, alone[i]->dense, (size_t)m.n * m.V * sizeof(float));
		assert_memory_equal(&r->teacher, &alone[i]->teacher, sizeof r->teacher);
		for (int j = 0; j < i; j++)
			assert_memory_not_equal(&alone[j]->teacher, &alone[i]->teacher, sizeof r->teacher);
		record_rows_free(r);
		engine_free(together[i]);
	}
	engine_wait(generation);
	assert_int_equal(generation->items[0].error.code, ERROR_NONE);
	engine_free(generation);
	for (int i = 0; i < 5; i++)
		record_rows_free(alone[i]);
	query_done(&q);
	mixture_close(&m);
	engine_close(&e);
}

static void mixtures_keep_cut_and_draw(void **state)
{
	(void)state;
	struct engine e;
	struct mixture_golden m;
	struct query q;
	mixture_open(&m);
	open_teachers(&e, "cpu", &plain);
	query_init(&q);
	q.top_k = 6;
	q.top_mass = 0.5f;
	q.dense = true;
	q.draws = (struct query_draws){.n = 30, .tau = 1, .seed = 2, .tail = true};
	q.n_keep = 10;
	q.keep = golden_array(10, sizeof *q.keep);
	for (uint32_t j = 0; j < 10; j++)
		q.keep[j] = 9 * j + 2;
	e.asked = arithmetic;
	struct record_rows *r = engine_ask_one(&e, &q, m.tokens, m.n);
	for (uint32_t i = 0; i < m.n; i++) {
		double sum = 0, head = 0;
		for (uint32_t j = 0; j < 10; j++) {
			assert_true(fabs((double)r->dense[i * 10 + j] - m.arithmetic[(size_t)i * m.V + q.keep[j]]) <= 1e-4);
			sum += exp(m.arithmetic[(size_t)i * m.V + q.keep[j]]);
		}
		assert_true(fabs((double)r->lse[i] - log(sum)) <= 1e-4);
		for (uint32_t j = 0; j < r->n_top[i]; j++)
			head += exp((double)r->logits[i * 6 + j] - (double)r->lse[i]);
		assert_true(r->n_top[i] == 6 || head >= 0.5 - 1e-5);
		assert_true(fabs(exp((double)r->tail[i]) - (1 - head)) <= 1e-5);
		assert_true(r->draw_starts[i + 1] > r->draw_starts[i]);
	}
	record_rows_free(r);
	query_done(&q);
	mixture_close(&m);
	engine_close(&e);
}

// A copy of models/llama with something else in one of its files.
struct copy { char directory[64], files[3][128]; };

static const char *const file_names[3] = {"config.json", "tokenizer.json", "model.safetensors"};

static char *read_whole(const char *path, size_t *ret_n)
{
	char *bytes = golden_array(1 << 18, 1);
	FILE *f = fopen(path, "rb");
	assert_non_null(f);
	*ret_n = fread(bytes, 1, (1 << 18) - 1, f);
	fclose(f);
	return bytes;
}

static void write_whole(const char *path, const char *bytes, size_t n)
{
	FILE *f = fopen(path, "wb");
	assert_non_null(f);
	assert_int_equal(fwrite(bytes, 1, n, f), n);
	assert_int_equal(fclose(f), 0);
}

static void copy_make(struct copy *c)
{
	char path[4096], name[256];
	strcpy(c->directory, "/tmp/kdserved-golden-XXXXXX");
	assert_non_null(mkdtemp(c->directory));
	for (int i = 0; i < 3; i++) {
		size_t n;
		snprintf(name, sizeof name, "models/llama/%s", file_names[i]);
		golden_path(path, sizeof path, name);
		snprintf(c->files[i], sizeof c->files[i], "%s/%s", c->directory, file_names[i]);
		char *bytes = read_whole(path, &n);
		write_whole(c->files[i], bytes, n);
		free(bytes);
	}
}

static void copy_remove(struct copy *c)
{
	for (int i = 0; i < 3; i++)
		unlink(c->files[i]);
	rmdir(c->directory);
}

static void teachers_of_different_tokenizers_are_refused_by_name(void **state)
{
	(void)state;
	struct copy c;
	struct engine e;
	struct error err = {0};
	char path[4096];
	size_t n;
	copy_make(&c);
	char *text = read_whole(c.files[1], &n), *a = strstr(text, "\"a\": 66"), *b = strstr(text, "\"b\": 67");
	assert_true(a && b);
	a[1] = 'b';
	b[1] = 'a';
	write_whole(c.files[1], text, n);
	free(text);
	model_path(path, "linear");
	struct teacher_source sources[2] = {{"one", path}, {"other", c.directory}};
	assert_int_equal(engine_open_sources(&e, sources, 2, "cpu", "f32", &plain, &err), -EINVAL);
	assert_non_null(strstr(err.message, "\"one\" and \"other\" have different tokenizers"));
	copy_remove(&c);
}

// One member's row that is no number makes the mixture's none; the rows before it are numbers.
static void a_member_that_is_not_finite_leaves_no_number(void **state)
{
	(void)state;
	static const uint32_t tokens[] = {5, 6, 7, 40, 8};
	static const uint8_t nan[4] = {0, 0, 0xc0, 0x7f};
	struct copy c;
	struct engine e;
	struct error err = {0};
	char path[4096];
	size_t n;
	copy_make(&c);
	char *bytes = read_whole(c.files[2], &n), *tensor = strstr(bytes + 8, "model.embed_tokens.weight");
	size_t header = 8 + (size_t)(uint8_t)bytes[0] + 256 * (size_t)(uint8_t)bytes[1];
	unsigned begin;
	assert_true(tensor && sscanf(strstr(tensor, "data_offsets"), "data_offsets\":[%u", &begin) == 1);
	memcpy(bytes + header + begin + 40 * 32 * 4, nan, 4);
	write_whole(c.files[2], bytes, n);
	free(bytes);
	model_path(path, "linear");
	struct teacher_source sources[2] = {{"whole", path}, {"broken", c.directory}};
	assert_int_equal(engine_open_sources(&e, sources, 2, "ref", "f32", &plain, &err), 0);
	for (int rule = 0; rule < 2; rule++) {
		struct choice_query asked = {.is_mixture = true, .rule = rule ? HEAD_MEAN : HEAD_SUM, .n_members = 2,
			.members = {{"broken", 0.5}, {"whole", 0.5}}};
		struct record_rows *r = ask_dense(&e, &asked, tokens, 5);
		for (uint32_t i = 0; i < 5; i++)
			assert_int_equal(r->status[i], i < 3 ? ROW_OK : ROW_NOT_FINITE);
		record_rows_free(r);
	}
	engine_close(&e);
	copy_remove(&c);
}

// Before any member begins: a mixture's pass costs as many as it has.
static void what_is_over_is_computed_by_no_member(void **state)
{
	(void)state;
	uint32_t tokens[20] = {1, 2, 3};
	struct sequence sequences[3] = {{tokens, 20}, {tokens, 10}, {tokens, 5}};
	struct engine e;
	struct query q;
	struct teacher_stats before, after;
	query_init(&q);
	q.own = true;
	open_teachers(&e, "cpu", &generating);
	e.asked = mean;
	teacher_stats(e.teacher, &before);
	for (int late = 0; late < 2; late++) {
		struct request *r = engine_request_score(&e, &q, sequences, 3);
		r->deadline_ms = late;         // long ago
		r->cancelled = !late;
		engine_submit(&e, r);
		engine_wait(r);
		for (uint32_t i = 0; i < 3; i++)
			assert_int_equal(r->items[i].error.code, late ? ERROR_DEADLINE : ERROR_CANCELLED);
		engine_free(r);
	}
	teacher_stats(e.teacher, &after);
	assert_int_equal(after.n_dropped - before.n_dropped, 6);
	assert_int_equal(after.n_passes, before.n_passes);
	assert_int_equal(after.n_sequences, before.n_sequences);
	engine_close(&e);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(mixtures_equal_numpy),
		cmocka_unit_test(each_teacher_answers_to_its_name),
		cmocka_unit_test(what_is_over_is_computed_by_no_member),
		cmocka_unit_test(company_changes_no_byte),
		cmocka_unit_test(mixtures_keep_cut_and_draw),
		cmocka_unit_test(teachers_of_different_tokenizers_are_refused_by_name),
		cmocka_unit_test(a_member_that_is_not_finite_leaves_no_number),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
