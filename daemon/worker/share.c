// SPDX-License-Identifier: Apache-2.0
#include "daemon/worker/share.h"

#include <errno.h>
#include <stdio.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/error.h"
#include "config.h"
#include "daemon/log.h"
#include "daemon/model/weights.h"
#include "daemon/worker/corpus.h"
#include "daemon/worker/dataset.h"
#include "daemon/worker/resume.h"
#include "daemon/worker/team.h"
#include "daemon/worker/trainer.h"

bool share_is_mine(const struct trainer *t, uint64_t i)
{
	return i % team_size(t->options.team) == team_rank(t->options.team);
}

int share_agree(struct trainer *t, int r, struct error *err)
{
	int all = team_agree(t->options.team, r, err);
	if (all == -ECANCELED && r != -ECANCELED)
		t->told_to_stop = true;
	return all;
}

// ---- the corpus

struct list_told { uint64_t n_bytes; bool own; uint32_t n_domains, domain_ends[DATASET_MAX_DOMAINS]; };

static int list_give(struct trainer *t, int r, struct error *err)
{
	struct team *team = t->options.team;
	struct content_id source = {{0}};
	struct list_told told = {.own = t->held_out_query.own};
	uint8_t *bytes = NULL;
	size_t n = 0;
	r = r ? r : dataset_encode(t->dataset, &source, &bytes, &n, err);
	told.n_bytes = n;
	told.n_domains = r ? 0 : dataset_n_domains(t->dataset);
	for (uint32_t i = 0; i < told.n_domains; i++)
		told.domain_ends[i] = dataset_domain_ends(t->dataset)[i];
	r = team_agree(team, r, err);
	r = r ? r : team_broadcast(team, &told, sizeof told, err);
	r = r ? r : team_agree(team, 0, err);          // they have the memory for it
	r = r ? r : team_broadcast(team, bytes, n, err);
	free(bytes);
	return r;
}

static int list_take(struct trainer *t, struct error *err)
{
	struct team *team = t->options.team;
	struct list_told told = {0};
	uint8_t *bytes = NULL;
	int r = team_agree(team, 0, err);
	r = r ? r : team_broadcast(team, &told, sizeof told, err);
	if (r)
		return r;
	bytes = malloc(told.n_bytes);
	r = bytes ? 0 : error_set(err, ERROR_MEMORY, NULL, "no memory for the list of sequences");
	r = team_agree(team, r, err);
	r = r ? r : team_broadcast(team, bytes, told.n_bytes, err);
	r = r ? r : corpus_take(t, bytes, told.n_bytes, told.domain_ends, told.n_domains, err);
	t->held_out_query.own = told.own;
	free(bytes);
	return r;
}

int share_corpus(struct trainer *t, struct error *err)
{
	struct team *team = t->options.team;
	if (team_rank(team))
		return list_take(t, err);
	int r = corpus_open(t, err);
	return team_size(team) > 1 ? list_give(t, r, err) : r;
}

// ---- the start

// What must be the same everywhere, beyond what process 0 gives.
struct identity {
	char version[32], device[32], numeric[32];
	struct snapshot_state plan;
	uint64_t steps, n_parameters, n_arrays;
	double learning_rate, weight_decay, average;
};

static struct identity identity_of(struct trainer *t)
{
	const struct weights *w = student_weights(t->student);
	struct optimizer_array arrays[OPTIMIZER_MAX_ARRAYS];
	struct identity me = {.plan = t->state, .steps = t->steps, .n_parameters = w->parameters->n_values,
			      .n_arrays = optimizer_arrays(t->optimizer, arrays), .learning_rate = t->optimizing.learning_rate,
			      .weight_decay = t->optimizing.weight_decay, .average = t->optimizing.average};
	snprintf(me.version, sizeof me.version, "%s", PACKAGE_VERSION);
	snprintf(me.device, sizeof me.device, "%s", w->backend->ops->name);
	snprintf(me.numeric, sizeof me.numeric, "%s", w->backend->view_numeric);
	return me;
}

static const char *identity_difference(const struct identity *a, const struct identity *b)
{
	return strcmp(a->version, b->version)                                      ? "version"
		: strcmp(a->device, b->device) != 0 || strcmp(a->numeric, b->numeric) != 0   ? "device"
		: a->steps != b->steps                                             ? "steps"
		: a->n_parameters != b->n_parameters                               ? "student"
		: a->n_arrays != b->n_arrays                                       ? "optimizer"
		: a->learning_rate != b->learning_rate                             ? "learning-rate"
		: a->weight_decay != b->weight_decay                               ? "weight-decay"
		: a->average != b->average                                         ? "average"
										    : snapshot_difference(&a->plan, &b->plan);
}

static int identity_check(struct trainer *t, struct error *err)
{
	struct team *team = t->options.team;
	uint32_t size = team_size(team);
	struct identity me = identity_of(t), *all = calloc(size, sizeof *all);
	int r = share_agree(t, all ? 0 : error_set(err, ERROR_MEMORY, NULL, "out of memory"), err);
	r = r ? r : team_gather(team, &me, sizeof me, all, err);
	for (uint32_t i = 1; r == 0 && i < size; i++) {
		const char *what = identity_difference(&all[0], &all[i]);
		if (what)
			r = error_set(err, ERROR_CONFLICT, what, "%s of process %u is not that of process 0: they would not train the same",
				what, i);
	}
	free(all);
	return r;
}

// Parameters and the optimizer's arrays become those of process 0.
static int arrays_take(struct trainer *t, struct error *err)
{
	struct weights *w = student_weights(t->student);
	struct optimizer_array arrays[OPTIMIZER_MAX_ARRAYS];
	uint32_t n = optimizer_arrays(t->optimizer, arrays);
	int r = team_broadcast_array(t->options.team, w->backend, w->parameters->value, w->parameters->n_values, err);
	for (uint32_t i = 0; r == 0 && i < n; i++)
		r = team_broadcast_array(t->options.team, w->backend, arrays[i].array, w->parameters->n_values, err);
	if (r)
		return r;
	weights_refresh(w);
	return backend_sync(w->backend, err);
}

static void work_describe(const struct trainer *t, const char *how)
{
	uint64_t n = team_size(t->options.team), n_micro = (uint64_t)t->settings->accumulate;
	log_notice("%llu processes train together (sums by %s): %llu micro-batches a step, at most %llu each", (unsigned long long)n, how,
		   (unsigned long long)n_micro, (unsigned long long)((n_micro + n - 1) / n));
	if (n_micro % n)
		log_warning("accumulate = %llu does not divide among %llu processes: some wait for the others", (unsigned long long)n_micro,
			    (unsigned long long)n);
}

int share_start(struct trainer *t, struct error *err)
{
	struct team *team = t->options.team;
	const char *how;
	if (team_size(team) == 1)
		return 0;
	int r = identity_check(t, err);
	r = r ? r : team_broadcast(team, &t->state, sizeof t->state, err);
	r = r ? r : arrays_take(t, err);
	r = r ? r : team_join_devices(team, student_weights(t->student)->backend, &how, err);
	if (r)
		return r;
	work_describe(t, how);
	return resume_share(t, err);
}

// ---- steps

// Everything that is added up: a new member of student_sums has to find its place here.
#define SHARE_N_OBJECTIVE (sizeof(struct objective_sums) / sizeof(double))
_Static_assert(sizeof(struct objective_sums) % sizeof(double) == 0, "objective_sums holds doubles alone");
_Static_assert(sizeof(struct student_drawn) == 2 * sizeof(uint64_t) + 3 * sizeof(double), "each member of student_drawn is added up below");
_Static_assert(sizeof(struct student_sums) == sizeof(struct objective_sums) + 2 * sizeof(uint64_t) + sizeof(struct student_drawn),
	       "each member of student_sums is added up below");

int share_step(struct trainer *t, struct student_sums *sums, struct error *err)
{
	const struct weights *w = student_weights(t->student);
	uint64_t *counts[] = {&sums->n_positions, &sums->n_masked, &sums->drawn.n_passages, &sums->drawn.n, &t->n_tokens};
	double *values[] = {&sums->drawn.k1, &sums->drawn.k2, &sums->drawn.k3};
	enum { N_COUNTS = sizeof counts / sizeof *counts, N_VALUES = sizeof values / sizeof *values };
	double all[SHARE_N_OBJECTIVE + N_COUNTS + N_VALUES], *rest = all + SHARE_N_OBJECTIVE;
	if (team_size(t->options.team) == 1)
		return 0;
	memcpy(all, &sums->objective, sizeof sums->objective);
	for (uint32_t i = 0; i < N_COUNTS + N_VALUES; i++)
		rest[i] = i < N_COUNTS ? (double)*counts[i] : *values[i - N_COUNTS];   // counts below 2^53 are exact
	int r = team_sum(t->options.team, all, sizeof all / sizeof *all, err);
	if (r)
		return r;
	memcpy(&sums->objective, all, sizeof sums->objective);
	for (uint32_t i = 0; i < N_COUNTS; i++)
		*counts[i] = (uint64_t)rest[i];
	for (uint32_t i = 0; i < N_VALUES; i++)
		*values[i] = rest[N_COUNTS + i];
	return sums->n_positions ? team_sum_array(t->options.team, w->backend, w->parameters->gradient, w->parameters->n_values, err) : 0;
}

int share_evaluation(struct trainer *t, struct student_evaluation *e, struct error *err)
{
	if (team_size(t->options.team) == 1)
		return 0;
	double n = (double)e->n_positions, n_labels = (double)e->n_labels, n_teacher = (double)e->n_teacher_labels;
	double sums[] = {n ? e->kl * n : 0, n ? e->agreement * n : 0, n_labels ? e->ce * n_labels : 0,
			 n_teacher ? e->teacher_ce * n_teacher : 0, n, n_labels, n_teacher, (double)e->n_bytes, (double)e->n_teacher_bytes};
	int r = team_sum(t->options.team, sums, sizeof sums / sizeof *sums, err);
	*e = (struct student_evaluation){
		.kl = sums[0] / sums[4], .agreement = sums[1] / sums[4], .ce = sums[2] / sums[5], .teacher_ce = sums[3] / sums[6],
		.bits_per_byte = sums[7] > 0 ? sums[2] / (M_LN2 * sums[7]) : NAN,
		.teacher_bits_per_byte = sums[8] > 0 ? sums[3] / (M_LN2 * sums[8]) : NAN, .n_positions = (uint64_t)sums[4],
		.n_labels = (uint64_t)sums[5], .n_teacher_labels = (uint64_t)sums[6], .n_bytes = (uint64_t)sums[7],
		.n_teacher_bytes = (uint64_t)sums[8]};
	return r;
}

// Processors of different kinds may round differently. Where the processes' students have come apart, all take process 0's.
int share_align(struct trainer *t, struct error *err)
{
	struct team *team = t->options.team;
	const struct weights *w = student_weights(t->student);
	uint32_t size = team_size(team);
	bool same = true;
	if (size == 1)
		return 0;
	double sum = w->backend->ops->sum_squares(w->backend, w->parameters->value, w->parameters->n_values);
	uint64_t mine, *all = calloc(size, sizeof *all);       // bits: the same of what is no number are the same
	memcpy(&mine, &sum, sizeof mine);
	int r = share_agree(t, all ? 0 : error_set(err, ERROR_MEMORY, NULL, "out of memory"), err);
	r = r ? r : team_gather(team, &mine, sizeof mine, all, err);
	for (uint32_t i = 1; all && r == 0 && i < size; i++)
		same = same && all[i] == all[0];
	free(all);
	if (r || same)
		return r;
	log_warning("the processes' students have come apart (processors of different kinds?): all go on with process 0's");
	return arrays_take(t, err);
}
