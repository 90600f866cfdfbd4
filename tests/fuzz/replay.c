// SPDX-License-Identifier: Apache-2.0
// Stands in for libFuzzer in ordinary builds: fuzz_X replays every file of tests/fuzz/corpus/X, whole and cut short, so that
// `make check` runs each fuzz target. `fuzz_X FILE...` replays just those files (to reproduce a finding).
#include <dirent.h>
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/fuzz/fuzz.h"

#define MAX_FILE_BYTES (1 << 20)
#define N_CUTS 64        // lengths tried of each file besides its own, evenly spaced

// A copy of exactly n bytes, so that a sanitizer sees the first byte read too far.
static void replay(const uint8_t *data, size_t n)
{
	uint8_t *copy = malloc(n ? n : 1);
	if (!copy)
		abort();
	if (n)
		memcpy(copy, data, n);
	LLVMFuzzerTestOneInput(copy, n);
	free(copy);
}

static int replay_file(const char *path)
{
	static uint8_t data[MAX_FILE_BYTES + 1];
	FILE *f = fopen(path, "rb");
	if (!f) {
		fprintf(stderr, "replay: %s: %s\n", path, strerror(errno));
		return 1;
	}
	size_t n = fread(data, 1, sizeof data, f);
	int failed = ferror(f) || n > MAX_FILE_BYTES;
	fclose(f);
	if (failed) {
		fprintf(stderr, "replay: %s: cannot be read or is larger than %d bytes\n", path, MAX_FILE_BYTES);
		return 1;
	}
	replay(data, n);
	for (size_t i = 0; i < N_CUTS; i++)
		replay(data, n * i / N_CUTS);
	return 0;
}

static int replay_directory(const char *path)
{
	DIR *directory = opendir(path);
	if (!directory) {
		fprintf(stderr, "replay: %s: %s\n", path, strerror(errno));
		return 1;
	}
	int failed = 0;
	size_t n_files = 0;
	for (struct dirent *entry; (entry = readdir(directory));) {
		char file[4096];
		if (entry->d_name[0] == '.')
			continue;
		int length = snprintf(file, sizeof file, "%s/%s", path, entry->d_name);
		failed |= length >= (int)sizeof file || replay_file(file);
		n_files++;
	}
	closedir(directory);
	printf("%zu files of %s replayed\n", n_files, path);
	return failed || !n_files;    // an empty corpus tests nothing
}

int main(int argc, char **argv)
{
	if (argc > 1) {
		int failed = 0;
		for (int i = 1; i < argc; i++)
			failed |= replay_file(argv[i]);
		return failed;
	}
	const char *name = strstr(argv[0], "fuzz_");
	for (const char *next = name; next; next = strstr(next + 1, "fuzz_"))
		name = next;
	const char *source = getenv("top_srcdir");
	char path[4096];
	if (!name || snprintf(path, sizeof path, "%s/tests/fuzz/corpus/%s", source ? source : ".", name + 5) >= (int)sizeof path) {
		fprintf(stderr, "replay: a program named fuzz_X is expected\n");
		return 2;
	}
	return replay_directory(path);
}
