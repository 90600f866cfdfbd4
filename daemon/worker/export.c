// SPDX-License-Identifier: Apache-2.0
#include "daemon/worker/export.h"

#include <dirent.h>
#include <errno.h>
#include <jansson.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/error.h"
#include "common/output.h"
#include "daemon/jansson.h"
#include "daemon/model/checkpoint.h"
#include "daemon/model/config.h"
#include "daemon/model/tokenizer.h"
#include "daemon/model/weights.h"

static const char *const export_files[] = {
	"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
};

static int path_join(char ret_path[PATH_MAX], const char *directory, const char *leaf, struct error *err)
{
	int n = snprintf(ret_path, PATH_MAX, "%s/%s", directory, leaf);
	return n >= 0 && n < PATH_MAX ? 0 : error_system(err, ENAMETOOLONG, NULL, "the path of the student is too long");
}

static int text_write(const char *folder, const char *leaf, const char *text, size_t n, struct error *err)
{
	char path[PATH_MAX];
	int r = path_join(path, folder, leaf, err);
	return r ? r : checkpoint_write_file(path, text, n, err);
}

static int generation_write(const char *folder, const struct architecture *a, struct error *err)
{
	json_t *j = json_object();
	int bad = !j || json_object_set_new(j, "_from_model_config", json_true());
	if (a->bos_id >= 0)
		bad |= json_object_set_new(j, "bos_token_id", json_integer(a->bos_id));
	if (a->eos_id >= 0)
		bad |= json_object_set_new(j, "eos_token_id", json_integer(a->eos_id));
	char *text = bad ? NULL : jansson_dump(j, JSON_INDENT(2));
	json_decref(j);
	int r = text ? text_write(folder, "generation_config.json", text, strlen(text), err)
		: error_set(err, ERROR_MEMORY, NULL, "out of memory");
	free(text);
	return r;
}

int export_check(const struct architecture *a, struct error *err)
{
	char *text = NULL;
	int r = architecture_to_json(a, &text, err);
	free(text);
	return r;
}

static int config_write(const char *folder, const struct architecture *a, struct error *err)
{
	char *text = NULL;
	int r = architecture_to_json(a, &text, err);
	r = r ? r : text_write(folder, "config.json", text, strlen(text), err);
	free(text);
	return r ? r : generation_write(folder, a, err);
}

static int tokenizer_write(const char *folder, const struct tokenizer *t, struct error *err)
{
	char *text = NULL;
	size_t n = 0;
	int r = tokenizer_to_json(t, &text, &n, err);
	r = r ? r : text_write(folder, "tokenizer.json", text, n, err);
	free(text);
	text = NULL;
	r = r ? r : tokenizer_config_to_json(t, &text, &n, err);
	r = r ? r : text_write(folder, "tokenizer_config.json", text, n, err);
	free(text);
	return r;
}

static int weights_write(const char *folder, const struct weights *w, enum dtype dtype, struct error *err)
{
	char path[PATH_MAX];
	struct checkpoint_tensor *tensors = NULL;
	size_t n = 0;
	int r = path_join(path, folder, "model.safetensors", err);
	r = r ? r : weights_export(w, w->parameters->value, dtype, &tensors, &n, err);
	r = r ? r : checkpoint_write_safetensors(path, tensors, w->parameters->n_model, err);
	weights_export_free(tensors, n);
	return r;
}

// Only what an export consists of, and what a killed one left half written: a folder that holds anything else is not ours and stays (the
// rename then says so).
static void export_remove(const char *folder)
{
	char path[PATH_MAX], leaf[64];
	for (size_t i = 0; i < sizeof export_files / sizeof *export_files; i++) {
		if (path_join(path, folder, export_files[i], NULL) == 0)
			unlink(path);
		snprintf(leaf, sizeof leaf, "%s" OUTPUT_TEMPORARY, export_files[i]);
		if (path_join(path, folder, leaf, NULL) == 0)
			unlink(path);
	}
	rmdir(folder);
}

int export_student(const char *path, const struct weights *w, const struct tokenizer *t, enum dtype dtype, struct error *err)
{
	char partial[PATH_MAX];
	if (snprintf(partial, sizeof partial, "%s.new", path) >= (int)sizeof partial)
		return error_system(err, ENAMETOOLONG, NULL, "the path of the student is too long");
	export_remove(partial);
	if (mkdir(partial, 0755) < 0)
		return error_system(err, errno, NULL, "cannot make %s", partial);
	int r = config_write(partial, &w->architecture, err);
	r = r ? r : tokenizer_write(partial, t, err);
	r = r ? r : weights_write(partial, w, dtype, err);
	if (r) {
		export_remove(partial);
		return r;
	}
	export_remove(path);
	if (rename(partial, path) < 0)
		return error_system(err, errno, NULL, "cannot rename %s to %s", partial, path);
	return output_sync_name(path, err);
}
