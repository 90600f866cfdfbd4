// SPDX-License-Identifier: Apache-2.0
#include "daemon/worker/rollout.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/error.h"
#include "daemon/model/cache.h"
#include "daemon/model/forward.h"
#include "daemon/model/head.h"
#include "daemon/model/philox.h"
#include "daemon/model/weights.h"
#include "daemon/worker/passage.h"
#include "kernels/backend.h"

#define ROLLOUT_TAG 0x726f6c6cu        // "roll": keeps these draws apart from all others of the same seed
#define ROLLOUT_MIX_TAG 0x6d697874u    // "mixt": the coins that give a token to the teacher
#define ROLLOUT_OWN UINT32_MAX         // the student draws

struct answer {
	struct cache_sequence places;
	uint32_t *tokens;                      // (n_prompt + room) the prompt, then what was drawn
	double *logprobs, *drawn;              // (room)
	uint32_t n_prompt, n_known, n_read, end;       // n_read: in the cache; end: most tokens
	uint64_t number;
	uint32_t row;                          // in the pass, of its last known token
	uint32_t given;                        // by the teacher, to follow that token; or ROLLOUT_OWN
	bool open;                             // its places were begun
	bool over;
};

struct rollout {
	struct rollout_options options;
	const struct weights *weights;
	struct backend *backend;
	struct activations *activations;
	struct cache *cache;
	struct head *head;
	struct sampler *sampler;
	struct answer *answers;                // (n_sequences)
	uint32_t max_rows;
	uint32_t *tokens, *places;             // (max_rows) of a pass
	uint32_t *starts, *slot_starts;        // (n_sequences + 1)
	uint32_t *slots;                       // (n_sequences L)
	uint32_t *rows, *which;                // (n_sequences) rows that the head reads, whose they are
	double *logits;                        // (V)
	struct sequence *beginnings;           // (n_sequences) that the teacher goes on from in a pass, whose they are, and how
	uint32_t *whose, *given;
	uint64_t group;
	struct layout layout;
};

// A pass holds one token of every sequence, or as many whole prompts as fit.
static uint32_t rows_of(const struct rollout_options *o)
{
	return o->sequence_length > o->n_sequences ? o->sequence_length : o->n_sequences;
}

int rollout_need(const struct architecture *a, const struct rollout_options *options, struct backend_need *need, struct error *err)
{
	int r = activations_need(a, rows_of(options), false, 0, need, err);
	return r ? r : cache_need(a, options->n_sequences * options->sequence_length, need, err);
}

static int arrays_new(struct rollout *r, struct error *err)
{
	uint32_t n = r->options.n_sequences, V = r->weights->architecture.vocab_size;
	r->answers = calloc(n, sizeof *r->answers);
	r->tokens = calloc(r->max_rows, sizeof *r->tokens);
	r->places = calloc(r->max_rows, sizeof *r->places);
	r->starts = calloc((size_t)n + 1, sizeof *r->starts);
	r->slot_starts = calloc((size_t)n + 1, sizeof *r->slot_starts);
	r->slots = calloc(n, r->options.sequence_length * sizeof *r->slots);
	r->rows = calloc(n, sizeof *r->rows);
	r->which = calloc(n, sizeof *r->which);
	r->logits = calloc(V, sizeof *r->logits);
	r->beginnings = calloc(n, sizeof *r->beginnings);
	r->whose = calloc(n, sizeof *r->whose);
	r->given = calloc(n, sizeof *r->given);
	bool mixing = r->beginnings && r->whose && r->given;
	if (!mixing || !r->answers || !r->tokens || !r->places || !r->starts || !r->slot_starts || !r->slots || !r->rows ||
		!r->which || !r->logits)
		return error_set(err, ERROR_MEMORY, "rollouts", "no memory for %u rollouts of %u tokens", n, r->options.sequence_length);
	return 0;
}

int rollout_open(const struct weights *w, struct head *head, const struct rollout_options *options, struct rollout **ret, struct error *err)
{
	struct rollout *r = calloc(1, sizeof *r);
	if (!r)
		return error_set(err, ERROR_MEMORY, "rollouts", "out of memory");
	r->options = *options;
	r->weights = w;
	r->backend = w->backend;
	r->head = head;
	r->max_rows = rows_of(options);
	int result = arrays_new(r, err);
	result = result ? result : sampler_new(w->architecture.vocab_size, &r->sampler, err);
	result = result ? result : activations_new(w, r->max_rows, false, 0, &r->activations, err);
	result = result ? result : cache_open(w, options->n_sequences * options->sequence_length, &r->cache, err);
	if (result) {
		rollout_close(r);
		return result;
	}
	activations_cache(r->activations, r->cache);
	*ret = r;
	return 0;
}

struct rollout *rollout_close(struct rollout *r)
{
	if (!r)
		return NULL;
	activations_free(r->activations);
	cache_close(r->cache);
	sampler_free(r->sampler);
	free(r->answers), free(r->tokens), free(r->places), free(r->starts), free(r->slot_starts), free(r->slots);
	free(r->rows), free(r->which), free(r->logits), free(r->beginnings), free(r->whose), free(r->given);
	free(r);
	return NULL;
}

static int answer_begin(struct rollout *r, struct answer *a, const struct rollout_prompt *prompt, uint32_t max_tokens, struct error *err)
{
	uint32_t L = r->options.sequence_length, end = max_tokens < L - prompt->n ? prompt->n + max_tokens : L;
	*a = (struct answer){.n_prompt = prompt->n, .n_known = prompt->n, .end = end, .number = prompt->number};
	if (!prompt->n || prompt->n >= L)
		return error_set(err, ERROR_INTERNAL, "rollouts", "a prompt of %u tokens leaves no room in %u", prompt->n, L);
	a->tokens = calloc(end, sizeof *a->tokens);
	a->logprobs = calloc(max_tokens, sizeof *a->logprobs);
	a->drawn = calloc(max_tokens, sizeof *a->drawn);
	if (!a->tokens || !a->logprobs || !a->drawn)
		return error_set(err, ERROR_MEMORY, "rollouts", "out of memory");
	memcpy(a->tokens, prompt->sequence->tokens, prompt->n * sizeof *a->tokens);
	// Nothing is looked up in the cache, and nothing left in it: what other parameters read is of no use.
	int result = cache_begin(r->cache, a->tokens, 0, end, &a->places, err);
	a->open = result == 0;
	return result;
}

static void answer_end(struct rollout *r, struct answer *a)
{
	if (a->open)
		cache_end(r->cache, &a->places);
	free(a->tokens);
	free(a->logprobs);
	free(a->drawn);
	*a = (struct answer){0};
}

// The unread tokens of one sequence as rows of the pass; false when there is no room for them.
static bool rows_add(struct rollout *r, uint32_t i)
{
	struct answer *a = &r->answers[i];
	struct layout *l = &r->layout;
	uint32_t n = a->n_known - a->n_read, T = l->n_positions, s = l->n_sequences;
	if (n > r->max_rows - T)
		return false;
	cache_extend(r->cache, &a->places, n);         // the cache has room for every sequence at its longest
	for (uint32_t k = 0; k < n; k++) {
		r->tokens[T + k] = a->tokens[a->n_read + k];
		r->places[T + k] = a->n_read + k;
	}
	memcpy(r->slots + r->slot_starts[s], a->places.slots, a->n_known * sizeof *r->slots);
	a->n_read = a->n_known;
	a->row = T + n - 1;
	r->rows[s] = a->row;
	r->which[s] = i;
	l->n_positions = r->starts[s + 1] = T + n;
	r->slot_starts[s + 1] = r->slot_starts[s] + a->n_known;
	l->n_sequences = s + 1;
	return true;
}

// Fills a pass with sequences that have tokens to read, in order; false when there are none.
static bool pass_fill(struct rollout *r, uint32_t n)
{
	r->layout = (struct layout){.tokens = r->tokens, .positions = r->places, .starts = r->starts, .slot_starts = r->slot_starts,
				    .slots = r->slots};
	r->starts[0] = r->slot_starts[0] = 0;
	for (uint32_t i = 0; i < n; i++)
		if (!r->answers[i].over && r->answers[i].n_read < r->answers[i].n_known && !rows_add(r, i))
			break;
	return r->layout.n_sequences > 0;
}

static double uniform_at(const struct rollout *r, uint64_t number, uint32_t place, uint32_t tag)
{
	const uint32_t key[2] = {(uint32_t)r->options.seed, (uint32_t)(r->options.seed >> 32)};
	uint32_t words[4];
	philox(key, (const uint32_t[]){place, (uint32_t)number, (uint32_t)(number >> 32), tag}, words);
	return philox_uniform(words[0], words[1]);
}

static bool ends(const struct rollout *r, uint32_t id)
{
	return (int64_t)id == r->options.eos_ids[0] || (int64_t)id == r->options.eos_ids[1];
}

// Not finite when one of them is not.
static double lse_of(const double *logits, uint32_t n)
{
	double max = -INFINITY, sum = 0;
	for (uint32_t i = 0; i < n; i++)
		max = fmax(max, logits[i]);            // leaves NaN out: the sum does not
	for (uint32_t i = 0; i < n; i++)
		sum += isfinite(logits[i]) ? exp(logits[i] - max) : NAN;
	return max + log(sum);
}

// logits: row `at` is what follows the last known token of `a`.
static int token_draw(struct rollout *r, struct answer *a, struct real *logits, uint32_t at, struct error *err)
{
	uint32_t V = r->weights->architecture.vocab_size;
	r->backend->ops->real_read(r->backend, r->logits, r->backend->ops->real_at(logits, (size_t)at * V), V);
	double lse = lse_of(r->logits, V);
	if (!isfinite(lse))
		return error_set(err, ERROR_NOT_FINITE, NULL,
				 "the student's logits are not finite: training has diverged (try a lower learning-rate)");
	uint32_t i = a->n_known - a->n_prompt;
	uint32_t id = a->given;
	if (id == ROLLOUT_OWN)
		id = sampler_choose(r->sampler, &r->options.sampling, r->logits, uniform_at(r, a->number, i, ROLLOUT_TAG), &a->drawn[i]);
	else
		a->drawn[i] = r->logits[id] - lse;     // mixed sampling is at temperature 1, without filters
	a->tokens[a->n_known] = id;
	a->logprobs[i] = r->logits[id] - lse;
	a->over = ends(r, a->tokens[a->n_known]) || a->n_known + 1 == a->end;
	a->n_known++;
	return 0;
}

// Coins are tossed for all sequences of the pass, and the teacher asked about those that are given to it together.
static int teacher_ask(struct rollout *r, struct error *err)
{
	const struct rollout_options *o = &r->options;
	uint32_t n = 0, V = r->weights->architecture.vocab_size;
	for (uint32_t i = 0; i < r->layout.n_sequences; i++) {
		struct answer *a = &r->answers[r->which[i]];
		a->given = ROLLOUT_OWN;
		if (o->mix <= 0 || uniform_at(r, a->number, a->n_known - a->n_prompt, ROLLOUT_MIX_TAG) >= o->mix)
			continue;
		r->whose[n] = r->which[i];
		r->beginnings[n++] = (struct sequence){a->tokens, a->n_known};
	}
	int result = n ? o->teacher(o->teacher_arg, r->group, r->beginnings, n, r->given, err) : 0;
	for (uint32_t i = 0; result == 0 && i < n; i++) {
		if (r->given[i] >= V)
			result = error_set(err, ERROR_CORRUPT, "server", "the teacher went on with id %u, there are %u", r->given[i], V);
		else
			r->answers[r->whose[i]].given = r->given[i];
	}
	return result;
}

static int pass_run(struct rollout *r, struct error *err)
{
	int asked = teacher_ask(r, err);
	if (asked)
		return asked;
	const struct act *hidden = forward(r->weights, r->activations, &r->layout);
	uint32_t tile = head_tile_rows(r->head);
	for (uint32_t first = 0; first < r->layout.n_sequences; first += tile) {
		uint32_t n = r->layout.n_sequences - first < tile ? r->layout.n_sequences - first : tile;
		struct real *logits = head_logits(r->head, hidden, r->rows + first, n);
		int result = backend_sync(r->backend, err);
		for (uint32_t i = 0; result == 0 && i < n; i++)
			result = token_draw(r, &r->answers[r->which[first + i]], logits, i, err);
		if (result)
			return result;
	}
	return backend_sync(r->backend, err);
}

static int passage_make(struct answer *a, double mix, struct passage *ret, struct error *err)
{
	struct sequence whole = {a->tokens, a->n_known};
	if (passage_init(ret, &whole, a->n_prompt, PASSAGE_STUDENT))
		return error_set(err, ERROR_MEMORY, "rollouts", "out of memory");
	ret->logprobs = a->logprobs;
	ret->drawn = a->drawn;
	ret->mixed = mix;
	a->logprobs = a->drawn = NULL;
	return 0;
}

int rollout_make(struct rollout *r, const struct rollout_prompt *prompts, uint32_t n, uint32_t max_tokens, struct passage *ret,
		 struct error *err)
{
	int result = 0;
	memset(ret, 0, n * sizeof *ret);
	if (n > r->options.n_sequences || !max_tokens)
		return error_set(err, ERROR_INTERNAL, "rollouts", "%u rollouts of %u tokens", n, max_tokens);
	r->group = n ? prompts[0].group : 0;
	for (uint32_t i = 0; result == 0 && i < n; i++)
		result = answer_begin(r, &r->answers[i], &prompts[i], max_tokens, err);
	while (result == 0 && pass_fill(r, n))
		result = pass_run(r, err);
	for (uint32_t i = 0; i < n; i++) {
		result = result ? result : passage_make(&r->answers[i], r->options.mix, &ret[i], err);
		answer_end(r, &r->answers[i]);
	}
	return result;
}
