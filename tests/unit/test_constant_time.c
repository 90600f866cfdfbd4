// SPDX-License-Identifier: Apache-2.0
// Whether the time of comparing tokens tells anything of them: Welch's t over two kinds of input in random order, the slowest tenth of all
// samples left out (interruptions). |t| < 4.5 says that they cannot be told apart. What the machine does besides meets both kinds alike, so
// a busy one makes t smaller, not larger; still a kind must stand out three times over to be called a leak, and of two digests by more than
// a fraction of a cycle for each comparison: with so many samples t finds what the inputs' own places in memory make of them.
// KDSERVED_TEST_SAMPLES: how many of each.
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>

#include <math.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "common/bearer.h"
#include "common/error.h"
#include "common/sequence.h"
#include "daemon/server/auth.h"

#define BOUND 4.5
#define ROUNDS 3
#define DEFAULT_SAMPLES 100000
#define REPEAT 64                  // of one comparison: the clock is coarser than it
#define LEAST_NS (0.02 * REPEAT)   // a sixteenth of a cycle of 3 GHz; a comparison that stops a byte earlier saves one or more
#define N_TOKENS 64

struct timing {
	void (*choose)(void *arg, int kind);     // makes the input, outside the measured time
	void (*run)(void *arg);
	void *arg;
	double least_ns;                         // between the means of both kinds that is a leak
};

struct finding { double t, ns; };            // Welch's, and the difference of the means

static uint64_t random_next(void)
{
	static uint64_t s = 88172645463325252u;
	s ^= s << 13;
	s ^= s >> 7;
	return s ^= s << 17;
}

static double now_ns(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

static int compare_doubles(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;
	return (x > y) - (x < y);
}

static struct finding welch(const double *ns, const uint8_t *kinds, size_t n, double limit)
{
	double count[2] = {0}, mean[2] = {0}, squares[2] = {0};
	for (size_t i = 0; i < n; i++) {
		int k = kinds[i];
		if (ns[i] > limit)
			continue;
		double d = ns[i] - mean[k];
		mean[k] += d / ++count[k];
		squares[k] += d * (ns[i] - mean[k]);
	}
	assert_true(count[0] > 100 && count[1] > 100);
	double variance = squares[0] / (count[0] - 1) / count[0] + squares[1] / (count[1] - 1) / count[1];
	double ns_apart = fabs(mean[0] - mean[1]);
	return (struct finding){variance > 0 ? ns_apart / sqrt(variance) : 0, ns_apart};
}

static struct finding measure(const struct timing *t)
{
	const char *text = getenv("KDSERVED_TEST_SAMPLES");
	size_t n = 2 * (text ? strtoul(text, NULL, 10) : DEFAULT_SAMPLES);
	double *ns = calloc(n, sizeof *ns), *sorted = calloc(n, sizeof *sorted);
	uint8_t *kinds = calloc(n, 1);
	assert_true(ns && sorted && kinds);
	for (size_t i = 0; i < n; i++) {
		kinds[i] = random_next() >> 40 & 1;
		t->choose(t->arg, kinds[i]);
		double began = now_ns();
		t->run(t->arg);
		ns[i] = now_ns() - began;
	}
	memcpy(sorted, ns, n * sizeof *ns);
	qsort(sorted, n, sizeof *sorted, compare_doubles);
	struct finding found = welch(ns, kinds, n, sorted[n / 10 * 9]);
	free(ns);
	free(sorted);
	free(kinds);
	return found;
}

static bool leaks(const struct timing *t, const char *what)
{
	bool leak = true;
	for (int i = 0; i < ROUNDS && leak; i++) {
		struct finding found = measure(t);
		print_message("%s: |t| = %.2f, %.2f ns\n", what, found.t, found.ns);
		leak = found.t >= BOUND && found.ns >= t->least_ns;
	}
	return leak;
}

// ---- two digests

struct digests {
	struct content_id differ[2];       // the bits in which a kind's digests differ
	struct content_id known, asked;
	bool (*same)(const struct content_id *a, const struct content_id *b);
	volatile bool result;
};

// Both kinds are made by the same instructions, and all their bytes are written before the clock is read: a byte written alone would still
// be on its way when the comparison reads it, and how long it waits there depends on which byte it is.
static void choose_digest(void *arg, int kind)
{
	struct digests *d = arg;
	uint64_t words[sizeof d->known / 8], bits[sizeof d->known / 8];
	memcpy(bits, &d->differ[kind], sizeof bits);
	for (size_t i = 0; i < sizeof words / sizeof *words; i++)
		words[i] = random_next();
	memcpy(&d->known, words, sizeof d->known);
	for (size_t i = 0; i < sizeof words / sizeof *words; i++)
		words[i] ^= bits[i];
	memcpy(&d->asked, words, sizeof d->asked);
	atomic_thread_fence(memory_order_seq_cst);
}

static void compare_digests(void *arg)
{
	struct digests *d = arg;
	for (int i = 0; i < REPEAT; i++)
		d->result = d->same(&d->known, &d->asked);
}

static void test_digests_are_compared_in_constant_time(void **state)
{
	(void)state;
	struct digests d = {.same = content_id_is_same};
	const struct timing t = {choose_digest, compare_digests, &d, LEAST_NS};
	d.differ[0].bytes[0] = d.differ[1].bytes[CONTENT_ID_BYTES - 1] = 1;
	assert_false(leaks(&t, "digests that differ in their first and in their last byte"));
	d.differ[1] = (struct content_id){0};
	assert_false(leaks(&t, "digests that differ and that do not"));
}

// What would be found: the usual loop that ends at the first difference.
static bool same_until_they_differ(const struct content_id *a, const struct content_id *b)
{
	for (int i = 0; i < CONTENT_ID_BYTES; i++)
		if (*(const volatile uint8_t *)&a->bytes[i] != *(const volatile uint8_t *)&b->bytes[i])
			return false;
	return true;
}

static void test_a_comparison_that_stops_early_is_found(void **state)
{
	(void)state;
	struct digests d = {.same = same_until_they_differ};
	d.differ[0].bytes[0] = d.differ[1].bytes[CONTENT_ID_BYTES - 1] = 1;
	assert_true(leaks(&(struct timing){choose_digest, compare_digests, &d, LEAST_NS}, "a comparison that stops early"));
}

// ---- a login with a wrong secret

struct login { struct auth *auth; char secrets[2][32], secret[32]; };

static void choose_secret(void *arg, int kind)
{
	struct login *l = arg;
	memcpy(l->secret, l->secrets[kind], sizeof l->secret);
}

static void try_secret(void *arg)
{
	struct login *l = arg;
	struct principal *p = NULL;
	struct error err;
	assert_int_not_equal(auth_login(l->auth, l->secret, &p, &err), 0);
}

// A wrong secret whose digest begins with two bytes of a right one's (wanted), or has not even its first.
static void find_secret(const struct content_id *right, bool wanted, char ret[32])
{
	for (unsigned i = 0;; i++) {
		snprintf(ret, 32, "kds_wrong-%012u", i);
		struct content_id d = bearer_digest(ret, strlen(ret));
		if (wanted ? memcmp(&d, right, 2) == 0 : d.bytes[0] != right->bytes[0])
			return;
	}
}

static void test_a_wrong_secret_says_nothing_of_a_right_one(void **state)
{
	(void)state;
	char path[] = "/tmp/kdserved-tokens-XXXXXX", hex[CONTENT_ID_HEX], secret[32];
	struct error err = {0};
	struct content_id right = {0};
	struct login l = {0};
	FILE *f = fdopen(mkstemp(path), "w");
	assert_non_null(f);
	for (int i = 0; i < N_TOKENS; i++) {
		snprintf(secret, sizeof secret, "kds_right-%d", i);
		right = bearer_digest(secret, strlen(secret));
		content_id_to_hex(&right, hex);
		fprintf(f, "name-%d %s score\n", i, hex);
	}
	assert_int_equal(fclose(f), 0);
	if (auth_open(path, &l.auth, &err))
		fail_msg("%s", err.message);
	unlink(path);
	find_secret(&right, false, l.secrets[0]);
	find_secret(&right, true, l.secrets[1]);
	assert_false(leaks(&(struct timing){choose_secret, try_secret, &l, 0}, "a secret far from a right one, and one near"));
	auth_close(l.auth);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_digests_are_compared_in_constant_time),
		cmocka_unit_test(test_a_comparison_that_stops_early_is_found),
		cmocka_unit_test(test_a_wrong_secret_says_nothing_of_a_right_one),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
