// SPDX-License-Identifier: Apache-2.0
// Options that kdctl score and kdctl capture have in common. Functions return 0, or an exit status after saying why.
#pragma once

#include <getopt.h>

#include "clients/kdctl/score.h"

// The question as options, for every command that asks one. Rows of getopt_long's table; what they are called in parse functions.
enum {
	OPT_TOP_K = 256, OPT_TOP_MASS, OPT_TEMPERATURES, OPT_NO_OWN, OPT_ENTROPY, OPT_MAX_PROB, OPT_ARGMAX, OPT_SUM_SQUARES, OPT_TAIL,
	OPT_DENSE, OPT_DRAWS, OPT_TAU, OPT_SEED, OPT_DRAWS_TAIL, OPT_GATHER, OPT_KEEP, OPT_SUM, OPT_FEATURES, OPT_POOLING,
	OPT_FEATURE_VALUES, OPT_FIRST, OPT_LAST, OPT_VALUES,
	OPT_BATCH, OPT_IN_FLIGHT, OPT_DEADLINE, OPT_NO_STORE, OPT_DURABLE,
	OPT_OWN                          // a command's own begin here
};

#define QUESTION_OPTIONS \
	{"top-k", required_argument, NULL, OPT_TOP_K}, {"top-mass", required_argument, NULL, OPT_TOP_MASS}, \
	{"temperatures", required_argument, NULL, OPT_TEMPERATURES}, {"no-own", no_argument, NULL, OPT_NO_OWN}, \
	{"entropy", no_argument, NULL, OPT_ENTROPY}, {"max-prob", no_argument, NULL, OPT_MAX_PROB}, \
	{"argmax", no_argument, NULL, OPT_ARGMAX}, {"sum-squares", no_argument, NULL, OPT_SUM_SQUARES}, \
	{"tail", no_argument, NULL, OPT_TAIL}, {"dense", no_argument, NULL, OPT_DENSE}, {"draws", required_argument, NULL, OPT_DRAWS}, \
	{"tau", required_argument, NULL, OPT_TAU}, {"seed", required_argument, NULL, OPT_SEED}, \
	{"draws-tail", no_argument, NULL, OPT_DRAWS_TAIL}, {"gather", required_argument, NULL, OPT_GATHER}, \
	{"keep", required_argument, NULL, OPT_KEEP}, {"sum", no_argument, NULL, OPT_SUM}, \
	{"features", required_argument, NULL, OPT_FEATURES}, {"pooling", required_argument, NULL, OPT_POOLING}, \
	{"feature-values", required_argument, NULL, OPT_FEATURE_VALUES}, {"first", required_argument, NULL, OPT_FIRST}, \
	{"last", required_argument, NULL, OPT_LAST}, {"values", required_argument, NULL, OPT_VALUES}

#define WORK_OPTIONS \
	{"batch", required_argument, NULL, OPT_BATCH}, {"in-flight", required_argument, NULL, OPT_IN_FLIGHT}, \
	{"deadline", required_argument, NULL, OPT_DEADLINE}, {"no-store", no_argument, NULL, OPT_NO_STORE}, \
	{"durable", no_argument, NULL, OPT_DURABLE}

#define QUESTION_HELP \
	"Question:\n" \
	"  --top-k K            likeliest ids of each position [64]; 0 = none\n" \
	"  --top-mass P         only so many of them as reach this probability\n" \
	"  --temperatures LIST  of the lse values, separated by commas [1]\n" \
	"  --no-own             not the logit of the token that follows\n" \
	"  --entropy, --max-prob, --argmax, --sum-squares, --tail, --dense\n" \
	"  --draws N [--tau T] [--seed S] [--draws-tail]   random ids\n" \
	"  --gather IDS         logits at these ids (separated by commas, or @FILE)\n" \
	"  --keep IDS           everything over these ids alone\n" \
	"  --sum                the summed log-probability of each sequence\n" \
	"  --features LIST      hidden:L, final, q:L, k:L, v:L\n" \
	"  --pooling none|mean|last [none], --feature-values f32|f16|bf16 [bf16]\n" \
	"  --first N, --last N  positions wanted; negative counts from the end [0, -1]\n" \
	"  --values f16|f32|u8  how logits travel [f16]\n"

void score_options_init(struct score_options *o);
int score_option_parse(struct kdctl *k, int c, int argc, char **argv, struct score_options *o);        // one of the above, ':' or '?'
int score_options_finish(struct kdctl *k, struct score_options *o);      // after the last: the whole question

int parse_real(struct kdctl *k, const char *name, const char *text, double min, double max, double *ret);
int parse_u32(struct kdctl *k, const char *name, const char *text, double min, double max, uint32_t *ret);
// One of a few names; *ret is its place among them.
int parse_choice(struct kdctl *k, const char *name, const char *text, const char *const *choices, int *ret);
int parse_format(struct kdctl *k, const char *text, struct score_options *o);
void format_by_name(struct score_options *o);           // where no format was given: what the path's suffix says
