// SPDX-License-Identifier: Apache-2.0
#include "daemon/worker/resume.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/error.h"
#include "daemon/log.h"
#include "daemon/model/weights.h"
#include "daemon/worker/policy.h"
#include "daemon/worker/replay.h"
#include "daemon/worker/team.h"
#include "daemon/worker/trainer.h"

#define RESUME_REPLAY "replay"         // the file of the buffer in a checkpoint

static struct snapshot_arrays arrays_of(struct trainer *t)
{
	struct snapshot_arrays arrays = {.weights = student_weights(t->student), .name = policy_replay(t->policy) ? RESUME_REPLAY : NULL};
	arrays.n = optimizer_arrays(t->optimizer, arrays.list);
	return arrays;
}

// What a run that goes on must repeat: settings, and what others of them came to.
static int lines_make(struct trainer *t, char **ret, struct error *err)
{
	const struct backend *be = student_weights(t->student)->backend;
	size_t n = 0;
	FILE *f = open_memstream(ret, &n);
	if (!f)
		return error_set(err, ERROR_MEMORY, NULL, "out of memory");
	settings_print_lines(f, t->settings);
	fprintf(f, "student = %s\n", strcmp(t->settings->student, "random") == 0 ? "random" : "a model");
	fprintf(f, "steps = %" PRIu64 "\ndevice = %s\nprecision = %s\n", t->steps, be->ops->name, be->view_numeric);
	bool bad = ferror(f);
	if (fclose(f) == 0 && !bad)
		return 0;
	free(*ret);
	*ret = NULL;
	return error_set(err, ERROR_MEMORY, NULL, "out of memory");
}

int resume_save(struct trainer *t, struct error *err)
{
	if (team_rank(t->options.team))
		return 0;
	struct snapshot_arrays arrays = arrays_of(t);
	struct policy_state policy = policy_state(t->policy);
	t->state.n_adaptive = objective_n_state(t->objective);
	objective_state(t->objective, t->state.adaptive);
	t->state.rollout_chance = policy.chance;
	t->state.rollout_reference = policy.reference;
	char *lines = NULL;
	int r = lines_make(t, &lines, err);
	arrays.settings = lines;
	if (r == 0 && arrays.name)
		r = replay_encode(policy_replay(t->policy), &arrays.bytes, &arrays.n_bytes, err);
	r = r ? r : snapshot_save(t->checkpoints, &arrays, &t->state, (uint32_t)t->settings->keep, err);
	free(lines);
	free(arrays.bytes);
	return r;
}

static void policy_take(struct trainer *t)
{
	const struct policy_state state = {t->state.rollout_chance, t->state.rollout_reference};
	policy_restore(t->policy, &state);
}

// Before anything is loaded: with other settings a checkpoint's arrays may not even fit.
static int began_alike(struct trainer *t, struct error *err)
{
	struct snapshot_state saved;
	char *began = NULL, *now = NULL;
	int r = snapshot_peek(t->checkpoints, &saved, &began, err);
	if (r == -ENOENT)
		return 0;
	r = r ? r : snapshot_compare(&saved, &t->state, err);
	r = r ? r : lines_make(t, &now, err);
	r = r ? r : settings_compare_lines(began, now, err);
	free(began);
	free(now);
	return r;
}

static int checkpoint_take(struct trainer *t, struct snapshot_arrays *arrays, struct error *err)
{
	struct snapshot_state saved;
	struct error skipped;
	int r = snapshot_load(t->checkpoints, arrays, &saved, &skipped, err);
	if (skipped.code)
		log_warning("%s: passed over", skipped.message);
	if (r == -ENOENT) {
		log_info("no checkpoint yet: starting at the beginning");
		return 0;
	}
	r = r ? r : snapshot_compare(&saved, &t->state, err);
	if (r == 0 && arrays->name)
		r = replay_decode(policy_replay(t->policy), arrays->bytes, arrays->n_bytes, err);
	if (r)
		return r;
	t->state = saved;
	objective_restore(t->objective, saved.adaptive);
	policy_take(t);
	log_info("resumed after step %llu", (unsigned long long)saved.step);
	return 0;
}

int resume_load(struct trainer *t, struct error *err)
{
	if (team_rank(t->options.team))
		return 0;              // process 0 tells
	if (!t->options.resume) {
		if (access(t->checkpoints, F_OK) == 0)
			return error_set(err, ERROR_CONFLICT, "output", "%s holds checkpoints: give --resume or another folder",
				t->options.output);
		return 0;
	}
	struct snapshot_arrays arrays = arrays_of(t);
	int r = began_alike(t, err);
	r = r ? r : checkpoint_take(t, &arrays, err);
	free(arrays.bytes);
	return r;
}

static int replay_share(struct trainer *t, struct error *err)
{
	struct team *team = t->options.team;
	struct replay *replay = policy_replay(t->policy);
	uint8_t *bytes = NULL;
	size_t n = 0;
	int r = team_rank(team) ? 0 : replay_encode(replay, &bytes, &n, err);
	uint64_t n_bytes = n;
	r = team_agree(team, r, err);
	r = r ? r : team_broadcast(team, &n_bytes, sizeof n_bytes, err);
	if (r == 0 && team_rank(team) && !(bytes = malloc(n_bytes)))
		r = error_set(err, ERROR_MEMORY, NULL, "out of memory");
	r = team_agree(team, r, err);
	r = r ? r : team_broadcast(team, bytes, n_bytes, err);
	if (r == 0 && team_rank(team))
		r = replay_decode(replay, bytes, n_bytes, err);
	free(bytes);
	return r;
}

int resume_share(struct trainer *t, struct error *err)
{
	if (team_rank(t->options.team) && t->state.step) {
		objective_restore(t->objective, t->state.adaptive);
		policy_take(t);
	}
	return policy_replay(t->policy) && t->state.step ? replay_share(t, err) : 0;
}
