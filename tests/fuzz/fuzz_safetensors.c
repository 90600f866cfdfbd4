// SPDX-License-Identifier: Apache-2.0
// One safetensors file: what opens can be read, every tensor that is found whole.
#include <stdlib.h>

#include "common/error.h"
#include "daemon/model/safetensors.h"
#include "tests/fuzz/fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct safetensors *s = NULL;
	struct error err;
	if (safetensors_open_bytes(data, size, &s, &err) < 0)
		return 0;
	for (size_t i = 0; i < safetensors_count(s); i++) {
		struct tensor t;
		if (safetensors_find(s, safetensors_name(s, i), &t, &err) < 0)
			continue;
		if (t.n_bytes > size || safetensors_read(s, safetensors_name(s, i), &t, &err) < 0)
			abort();
		free((void *)(uintptr_t)t.data);
	}
	safetensors_close(s);
	return 0;
}
