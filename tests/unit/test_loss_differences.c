// SPDX-License-Identifier: Apache-2.0
// Every token loss of the table, as a line of a run with every form, support, temperature and choice that it takes, against finite
// differences; and the bucket as one more id of a smaller vocabulary.
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>

#include "common/error.h"
#include "daemon/loss/method.h"
#include "tests/unit/loss_scene.h"

#define V SCENE_V

static void assert_near(double actual, double expected, double tolerance, const char *what)
{
	if (!(fabs(actual - expected) <= tolerance))
		fail_msg("%s: %.9g is not %.9g", what, actual, expected);
}

// Parts of these are constants to their gradients by definition; test_divergence_properties holds them still by hand.
static bool has_a_constant_part(const char *line)
{
	return strncmp(line, "taid", 4) == 0 || strncmp(line, "adaptive-kl", 11) == 0 || strstr(line, "detach-mix=on");
}

static void differences_compare(struct objective *o, const char *line, const struct scene *s)
{
	double gradient[V], sum = 0, size = 1, h = 1e-5;
	struct objective_sums sums = scene_evaluate(o, s, gradient);
	for (uint32_t j = 0; j < s->n_ids; j++) {
		struct scene up = *s, down = *s;
		up.zs[j] += h;
		down.zs[j] -= h;
		double numeric = (scene_evaluate(o, &up, NULL).total - scene_evaluate(o, &down, NULL).total) / (2 * h);
		if (!has_a_constant_part(line))
			assert_near(gradient[j], numeric, 3e-7 * (1 + fabs(numeric)), line);
		sum += gradient[j];
		size += fabs(gradient[j]);
	}
	if (!strstr(line, "of=raw"))
		assert_near(sum, 0, 1e-13 * size, line);
	if (s->foreign) {              // of the span's later tokens
		struct scene up = *s, down = *s;
		up.log_q_factor += h;
		down.log_q_factor -= h;
		double numeric = (scene_evaluate(o, &up, NULL).total - scene_evaluate(o, &down, NULL).total) / (2 * h);
		assert_near(sums.pull, numeric, 3e-7 * (1 + fabs(numeric)), line);
	}
}

// 1: the line makes sense and its gradient is right; 0: it is refused, as some mixes are.
static uint32_t line_check(const struct method *m, const char *line, uint64_t *seed)
{
	struct objective *o;
	struct error err = {0};
	if (scene_objective(line, V, &o, &err))
		return 0;
	for (int n = 0; n < 6; n++) {
		struct scene s = scene_random(seed, (m->flags & METHOD_RANKS) != 0);
		differences_compare(o, line, &s);
	}
	objective_free(o);
	return 1;
}

static const char *const supports[] = {"teacher", "student:3", "both:3"};

// A method's line with every form, support and temperature there is to say.
static uint32_t lines_check(const struct method *m, const char *more, uint64_t *seed)
{
	bool soft = m->fn != NULL, formed = m->flags & METHOD_FORMS, supported = method_common(m, COMMON_SUPPORT) != NULL;
	uint32_t n = 0;
	for (int form = 0; form < (formed ? LOSS_N_FORMS : 1); form++)
		for (int support = 0; support < (supported ? 3 : 1); support++)
			for (int T = 1; T <= (soft ? 2 : 1); T++) {
				char line[240];
				int at = snprintf(line, sizeof line, "%s weight=0.7 %s", m->name, more);
				if (formed)
					at += snprintf(line + at, sizeof line - at, " form=%s", form_name((enum loss_form)form));
				if (supported)
					at += snprintf(line + at, sizeof line - at, " support=%s", supports[support]);
				if (soft)
					snprintf(line + at, sizeof line - at, " top-k=4 trust=label temperature=%s", T == 1 ? "1" : "1.75");
				n += line_check(m, line, seed);
			}
	return n;
}

static void gradients_of_every_line_are_finite_differences(void **state)
{
	(void)state;
	static const struct { const char *method, *more; } extra[] = {
		{"cross-entropy", "smoothing=0.1"}, {"half-sum", "reverse=0.9"}, {"jsd", "beta=0 normalise-beta=on"},
		{"jsd", "beta=1 normalise-beta=on"}, {"alpha-beta", "alpha=0 beta=0.7"}, {"alpha-beta", "alpha=0.7 beta=0"},
		{"alpha-beta", "alpha=0.7 beta=-0.7"}, {"alpha-beta", "alpha=0 beta=0"}, {"alpha-beta", "alpha=-0.5 beta=1.5"},
		{"skew-forward-kl", "alpha=0"}, {"skew-reverse-kl", "alpha=0"}, {"dac-kl", "quantile=0.5"}, {"first", "c=1"},
		{"logit-mse", "phi=0.6"}, {"logit-mse", "of=raw above=0.4"}, {"hinge-ranking", "margin=0.2"},
		{"policy-gradient", "clip=0.2"}, {"gold", "beta=0"}, {"gold", "beta=1"}, {"gold", "matched=2 unmatched=3"},
		{"dkd", "alpha=0.3 beta=8"},
	};
	size_t n_methods;
	const struct method *methods = method_table(&n_methods);
	uint64_t seed = 5;
	for (size_t i = 0; i < n_methods; i++) {
		const struct method *m = &methods[i];
		uint32_t n = 0;
		if (m->feature)
			continue;
		n += lines_check(m, "", &seed);
		for (uint32_t k = 0; k < method_n_parameters(m); k++) {        // each choice and switch
			const struct parameter_row *p = &m->parameters[k];
			const char *rest = p->type == PARAMETER_SWITCH ? "on|off" : p->type == PARAMETER_CHOICE ? p->choices : "";
			while (*rest) {
				char more[64];
				int length = (int)strcspn(rest, "|");
				snprintf(more, sizeof more, "%s=%.*s", p->name, length, rest);
				n += lines_check(m, more, &seed);
				rest += length + (rest[length] == '|');
			}
		}
		for (size_t k = 0; k < sizeof extra / sizeof *extra; k++)
			if (strcmp(extra[k].method, m->name) == 0) {
				uint32_t more = lines_check(m, extra[k].more, &seed);
				assert_true(more > 0);
				n += more;
			}
		if (n == 0)
			fail_msg("%s: no line of it was taken", m->name);
	}
}

// The tail as one id of its own, with the tail's lse as logit.
static struct scene scene_coarse(const struct scene *s, double T)
{
	struct scene c = {.n_ids = s->n_top + 1, .label = s->n_top};
	double tail[2] = {0, 0};
	bool head[V] = {false};
	for (uint32_t i = 0; i < s->n_top; i++) {
		head[s->top[i]] = true;
		c.zt[i] = s->zt[s->top[i]];
		c.zs[i] = s->zs[s->top[i]];
		c.label = s->top[i] == s->label ? i : c.label;
	}
	for (uint32_t j = 0; j < s->n_ids; j++)
		if (!head[j]) {
			tail[0] += exp(s->zt[j] / T);
			tail[1] += exp(s->zs[j] / T);
		}
	c.zt[s->n_top] = T * log(tail[0]);
	c.zs[s->n_top] = T * log(tail[1]);
	scene_likeliest(&c, c.n_ids);
	return c;
}

static void a_bucket_is_the_dense_loss_of_a_vocabulary_with_one_id_for_the_tail(void **state)
{
	(void)state;
	size_t n_methods;
	const struct method *methods = method_table(&n_methods);
	uint64_t seed = 9;
	for (size_t i = 0; i < n_methods; i++)
		for (int round = 0; round < 8 && (methods[i].flags & METHOD_FORMS); round++) {
			struct scene s = scene_random(&seed, false);
			char line[96];
			double T = round % 2 ? 1.75 : 1, fine[V], coarse[V];
			struct objective *o, *smaller;
			for (uint32_t j = 0; j < s.n_top; j++)
				s.zt[s.top[j]] += 4;           // adaptive KL has the bucket last, which it then is
			s.label = s.top[1];
			struct scene c = scene_coarse(&s, T);
			snprintf(line, sizeof line, "%s temperature=%g top-k=%u", methods[i].name, T, V);
			assert_int_equal(scene_objective(line, V, &o, NULL), 0);
			assert_int_equal(scene_objective(line, c.n_ids, &smaller, NULL), 0);
			double value = scene_evaluate(o, &s, fine).total;
			assert_near(value, scene_evaluate(smaller, &c, coarse).total, 1e-11 * (1 + fabs(value)), line);
			for (uint32_t j = 0; j < s.n_top; j++)
				assert_near(fine[s.top[j]], coarse[j], 1e-11, line);
			for (uint32_t j = 0; j < V; j++) {
				bool head = false;
				for (uint32_t k = 0; k < s.n_top; k++)
					head = head || s.top[k] == j;
				if (!head)
					assert_near(fine[j], coarse[s.n_top] * exp((s.zs[j] - c.zs[s.n_top]) / T), 1e-11, line);
			}
			objective_free(o);
			objective_free(smaller);
		}
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(gradients_of_every_line_are_finite_differences),
		cmocka_unit_test(a_bucket_is_the_dense_loss_of_a_vocabulary_with_one_id_for_the_tail),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
