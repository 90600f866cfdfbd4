// SPDX-License-Identifier: Apache-2.0
// Passes that overlap on the emulated device: while there is more to compute its queue is never empty; whatever the passes hold, each
// answer is what it is alone; and what goes wrong in one pass reaches nobody through the next.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/error.h"
#include "daemon/teacher/teacher_internal.h"
#include "tests/golden/engine.h"
#include "tests/gpu/emulate/faults.h"

enum { LENGTH = 40, MOST = 48 };

// 128 rows are three sequences of LENGTH.
static const struct engine_sizes sizes = {1, 128, 64, 2048, 4};

static void open_models(struct engine *e, const char *device, const char *const *names, uint32_t n)
{
	char paths[4][4096], what[64];
	struct teacher_source sources[4];
	struct error err = {0};
	emulate_mend();
	for (uint32_t i = 0; i < n; i++) {
		snprintf(what, sizeof what, "models/%s", names[i]);
		golden_path(paths[i], sizeof paths[i], what);
		snprintf(sources[i].name, sizeof sources[i].name, "%s", names[i]);
		sources[i].path = paths[i];
	}
	if (engine_open_sources(e, sources, n, device, "auto", &sizes, &err))
		fail_msg("%s", err.message);
}

static void open_one(struct engine *e, const char *device)
{
	static const char *const names[] = {"llama"};
	open_models(e, device, names, 1);
}

// n sequences of which no two begin alike.
static uint32_t tokens[MOST][LENGTH];
static struct sequence sequences[MOST];

static void make_sequences(void)
{
	for (uint32_t s = 0; s < MOST; s++) {
		for (uint32_t i = 0; i < LENGTH; i++)
			tokens[s][i] = 3 + (i * 7 + s * 5 + i * s) % 60;
		sequences[s] = (struct sequence){tokens[s], LENGTH};
	}
}

static void plain_query(struct query *q)
{
	query_init(q);
	q->top_k = 4;
	q->own = q->entropy = true;
}

static struct teacher_stats stats_of(const struct engine *e)
{
	struct teacher_stats s;
	teacher_stats(e->teacher, &s);
	return s;
}

// ---- the device's queue

struct seen { uint64_t passes, waits, idle, allocations; };

static struct seen look(const struct engine *e)
{
	return (struct seen){stats_of(e).n_passes, emulate_count(EMULATE_WAIT), emulate_idle_waits(), emulate_count(EMULATE_ALLOCATION)};
}

// One request of n sequences; what happened meanwhile.
static struct seen ask(struct engine *e, uint32_t n)
{
	struct query q;
	plain_query(&q);
	struct seen before = look(e);
	struct request *r = engine_request_score(e, &q, sequences, n);
	engine_submit(e, r);
	engine_wait(r);
	struct seen now = look(e);
	for (uint32_t i = 0; i < n; i++)
		assert_int_equal(r->items[i].error.code, 0);
	engine_free(r);
	return (struct seen){now.passes - before.passes, now.waits - before.waits, now.idle - before.idle,
			     now.allocations - before.allocations};
}

// Of a pass the host waits for the trunk and for each sequence's rows. The device runs out of work once: when there is no more.
static void a_lone_pass_leaves_the_device_idle_at_its_end_alone(void **state)
{
	(void)state;
	struct engine e;
	open_one(&e, "cuda");
	struct seen s = ask(&e, 3);
	assert_int_equal(s.passes, 1);
	assert_int_equal(s.waits, 1 + 3);
	assert_int_equal(s.idle, 1);
	s = ask(&e, 1);
	assert_int_equal(s.waits, 1 + 1);
	assert_int_equal(s.idle, 1);
	engine_close(&e);
}

static void between_passes_the_device_has_work(void **state)
{
	(void)state;
	struct engine e;
	open_one(&e, "cuda");
	struct seen s = ask(&e, 30);
	assert_int_equal(s.passes, 10);
	assert_int_equal(s.waits, 10 + 30);
	assert_int_equal(s.idle, 1);
	assert_int_equal(s.allocations, 0);
	assert_int_equal(stats_of(&e).n_late_allocations, 0);
	engine_close(&e);
}

// ---- answers

#define N_KINDS 9

// What each way through the engine takes: rows that are looked at again, features, two sweeps, no rows at all.
static void kind_of_query(struct query *q, uint32_t kind)
{
	static uint32_t keep[] = {3, 4, 9, 20, 33};
	static struct query_span spans[] = {{1, 20}, {30, LENGTH}};
	plain_query(q);
	switch (kind % N_KINDS) {
	case 1:
		q->dense = true;
		break;
	case 2:
		q->n_features = 2;
		q->features[0] = (struct query_feature){QUERY_FEATURE_HIDDEN, 1};
		q->features[1] = (struct query_feature){QUERY_FEATURE_K, 0};
		break;
	case 3:
		q->top_mass = 0.5f;
		q->tail = true;
		break;
	case 4:
		q->n_keep = 5;
		q->keep = keep;
		break;
	case 5:
		query_init(q);
		q->n_spans = 2;
		q->spans = spans;
		break;
	case 6:
		q->draws = (struct query_draws){.n = 20, .tau = 1, .seed = 5};
		break;
	case 7:
		query_init(q);
		q->n_features = 1;
		q->features[0] = (struct query_feature){QUERY_FEATURE_FINAL, 0};
		q->pooling = QUERY_POOLING_MEAN;
		break;
	case 8:
		q->first = q->last = 7;
		q->sum_squares = q->max_prob = true;
		break;
	default:
		break;
	}
}

// Sequence i as question i: asked of one model, of the other, or of both.
static struct request *question(struct engine *e, uint32_t i)
{
	static const struct choice_query choices[] = {
		{.n_members = 0}, {.n_members = 1, .members = {{"linear", 0}}},
		{.is_mixture = true, .rule = HEAD_MEAN, .n_members = 2, .members = {{"llama", 0.5}, {"linear", 0.5}}},
		{.is_mixture = true, .rule = HEAD_SUM, .n_members = 2, .members = {{"llama", 2}, {"linear", -1}}},
	};
	struct query q;
	uint32_t who = i / N_KINDS % 4, kind = i;
	if (who > 1 && (kind % N_KINDS == 2 || kind % N_KINDS == 7))        // mixtures have no features
		kind = 0;
	e->asked = choices[who];
	kind_of_query(&q, kind);
	return engine_request_score(e, &q, &sequences[i], 1);
}

static struct request *samples(struct engine *e)
{
	struct generation_query q;
	generation_query_init(&q);
	q.n = 3;
	q.max_tokens = 12;
	q.seed = 9;
	e->asked = (struct choice_query){0};
	return engine_request_generate(e, &q, sequences, 2);
}

static void check_record(const struct request_item *got, const struct request_item *want)
{
	size_t n, m;
	if (got->error.code || want->error.code)
		fail_msg("%s", got->error.code ? got->error.message : want->error.message);
	const void *a = record_bytes(got->record, &n), *b = record_bytes(want->record, &m);
	assert_int_equal(n, m);
	assert_memory_equal(a, b, n);
}

static void check_samples(const struct request *got, const struct request *want)
{
	for (uint32_t i = 0; i < got->n_items; i++) {
		const struct generation *a = got->items[i].generation, *b = want->items[i].generation;
		assert_int_equal(got->items[i].error.code, 0);
		assert_int_equal(a->n_tokens, b->n_tokens);
		assert_memory_equal(a->tokens, b->tokens, a->n_tokens * sizeof *a->tokens);
		assert_memory_equal(a->logprobs, b->logprobs, a->n_tokens * sizeof *a->logprobs);
	}
}

// Twice over, so that every kind comes before and after others.
static void whatever_passes_hold_each_answer_is_what_it_is_alone(void **state)
{
	enum { N = 4 * N_KINDS };
	static const char *const names[] = {"llama", "linear"};
	struct engine e;
	struct request *alone[N], *loaded[2][N], *sampled_alone, *sampled;
	(void)state;
	open_models(&e, "cuda", names, 2);
	for (uint32_t i = 0; i < N; i++) {
		alone[i] = question(&e, i);
		engine_submit(&e, alone[i]);
		engine_wait(alone[i]);
	}
	sampled_alone = samples(&e);
	engine_submit(&e, sampled_alone);
	engine_wait(sampled_alone);
	sampled = samples(&e);
	for (uint32_t round = 0; round < 2; round++) {
		for (uint32_t i = 0; i < N; i++) {
			loaded[round][i] = question(&e, round ? i * 7 % N : i);        // 7 and N have no common factor
			engine_submit(&e, loaded[round][i]);
		}
		if (!round) {
			e.asked = (struct choice_query){0};
			engine_submit(&e, sampled);
		}
	}
	for (uint32_t round = 0; round < 2; round++)
		for (uint32_t i = 0; i < N; i++) {
			engine_wait(loaded[round][i]);
			check_record(&loaded[round][i]->items[0], &alone[round ? i * 7 % N : i]->items[0]);
			engine_free(loaded[round][i]);
		}
	engine_wait(sampled);
	check_samples(sampled, sampled_alone);
	for (uint32_t i = 0; i < N; i++)
		engine_free(alone[i]);
	engine_free(sampled);
	engine_free(sampled_alone);
	engine_close(&e);
}

// ---- pass by pass, by an engine without a thread

struct scene {
	struct teacher *teacher;
	struct request *request;
	uint32_t n_back, n_without;        // items given back; those of them with an error
	uint32_t most_under_way;           // passes, when one was given back
	uint32_t poison_at;                // the item whose way back shows that the teacher is wrong; 0 = none
};

static void came_back(struct request_item *item)
{
	struct scene *s = item->request->owner;
	uint32_t n = atomic_load(&s->teacher->n_under_way);
	s->most_under_way = n > s->most_under_way ? n : s->most_under_way;
	s->n_without += item->error.code != 0;
	if (++s->n_back == s->poison_at) {
		struct error why = {0};
		error_set(&why, ERROR_INTERNAL, "canary", "another answer");
		teacher_poison(s->teacher, &why);
	}
}

static void open_scene(struct scene *s, const char *device, uint32_t n)
{
	char path[4096];
	struct error err = {0};
	struct query q;
	golden_path(path, sizeof path, "models/llama");
	struct teacher_source source = {.name = "teacher", .path = path};
	struct teacher_options options = {
		.sources = &source, .n_sources = 1, .device = device, .numeric = "auto", .n_threads = 1, .max_tokens = 256,
		.batch_tokens = 128, .max_top_k = 64, .max_gather = 1, .max_draws = 1, .event_fd = -1};
	*s = (struct scene){0};
	emulate_mend();
	if (teacher_new(&options, &s->teacher, &err) || teacher_load(s->teacher, &err))
		fail_msg("%s", err.message);
	assert_int_equal(request_new(n, &s->request, NULL), 0);
	const struct query_limits limits = {.max_tokens = 256, .max_top_k = 64, .vocab_size = s->teacher->infos[0].architecture.vocab_size};
	s->request->owner = s;
	s->request->computed = came_back;
	s->request->choice = (struct choice){.n_members = 1, .fingerprint = s->teacher->infos[0].fingerprint};
	plain_query(&q);
	for (uint32_t i = 0; i < n; i++) {
		struct request_item *item = &s->request->items[i];
		assert_int_equal(sequence_init(&item->sequence, tokens[i], LENGTH), 0);
		item->query = q;
		if (query_check(&item->query, &item->sequence, &limits, "", &err))
			fail_msg("%s", err.message);
		batch_backlog_append(&s->teacher->members[0].schedule.scores, &item->link);
	}
}

static void close_scene(struct scene *s)
{
	request_free(s->request);
	teacher_unload(s->teacher);
	teacher_free(s->teacher);
}

static void the_last_answer_comes_when_the_device_has_the_next_pass(void **state)
{
	struct scene s;
	(void)state;
	open_scene(&s, "cuda", 6);
	pass_start(s.teacher);
	assert_int_equal(s.n_back, 2);
	pass_start(s.teacher);
	assert_int_equal(s.n_back, 5);
	assert_int_equal(s.most_under_way, 2);
	pass_complete(s.teacher);
	assert_int_equal(s.n_back, 6);
	assert_int_equal(s.n_without, 0);
	assert_int_equal(s.teacher->n_under_way, 0);
	pass_complete(s.teacher);      // there is nothing to do
	close_scene(&s);
}

// As when the known question's answer is wrong: the next pass is computed already, and is nobody's answer.
static void a_teacher_found_wrong_answers_nothing_of_the_pass_behind(void **state)
{
	struct scene s;
	(void)state;
	open_scene(&s, "cuda", 6);
	s.poison_at = 3;
	pass_start(s.teacher);
	assert_int_equal(s.n_back, 2);
	pass_start(s.teacher);
	pass_complete(s.teacher);
	assert_int_equal(s.n_back, 6);
	assert_int_equal(s.n_without, 3);
	for (uint32_t i = 3; i < 6; i++)
		assert_true(s.request->items[i].error.code == ERROR_UNAVAILABLE && !s.request->items[i].record);
	close_scene(&s);
}

// Which pass a fault belongs to does not matter: those behind it get nothing, and those before it nothing wrong.
static void a_fault_in_the_pass_behind_leaves_no_answer_after_it(void **state)
{
	struct scene s;
	(void)state;
	open_scene(&s, "cuda", 6);
	pass_start(s.teacher);
	emulate_fail(EMULATE_PRODUCT, 2);
	pass_start(s.teacher);
	pass_complete(s.teacher);
	assert_int_equal(s.n_back, 6);
	assert_int_equal(s.n_without, 4);      // the last of the first pass had not been read
	assert_int_equal(teacher_state(s.teacher), TEACHER_FAILED);
	emulate_mend();
	close_scene(&s);
}

// ---- a device that computes while the host waits

static atomic_uint most_under_way;
static struct teacher *watched;

static void note_under_way(struct request_item *item)
{
	unsigned n = atomic_load(&watched->n_under_way), most = atomic_load(&most_under_way);
	if (n > most)
		atomic_store(&most_under_way, n);
	item->request->complete(item);
}

static unsigned most_passes_at_once(const char *device)
{
	struct engine e;
	struct query q;
	open_one(&e, device);
	watched = e.teacher;
	atomic_store(&most_under_way, 0);
	plain_query(&q);
	struct request *r = engine_request_score(&e, &q, sequences, 12);
	r->computed = note_under_way;
	engine_submit(&e, r);
	engine_wait(r);
	engine_free(r);
	engine_close(&e);
	return atomic_load(&most_under_way);
}

static void only_where_the_device_computes_meanwhile_do_passes_overlap(void **state)
{
	(void)state;
	assert_int_equal(most_passes_at_once("cpu"), 1);       // whose answers would wait for the next pass
	assert_int_equal(most_passes_at_once("ref"), 1);
	assert_int_equal(most_passes_at_once("cuda"), 2);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_lone_pass_leaves_the_device_idle_at_its_end_alone),
		cmocka_unit_test(between_passes_the_device_has_work),
		cmocka_unit_test(the_last_answer_comes_when_the_device_has_the_next_pass),
		cmocka_unit_test(a_teacher_found_wrong_answers_nothing_of_the_pass_behind),
		cmocka_unit_test(a_fault_in_the_pass_behind_leaves_no_answer_after_it),
		cmocka_unit_test(only_where_the_device_computes_meanwhile_do_passes_overlap),
		cmocka_unit_test(whatever_passes_hold_each_answer_is_what_it_is_alone),
	};
	make_sequences();
	return cmocka_run_group_tests(tests, NULL, NULL);
}
