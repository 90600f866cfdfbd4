// SPDX-License-Identifier: Apache-2.0
#include "daemon/worker/domains.h"

#include <math.h>
#include <stdlib.h>

#include "common/domain.h"
#include "common/error.h"
#include "daemon/log.h"
#include "daemon/worker/dataset.h"
#include "daemon/worker/share.h"
#include "daemon/worker/trainer.h"

bool domains_wait(const struct trainer *t, uint64_t step)
{
	uint64_t every = (uint64_t)t->settings->domains_every;
	return t->settings->domains && step / every != t->state.step / every;
}

// This process's held-out answers of one domain.
static uint32_t answers_list(const struct trainer *t, uint32_t domain, const struct record_rows **ret)
{
	uint32_t n = 0, at = 0;
	for (uint64_t i = 0; i < dataset_n_held_out(t->dataset); i++) {
		if (!share_is_mine(t, i))
			continue;
		if (dataset_held_out_domain(t->dataset, i) == domain)
			ret[n++] = t->held_out[at];
		at++;
	}
	return n;
}

// Perplexities of both on a domain, of all processes' answers together.
static int domain_measure(struct trainer *t, uint32_t domain, const struct record_rows **list, double *ret_student, double *ret_teacher,
			  struct error *err)
{
	struct student_evaluation e = {0};
	uint32_t n = answers_list(t, domain, list);
	int r = n ? student_evaluate(t->student, list, n, &e, err) : 0;
	r = share_agree(t, r, err);
	r = r ? r : share_evaluation(t, &e, err);
	*ret_student = exp(e.ce);
	*ret_teacher = exp(e.teacher_ce);
	if (r == 0 && (e.n_labels == 0 || e.n_teacher_labels == 0 || !isfinite(*ret_teacher)))
		r = error_set(err, ERROR_INVALID, "domains", "%s: no held-out sequence is of it (held-out, held-out-max)",
			      t->settings->corpus.items[domain]);
	return r;
}

static int measure(struct trainer *t, double *student, double *teacher, struct error *err)
{
	const struct record_rows **list = calloc(t->n_held_out ? t->n_held_out : 1, sizeof *list);
	int r = share_agree(t, list ? 0 : error_set(err, ERROR_MEMORY, NULL, "out of memory"), err);
	optimizer_swap_average(t->optimizer);
	for (uint32_t k = 0; r == 0 && k < t->state.domains.n; k++)
		r = domain_measure(t, k, list, &student[k], &teacher[k], err);
	optimizer_swap_average(t->optimizer);
	free(list);
	return r;
}

static int shares_renew(struct trainer *t, bool first, struct error *err)
{
	double student[DATASET_MAX_DOMAINS], teacher[DATASET_MAX_DOMAINS];
	struct dataset_domains next = t->state.domains;
	int r = measure(t, student, teacher, err);
	if (r)
		return r;
	if (!first)
		dataset_domains_at(t->dataset, t->state.position, &next);
	domain_shares(student, teacher, first ? NULL : t->state.domains.shares, next.n, t->settings->domains_alpha, next.shares);
	for (uint32_t k = 0; k < next.n; k++)
		log_info("domain %s: perplexity %.2f (teacher %.2f), share %.4f from step %llu on", t->settings->corpus.items[k],
			 student[k], teacher[k], next.shares[k], (unsigned long long)t->state.step + 1);
	t->state.domains = next;
	dataset_draw_domains(t->dataset, &next);
	return 0;
}

int domains_begin(struct trainer *t, struct error *err)
{
	if (!t->settings->domains)
		return 0;
	if (t->state.step == 0)
		return shares_renew(t, true, err);
	dataset_draw_domains(t->dataset, &t->state.domains);
	return 0;
}

int domains_renew(struct trainer *t, struct error *err)
{
	bool due = t->settings->domains && t->state.step % (uint64_t)t->settings->domains_every == 0 && t->state.step < t->steps;
	return due ? shares_renew(t, false, err) : 0;
}
