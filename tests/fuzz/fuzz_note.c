// SPDX-License-Identifier: Apache-2.0
// Notes about teachers: what is accepted says the same when written again.
#include <string.h>

#include "common/provenance.h"
#include "tests/fuzz/fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
	struct provenance p, again;
	char text[PROVENANCE_MAX_BYTES];
	if (provenance_decode((const char *)data, n, &p, NULL))
		return 0;
	size_t k = provenance_encode(&p, text);
	if (provenance_decode(text, k, &again, NULL) || memcmp(&p, &again, sizeof p) != 0)
		__builtin_trap();
	return 0;
}
