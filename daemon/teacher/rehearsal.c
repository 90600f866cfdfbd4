// SPDX-License-Identifier: Apache-2.0
#include "daemon/teacher/rehearsal.h"

#include "daemon/model/cache.h"
#include "daemon/model/forward.h"
#include "daemon/model/head.h"
#include "daemon/teacher/member.h"
#include "daemon/teacher/teacher.h"
#include "kernels/backend.h"

#define N_ROWS 2                     // the shortest sequence with a past
#define N_DRAWS 2

static const uint32_t tokens[N_ROWS], positions[N_ROWS] = {0, 1}, starts[] = {0, N_ROWS};

// The head over one row, asked for everything a question can ask of it.
static void rehearse_head(const struct member *m, const struct act *hidden)
{
	static const float temperatures[] = {1, 2};
	static const double uniforms[N_DRAWS] = {0.25, 0.75};
	static const uint32_t row = N_ROWS - 1, gather[] = {0};
	double lse[2], logits[1], gathered[1], drawn_logits[N_DRAWS];
	uint32_t ids[1], drawn[N_DRAWS];
	struct sweep_row r = {.top_k = 1, .n_temperatures = 2, .temperatures = temperatures, .n_gather = 1, .gather = gather,
			      .want_entropy = true, .want_tail = true, .n_draws = N_DRAWS, .draw_tau = 1, .uniforms = uniforms, .lse = lse,
			      .ids = ids, .logits = logits, .gathered = gathered, .drawn = drawn, .drawn_logits = drawn_logits};
	head_score(m->head, hidden, &row, 1, &r);
}

static void rehearse_cached(const struct member *m)
{
	struct cache *cache = m->schedule.cache;
	static const uint32_t slot_starts[] = {0, N_ROWS};
	uint32_t slots[N_ROWS];
	struct layout layout = {.n_positions = N_ROWS, .n_sequences = 1, .tokens = tokens, .positions = positions, .starts = starts,
				.slot_starts = slot_starts, .slots = slots};
	if (!cache || !cache_take(cache, N_ROWS, slots))
		return;
	rehearse_head(m, forward(m->weights, m->activations, &layout));
	cache_give(cache, N_ROWS, slots);
}

int rehearsal_run(const struct member *m, struct backend *be, struct error *err)
{
	struct layout layout = {.n_positions = N_ROWS, .n_sequences = 1, .tokens = tokens, .positions = positions, .starts = starts};
	if (m->info->max_tokens < N_ROWS)
		return 0;                        // rotation tables of one position: such a model has no second
	rehearse_head(m, forward(m->weights, m->activations, &layout));
	rehearse_cached(m);
	return backend_sync(be, err);
}
