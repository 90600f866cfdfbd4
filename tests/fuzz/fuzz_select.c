// SPDX-License-Identifier: Apache-2.0
// The files kdctl select reads: first byte the method (1, 2) and options of it (4, 8), then FILE and the method's other files, divided by
// NULs. What is chosen are lines of the input; what is not chosen has a reason.
#include <getopt.h>
#include <stdlib.h>
#include <string.h>

#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/quiet.h"
#include "tests/fuzz/scratch.h"

#define N_FILES 4

static void require(bool holds)
{
	if (!holds)
		abort();
}

static bool line_is_there(const char *line, size_t n, const char *text, size_t n_text)
{
	for (const char *at = text, *found; (found = memmem(at, (size_t)(text + n_text - at), line, n)); at = found + 1)
		if (found == text || found[-1] == '\n')
			return true;
	return false;
}

static void chosen_check(const char *from)
{
	size_t n, n_from, n_values;
	char *chosen = scratch_read("chosen", &n), *text = scratch_read(from, &n_from), *values = scratch_read("values", &n_values);
	require(chosen && text && values && n <= n_from);
	for (size_t at = 0, line; at < n; at += line) {
		const char *end = memchr(chosen + at, '\n', n - at);
		line = end ? (size_t)(end - chosen) + 1 - at : n - at;
		require(line_is_there(chosen + at, line, text, n_from));
	}
	free(chosen), free(text), free(values);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const char *const methods[] = {"difference", "dsir", "queries", "domains"};
	static const char *const leaves[N_FILES] = {"file", "second", "items", "previous"};
	static const char *const second[] = {"--reference", "--target", "--student", "--student"};
	char paths[N_FILES][SCRATCH_PATH], chosen[SCRATCH_PATH], values[SCRATCH_PATH];
	struct kdctl k = {.command = "select", .json = size & 1};
	if (!size)
		return 0;
	quiet_stdout();
	scratch_empty();
	const uint8_t *at = data + 1, *end = data + size;
	for (size_t i = 0; i < N_FILES; i++) {
		const uint8_t *part = at;
		size_t n = quiet_part(&at, end);
		scratch_write(leaves[i], part, n, paths[i]);
	}
	unsigned method = data[0] & 3, n = 0;
	const char *argv[24] = {"select", methods[method], second[method], paths[1]};
	n = 4;
	if (data[0] & 4 || method == 3)
		argv[n++] = "--items", argv[n++] = paths[2];
	if (data[0] & 8)
		argv[n++] = method == 3 ? "--previous" : method == 2 ? "--bad" : "--min-words", argv[n++] = method == 3 ? paths[3] : "1";
	argv[n++] = data[0] & 16 ? "--top" : "--seed=7";
	argv[n++] = "--output", argv[n++] = scratch_path("chosen", chosen);
	argv[n++] = "--values", argv[n++] = scratch_path("values", values);
	argv[n++] = paths[0];
	quiet_n_failures = 0;
	optind = 0;
	int status = command_select(&k, (int)n, (char **)(uintptr_t)argv);
	require((status != 0) == (quiet_n_failures > 0));
	if (!status && method != 3)
		chosen_check(data[0] & 4 ? "items" : "file");
	return 0;
}
