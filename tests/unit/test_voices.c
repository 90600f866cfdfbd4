// SPDX-License-Identifier: Apache-2.0
// Several teachers in one objective: means of their probabilities, trust in them, steps without them; values and gradients on the ref
// device (double precision), and every refusal.
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
#include "common/record.h"
#include "daemon/config.h"
#include "daemon/model/weights.h"
#include "daemon/train/other.h"
#include "daemon/train/settings.h"
#include "daemon/worker/student.h"
#include "daemon/worker/support.h"
#include "kernels/backend.h"

#define L 5
#define V 11
#define N 2

static const struct architecture architecture = {
	.name = "llama", .n_layers = 1, .width = 8, .ffn_width = 12, .n_heads = 2, .n_kv_heads = 1, .head_size = 4, .vocab_size = V,
	.context_length = 16, .norm_epsilon = 1e-5f, .rope_theta = 10000, .tied_head = true, .bos_id = -1, .eos_id = -1,
};

static void assert_near(double actual, double expected, double tolerance)
{
	if (!(fabs(actual - expected) <= tolerance))
		fail_msg("%.9g is not %.9g", actual, expected);
}

static uint32_t pseudo_random(uint32_t *state)
{
	*state = *state * 1664525u + 1013904223u;
	return *state >> 16;
}

static double lse(const double *z, uint32_t n, double T)
{
	double sum = 0;
	for (uint32_t i = 0; i < n; i++)
		sum += exp(z[i] / T);
	return log(sum);
}

// The answer of a teacher whose logits come from a seed: its k likeliest of n ids, at temperatures 1 and 2, with the next token's logit.
static struct record_rows *rows_of(uint32_t seed, const double *z, uint32_t n, uint32_t k)
{
	uint32_t tokens[L], text = 77;
	struct content_id teacher = {{1}};
	struct query q;
	for (int i = 0; i < L; i++)
		tokens[i] = pseudo_random(&text) % n;
	struct sequence s = {tokens, L};
	struct query_limits limits = {.max_tokens = L, .max_top_k = n, .vocab_size = n};
	query_init(&q);
	q.top_k = k;
	q.own = true;
	q.n_temperatures = 2;
	q.temperatures[0] = 1;
	q.temperatures[1] = 2;
	q.last = -2;
	assert_int_equal(query_check(&q, &s, &limits, NULL, NULL), 0);
	struct record_rows *r = NULL;
	assert_int_equal(record_rows_new(&teacher, n, &s, &q, &r, NULL), 0);
	for (uint32_t row = 0; row < r->n_rows; row++) {
		double made[V];
		bool taken[V] = {0};
		for (uint32_t i = 0; i < n; i++)
			made[i] = z ? z[i] : (double)(float)(pseudo_random(&seed) % 1000 / 300.);
		for (uint32_t j = 0; j < k; j++) {
			uint32_t best = 0;
			while (taken[best])
				best++;
			for (uint32_t i = best; i < n; i++)
				best = !taken[i] && made[i] > made[best] ? i : best;
			taken[best] = true;
			r->ids[row * k + j] = best;
			r->logits[row * k + j] = (float)made[best];
		}
		r->lse[2 * row] = (float)lse(made, n, 1);
		r->lse[2 * row + 1] = (float)lse(made, n, 2);
		r->max_logit[row] = r->logits[row * k];
		r->own_logit[row] = (float)made[tokens[row + 1]];
	}
	return r;
}

struct fixture { struct objective *objective; struct student *student; struct record_rows *rows[3 * N]; };

static void fixture_open(struct fixture *f, const char *const *lines, uint32_t top_k)
{
	struct error err = {0};
	memset(f, 0, sizeof *f);
	assert_int_equal(objective_new(&f->objective), 0);
	for (; *lines; lines++)
		if (objective_add(f->objective, *lines, "run.conf:3", &err))
			fail_msg("%s", err.message);
	assert_int_equal(objective_check(f->objective, &err), 0);
	assert_int_equal(objective_begin(f->objective, 10, V), 0);
	struct student_options o = {.device = "ref", .n_threads = 1, .sequence_length = L, .micro_batch = N, .top_k = top_k, .seed = 5,
				    .objective = f->objective};
	if (student_open(&o, &architecture, NULL, &f->student, &err))
		fail_msg("%s", err.message);
	for (uint32_t t = 0; t < objective_n_teachers(f->objective); t++)
		for (uint32_t i = 0; i < N; i++)
			f->rows[t * N + i] = rows_of(100 * t + i + 1, NULL, V, top_k);
}

static void fixture_close(struct fixture *f)
{
	for (int i = 0; i < 3 * N; i++)
		record_rows_free(f->rows[i]);
	student_close(f->student);
	objective_free(f->objective);
}

// The gradient is added up in the student, whose parameters' count is returned in *ret_n.
static double *train(struct fixture *f, struct student_sums *sums, size_t *ret_n)
{
	struct weights *w = student_weights(f->student);
	struct error err = {0};
	double *g = malloc(w->parameters->n_values * sizeof *g);
	*sums = (struct student_sums){0};
	if (student_train(f->student, (const struct record_rows *const *)f->rows, N, sums, &err))
		fail_msg("%s", err.message);
	w->backend->ops->real_read(w->backend, g, w->parameters->gradient, w->parameters->n_values);
	w->backend->ops->real_zero(w->backend, w->parameters->gradient, w->parameters->n_values);
	*ret_n = w->parameters->n_values;
	return g;
}

#define LINES(...) (const char *const[]){__VA_ARGS__, NULL}

static void compare(const char *const *a, const char *const *b, uint32_t top_k)
{
	struct fixture f[2];
	struct student_sums sums[2];
	double *g[2], largest = 0;
	size_t n;
	for (int i = 0; i < 2; i++) {
		fixture_open(&f[i], i ? b : a, top_k);
		g[i] = train(&f[i], &sums[i], &n);
	}
	assert_near(sums[0].objective.total, sums[1].objective.total, 1e-6);
	for (size_t i = 0; i < n; i++) {
		largest = fmax(largest, fabs(g[0][i]));
		assert_near(g[0][i], g[1][i], 1e-6);
	}
	assert_true(largest > 1e-3);
	for (int i = 0; i < 2; i++) {
		free(g[i]);
		fixture_close(&f[i]);
	}
}

static void a_cross_entropy_to_the_mean_is_the_mean_of_cross_entropies(void **state)
{
	(void)state;
	compare(LINES("soft-cross-entropy teacher=big:3,own:1 top-k=11"),
		LINES("soft-cross-entropy teacher=big weight=0.75 top-k=11", "soft-cross-entropy weight=0.25 top-k=11"), V);
	compare(LINES("soft-cross-entropy teacher=big,own,far temperature=2 top-k=11", "cross-entropy"),
		LINES("soft-cross-entropy teacher=big weight=0.333333333333 top-k=11 temperature=2", "cross-entropy",
		      "soft-cross-entropy weight=0.333333333333 top-k=11 temperature=2",
		      "soft-cross-entropy teacher=far weight=0.333333333333 top-k=11 temperature=2"), V);
}

static void a_teacher_named_own_is_the_run_s(void **state)
{
	(void)state;
	compare(LINES("reverse-kl top-k=4"), LINES("reverse-kl teacher=own top-k=4"), 4);
}

static void the_mean_is_that_of_probabilities(void **state)
{
	(void)state;
	static const double z[2][3] = {{2, 1, .5}, {0, 1.5, .5}}, want[3] = {0.384388, 0.429878, 0.185734};
	struct support s[3];
	double log_sums[2], sum = 0;
	uint32_t label = 0;
	struct objective_voice voice = {.n = 2, .members = {0, 1}, .shares = {.5, .5}};
	for (int i = 0; i < 3; i++)
		assert_int_equal(support_init(&s[i], 3, 3), 0);
	for (int i = 0; i < 2; i++) {
		struct record_rows *r = rows_of(1, z[i], 3, 3);
		label = r->sequence.tokens[1];
		assert_int_equal(support_make(&s[i], r, 0, label, NULL), 0);
		log_sums[i] = lse(z[i], 3, 1);
		record_rows_free(r);
	}
	assert_int_equal(support_make_mean(&s[2], (const struct support *const[]){&s[0], &s[1]}, log_sums, &voice, 1, NULL), 0);
	assert_int_equal(s[2].n, 3);
	assert_int_equal(s[2].n_top, 3);
	for (uint32_t i = 0; i < 3; i++) {
		assert_near(exp(s[2].teacher[i]), want[s[2].ids[i]], 2e-6);
		assert_true(i == 0 || s[2].teacher[i] <= s[2].teacher[i - 1]);
		sum += exp(s[2].teacher[i]);
	}
	assert_near(sum, 1, 1e-12);
	assert_int_equal(s[2].ids[s[2].label], label);
	for (int i = 0; i < 3; i++)
		support_done(&s[i]);
}

// Ids that one of them did not tell are in the bucket: never more than the whole rows would cost.
static void a_mean_of_sparse_rows_is_a_lower_bound(void **state)
{
	(void)state;
	double last = 0;
	for (uint32_t k = 3; k <= V; k += 4) {
		char line[64];
		struct fixture f;
		struct student_sums sums;
		size_t n;
		snprintf(line, sizeof line, "forward-kl teacher=big,own top-k=%u", k);
		fixture_open(&f, LINES(line), k);
		free(train(&f, &sums, &n));
		assert_true(sums.objective.total >= last);
		last = sums.objective.total;
		fixture_close(&f);
	}
	assert_true(last > 0);
}

static double total_at(struct fixture *f, size_t i, float value)
{
	struct weights *w = student_weights(f->student);
	struct student_sums sums;
	size_t n;
	w->backend->ops->real_write(w->backend, w->backend->ops->real_at(w->parameters->value, i), &value, 1);
	weights_refresh(w);
	free(train(f, &sums, &n));
	return sums.objective.total;
}

static void gradient_is_the_change_of_the_total(void **state)
{
	(void)state;
	struct fixture f;
	struct student_sums sums;
	size_t n;
	double value;
	fixture_open(&f, LINES("reverse-kl teacher=big:2,own top-k=6", "jsd teacher=far top-k=6 temperature=2",
			       "forward-kl trust=label top-k=3", "cross-entropy weight=0.3"), 6);
	struct weights *w = student_weights(f.student);
	double *g = train(&f, &sums, &n);
	for (size_t i = 0; i < n; i += 29) {
		w->backend->ops->real_read(w->backend, &value, w->backend->ops->real_at(w->parameters->value, i), 1);
		float up = (float)value + 1e-3f, down = (float)value - 1e-3f;
		double change = total_at(&f, i, up) - total_at(&f, i, down);
		total_at(&f, i, (float)value);
		assert_near(change / ((double)up - (double)down), g[i], 1e-4 * (1 + fabs(g[i])));
	}
	free(g);
	fixture_close(&f);
}

static void trust_is_by_the_teacher_s_own_loss(void **state)
{
	(void)state;
	static const double ce[] = {.2, 1.5}, want[] = {0.833333, 0.4};
	double teacher[2] = {1, 0}, student[2] = {0, 0}, T = 1, log_t = lse(teacher, 2, 1), log_s = log(2), plain = 0;
	uint32_t ids[2] = {0, 1};
	for (int i = -1; i < 2; i++) {
		struct objective *o;
		struct objective_sums sums = {0};
		struct loss_position x = {
			.vocab_size = 2, .n = 2, .ids = ids, .student = student, .teacher = teacher, .n_top = 2,
			.n_temperatures = 1, .temperatures = &T, .teacher_lse = &log_t, .student_lse = &log_s,
			.student_lse_1 = log_s, .tail = NAN, .entropy = NAN, .student_mean = NAN,
			.teacher_ce = i < 0 ? 0 : ce[i]};
		assert_int_equal(objective_new(&o), 0);
		assert_int_equal(objective_add(o, "forward-kl trust=label", "here", NULL), 0);
		assert_int_equal(objective_begin(o, 1, 2), 0);
		objective_position(o, &x, &sums, NULL);
		if (i < 0)
			plain = sums.total;
		else
			assert_near(sums.total / plain, want[i], 1e-6);
		struct query q;
		query_init(&q);
		objective_query(o, 0, 0, 1, 2, &q);
		assert_true(q.own);
		objective_free(o);
	}
}

static void a_coin_per_teacher_and_step_leaves_losses_out(void **state)
{
	(void)state;
	struct fixture f;
	struct student_sums sums;
	size_t n;
	uint32_t n_kept = 0, n_together = 0, n_steps = 4000;
	fixture_open(&f, LINES("forward-kl teacher=big keep=0.75 top-k=4", "tvd teacher=big keep=0.75 top-k=4",
			       "jsd teacher=far keep=0.75 top-k=4", "forward-kl top-k=4"), 4);
	objective_seed(f.objective, 9);
	for (uint32_t i = 0; i < n_steps; i++) {
		bool big = objective_asks(f.objective, 1, i);
		assert_true(objective_asks(f.objective, 0, i));
		n_kept += big;
		n_together += big && objective_asks(f.objective, 2, i);
	}
	assert_in_range(n_kept, 2880, 3120);           // 4 standard deviations about 3000
	assert_in_range(n_together, 2125, 2375);       // their coins are not the same
	uint64_t without = 0;
	while (objective_asks(f.objective, 1, without) || !objective_asks(f.objective, 2, without))
		without++;
	objective_step(f.objective, without);
	for (int i = 0; i < N; i++)
		f.rows[N + i] = record_rows_free(f.rows[N + i]);
	free(train(&f, &sums, &n));
	assert_true(isnan(sums.objective.values[0]) && isnan(sums.objective.values[1]));
	assert_near(sums.objective.total, sums.objective.values[2] + sums.objective.values[3], 1e-9);
	fixture_close(&f);
}

static void a_position_that_one_teacher_lacks_is_left_out(void **state)
{
	(void)state;
	struct fixture f;
	struct student_sums sums;
	size_t n;
	fixture_open(&f, LINES("forward-kl teacher=big top-k=4"), 4);
	f.rows[N]->status[2] = ROW_NOT_FINITE;
	free(train(&f, &sums, &n));
	assert_int_equal(sums.n_masked, 1);
	assert_int_equal(sums.n_positions, N * (L - 1) - 1);
	fixture_close(&f);
}

static void what_cannot_be_meant_is_refused_with_its_line(void **state)
{
	(void)state;
	static const struct { const char *line, *why; } cases[] = {
		{"forward-kl teacher=big,big", "named twice"}, {"forward-kl teacher=big:0", "over 0"},
		{"forward-kl teacher=big:x,own", "over 0"}, {"forward-kl teacher=,own", "1 to 28"},
		{"forward-kl teacher=BIG", "a name is expected"}, {"forward-kl teacher=big,own form=draws", "no draws"},
		{"forward-kl teacher=big,own trust=label", "a line each"}, {"forward-kl keep=1.5", "from 0 to 1"},
		{"cross-entropy teacher=big", "no such parameter"}, {"forward-kl teacher=a,b,c,d,e,f,g,h", "at most 8"},
	};
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		struct objective *o;
		struct error err = {0};
		assert_int_equal(objective_new(&o), 0);
		assert_true(objective_add(o, cases[i].line, "run.conf:12", &err) < 0);
		if (strncmp(err.message, "run.conf:12: ", 13) != 0 || !strstr(err.message, cases[i].why))
			fail_msg("%s: %s", cases[i].line, err.message);
		objective_free(o);
	}
}

static void set(struct run_settings *s, const char *name, const char *value, const char *where)
{
	size_t n;
	const struct config_option *table = settings_table(&n);
	assert_int_equal(config_set(table, n, s, name, value, where, NULL), 0);
}

static void lines_of_teachers_are_checked(void **state)
{
	(void)state;
	static const struct { const char *other, *loss, *why; } cases[] = {
		{"big server:unix:/s model=x", "forward-kl teacher=big", NULL},
		{"big shards:/a,/b", "forward-kl teacher=big:2,own", NULL},
		{"big server:unix:/s", "forward-kl teacher=small", "run.conf:9: loss: teacher=small: no line other-teacher has this name"},
		{"own server:unix:/s", "forward-kl", "run.conf:8: other-teacher own server:unix:/s: own is the name"},
		{"big", "forward-kl", "either server:ADDRESS or shards:DIR"},
		{"big server:unix:/s shards:/a", "forward-kl", "either server:ADDRESS or shards:DIR"},
		{"big shards:/a model=x", "forward-kl", "model= chooses"},
		{"big server: ", "forward-kl", "nothing after its key"},
		{"big server:unix:/s id=12", "forward-kl", "64 hexadecimal digits"},
		{"big server:unix:/s port=12", "forward-kl", "is expected after the name"},
		{"Big server:unix:/s", "forward-kl", "a name is expected first"},
		{"past shards:/a", "reverse-kl teacher=past support=student:4", "need a live teacher"},
		{"twice server:unix:/s", "forward-kl", "another line has this name"},
	};
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		struct run_settings s;
		struct error err = {0};
		assert_int_equal(settings_init(&s, NULL), 0);
		set(&s, "server", "unix:/x", "run.conf:1");
		set(&s, "corpus", "text", "run.conf:2");
		set(&s, "other-teacher", cases[i].other, "run.conf:8");
		if (strncmp(cases[i].other, "twice", 5) == 0)
			set(&s, "other-teacher", cases[i].other, "run.conf:10");
		set(&s, "loss", cases[i].loss, "run.conf:9");
		int r = settings_check(&s, &err);
		if (cases[i].why ? r == 0 || !strstr(err.message, cases[i].why) : r != 0)
			fail_msg("%s; %s: %d %s", cases[i].other, cases[i].loss, r, err.message);
		settings_done(&s);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_cross_entropy_to_the_mean_is_the_mean_of_cross_entropies),
		cmocka_unit_test(a_teacher_named_own_is_the_run_s),
		cmocka_unit_test(the_mean_is_that_of_probabilities),
		cmocka_unit_test(a_mean_of_sparse_rows_is_a_lower_bound),
		cmocka_unit_test(gradient_is_the_change_of_the_total),
		cmocka_unit_test(trust_is_by_the_teacher_s_own_loss),
		cmocka_unit_test(a_coin_per_teacher_and_step_leaves_losses_out),
		cmocka_unit_test(a_position_that_one_teacher_lacks_is_left_out),
		cmocka_unit_test(what_cannot_be_meant_is_refused_with_its_line),
		cmocka_unit_test(lines_of_teachers_are_checked),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
