// SPDX-License-Identifier: Apache-2.0
// What must hold between the settings of on-policy steps: how often, how long, from where.
#include "daemon/train/settings_internal.h"

#include <math.h>
#include <string.h>

#include "common/error.h"
#include "daemon/loss/objective.h"
#include "daemon/loss/schedule.h"

bool settings_rollouts(const struct run_settings *s)
{
	struct schedule chance;
	return settings_adaptive(s) || (s->rollouts && schedule_parse(s->rollouts, &chance) == 0 && !schedule_is(&chance, 0));
}

bool settings_adaptive(const struct run_settings *s)
{
	return s->rollouts && strcmp(s->rollouts, "adaptive") == 0;
}

static int rollouts_wanted_check(const struct run_settings *s, struct error *err)
{
	struct objective *o = NULL;
	uint32_t term = 0;
	int r = settings_objective(s, &o, err);
	if (r == 0 && objective_wants_rollouts(o, &term))
		r = error_set(err, ERROR_INVALID, "rollouts", "is 0, and loss %s learns from what the student writes",
			objective_name(o, term));
	objective_free(o);
	return r;
}

// The chance follows held-out text: there must be some, and it must be looked at.
static int adaptive_check(const struct run_settings *s, struct error *err)
{
	if (s->evaluate_every == 0 || s->held_out == 0)
		return error_set(err, ERROR_INVALID, "rollouts", "adaptive: evaluations set the chance, and %s = 0 leaves them out",
				 s->held_out == 0 ? "held-out" : "evaluate-every");
	return 0;
}

static int replay_check(const struct run_settings *s, struct error *err)
{
	struct schedule fresh;
	int64_t n_step = s->accumulate * (int64_t)ceil(s->rollout_share * (double)s->micro_batch);
	if (!s->rollout_fresh || schedule_parse(s->rollout_fresh, &fresh) || !schedule_within(&fresh, 0, 1))
		return error_set(err, ERROR_INVALID, "rollout-fresh", "%s: a number from 0 to 1 is expected, or a schedule (linear:1:0)",
				 s->rollout_fresh ? s->rollout_fresh : "");
	if (s->rollout_replay == 0)
		return 0;
	if (s->rollout_pairs)
		return error_set(err, ERROR_UNSUPPORTED, "rollout-replay",
			"and rollout-pairs: what stands beside a text goes on from its prompt");
	if (s->rollout_replay < n_step)
		return error_set(err, ERROR_INVALID, "rollout-replay", "%lld is less than the %lld sequences that a step takes out of it",
				 (long long)s->rollout_replay, (long long)n_step);
	if (s->rollout_replay > (INT64_C(1) << 28) / s->sequence_length)
		return error_set(err, ERROR_TOO_LARGE, "rollout-replay", "%lld sequences of %lld tokens are too many to hold",
				 (long long)s->rollout_replay, (long long)s->sequence_length);
	return 0;
}

static int chance_check(const struct run_settings *s, struct schedule *ret, struct error *err)
{
	if (settings_adaptive(s)) {
		*ret = (struct schedule){.n = 1, .values = {0.5}};     // neither always nor never
		return adaptive_check(s, err);
	}
	if (!s->rollouts || schedule_parse(s->rollouts, ret))
		return error_set(err, ERROR_INVALID, "rollouts", "%s: a number is expected, a schedule (linear:0:1) or adaptive",
				 s->rollouts ? s->rollouts : "");
	if (!schedule_within(ret, 0, 1))
		return error_set(err, ERROR_INVALID, "rollouts", "%s: from 0 to 1 is expected", s->rollouts);
	return 0;
}

int settings_check_rollouts(const struct run_settings *s, struct error *err)
{
	struct schedule chance;
	int r = chance_check(s, &chance, err);
	if (r)
		return r;
	if (schedule_is(&chance, 0))
		return rollouts_wanted_check(s, err);
	if (settings_shards(s) || settings_labels(s))
		return error_set(err, ERROR_UNSUPPORTED, "rollouts", "need a live teacher: %s",
				 settings_labels(s) ? "teacher = labels asks nobody" : "shards cannot say anything of text that is new");
	if (s->packing == RUN_PACKING_BFD)
		return error_set(err, ERROR_UNSUPPORTED, "rollouts", "go on from one sequence in a place: packing = bfd has more");
	if (s->rollout_pairs && (!schedule_is(&chance, 1) || s->rollout_share < 1 || s->micro_batch % 2))
		return error_set(err, ERROR_INVALID, "rollout-pairs",
			"rollouts = 1, no rollout-share and an even micro-batch are expected");
	if (s->rollout_prompt + s->rollout_tokens > s->sequence_length)
		return error_set(err, ERROR_INVALID, "rollout-tokens", "%lld and rollout-prompt (%lld) are over sequence-length (%lld)",
				 (long long)s->rollout_tokens, (long long)s->rollout_prompt, (long long)s->sequence_length);
	if (s->rollout_temperature != 0 && s->rollout_temperature < 1e-4)
		return error_set(err, ERROR_INVALID, "rollout-temperature", "%g: 0, or 0.0001 to 10000 is expected",
			s->rollout_temperature);
	if (s->rollout_mix > 0 && s->rollout_temperature != 1)
		return error_set(err, ERROR_INVALID, "rollout-mix", "needs rollout-temperature = 1, that of the teacher's tokens");
	return replay_check(s, err);
}
