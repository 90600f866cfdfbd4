// SPDX-License-Identifier: Apache-2.0
// Generation by the engine: transformers' own greedy answers; numbers that are those of a score; samples that depend on nothing but their
// prompt, seed and number, however the engine cuts, shares and mixes.
#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <math.h>

#include "common/error.h"
#include "daemon/model/tokenizer.h"
#include "daemon/teacher/teacher.h"
#include "tests/golden/engine.h"

static const char *const names[] = {"llama", "qwen2", "qwen3", "linear", "gpt2"};
#define N_NAMES (sizeof names / sizeof *names)

static const struct engine_sizes usual = {2, 256, 64, 2048, 16};

static void open_tiny(struct engine *e, const char *name, const char *device, const struct engine_sizes *sizes)
{
	char path[4096], what[64];
	snprintf(what, sizeof what, "models/%s", name);
	golden_path(path, sizeof path, what);
	engine_open_sizes(e, path, device, "f32", sizes);
}

static struct generation_query query_of(uint32_t n, uint32_t max_tokens, float temperature, uint64_t seed)
{
	struct generation_query q;
	generation_query_init(&q);
	q.n = n;
	q.max_tokens = max_tokens;
	q.sampling.temperature = temperature;
	q.seed = seed;
	return q;
}

static struct teacher_stats stats_of(const struct engine *e)
{
	struct teacher_stats s;
	teacher_stats(e->teacher, &s);
	return s;
}

static struct request *start_score(struct engine *e, const struct query *q, const struct sequence *s, uint32_t n)
{
	struct request *r = engine_request_score(e, q, s, n);
	engine_submit(e, r);
	return r;
}

static struct request *start_generate(struct engine *e, const struct generation_query *q, const struct sequence *s, uint32_t n)
{
	struct request *r = engine_request_generate(e, q, s, n);
	engine_submit(e, r);
	return r;
}

// ---- transformers

static void compare_greedy(struct engine *e, const char *file, uint32_t max_tokens, uint32_t eos, double bound)
{
	struct golden_file g;
	golden_open(&g, file, "KDGN");
	uint32_t n = reader_u32(&g.reader);
	for (uint32_t i = 0; i < n; i++) {
		struct sequence prompt = {.n_tokens = reader_u32(&g.reader)};
		prompt.tokens = golden_u32s(&g, prompt.n_tokens);
		uint32_t n_want = reader_u32(&g.reader), *want = golden_u32s(&g, n_want);
		struct generation_query q = query_of(1, max_tokens, 0, 0);
		struct request *r = engine_generate(e, &q, &prompt, 1);
		const struct generation *a = r->items[0].generation;
		assert_int_equal(a->n_tokens, n_want);
		assert_memory_equal(a->tokens, want, n_want * sizeof *want);
		for (uint32_t t = 0; t < n_want; t++) {
			double logprob = reader_f64(&g.reader);
			assert_true(fabs((double)a->logprobs[t] - logprob) < bound);
			assert_true(a->sampled_logprobs[t] == 0);
		}
		bool stopped = n_want < max_tokens || want[n_want - 1] == eos;
		assert_int_equal(a->finish, stopped ? GENERATION_STOP : GENERATION_LENGTH);
		assert_int_equal(a->stop_id, stopped ? (int64_t)eos : -1);
		engine_free(r);
		free(prompt.tokens);
		free(want);
	}
	golden_close(&g);
}

static void greedy_is_what_transformers_generates(void **state)
{
	static const char *const devices[] = {"ref", "cpu"};
	(void)state;
	for (size_t i = 0; i < N_NAMES * 2; i++) {
		char file[128];
		struct engine e;
		snprintf(file, sizeof file, "models/%s/generate.bin", names[i / 2]);
		open_tiny(&e, names[i / 2], devices[i % 2], &usual);
		compare_greedy(&e, file, 50, 2, 1e-4);
		engine_close(&e);
	}
}

static void greedy_of_the_real_teacher(void **state)
{
	char path[4096];
	struct engine e;
	(void)state;
	if (!golden_teacher(path, sizeof path))
		skip();
	engine_open_sizes(&e, path, "cpu", "f32", &usual);
	compare_greedy(&e, "teacher_generate.bin", 48, 2 /* <|im_end|> */, 5e-3);
	engine_close(&e);
}

// ---- a few prompts, and answers to compare

enum { N_PROMPTS = 4 };
static uint32_t prompt_tokens[N_PROMPTS][70];
static struct sequence prompts[N_PROMPTS];

// 1 and 2 begin with the same 40 tokens; 3 is longer than a small pass.
static void make_prompts(uint32_t V)
{
	static const uint32_t lengths[N_PROMPTS] = {1, 47, 44, 70};
	for (uint32_t p = 0; p < N_PROMPTS; p++) {
		for (uint32_t i = 0; i < lengths[p]; i++)
			prompt_tokens[p][i] = 3 + (i * 29 + i * i * 7 + (p == 2 && i < 40 ? 1 : p) * 13) % (V - 3);
		prompts[p] = (struct sequence){prompt_tokens[p], lengths[p]};
	}
}

static void assert_same(const struct generation *a, const struct generation *b, uint32_t top_k)
{
	uint32_t n = a->n_tokens;
	assert_int_equal(n, b->n_tokens);
	assert_memory_equal(a->tokens, b->tokens, n * sizeof *a->tokens);
	assert_memory_equal(a->logprobs, b->logprobs, n * sizeof *a->logprobs);
	assert_memory_equal(a->sampled_logprobs, b->sampled_logprobs, n * sizeof *a->logprobs);
	assert_memory_equal(a->lse, b->lse, n * sizeof *a->lse);
	assert_true(a->finish == b->finish && a->stop_id == b->stop_id && a->stop == b->stop && a->n_text == b->n_text);
	if (top_k) {
		assert_memory_equal(a->ids, b->ids, (size_t)n * top_k * sizeof *a->ids);
		assert_memory_equal(a->logits, b->logits, (size_t)n * top_k * sizeof *a->logits);
	}
}

static const struct generation *of(const struct request *r, uint32_t prompt, uint32_t sample)
{
	return r->items[prompt * r->generate->n + sample].generation;
}

static struct generation_query sampling(uint32_t n, uint32_t max_tokens)
{
	struct generation_query q = query_of(n, max_tokens, 0.9f, 12345);
	q.sampling.top_p = 0.95f;
	q.sampling.top_k = 40;
	q.sampling.min_p = 0.01f;
	q.top_k = 5;
	q.ignore_eos = true;
	return q;
}

// Every number of an answer is the one that a score of prompt and answer gives.
static void check_against_score(struct engine *e, const struct sequence *prompt, const struct generation *g, uint32_t top_k)
{
	uint32_t tokens[256], n = prompt->n_tokens + g->n_tokens;
	memcpy(tokens, prompt->tokens, prompt->n_tokens * sizeof *tokens);
	memcpy(tokens + prompt->n_tokens, g->tokens, g->n_tokens * sizeof *tokens);
	struct query q;
	query_init(&q);
	q.top_k = top_k;
	q.own = true;
	struct record_rows *rows = engine_ask_one(e, &q, tokens, n);
	for (uint32_t t = 0; t < g->n_tokens; t++) {
		uint32_t row = prompt->n_tokens - 1 + t;
		assert_true(g->lse[t] == rows->lse[row]);
		assert_true(g->logprobs[t] == (float)((double)rows->own_logit[row] - (double)rows->lse[row]));
		assert_memory_equal(g->ids + (size_t)t * top_k, rows->ids + (size_t)row * top_k, top_k * sizeof *g->ids);
		assert_memory_equal(g->logits + (size_t)t * top_k, rows->logits + (size_t)row * top_k, top_k * sizeof *g->logits);
	}
	record_rows_free(rows);
}

static void numbers_are_those_of_a_score(void **state)
{
	(void)state;
	for (size_t i = 0; i < N_NAMES; i++) {
		struct engine e;
		open_tiny(&e, names[i], "cpu", &usual);
		make_prompts(e.limits.vocab_size);
		struct generation_query q = sampling(2, 50);
		struct request *r = engine_generate(&e, &q, prompts, N_PROMPTS);
		for (uint32_t k = 0; k < N_PROMPTS * 2; k++)
			check_against_score(&e, &prompts[k / 2], r->items[k].generation, q.top_k);
		engine_free(r);
		engine_close(&e);
	}
}

// The same answers alone, together, beside scores, in passes of 16 tokens, one at a time, on other numbers of threads.
static void samples_do_not_depend_on_company(void **state)
{
	static const struct engine_sizes others[] = {{1, 16, 16, 900, 64}, {3, 256, 16, 2048, 3}, {2, 64, 256, 900, 1}};
	struct engine e;
	struct query score;
	(void)state;
	query_init(&score);
	score.own = true;
	open_tiny(&e, "llama", "cpu", &usual);
	make_prompts(e.limits.vocab_size);
	struct generation_query q = sampling(3, 50), one = sampling(1, 50);
	struct request *all = engine_generate(&e, &q, prompts, N_PROMPTS);
	for (uint32_t p = 0; p < N_PROMPTS; p++) {
		for (uint32_t s = 0; s < 3; s++) {
			one.first_sample = s;
			struct request *alone = engine_generate(&e, &one, &prompts[p], 1);
			assert_same(of(alone, 0, 0), of(all, p, s), q.top_k);
			engine_free(alone);
		}
		assert_true(memcmp(of(all, p, 0)->tokens, of(all, p, 1)->tokens, 50 * sizeof(uint32_t)) != 0);
	}
	engine_close(&e);
	for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
		open_tiny(&e, "llama", "cpu", &others[i]);
		struct request *scores = start_score(&e, &score, prompts, N_PROMPTS);
		struct request *r = start_generate(&e, &q, prompts, N_PROMPTS), *more = start_score(&e, &score, prompts, N_PROMPTS);
		engine_wait(scores);
		engine_wait(more);
		engine_wait(r);
		for (uint32_t k = 0; k < r->n_items; k++) {
			assert_int_equal(r->items[k].error.code, 0);
			assert_same(r->items[k].generation, all->items[k].generation, q.top_k);
		}
		engine_free(scores);
		engine_free(more);
		engine_free(r);
		engine_close(&e);
	}
	engine_free(all);
}

// A client that keeps the state itself: each step sends the whole prefix, and computes one position.
static void steps_of_one_token_make_the_same_sequence(void **state)
{
	struct engine e;
	uint32_t tokens[256];
	(void)state;
	open_tiny(&e, "qwen3", "cpu", &usual);
	make_prompts(e.limits.vocab_size);
	struct generation_query q = sampling(1, 40), step = sampling(1, 1);
	q.first_sample = step.first_sample = 7;
	struct request *whole = engine_generate(&e, &q, &prompts[1], 1);
	struct sequence prefix = {tokens, prompts[1].n_tokens};
	memcpy(tokens, prompts[1].tokens, prefix.n_tokens * sizeof *tokens);
	uint64_t before = stats_of(&e).n_positions;
	for (uint32_t t = 0; t < 40; t++, prefix.n_tokens++) {
		struct request *r = engine_generate(&e, &step, &prefix, 1);
		const struct generation *g = r->items[0].generation;
		assert_int_equal(g->n_reused, prefix.n_tokens - 1);
		assert_true(g->tokens[0] == of(whole, 0, 0)->tokens[t] && g->logprobs[0] == of(whole, 0, 0)->logprobs[t]);
		tokens[prefix.n_tokens] = g->tokens[0];
		engine_free(r);
	}
	assert_int_equal(stats_of(&e).n_positions - before, 40);
	prefix.n_tokens -= 10;                                 // back ten tokens, and on with another
	tokens[prefix.n_tokens - 1] ^= 1;
	struct request *r = engine_generate(&e, &step, &prefix, 1);
	assert_int_equal(r->items[0].generation->n_reused, prefix.n_tokens - 1);
	check_against_score(&e, &prefix, r->items[0].generation, step.top_k);
	engine_free(r);
	engine_free(whole);
	engine_close(&e);
}

static void a_prompt_is_computed_once_for_all_its_samples(void **state)
{
	struct engine e;
	(void)state;
	open_tiny(&e, "llama", "cpu", &usual);
	make_prompts(e.limits.vocab_size);
	struct generation_query q = sampling(8, 1);
	struct request *r = engine_generate(&e, &q, &prompts[3], 1);
	struct teacher_stats s = stats_of(&e);
	assert_int_equal(s.n_positions, prompts[3].n_tokens + 7);        // the others only the last row
	assert_int_equal(s.n_reused, 7 * (prompts[3].n_tokens - 1));
	assert_int_equal(s.n_generated, 8);
	for (uint32_t k = 1; k < 8; k++)
		assert_true(of(r, 0, k)->lse[0] == of(r, 0, 0)->lse[0]);
	engine_free(r);
	engine_close(&e);
}

// ---- how answers begin and end

static void text_of(struct engine *e, const struct generation *g, char to[256])
{
	char *text = NULL;
	size_t n = 0;
	assert_int_equal(tokenizer_decode(teacher_tokenizer(e->teacher), g->tokens, g->n_tokens, true, &text, &n, NULL), 0);
	assert_true(g->n_text <= n && n < 256);
	memcpy(to, text, g->n_text);
	to[g->n_text] = '\0';
	free(text);
}

static void answers_end_where_they_should(void **state)
{
	struct engine e;
	(void)state;
	open_tiny(&e, "llama", "cpu", &usual);
	make_prompts(e.limits.vocab_size);
	struct generation_query q = sampling(1, 60);
	struct request *r = engine_generate(&e, &q, &prompts[1], 1);
	const struct generation *whole = of(r, 0, 0);
	char text[256], stop[4] = {0}, never[] = "\x7f\x7f";
	text_of(&e, whole, text);
	assert_int_equal(strlen(text), 60);                               // a character a token
	memcpy(stop, text + 30, 3);                                       // across three tokens
	size_t at = (size_t)(strstr(text, stop) - text);
	q.n_stops = 2;
	q.stops[0] = never;
	q.stops[1] = stop;
	struct request *stopped = engine_generate(&e, &q, &prompts[1], 1);
	const struct generation *g = of(stopped, 0, 0);
	assert_true(g->finish == GENERATION_STOP && g->stop == 1 && g->stop_id == -1);
	assert_true(g->n_text == at && g->n_tokens == at + 3 && memcmp(g->tokens, whole->tokens, g->n_tokens * sizeof *g->tokens) == 0);
	engine_free(stopped);
	q.n_stops = 0;
	q.n_stop_ids = 1;
	q.stop_ids[0] = whole->tokens[20];
	uint32_t first = 0;
	while (whole->tokens[first] != q.stop_ids[0])
		first++;
	stopped = engine_generate(&e, &q, &prompts[1], 1);
	g = of(stopped, 0, 0);
	assert_true(g->finish == GENERATION_STOP && g->stop_id == q.stop_ids[0] && g->n_tokens == first + 1 && g->n_text == first + 1);
	engine_free(stopped);
	assert_true(whole->finish == GENERATION_LENGTH && whole->stop_id == -1 && whole->stop == -1);
	engine_free(r);
	engine_close(&e);
}

static void the_forced_beginning_is_scored_and_then_continued(void **state)
{
	struct engine e;
	static uint32_t forced[] = {9, 2, 40, 41, 42, 2, 7};              // 2 would end an answer: not this one
	(void)state;
	open_tiny(&e, "llama", "cpu", &usual);
	make_prompts(e.limits.vocab_size);
	struct generation_query q = sampling(2, 20);
	q.forced = forced;
	q.n_forced = 7;
	q.ignore_eos = false;
	struct request *r = engine_generate(&e, &q, prompts, N_PROMPTS);
	for (uint32_t k = 0; k < r->n_items; k++) {
		const struct generation *g = r->items[k].generation;
		assert_memory_equal(g->tokens, forced, sizeof forced);
		assert_true(g->n_tokens > 7 && g->n_tokens <= 27 && g->sampled_logprobs[0] == 0);
		assert_true((g->tokens[g->n_tokens - 1] == 2) == (g->finish == GENERATION_STOP));
		check_against_score(&e, &prompts[k / 2], g, q.top_k);
	}
	engine_free(r);
	engine_close(&e);
}

// ---- what is over

static atomic_int n_told;
static struct request *cancelled_request;

// The door of a stream: takes what there is, and after the third token leaves.
static void told(struct request_item *item)
{
	if (request_item_take(item))
		sem_post(item->request->owner);
	else if (atomic_fetch_add(&n_told, 1) == 2)
		atomic_store(&cancelled_request->cancelled, true);
}

static void told_last(struct request_item *item)
{
	request_item_tell(item, true);
}

static void what_is_cancelled_or_late_gives_its_slots_back(void **state)
{
	struct engine e;
	(void)state;
	open_tiny(&e, "llama", "cpu", &usual);
	make_prompts(e.limits.vocab_size);
	struct generation_query q = sampling(2, 80);
	q.stream = true;
	struct request *r = engine_request_generate(&e, &q, &prompts[1], 1);
	r->complete = told;
	r->computed = told_last;
	cancelled_request = r;
	engine_submit(&e, r);
	engine_wait(r);
	for (uint32_t i = 0; i < 2; i++) {
		assert_int_equal(r->items[i].error.code, ERROR_CANCELLED);
		assert_in_range(r->items[i].generation->n_tokens, 1, 79);
	}
	engine_free(r);
	q.stream = false;
	r = engine_request_generate(&e, &q, prompts, 3);
	r->deadline_ms = 1;
	engine_submit(&e, r);
	engine_wait(r);
	for (uint32_t i = 0; i < r->n_items; i++)
		assert_int_equal(r->items[i].error.code, ERROR_DEADLINE);
	engine_free(r);
	q.max_tokens = 1;
	engine_free(engine_generate(&e, &q, &prompts[0], 1));              // and the engine goes on
	struct teacher_stats t = stats_of(&e);
	assert_int_equal(t.n_slots_used, t.n_slots_idle);
	assert_int_equal(t.n_generating, 0);
	assert_int_equal(t.n_dropped, 2 + 2 * 3);
	engine_close(&e);
}

// A score asked while a long answer is under way is answered before its end; a short answer asked behind many scores before theirs.
static void neither_scores_nor_generations_starve(void **state)
{
	enum { N = 200 };
	struct engine e;
	struct query score;
	uint32_t tokens[N][64];
	struct sequence s[N];
	(void)state;
	query_init(&score);
	score.own = true;
	open_tiny(&e, "llama", "cpu", &(struct engine_sizes){1, 64, 64, 1024, 4});
	make_prompts(e.limits.vocab_size);
	for (uint32_t i = 0; i < N; i++) {
		for (uint32_t j = 0; j < 64; j++)
			tokens[i][j] = (i * 64 + j * j) % 90;
		s[i] = (struct sequence){tokens[i], 64};
	}
	struct generation_query q = sampling(1, 120);
	struct request *long_one = start_generate(&e, &q, &prompts[0], 1), *one = start_score(&e, &score, s, 1);
	engine_wait(one);
	assert_true(long_one->items[0].generation->n_tokens < 120);
	engine_wait(long_one);
	uint64_t before = stats_of(&e).n_passes;
	struct request *many = start_score(&e, &score, s, N);
	q = sampling(1, 3);
	struct request *short_one = engine_generate(&e, &q, &prompts[3], 1);
	assert_true(stats_of(&e).n_passes - before < 60);                  // of the 200 that the scores take by themselves
	engine_wait(many);
	engine_free(long_one);
	engine_free(one);
	engine_free(many);
	engine_free(short_one);
	engine_close(&e);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(greedy_is_what_transformers_generates),
		cmocka_unit_test(greedy_of_the_real_teacher),
		cmocka_unit_test(numbers_are_those_of_a_score),
		cmocka_unit_test(samples_do_not_depend_on_company),
		cmocka_unit_test(steps_of_one_token_make_the_same_sequence),
		cmocka_unit_test(a_prompt_is_computed_once_for_all_its_samples),
		cmocka_unit_test(answers_end_where_they_should),
		cmocka_unit_test(the_forced_beginning_is_scored_and_then_continued),
		cmocka_unit_test(what_is_cancelled_or_late_gives_its_slots_back),
		cmocka_unit_test(neither_scores_nor_generations_starve),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
