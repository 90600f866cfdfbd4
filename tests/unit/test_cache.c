// SPDX-License-Identifier: Apache-2.0
// The cache of keys and values: who gets which slots (against a plain account of what each slot holds), and the same bits from a pass over
// new rows as from one over the whole sequence.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "common/error.h"
#include "daemon/model/cache.h"
#include "daemon/model/forward.h"
#include "daemon/model/weights.h"

enum { V = 23, C = 24, CONTEXT = 96, MAX_T = 200, N_SLOTS = 64 };

struct model { struct backend *be; struct weights *weights; struct activations *activations; struct cache *cache; };

static void model_open(struct model *m, const char *backend, uint32_t n_slots)
{
	struct backend_options options = {.n_threads = 2, .max_rows = MAX_T};
	struct architecture a = {.name = "llama", .n_layers = 2, .width = C, .ffn_width = 32, .n_heads = 6, .n_kv_heads = 2, .head_size = 4,
				 .vocab_size = V, .context_length = CONTEXT, .norm_epsilon = 1e-5f, .rope_theta = 10000, .tied_head = true,
				 .bos_id = -1, .eos_id = -1};
	struct error err = {0};
	*m = (struct model){0};
	if (backend_open(backend, &options, &m->be, &err) || weights_new_trainable(m->be, &a, 3, CONTEXT, &m->weights, &err) ||
	    activations_new(m->weights, MAX_T, false, 0, &m->activations, &err) || cache_open(m->weights, n_slots, &m->cache, &err))
		fail_msg("%s", err.message);
	activations_cache(m->activations, m->cache);
}

static void model_close(struct model *m)
{
	cache_close(m->cache);
	activations_free(m->activations);
	weights_free(m->weights);
	backend_close(m->be);
}

static uint32_t below(uint64_t *state, uint32_t n)
{
	*state = *state * 6364136223846793005u + 1442695040888963407u;
	return (uint32_t)(*state >> 33) % n;
}

// ---- who gets what

enum { N_ACTIVE = 6, LENGTH = 20 };

struct walker { struct cache_sequence s; uint32_t tokens[LENGTH], n_tokens, max; bool active; };
static uint64_t content[N_SLOTS];        // of each slot: a name of the tokens up to its position; 0 = nothing

static uint64_t prefix_name(const uint32_t *tokens, uint32_t n)
{
	uint64_t h = 14695981039346656037u;
	for (uint32_t i = 0; i < n; i++)
		h = (h ^ (tokens[i] + 1)) * 1099511628211u;
	return h;
}

static void check_contents(const struct walker *w)
{
	for (uint32_t i = 0; i < w->s.n; i++)
		assert_true(w->s.slots[i] < N_SLOTS && content[w->s.slots[i]] == prefix_name(w->tokens, i + 1));
}

static void walker_begin(struct cache *c, struct walker *w, uint64_t *random)
{
	w->n_tokens = 1 + below(random, LENGTH / 2);
	w->max = w->n_tokens + below(random, LENGTH / 2);
	for (uint32_t i = 0; i < LENGTH; i++)
		w->tokens[i] = below(random, 2);
	assert_int_equal(cache_begin(c, w->tokens, w->n_tokens, w->max, &w->s, NULL), 0);
	assert_true(w->s.n <= w->n_tokens && w->s.n == w->s.n_shared);
	w->active = true;
	check_contents(w);
}

// The prompt at once or in parts, then token by token; some share what they made, and some do not.
static bool walker_go(struct cache *c, struct walker *w, uint64_t *random)
{
	uint32_t from = w->s.n, n = from < w->n_tokens ? 1 + below(random, w->n_tokens - from) : from < w->max ? 1 : 0;
	if (!n || !cache_extend(c, &w->s, n))
		return false;
	for (uint32_t i = from; i < w->s.n; i++)
		content[w->s.slots[i]] = prefix_name(w->tokens, i + 1);
	if (below(random, 2))
		cache_share(c, &w->s, w->tokens);
	return true;
}

static void walker_end(struct cache *c, struct walker *w, bool share)
{
	check_contents(w);
	if (share)
		cache_share(c, &w->s, w->tokens);
	check_contents(w);
	cache_end(c, &w->s);
	w->active = false;
}

static void slots_hold_what_their_tokens_say(void **state)
{
	struct model m;
	struct walker w[N_ACTIVE] = {0};
	uint64_t random = 7, reused = 0;
	(void)state;
	model_open(&m, "ref", N_SLOTS);
	for (int step = 0; step < 30000; step++) {
		struct walker *x = &w[below(&random, N_ACTIVE)];
		if (!x->active) {
			walker_begin(m.cache, x, &random);
			reused += x->s.n;
		} else if (!walker_go(m.cache, x, &random)) {
			walker_end(m.cache, x, below(&random, 4) > 0);
		}
		struct cache_usage u = cache_usage(m.cache);
		uint32_t own = 0;
		for (int i = 0; i < N_ACTIVE; i++)
			own += w[i].active ? w[i].s.n - w[i].s.n_shared : 0;
		assert_true(u.n_used <= N_SLOTS && u.n_idle + own <= u.n_used);
	}
	for (int i = 0; i < N_ACTIVE; i++)
		if (w[i].active)
			walker_end(m.cache, &w[i], true);
	struct cache_usage u = cache_usage(m.cache);
	assert_int_equal(u.n_used, u.n_idle);
	assert_true(u.n_used > 0 && reused > 5000);
	// All of it can be had, each slot once.
	uint32_t slots[N_SLOTS];
	bool seen[N_SLOTS] = {0};
	assert_true(cache_take(m.cache, N_SLOTS, slots));
	for (int i = 0; i < N_SLOTS; i++) {
		assert_false(seen[slots[i]]);
		seen[slots[i]] = true;
	}
	assert_int_equal(cache_usage(m.cache).n_nodes, 0);
	assert_false(cache_take(m.cache, 1, slots));
	cache_give(m.cache, N_SLOTS, slots);
	assert_int_equal(cache_usage(m.cache).n_used, 0);
	model_close(&m);
}

static struct cache_sequence known(struct cache *c, const uint32_t *tokens, uint32_t n)
{
	struct cache_sequence s;
	assert_int_equal(cache_begin(c, tokens, n, CONTEXT, &s, NULL), 0);
	return s;
}

static void keep(struct cache *c, const uint32_t *tokens, uint32_t n)
{
	struct cache_sequence s = known(c, tokens, n);
	assert_true(cache_extend(c, &s, n - s.n));
	cache_share(c, &s, tokens);
	cache_end(c, &s);
}

static uint32_t n_known(struct cache *c, const uint32_t *tokens, uint32_t n)
{
	struct cache_sequence s = known(c, tokens, n);
	n = s.n;
	cache_end(c, &s);
	return n;
}

// One-token steps: each request is the whole prefix; a step back, and another token, costs what differs.
static void steps_find_what_steps_left(void **state)
{
	struct model m;
	uint32_t tokens[40];
	(void)state;
	model_open(&m, "ref", N_SLOTS);
	for (uint32_t i = 0; i < 40; i++)
		tokens[i] = i % 7;
	keep(m.cache, tokens, 10);
	for (uint32_t n = 11; n <= 40; n++) {
		assert_int_equal(n_known(m.cache, tokens, n), n - 1);
		keep(m.cache, tokens, n);
	}
	assert_int_equal(cache_usage(m.cache).n_nodes, 1);        // it grew; it is no chain
	tokens[38] = 22;
	assert_int_equal(n_known(m.cache, tokens, 40), 38);
	keep(m.cache, tokens, 39);
	assert_int_equal(n_known(m.cache, tokens, 40), 39);
	tokens[38] = 38 % 7;
	assert_int_equal(n_known(m.cache, tokens, 40), 40);
	model_close(&m);
}

static void the_least_recently_used_makes_room_from_its_end(void **state)
{
	struct model m;
	uint32_t a[20], b[20], c[30];
	(void)state;
	model_open(&m, "ref", N_SLOTS);
	for (uint32_t i = 0; i < 30; i++) {
		if (i < 20)
			a[i] = 1, b[i] = 2;
		c[i] = 3;
	}
	keep(m.cache, a, 20);
	keep(m.cache, b, 20);
	assert_int_equal(n_known(m.cache, a, 20), 20);            // now b is the older one
	keep(m.cache, c, 30);
	assert_int_equal(n_known(m.cache, a, 20), 20);
	assert_int_equal(n_known(m.cache, b, 20), 0);
	struct cache_sequence held = known(m.cache, a, 20);
	uint32_t slots[N_SLOTS];
	assert_true(cache_take(m.cache, N_SLOTS - 20, slots));    // all but what is held
	assert_false(cache_take(m.cache, 1, slots + N_SLOTS - 20));
	assert_int_equal(cache_usage(m.cache).n_idle, 0);
	cache_give(m.cache, N_SLOTS - 20, slots);
	cache_end(m.cache, &held);
	assert_int_equal(n_known(m.cache, a, 20), 20);
	assert_int_equal(n_known(m.cache, c, 30), 0);
	model_close(&m);
}

// ---- the same bits

static void sequence_of(uint32_t *tokens, uint32_t seed)
{
	for (uint32_t i = 0; i < CONTEXT; i++)
		tokens[i] = (i * 7 + i * i * seed + seed) % V;
}

static void hidden_whole(struct model *m, const uint32_t *tokens, uint32_t n, double *ret)
{
	uint32_t positions[CONTEXT], starts[] = {0, n};
	for (uint32_t i = 0; i < n; i++)
		positions[i] = i;
	struct layout layout = {.n_positions = n, .n_sequences = 1, .tokens = tokens, .positions = positions, .starts = starts};
	m->be->ops->act_read(m->be, ret, forward(m->weights, m->activations, &layout), (size_t)n * C);
	assert_int_equal(backend_sync(m->be, NULL), 0);
}

struct part { uint32_t tokens[CONTEXT]; struct cache_sequence s; uint32_t from; };      // rows from..s.n-1 of a sequence

static void hidden_of(struct model *m, const struct part *parts, uint32_t n, double *ret)
{
	uint32_t tokens[MAX_T], positions[MAX_T], starts[8] = {0}, slot_starts[8] = {0}, slots[8 * CONTEXT], T = 0;
	for (uint32_t p = 0; p < n; p++) {
		for (uint32_t i = parts[p].from; i < parts[p].s.n; i++, T++) {
			tokens[T] = parts[p].tokens[i];
			positions[T] = i;
		}
		memcpy(slots + slot_starts[p], parts[p].s.slots, parts[p].s.n * sizeof *slots);
		starts[p + 1] = T;
		slot_starts[p + 1] = slot_starts[p] + parts[p].s.n;
	}
	struct layout layout = {.n_positions = T, .n_sequences = n, .tokens = tokens, .positions = positions, .starts = starts,
				.slot_starts = slot_starts, .slots = slots};
	m->be->ops->act_read(m->be, ret, forward(m->weights, m->activations, &layout), (size_t)T * C);
	assert_int_equal(backend_sync(m->be, NULL), 0);
}

static void check_part(struct model *m, const struct part *p, const double *got)
{
	static double whole[CONTEXT * C];
	hidden_whole(m, p->tokens, p->s.n, whole);
	assert_memory_equal(got, whole + p->from * C, (p->s.n - p->from) * C * sizeof *got);
}

// Two sequences with a prefix of 30 in common, in passes of uneven parts; the second begins in the pass that computes the prefix, and
// once more, wholly known, with its last row alone.
static void check_bits(const char *backend)
{
	static double got[MAX_T * C];
	struct model m;
	struct part p[3] = {0};
	model_open(&m, backend, 400);
	sequence_of(p[0].tokens, 1);
	sequence_of(p[1].tokens, 2);
	memcpy(p[1].tokens, p[0].tokens, 30 * sizeof(uint32_t));
	static const uint32_t parts[] = {33, 1, 1, 9, 1, 14};
	for (uint32_t i = 0; i < 6; i++) {
		uint32_t at = 0;
		for (int k = 0; k < 2; k++) {
			if (!p[k].s.slots)
				p[k].s = known(m.cache, p[k].tokens, CONTEXT);
			p[k].from = p[k].s.n;
			assert_true(cache_extend(m.cache, &p[k].s, parts[(i + (uint32_t)k) % 6]));
			cache_share(m.cache, &p[k].s, p[k].tokens);
		}
		assert_true(i > 0 || p[1].from == 30);
		hidden_of(&m, p, 2, got);
		for (int k = 0; k < 2; k++) {
			check_part(&m, &p[k], got + at * C);
			at += p[k].s.n - p[k].from;
		}
	}
	uint32_t n = p[1].s.n;
	cache_end(m.cache, &p[1].s);
	p[2] = (struct part){.s = known(m.cache, p[1].tokens, n), .from = n - 1};
	memcpy(p[2].tokens, p[1].tokens, sizeof p[2].tokens);
	assert_int_equal(p[2].s.n, n);
	hidden_of(&m, &p[2], 1, got);
	check_part(&m, &p[2], got);
	cache_end(m.cache, &p[0].s);
	cache_end(m.cache, &p[2].s);
	model_close(&m);
}

static void new_rows_have_the_bits_of_the_whole(void **state)
{
	(void)state;
	check_bits("ref");
	check_bits("cpu");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(slots_hold_what_their_tokens_say),
		cmocka_unit_test(steps_find_what_steps_left),
		cmocka_unit_test(the_least_recently_used_makes_room_from_its_end),
		cmocka_unit_test(new_rows_have_the_bits_of_the_whole),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
