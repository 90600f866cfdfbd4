// SPDX-License-Identifier: Apache-2.0
// The list of sequences of a run. Its checksum is put right first, else nothing would be looked at behind it; what is accepted is the same
// list when written again.
#include <stdlib.h>
#include <string.h>

#include "daemon/worker/dataset.h"
#include "tests/fuzz/fuzz.h"

static void require(int ok)
{
	if (!ok)
		__builtin_trap();
}

static void again(const struct dataset_options *o, const struct dataset *d, const struct content_id *source)
{
	struct content_id told, a = dataset_id(d), b;
	struct dataset *back = NULL;
	uint8_t *bytes = NULL;
	size_t n;
	require(dataset_encode(d, source, &bytes, &n, NULL) == 0);
	require(dataset_decode(o, bytes, n, &told, &back, NULL) == 0);
	b = dataset_id(back);
	require(memcmp(&a, &b, sizeof a) == 0 && memcmp(&told, source, sizeof told) == 0);
	dataset_free(back);
	free(bytes);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
	struct dataset_options o = {.sequence_length = 16, .held_out = .1, .held_out_max = 4, .sequential = n & 1, .seed = n};
	struct content_id source, sum;
	struct dataset *d = NULL;
	uint8_t *bytes = malloc(n + 1);
	require(bytes != NULL);
	memcpy(bytes, data, n);
	if (n >= sizeof sum) {
		sum = content_id_of(bytes, n - sizeof sum);
		memcpy(bytes + n - sizeof sum, &sum, sizeof sum);
	}
	if (dataset_decode(&o, bytes, n, &source, &d, NULL) == 0) {
		again(&o, d, &source);
		if (dataset_split(d, NULL) == 0)
			for (uint64_t i = 0; i < 2 * dataset_n_train(d); i++)
				require(dataset_train_at(d, i).n_tokens <= o.sequence_length);
		dataset_free(d);
	}
	free(bytes);
	return 0;
}
