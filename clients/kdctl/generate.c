// SPDX-License-Identifier: Apache-2.0
// kdctl generate: asks for the last row of a growing sequence and draws the next token here.
#include <getopt.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "clients/kdctl/kdctl.h"

struct generation {
	struct kdctl *k;
	const char *prompt;
	double temperature;              // 0 = always the likeliest
	uint32_t top_k, n_wanted;
	uint64_t random;                 // state of the generator
	int64_t eos;                     // negative = none
	uint32_t *tokens;                // prompt and what was drawn
	size_t n_prompt, n;
};

static const char help[] =
	"Usage: kdctl generate --prompt TEXT [OPTIONS]\n"
	"Lets the teacher continue TEXT (- = stdin) and prints the continuation.\n\n"
	"  --tokens N           at most this many new tokens [64]\n"
	"  --temperature T      0 = always the likeliest token [0.8]\n"
	"  --top-k K            draw from the K likeliest [40]\n"
	"  --seed S             of the draws [1]";

static int parse_arguments(struct generation *g, int argc, char **argv)
{
	static const struct option options[] = {{"help", no_argument, NULL, 'h'}, {"prompt", required_argument, NULL, 'p'},
		{"tokens", required_argument, NULL, 'n'}, {"temperature", required_argument, NULL, 't'},
		{"top-k", required_argument, NULL, 'k'}, {"seed", required_argument, NULL, 's'}, {0}};
	double n = g->n_wanted, k = g->top_k, seed = 1;
	for (int c; (c = getopt_long(argc, argv, ":", options, NULL)) != -1;) {
		bool good = true;
		switch (c) {
		case 'h': puts(help); return -1;
		case 'p': g->prompt = optarg; break;
		case 'n': good = kdctl_number(optarg, 1, 1 << 20, &n); break;
		case 't': good = kdctl_number(optarg, 0, 1000, &g->temperature); break;
		case 'k': good = kdctl_number(optarg, 1, 1 << 24, &k); break;
		case 's': good = kdctl_number(optarg, 0, 0x1p53, &seed); break;
		default: return kdctl_bad_option(g->k, argc, argv);
		}
		if (!good)
			return kdctl_usage(g->k, "%s: not a number in its range (kdctl generate --help)", optarg);
	}
	if (!g->prompt || optind != argc)
		return kdctl_usage(g->k, "--prompt TEXT is expected, and no other argument");
	g->n_wanted = (uint32_t)n;
	g->top_k = (uint32_t)k;
	g->random = (uint64_t)seed;
	return 0;
}

// splitmix64: a uniform number in [0, 1).
static double uniform(uint64_t *state)
{
	uint64_t z = *state += UINT64_C(0x9e3779b97f4a7c15);
	z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
	z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
	return (double)((z ^ z >> 31) >> 11) * 0x1p-53;
}

// Among the top-k, renormalised over them.
static uint32_t draw(struct generation *g, const struct kd_rows *rows)
{
	if (g->temperature <= 0)
		return rows->ids[0];
	double sum = 0;
	for (uint32_t i = 0; i < rows->top_k; i++)
		sum += exp(((double)rows->logits[i] - (double)rows->max_logit[0]) / g->temperature);
	double left = uniform(&g->random) * sum;
	for (uint32_t i = 0; i + 1 < rows->top_k; i++) {
		left -= exp(((double)rows->logits[i] - (double)rows->max_logit[0]) / g->temperature);
		if (left < 0)
			return rows->ids[i];
	}
	return rows->ids[rows->top_k - 1];
}

static int next_token(struct generation *g, uint32_t *ret_token)
{
	const struct kd_server *server = kd_server(g->k->client);
	size_t first = g->n > server->max_tokens ? g->n - server->max_tokens : 0;    // the teacher sees what fits
	struct kd_sequence sequence = {.tokens = g->tokens + first, .n_tokens = (uint32_t)(g->n - first)};
	struct kd_query query = {.size = sizeof query, .top_k = g->top_k, .first = -1, .last = -1};
	struct kd_request request = {.size = sizeof request, .query = &query, .sequences = &sequence, .n_sequences = 1,
		.flags = KD_NO_STORE};
	struct kd_answer *answer;
	const struct kd_rows *rows;
	struct kd_error err;
	if (kd_score(g->k->client, &request, &answer, &err))
		return kdctl_fail_with(g->k, err.field, err.message);
	int status = 0;
	if (kd_answer_rows(answer, &rows, &err))
		status = kdctl_fail_with(g->k, err.field, err.message);
	else if (rows->status[0])
		status = kdctl_fail(g->k, "the teacher gave no finite numbers after %zu tokens", g->n);
	else
		*ret_token = draw(g, rows);
	kd_answer_free(answer);
	return status;
}

static int generate(struct generation *g)
{
	struct progress p = progress_start();
	int status = 0;
	for (uint32_t i = 0; !status && i < g->n_wanted; i++) {
		uint32_t token = 0;
		status = next_token(g, &token);
		if (status || (int64_t)token == g->eos)
			break;
		g->tokens[g->n++] = token;
		char note[64];
		snprintf(note, sizeof note, "%" PRIu32 " tokens, %.1f/s", i + 1, (i + 1) / progress_seconds(&p));
		progress_show(&p, i + 1, g->n_wanted, note);
	}
	progress_stop(&p);
	return status;
}

static int print_result(struct generation *g)
{
	json_t *ids = json_array();
	for (size_t i = g->n_prompt; i < g->n; i++)
		json_array_append_new(ids, json_integer(g->tokens[i]));
	json_t *reply = kdctl_call(g->k, "POST", "/v1/detokenize", json_pack("{s:O}", "tokens", ids));
	const char *text = json_string_value(json_object_get(reply, "text"));
	int status = !reply ? 1 : text ? 0 : kdctl_fail(g->k, "the server's reply has no text");
	if (!status && g->k->json) {
		json_t *j = json_pack("{s:s, s:O, s:O}", "prompt", g->prompt, "tokens", ids, "text", json_object_get(reply, "text"));
		kdctl_print_json(j);
		json_decref(j);
	} else if (!status) {
		puts(text);
	}
	json_decref(reply);
	json_decref(ids);
	return status;
}

// The prompt's tokens with room for the rest, and the token that ends a text.
static int prepare(struct generation *g)
{
	size_t n = strlen(g->prompt);
	json_t *model = kdctl_call(g->k, "GET", "/v1/model", NULL);
	if (!model)
		return 1;
	const json_t *eos = json_object_get(model, "eos_id");
	g->eos = json_is_integer(eos) ? json_integer_value(eos) : -1;
	json_decref(model);
	if (text_tokenize(g->k, g->prompt, n, &g->tokens, &g->n_prompt))
		return 1;
	if (!g->n_prompt)
		return kdctl_fail(g->k, "the prompt is empty");
	uint32_t *larger = realloc(g->tokens, (g->n_prompt + g->n_wanted) * sizeof *larger);
	if (!larger)
		return kdctl_fail(g->k, "no memory for %" PRIu32 " tokens", g->n_wanted);
	g->tokens = larger;
	g->n = g->n_prompt;
	const struct kd_server *server = kd_server(g->k->client);
	uint32_t most = server->max_top_k < server->vocab_size ? server->max_top_k : server->vocab_size;
	g->top_k = g->temperature <= 0 ? 1 : g->top_k < most ? g->top_k : most;
	return 0;
}

int command_generate(struct kdctl *k, int argc, char **argv)
{
	struct generation g = {.k = k, .temperature = 0.8, .top_k = 40, .n_wanted = 64};
	char *text = NULL;
	size_t n;
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
		status = prepare(&g);
	if (!status)
		status = generate(&g);
	if (!status)
		status = print_result(&g);
	free(g.tokens);
	free(text);
	return status;
}
