// SPDX-License-Identifier: Apache-2.0
// The command line of kdctl score: the question, the input's form, where answers go.
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "clients/kdctl/score_options.h"

static const char help[] =
	"Usage: kdctl score [OPTIONS] FILE\n"
	"Scores a file (- = stdin) and sums up. Answers go to stdout as JSON lines with kdctl --json, or to a file.\n\n"
	"Input:\n"
	"  --format F           text, jsonl ({\"text\":\"...\"} or {\"tokens\":[..]}, perhaps with first, last,\n"
	"                       gather, spans), u16, u32, npy; by the file's name, else text\n"
	"  --lines              --format jsonl\n"
	"  --length N           tokens of one sequence [512]\n"
	QUESTION_HELP
	"Work:\n"
	"  --batch N            sequences of one request [8]\n"
	"  --in-flight N        requests under way [8]\n"
	"  --deadline MS        given up on after this\n"
	"  --no-store           neither look in the server's store nor add to it\n"
	"  --durable            wait until answers are on the server's disk\n"
	"Output:\n"
	"  --records FILE       the records, one after the other (kdserved-record(5))\n"
	"  --output FILE        JSON lines\n"
	"  --resume             go on after the last whole answer in that file\n"
	"  --overwrite          begin it anew";

// Options of score alone.
enum { OPT_FORMAT = OPT_OWN, OPT_LINES, OPT_LENGTH, OPT_RECORDS, OPT_OUTPUT, OPT_RESUME, OPT_OVERWRITE };

static const struct option options[] = {{"help", no_argument, NULL, 'h'}, QUESTION_OPTIONS, WORK_OPTIONS,
	{"format", required_argument, NULL, OPT_FORMAT}, {"lines", no_argument, NULL, OPT_LINES},
	{"length", required_argument, NULL, OPT_LENGTH}, {"records", required_argument, NULL, OPT_RECORDS},
	{"output", required_argument, NULL, OPT_OUTPUT}, {"resume", no_argument, NULL, OPT_RESUME},
	{"overwrite", no_argument, NULL, OPT_OVERWRITE}, {0}};

int parse_real(struct kdctl *k, const char *name, const char *text, double min, double max, double *ret)
{
	return kdctl_number(text, min, max, ret) ? 0 : kdctl_usage(k, "--%s %s: a number from %g to %g is expected", name, text, min, max);
}

static int parse_whole(struct kdctl *k, const char *name, const char *text, double min, double max, double *ret)
{
	if (!kdctl_number(text, min, max, ret) || *ret != floor(*ret))
		return kdctl_usage(k, "--%s %s: a whole number from %.0f to %.0f is expected", name, text, min, max);
	return 0;
}

int parse_u32(struct kdctl *k, const char *name, const char *text, double min, double max, uint32_t *ret)
{
	double v;
	int status = parse_whole(k, name, text, min, max, &v);
	if (!status)
		*ret = (uint32_t)v;
	return status;
}

static int parse_i32(struct kdctl *k, const char *name, const char *text, int32_t *ret)
{
	double v;
	int status = parse_whole(k, name, text, INT32_MIN, INT32_MAX, &v);
	if (!status)
		*ret = (int32_t)v;
	return status;
}

int parse_choice(struct kdctl *k, const char *name, const char *text, const char *const *choices, int *ret)
{
	char all[128] = "";
	for (int i = 0; choices[i]; i++) {
		if (strcmp(text, choices[i]) == 0) {
			*ret = i;
			return 0;
		}
		snprintf(all + strlen(all), sizeof all - strlen(all), "%s%s", !i ? "" : choices[i + 1] ? ", " : " or ", choices[i]);
	}
	return kdctl_usage(k, "--%s %s: %s is expected", name, text, all);
}

static int parse_temperatures(struct kdctl *k, const char *list, struct score_options *o)
{
	char *copy = strdup(list), *rest = copy;
	int status = copy ? 0 : kdctl_fail(k, "no memory");
	o->query.n_temperatures = 0;
	for (char *item; !status && (item = strsep(&rest, ","));) {
		double v;
		if (!kdctl_number(item, 1e-4, 1e6, &v) || o->query.n_temperatures == MAX_TEMPERATURES)
			status = kdctl_usage(k, "--temperatures %s: up to %d numbers from 0.0001 to 1000000 are expected", list,
					     MAX_TEMPERATURES);
		else
			o->temperatures[o->query.n_temperatures++] = (float)v;
	}
	free(copy);
	return status;
}

// Ids separated by commas or blanks; @FILE holds them.
static int parse_ids(struct kdctl *k, const char *name, const char *text, struct id_list *ret)
{
	size_t n;
	char *list = *text == '@' ? read_text_file(k, text + 1, &n) : strdup(text), *rest = list;
	int status = list ? 0 : 1;
	ret->n = 0;
	for (char *item; !status && (item = strsep(&rest, ", \t\r\n"));) {
		double v;
		if (!*item)
			continue;
		if (!kdctl_number(item, 0, UINT32_MAX, &v) || v != floor(v))
			status = kdctl_usage(k, "--%s %s: token ids separated by commas are expected", name, text);
		else if (!(status = id_list_reserve(k, ret, 1)))
			ret->ids[ret->n++] = (uint32_t)v;
	}
	free(list);
	if (!status && !ret->n)
		status = kdctl_usage(k, "--%s %s: there are no ids", name, text);
	return status;
}

// "hidden:12", "final", "q:3"
static int parse_feature(struct kdctl *k, const char *item, struct kd_feature *ret)
{
	static const char *const names[] = {"hidden", "final", "q", "k", "v"};
	size_t n = strcspn(item, ":");
	double layer = 0;
	for (size_t kind = 0; kind < sizeof names / sizeof *names; kind++) {
		if (strlen(names[kind]) != n || strncmp(item, names[kind], n) != 0)
			continue;
		if ((kind == KD_FINAL) == (item[n] == ':') ||
			(item[n] && (!kdctl_number(item + n + 1, 0, UINT16_MAX, &layer) || layer != floor(layer))))
			break;
		*ret = (struct kd_feature){(uint16_t)kind, (uint16_t)layer};
		return 0;
	}
	return kdctl_usage(k, "--features %s: hidden:LAYER, final, q:LAYER, k:LAYER or v:LAYER is expected", item);
}

static int parse_features(struct kdctl *k, const char *list, struct score_options *o)
{
	char *copy = strdup(list), *rest = copy;
	int status = copy ? 0 : kdctl_fail(k, "no memory");
	o->query.n_features = 0;
	for (char *item; !status && (item = strsep(&rest, ","));)
		status = o->query.n_features == MAX_FEATURES ? kdctl_usage(k, "--features: at most %d", MAX_FEATURES)
			: parse_feature(k, item, &o->features[o->query.n_features++]);
	free(copy);
	return status;
}

static int parse_draws(struct kdctl *k, int c, struct score_options *o)
{
	struct kd_draws *d = &o->query.draws;
	double v;
	int status = 0;
	switch (c) {
	case OPT_DRAWS: return parse_u32(k, "draws", optarg, 1, 1 << 24, &d->n);
	case OPT_DRAWS_TAIL: d->tail = true; return 0;
	case OPT_TAU:
		if (!(status = parse_real(k, "tau", optarg, 0.01, 100, &v)))
			d->tau = (float)v;
		return status;
	default:
		if (!(status = parse_whole(k, "seed", optarg, 0, 9007199254740992.0, &v)))
			d->seed = (uint64_t)v;
		return status;
	}
}

static int parse_formats(struct kdctl *k, int c, struct score_options *o)
{
	static const char *const values[] = {"f32", "f16", "u8", NULL}, *const feature_values[] = {"f32", "f16", "bf16", NULL},
		*const poolings[] = {"none", "mean", "last", NULL};
	int choice = 0, status;
	switch (c) {
	case OPT_VALUES: return parse_choice(k, "values", optarg, values, &o->query.values);
	case OPT_POOLING: return parse_choice(k, "pooling", optarg, poolings, &o->query.pooling);
	default:
		status = parse_choice(k, "feature-values", optarg, feature_values, &choice);
		o->query.feature_values = choice == 2 ? KD_BF16 : choice;
		return status;
	}
}

static int parse_question(struct kdctl *k, int c, struct score_options *o)
{
	struct kd_query *q = &o->query;
	double v;
	int status;
	switch (c) {
	case OPT_TOP_K: return parse_u32(k, "top-k", optarg, 0, 1 << 24, &q->top_k);
	case OPT_TOP_MASS:
		if (!(status = parse_real(k, "top-mass", optarg, 1e-6, 1, &v)))
			q->top_mass = (float)v;
		return status;
	case OPT_TEMPERATURES: return parse_temperatures(k, optarg, o);
	case OPT_NO_OWN: q->own = false; return 0;
	case OPT_ENTROPY: q->entropy = true; return 0;
	case OPT_MAX_PROB: q->max_prob = true; return 0;
	case OPT_ARGMAX: q->argmax = true; return 0;
	case OPT_SUM_SQUARES: q->sum_squares = true; return 0;
	case OPT_TAIL: q->tail = true; return 0;
	case OPT_DENSE: q->dense = true; return 0;
	case OPT_GATHER: return parse_ids(k, "gather", optarg, &o->gather);
	case OPT_KEEP: return parse_ids(k, "keep", optarg, &o->keep);
	case OPT_SUM: o->sum = true; return 0;
	case OPT_FEATURES: return parse_features(k, optarg, o);
	case OPT_FIRST: return parse_i32(k, "first", optarg, &q->first);
	case OPT_LAST: return parse_i32(k, "last", optarg, &q->last);
	case OPT_DRAWS: case OPT_TAU: case OPT_SEED: case OPT_DRAWS_TAIL: return parse_draws(k, c, o);
	default: return parse_formats(k, c, o);
	}
}

int parse_format(struct kdctl *k, const char *text, struct score_options *o)
{
	static const char *const formats[] = {"text", "jsonl", "u16", "u32", "npy", NULL};
	int choice = 0, status = parse_choice(k, "format", text, formats, &choice);
	if (!status)
		o->format = (enum source_format)(SOURCE_TEXT + choice);
	return status;
}

int score_option_parse(struct kdctl *k, int c, int argc, char **argv, struct score_options *o)
{
	switch (c) {
	case OPT_BATCH: return parse_u32(k, "batch", optarg, 1, 65536, &o->batch);
	case OPT_IN_FLIGHT: return parse_u32(k, "in-flight", optarg, 1, 65536, &o->in_flight);
	case OPT_DEADLINE: return parse_u32(k, "deadline", optarg, 1, UINT32_MAX, &o->deadline_ms);
	case OPT_NO_STORE: o->flags |= KD_NO_STORE; return 0;
	case OPT_DURABLE: o->flags |= KD_DURABLE; return 0;
	case ':': case '?': return kdctl_bad_option(k, argc, argv);
	default: return parse_question(k, c, o);
	}
}

static int parse_option(struct kdctl *k, int c, int argc, char **argv, struct score_options *o)
{
	switch (c) {
	case OPT_FORMAT: return parse_format(k, optarg, o);
	case OPT_LINES: o->format = SOURCE_LINES; return 0;
	case OPT_LENGTH: return parse_u32(k, "length", optarg, 1, 1 << 20, &o->length);
	case OPT_RECORDS: o->records_path = optarg; return 0;
	case OPT_OUTPUT: o->lines_path = optarg; return 0;
	case OPT_RESUME: o->resume = true; return 0;
	case OPT_OVERWRITE: o->overwrite = true; return 0;
	default: return score_option_parse(k, c, argc, argv, o);
	}
}

static bool has_suffix(const char *path, const char *suffix)
{
	size_t n = strlen(path), m = strlen(suffix);
	return n > m && strcmp(path + n - m, suffix) == 0;
}

void format_by_name(struct score_options *o)
{
	static const char *const suffixes[] = {".jsonl", ".u16", ".u32", ".npy"};
	for (int i = 0; i < 4 && !o->format; i++)
		if (has_suffix(o->path, suffixes[i]))
			o->format = (enum source_format)(SOURCE_LINES + i);
	if (!o->format)
		o->format = SOURCE_TEXT;
}

// What goes together, and what follows from the rest.
static int check_whole(struct kdctl *k, struct score_options *o)
{
	if (o->records_path && o->lines_path)
		return kdctl_usage(k, "--records and --output exclude each other");
	if (o->resume && !o->records_path && !o->lines_path)
		return kdctl_usage(k, "--resume needs --records or --output");
	if (o->resume && o->overwrite)
		return kdctl_usage(k, "--resume and --overwrite exclude each other");
	if (o->flags == (KD_NO_STORE | KD_DURABLE))
		return kdctl_usage(k, "--no-store and --durable exclude each other");
	format_by_name(o);
	return 0;
}

// Perplexity needs the lse at 1, whatever else was asked for.
static int add_temperature_one(struct kdctl *k, struct score_options *o)
{
	for (uint32_t i = 0; i < o->query.n_temperatures; i++)
		if (o->temperatures[i] == 1)
			return 0;
	if (!o->query.own)
		return 0;
	if (o->query.n_temperatures == MAX_TEMPERATURES)
		return kdctl_usage(k, "--temperatures: with 1, which is needed too, there are more than %d", MAX_TEMPERATURES);
	o->temperatures[o->query.n_temperatures++] = 1;
	return 0;
}

// The query's pointers, once nothing moves any more.
static void point(struct score_options *o)
{
	o->query.temperatures = o->temperatures;
	o->query.features = o->features;
	o->query.keep = o->keep.ids;
	o->query.n_keep = (uint32_t)o->keep.n;
	o->gather_offsets[1] = (uint32_t)o->gather.n;
	o->query.gather = (struct kd_lists){o->gather.n != 0, o->gather_offsets, o->gather.ids};
}

void score_options_init(struct score_options *o)
{
	*o = (struct score_options){.length = 512, .batch = 8, .in_flight = 8, .query = KD_QUERY_INIT};
	o->query.top_k = 64;
	o->query.own = true;
	o->query.values = KD_F16;
	o->query.feature_values = KD_BF16;
}

int score_options_finish(struct kdctl *k, struct score_options *o)
{
	int status = add_temperature_one(k, o);
	point(o);
	return status;
}

int score_options_parse(struct kdctl *k, int argc, char **argv, struct score_options *o)
{
	score_options_init(o);
	for (int c; (c = getopt_long(argc, argv, ":", options, NULL)) != -1;) {
		if (c == 'h') {
			puts(help);
			return -1;
		}
		int status = parse_option(k, c, argc, argv, o);
		if (status)
			return status;
	}
	if (optind + 1 != argc)
		return kdctl_usage(k, "one FILE is expected (kdctl score --help)");
	o->path = argv[optind];
	int status = check_whole(k, o);
	return status ? status : score_options_finish(k, o);
}

void score_options_done(struct score_options *o)
{
	id_list_done(&o->gather);
	id_list_done(&o->keep);
}
