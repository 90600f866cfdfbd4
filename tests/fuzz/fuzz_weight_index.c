// SPDX-License-Identifier: Apache-2.0
// A directory of weights: model.safetensors.index.json, and behind the first NUL the shard a.safetensors; b.safetensors has the tensor "b".
// What opens lies whole in files of the directory, each tensor where the index says.
#include <stdlib.h>
#include <string.h>

#include "common/error.h"
#include "daemon/model/safetensors.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/quiet.h"
#include "tests/fuzz/scratch.h"

static void require(bool holds)
{
	if (!holds)
		abort();
}

static void shard_write(void)
{
	static const char head[] = "{\"b\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}";
	uint8_t bytes[8 + sizeof head - 1 + 8] = {sizeof head - 1};
	char path[SCRATCH_PATH];
	memcpy(bytes + 8, head, sizeof head - 1);
	scratch_write("b.safetensors", bytes, sizeof bytes, path);
}

static void tensors_check(const struct safetensors *s, const json_t *map)
{
	struct error err = {0};
	struct tensor t;
	require(safetensors_count(s) == json_object_size(map));
	for (size_t i = 0; i < safetensors_count(s); i++) {
		const char *name = safetensors_name(s, i), *file = json_string_value(json_object_get(map, name));
		require(file && (strcmp(file, "a.safetensors") == 0 || strcmp(file, "b.safetensors") == 0));
		require(i == 0 || strcmp(safetensors_name(s, i - 1), name) < 0);
		if (safetensors_find(s, name, &t, &err) < 0) {
			require(err.code == ERROR_UNSUPPORTED);
			continue;
		}
		require(safetensors_read(s, name, &t, &err) == 0);
		free((void *)(uintptr_t)t.data);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static bool made;
	const uint8_t *at = data, *end = data + size;
	char path[SCRATCH_PATH];
	struct safetensors *s = NULL;
	struct error err = {0};
	if (!made)
		shard_write();
	made = true;
	size_t n = quiet_part(&at, end);
	scratch_write("model.safetensors.index.json", data, n, path);
	scratch_write("a.safetensors", at, (size_t)(end - at), path);
	if (safetensors_open_directory(scratch_folder(), &s, &err) < 0) {
		require(err.code && err.message[0]);
		return 0;
	}
	json_t *index = json_loadb((const char *)data, n, 0, NULL);
	tensors_check(s, json_object_get(index, "weight_map"));
	json_decref(index);
	safetensors_close(s);
	return 0;
}
