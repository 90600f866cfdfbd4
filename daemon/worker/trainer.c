// SPDX-License-Identifier: Apache-2.0
// The loop: take the answers for a micro-batch, ask for the ones after the next, train, step; evaluate, checkpoint, export.
#include "daemon/worker/trainer.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "common/error.h"
#include "common/record.h"
#include "daemon/clock.h"
#include "daemon/log.h"
#include "daemon/model/tokenizer.h"
#include "daemon/model/weights.h"
#include "daemon/worker/answers.h"
#include "daemon/worker/dataset.h"
#include "daemon/worker/domains.h"
#include "daemon/worker/export.h"
#include "daemon/worker/panel.h"
#include "daemon/worker/mask.h"
#include "daemon/worker/partner.h"
#include "daemon/worker/passage.h"
#include "daemon/worker/policy.h"
#include "daemon/worker/questions.h"
#include "daemon/worker/replay.h"
#include "daemon/worker/resume.h"
#include "daemon/worker/rollout.h"
#include "daemon/worker/share.h"
#include "daemon/worker/team.h"
#include "daemon/worker/lexicon.h"

#define TRAINER_WAIT_SHARE 0.01        // of a micro-batch's time: more is a reason to look further ahead
#define TRAINER_AHEAD_NUMBERS (1u << 26)       // ids and logits held for that: half a GiB

#define TRAINER_EMPTY_STEPS 16         // in a row, whose records are all damaged or gone: then something else is wrong

bool trainer_stopping(const struct trainer *t)
{
	return atomic_load(t->options.stop) || t->supervisor_gone || t->told_to_stop;
}

void trainer_say(struct trainer *t, const char *state)
{
	struct progress_report *r = &t->report;
	struct answers_stats stats = {0};
	if (!t->progress)
		return;
	panel_stats(t, &stats);
	r->state = state;
	r->device = r->device ? r->device : "";
	r->step = t->state.step;
	r->steps = t->steps;
	r->n_positions = t->state.n_positions;
	r->n_masked = t->state.n_masked;
	r->seconds = t->state.seconds;
	r->cached_share = stats.n_answers ? (double)stats.n_cached / (double)stats.n_answers : 0;
	r->wait_share = t->trained > 0 ? t->waited / t->trained : 0;
	r->n_evaluations = t->state.n_evaluations;
	r->before = t->state.before;
	r->last = t->state.last;
	r->best = t->state.best;
	r->rollout_chance = settings_adaptive(t->settings) ? policy_state(t->policy).chance : NAN;
	r->n_replay = policy_replay(t->policy) ? replay_n(policy_replay(t->policy)) : 0;
	r->eta_seconds = t->step_seconds > 0 ? t->step_seconds * (double)(t->steps - t->state.step) : -1;
	if (progress_say(t->progress, r) == -EPIPE && !t->supervisor_gone) {
		log_warning("the daemon that started this run is gone: stopping");
		t->supervisor_gone = true;
	}
}

int trainer_open(const struct trainer_options *options, struct trainer **ret, struct error *err)
{
	struct trainer *t = calloc(1, sizeof *t);
	if (!t)
		return error_set(err, ERROR_MEMORY, NULL, "out of memory");
	t->options = *options;
	t->settings = options->settings;
	t->lock_fd = -1;
	int r = trainer_prepare(t, err);
	if (r) {
		trainer_close(t);
		return r;
	}
	*ret = t;
	return 0;
}

struct trainer *trainer_close(struct trainer *t)
{
	if (!t)
		return NULL;
	answers_close(t->answers);
	panel_close(t);
	for (uint32_t i = 0; t->held_out && i < t->n_held_out; i++)
		record_rows_free(t->held_out[i]);
	free(t->held_out);
	passages_free(t->held_out_passages);
	mask_free(t->mask);
	free(t->rows);
	for (struct passages *next; t->outstanding; t->outstanding = next) {
		next = t->outstanding->next;
		passages_free(t->outstanding);
	}
	rollout_close(t->rollout);
	partner_close(t->partner);
	policy_free(t->policy);
	optimizer_free(t->optimizer);
	free(t->groups);
	student_close(t->student);
	features_free(t->features);
	objective_free(t->objective);
	dataset_free(t->dataset);
	lexicon_done(t);
	tokenizer_close(t->tokenizer);
	progress_close(t->progress);
	free(t->checkpoints);
	free(t->student_path);
	free(t->best_path);
	free(t->token);
	free(t->store);
	if (t->lock_fd >= 0)
		close(t->lock_fd);
	free(t);
	return NULL;
}

// A server answers at its own pace whatever is asked of it; a disk is the faster the more it knows of what will be wanted. What is trained,
// and in which order, does not depend on this.
static void ahead_adapt(struct trainer *t, double waited, double seconds)
{
	const struct run_settings *s = t->settings;
	uint64_t width = objective_width(t->objective, t->vocab_size) + (uint64_t)1;
	uint64_t numbers = (uint64_t)(s->micro_batch * s->sequence_length) * width * t->ahead;
	if (panel_has_shards(t) && waited > TRAINER_WAIT_SHARE * seconds && t->ahead < TRAINER_AHEAD_MAX && numbers < TRAINER_AHEAD_NUMBERS)
		t->ahead *= 2;
}

static int micro_batch_train(struct trainer *t, struct student_sums *sums, struct error *err)
{
	int r = questions_ask(t, 1, err);
	double before = clock_seconds();
	uint32_t n = r ? 0 : t->outstanding->n;
	r = r ? r : panel_next(t, t->state.step, t->rows, n, err);
	double waited = clock_seconds() - before;
	t->waited += waited;
	if (r)
		return r;
	struct passages *passages = t->outstanding;
	t->outstanding = passages->next;
	t->n_outstanding--;
	r = questions_ask(t, t->ahead, err);
	student_passages(t->student, passages->list);
	bool alike = !t->reweight.kind || t->state.step < (uint64_t)t->settings->reweight_after;
	student_reweight(t->student, alike ? NULL : &t->reweight);
	r = r ? r : student_train(t->student, (const struct record_rows *const *)t->rows, n, sums, err);
	for (uint32_t i = 0; i < n; i++)
		t->n_tokens += t->rows[i]->sequence.n_tokens;
	for (uint32_t i = 0; i < n * objective_n_teachers(t->objective); i++)
		t->rows[i] = record_rows_free(t->rows[i]);
	student_passages(t->student, NULL);
	passages_free(passages);
	ahead_adapt(t, waited, clock_seconds() - before);
	return r;
}

static void step_account(struct trainer *t, const struct student_sums *sums, double norm, double seconds)
{
	double n = (double)sums->n_positions;
	t->state.step++;
	t->state.position += t->state.batch;
	t->state.n_positions += sums->n_positions;
	t->state.n_masked += sums->n_masked;
	t->state.seconds += seconds;
	t->trained += seconds;
	t->step_seconds = t->step_seconds > 0 ? 0.9 * t->step_seconds + 0.1 * seconds : seconds;
	t->report.loss = sums->objective.total / n;
	for (uint32_t i = 0; i < OBJECTIVE_MAX_TERMS; i++) {
		double n_own = sums->objective.counts[i];      // 0: not a number, not reported
		t->report.values[i] = sums->objective.values[i] / n_own;
		t->report.divergences[i] = (sums->objective.values[i] - sums->objective.entropies[i]) / n_own;
	}
	t->report.learning_rate = optimizer_rate(&t->optimizing, t->state.step);
	t->report.gradient_norm = norm;
	t->report.drawn = sums->drawn;
	double rate = (double)t->n_tokens / seconds, before = t->report.tokens_per_second;
	t->report.tokens_per_second = before > 0 ? 0.9 * before + 0.1 * rate : rate;
}

// One optimizer step; one whose answers are all lost changes nothing and has no loss. -ECANCELED when it was asked to
// stop: the step then has not happened.
static int step(struct trainer *t, struct error *err)
{
	struct student_sums sums = {0};
	double begin = clock_seconds(), norm = 0;
	t->n_tokens = 0;
	objective_step(t->objective, t->state.step);
	t->report.replayed = policy_kind(t->policy, t->state.step) == POLICY_REPLAY;
	int r = 0;
	for (int64_t i = 0; r == 0 && i < t->settings->accumulate; i++)
		if (share_is_mine(t, (uint64_t)i))
			r = trainer_stopping(t) ? -ECANCELED : micro_batch_train(t, &sums, err);
	r = share_agree(t, r, err);
	r = r ? r : share_step(t, &sums, err);
	if (r)
		return r;
	t->n_empty = sums.n_positions ? 0 : t->n_empty + 1;
	if (t->n_empty > (panel_has_shards(t) ? TRAINER_EMPTY_STEPS : 0))
		return error_set(err, ERROR_NOT_FINITE, "teacher", "there is no usable answer for any position of step %llu",
				 (unsigned long long)t->state.step + 1);
	r = t->n_empty ? 0 : optimizer_step(t->optimizer, t->state.step + 1, sums.n_positions, &norm, err);
	if (r)
		return r;
	r = policy_end_step(t->policy, t->options.team, err);
	if (r)
		return r;
	objective_end_step(t->objective, &sums.objective);
	step_account(t, &sums, norm, clock_seconds() - begin);
	return 0;
}

static int held_out_mask(const struct trainer *t, uint32_t i, struct passage *p, struct sequence *s, struct error *err)
{
	if (passage_init(p, s, 1, PASSAGE_CORPUS) || mask_passage(t->mask, MASK_HELD_OUT, i, p))
		return error_set(err, ERROR_MEMORY, NULL, "out of memory");
	*s = p->sequence;
	return 0;
}

// The teacher's answers for the held-out sequences: asked once, in micro-batches, before training asks for anything.
static int held_out_ask(struct trainer *t, struct error *err)
{
	uint32_t n_all = (uint32_t)dataset_n_held_out(t->dataset), n = 0;
	uint32_t size = (uint32_t)t->settings->micro_batch;
	t->held_out = calloc(n_all ? n_all : 1, sizeof *t->held_out);
	if (!t->held_out)
		return error_set(err, ERROR_MEMORY, NULL, "out of memory");
	if (t->mask && !(t->held_out_passages = passages_new(n_all)))
		return error_set(err, ERROR_MEMORY, NULL, "out of memory");
	for (uint32_t i = 0; i < n_all; i++) {
		struct sequence s = dataset_held_out_at(t->dataset, i);
		if (!share_is_mine(t, i))
			continue;
		struct query query = t->held_out_query;        // of what is learned: nothing is said of prompts
		query.first = (int32_t)dataset_first(t->dataset, &s) - 1;
		int r = t->mask ? held_out_mask(t, i, &t->held_out_passages->list[n], &s, err) : 0;
		r = r ? r : answers_submit(t->answers, &query, &s, NULL, 1, err);
		if (r)
			return r;
		n++;
	}
	t->n_held_out = n;
	for (uint32_t i = 0; i < n; i++) {
		int r = answers_next(t->answers, &t->held_out[i], err);
		if (r)
			return r;
		features_forget(t->held_out[i]);
		if (i % size == 0)
			trainer_say(t, "starting");
	}
	return 0;
}

// The parameters as they are evaluated: with an average it stands in their place.
static int best_save(struct trainer *t, struct error *err)
{
	const struct weights *w = student_weights(t->student);
	return snapshot_array_write(t->best_path, w, w->parameters->value, err);
}

static int best_load(struct trainer *t, struct error *err)
{
	struct weights *w = student_weights(t->student);
	int r = snapshot_array_read(t->best_path, w, w->parameters->value, err);
	if (r)
		return r;
	weights_refresh(w);
	return backend_sync(w->backend, err);
}

// Whether the student goes the teacher's own ways, as evaluations tell. Nothing is trained otherwise for it.
static void guard_take(struct trainer *t)
{
	const struct run_settings *s = t->settings;
	const struct guard_options o = {.fit_steps = s->guard_fit * (double)t->steps, .checks = (uint32_t)s->guard_checks};
	static const char *const words[] = {
		[GUARD_OFF_CURVE] = "the held-out KL has left the curve that it showed early in the run",
		[GUARD_APART] = "the student comes nearer to the teacher, and its perplexity on held-out text rises",
	};
	if (s->guard == RUN_GUARD_OFF || s->mlm)
		return;
	const struct guard_point point = {t->state.last.kl, t->state.last.ce, t->state.last.teacher_ce};
	enum guard_verdict verdict = guard_look(&o, &t->state.guard, t->state.step, &point, &t->report.guard_residual);
	t->report.guard_alarms = t->state.guard.alarms;
	if (verdict == GUARD_FINE)
		return;
	log_warning("step %llu: %s, %lld evaluations in a row: it may be learning the teacher's faults "
		    "(more different text, or rollouts, help)", (unsigned long long)t->state.step, words[verdict],
		    (long long)s->guard_checks);
}

static bool guard_stops(const struct trainer *t)
{
	return t->settings->guard == RUN_GUARD_STOP && t->state.guard.alarms > 0;
}

// Numbers of the evaluation just made; the best so far is kept where it is to become the student.
static int evaluation_take(struct trainer *t, struct error *err)
{
	struct snapshot_state *s = &t->state;
	bool first = s->n_evaluations++ == 0;
	if (first)
		s->before = s->last;
	policy_evaluated(t->policy, s->last.ce, first);
	guard_take(t);
	if (!first && s->last.kl >= s->best.kl)
		return 0;
	s->best = s->last;
	s->best_evaluation = s->n_evaluations - 1;
	return team_rank(t->options.team) == 0 && t->settings->export_which == RUN_EXPORT_BEST ? best_save(t, err) : 0;
}

static int evaluate(struct trainer *t, struct error *err)
{
	struct snapshot_state *s = &t->state;
	if (dataset_n_held_out(t->dataset) == 0)
		return 0;
	optimizer_swap_average(t->optimizer);
	student_passages(t->student, t->held_out_passages ? t->held_out_passages->list : NULL);
	int r = student_evaluate(t->student, (const struct record_rows *const *)t->held_out, t->n_held_out, &s->last, err);
	student_passages(t->student, NULL);
	r = share_agree(t, r, err);
	r = r ? r : share_evaluation(t, &s->last, err);
	if (r == 0 && s->last.n_positions == 0)
		r = error_set(err, ERROR_INVALID, "corpus", "no held-out position could be evaluated");
	r = r ? r : evaluation_take(t, err);
	optimizer_swap_average(t->optimizer);
	if (r)
		return r;
	log_info("step %llu/%llu: held-out KL to the teacher %.4f (%.4f before), perplexity %.2f (teacher %.2f), bits per byte %.3f "
		 "(teacher %.3f), agreement %.1f %%", (unsigned long long)s->step, (unsigned long long)t->steps, s->last.kl, s->before.kl,
		 exp(s->last.ce), exp(s->last.teacher_ce), s->last.bits_per_byte, s->last.teacher_bits_per_byte, 100 * s->last.agreement);
	return 0;
}

// A full disk costs a checkpoint, not the run: the one before is whole, and the next is tried again. The last must be written.
static int checkpoint_try(struct trainer *t, bool last, struct error *err)
{
	int r = share_align(t, err);
	r = r ? r : resume_save(t, err);
	if (r == 0 || last || !err || err->code != ERROR_STORE)
		return r;
	log_warning("no checkpoint after step %llu: %s; training goes on", (unsigned long long)t->state.step, err->message);
	*err = (struct error){0};
	return 0;
}

static bool due(int64_t every, uint64_t step)
{
	return every && step % (uint64_t)every == 0;
}

// So many evaluations in a row were no better than one before them, or the guard ends the run.
static bool stalled(const struct trainer *t)
{
	const struct snapshot_state *s = &t->state;
	uint64_t patience = (uint64_t)t->settings->early_stop;
	return guard_stops(t) || (patience && s->n_evaluations && s->n_evaluations - 1 - s->best_evaluation >= patience);
}

static int steps_run(struct trainer *t, struct error *err)
{
	const struct run_settings *s = t->settings;
	while (t->state.step < t->steps && !stalled(t)) {
		int r = step(t, err);
		if (r)
			return r;
		bool last = t->state.step == t->steps;
		if (last || due(s->evaluate_every, t->state.step))
			r = evaluate(t, err);
		r = r ? r : domains_renew(t, err);
		if (r)
			return r;
		last = last || stalled(t);
		trainer_say(t, "running");     // before the checkpoint: a resumed run repeats steps, it never leaves one out
		if (last || due(s->checkpoint_every, t->state.step))
			r = checkpoint_try(t, last, err);
		if (r)
			return r;
	}
	return 0;
}

static int finish(struct trainer *t, struct error *err)
{
	static const enum dtype types[] = {[RUN_EXPORT_F32] = DTYPE_F32, [RUN_EXPORT_BF16] = DTYPE_BF16, [RUN_EXPORT_F16] = DTYPE_F16};
	int r = 0;
	if (team_rank(t->options.team))
		return 0;
	if (guard_stops(t))
		log_notice("stopped early: guard = stop");
	else if (stalled(t))
		log_notice("stopped early: %lld evaluations were no better than that of KL %.4f", (long long)t->settings->early_stop,
			t->state.best.kl);
	optimizer_swap_average(t->optimizer);
	if (t->settings->export_which == RUN_EXPORT_BEST && t->state.n_evaluations)
		r = best_load(t, err);
	r = r ? r : export_student(t->student_path, student_weights(t->student), t->student_tokenizer ? t->student_tokenizer : t->tokenizer,
		types[t->settings->export_type], err);
	if (r)
		return r;
	log_notice("done: %llu steps, student in %s", (unsigned long long)t->state.step, t->student_path);
	trainer_say(t, "succeeded");
	return 0;
}

// Before the first step there is nothing worth keeping; a run resumed there starts at the beginning.
static int stop(struct trainer *t, struct error *err)
{
	int r = t->state.step ? resume_save(t, err) : 0;
	if (r)
		return r;
	log_notice("stopped after step %llu; --resume continues", (unsigned long long)t->state.step);
	trainer_say(t, "stopped");
	return 0;
}

static int run_through(struct trainer *t, enum trainer_end *ret_end, struct error *err)
{
	int r = share_agree(t, held_out_ask(t, err), err);
	if (r == 0 && t->state.n_evaluations == 0)
		r = evaluate(t, err);
	r = r ? r : domains_begin(t, err);
	r = r ? r : steps_run(t, err);
	if (r == -ECANCELED && trainer_stopping(t)) {
		*ret_end = TRAINER_STOPPED;
		return stop(t, err);
	}
	*ret_end = TRAINER_SUCCEEDED;
	return r ? r : finish(t, err);
}

int trainer_run(struct trainer *t, enum trainer_end *ret_end, struct error *err)
{
	return share_agree(t, run_through(t, ret_end, err), err);
}
