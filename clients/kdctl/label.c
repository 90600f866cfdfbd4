// SPDX-License-Identifier: Apache-2.0
// kdctl label: the teacher answers prompts, and the answers become a corpus (SeqKD). Draws are a function of seed, sample and position, and
// of nothing else: what comes out depends neither on how prompts were sent together nor on how often the work was interrupted.
#include "clients/kdctl/label.h"

#include <getopt.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/buffer.h"
#include "daemon/jansson.h"

#define LABEL_BATCH 16
#define LABEL_MAX_LINE_TOKENS (1u << 20)

static const char help[] =
	"Usage: kdctl label PROMPTS --output FILE [OPTIONS]\n"
	"Lets the teacher answer every prompt (a line of text, or of JSON in a .jsonl file) and writes\n"
	"one line of JSON for each answer: a corpus for corpus-prompt = prompt, corpus-field = response.\n\n"
	"  --field NAME         member of a line of JSON that is the prompt [prompt]\n"
	"  --tokens N           at most this many new tokens [256]\n"
	"  --samples N          answers to each prompt [1]\n"
	"  --temperature T      0 = always the likeliest token [1]\n"
	"  --top-k K            draw from the K likeliest; 0 = from all [0]\n"
	"  --top-p P            from the fewest likeliest with this probability together [1]\n"
	"  --min-p P            from those at least this many times as likely as the likeliest [0]\n"
	"  --seed S             of the draws [1]\n"
	"  --specials           special tokens written in the prompts become their ids\n"
	"  --batch N            prompts asked for together [16]\n"
	"  --resume             go on where FILE ends";

struct answer { struct buffer text; double logprob; uint64_t n_tokens; int finish; };

struct batch {
	struct label *label;
	uint32_t n;
	char **texts;                        // (n) prompts
	struct kd_prompt *prompts;           // (n)
	struct answer *answers;              // (n samples)
	uint64_t *n_done;                    // tokens of the whole run, for the bar
};

static bool read_number(struct label *l, int c)
{
	double x = 0;
	struct kd_generation *a = &l->ask;
	static const struct { char option; double min, max; } ranges[] = {
		{'n', 1, 1 << 20}, {'N', 1, 1024}, {'k', 0, 1 << 24}, {'t', 0, 10000}, {'P', 0, 1}, {'m', 0, 1}, {'s', 0, 0x1p53},
		{'b', 1, 1024}};
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
	case 'b': l->batch = (uint32_t)x; break;
	default: l->seed = (uint64_t)x; break;
	}
	return true;
}

static int parse_arguments(struct label *l, int argc, char **argv)
{
	static const struct option options[] = {{"help", no_argument, NULL, 'h'}, {"output", required_argument, NULL, 'o'},
		{"field", required_argument, NULL, 'f'}, {"tokens", required_argument, NULL, 'n'},
		{"samples", required_argument, NULL, 'N'}, {"temperature", required_argument, NULL, 't'},
		{"top-k", required_argument, NULL, 'k'}, {"top-p", required_argument, NULL, 'P'}, {"min-p", required_argument, NULL, 'm'},
		{"seed", required_argument, NULL, 's'}, {"specials", no_argument, NULL, 'S'}, {"batch", required_argument, NULL, 'b'},
		{"resume", no_argument, NULL, 'r'}, {0}};
	int status = 0;
	for (int c; !status && (c = getopt_long(argc, argv, ":", options, NULL)) != -1;) {
		switch (c) {
		case 'h': puts(help); return -1;
		case 'o': l->output = optarg; break;
		case 'f': l->field = optarg; break;
		case 'S': l->k->specials = true; break;
		case 'r': l->resume = true; break;
		case ':': case '?': return kdctl_bad_option(l->k, argc, argv);
		default:
			if (!read_number(l, c))
				status = kdctl_usage(l->k, "%s: not a number in its range (kdctl label --help)", optarg);
		}
	}
	if (!status && (optind + 1 != argc || !l->output))
		status = kdctl_usage(l->k, "PROMPTS and --output FILE are expected");
	l->path = status ? NULL : argv[optind];
	return status;
}

json_t *label_sampler(const struct label *l)
{
	const struct kd_generation *a = &l->ask;
	return json_pack("{s:f, s:I, s:f, s:f, s:I, s:I, s:I, s:b}", "temperature", (double)a->temperature, "top_k", (json_int_t)a->top_k,
			 "top_p", (double)a->top_p, "min_p", (double)a->min_p, "max_tokens", (json_int_t)a->max_tokens,
			 "samples", (json_int_t)a->n, "seed", (json_int_t)l->seed, "specials", l->k->specials);
}

struct content_id label_prompt_id(const char *prompt)
{
	return content_id_of(prompt, strlen(prompt));
}

// ---- one request

static void batch_done(struct batch *b)
{
	for (uint32_t i = 0; i < b->label->batch; i++) {
		free(b->texts[i]);
		free((uint32_t *)(uintptr_t)b->prompts[i].tokens);
		b->texts[i] = NULL;
		b->prompts[i] = (struct kd_prompt){0};
	}
	for (uint32_t i = 0; i < b->label->batch * b->label->ask.n; i++) {
		buffer_done(&b->answers[i].text);
		b->answers[i] = (struct answer){0};
	}
	b->n = 0;
}

// As many prompts as go together; -1 when there are no more.
static int batch_fill(struct batch *b)
{
	struct label *l = b->label;
	int status = 0;
	while (!status && b->n < l->batch && (status = label_next(l, &b->texts[b->n])) == 0) {
		uint32_t *tokens = NULL;
		size_t n = 0;
		status = text_tokenize(l->k, b->texts[b->n], strlen(b->texts[b->n]), &tokens, &n);
		b->prompts[b->n] = (struct kd_prompt){tokens, (uint32_t)n};
		if (!status && (n == 0 || n > LABEL_MAX_LINE_TOKENS))
			status = kdctl_fail(l->k, "%s:%" PRIu64 ": %s", l->path, l->number, n ? "too long" : "the prompt has no tokens");
		b->n += !status;
	}
	return status < 0 && b->n ? 0 : status;
}

static int take(void *arg, const struct kd_piece *p)
{
	struct batch *b = arg;
	struct answer *a = &b->answers[p->index];
	for (uint32_t i = 0; i < p->n; i++)
		a->logprob += (double)p->logprobs[i];
	a->n_tokens += p->n;
	*b->n_done += p->n;
	buffer_add(&a->text, p->text, p->text_bytes);
	if (p->last)
		a->finish = p->finish;
	return a->text.failed;
}

// JSON's readers do not take a NUL in a text: it is written as what cannot be said, U+FFFD.
static void text_write(struct buffer *to, const struct buffer *text)
{
	struct buffer clean = {0};
	for (size_t at = 0, n; at < text->n; at += n) {
		n = strnlen(text->data + at, text->n - at);
		buffer_add(&clean, text->data + at, n);
		if (at + n < text->n) {
			buffer_text(&clean, "\xef\xbf\xbd");
			n++;
		}
	}
	to->failed |= clean.failed;
	buffer_string(to, clean.data ? clean.data : "", clean.n);
	buffer_done(&clean);
}

static void line_write(const struct batch *b, uint32_t i, const char *sampler, struct buffer *to)
{
	const struct label *l = b->label;
	const struct answer *a = &b->answers[i];
	const char *prompt = b->texts[i / l->ask.n];
	struct content_id id = label_prompt_id(prompt);
	char hex[CONTENT_ID_HEX];
	content_id_to_hex(&id, hex);
	buffer_printf(to, "{\"item\":%" PRIu64 ",\"sample\":%" PRIu32 ",\"prompt\":", l->n_items + i / l->ask.n, i % l->ask.n);
	buffer_string(to, prompt, strlen(prompt));
	buffer_text(to, ",\"response\":");
	text_write(to, &a->text);
	buffer_printf(to, ",\"finish\":\"%s\",\"n_tokens\":%" PRIu64
		      ",\"logprob\":%.9g,\"prompt_id\":\"%s\",\"teacher\":\"%s\",\"sampler\":%s}\n",
		      a->finish == KD_FINISH_STOP ? "stop" : "length", a->n_tokens, a->logprob, hex, l->server->teacher, sampler);
}

static int batch_write(const struct batch *b)
{
	struct label *l = b->label;
	json_t *j = label_sampler(l);
	char *sampler = j ? jansson_dump(j, JSON_COMPACT) : NULL;
	struct buffer text = {0};
	for (uint32_t i = 0; sampler && i < b->n * l->ask.n; i++)
		line_write(b, i, sampler, &text);
	int status = !sampler || text.failed ? kdctl_fail(l->k, "out of memory") : 0;
	if (!status && (fwrite(text.data, 1, text.n, l->out) != text.n || fflush(l->out)))
		status = kdctl_fail(l->k, "cannot write to %s: %m", l->output);
	buffer_done(&text);
	free(sampler);
	json_decref(j);
	return status;
}

// ---- all of them

static int batch_ask(struct batch *b)
{
	struct label *l = b->label;
	struct kd_error err;
	l->ask.prompts = b->prompts;
	l->ask.n_prompts = b->n;
	l->ask.seed = &l->seed;
	if (kd_generate(l->k->client, &l->ask, take, b, &err))
		return kdctl_fail_with(l->k, err.field, err.message);
	return batch_write(b);
}

static int label_all(struct label *l)
{
	uint64_t n_tokens = 0;
	struct batch b = {.label = l, .texts = calloc(l->batch, sizeof *b.texts), .prompts = calloc(l->batch, sizeof *b.prompts),
			  .answers = calloc((size_t)l->batch * l->ask.n, sizeof *b.answers), .n_done = &n_tokens};
	struct progress progress = progress_start();
	int status = b.texts && b.prompts && b.answers ? 0 : kdctl_fail(l->k, "out of memory");
	while (!status && (status = batch_fill(&b)) == 0) {
		char note[96];
		status = batch_ask(&b);
		l->n_items += b.n;
		snprintf(note, sizeof note, "%" PRIu64 " prompts, %.1f tokens/s", l->n_items,
			(double)n_tokens / progress_seconds(&progress));
		progress_show(&progress, 0, 1, note);
		batch_done(&b);
	}
	if (b.texts && b.prompts && b.answers)
		batch_done(&b);
	progress_stop(&progress);
	free(b.texts), free(b.prompts), free(b.answers);
	if (status >= 0)
		return status;
	if (fsync(fileno(l->out)) < 0)
		return kdctl_fail(l->k, "cannot write to %s: %m", l->output);
	if (l->k->json)
		printf("{\"prompts\":%" PRIu64 ",\"kept\":%" PRIu64 ",\"tokens\":%" PRIu64 "}\n", l->n_items, l->n_kept, n_tokens);
	else
		printf("%" PRIu64 " prompts answered in %s (%" PRIu64 " of them before), %" PRIu64 " tokens\n", l->n_items, l->output,
		       l->n_kept, n_tokens);
	return 0;
}

int command_label(struct kdctl *k, int argc, char **argv)
{
	struct label l = {.k = k, .field = "prompt", .batch = LABEL_BATCH, .seed = 1, .ask = KD_GENERATION_INIT};
	l.ask.max_tokens = 256;
	int status = parse_arguments(&l, argc, argv);
	if (status)
		return status < 0 ? 0 : status;
	l.in = fopen(l.path, "re");
	status = l.in ? kdctl_connect(k) : kdctl_fail(k, "cannot open %s: %m", l.path);
	if (!status) {
		l.server = kd_server(k->client);
		status = label_open(&l);
	}
	if (!status)
		status = label_all(&l);
	if (l.in)
		fclose(l.in);
	if (l.out && fclose(l.out) && !status)
		status = kdctl_fail(k, "cannot write to %s: %m", l.output);
	free(l.line);
	return status;
}
