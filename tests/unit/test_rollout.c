// SPDX-License-Identifier: Apache-2.0
// The student's own continuations: the same bits in any company, the chances they were drawn with, where they end, and which of their
// positions are learned. On the ref device (double precision).
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "common/error.h"
#include "common/record.h"
#include "daemon/model/weights.h"
#include "daemon/worker/passage.h"
#include "daemon/worker/rollout.h"
#include "daemon/worker/student.h"
#include "kernels/backend.h"

#define L 12
#define V 11
#define N 5

static const struct architecture architecture = {
	.name = "llama", .n_layers = 2, .width = 8, .ffn_width = 12, .n_heads = 2, .n_kv_heads = 1, .head_size = 4, .vocab_size = V,
	.context_length = 16, .norm_epsilon = 1e-5f, .rope_theta = 10000, .tied_head = true, .bos_id = -1, .eos_id = -1,
};

static struct objective *objective;
static struct student *student;

static const uint32_t texts[N][L] = {{1, 2, 3, 4}, {5, 6, 7}, {8, 9, 10, 1, 2, 3}, {4}, {1, 2, 3, 4}};
static const uint32_t lengths[N] = {4, 3, 6, 1, 4};

static struct rollout *rollout_new(float temperature, int32_t eos, uint64_t seed)
{
	struct rollout *r = NULL;
	struct error err = {0};
	struct rollout_options o = {.n_sequences = N, .sequence_length = L, .eos_ids = {eos, -1}, .seed = seed};
	sampler_options_init(&o.sampling);
	o.sampling.temperature = temperature;
	if (rollout_open(student_weights(student), student_head(student), &o, &r, &err))
		fail_msg("%s", err.message);
	return r;
}

static int student_make(void **state)
{
	(void)state;
	struct error err = {0};
	struct rollout_options room = {.n_sequences = N, .sequence_length = L};
	assert_int_equal(objective_new(&objective), 0);
	assert_int_equal(objective_add(objective, "cross-entropy", "test", NULL), 0);
	assert_int_equal(objective_begin(objective, 10, V), 0);
	struct student_options o = {.device = "ref", .n_threads = 1, .sequence_length = L, .micro_batch = N, .top_k = 1, .seed = 5,
				    .rollout = &room, .objective = objective};
	if (student_open(&o, &architecture, NULL, &student, &err))
		fail_msg("%s", err.message);
	// A random start is nearly uniform: larger parameters make opinions.
	struct weights *w = student_weights(student);
	double *values = malloc(w->parameters->n_values * sizeof *values);
	float *larger = malloc(w->parameters->n_values * sizeof *larger);
	w->backend->ops->real_read(w->backend, values, w->parameters->value, w->parameters->n_values);
	for (size_t i = 0; i < w->parameters->n_values; i++)
		larger[i] = (float)(values[i] * 4);
	w->backend->ops->real_write(w->backend, w->parameters->value, larger, w->parameters->n_values);
	weights_refresh(w);
	free(values), free(larger);
	return 0;
}

static int student_unmake(void **state)
{
	(void)state;
	student = student_close(student);
	objective = objective_free(objective);
	return 0;
}

static void make(struct rollout *r, const uint32_t *which, uint32_t n, uint32_t max_tokens, struct passage *ret)
{
	struct sequence s[N];
	struct rollout_prompt prompts[N];
	struct error err = {0};
	for (uint32_t i = 0; i < n; i++) {
		s[i] = (struct sequence){(uint32_t *)(uintptr_t)texts[which[i]], lengths[which[i]]};
		prompts[i] = (struct rollout_prompt){&s[i], lengths[which[i]], 100 + which[i], 0};
	}
	if (rollout_make(r, prompts, n, max_tokens, ret, &err))
		fail_msg("%s", err.message);
}

static void done(struct passage *p, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++)
		passage_done(&p[i]);
}

// A teacher that always goes on with 7, and remembers what it was asked.
struct asked { uint32_t n, n_calls; uint64_t group; uint32_t answer; };

static int teacher_write(void *arg, uint64_t group, const struct sequence *beginnings, uint32_t n, uint32_t *ret_ids, struct error *err)
{
	struct asked *asked = arg;
	(void)err;
	for (uint32_t i = 0; i < n; i++) {
		assert_true(beginnings[i].n_tokens < L);
		assert_true(beginnings[i].tokens[0] < V);
		ret_ids[i] = asked->answer;
	}
	asked->n += n;
	asked->n_calls++;
	asked->group = group;
	return 0;
}

static struct rollout *rollout_mixed_new(double mix, struct asked *asked)
{
	struct rollout *r = NULL;
	struct rollout_options o = {
		.n_sequences = N, .sequence_length = L, .eos_ids = {-1, -1}, .seed = 7, .mix = mix,
		.teacher = teacher_write, .teacher_arg = asked};
	sampler_options_init(&o.sampling);
	assert_int_equal(rollout_open(student_weights(student), student_head(student), &o, &r, NULL), 0);
	return r;
}

static const uint32_t everyone[N] = {0, 1, 2, 3, 4};

static void a_rollout_does_not_depend_on_its_company(void **state)
{
	(void)state;
	struct rollout *r = rollout_new(1, -1, 7), *again = rollout_new(1, -1, 7), *other = rollout_new(1, -1, 8);
	struct passage all[N], one, b[N];
	make(r, everyone, N, 6, all);
	make(other, everyone, N, 6, b);
	uint32_t differ = 0;
	for (uint32_t i = 0; i < N; i++) {
		make(again, &everyone[i], 1, 6, &one);
		assert_int_equal(all[i].sequence.n_tokens, lengths[i] + 6);
		assert_int_equal(all[i].first, lengths[i]);
		assert_int_equal(all[i].author, PASSAGE_STUDENT);
		assert_memory_equal(all[i].sequence.tokens, texts[i], lengths[i] * sizeof(uint32_t));
		assert_memory_equal(all[i].sequence.tokens, one.sequence.tokens, (lengths[i] + 6) * sizeof(uint32_t));
		assert_memory_equal(all[i].logprobs, one.logprobs, 6 * sizeof(double));
		differ += memcmp(all[i].sequence.tokens, b[i].sequence.tokens, (lengths[i] + 6) * sizeof(uint32_t)) != 0;
		passage_done(&one);
	}
	assert_true(differ > 0);       // another seed draws other tokens,
	assert_memory_not_equal(all[0].sequence.tokens, all[4].sequence.tokens, 10 * sizeof(uint32_t));       // and so does another number
	done(all, N), done(b, N);
	rollout_close(r), rollout_close(again), rollout_close(other);
}

// Those passages as a teacher that is sure of nothing but the labels, of which it says ln p = 0.
static struct record_rows *answer_new(const struct passage *p)
{
	struct content_id teacher = {{1}};
	struct record_rows *r = NULL;
	struct query q;
	struct query_limits limits = {.max_tokens = L, .max_top_k = 1, .vocab_size = V};
	query_init(&q);
	q.own = true;
	q.first = (int32_t)p->first - 1;
	q.last = -2;
	assert_int_equal(query_check(&q, &p->sequence, &limits, NULL, NULL), 0);
	assert_int_equal(record_rows_new(&teacher, V, &p->sequence, &q, &r, NULL), 0);
	return r;
}

static void what_is_drawn_is_what_training_sees(void **state)
{
	(void)state;
	struct rollout *r = rollout_new(1, -1, 3);
	struct passage all[N];
	struct record_rows *rows[N];
	struct student_sums sums = {0};
	double sum = 0, squares = 0;
	make(r, everyone, N, 6, all);
	for (uint32_t i = 0; i < N; i++) {
		rows[i] = answer_new(&all[i]);
		for (int k = 0; k < 6; k++) {
			sum += all[i].logprobs[k];
			squares += all[i].logprobs[k] * all[i].logprobs[k];
		}
	}
	student_passages(student, all);
	assert_int_equal(student_train(student, (const struct record_rows *const *)rows, N, &sums, NULL), 0);
	student_passages(student, NULL);
	assert_int_equal(sums.n_positions, 6 * N);
	assert_int_equal(sums.drawn.n, 6 * N);
	assert_int_equal(sums.drawn.n_passages, N);
	// The cross-entropy of what was drawn is that of the draws: generation and training see the same logits.
	assert_true(fabs(sums.objective.values[0] + sum) < 1e-9);
	assert_true(fabs(sums.drawn.k1 - sum) < 1e-9 && fabs(sums.drawn.k2 - squares / 2) < 1e-9);
	for (uint32_t i = 0; i < N; i++)
		record_rows_free(rows[i]);
	done(all, N);
	rollout_close(r);
}

static void at_temperature_zero_it_is_the_likeliest(void **state)
{
	(void)state;
	struct rollout *r = rollout_new(0, -1, 3);
	struct passage all[N];
	struct sequence s[N];
	uint32_t ids[N * L], *at = ids;
	make(r, everyone, N, 5, all);
	for (uint32_t i = 0; i < N; i++)
		s[i] = all[i].sequence;
	assert_int_equal(student_likeliest(student, s, N, 1, ids, NULL), 0);
	for (uint32_t i = 0; i < N; i++) {
		for (uint32_t k = all[i].first; k < s[i].n_tokens; k++)
			assert_int_equal(s[i].tokens[k], at[k - 1]);
		at += s[i].n_tokens - 1;
	}
	done(all, N);
	rollout_close(r);
}

static void it_ends_with_the_token_that_ends(void **state)
{
	(void)state;
	struct rollout *r = rollout_new(1, -1, 7);
	struct passage all[N], b[N];
	make(r, everyone, N, 6, all);
	uint32_t eos = all[2].sequence.tokens[lengths[2] + 2], n_ended = 0;
	rollout_close(r);
	r = rollout_new(1, (int32_t)eos, 7);
	make(r, everyone, N, 6, b);
	for (uint32_t i = 0; i < N; i++) {
		uint32_t n = lengths[i];
		while (n < lengths[i] + 6 && all[i].sequence.tokens[n] != eos)
			n++;
		n = n < lengths[i] + 6 ? n + 1 : n;            // the token that ends belongs to it
		n_ended += n < lengths[i] + 6;
		assert_int_equal(b[i].sequence.n_tokens, n);
		assert_memory_equal(b[i].sequence.tokens, all[i].sequence.tokens, n * sizeof(uint32_t));
	}
	assert_true(n_ended > 0);
	done(all, N), done(b, N);
	rollout_close(r);
}

static void nothing_of_other_parameters_is_left_in_the_cache(void **state)
{
	(void)state;
	struct rollout *r = rollout_new(0, -1, 7), *fresh;
	struct weights *w = student_weights(student);
	struct passage before, after, expected;
	double value;
	make(r, everyone, 1, 6, &before);
	for (size_t i = 0; i < 60; i++) {
		struct real *at = w->backend->ops->real_at(w->parameters->value, i);
		w->backend->ops->real_read(w->backend, &value, at, 1);
		w->backend->ops->real_write(w->backend, at, &(float){(float)-value}, 1);
	}
	weights_refresh(w);
	fresh = rollout_new(0, -1, 7);
	make(r, everyone, 1, 6, &after);
	make(fresh, everyone, 1, 6, &expected);
	assert_memory_equal(after.sequence.tokens, expected.sequence.tokens, 10 * sizeof(uint32_t));
	assert_memory_equal(after.logprobs, expected.logprobs, 6 * sizeof(double));
	done(&before, 1), done(&after, 1), done(&expected, 1);
	rollout_close(r), rollout_close(fresh);
}

static void a_student_that_left_the_numbers_is_an_error(void **state)
{
	(void)state;
	struct rollout *r = rollout_new(1, -1, 7);
	struct weights *w = student_weights(student);
	struct sequence s = {(uint32_t *)(uintptr_t)texts[0], lengths[0]};
	struct rollout_prompt prompt = {&s, lengths[0], 0, 0};
	struct passage p;
	struct error err = {0};
	double value;
	w->backend->ops->real_read(w->backend, &value, w->parameters->value, 1);
	for (size_t i = 0; i < 88; i++)        // the whole embedding
		w->backend->ops->real_write(w->backend, w->backend->ops->real_at(w->parameters->value, i), &(float){NAN}, 1);
	weights_refresh(w);
	assert_int_equal(rollout_make(r, &prompt, 1, 4, &p, &err), error_errno(ERROR_NOT_FINITE));
	passage_done(&p);
	rollout_close(r);
}

static void the_teacher_writes_where_coins_say(void **state)
{
	(void)state;
	struct asked asked = {.answer = 7};
	struct rollout *r = rollout_mixed_new(0.2, &asked);
	uint32_t n_sevens = 0, n = 0;
	double chance = 0;                     // of a 7 by the student, summed over all places
	for (uint64_t round = 0; round < 400; round++) {
		struct sequence s[N];
		struct rollout_prompt prompts[N];
		struct passage all[N];
		for (uint32_t i = 0; i < N; i++) {
			s[i] = (struct sequence){(uint32_t *)(uintptr_t)texts[i], lengths[i]};
			prompts[i] = (struct rollout_prompt){&s[i], lengths[i], round * N + i, round};
		}
		assert_int_equal(rollout_make(r, prompts, N, 2, all, NULL), 0);
		assert_true(!asked.n_calls || asked.group <= round);
		for (uint32_t i = 0; i < N; i++) {
			assert_true(all[i].mixed == 0.2);
			for (uint32_t k = 0; k < 2; k++, n++) {
				bool seven = all[i].sequence.tokens[lengths[i] + k] == 7;
				n_sevens += seven;
				chance += seven ? exp(all[i].logprobs[k]) : 0;
				assert_true(fabs(all[i].drawn[k] - all[i].logprobs[k]) < 1e-9);
			}
		}
		done(all, N);
	}
	assert_in_range(asked.n, 800 - 102, 800 + 102);                // binomial(4000, .2), 4 standard deviations
	assert_true(n_sevens >= asked.n && asked.n_calls <= 800);      // those of one pass are asked for together
	assert_true(n_sevens < n && chance > 0);
	rollout_close(r);
}

static void mixed_rollouts_do_not_depend_on_their_company(void **state)
{
	(void)state;
	struct asked asked = {.answer = 7};
	struct rollout *r = rollout_mixed_new(0.5, &asked), *plain = rollout_new(1, -1, 7);
	struct passage all[N], one, own[N];
	uint32_t differ = 0;
	make(r, everyone, N, 6, all);
	make(plain, everyone, N, 6, own);
	for (uint32_t i = 0; i < N; i++) {
		make(r, &everyone[i], 1, 6, &one);
		assert_memory_equal(all[i].sequence.tokens, one.sequence.tokens, (lengths[i] + 6) * sizeof(uint32_t));
		assert_memory_equal(all[i].logprobs, one.logprobs, 6 * sizeof(double));
		// Up to the first token that the teacher gave it is what the student alone would have written.
		uint32_t k = 0;
		while (k < 6 && all[i].sequence.tokens[lengths[i] + k] == own[i].sequence.tokens[lengths[i] + k])
			k++;
		assert_true(k == 6 || all[i].sequence.tokens[lengths[i] + k] == 7);
		differ += k < 6;
		passage_done(&one);
	}
	assert_true(differ > 0);
	done(all, N), done(own, N);
	rollout_close(r), rollout_close(plain);
}

static void a_token_that_there_is_not_is_refused(void **state)
{
	(void)state;
	struct asked asked = {.answer = V};
	struct rollout *r = rollout_mixed_new(0.99, &asked);
	struct sequence s = {(uint32_t *)(uintptr_t)texts[0], lengths[0]};
	struct rollout_prompt prompt = {&s, lengths[0], 1, 1};
	struct passage p;
	struct error err = {0};
	assert_int_equal(rollout_make(r, &prompt, 1, 6, &p, &err), error_errno(ERROR_CORRUPT));
	assert_string_equal(err.message, "the teacher went on with id 11, there are 11");
	passage_done(&p);
	rollout_close(r);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_rollout_does_not_depend_on_its_company),
		cmocka_unit_test(the_teacher_writes_where_coins_say),
		cmocka_unit_test(mixed_rollouts_do_not_depend_on_their_company),
		cmocka_unit_test(a_token_that_there_is_not_is_refused),
		cmocka_unit_test(what_is_drawn_is_what_training_sees),
		cmocka_unit_test(at_temperature_zero_it_is_the_likeliest),
		cmocka_unit_test(it_ends_with_the_token_that_ends),
		cmocka_unit_test(nothing_of_other_parameters_is_left_in_the_cache),
		cmocka_unit_test(a_student_that_left_the_numbers_is_an_error),
	};
	return cmocka_run_group_tests(tests, student_make, student_unmake);
}
