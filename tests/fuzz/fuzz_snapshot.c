// SPDX-License-Identifier: Apache-2.0
// What a resumed run reads of a checkpoint: first byte 0 state.json, 1 the buffer of rollouts beside it. What is accepted says the same
// when it is written and read again.
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/worker/passage.h"
#include "daemon/worker/replay.h"
#include "daemon/worker/snapshot_internal.h"
#include "tests/fuzz/fuzz.h"

static void require(bool holds)
{
	if (!holds)
		abort();
}

static void again(const struct snapshot_state *s)
{
	static struct snapshot_state back;
	json_t *j = snapshot_state_encode(s);
	char *text = j ? json_dumps(j, 0) : NULL;
	json_t *read = text ? json_loads(text, 0, NULL) : NULL;
	require(read && snapshot_state_decode(read, &back));
	require(back.step == s->step && back.position == s->position && back.n_adaptive == s->n_adaptive && back.domains.n == s->domains.n);
	require(back.n_evaluations == s->n_evaluations && !snapshot_difference(s, &back) && snapshot_compare(s, &back, NULL) == 0);
	require(memcmp(&back.guard, &s->guard, sizeof back.guard) == 0);
	json_decref(read);
	free(text);
	json_decref(j);
}

static void try_state(const uint8_t *data, size_t size)
{
	static struct snapshot_state s;
	json_t *j = json_loadb((const char *)data, size, JSON_REJECT_DUPLICATES, NULL);
	char *lines = snapshot_settings_decode(json_object_get(j, "settings"));
	if (snapshot_state_decode(j, &s))
		again(&s);
	if (lines) {
		json_t *list = snapshot_settings_encode(lines);
		char *same = snapshot_settings_decode(list);
		require(same && strcmp(same, lines) == 0);
		free(same);
		json_decref(list);
	}
	free(lines);
	json_decref(j);
}

static void try_replay(const uint8_t *data, size_t size)
{
	const struct replay_options o = {.capacity = 4, .max_tokens = 16, .n_step = 2, .vocab_size = 100, .seed = 7};
	struct replay *r = NULL, *same = NULL;
	uint8_t *bytes = NULL;
	size_t n = 0;
	require(replay_new(&o, &r) == 0 && replay_new(&o, &same) == 0);
	if (replay_decode(r, data, size, NULL) == 0) {
		require(replay_n(r) <= o.capacity && replay_encode(r, &bytes, &n, NULL) == 0 && n == size);
		require(replay_decode(same, bytes, n, NULL) == 0 && replay_n(same) == replay_n(r));
		for (uint32_t i = 0; replay_full(r) && i < o.n_step; i++) {
			struct passage p;
			require(replay_pick(r, 3, i, &p) == 0 && p.sequence.n_tokens <= o.max_tokens);
			passage_done(&p);
		}
		free(bytes);
	} else {
		require(replay_n(r) == 0);
	}
	replay_free(r);
	replay_free(same);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	if (size)
		(data[0] & 1 ? try_replay : try_state)(data + 1, size - 1);
	return 0;
}
