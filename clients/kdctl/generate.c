// SPDX-License-Identifier: Apache-2.0
// kdctl generate: the teacher goes on from a text; what it says is printed as it comes.
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "clients/kdctl/kdctl.h"
#include "common/buffer.h"

#define MAX_STOPS 16

struct sample { struct buffer tokens, logprobs, text; };

struct generation {
	struct kdctl *k;
	const char *prompt, *prefix;
	bool specials;
	struct kd_generation ask;
	uint64_t seed;
	const char *stops[MAX_STOPS];
	uint32_t *prompt_tokens, *prefix_tokens;
	struct sample *samples;          // (n) what has come of each
	uint64_t n_tokens;               // of all
	struct progress progress;
};

static const char help[] =
	"Usage: kdctl generate --prompt TEXT [OPTIONS]\n"
	"Lets the teacher continue TEXT (- = stdin) and prints the continuation as it comes.\n\n"
	"  --tokens N           at most this many new tokens [64]\n"
	"  --samples N          so many continuations, a line between them [1]\n"
	"  --temperature T      0 = always the likeliest token [0.8]\n"
	"  --top-k K            draw from the K likeliest; 0 = from all [40]\n"
	"  --top-p P            from the fewest likeliest with this probability together [1]\n"
	"  --min-p P            from those at least this many times as likely as the likeliest [0]\n"
	"  --typical-p P        from the most typical with this probability together [1]\n"
	"  --seed S             of the draws; without one each call differs\n"
	"  --stop TEXT          end before this text; may be given 16 times\n"
	"  --prefix TEXT        what every continuation begins with\n"
	"  --specials           special tokens written in the texts become their ids\n"
	"  --ignore-eos         the end of text ends nothing";

static int add_stop(struct generation *g, const char *text)
{
	if (g->ask.n_stops == MAX_STOPS)
		return kdctl_usage(g->k, "--stop: at most %d", MAX_STOPS);
	g->stops[g->ask.n_stops++] = text;
	return 0;
}

// One of the numbers; 'b' = a number that no option has.
static bool read_number(struct generation *g, int c)
{
	double x = 0;
	struct kd_generation *a = &g->ask;
	static const struct { char option; double min, max; } ranges[] = {
		{'n', 1, 1 << 20}, {'N', 1, 1024}, {'k', 0, 1 << 24}, {'t', 0, 10000}, {'P', 0, 1}, {'m', 0, 1}, {'y', 0, 1},
		{'s', 0, 0x1p53}};
	for (size_t i = 0; i < sizeof ranges / sizeof *ranges; i++)
		if (ranges[i].option == c && !kdctl_number(optarg, ranges[i].min, ranges[i].max, &x))
			return false;
	switch (c) {
	case 'n': a->max_tokens = (uint32_t)x; break;
	case 'N': a->n = (uint32_t)x; break;
	case 'k': a->top_k = (uint32_t)x; break;
	case 't': a->temperature = (float)x; break;
	case 'P': a->top_p = (float)x; break;
	case 'm': a->min_p = (float)x; break;
	case 'y': a->typical_p = (float)x; break;
	default: g->seed = (uint64_t)x; a->seed = &g->seed; break;
	}
	return true;
}

// "--temperature -1", or in one word.
static int bad_number(const struct kdctl *k, char **argv)
{
	bool apart = argv[optind - 1] == optarg;
	return kdctl_usage(k, "%s%s%s: not a number in its range (kdctl generate --help)", apart ? argv[optind - 2] : "", apart ? " " : "",
			   argv[optind - 1]);
}

static int parse_arguments(struct generation *g, int argc, char **argv)
{
	static const struct option options[] = {{"help", no_argument, NULL, 'h'}, {"prompt", required_argument, NULL, 'p'},
		{"tokens", required_argument, NULL, 'n'}, {"samples", required_argument, NULL, 'N'},
		{"temperature", required_argument, NULL, 't'}, {"top-k", required_argument, NULL, 'k'},
		{"top-p", required_argument, NULL, 'P'}, {"min-p", required_argument, NULL, 'm'},
		{"typical-p", required_argument, NULL, 'y'}, {"seed", required_argument, NULL, 's'}, {"stop", required_argument, NULL, 'e'},
		{"prefix", required_argument, NULL, 'x'}, {"specials", no_argument, NULL, 'S'},
		{"ignore-eos", no_argument, NULL, 'i'}, {0}};
	int status = 0;
	for (int c; !status && (c = getopt_long(argc, argv, ":", options, NULL)) != -1;) {
		switch (c) {
		case 'h': puts(help); return -1;
		case 'p': g->prompt = optarg; break;
		case 'x': g->prefix = optarg; break;
		case 'S': g->specials = true; break;
		case 'i': g->ask.ignore_eos = true; break;
		case 'e': status = add_stop(g, optarg); break;
		case ':': case '?': return kdctl_bad_option(g->k, argc, argv);
		default:
			if (!read_number(g, c))
				status = bad_number(g->k, argv);
		}
	}
	if (!status && (!g->prompt || optind != argc))
		status = kdctl_usage(g->k, "--prompt TEXT is expected, and no other argument");
	return status;
}

static int tokenize(struct generation *g, const char *text, bool whole, uint32_t **ret_tokens, uint32_t *ret_n)
{
	json_t *body = json_pack("{s:s, s:b, s:b}", "text", text, "specials", g->specials, "part", !whole);
	if (!body)
		return kdctl_fail(g->k, "the text is not UTF-8");
	json_t *reply = kdctl_call(g->k, "POST", "/v1/tokenize", body);
	struct id_list t = {0};
	int status = reply ? id_list_append_json(g->k, json_object_get(reply, "tokens"), &t) : 1;
	json_decref(reply);
	if (!status && !t.n)
		status = kdctl_fail(g->k, whole ? "the prompt is empty" : "the prefix is empty");
	*ret_tokens = t.ids;
	*ret_n = (uint32_t)t.n;
	return status;
}

static void add_numbers(struct sample *s, const struct kd_piece *p)
{
	for (uint32_t i = 0; i < p->n; i++) {
		buffer_printf(&s->tokens, s->tokens.n ? ",%" PRIu32 : "%" PRIu32, p->tokens[i]);
		if (s->logprobs.n)
			buffer_text(&s->logprobs, ",");
		buffer_float(&s->logprobs, p->logprobs[i]);
	}
}

static void print_json(const struct generation *g, const struct sample *s, const struct kd_piece *p)
{
	struct buffer b = {0};
	buffer_printf(&b, "{\"sample\":%" PRIu32 ",\"tokens\":[%s],\"text\":", p->index, s->tokens.data ? s->tokens.data : "");
	buffer_string(&b, s->text.data ? s->text.data : "", s->text.n);
	buffer_printf(&b, ",\"logprobs\":[%s],\"finish\":\"%s\"", s->logprobs.data ? s->logprobs.data : "",
		      p->finish == KD_FINISH_STOP ? "stop" : "length");
	if (p->stop >= 0) {
		buffer_text(&b, ",\"stop\":");
		buffer_string(&b, g->stops[p->stop], strlen(g->stops[p->stop]));
	}
	buffer_printf(&b, ",\"seed\":%" PRIu64 "}\n", p->seed);
	fwrite(b.data, 1, b.n, stdout);
	buffer_done(&b);
}

// One continuation goes out as it comes; of several each when it is complete.
static int take(void *arg, const struct kd_piece *p)
{
	struct generation *g = arg;
	struct sample *s = &g->samples[p->index];
	bool at_once = !g->k->json && g->ask.n == 1;
	g->n_tokens += p->n;
	add_numbers(s, p);
	buffer_add(&s->text, p->text, p->text_bytes);
	if (s->tokens.failed || s->logprobs.failed || s->text.failed)
		return 1;
	if (at_once)
		fwrite(p->text, 1, p->text_bytes, stdout);
	if (p->last && g->k->json) {
		print_json(g, s, p);
	} else if (p->last) {
		if (!at_once)
			fwrite(s->text.data, 1, s->text.n, stdout);
		puts(g->ask.n == 1 ? "" : "\n---");
	}
	if (!at_once) {
		char note[64];
		snprintf(note, sizeof note, "%" PRIu64 " tokens, %.1f/s", g->n_tokens,
			(double)g->n_tokens / progress_seconds(&g->progress));
		progress_show(&g->progress, (double)g->n_tokens, (double)g->ask.n * g->ask.max_tokens, note);
	}
	return fflush(stdout) ? 1 : 0;
}

static int generate(struct generation *g)
{
	struct kd_error err;
	struct kd_prompt prompt = {0};
	g->ask.prompts = &prompt;
	g->ask.n_prompts = 1;
	g->ask.stops = g->stops;
	int status = tokenize(g, g->prompt, true, &g->prompt_tokens, &prompt.n_tokens);
	if (!status && g->prefix)
		status = tokenize(g, g->prefix, false, &g->prefix_tokens, &g->ask.n_forced);
	prompt.tokens = g->prompt_tokens;
	g->ask.forced = g->prefix_tokens;
	g->samples = calloc(g->ask.n, sizeof *g->samples);
	if (!status && !g->samples)
		status = kdctl_fail(g->k, "no memory for %" PRIu32 " samples", g->ask.n);
	if (status)
		return status;
	g->progress = progress_start();
	if (kd_generate(g->k->client, &g->ask, take, g, &err))
		status = ferror(stdout) ? kdctl_fail(g->k, "cannot write to standard output")
			: kdctl_fail_with(g->k, err.field, err.message);
	progress_stop(&g->progress);
	return status;
}

int command_generate(struct kdctl *k, int argc, char **argv)
{
	struct generation g = {.k = k, .ask = KD_GENERATION_INIT};
	char *text = NULL;
	size_t n;
	g.ask.temperature = 0.8f;
	g.ask.top_k = 40;
	g.ask.max_tokens = 64;
	int status = parse_arguments(&g, argc, argv);
	if (status)
		return status < 0 ? 0 : status;
	if (strcmp(g.prompt, "-") == 0) {
		text = read_text_file(k, "-", &n);
		if (!text)
			return 1;
		g.prompt = text;
	}
	status = kdctl_connect(k);
	if (!status)
		status = generate(&g);
	for (uint32_t i = 0; g.samples && i < g.ask.n; i++) {
		buffer_done(&g.samples[i].tokens);
		buffer_done(&g.samples[i].logprobs);
		buffer_done(&g.samples[i].text);
	}
	free(g.samples);
	free(g.prompt_tokens);
	free(g.prefix_tokens);
	free(text);
	return status;
}
