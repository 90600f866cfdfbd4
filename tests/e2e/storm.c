// SPDX-License-Identifier: Apache-2.0
// storm ADDRESS CONNECTIONS REQUESTS SEED: many connections at once, mixed questions, cancels, deadlines and disconnects. Every answer is
// compared with the bytes that the same question got alone. KDSERVED_CA: whom to trust, with tls. Prints one JSON object; the exit status
// is 1 when any answer was wrong.
#include <err.h>
#include <inttypes.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "clients/kdclient.h"

#define N_SEQUENCES 24
#define N_QUERIES 6
#define MAX_TOKENS 48
#define PER_REQUEST 4

static uint64_t seed;

static uint32_t random_below(uint32_t n)
{
	seed ^= seed << 13;
	seed ^= seed >> 7;
	seed ^= seed << 17;
	return (uint32_t)(seed >> 20) % n;
}

static uint32_t tokens[N_SEQUENCES][MAX_TOKENS];
static struct kd_sequence sequences[N_SEQUENCES];
static struct kd_query queries[N_QUERIES];
static const float temperatures[] = {0.5f, 2};
static struct kd_answer *alone[N_QUERIES][N_SEQUENCES];

static void make_questions(uint32_t vocab_size)
{
	for (int i = 0; i < N_SEQUENCES; i++) {
		uint32_t n = 1 + random_below(MAX_TOKENS);
		for (uint32_t k = 0; k < n; k++)
			tokens[i][k] = random_below(vocab_size);
		sequences[i] = (struct kd_sequence){.tokens = tokens[i], .n_tokens = n};
	}
	for (int i = 0; i < N_QUERIES; i++)
		queries[i] = (struct kd_query)KD_QUERY_INIT;
	queries[0].own = true;
	queries[1].top_k = 5;
	queries[2].top_k = 64;
	queries[2].values = KD_F16;
	queries[3].entropy = true;
	queries[4].temperatures = temperatures;
	queries[4].n_temperatures = 2;
	queries[5].top_k = 1;
	queries[5].own = true;
	queries[5].first = -1;
}

static void ask_alone(struct kd_client *client)
{
	struct kd_error e;
	for (int q = 0; q < N_QUERIES; q++)
		for (int i = 0; i < N_SEQUENCES; i++) {
			struct kd_request request = {.size = sizeof request, .query = &queries[q], .sequences = &sequences[i],
						     .n_sequences = 1, .flags = KD_NO_STORE};
			if (kd_score(client, &request, &alone[q][i], &e))
				errx(2, "alone: %s: %s", e.field, e.message);
		}
}

// ---- one connection with one request in flight

struct party {
	struct kd_client *client;
	uint64_t id;                             // 0 = nothing in flight
	int query;
	uint32_t n, which[PER_REQUEST];
	bool hurried, cancelled;                 // it may end with deadline, cancelled
	bool leaving;                            // its client goes with the request in flight
};

static struct { uint64_t requests, answers, wrong, cancelled, late, left, overloaded; } sums;

static void party_open(struct party *p, const char *address)
{
	struct kd_options options = {.size = sizeof options, .address = address, .timeout_ms = 60000, .connect_timeout_ms = 60000,
				     .ca = strncmp(address, "tls:", 4) ? NULL : getenv("KDSERVED_CA")};
	struct kd_error e;
	*p = (struct party){0};
	if (kd_open(&options, &p->client, &e))
		errx(2, "open: %s", e.message);
}

static void party_ask(struct party *p)
{
	struct kd_sequence chosen[PER_REQUEST];
	struct kd_error e;
	p->query = (int)random_below(N_QUERIES);
	p->n = 1 + random_below(PER_REQUEST);
	p->hurried = random_below(20) == 0;
	p->cancelled = false;
	for (uint32_t i = 0; i < p->n; i++)
		chosen[i] = sequences[p->which[i] = random_below(N_SEQUENCES)];
	struct kd_request request = {.size = sizeof request, .query = &queries[p->query], .sequences = chosen, .n_sequences = p->n,
				     .flags = KD_NO_STORE, .deadline_ms = p->hurried ? 1 + random_below(20) : 0};
	if (kd_submit(p->client, &request, &p->id, &e))
		errx(2, "submit: %s: %s", e.field, e.message);
	sums.requests++;
}

// Some are taken back and some clients leave: at once, and again when the first answer has come.
static void party_misbehave(struct party *p)
{
	struct kd_error e;
	uint32_t dice = random_below(100);
	if (dice < 10) {
		if (kd_cancel(p->client, p->id, &e))
			errx(2, "cancel: %s", e.message);
		p->cancelled = true;
	}
	p->leaving = dice >= 95;
}

static void check_answer(struct party *p, const struct kd_event *event)
{
	size_t n, n_alone;
	const void *bytes = kd_answer_record(event->answer, &n);
	const void *want = kd_answer_record(alone[p->query][p->which[event->index]], &n_alone);
	sums.answers++;
	if (n != n_alone || memcmp(bytes, want, n) != 0)
		sums.wrong++;
}

static void party_leave(struct party *p, const char *address)
{
	kd_close(p->client);
	party_open(p, address);
	sums.left++;
}

static void check_failure(const struct party *p, const struct kd_error *e)
{
	if (p->hurried && strcmp(e->code, "deadline") == 0)
		sums.late++;
	else if (p->cancelled && strcmp(e->code, "cancelled") == 0)
		sums.cancelled++;
	else if (strcmp(e->code, "overloaded") == 0)
		sums.overloaded++;
	else
		errx(2, "unexpected: %s: %s", e->code, e->message);
}

static void party_take(struct party *p)
{
	struct kd_event event = {0};
	struct kd_error e;
	while (p->id && kd_next(p->client, 0, &event, &e) == 0) {
		if (event.id != p->id)
			sums.wrong++;
		if (event.kind == KD_EVENT_ANSWER) {
			check_answer(p, &event);
			party_misbehave(p);
		} else if (event.kind != KD_EVENT_DONE) {
			check_failure(p, &event.error);
		}
		if (event.kind == KD_EVENT_DONE || event.kind == KD_EVENT_REQUEST_FAILED)
			p->id = 0;
		kd_answer_free(event.answer);
		event.answer = NULL;
	}
	if (p->id && strcmp(e.code, "deadline") != 0)
		errx(2, "next: %s", e.message);
}

// Every connection that is free asks, until enough was asked; then every answer is awaited.
static void run(struct party *parties, struct pollfd *fds, uint32_t n, uint64_t n_requests, const char *address)
{
	for (;;) {
		nfds_t busy = 0;
		for (uint32_t i = 0; i < n; i++) {
			struct party *p = &parties[i];
			if (!p->id && sums.requests < n_requests) {
				party_ask(p);
				party_misbehave(p);
			}
			party_take(p);
			if (p->leaving)
				party_leave(p, address);
			if (p->id)
				fds[busy++] = (struct pollfd){.fd = kd_fd(p->client), .events = POLLIN};
		}
		if (!busy && sums.requests >= n_requests)
			return;
		if (busy && poll(fds, busy, 60000) == 0)
			errx(2, "no answer for a minute; %zu requests wait", (size_t)busy);
	}
}

static void raise_file_limit(void)
{
	struct rlimit limit;
	if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
		limit.rlim_cur = limit.rlim_max;
		setrlimit(RLIMIT_NOFILE, &limit);
	}
}

int main(int argc, char **argv)
{
	if (argc != 5)
		errx(2, "usage: storm ADDRESS CONNECTIONS REQUESTS SEED");
	uint32_t n = (uint32_t)strtoul(argv[2], NULL, 10);
	uint64_t n_requests = strtoull(argv[3], NULL, 10);
	struct party *parties = calloc(n, sizeof *parties);
	struct pollfd *fds = calloc(n, sizeof *fds);
	if (!n || !parties || !fds)
		errx(2, "no memory, or no connections");
	seed = strtoull(argv[4], NULL, 10) * 2 + 1;
	raise_file_limit();
	for (uint32_t i = 0; i < n; i++)
		party_open(&parties[i], argv[1]);
	make_questions(kd_server(parties[0].client)->vocab_size);
	ask_alone(parties[0].client);
	run(parties, fds, n, n_requests, argv[1]);
	for (uint32_t i = 0; i < n; i++)
		kd_close(parties[i].client);
	for (int q = 0; q < N_QUERIES; q++)
		for (int i = 0; i < N_SEQUENCES; i++)
			kd_answer_free(alone[q][i]);
	free(parties);
	free(fds);
	printf("{\"requests\":%" PRIu64 ",\"answers\":%" PRIu64 ",\"wrong\":%" PRIu64 ",\"cancelled\":%" PRIu64 ",\"late\":%" PRIu64
	       ",\"left\":%" PRIu64 ",\"overloaded\":%" PRIu64 "}\n",
	       sums.requests, sums.answers, sums.wrong, sums.cancelled, sums.late, sums.left, sums.overloaded);
	return sums.wrong != 0;
}
