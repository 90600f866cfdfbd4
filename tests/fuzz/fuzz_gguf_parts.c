// SPDX-License-Identifier: Apache-2.0
// A model in up to three GGUF files: the input cut where a file begins, each piece under the name of a part. What opens has every tensor of
// every file, and each can be read; what does not has a reason.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/error.h"
#include "daemon/model/gguf.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/scratch.h"

#define MAX_PARTS 3
static const char magic[] = "GGUF";

// The beginnings of the pieces in at[], and their end behind the last.
static unsigned cut(const uint8_t *data, size_t size, size_t at[MAX_PARTS + 1])
{
	unsigned n = 0;
	at[n++] = 0;
	for (size_t i = 1; n < MAX_PARTS && i + sizeof magic - 1 <= size; i++)
		if (memcmp(data + i, magic, sizeof magic - 1) == 0)
			at[n++] = i;
	at[n] = size;
	return n;
}

static void read_tensors(const struct gguf *f)
{
	struct tensor t;
	for (size_t i = 0; i < gguf_count(f) && i < 64; i++) {
		if (i && strcmp(gguf_name(f, i - 1), gguf_name(f, i)) == 0)
			abort();
		if (gguf_read(f, gguf_name(f, i), &t, NULL) < 0)
			abort();      // the extents were checked at open
		free((void *)(uintptr_t)t.data);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	size_t at[MAX_PARTS + 1];
	unsigned n = cut(data, size, at);
	char leaf[32], path[SCRATCH_PATH], first[SCRATCH_PATH] = "";
	struct gguf *f = NULL;
	struct error err = {0};
	for (unsigned i = 0; i < n; i++) {
		snprintf(leaf, sizeof leaf, "m-%05u-of-%05u.gguf", i + 1, n);
		scratch_write(leaf, data + at[i], at[i + 1] - at[i], path);
		if (!i)
			memcpy(first, path, sizeof first);
	}
	if (gguf_open(first, &f, &err) == 0)
		read_tensors(f);
	else if (err.code == ERROR_NONE || !*err.message)
		abort();
	gguf_close(f);
	scratch_empty();
	return 0;
}
