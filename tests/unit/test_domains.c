// SPDX-License-Identifier: Apache-2.0
// Places drawn from domains: by their shares, each domain in epochs of its own, known from one position; refusals.
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "common/error.h"
#include "daemon/worker/dataset.h"

// Three domains of 10, 30 and 20 documents, whose first token says which; held out by order.
static struct dataset *domains_of(bool sequential)
{
	struct dataset_options o = {.sequence_length = 8, .held_out = .2, .held_out_max = 100, .seed = 6, .documents = true,
				    .sequential = sequential};
	static const uint32_t sizes[] = {10, 30, 20};
	struct dataset *d = NULL;
	assert_int_equal(dataset_new(&o, &d, NULL), 0);
	for (uint32_t k = 0; k < 3; k++) {
		for (uint32_t i = 0; i < sizes[k]; i++) {
			uint32_t tokens[] = {k, i, 100 * k + i};
			assert_int_equal(dataset_append_document(d, tokens, 3, NULL), 0);
		}
		assert_int_equal(dataset_end_domain(d, NULL), 0);
	}
	assert_int_equal(dataset_split(d, NULL), 0);
	return d;
}

static void domains_are_drawn_by_their_shares_and_each_has_epochs_of_its_own(void **state)
{
	(void)state;
	enum { N = 6000 };
	struct dataset *d = domains_of(false);
	const struct dataset_domains shares = {.n = 3, .position = 5, .shares = {.5, .2, .3}, .taken = {4, 7, 0}};
	uint32_t n[3] = {0}, seen[3][30] = {{0}}, least[3] = {N, N, N}, most[3] = {0};
	for (uint64_t i = 0; i < dataset_n_held_out(d); i++)
		assert_int_equal(dataset_held_out_domain(d, i), dataset_held_out_at(d, i).tokens[0]);
	dataset_draw_domains(d, &shares);
	for (uint64_t p = 5; p < 5 + N; p++) {
		struct sequence s = dataset_train_at(d, p);
		n[s.tokens[0]]++;
		seen[s.tokens[0]][s.tokens[1]]++;
	}
	for (int k = 0; k < 3; k++) {
		assert_true(fabs(n[k] / (double)N - shares.shares[k]) < 4 * .5 / sqrt(N));
		for (int i = 0; i < 30; i++)
			if (seen[k][i]) {
				least[k] = seen[k][i] < least[k] ? seen[k][i] : least[k];
				most[k] = seen[k][i] > most[k] ? seen[k][i] : most[k];
			}
		assert_true(most[k] - least[k] <= 1 + (shares.taken[k] > 0));  // the first epoch had begun
	}
	dataset_free(d);
}

static void a_stream_of_domains_is_known_from_one_position(void **state)
{
	(void)state;
	for (int sequential = 0; sequential < 2; sequential++) {
		struct dataset *d = domains_of(sequential), *other = domains_of(sequential);
		const struct dataset_domains shares = {.n = 3, .shares = {.1, .6, .3}};
		struct dataset_domains at;
		dataset_draw_domains(d, &shares);
		dataset_domains_at(d, 77, &at);
		assert_int_equal(at.position, 77);
		assert_int_equal(at.taken[0] + at.taken[1] + at.taken[2], 77);
		dataset_draw_domains(other, &at);
		for (uint64_t p = 77; p < 300; p += 3)
			assert_int_equal(dataset_train_at(d, p).tokens[2], dataset_train_at(other, p).tokens[2]);
		assert_int_equal(dataset_train_at(d, 80).tokens[2], dataset_train_at(other, 80).tokens[2]);   // backwards
		dataset_free(d), dataset_free(other);
	}
}

static void a_domain_without_a_sequence_is_refused(void **state)
{
	(void)state;
	struct dataset_options o = {.sequence_length = 4, .seed = 1};
	struct dataset *d = NULL;
	struct error err = {0};
	assert_int_equal(dataset_new(&o, &d, NULL), 0);
	for (uint32_t i = 0; i < 40; i++)
		assert_int_equal(dataset_append(d, &i, 1, NULL), 0);
	assert_int_equal(dataset_end_domain(d, NULL), 0);
	assert_int_equal(dataset_append(d, (uint32_t[]){1, 2}, 2, NULL), 0);
	assert_int_equal(dataset_end_domain(d, NULL), 0);
	assert_int_equal(dataset_split(d, &err), error_errno(ERROR_INVALID));
	assert_string_equal(err.message, "file 2 of the corpus has no sequence to train on");
	dataset_free(d);
	assert_int_equal(dataset_new(&o, &d, NULL), 0);
	for (int i = 0; i < DATASET_MAX_DOMAINS; i++)
		assert_int_equal(dataset_end_domain(d, NULL), 0);
	assert_int_equal(dataset_end_domain(d, &err), error_errno(ERROR_TOO_LARGE));
	dataset_free(d);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(domains_are_drawn_by_their_shares_and_each_has_epochs_of_its_own),
		cmocka_unit_test(a_stream_of_domains_is_known_from_one_position),
		cmocka_unit_test(a_domain_without_a_sequence_is_refused),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
