// SPDX-License-Identifier: Apache-2.0
// kd_score: any number of sequences, split into as many requests as the server's limits call for.
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "clients/client.h"
#include "clients/convert.h"

// One under way; its address is the owner of its requests. With the client's lock held, but where said.
struct scoring {
	struct kd_client *client;
	const struct kd_request *request;
	struct kd_answer **answers;
	size_t n_query;                      // bytes of the question on its way
	uint32_t n_sent, n_open;             // sequences sent, requests not yet done
	struct prepared next;                // made ready, not sent
};

// What a sequence takes of a SCORE, at most.
static uint64_t sequence_bytes(const struct kd_sequence *s)
{
	uint64_t bytes = 4 + 4 * (uint64_t)s->n_tokens + 32 + 8 * (uint64_t)s->n_spans;
	if (s->gather && s->gather->n_lists)
		bytes += 4 * ((uint64_t)s->gather->n_lists + s->gather->offsets[s->gather->n_lists]);
	return bytes;
}

// How many sequences from `first` on go into one SCORE: within the server's number and bytes, at least one (it will say why not).
static uint32_t chunk_size(const struct kd_client *client, const struct kd_request *request, size_t n_query, uint32_t first)
{
	uint64_t bytes = 16 + n_query;
	uint32_t n = 0;
	while (first + n < request->n_sequences && n < client->welcome.max_sequences && n < FRAME_MAX_SEQUENCES) {
		bytes += sequence_bytes(&request->sequences[first + n]);
		if (n && bytes > client->welcome.max_body_bytes)
			break;
		n++;
	}
	return n ? n : 1;
}

// Lets go of the lock: hashing the next chunk's tokens is no reason to hold up other threads.
static int prepare_next(struct scoring *s, struct error *err)
{
	struct kd_request part = *s->request;
	if (s->next.pending || s->n_sent == s->request->n_sequences)
		return 0;
	part.sequences += s->n_sent;
	part.n_sequences = chunk_size(s->client, s->request, s->n_query, s->n_sent);
	pthread_mutex_unlock(&s->client->lock);
	int r = prepare_score(s->client, &part, s, s->n_sent, &s->next, err);
	pthread_mutex_lock(&s->client->lock);
	return r;
}

// Sends as much as the credits allow. One that has something in flight lets others have theirs first, else they might never.
static int send_more(struct scoring *s, struct error *err)
{
	for (;;) {
		bool wait = !s->n_open;
		uint64_t id;
		int r = prepare_next(s, err);
		if (r || !s->next.pending)
			return r;
		if (!wait && (s->client->n_credit_waiters || !pending_has_credit(s->client)))
			return 0;
		uint32_t n = s->next.pending->n_sequences;
		r = prepared_send(s->client, &s->next, wait, &id, err);
		if (r)
			return r;
		prepared_done(&s->next);
		s->n_sent += n;
		s->n_open++;
	}
}

static int take_event(struct scoring *s, struct error *err)
{
	struct waiter w = waiter_patient(s->client, WAIT_EVENT, s);
	int r = client_wait(s->client, &w, err);
	if (r)
		return r;
	struct queued *q = queued_pop(s->client, s);
	if (q->event.kind == KD_EVENT_ANSWER) {
		s->answers[q->event.index] = q->event.answer;
		q->event.answer = NULL;
	} else if (q->event.kind == KD_EVENT_DONE) {
		s->n_open--;
	} else {
		const struct kd_error *why = &q->event.error;
		char field[64];
		snprintf(field, sizeof field, "%s", why->field);
		if (q->event.kind == KD_EVENT_SEQUENCE_FAILED && !*field)
			snprintf(field, sizeof field, "sequences[%" PRIu32 "]", q->event.index);
		r = error_set(err, error_from_name(why->code), field, "%s", why->message);
	}
	queued_free(q);
	return r;
}

static int score_all(struct scoring *s, struct error *err)
{
	int r = send_more(s, err);
	while (!r && s->n_open) {
		r = take_event(s, err);
		if (!r)
			r = send_more(s, err);
	}
	return r;
}

// What can be wrong before any chunk is made.
static int check_whole(const struct kd_request *asked, struct kd_request *ret, size_t *ret_n_query, struct error *err)
{
	struct query query;
	int r = convert_sized(ret, sizeof *ret, asked, "request", err);
	if (!r && !ret->n_sequences)
		r = error_set(err, ERROR_INVALID, "sequences", "there are none");
	if (!r)
		r = convert_query(ret->query, &query, err);
	if (r)
		return r;
	*ret_n_query = query_bytes(&query);
	query_done(&query);
	return 0;
}

int kd_score(struct kd_client *client, const struct kd_request *asked, struct kd_answer **answers, struct kd_error *err)
{
	struct error why = {0};
	struct kd_request request = KD_REQUEST_INIT;
	struct scoring s = {.client = client, .request = &request, .answers = answers};
	int r = check_whole(asked, &request, &s.n_query, &why);
	if (r)
		return report(err, &why, r);
	memset(answers, 0, request.n_sequences * sizeof *answers);
	pthread_mutex_lock(&client->lock);
	r = score_all(&s, &why);
	if (r)
		pending_abandon(client, &s);
	pthread_mutex_unlock(&client->lock);
	prepared_done(&s.next);
	if (!r)
		return 0;
	for (uint32_t i = 0; i < request.n_sequences; i++) {
		kd_answer_free(answers[i]);
		answers[i] = NULL;
	}
	return report(err, &why, r);
}
