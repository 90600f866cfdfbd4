// SPDX-License-Identifier: Apache-2.0
// kdctl select: which items of a corpus to learn from. No server is asked: what models think of the items was written by kdctl score.
#include <getopt.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "clients/kdctl/choice.h"
#include "clients/kdctl/select.h"

static const char help[] =
	"Usage: kdctl select METHOD [OPTIONS] FILE\n"
	"Copies the chosen lines of a file of JSON lines, in their order.\n\n"
	"Methods:\n"
	"  difference --reference FILE   what a small model finds much harder than the teacher does (MiniPLM).\n"
	"                                FILEs: what kdctl score --sum wrote of the same items, by each model\n"
	"  dsir --target FILE            what reads like the target texts (DSIR); {\"text\":\"...\"} lines; repeatable\n"
	"  queries [--bad N]             what the student is unsure of, though N of the teacher's answers be wrong\n"
	"                                (robust active distillation). FILE: what kdctl score --top-k 2 --max-prob\n"
	"                                wrote, asked of the student\n"
	"  domains --student FILE --items FILE [--previous FILE] [--alpha A]\n"
	"                                prints how much of each domain to train on next (DDK). FILE: the teacher's\n"
	"                                scores; --items: lines with \"domain\"\n"
	"Options:\n"
	"  --ratio R        share of the items that is chosen [0.5]\n"
	"  --count N        how many instead\n"
	"  --items FILE     lines to copy when FILE holds scores; one for each of its lines\n"
	"  --seed S         of the sample that dsir and queries draw [0]\n"
	"  --top            no sample: those of the largest weight\n"
	"  --min-words N    dsir: shorter texts are never chosen [100]\n"
	"  --output FILE    default: stdout\n"
	"  --values FILE    also write what each item came to, a line each: {\"value\":..,\"chosen\":..}";

enum { OPT_REFERENCE = 256, OPT_TARGET, OPT_BAD, OPT_STUDENT, OPT_ITEMS, OPT_PREVIOUS, OPT_ALPHA, OPT_RATIO, OPT_COUNT, OPT_SEED, OPT_TOP,
       OPT_MIN_WORDS, OPT_OUTPUT, OPT_VALUES };

static const struct option options[] = {
	{"reference", required_argument, NULL, OPT_REFERENCE}, {"target", required_argument, NULL, OPT_TARGET},
	{"bad", required_argument, NULL, OPT_BAD}, {"student", required_argument, NULL, OPT_STUDENT},
	{"items", required_argument, NULL, OPT_ITEMS}, {"previous", required_argument, NULL, OPT_PREVIOUS},
	{"alpha", required_argument, NULL, OPT_ALPHA}, {"ratio", required_argument, NULL, OPT_RATIO},
	{"count", required_argument, NULL, OPT_COUNT}, {"seed", required_argument, NULL, OPT_SEED}, {"top", no_argument, NULL, OPT_TOP},
	{"min-words", required_argument, NULL, OPT_MIN_WORDS}, {"output", required_argument, NULL, OPT_OUTPUT},
	{"values", required_argument, NULL, OPT_VALUES}, {"help", no_argument, NULL, 'h'}, {0}};

typedef int values_fn(struct kdctl *k, const struct select_options *o, struct values *ret);

static const struct { const char *name; values_fn *values; } methods[] = {
	{"difference", values_difference}, {"dsir", values_dsir}, {"queries", values_queries}, {"domains", NULL},
};
#define N_METHODS (sizeof methods / sizeof *methods)

static int parse_whole(struct kdctl *k, const char *name, double min, uint64_t *ret)
{
	double v;
	if (!kdctl_number(optarg, min, 9007199254740992.0, &v) || v != floor(v))
		return kdctl_usage(k, "--%s %s: a whole number from %.0f on is expected", name, optarg, min);
	*ret = (uint64_t)v;
	return 0;
}

static int parse_share(struct kdctl *k, const char *name, double *ret)
{
	if (!kdctl_number(optarg, 1e-9, 1, ret))
		return kdctl_usage(k, "--%s %s: a number above 0 and at most 1 is expected", name, optarg);
	return 0;
}

static int parse_target(struct kdctl *k, struct select_options *o)
{
	const char **larger = reallocarray(o->targets, o->n_targets + 1, sizeof *larger);
	if (!larger)
		return kdctl_fail(k, "no memory");
	o->targets = larger;
	o->targets[o->n_targets++] = optarg;
	return 0;
}

static int parse_option(struct kdctl *k, int c, int argc, char **argv, struct select_options *o)
{
	switch (c) {
	case OPT_REFERENCE: o->reference_path = optarg; return 0;
	case OPT_TARGET: return parse_target(k, o);
	case OPT_BAD: return parse_whole(k, "bad", 0, &o->bad);
	case OPT_STUDENT: o->student_path = optarg; return 0;
	case OPT_ITEMS: o->items_path = optarg; return 0;
	case OPT_PREVIOUS: o->previous_path = optarg; return 0;
	case OPT_ALPHA: return parse_share(k, "alpha", &o->alpha);
	case OPT_RATIO: o->count = 0; return parse_share(k, "ratio", &o->ratio);
	case OPT_COUNT: return parse_whole(k, "count", 1, &o->count);
	case OPT_SEED: return parse_whole(k, "seed", 0, &o->seed);
	case OPT_TOP: o->top = true; return 0;
	case OPT_MIN_WORDS: return parse_whole(k, "min-words", 0, &o->min_words);
	case OPT_OUTPUT: o->output_path = optarg; return 0;
	case OPT_VALUES: o->values_path = optarg; return 0;
	default: return kdctl_bad_option(k, argc, argv);
	}
}

static int write_values(struct kdctl *k, const char *path, const struct values *values, const bool *chosen)
{
	FILE *f = fopen(path, "we");
	bool good = f != NULL;
	for (size_t i = 0; good && i < values->n; i++) {
		char number[32] = "null";
		if (isfinite(values->v[i]))
			snprintf(number, sizeof number, "%.17g", values->v[i]);
		good = fprintf(f, "{\"value\":%s,\"chosen\":%s}\n", number, chosen[i] ? "true" : "false") > 0;
	}
	if (f && fclose(f))
		good = false;
	return good ? 0 : kdctl_fail(k, "%s: cannot be written", path);
}

static void print_summary(const struct kdctl *k, size_t n, int64_t n_chosen)
{
	if (k->json)
		printf("{\"summary\":{\"items\":%zu,\"chosen\":%" PRId64 "}}\n", n, n_chosen);
	else
		printf("items    %zu\nchosen   %" PRId64 "\n", n, n_chosen);
}

static int choose(struct kdctl *k, const struct select_options *o, values_fn *values_of)
{
	struct values values = {0};
	int64_t n_chosen = 0;
	int status = values_of(k, o, &values);
	bool *chosen = status ? NULL : calloc(values.n, sizeof *chosen);
	if (!status && chosen)
		n_chosen = choice_largest(values.v, values.n, o->count ? o->count : (size_t)(o->ratio * (double)values.n), chosen);
	if (!status && (!chosen || n_chosen < 0))
		status = kdctl_fail(k, "no memory for %zu items", values.n);
	status = status ? status : lines_copy(k, o->items_path ? o->items_path : o->path, chosen, values.n, o->output_path);
	if (!status && o->values_path)
		status = write_values(k, o->values_path, &values, chosen);
	if (!status && o->output_path)
		print_summary(k, values.n, n_chosen);
	free(chosen);
	values_done(&values);
	return status;
}

static int run(struct kdctl *k, int argc, char **argv, struct select_options *o)
{
	size_t method = 0;
	for (int c; (c = getopt_long(argc, argv, ":", options, NULL)) != -1;) {
		int status = c == 'h' ? 0 : parse_option(k, c, argc, argv, o);
		if (c == 'h')
			puts(help);
		if (c == 'h' || status)
			return status;
	}
	if (optind + 2 != argc)
		return kdctl_usage(k, "a METHOD and a FILE are expected (kdctl select --help)");
	while (method < N_METHODS && strcmp(methods[method].name, argv[optind]) != 0)
		method++;
	if (method == N_METHODS)
		return kdctl_usage(k, "%s: difference, dsir, queries or domains is expected", argv[optind]);
	o->path = argv[optind + 1];
	return methods[method].values ? choose(k, o, methods[method].values) : select_domains(k, o);
}

int command_select(struct kdctl *k, int argc, char **argv)
{
	struct select_options o = {.ratio = 0.5, .alpha = 0.5, .min_words = 100};
	int status = run(k, argc, argv, &o);
	free(o.targets);
	return status;
}
