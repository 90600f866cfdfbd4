// SPDX-License-Identifier: Apache-2.0
// Forward KL on the ghost-bucket form mixed with hard cross-entropy.
//
// With m = sum_S p + p_tail (1, or a little less when the bucket is dropped), the bucket's gradient is
//     on S:      m q_j - p_j                  outside:   q_j (m - p_tail / q_tail)
// which is kappa q_j everywhere, kappa = m - p_tail / q_tail, plus corrections q_j p_tail / q_tail - p_j on S. At temperature T both
// carry 1/T. Each gradient sums to zero over the vocabulary.
#include "daemon/worker/loss.h"

#include <math.h>
#include <stddef.h>

#include "kernels/backend.h"

// Below this mass a tail is noise of the subtraction 1 - sum(head): the head's sum is capped at 1 - LOSS_TAIL_MIN and a teacher
// tail this small leaves the loss.
#define LOSS_TAIL_MIN 1e-7

struct bucket {
	double p_head, p_tail;         // p_tail = 0: dropped
	double q_tail;                 // >= LOSS_TAIL_MIN
};

static double mass(double logit, double temperature, double lse)
{
	return exp(logit / temperature - lse);
}

static struct bucket bucket_make(const struct loss_teacher *t, const double *zs, double lse_s, double temperature, uint32_t vocab_size)
{
	struct bucket b = {0};
	double q_head = 0;
	for (uint32_t i = 0; i < t->k; i++) {
		b.p_head += mass((double)t->logits[i], temperature, t->lse);
		q_head += mass(zs[i], temperature, lse_s);
	}
	b.q_tail = 1 - fmin(q_head, 1 - LOSS_TAIL_MIN);
	b.p_tail = 1 - b.p_head;
	if (t->k >= vocab_size || b.p_tail < LOSS_TAIL_MIN)
		b.p_tail = 0;
	return b;
}

static double bucket_value(const struct bucket *b, const struct loss_teacher *t, const double *zs, double lse_s, double temperature)
{
	double sum = 0;
	for (uint32_t i = 0; i < t->k; i++) {
		double log_p = (double)t->logits[i] / temperature - t->lse;
		double log_q = zs[i] / temperature - lse_s;
		double p = exp(log_p);
		if (p > 0)             // a term with p = 0 counts 0, whatever q is
			sum += p * (log_p - log_q);
	}
	if (b->p_tail > 0)
		sum += b->p_tail * (log1p(-b->p_head) - log1p(-(1 - b->q_tail)));
	return sum;
}

double loss_bucket_kl(const struct loss_teacher *teacher, const double *student_logits, double student_lse, double temperature,
		      uint32_t vocab_size)
{
	if (teacher->k == 0)
		return 0;
	struct bucket b = bucket_make(teacher, student_logits, student_lse, temperature, vocab_size);
	return bucket_value(&b, teacher, student_logits, student_lse, temperature);
}

static void row_add_term(struct softmax_grad_row *row, struct loss_storage *to, double temperature, double lse, double scale)
{
	for (uint32_t i = 0; i < row->n_terms; i++)
		if (to->temperatures[i] == (float)temperature) {
			to->scales[i] += scale;
			return;
		}
	to->temperatures[row->n_terms] = (float)temperature;
	to->lse[row->n_terms] = lse;
	to->scales[row->n_terms++] = scale;
}

static void row_add_correction(struct softmax_grad_row *row, struct loss_storage *to, uint32_t id, double value)
{
	to->ids[row->n_corrections] = id;
	to->corrections[row->n_corrections++] = value;
}

static void gradient_kd(const struct loss_options *o, const struct bucket *b, const struct loss_teacher *t, const struct loss_student *s,
			struct loss_storage *storage, struct softmax_grad_row *row)
{
	double factor = o->kd_weight * (o->t2_scale ? o->temperature : 1 / o->temperature);    // T^2 / T, or 1 / T
	double ratio = b->p_tail / b->q_tail;
	row_add_term(row, storage, o->temperature, s->lse_kd, factor * (b->p_head + b->p_tail - ratio));
	for (uint32_t i = 0; i < t->k; i++) {
		double p = mass((double)t->logits[i], o->temperature, t->lse);
		double q = mass(s->logits[i], o->temperature, s->lse_kd);
		row_add_correction(row, storage, t->ids[i], factor * (q * ratio - p));
	}
}

static void gradient_ce(const struct loss_options *o, const struct loss_student *s, uint32_t label, struct loss_storage *storage,
			struct softmax_grad_row *row)
{
	row_add_term(row, storage, 1, s->lse, o->ce_weight);
	for (uint32_t i = 0; i < row->n_corrections; i++)      // an id is named once, so that a device may add in any order
		if (storage->ids[i] == label) {
			storage->corrections[i] -= o->ce_weight;
			return;
		}
	row_add_correction(row, storage, label, -o->ce_weight);
}

struct loss_value loss_position(const struct loss_options *options, const struct loss_teacher *teacher, const struct loss_student *student,
				uint32_t label, struct loss_storage *storage, struct softmax_grad_row *ret_row)
{
	const struct loss_options *o = options;
	struct loss_value v = {.ce = student->lse - student->label_logit};
	struct bucket b = {0};
	if (teacher->k > 0) {
		b = bucket_make(teacher, student->logits, student->lse_kd, o->temperature, o->vocab_size);
		v.kd = bucket_value(&b, teacher, student->logits, student->lse_kd, o->temperature);
		if (o->t2_scale)
			v.kd *= o->temperature * o->temperature;
	}
	v.total = o->kd_weight * v.kd + o->ce_weight * v.ce;
	if (!ret_row)
		return v;
	*ret_row = (struct softmax_grad_row){.temperatures = storage->temperatures, .lse = storage->lse, .scales = storage->scales,
					     .ids = storage->ids, .corrections = storage->corrections};
	if (teacher->k > 0 && o->kd_weight != 0)
		gradient_kd(o, &b, teacher, student, storage, ret_row);
	if (o->ce_weight != 0)
		gradient_ce(o, student, label, storage, ret_row);
	return v;
}
