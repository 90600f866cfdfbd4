// SPDX-License-Identifier: Apache-2.0
// Sequences of a micro-batch weighed by their losses. These must all be known before the first gradient is: the rows of the head are read
// once more for it, with what the losses are and nothing else.
#include <math.h>

#include "daemon/loss/reweight.h"
#include "daemon/model/head.h"
#include "daemon/worker/student_internal.h"

static int tile_measure(void *arg, uint32_t first, uint32_t n, const struct sweep_row *swept, struct softmax_grad_row *ret_grad,
			struct error *err)
{
	struct student *s = arg;
	(void)ret_grad;
	for (uint32_t i = 0; i < n; i++) {
		struct objective_sums sums = {0};
		uint32_t n_ids = 0;
		int r = swept[i].not_finite ? student_not_finite(err) : student_position_make(s, first + i, &swept[i], 1, &n_ids, err);
		if (r)
			return r;
		if (s->positions[first + i].teachers)
			objective_position(s->options.objective, s->hearings.heard, &sums, NULL);
		else
			objective_label(s->options.objective, &s->hearings.heard[0], &sums, NULL);
		s->position_losses[first + i] = sums.total;
	}
	return 0;
}

// The listed positions of sequence i begin at *at; returns how many there are.
static uint32_t sequence_rows(const struct student *s, uint32_t i, uint32_t *at, double *ret_sum)
{
	uint32_t n = 0;
	*ret_sum = 0;
	for (; *at < s->n_rows && s->rows[*at] < s->starts[i + 1]; ++*at, n++)
		*ret_sum += s->position_losses[*at];
	return n;
}

int student_weigh(struct student *s, const struct act *final, uint32_t n, struct error *err)
{
	int r = head_train(s->head, final, s->rows, s->n_rows, s->layout.n_positions, s->swept, tile_measure, s, NULL, err);
	double sum;
	if (r)
		return r;
	for (uint32_t i = 0, at = 0; i < n; i++) {
		uint32_t n_own = sequence_rows(s, i, &at, &sum);
		s->sequence_losses[i] = n_own ? sum / n_own : NAN;
	}
	reweight_weigh(s->reweight, s->sequence_losses, n, s->sequence_losses);
	for (uint32_t i = 0, at = 0; i < n; i++) {
		uint32_t first = at, n_own = sequence_rows(s, i, &at, &sum);
		for (uint32_t k = first; k < at; k++)
			s->position_losses[k] = s->sequence_losses[i] * s->n_rows / n_own;
	}
	return 0;
}

void student_reweight(struct student *s, const struct reweight *reweight)
{
	s->reweight = reweight;
}
