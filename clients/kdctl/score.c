// SPDX-License-Identifier: Apache-2.0
// kdctl score: a file through the teacher, many requests ahead, and the sum of what came back.
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "clients/kdctl/flow.h"

#define ANSWER_OVERHEAD 40       // bytes of frame and answer header before a record
#define RECORD_TEACHER_BYTES 32  // a record travels without its question (kdserved-record.5, Short form): these,
#define RECORD_QUERY_AT 92       // the query, whose size is here, and the tokens

struct totals {
	uint64_t n_resumed, n_sequences, n_tokens, n_rows, n_cached, n_bad_rows, n_bytes, n_wire_bytes;
	uint64_t n_scored;               // tokens that went into
	double nll;                      // in nats
};

struct scoring {
	struct kdctl *k;
	struct score_options *options;
	struct source source;
	struct sink *sink;
	struct flow flow;
	uint64_t read_to, resumed_to;    // bytes of the input whose answers are written, and of those that were there before
	struct progress progress;
	struct totals totals;
};

// The next sequences that the output does not hold yet; *ret NULL at the end.
static int next_item(void *arg, struct item **ret)
{
	struct scoring *s = arg;
	for (;;) {
		bool there = false;
		int status = source_next(&s->source, ret);
		if (!status && *ret && s->options->resume && (status = sink_resume(s->sink, *ret, &there)))
			*ret = item_free(*ret);
		if (status || !there)
			return status;
		s->totals.n_resumed++;
		s->read_to = s->resumed_to = (*ret)->end;
		item_free(*ret);
	}
}

// ---- answers

// Negative log-likelihood of the tokens that followed: from their logits, else from the spans.
static void add_nll(struct totals *t, const struct kd_rows *rows)
{
	uint32_t at_one = 0;
	while (at_one + 1 < rows->n_temperatures && rows->temperatures[at_one] != 1)
		at_one++;
	for (uint32_t i = 0; rows->own_logit && i < rows->n_rows; i++) {
		if (rows->status[i] != 0 || isnan(rows->own_logit[i]))
			continue;
		t->nll += (double)rows->lse[(size_t)i * rows->n_temperatures + at_one] - (double)rows->own_logit[i];
		t->n_scored++;
	}
	for (uint32_t i = 0; !rows->own_logit && i < rows->n_spans; i++) {
		if (isnan(rows->span_sums[i]))
			continue;
		t->nll -= (double)rows->span_sums[i];
		t->n_scored += rows->spans[i].end - rows->spans[i].begin;
	}
}

static int add_answer(void *arg, struct item *i)
{
	struct scoring *s = arg;
	struct totals *t = &s->totals;
	const struct kd_rows *rows;
	struct kd_error err;
	size_t n;
	if (kd_answer_rows(i->answer, &rows, &err))
		return kdctl_fail_with(s->k, err.field, err.message);
	const uint8_t *query = (const uint8_t *)kd_answer_record(i->answer, &n) + RECORD_QUERY_AT;
	t->n_wire_bytes += ANSWER_OVERHEAD + n - RECORD_TEACHER_BYTES - 4 * (uint64_t)i->n_tokens -
		(query[0] | (uint32_t)query[1] << 8 | (uint32_t)query[2] << 16 | (uint32_t)query[3] << 24);
	t->n_sequences++;
	t->n_tokens += i->n_tokens;
	t->n_rows += rows->n_rows;
	t->n_cached += kd_answer_cached(i->answer);
	t->n_bytes += n;
	for (uint32_t r = 0; rows->status && r < rows->n_rows; r++)
		t->n_bad_rows += rows->status[r] != 0;
	add_nll(t, rows);
	s->read_to = i->end;
	return sink_append(s->sink, i);
}

static void show_progress(struct scoring *s)
{
	char note[96];
	double seconds = progress_seconds(&s->progress), speed = (double)s->totals.n_tokens / seconds;
	uint64_t total = s->source.n_bytes;
	double done = (double)(s->read_to - s->resumed_to), left = done > 0 ? seconds * (double)(total - s->read_to) / done : 0;
	snprintf(note, sizeof note, "%" PRIu64 " sequences, %.0f tokens/s", s->totals.n_resumed + s->totals.n_sequences, speed);
	if (total && s->totals.n_sequences)
		snprintf(note + strlen(note), sizeof note - strlen(note), ", %.0f:%02.0f left", floor(left / 60), fmod(left, 60));
	progress_show(&s->progress, (double)s->read_to, (double)total, note);
}

static int score_all(struct scoring *s)
{
	int status = 0;
	while (!status && !s->flow.over) {
		uint64_t before = s->totals.n_sequences;
		status = flow_step(&s->flow);
		if (!status && s->totals.n_sequences != before)
			status = sink_flush(s->sink);
		show_progress(s);
	}
	progress_stop(&s->progress);
	if (!status && s->options->resume)
		status = sink_check_rest(s->sink);
	if (!status && !s->source.n_items)
		status = source_fail(&s->source, "there is nothing to score");
	return status;
}

static void print_summary(const struct scoring *s)
{
	const struct totals *t = &s->totals;
	double seconds = progress_seconds(&s->progress), perplexity = t->n_scored ? exp(t->nll / (double)t->n_scored) : NAN;
	double cached = t->n_sequences ? 100 * (double)t->n_cached / (double)t->n_sequences : 0;
	double bytes = t->n_rows ? (double)t->n_wire_bytes / (double)t->n_rows : 0;
	if (s->k->json) {
		json_t *j = json_pack("{s:s, s:I, s:I, s:I, s:I, s:I, s:I}", "teacher", kd_server(s->k->client)->teacher, "resumed",
				      (json_int_t)t->n_resumed, "sequences", (json_int_t)t->n_sequences, "tokens", (json_int_t)t->n_tokens,
				      "positions", (json_int_t)t->n_rows, "cached", (json_int_t)t->n_cached, "record_bytes",
				      (json_int_t)t->n_bytes);
		json_object_set_new(j, "empty", json_integer((json_int_t)s->source.n_empty));
		json_object_set_new(j, "rows_not_finite", json_integer((json_int_t)t->n_bad_rows));
		json_object_set_new(j, "seconds", json_real(seconds));
		json_object_set_new(j, "tokens_per_second", json_real((double)t->n_tokens / seconds));
		json_object_set_new(j, "wire_bytes_per_position", json_real(bytes));
		json_object_set_new(j, "cached_percent", json_real(cached));
		json_object_set_new(j, "scored_tokens", json_integer((json_int_t)t->n_scored));
		json_object_set_new(j, "nll", json_real(t->nll));
		json_object_set_new(j, "perplexity", t->n_scored ? json_real(perplexity) : json_null());
		j = json_pack("{s:o}", "summary", j);
		kdctl_print_json(j);
		json_decref(j);
		return;
	}
	printf("teacher                  %s\n", kd_server(s->k->client)->teacher);
	if (s->options->resume)
		printf("answered before          %" PRIu64 "\n", t->n_resumed);
	printf("sequences                %" PRIu64 "\ntokens                   %" PRIu64 "\npositions                %" PRIu64 "\n",
	       t->n_sequences, t->n_tokens, t->n_rows);
	if (s->source.n_empty)
		printf("empty lines              %" PRIu64 "\n", s->source.n_empty);
	if (t->n_scored)
		printf("perplexity               %.4f\n", perplexity);
	if (t->n_bad_rows)
		printf("rows not finite          %" PRIu64 "\n", t->n_bad_rows);
	printf("cached                   %" PRIu64 " (%.1f %%)\nrecord bytes             %" PRIu64 "\n", t->n_cached, cached, t->n_bytes);
	printf("wire bytes/position      %.1f\ntokens/s                 %.1f\n", bytes, (double)t->n_tokens / seconds);
}

static int score(struct kdctl *k, struct score_options *o)
{
	struct scoring s = {.k = k, .options = o};
	s.flow = (struct flow){.k = k, .options = o, .next = next_item, .take = add_answer, .arg = &s};
	flow_start(&s.flow);
	int status = source_open(k, o, &s.source);
	if (!status)
		status = sink_open(k, o, &s.sink);
	s.progress = progress_start();
	if (!status)
		status = score_all(&s);
	flow_done(&s.flow);
	int closed = sink_close(s.sink);
	status = status ? status : closed;
	if (!status)
		print_summary(&s);
	source_close(&s.source);
	return status;
}

int command_score(struct kdctl *k, int argc, char **argv)
{
	struct score_options o;
	int status = score_options_parse(k, argc, argv, &o);
	if (!status)
		status = kdctl_connect(k);
	if (!status)
		status = score(k, &o);
	score_options_done(&o);
	return status < 0 ? 0 : status;
}
