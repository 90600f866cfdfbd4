// SPDX-License-Identifier: Apache-2.0
#include "tests/ops/quantised.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "common/error.h"

struct weight *quantised_load(struct backend *be, bool apart, enum dtype type, uint32_t N, uint32_t K)
{
	struct error err = {0};
	uint64_t seed = N * 31 + K;
	size_t upper = N / 2 * dtype_row_bytes(type, K), all = upper + (N - N / 2) * dtype_row_bytes(DTYPE_Q8_0, K);
	uint8_t *bytes = malloc(all);
	assert_non_null(bytes);
	for (size_t i = 0; i < all; i++)
		bytes[i] = (uint8_t)((seed = seed * 6364136223846793005u + 1442695040888963407u) >> 56) & 0x3f;
	struct tensor parts[] = {tensor_matrix(type, N / 2, K, bytes), tensor_matrix(DTYPE_Q8_0, N - N / 2, K, bytes + upper)};
	struct weight *w = (apart ? be->ops->weight_load_apart : be->ops->weight_load)(be, WEIGHT_PLAIN, parts, 2, &err);
	if (!w)
		fail_msg("%s", err.message);
	memset(bytes, 0xff, all);        // theirs, who may change them now
	free(bytes);
	return w;
}
