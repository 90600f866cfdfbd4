// SPDX-License-Identifier: Apache-2.0
// A file of tokens: what was read is within its limits and reads back the same; and no error shows what stood in a digest's place.
#include <stdlib.h>
#include <string.h>

#include "common/bearer.h"
#include "common/buffer.h"
#include "common/error.h"
#include "daemon/server/auth.h"
#include "daemon/server/auth_internal.h"
#include "tests/fuzz/fuzz.h"

static void require(int ok)
{
	if (!ok)
		__builtin_trap();
}

static void check(const struct bearer *t)
{
	struct buffer b = {0};
	struct bearer again;
	require(bearer_name_is_valid(t->name) && t->scopes < 16 && t->rate <= BEARER_MAX_RATE && t->in_flight <= BEARER_MAX_IN_FLIGHT &&
		t->k_max <= BEARER_MAX_K && t->expires >= 0);
	bearer_encode(&b, t);
	require(!b.failed && bearer_decode(b.data, b.n, &again, NULL) == 0);
	require(strcmp(again.name, t->name) == 0 && content_id_is_same(&again.digest, &t->digest) && again.scopes == t->scopes &&
		again.rate == t->rate && again.in_flight == t->in_flight && again.k_max == t->k_max && again.expires == t->expires);
	buffer_done(&b);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
	struct bearer *tokens = NULL;
	struct error err = {0};
	size_t n_tokens = 0;
	if (auth_file_decode((const char *)data, n, "tokens", &tokens, &n_tokens, &err)) {
		require(err.code && strstr(err.message, "tokens") != NULL && strstr(err.message, "kds_") == NULL);
		return 0;
	}
	require(n_tokens <= AUTH_MAX_TOKENS);
	for (size_t i = 0; i < n_tokens; i++)
		check(&tokens[i]);
	free(tokens);
	return 0;
}
