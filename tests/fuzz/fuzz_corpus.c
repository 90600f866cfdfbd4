// SPDX-License-Identifier: Apache-2.0
// A run's corpus: first byte says whether the rest is plain text or lines of JSON (8), with a prompt (4), and how texts are packed (1, 2).
// What was read has tokens of the vocabulary and no sequence that is too long.
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/error.h"
#include "daemon/train/settings.h"
#include "daemon/worker/dataset.h"
#include "daemon/worker/texts.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/letters.h"

#define LENGTH 8

static void require(bool holds)
{
	if (!holds)
		abort();
}

static char root[] = "/tmp/fuzz_corpus.XXXXXX", path[64];

static void root_remove(void)
{
	for (int i = 0; i < 2; i++) {
		snprintf(path, sizeof path, "%s/%s", root, i ? "corpus.txt" : "corpus.jsonl");
		unlink(path);
	}
	rmdir(root);
}

static void file_write(const char *leaf, const uint8_t *data, size_t size)
{
	static bool made;
	if (!made)
		require(mkdtemp(root) != NULL && atexit(root_remove) == 0);
	made = true;
	snprintf(path, sizeof path, "%s/%s", root, leaf);
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	require(fd >= 0 && write(fd, data, size) == (ssize_t)size);
	close(fd);
}

static void set(struct run_settings *s, const char *name, const char *value)
{
	size_t n;
	const struct config_option *table = settings_table(&n);
	require(config_set(table, n, s, name, value, "run.conf:1", NULL) == 0);
}

static void dataset_check(struct dataset *d)
{
	if (dataset_split(d, NULL))
		return;
	for (uint64_t i = 0; i < dataset_n_train(d) && i < 64; i++) {
		struct sequence s = dataset_train_at(d, i);
		require(s.n_tokens <= LENGTH);
		for (uint32_t k = 0; k < s.n_tokens; k++)
			require(s.tokens[k] < LETTERS_VOCABULARY);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const char *const packings[] = {"wrapped", "bfd", "off", "bfd"};
	struct dataset_options o = {.sequence_length = LENGTH, .held_out = .1, .held_out_max = 4, .seed = 1};
	struct run_settings s;
	struct dataset *d = NULL;
	struct error err = {0};
	if (!size)
		return 0;
	file_write(data[0] & 8 ? "corpus.jsonl" : "corpus.txt", data + 1, size - 1);
	require(settings_init(&s, NULL) == 0);
	set(&s, "corpus", path);
	set(&s, "packing", packings[data[0] & 3]);
	if ((data[0] & 12) == 12)
		set(&s, "corpus-prompt", "prompt");
	o.packed = s.packing == RUN_PACKING_BFD;
	o.documents = s.packing != RUN_PACKING_WRAPPED || s.corpus_prompt;
	if (texts_read(&s, letters(), &o, &d, &err) == 0)
		dataset_check(d);
	else
		require(err.code && err.message[0]);
	dataset_free(d);
	settings_done(&s);
	return 0;
}
