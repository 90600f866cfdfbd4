// SPDX-License-Identifier: Apache-2.0
// The gradient of every loss as a device makes it, in place of the logits of a large row, against the same in double precision.
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "common/error.h"
#include "daemon/loss/method.h"
#include "daemon/loss/objective.h"
#include "kernels/backend.h"

#define V 1500
#define N_TOP 12
#define N_OWN 6
#define N_DRAWN 5
#define N (N_TOP + N_OWN + N_DRAWN + 1)

static double random_number(uint64_t *seed)
{
	*seed = *seed * 6364136223846793005u + 1442695040888963407u;
	return (double)(*seed >> 40) / (double)(1 << 24) - .5;
}

// Distinct ids in no order; the teacher's logits at them, the first N_TOP the largest of its row.
struct lesson {
	float student[V];
	double teacher[V], known[N], weights[N_DRAWN];
	uint32_t ids[N], own[N_OWN], drawn[N_DRAWN];
};

static void lesson_make(struct lesson *l)
{
	uint64_t seed = 77;
	for (uint32_t j = 0; j < V; j++) {
		l->student[j] = (float)(6 * random_number(&seed));
		l->teacher[j] = (double)(float)(6 * random_number(&seed));
	}
	for (uint32_t i = 0; i < N; i++) {
		l->ids[i] = (i * 61 + 7) % V;
		if (i < N_TOP)
			l->teacher[l->ids[i]] = (double)(float)(4 + .4 * (N_TOP - i));
		l->known[i] = i < N_TOP + N_OWN || i == N - 1 ? l->teacher[l->ids[i]] : NAN;
	}
	for (uint32_t i = 0; i < N_OWN; i++)
		l->own[i] = N_TOP + i;
	for (uint32_t i = 0; i < N_DRAWN; i++) {
		l->drawn[i] = N_TOP + N_OWN + i;
		l->weights[i] = .05 * (i + 1);
	}
}

static double lse(const double *z, double T)
{
	double sum = 0;
	for (uint32_t j = 0; j < V; j++)
		sum += exp(z[j] / T);
	return log(sum);
}

// One position from what the device read of the student's row; its gradient in double precision, and its shape for the device.
struct shape {
	float temperatures[OBJECTIVE_MAX_SOFTMAX];
	double lse[OBJECTIVE_MAX_SOFTMAX], scales[OBJECTIVE_MAX_SOFTMAX], corrections[N];
	struct softmax_grad_row row;
};

static void position_evaluate(struct objective *o, const struct lesson *l, const struct sweep_row *swept, struct shape *s)
{
	float temperatures[OBJECTIVE_MAX_TERMS];
	double T[OBJECTIVE_MAX_TERMS], teacher_lse[OBJECTIVE_MAX_TERMS], reward = -.5;
	uint32_t n = objective_temperatures(o, temperatures);
	for (uint32_t i = 0; i < n; i++) {
		T[i] = (double)temperatures[i];
		teacher_lse[i] = lse(l->teacher, T[i]);
	}
	double ranks[N_TOP];
	bool matched[N];
	uint32_t student_ranks[N];
	for (uint32_t i = 0; i < N; i++) {             // every slot is as good as another for the likeliest of a row
		matched[i] = i % 3;
		student_ranks[i] = i;
		if (i < N_TOP)
			ranks[i] = l->known[i];
	}
	struct loss_position x = {.vocab_size = V, .n = N, .ids = l->ids, .student = swept->gathered, .teacher = l->known, .n_top = N_TOP,
				  .n_own = N_OWN, .own = l->own, .n_drawn = N_DRAWN, .drawn = l->drawn, .weights = l->weights,
				  .label = N - 1, .n_temperatures = n, .temperatures = T, .teacher_lse = teacher_lse,
				  .student_lse = swept->lse + 1, .student_lse_1 = swept->lse[0], .tail = NAN, .entropy = NAN,
				  .student_mean = swept->mean, .matched_share = .5, .n_teacher_ranks = N_TOP, .teacher_ranks = ranks,
				  .teacher_matched = matched, .n_student_ranks = N_TOP, .student_ranks = student_ranks,
				  .student_matched = matched, .n_rewards = 1, .rewards = &reward, .drawn_logprob = -3};
	struct objective_sums sums = {0};
	*s = (struct shape){0};
	struct gradient g = {0, s->temperatures, s->lse, s->scales, s->corrections};
	objective_position(o, &x, &sums, &g);
	assert_true(isfinite(sums.total));
	gradient_finish(&g, &x, &s->row);
}

static void gradient_compare(struct backend *be, const char *line, const struct lesson *l)
{
	struct objective *o;
	struct error err = {0};
	assert_int_equal(objective_new(&o), 0);
	if (objective_add(o, line, "test", &err))
		fail_msg("%s", err.message);
	assert_int_equal(objective_begin(o, 100, V), 0);
	float temperatures[OBJECTIVE_MAX_TERMS + 1] = {1};
	double lse_of[OBJECTIVE_MAX_TERMS + 1], gathered[N], got[V], sum = 0;
	struct sweep_row swept = {.n_temperatures = 1 + objective_temperatures(o, temperatures + 1), .temperatures = temperatures,
				  .n_gather = N, .gather = l->ids, .want_mean = true, .lse = lse_of, .gathered = gathered};
	struct real *z = be->ops->real_new(be, V, NULL);
	be->ops->real_write(be, z, l->student, V);
	be->ops->sweep(be, z, 1, V, &swept);
	struct shape s;
	position_evaluate(o, l, &swept, &s);
	be->ops->softmax_grad(be, z, 1, V, &s.row);
	be->ops->real_read(be, got, z, V);
	for (uint32_t j = 0; j < V; j++) {
		double want = 0;
		for (uint32_t i = 0; i < s.row.n_terms; i++)
			want += s.scales[i] * exp((double)l->student[j] / (double)s.temperatures[i] - s.lse[i]);
		for (uint32_t i = 0; i < N; i++)
			want += l->ids[i] == j ? s.corrections[i] : 0;
		if (!(fabs(got[j] - want) <= 2e-6))
			fail_msg("%s on %s, id %u: %.9g is not %.9g", line, be->ops->name, j, got[j], want);
		sum += got[j];
	}
	if (!strstr(line, "of=raw") && !(fabs(sum) < 2e-5))
		fail_msg("%s on %s: the gradient sums to %.3g", line, be->ops->name, sum);
	be->ops->real_free(be, z);
	objective_free(o);
}

static void devices_compare(const char *line)
{
	static const char *const devices[] = {"ref", "cpu"};
	struct lesson l;
	lesson_make(&l);
	for (int i = 0; i < 2; i++) {
		struct backend *be;
		struct backend_options options = {.n_threads = 1, .max_rows = 1};
		assert_int_equal(backend_open(devices[i], &options, &be, NULL), 0);
		gradient_compare(be, line, &l);
		assert_int_equal(backend_sync(be, NULL), 0);
		backend_close(be);
	}
}

static void every_loss_on_every_device(void **state)
{
	(void)state;
	size_t n;
	const struct method *table = method_table(&n);
	for (size_t i = 0; i < n; i++) {
		char line[128];
		bool hard = table[i].flags & METHOD_HARD;
		if (table[i].feature)                          // not on logits
			continue;
		snprintf(line, sizeof line, "%s%s%s", table[i].name, table[i].flags & METHOD_OWN_IDS ? " support=both:6" : "",
			 table[i].flags & METHOD_DRAWN ? "" : hard ? " smoothing=0.1" : " temperature=2");
		devices_compare(line);
	}
}

static void every_form_on_every_device(void **state)
{
	(void)state;
	for (int form = 0; form < LOSS_N_FORMS; form++) {
		char line[128];
		snprintf(line, sizeof line, "forward-kl form=%s", form_name((enum loss_form)form));
		devices_compare(line);
	}
	devices_compare("reverse-kl support=student:6");
	devices_compare("jsd support=both:6");
	devices_compare("logit-mse of=raw");
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_loss_on_every_device),
		cmocka_unit_test(every_form_on_every_device),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
