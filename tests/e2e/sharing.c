// SPDX-License-Identifier: Apache-2.0
// sharing ADDRESS THREADS ROUNDS: threads share one connection, some asking for much, some for little. Every answer is compared with the
// bytes that the same question got alone; the exit status is 1 when any was wrong. KDSERVED_CA: whom to trust, with tls.
#include <err.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "clients/kdclient.h"

#define N_SEQUENCES 12
#define N_TOKENS 96

static struct kd_client *client;
static struct kd_sequence sequences[N_SEQUENCES];
static struct kd_answer *alone[2][N_SEQUENCES];
static int n_rounds;
static atomic_int n_wrong, n_answers;

static void ask(bool much, struct kd_answer **answers)
{
	struct kd_query query = KD_QUERY_INIT;
	struct kd_request request = {.size = sizeof request, .query = &query, .sequences = sequences, .n_sequences = much ? N_SEQUENCES : 1,
				     .flags = KD_NO_STORE};
	struct kd_error e;
	query.own = true;
	query.dense = much;
	if (kd_score(client, &request, answers, &e))
		errx(2, "score: %s: %s", e.field, e.message);
}

static void check(bool much, struct kd_answer **answers)
{
	for (int i = 0; i < (much ? N_SEQUENCES : 1); i++) {
		size_t n, n_alone;
		const void *bytes = kd_answer_record(answers[i], &n), *want = kd_answer_record(alone[much][i], &n_alone);
		n_wrong += n != n_alone || memcmp(bytes, want, n) != 0;
		n_answers++;
		kd_answer_free(answers[i]);
	}
}

static void *work(void *arg)
{
	struct kd_answer *answers[N_SEQUENCES];
	struct kd_error e;
	bool much = arg;
	for (int i = 0; i < n_rounds; i++) {
		ask(much, answers);
		check(much, answers);
		if (!much && kd_ping(client, NULL, &e))
			errx(2, "ping: %s", e.message);
	}
	return NULL;
}

static void make_sequences(void)
{
	static uint32_t tokens[N_SEQUENCES][N_TOKENS];
	for (uint32_t i = 0; i < N_SEQUENCES * N_TOKENS; i++)
		tokens[i / N_TOKENS][i % N_TOKENS] = i * 2654435761u % 250;
	for (int i = 0; i < N_SEQUENCES; i++)
		sequences[i] = (struct kd_sequence){.tokens = tokens[i], .n_tokens = N_TOKENS};
}

int main(int argc, char **argv)
{
	if (argc != 4)
		errx(2, "usage: sharing ADDRESS THREADS ROUNDS");
	size_t n = strtoul(argv[2], NULL, 10);
	struct kd_options options = {.size = sizeof options, .address = argv[1],
				     .ca = strncmp(argv[1], "tls:", 4) ? NULL : getenv("KDSERVED_CA")};
	pthread_t *threads = calloc(n, sizeof *threads);
	struct kd_error e;
	n_rounds = atoi(argv[3]);
	if (!threads || kd_open(&options, &client, &e))
		errx(2, "open: %s", e.message);
	make_sequences();
	ask(false, alone[false]);
	ask(true, alone[true]);
	for (size_t i = 0; i < n; i++)
		if (pthread_create(&threads[i], NULL, work, i % 2 ? client : NULL))
			errx(2, "no thread");
	for (size_t i = 0; i < n; i++)
		pthread_join(threads[i], NULL);
	for (int i = 0; i < N_SEQUENCES; i++)
		kd_answer_free(alone[true][i]);
	kd_answer_free(alone[false][0]);
	kd_close(client);
	free(threads);
	printf("%d answers, %d wrong\n", n_answers, n_wrong);
	return n_wrong != 0;
}
