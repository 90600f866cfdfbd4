// SPDX-License-Identifier: Apache-2.0
// The command line of kdctl capture.
#include <stdlib.h>
#include <string.h>

#include "clients/kdctl/capture.h"
#include "clients/kdctl/score_options.h"

static const char help[] =
	"Usage: kdctl capture [OPTIONS] CORPUS... --store DIR\n"
	"Scores a corpus into a directory of records. Started again it asks only for what is missing.\n\n"
	"Input:\n"
	"  --format F           text, jsonl ({\"text\":\"...\"} or {\"tokens\":[..]}, perhaps with first, last,\n"
	"                       gather, spans), u16, u32, npy; by the first file's name, else text\n"
	"  --length N           texts and token files: tokens of one sequence [512]. Texts are packed as\n"
	"                       kdserved-worker packs its corpus\n"
	"  --lines, --jsonl     --format jsonl: a sequence for each line\n"
	"  --max-length N       of a line; longer ones are dealt with by --too-long [the server's limit]\n"
	"  --too-long refuse|cut                    [refuse]\n"
	"  --invalid-utf8 refuse|replace            in texts [refuse]\n"
	"  --specials           special tokens written in texts become their ids\n"
	QUESTION_HELP
	"Work:\n"
	"  --batch N            sequences of one request [8]\n"
	"  --in-flight N        requests under way [8]\n"
	"  --deadline MS        a request that takes longer is asked again\n"
	"  --patience SECONDS   how long a server that does not answer is waited for [600]\n"
	"  --no-store           the server neither looks in its own store nor adds to it\n"
	"Output:\n"
	"  --store DIR          append the records to this directory, made when missing\n"
	"  --server-side        no directory here: the server's own store keeps the answers\n"
	"  --durable            answers count when they are on the disk; else when the kernel has them\n"
	"  --manifest FILE      the account [DIR/manifest.json; with --server-side none]\n"
	"  --report SECONDS     between lines of progress where no bar can be shown [30]";

enum { OPT_FORMAT = OPT_OWN, OPT_LENGTH, OPT_LINES, OPT_MAX_LENGTH, OPT_TOO_LONG, OPT_INVALID_UTF8, OPT_SPECIALS, OPT_PATIENCE, OPT_STORE,
	OPT_SERVER_SIDE, OPT_MANIFEST, OPT_REPORT };

static const struct option options[] = {{"help", no_argument, NULL, 'h'}, QUESTION_OPTIONS, WORK_OPTIONS,
	{"format", required_argument, NULL, OPT_FORMAT}, {"length", required_argument, NULL, OPT_LENGTH},
	{"lines", no_argument, NULL, OPT_LINES}, {"jsonl", no_argument, NULL, OPT_LINES},
	{"max-length", required_argument, NULL, OPT_MAX_LENGTH}, {"too-long", required_argument, NULL, OPT_TOO_LONG},
	{"invalid-utf8", required_argument, NULL, OPT_INVALID_UTF8}, {"specials", no_argument, NULL, OPT_SPECIALS},
	{"patience", required_argument, NULL, OPT_PATIENCE}, {"store", required_argument, NULL, OPT_STORE},
	{"server-side", no_argument, NULL, OPT_SERVER_SIDE}, {"manifest", required_argument, NULL, OPT_MANIFEST},
	{"report", required_argument, NULL, OPT_REPORT}, {0}};

struct flags { bool server_side, length; };

static int parse_policies(struct kdctl *k, int c, struct capture_options *o)
{
	static const char *const lengths[] = {"refuse", "cut", NULL}, *const texts[] = {"refuse", "replace", NULL};
	int choice = 0, status;
	if (c == OPT_TOO_LONG) {
		status = parse_choice(k, "too-long", optarg, lengths, &choice);
		o->score.too_long = choice ? LONG_CUT : LONG_REFUSE;
		return status;
	}
	status = parse_choice(k, "invalid-utf8", optarg, texts, &choice);
	o->replace = choice == 1;
	return status;
}

static int parse_option(struct kdctl *k, int c, int argc, char **argv, struct capture_options *o, struct flags *f)
{
	switch (c) {
	case OPT_FORMAT: return parse_format(k, optarg, &o->score);
	case OPT_LINES: o->score.format = SOURCE_LINES; return 0;
	case OPT_LENGTH: f->length = true; return parse_u32(k, "length", optarg, 2, 1 << 20, &o->score.length);
	case OPT_MAX_LENGTH: return parse_u32(k, "max-length", optarg, 1, 1 << 20, &o->max_length);
	case OPT_TOO_LONG: case OPT_INVALID_UTF8: return parse_policies(k, c, o);
	case OPT_SPECIALS: k->specials = true; return 0;
	case OPT_PATIENCE: return parse_real(k, "patience", optarg, 0.001, 604800, &o->patience_s);
	case OPT_REPORT: return parse_real(k, "report", optarg, 0.01, 86400, &o->report_s);
	case OPT_STORE: o->store = optarg; return 0;
	case OPT_SERVER_SIDE: f->server_side = true; return 0;
	case OPT_MANIFEST: o->manifest = optarg; return 0;
	default: return score_option_parse(k, c, argc, argv, &o->score);
	}
}

// What goes together, and what follows from the rest.
static int check_whole(struct kdctl *k, struct capture_options *o, const struct flags *f)
{
	struct score_options *s = &o->score;
	if (!o->n_paths)
		return kdctl_usage(k, "at least one file of a CORPUS is expected (kdctl capture --help)");
	if (!o->store == !f->server_side)
		return kdctl_usage(k, "either --store DIR or --server-side is expected");
	if (f->server_side && s->flags & KD_NO_STORE)
		return kdctl_usage(k, "--server-side and --no-store exclude each other");
	for (size_t i = 0; i < o->n_paths; i++)
		if (strcmp(o->paths[i], "-") == 0)
			return kdctl_usage(k, "a CORPUS is made of files, which can be read again, not of standard input");
	s->path = o->paths[0];
	format_by_name(s);
	o->packed = s->format == SOURCE_TEXT;
	if (s->format == SOURCE_LINES && f->length)
		return kdctl_usage(k, "lines are not packed: --max-length bounds them, --length is for texts and token files");
	if (s->format != SOURCE_LINES && o->max_length)
		return kdctl_usage(k, "--max-length is for lines, --length for texts and token files");
	o->durable = !f->server_side && s->flags & KD_DURABLE;
	if (!f->server_side)
		s->flags &= ~KD_DURABLE;
	return score_options_finish(k, s);
}

int capture_options_parse(struct kdctl *k, int argc, char **argv, struct capture_options *o)
{
	struct flags f = {0};
	*o = (struct capture_options){.patience_s = 600, .report_s = 30};
	score_options_init(&o->score);
	o->score.too_long = LONG_REFUSE;
	o->score.tolerant = true;
	for (int c; (c = getopt_long(argc, argv, ":", options, NULL)) != -1;) {
		if (c == 'h') {
			puts(help);
			return -1;
		}
		int status = parse_option(k, c, argc, argv, o, &f);
		if (status)
			return status;
	}
	o->paths = argv + optind;
	o->n_paths = (size_t)(argc - optind);
	return check_whole(k, o, &f);
}

void capture_options_done(struct capture_options *o)
{
	score_options_done(&o->score);
}
