// SPDX-License-Identifier: Apache-2.0
// kdctl label --resume: first byte how many samples (1, 2) and whether prompts are lines of JSON (4); then the prompts up to a NUL, then
// what an earlier one wrote, in which byte 1 and two more stand for a right line (of that prompt, that sample) and byte 2 and one more for
// its members. What is gone on with is a beginning of that file, of whole items; what is refused stays as it was.
#include <stdlib.h>
#include <string.h>

#include "clients/kdctl/label.h"
#include "common/buffer.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/quiet.h"
#include "tests/fuzz/scratch.h"

#define TEACHER "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"
#define MAX_PROMPTS 8

static const struct kd_server server = {.teacher = TEACHER};

static void require(bool holds)
{
	if (!holds)
		abort();
}

struct scene {
	struct kdctl k;
	struct label l;
	char prompts_path[SCRATCH_PATH], output_path[SCRATCH_PATH];
	char ids[MAX_PROMPTS][CONTENT_ID_HEX];
	unsigned n_prompts;
	char *sampler;
};

static void label_begin(struct scene *s, uint8_t how)
{
	s->l = (struct label){.k = &s->k, .path = s->prompts_path, .output = s->output_path, .field = "prompt", .resume = true, .batch = 16,
			      .seed = 1, .ask = KD_GENERATION_INIT, .server = &server};
	s->l.ask.max_tokens = 256;
	s->l.ask.n = 1 + (how & 3);
	require((s->l.in = fopen(s->prompts_path, "re")) != NULL);
}

static void label_end(struct label *l)
{
	fclose(l->in);
	if (l->out)
		fclose(l->out);
	free(l->line);
}

static void prompts_read(struct scene *s)
{
	char *prompt = NULL;
	while (s->n_prompts < MAX_PROMPTS && label_next(&s->l, &prompt) == 0) {
		struct content_id id = label_prompt_id(prompt);
		content_id_to_hex(&id, s->ids[s->n_prompts++]);
		free(prompt);
	}
}

static void members_write(const struct scene *s, uint8_t of, struct buffer *b)
{
	buffer_printf(b, "\"prompt_id\":\"%s\",\"teacher\":\"" TEACHER "\",\"sampler\":%s", s->n_prompts ? s->ids[of % s->n_prompts] : "",
		      s->sampler);
}

static void output_make(const struct scene *s, const uint8_t *at, const uint8_t *end, struct buffer *b)
{
	while (at < end) {
		if (*at == 1 && end - at >= 3) {
			buffer_printf(b, "{\"item\":%u,\"sample\":%u,", at[1], at[2]);
			members_write(s, at[1], b);
			buffer_text(b, "}\n");
			at += 3;
		} else if (*at == 2 && end - at >= 2) {
			members_write(s, at[1], b);
			at += 2;
		} else {
			buffer_add(b, (const char *)at++, 1);
		}
	}
	require(!b->failed);
}

// What is there now is what was there up to some place.
static size_t output_check(const struct label *l, const struct buffer *before, bool refused)
{
	size_t n, n_lines = 0;
	char *now = scratch_read("output.jsonl", &n);
	require(now && n <= before->n && (n == 0 || memcmp(now, before->data, n) == 0));
	require(!refused || n == before->n);
	for (size_t i = 0; i < n; i++)
		n_lines += now[i] == '\n';
	require(refused || ((n == 0 || now[n - 1] == '\n') && n_lines == l->n_kept * l->ask.n));
	free(now);
	return n;
}

static void try_resume(struct scene *s, uint8_t how, const struct buffer *before)
{
	label_begin(s, how);
	quiet_n_failures = 0;
	bool refused = label_open(&s->l) != 0;
	require(refused == (quiet_n_failures > 0) && refused == !s->l.out);
	size_t n = output_check(&s->l, before, refused);
	uint64_t n_kept = s->l.n_kept;
	label_end(&s->l);
	if (refused)
		return;
	label_begin(s, how);
	require(label_open(&s->l) == 0 && s->l.n_kept == n_kept && output_check(&s->l, before, false) == n);
	label_end(&s->l);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct scene s = {.k = {.command = "label"}};
	struct buffer output = {0};
	if (!size)
		return 0;
	const uint8_t *at = data + 1, *end = data + size, *prompts = at;
	size_t n = quiet_part(&at, end);
	scratch_write(data[0] & 4 ? "prompts.jsonl" : "prompts.txt", prompts, n, s.prompts_path);
	label_begin(&s, data[0]);
	json_t *sampler = label_sampler(&s.l);
	require((s.sampler = json_dumps(sampler, JSON_COMPACT)) != NULL);
	prompts_read(&s);
	label_end(&s.l);
	output_make(&s, at, end, &output);
	scratch_write("output.jsonl", output.data ? output.data : "", output.n, s.output_path);
	try_resume(&s, data[0], &output);
	buffer_done(&output);
	free(s.sampler);
	json_decref(sampler);
	return 0;
}
