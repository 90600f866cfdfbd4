// SPDX-License-Identifier: Apache-2.0
#include "daemon/loss/method.h"

#include <stddef.h>
#include <string.h>

const struct parameter_row common_parameters[N_COMMON] = {
	[COMMON_WEIGHT] = {"weight", PARAMETER_SCHEDULE, 0, 1e6, "1", "", "its share of the total"},
	[COMMON_NAME] = {"name", PARAMETER_TEXT, 0, 0, "", "", "what its values are called in logs and metrics; else the loss's name"},
	[COMMON_ON] = {"on", PARAMETER_CHOICE, 0, 0, "all", "all|text|rollouts",
		"which sequences: those of the corpus, those that the student wrote"},
	[COMMON_TEMPERATURE] = {"temperature", PARAMETER_SCHEDULE, 0.05, 100, "1", "", "T: both rows are softmax(z / T), exactly"},
	[COMMON_T2_SCALE] = {"t2-scale", PARAMETER_SWITCH, 0, 1, "on", "",
		"times T squared, which keeps the gradient's size when T changes"},
	[COMMON_TOP_K] = {"top-k", PARAMETER_COUNT, 1, 16777216, "64", "", "ids of the teacher at each position"},
	[COMMON_SUPPORT] = {"support", PARAMETER_SUPPORT, 1, 65536, "teacher", "", "whose likeliest ids: teacher, student:K or both:K"},
	[COMMON_TEACHER] = {"teacher", PARAMETER_TEXT, 0, 0, "", "",
		"whose row: a name of other-teacher, own, or the mean of several with their shares, as big:3,own:1"},
	[COMMON_KEEP] = {"keep", PARAMETER_NUMBER, 0, 1, "1", "", "chance that a step has this loss; one coin per teacher and step"},
	[COMMON_TRUST] = {"trust", PARAMETER_CHOICE, 0, 0, "all", "all|label",
			  "label: times 1 / (1 + the teacher's own cross-entropy on the sequence)"},
	[COMMON_FORM] = {"form", PARAMETER_CHOICE, 0, 0, "ghost",
			 "ghost|uniform|teacher-renormalised|renormalised|truncated|draws|head-draws|label-tail",
			 "how a sparse row is completed"},
	[COMMON_TAIL] = {"tail", PARAMETER_SWITCH, 0, 1, "off", "", "ask for the teacher's mass outside its top-k (T = 1), else 1 - sum"},
	[COMMON_DRAWS] = {"draws", PARAMETER_COUNT, 1, 65536, "50", "", "ids drawn at each position, with the forms that draw"},
	[COMMON_LAYERS] = {"layers", PARAMETER_LAYERS, 0, 0, "last", "",
		"last, final, uniform, skip:N, tail, or student:teacher pairs 1:2,3:6"},
	[COMMON_PROJECTION] = {"projection", PARAMETER_CHOICE, 0, 0, "auto", "auto|each|shared|none",
			       "trained matrices from the student's width to the teacher's: "
			       "where they differ, or always, one for all pairs, never"},
	[COMMON_BIAS] = {"bias", PARAMETER_SWITCH, 0, 1, "off", "", "projections have a bias"},
	[COMMON_POOLING] = {"pooling", PARAMETER_CHOICE, 0, 0, "none", "none|mean|last",
			    "one row for each sequence: the mean of its rows, or its last"},
	[COMMON_TAU] = {"tau", PARAMETER_NUMBER, 0.01, 100, "1", "", "they are drawn from p to this power; weights make up for it"},
};

#define ALPHA(fallback, help) {"alpha", PARAMETER_SCHEDULE, 0, 0.999, fallback, "", help}

// What a row leaves out at its end is nothing.
#pragma GCC diagnostic ignored "-Wmissing-field-initializers"
static const struct method table[] = {
	{"cross-entropy", METHOD_HARD, NULL, "-ln q(token that follows)", NULL,
	 {{"smoothing", PARAMETER_SCHEDULE, 0, 0.999, "0", "", "share of the label's mass that is spread over the vocabulary"}}},
	{"forward-kl", METHOD_FORMS | METHOD_LINEAR, NULL, "KL(teacher; student)", divergence_forward_kl, {{0}}},
	{"soft-cross-entropy", METHOD_FORMS | METHOD_LINEAR, NULL, "-sum p ln q: forward-kl and the teacher's entropy",
	 divergence_soft_cross_entropy, {{0}}},
	{"reverse-kl", METHOD_FORMS | METHOD_BY_STUDENT, NULL, "KL(student; teacher)", divergence_reverse_kl, {{0}}},
	{"half-sum", METHOD_FORMS | METHOD_BY_STUDENT, NULL, "both KLs, in shares that sum to 1", divergence_half_sum,
	 {{"reverse", PARAMETER_SCHEDULE, 0, 1, "0.5", "", "share of the reverse KL"}}},
	{"jeffreys", METHOD_FORMS | METHOD_BY_STUDENT, NULL, "forward and reverse KL, summed", divergence_jeffreys, {{0}}},
	{"jsd", METHOD_FORMS, NULL, "beta KL(p; m) + (1 - beta) KL(q; m), m = beta p + (1 - beta) q", divergence_jsd,
	 {{"beta", PARAMETER_SCHEDULE, 0, 1, "0.5", "", "share of the teacher in the mixture m"},
	  {"normalise-beta", PARAMETER_SWITCH, 0, 1, "off", "", "over beta (1 - beta), so forward-kl at 0 and reverse-kl at 1"}}},
	{"skew-forward-kl", METHOD_FORMS, NULL, "KL(p; alpha p + (1 - alpha) q)", divergence_skew_forward,
	 {ALPHA("0.1", "share of the teacher in the mixture")}},
	{"skew-reverse-kl", METHOD_FORMS | METHOD_BY_STUDENT, NULL, "KL(q; (1 - alpha) p + alpha q)", divergence_skew_reverse,
	 {ALPHA("0.1", "share of the student in the mixture"),
	  {"detach-mix", PARAMETER_SWITCH, 0, 1, "off", "", "the mixture is a constant to the gradient (DistiLLM-2)"}}},
	{"tvd", METHOD_FORMS, NULL, "half the sum of |p - q|", divergence_tvd, {{0}}},
	{"alpha-beta", METHOD_FORMS | METHOD_NOT_F | METHOD_BY_STUDENT, NULL,
	 "alpha-beta divergence; (1, 0) is forward-kl, (0, 1) reverse-kl", divergence_ab,
	 {{"alpha", PARAMETER_SCHEDULE, -4, 4, "0.2", "", "power of p"}, {"beta", PARAMETER_SCHEDULE, -4, 4, "0.7", "", "power of q"}}},
	{"adaptive-kl", METHOD_FORMS | METHOD_BY_STUDENT, NULL, "forward and reverse KL by the gaps in the teacher's head and tail",
	 divergence_adaptive_kl, {{"mu", PARAMETER_SCHEDULE, 0, 1, "0.5", "", "mass of the head"}}},
	{"dkd", METHOD_FORMS | METHOD_LABEL | METHOD_NOT_F, NULL, "KL of label against rest, and of the rest, each with its weight",
	 divergence_dkd,
	 {{"alpha", PARAMETER_SCHEDULE, 0, 100, "1", "", "weight of the label's part"},
	  {"beta", PARAMETER_SCHEDULE, 0, 100, "0.5", "", "weight of the others' part"}}},
	{"taid", METHOD_FORMS | METHOD_ADAPTIVE | METHOD_NOT_F, NULL,
	 "KL(target; q), the target's logits moving from the student's to the teacher's", divergence_taid,
	 {{"t", PARAMETER_SCHEDULE, 0, 1, "linear:0.4:1", "", "least share of the teacher in the target; it runs ahead as the loss falls"},
	  {"rate", PARAMETER_NUMBER, 0, 1, "0.0005", "", "most that a step adds to it; 0: the schedule alone"},
	  {"momentum", PARAMETER_NUMBER, 0, 0.999999, "0.99", "", "of the loss's relative change"}}},
	{"dac-kl", METHOD_LABEL, NULL, "KL of both rows renormalised over the teacher's top quantile and the label", divergence_dac_kl,
	 {{"quantile", PARAMETER_SCHEDULE, 0, 1, "0.9", "", "mass of the teacher that is kept"}}},
	{"first", 0, "5", "KL of softmax(p / c) over the top-k to the student renormalised over them", divergence_first,
	 {{"c", PARAMETER_SCHEDULE, 0.001, 1000, "0.3", "", "small: sharper than the teacher"}}},
	{"logit-mse", 0, NULL, "squared gap of logits over the ids", logit_mse,
	 {{"of", PARAMETER_CHOICE, 0, 0, "centred", "raw|centred|log-prob", "logits as they are, less their mean, or ln p"},
	  {"phi", PARAMETER_SCHEDULE, 0, 100, "1", "", "factor on the teacher's logits (annealing; not of log-prob)"},
	  {"sum", PARAMETER_SWITCH, 0, 1, "off", "", "sum over the ids instead of their mean"},
	  {"above", PARAMETER_SCHEDULE, 0, 1e6, "0", "", "positions whose mean is at most this times phi cost nothing"}}},
	{"hinge-ranking", 0, NULL, "mean over pairs with p_i > p_l of max(0, margin - (q_i - q_l))", logit_hinge,
	 {{"margin", PARAMETER_SCHEDULE, 0, 1, "0", "", "wanted gap of probabilities; 0: the teacher's own"}}},
	{"logistic-ranking", 0, NULL, "mean over the same pairs of ln(1 + exp(-(z_i - z_l) / T))", logit_logistic, {{0}}},
	{"policy-gradient", METHOD_HARD | METHOD_DRAWN, NULL, "reverse KL from the drawn tokens alone, ln p - ln q of each as reward", NULL,
	 {{"gamma", PARAMETER_NUMBER, 0, 1, "0", "",
	   "discount of the rewards of later tokens; 0: each token for itself, 1: the whole answer"},
	  {"current", PARAMETER_SWITCH, 0, 1, "on", "", "the token's own reward counts; off where an exact loss stands for it (MiniLLM)"},
	  {"length-normalise", PARAMETER_SWITCH, 0, 1, "off", "", "mean of the remaining rewards instead of their sum"},
	  {"clip", PARAMETER_NUMBER, 0, 1, "0", "", "of the ratio to the chance of drawing, 1 - clip to 1 + clip; 0: none"},
	  {"reward-scale", PARAMETER_NUMBER, 1e-6, 1e6, "1", "", "each reward is divided by it (0.5 in MiniLLM's program)"},
	  {"reward-limit", PARAMETER_NUMBER, 0, 1e6, "0", "", "and then cut off at so much on both sides; 0: not"}}},
	{"uld", METHOD_RANKS, NULL, "sum over ranks of |p - q|, both rows sorted: of any two vocabularies", rank_uld, {{0}}},
	{"gold", METHOD_RANKS | METHOD_BY_ID, NULL, "jsd of ids that both vocabularies have, uld of the others; rows of a span merged",
	 rank_gold,
	 {{"beta", PARAMETER_SCHEDULE, 0, 1, "0.5", "", "share of the teacher in the mixture; 0: forward KL, 1: reverse KL"},
	  {"merge", PARAMETER_SWITCH, 0, 1, "on", "", "rows of a span of several tokens: times the probability of its later tokens"},
	  {"matched", PARAMETER_NUMBER, -1, 1e6, "-1", "", "weight of ids that both have; -1: their share of the teacher's ids"},
	  {"unmatched", PARAMETER_NUMBER, -1, 1e6, "-1", "", "weight of the others; -1: 1 less that share"}}},
	{"top-n-ranking", METHOD_OWN_IDS, NULL, "how far the student's own ids stand above its least logit among the teacher's ids",
	 logit_top_n, {{0}}},
	{"hidden-mse", METHOD_HIDDEN, NULL, "squared gap of hidden rows, summed over the pairs of layers", NULL,
	 {{"normalise", PARAMETER_SWITCH, 0, 1, "off", "", "both rows are divided by their length (PKD)"},
	  {"sum", PARAMETER_SWITCH, 0, 1, "off", "", "sum over the width instead of its mean"}}, feature_hidden_mse},
	{"hidden-cosine", METHOD_HIDDEN, NULL, "1 - cosine of hidden rows, summed over the pairs of layers", NULL, {{0}},
	 feature_hidden_cosine},
	{"minilm", METHOD_RELATION, NULL,
	 "KL of relations between a sequence's q, k and v rows, before rotation, summed over the pairs of layers", NULL,
	 {{"version", PARAMETER_CHOICE, 0, 0, "v2", "v2|v1", "q to q, k to k, v to v; or q to k and v to v, head by head"},
	  {"heads", PARAMETER_COUNT, 0, 4096, "0", "", "relation heads that the widths of both are split into; 0: the student's heads"}},
	 feature_relations},
	{"margin-mse", METHOD_HIDDEN | METHOD_POOLED, NULL,
	 "squared gap of score differences (s_ij - s_ik) - (t_ij - t_ik) of a micro-batch's sequences", NULL,
	 {{"score", PARAMETER_CHOICE, 0, 0, "dot", "dot|cosine", "of two pooled rows"},
	  {"triples", PARAMETER_CHOICE, 0, 0, "all", "all|three", "every i, j, k, or each three sequences in their order"}},
	 feature_margin_mse},
};
#define N_METHODS (sizeof table / sizeof *table)

const struct method *method_table(size_t *ret_n)
{
	*ret_n = N_METHODS;
	return table;
}

const struct method *method_find(const char *name)
{
	for (size_t i = 0; i < N_METHODS; i++)
		if (strcmp(table[i].name, name) == 0)
			return &table[i];
	return NULL;
}

// Letters of one that the other has too, in order, greedily: enough to tell "fkl" from "forward-kl" and "jsd" from "tvd".
static size_t likeness(const char *a, const char *b)
{
	size_t n = 0;
	for (; *a; a++) {
		const char *at = strchr(b, *a);
		if (at) {
			n++;
			b = at + 1;
		}
	}
	return n;
}

const struct method *method_nearest(const char *name)
{
	const struct method *best = &table[0];
	double best_share = -1;
	for (size_t i = 0; i < N_METHODS; i++) {
		double share = (double)likeness(name, table[i].name) / (double)(strlen(name) + strlen(table[i].name));
		if (share > best_share) {
			best = &table[i];
			best_share = share;
		}
	}
	return best;
}

uint32_t method_n_parameters(const struct method *m)
{
	uint32_t n = 0;
	while (n < METHOD_MAX_PARAMETERS && m->parameters[n].name)
		n++;
	return n;
}

const struct parameter_row *method_common(const struct method *m, enum common_parameter which)
{
	bool form = which == COMMON_FORM || which == COMMON_TAIL || which == COMMON_DRAWS || which == COMMON_TAU;
	bool layers = which == COMMON_LAYERS, hidden = which >= COMMON_LAYERS && !layers;
	if (layers || hidden)
		return m->feature && (layers || m->flags & METHOD_HIDDEN) ? &common_parameters[which] : NULL;
	if (m->feature && which > COMMON_NAME)
		return NULL;
	if (which > COMMON_ON && (m->flags & METHOD_HARD))
		return NULL;
	if (which == COMMON_SUPPORT && (m->flags & METHOD_RANKS))
		return NULL;
	return form && !(m->flags & METHOD_FORMS) ? NULL : &common_parameters[which];
}

const char *form_name(enum loss_form form)
{
	static const char *const names[] = {"ghost", "uniform", "teacher-renormalised", "renormalised", "truncated", "draws", "head-draws",
					    "label-tail"};
	return names[form];
}

const char *method_bias(const struct method *m, enum loss_form form, enum loss_support support)
{
	static const char *const of_form[LOSS_N_FORMS] = {
		[LOSS_FORM_UNIFORM] = "a uniform tail flattens what the student says outside the head",
		[LOSS_FORM_TEACHER_RENORMALISED] = "its optimum is the teacher's head over its own sum: overconfident, and nothing outside",
		[LOSS_FORM_RENORMALISED] = "it teaches ratios inside the head and nothing of the head's mass",
		[LOSS_FORM_TRUNCATED] = "it is no divergence: it may be negative, and its optimum is the teacher's head over its own sum",
		[LOSS_FORM_LABEL_TAIL] = "the label gets all of the teacher's tail",
	};
	if (m->flags & METHOD_HARD || m->feature)
		return NULL;
	if (m->flags & METHOD_RANKS)
		return "ranks outside the top-k are compared as one: a lower bound";
	if (!(m->flags & METHOD_FORMS))
		return "ids outside its support are left alone";
	if (of_form[form])
		return of_form[form];
	if (form != LOSS_FORM_GHOST)
		return m->flags & METHOD_LINEAR ? NULL : "it is not linear in the teacher's probabilities: draws bias it";
	if ((m->flags & METHOD_BY_STUDENT) && support == LOSS_SUPPORT_TEACHER)
		return "it is weighted by the student: ids that only the student likes are hidden in the bucket "
			"(support=both:K shows them)";
	return m->flags & METHOD_NOT_F ? "the bucket is no bound of it" : NULL;
}

const char *method_foreign_fault(const struct method *m, enum loss_form form, enum loss_support support)
{
	if (m->flags & (METHOD_HARD | METHOD_RANKS))
		return NULL;
	if (!(m->flags & METHOD_FORMS) || (m->flags & METHOD_LABEL))
		return "compares ids one by one: where the vocabularies differ use a loss with form=ghost, uld or gold";
	if (form != LOSS_FORM_GHOST)
		return "form=ghost is expected where the vocabularies differ: ids that the student has not are in the bucket";
	return support == LOSS_SUPPORT_TEACHER ? NULL : "support=teacher is expected where the vocabularies differ";
}

static void parameter_print(FILE *to, const struct parameter_row *p, const char *fallback)
{
	fprintf(to, "    %s=%s", p->name, fallback);
	if (p->type == PARAMETER_CHOICE)
		fprintf(to, " (%s)", p->choices);
	else if (p->type == PARAMETER_SCHEDULE || p->type == PARAMETER_NUMBER || p->type == PARAMETER_COUNT)
		fprintf(to, " (%.15g to %.15g%s)", p->min, p->max, p->type == PARAMETER_SCHEDULE ? ", may be a schedule" : "");
	else if (p->type == PARAMETER_SWITCH)
		fprintf(to, " (on|off)");
	fprintf(to, ": %s\n", p->help);
}

void method_print(FILE *to)
{
	fputs("of every loss\n", to);
	for (int i = 0; i < N_COMMON; i++) {
		if (i == COMMON_TEMPERATURE)
			fputs("of every loss on the teacher's row\n", to);
		if (i == COMMON_FORM)
			fputs("of those that are sums over a whole row\n", to);
		if (i == COMMON_LAYERS)
			fputs("of losses on features; all but layers of those on hidden rows alone\n", to);
		parameter_print(to, &common_parameters[i], common_parameters[i].fallback);
	}
	for (size_t i = 0; i < N_METHODS; i++) {
		fprintf(to, "%s: %s\n", table[i].name, table[i].help);
		if (table[i].top_k)
			parameter_print(to, &common_parameters[COMMON_TOP_K], table[i].top_k);
		if (table[i].flags & METHOD_POOLED)
			parameter_print(to, &common_parameters[COMMON_POOLING], METHOD_POOLED_FALLBACK);
		for (uint32_t k = 0; k < method_n_parameters(&table[i]); k++)
			parameter_print(to, &table[i].parameters[k], table[i].parameters[k].fallback);
	}
}
