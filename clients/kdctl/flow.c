// SPDX-License-Identifier: Apache-2.0
#include "clients/kdctl/flow.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/error.h"

#define AHEAD 2                  // requests read, asked or answered but not handed on yet, for each that may be in flight
#define POLL_MS 200              // how soon a wait notices that it should end
#define SILENCE_MS 600000        // scoring on a busy processor may be silent for minutes; a server that died closes its socket
#define PAUSE_MS 100             // before the first retry; doubled up to
#define PAUSE_MAX_MS 5000
#define TRIES 20                 // of one request, while others go well

// One request: a run of items.
struct chunk {
	struct chunk *next;
	struct item *items;
	struct item **asked;             // (n) of the request in flight: which item each of its sequences is
	uint32_t n, n_asked, n_tries;
	uint64_t id;                     // in flight, 0 = not
	bool done;
};

static uint64_t now_ms(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

static bool stopping(const struct flow *f)
{
	return f->stop && *f->stop;
}

static struct chunk *chunk_free(struct chunk *c)
{
	for (struct item *next; c && c->items; c->items = next) {
		next = c->items->next;
		item_free(c->items);
	}
	if (c)
		free(c->asked);
	free(c);
	return NULL;
}

void flow_start(struct flow *f)
{
	const struct kd_server *server = kd_server(f->k->client);
	f->end = &f->chunks;
	f->batch = f->options->batch < server->max_sequences ? f->options->batch : server->max_sequences;
	f->max_in_flight = f->options->in_flight < server->credits ? f->options->in_flight : server->credits;
	snprintf(f->teacher, sizeof f->teacher, "%s", server->teacher);
	f->good_ms = f->heard_ms = now_ms();
	f->pause_ms = PAUSE_MS;
}

void flow_done(struct flow *f)
{
	for (struct chunk *next; f->chunks; f->chunks = next) {
		next = f->chunks->next;
		chunk_free(f->chunks);
	}
}

// ---- reading ahead

static int read_chunk(struct flow *f, struct chunk **ret)
{
	struct chunk *c = calloc(1, sizeof *c);
	int status = 0;
	if (!c || !(c->asked = calloc(f->batch, sizeof *c->asked))) {
		chunk_free(c);
		return kdctl_fail(f->k, "no memory for a request of %" PRIu32 " sequences", f->batch);
	}
	struct item **end = &c->items, *i = NULL;
	while (!status && c->n < f->batch && !stopping(f)) {
		status = f->next(f->arg, &i);
		if (status || !i)
			break;
		*end = i;
		end = &i->next;
		c->n++;
	}
	if (status || !c->n)
		c = chunk_free(c);
	*ret = c;
	return status;
}

static int read_ahead(struct flow *f)
{
	struct chunk *c = NULL;
	while (f->n_chunks < AHEAD * f->max_in_flight && !stopping(f)) {
		int status = read_chunk(f, &c);
		if (status || !c)
			return status;
		*f->end = c;
		f->end = &c->next;
		f->n_chunks++;
	}
	return 0;
}

// ---- what goes wrong

// Whether asking the same again can bring another answer.
static bool worth_repeating(const struct kd_error *e)
{
	switch (error_from_name(e->code)) {
	case ERROR_INVALID: case ERROR_UNSUPPORTED: case ERROR_TOO_LARGE: case ERROR_CONFLICT: case ERROR_UNAUTHORIZED:
	case ERROR_NOT_FINITE:
		return false;
	default:
		return true;
	}
}

// Which sequence of its request an error names; false = none of them. *ret_rest: what of it.
static bool names_sequence(const struct kd_error *e, uint32_t *ret_index, const char **ret_rest)
{
	char *end;
	if (strncmp(e->field, "sequences[", 10) != 0)
		return false;
	*ret_index = (uint32_t)strtoul(e->field + 10, &end, 10);
	*ret_rest = *end == ']' ? end + 1 : end;
	*ret_rest += **ret_rest == '.';
	return true;
}

// A fault of one sequence is told by its number in the input, not by that in its request.
static int fail_for(const struct flow *f, const struct chunk *c, uint32_t index, const struct kd_error *e)
{
	const char *rest = e->field;
	names_sequence(e, &index, &rest);
	const struct item *i = index < c->n_asked ? c->asked[index] : c->items;
	return kdctl_fail(f->k, "sequence %" PRIu64 ": %s%s%s", i->number, rest, *rest ? ": " : "", e->message);
}

static void went_well(struct flow *f)
{
	if (f->complained)
		fprintf(stderr, "kdctl: %s: the teacher answers again\n", f->k->command);
	f->complained = false;
	f->good_ms = now_ms();
	f->pause_ms = PAUSE_MS;
}

// Nothing of it is lost: what was in flight will be asked again.
static void disconnect(struct flow *f)
{
	kd_close(f->k->client);
	f->k->client = NULL;
	f->n_in_flight = 0;
	for (struct chunk *c = f->chunks; c; c = c->next)
		c->id = 0;
}

// After a failure that may pass: 0 = try again later.
static int wait_for_better(struct flow *f, const struct kd_error *e)
{
	uint64_t now = now_ms();
	if (!f->patience_ms || !worth_repeating(e) || now - f->good_ms >= f->patience_ms)
		return kdctl_fail_with(f->k, e->field, e->message);
	if (!f->complained)
		fprintf(stderr, "kdctl: %s: the teacher does not answer (%s): waiting for it\n", f->k->command, e->message);
	f->complained = true;
	f->retry_ms = now + f->pause_ms;
	f->pause_ms = f->pause_ms * 2 < PAUSE_MAX_MS ? f->pause_ms * 2 : PAUSE_MAX_MS;
	return 0;
}

static int lose(struct flow *f, const struct kd_error *e)
{
	if (f->patience_ms)
		disconnect(f);
	return wait_for_better(f, e);
}

// A server with no room for now is asked again when something of ours has come back, less at a time; alone, after a pause.
static void hold_back(struct flow *f)
{
	if (f->max_in_flight > 1)
		f->max_in_flight--;
	if (!f->n_in_flight)
		f->retry_ms = now_ms() + POLL_MS;
}

// A request as a whole failed, or could not be sent. It is no longer in flight.
static int request_failed(struct flow *f, struct chunk *c, const struct kd_error *e)
{
	uint32_t index = UINT32_MAX;
	const char *rest;
	if (strcmp(e->code, "overloaded") == 0) {
		hold_back(f);
		return 0;
	}
	if (f->patience_ms && !worth_repeating(e) && names_sequence(e, &index, &rest) && index < c->n_asked) {
		item_refuse(c->asked[index], e);
		snprintf(c->asked[index]->refusal.field, sizeof e->field, "%s", rest);
		return 0;
	}
	if (f->patience_ms && worth_repeating(e) && ++c->n_tries < TRIES)
		return wait_for_better(f, e);
	return fail_for(f, c, 0, e);
}

// ---- asking

static int submit(struct flow *f, struct chunk *c)
{
	struct kd_sequence *sequences = calloc(c->n, sizeof *sequences);
	struct kd_lists *lists = calloc(c->n, sizeof *lists);
	struct kd_request request = KD_REQUEST_INIT;
	struct kd_error err;
	int status = 0;
	if (!sequences || !lists) {
		status = kdctl_fail(f->k, "no memory for %" PRIu32 " sequences", c->n);
		goto out;
	}
	c->n_asked = 0;
	for (struct item *i = c->items; i; i = i->next) {
		if (i->answer || i->refused)
			continue;
		item_ask(i, &sequences[c->n_asked], &lists[c->n_asked]);
		c->asked[c->n_asked++] = i;
	}
	c->done = !c->n_asked;
	request.query = &f->options->query;
	request.sequences = sequences;
	request.n_sequences = c->n_asked;
	request.flags = f->options->flags;
	request.deadline_ms = f->options->deadline_ms;
	if (c->done)
		goto out;
	int r = kd_submit(f->k->client, &request, &c->id, &err);
	if (!r)
		f->n_in_flight++;
	else if (r != -EAGAIN || !f->n_in_flight)      // without a credit: later
		status = f->patience_ms && worth_repeating(&err) ? lose(f, &err) : request_failed(f, c, &err);
out:
	free(sequences);
	free(lists);
	return status;
}

static int submit_more(struct flow *f)
{
	int status = 0;
	uint32_t before;
	for (struct chunk *c = f->chunks; c && !status && f->k->client && f->n_in_flight < f->max_in_flight; c = c->next) {
		if (c->id || c->done)
			continue;
		before = f->n_in_flight;
		status = submit(f, c);
		if (f->n_in_flight == before && !c->done)
			break;                 // not now
	}
	return status;
}

static int reconnect(struct flow *f)
{
	struct kd_error err;
	if (!kdctl_open(f->k, f->teacher, &err)) {
		f->heard_ms = now_ms();
		return 0;
	}
	if (strcmp(err.code, error_name(ERROR_CONFLICT)) == 0)
		return kdctl_fail(f->k, "the server has another teacher now: %.16s... is asked for (%s)", f->teacher, err.message);
	return wait_for_better(f, &err);
}

static int ask(struct flow *f)
{
	if (now_ms() < f->retry_ms || stopping(f) || !f->chunks)
		return 0;
	if (f->k->client && f->patience_ms && kd_is_draining(f->k->client)) {
		if (f->n_in_flight)
			return 0;
		disconnect(f);
	}
	int status = f->k->client ? 0 : reconnect(f);
	return status ? status : submit_more(f);
}

// ---- answers

static int sequence_failed(struct flow *f, struct chunk *c, const struct kd_event *e)
{
	if (!f->patience_ms)
		return fail_for(f, c, e->index, &e->error);
	if (e->index < c->n_asked && (!worth_repeating(&e->error) || c->n_tries + 1 >= TRIES))
		item_refuse(c->asked[e->index], &e->error);
	return 0;
}

// The request is over. What it left unanswered is asked for again, a little later.
static void request_done(struct flow *f, struct chunk *c)
{
	c->id = 0;
	f->n_in_flight--;
	c->done = true;
	for (uint32_t i = 0; i < c->n_asked; i++)
		c->done &= c->asked[i]->answer || c->asked[i]->refused;
	if (!c->done) {
		c->n_tries++;
		f->retry_ms = now_ms() + POLL_MS;
	}
}

static int take(struct flow *f, struct kd_event *e)
{
	struct chunk *c = f->chunks;
	while (c && c->id != e->id)
		c = c->next;
	if (!c || (e->kind == KD_EVENT_ANSWER && e->index >= c->n_asked)) {
		kd_answer_free(e->answer);
		return kdctl_fail(f->k, "an answer to another request");
	}
	switch (e->kind) {
	case KD_EVENT_ANSWER:
		kd_answer_free(c->asked[e->index]->answer);
		c->asked[e->index]->answer = e->answer;
		went_well(f);
		return 0;
	case KD_EVENT_SEQUENCE_FAILED:
		return sequence_failed(f, c, e);
	case KD_EVENT_DONE:
		request_done(f, c);
		return 0;
	case KD_EVENT_REQUEST_FAILED:
		c->id = 0;
		f->n_in_flight--;
		return request_failed(f, c, &e->error);
	}
	return 0;
}

static int take_event(struct flow *f)
{
	struct kd_event e;
	struct kd_error err;
	if (!f->n_in_flight) {                         // waiting for better times
		nanosleep(&(struct timespec){.tv_nsec = PAUSE_MS * 1000000L}, NULL);
		return 0;
	}
	int r = kd_next(f->k->client, POLL_MS, &e, &err);
	uint64_t now = now_ms();
	if (!r) {
		f->heard_ms = now;
		return take(f, &e);
	}
	if (r == -ETIMEDOUT && now - f->heard_ms < SILENCE_MS)
		return 0;
	return lose(f, &err);
}

// What is complete at the front leaves.
static int hand_on(struct flow *f)
{
	int status = 0;
	while (!status && f->chunks && f->chunks->done) {
		struct chunk *c = f->chunks;
		for (struct item *i = c->items; i && !status; i = i->next)
			status = f->take(f->arg, i);
		f->chunks = c->next;
		if (!f->chunks)
			f->end = &f->chunks;
		f->n_chunks--;
		chunk_free(c);
	}
	return status;
}

int flow_step(struct flow *f)
{
	int status = read_ahead(f);
	if (!status)
		status = ask(f);
	if (!status && f->chunks && !f->chunks->done && !stopping(f))
		status = take_event(f);
	if (!status)
		status = hand_on(f);
	f->over = stopping(f) || (!f->chunks && !f->n_chunks);
	return status;
}
