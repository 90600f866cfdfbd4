// SPDX-License-Identifier: Apache-2.0
// What is told while a capture runs and at its end. Only what is as safe as was asked for is ever told.
#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "clients/kdctl/capture.h"

void report_refusal(struct capture *c, const struct item *i)
{
	struct account *a = &c->account;
	const struct kd_error *e = &i->refusal;
	char place[400], why[sizeof e->field + sizeof e->message + 2];
	size_t n = 0;
	a->refused.n_sequences++;
	a->refused.n_tokens += i->n_tokens;
	while (n < a->n_codes && strcmp(a->codes[n].code, e->code) != 0)
		n++;
	if (n < MAX_REFUSED_CODES) {                   // there are fewer codes than that
		snprintf(a->codes[n].code, sizeof a->codes[n].code, "%s", e->code);
		a->codes[n].n++;
		a->n_codes += n == a->n_codes;
	}
	corpus_place(&c->corpus, i, place);
	snprintf(why, sizeof why, "%s%s%s", e->field, *e->field ? ": " : "", e->message);
	progress_stop(&c->progress);
	fprintf(stderr, "kdctl: capture: refused: %s: %s\n", place, why);
	if (json_array_size(a->told) < MAX_REFUSED_TOLD)
		json_array_append_new(a->told, json_pack("{s:s?, s:s?}", "where", place, "why", why));
}

static double tokens_per_second(const struct capture *c)
{
	return (double)c->account.answered.n_tokens / progress_seconds(&c->progress);
}

// By the bytes that are left, the tokens that a byte has come to, and the rate; negative = not known.
static double seconds_left(const struct capture *c)
{
	const struct account *a = &c->account;
	double rate = tokens_per_second(c);
	if (!a->read_to || rate <= 0)
		return -1;
	return (double)(c->corpus.n_bytes - a->read_to) * ((double)a->input.n_tokens / (double)a->read_to) / rate;
}

static void say_left(const struct capture *c, char *to, size_t size)
{
	double left = seconds_left(c);
	*to = '\0';
	if (left >= 0)
		snprintf(to, size, ", %.0f:%02.0f:%02.0f left", floor(left / 3600), floor(fmod(left, 3600) / 60), floor(fmod(left, 60)));
}

void report_bar(struct capture *c)
{
	const struct account *a = &c->account;
	char note[160], left[64];
	say_left(c, left, sizeof left);
	snprintf(note, sizeof note, "%" PRIu64 " sequences, %.0f tokens/s, %.1f MB%s",
		 a->answered.n_sequences + a->found.n_sequences + a->refused.n_sequences, tokens_per_second(c),
		 (double)(a->answered.n_bytes + a->found.n_bytes) / 1e6, left);
	progress_show(&c->progress, (double)a->read_to, (double)c->corpus.n_bytes, note);
}

static void print_progress(struct capture *c)
{
	const struct account *a = &c->account;
	char left[64];
	if (c->k->json) {
		json_t *j = json_pack("{s:{s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:f, s:f}}", "progress", "answered",
				      (json_int_t)a->answered.n_sequences, "from_store", (json_int_t)a->found.n_sequences, "refused",
				      (json_int_t)a->refused.n_sequences, "tokens", (json_int_t)a->answered.n_tokens, "record_bytes",
				      (json_int_t)a->answered.n_bytes + (json_int_t)a->found.n_bytes,
				      "corpus_bytes", (json_int_t)c->corpus.n_bytes,
				      "corpus_bytes_done", (json_int_t)a->read_to, "tokens_per_second", tokens_per_second(c),
				      "seconds_left", seconds_left(c));
		kdctl_print_json(j);
		json_decref(j);
		fflush(stdout);
		return;
	}
	if (c->progress.shown)
		return;
	say_left(c, left, sizeof left);
	fprintf(stderr, "kdctl: capture: %.1f %%: %" PRIu64 " answered, %" PRIu64 " from the store, %" PRIu64 " refused, %.0f tokens/s, "
		"%" PRIu64 " bytes%s\n", c->corpus.n_bytes ? 100 * (double)a->read_to / (double)c->corpus.n_bytes : 100,
		a->answered.n_sequences, a->found.n_sequences, a->refused.n_sequences, tokens_per_second(c),
		a->answered.n_bytes + a->found.n_bytes, left);
}

int report_due(struct capture *c)
{
	double now = progress_seconds(&c->progress);
	if (now - c->reported_s < c->options->report_s)
		return 0;
	c->reported_s = now;
	int status = c->keep ? keep_wait(c->keep) : 0;
	if (!status)
		status = manifest_write(c, "running");
	if (!status)
		print_progress(c);
	return status;
}

static void print_tally(const char *name, const struct tally *t)
{
	printf("%-24s %" PRIu64 " sequences, %" PRIu64 " tokens, %" PRIu64 " positions, %" PRIu64 " bytes\n", name, t->n_sequences,
	       t->n_tokens, t->n_positions, t->n_bytes);
}

static void print_summary(const struct capture *c, const char *state)
{
	const struct account *a = &c->account;
	const struct corpus *s = &c->corpus;
	if (c->k->json) {
		json_t *j = json_pack("{s:o}", "summary", manifest_entry(c, state));
		kdctl_print_json(j);
		json_decref(j);
		return;
	}
	uint64_t positions = a->answered.n_positions + a->found.n_positions;
	printf("teacher                  %s\nstate                    %s\n", c->server.teacher, state);
	printf("input                    %" PRIu64 " sequences, %" PRIu64 " tokens\n", a->input.n_sequences, a->input.n_tokens);
	print_tally("answered", &a->answered);
	print_tally("from the store", &a->found);
	printf("refused                  %" PRIu64 " sequences, %" PRIu64 " tokens\n", a->refused.n_sequences, a->refused.n_tokens);
	if (s->n_left_over)
		printf("left over                %" PRIu64 " tokens that fill no sequence\n", s->n_left_over);
	if (s->n_empty)
		printf("empty lines              %" PRIu64 "\n", s->n_empty);
	if (s->n_cut)
		printf("cut                      %" PRIu64 " sequences, of %" PRIu64 " tokens\n", s->n_cut, s->n_cut_tokens);
	if (a->n_bad_rows)
		printf("rows not finite          %" PRIu64 "\n", a->n_bad_rows);
	if (positions)
		printf("bytes/position           %.1f\n", (double)(a->answered.n_bytes + a->found.n_bytes) / (double)positions);
	printf("tokens/s                 %.1f\n", tokens_per_second(c));
}

int report_end(struct capture *c, const char *state)
{
	progress_stop(&c->progress);
	int status = c->keep ? keep_wait(c->keep) : 0;
	if (!status)
		status = manifest_write(c, state);
	if (!status)
		print_summary(c, state);
	return status;
}
