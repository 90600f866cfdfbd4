// SPDX-License-Identifier: Apache-2.0
#include "daemon/worker/snapshot_internal.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/crc32c.h"
#include "common/output.h"
#include "daemon/jansson.h"
#include "daemon/model/checkpoint.h"
#include "daemon/model/safetensors.h"
#include "daemon/model/weights.h"

#define SNAPSHOT_PREFIX "step-"
#define SNAPSHOT_PARTIAL ".new-"
#define SNAPSHOT_STATE_MAX (1 << 20)
#define SNAPSHOT_FILE_MAX (UINT64_C(1) << 32)  // of the file beside the arrays

// Array 0 are the parameters.
static struct optimizer_array array_at(const struct snapshot_arrays *a, uint32_t i)
{
	return i ? a->list[i - 1] : (struct optimizer_array){"parameters", a->weights->parameters->value};
}

static int file_path(char ret_path[PATH_MAX], const char *folder, const char *name, const char *suffix)
{
	int n = snprintf(ret_path, PATH_MAX, "%s/%s.%s", folder, name, suffix);
	return n >= 0 && n < PATH_MAX ? 0 : -ENAMETOOLONG;
}

static int path_join(char ret_path[PATH_MAX], const char *directory, const char *leaf)
{
	int n = snprintf(ret_path, PATH_MAX, "%s/%s", directory, leaf);
	return n >= 0 && n < PATH_MAX ? 0 : -ENAMETOOLONG;
}

static int file_checksum(const char *path, uint64_t *ret_bytes, uint32_t *ret_crc)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	char *buffer = malloc(1 << 20);
	ssize_t n = buffer ? 1 : -1;
	*ret_bytes = *ret_crc = 0;
	while (n > 0) {
		n = read(fd, buffer, 1 << 20);
		if (n > 0) {
			*ret_crc = crc32c(*ret_crc, buffer, (size_t)n);
			*ret_bytes += (uint64_t)n;
		}
	}
	int r = n < 0 ? (buffer ? -errno : -ENOMEM) : 0;
	free(buffer);
	close(fd);
	return r;
}

// The checksum of state.json's own content, which is taken without the member that holds it.
static int json_checksum(const json_t *j, uint32_t *ret_crc)
{
	char *text = jansson_dump(j, JSON_COMPACT | JSON_SORT_KEYS);
	if (!text)
		return -ENOMEM;
	*ret_crc = crc32c(0, text, strlen(text));
	free(text);
	return 0;
}

// A folder of plain files, as snapshots are; NULL-safe about absence.
static void folder_remove(const char *path)
{
	char inside[PATH_MAX];
	DIR *d = opendir(path);
	if (!d)
		return;
	for (struct dirent *e; (e = readdir(d));)
		if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0 && path_join(inside, path, e->d_name) == 0)
			unlink(inside);
	closedir(d);
	rmdir(path);
}

int snapshot_array_write(const char *path, const struct weights *w, const struct real *array, struct error *err)
{
	struct checkpoint_tensor *tensors = NULL;
	size_t n = 0;
	int r = weights_export(w, array, DTYPE_F32, &tensors, &n, err);
	r = r ? r : checkpoint_write_safetensors(path, tensors, n, err);
	weights_export_free(tensors, n);
	return r;
}

// What was written, into the list that the state has of it.
static int file_list(const char *path, const char *name, json_t *files, struct error *err)
{
	uint64_t bytes = 0;
	uint32_t crc = 0;
	int r = file_checksum(path, &bytes, &crc);
	if (r)
		return error_system(err, r, NULL, "cannot read back %s", path);
	json_t *entry = json_pack("{s:I, s:I}", "bytes", (json_int_t)bytes, "crc32c", (json_int_t)crc);
	return json_object_set_new(files, name, entry) ? error_set(err, ERROR_MEMORY, NULL, "out of memory") : 0;
}

static int array_save(const char *folder, const struct weights *w, const struct optimizer_array *array, json_t *files, struct error *err)
{
	char path[PATH_MAX];
	int r = file_path(path, folder, array->name, "safetensors");
	if (r)
		return error_system(err, r, NULL, "the path of the checkpoint is too long");
	r = snapshot_array_write(path, w, array->array, err);
	return r ? r : file_list(path, array->name, files, err);
}

static int beside_save(const char *folder, const struct snapshot_arrays *arrays, json_t *files, struct error *err)
{
	char path[PATH_MAX];
	if (!arrays->name)
		return 0;
	int r = file_path(path, folder, arrays->name, "bin");
	if (r)
		return error_system(err, r, NULL, "the path of the checkpoint is too long");
	r = checkpoint_write_file(path, arrays->bytes, arrays->n_bytes, err);
	return r ? r : file_list(path, arrays->name, files, err);
}

static int state_save(const char *folder, json_t *j, struct error *err)
{
	char path[PATH_MAX];
	uint32_t crc = 0;
	int r = json_checksum(j, &crc);
	char *text = NULL;
	if (r == 0 && json_object_set_new(j, "crc32c", json_integer(crc)) == 0)
		text = jansson_dump(j, JSON_INDENT(1) | JSON_SORT_KEYS);
	if (!text || path_join(path, folder, "state.json"))
		r = error_set(err, ERROR_MEMORY, NULL, "out of memory");
	else
		r = checkpoint_write_file(path, text, strlen(text), err);
	free(text);
	return r;
}

static int partial_write(const char *folder, const struct snapshot_arrays *arrays, const struct snapshot_state *state, struct error *err)
{
	json_t *files = json_object(), *j = snapshot_state_encode(state);
	int r = 0;
	if (!files || !j)
		r = error_set(err, ERROR_MEMORY, NULL, "out of memory");
	for (uint32_t i = 0; r == 0 && i <= arrays->n; i++) {
		struct optimizer_array array = array_at(arrays, i);
		r = array_save(folder, arrays->weights, &array, files, err);
	}
	r = r ? r : beside_save(folder, arrays, files, err);
	if (r == 0 && arrays->settings && json_object_set_new(j, "settings", snapshot_settings_encode(arrays->settings)))
		r = error_set(err, ERROR_MEMORY, NULL, "out of memory");
	if (r == 0 && json_object_set(j, "files", files))
		r = error_set(err, ERROR_MEMORY, NULL, "out of memory");
	r = r ? r : state_save(folder, j, err);
	json_decref(files);
	json_decref(j);
	return r;
}

static int is_snapshot(const struct dirent *e)
{
	size_t n = strlen(SNAPSHOT_PREFIX);
	return strncmp(e->d_name, SNAPSHOT_PREFIX, n) == 0 && e->d_name[n] && strspn(e->d_name + n, "0123456789") == strlen(e->d_name + n);
}

static int is_partial(const struct dirent *e)
{
	return strncmp(e->d_name, SNAPSHOT_PARTIAL, strlen(SNAPSHOT_PARTIAL)) == 0;
}

static int names_list(const char *directory, int (*which)(const struct dirent *), struct dirent ***ret_names)
{
	int n = scandir(directory, ret_names, which, alphasort);       // zero-padded numbers: alphabetical is numerical
	return n < 0 ? -errno : n;
}

// Removes all folders that `which` picks but `newest` and the keep - 1 before it. Those behind it go too: they did not verify when this run
// was resumed before them. NULL: all go.
static void folders_prune(const char *directory, int (*which)(const struct dirent *), const char *newest, int keep)
{
	char path[PATH_MAX];
	struct dirent **names;
	int n = names_list(directory, which, &names), end = n;
	while (end > 0 && (!newest || strcmp(names[end - 1]->d_name, newest) > 0))
		end--;
	for (int i = 0; i < n; i++) {
		if ((i >= end || i < end - keep) && path_join(path, directory, names[i]->d_name) == 0)
			folder_remove(path);
		free(names[i]);
	}
	if (n >= 0)
		free(names);
}

// One of the same step may be there: what a run wrote that is stopped before its next step, or what did not verify. It stays until the
// new one has its place, but where a file system cannot exchange two names.
static int folder_replace(const char *partial, const char *final)
{
	if (access(final, F_OK) == 0 && renameat2(AT_FDCWD, partial, AT_FDCWD, final, RENAME_EXCHANGE) == 0)
		return 0;
	folder_remove(final);
	return rename(partial, final) < 0 ? -errno : 0;
}

int snapshot_save(const char *directory, const struct snapshot_arrays *arrays, const struct snapshot_state *state, uint32_t keep,
		  struct error *err)
{
	char leaf[64], partial_leaf[64], partial[PATH_MAX], final[PATH_MAX];
	int r = output_folder(directory, 0750, NULL, err);
	if (r)
		return r;
	snprintf(leaf, sizeof leaf, SNAPSHOT_PREFIX "%012" PRIu64, state->step);
	snprintf(partial_leaf, sizeof partial_leaf, SNAPSHOT_PARTIAL "%012" PRIu64, state->step);
	r = path_join(final, directory, leaf);
	r = r ? r : path_join(partial, directory, partial_leaf);
	if (r)
		return error_system(err, r, NULL, "the path of the checkpoint is too long");
	folder_remove(partial);
	if (mkdir(partial, 0750) < 0)
		return error_system(err, errno, NULL, "cannot make %s", partial);
	r = partial_write(partial, arrays, state, err);
	if (r) {
		folder_remove(partial);
		return r;
	}
	r = output_sync_folder(partial);
	r = r ? r : folder_replace(partial, final);
	r = r ? r : output_sync_folder(directory);
	if (r)
		return error_system(err, r, NULL, "cannot finish the checkpoint %s", final);
	folders_prune(directory, is_partial, NULL, 0);
	folders_prune(directory, is_snapshot, leaf, (int)keep);
	return 0;
}

static int corrupt(struct error *err, const char *folder, const char *what)
{
	return error_set(err, ERROR_CORRUPT, NULL, "checkpoint %s: %s", folder, what);
}

static int no_memory(struct error *err, const char *folder)
{
	return error_set(err, ERROR_MEMORY, NULL, "no memory to read checkpoint %s", folder);
}

static int state_read(const char *folder, struct snapshot_state *ret_state, json_t **ret_json, struct error *err)
{
	char path[PATH_MAX];
	struct stat st;
	uint64_t said;
	uint32_t crc;
	if (path_join(path, folder, "state.json") || stat(path, &st) < 0 || st.st_size > SNAPSHOT_STATE_MAX)
		return corrupt(err, folder, "state.json is missing or too large");
	bool starved;
	json_t *j = jansson_load_file(path, JSON_REJECT_DUPLICATES, NULL, &starved);
	if (starved)
		return no_memory(err, folder);
	bool told = snapshot_integer(j, "crc32c", &said) && json_object_del(j, "crc32c") == 0;
	int r = told ? json_checksum(j, &crc) : 0;
	if (r) {
		json_decref(j);
		return no_memory(err, folder);
	}
	if (!told || crc != said || !snapshot_state_decode(j, ret_state)) {
		json_decref(j);
		return corrupt(err, folder, "state.json is damaged");
	}
	*ret_json = j;
	return 0;
}

static int file_verify(const char *folder, const json_t *files, const char *name, const char *suffix, struct error *err)
{
	char path[PATH_MAX], what[96];
	const json_t *said = json_object_get(files, name);
	uint64_t bytes = 0, bytes_said, crc_said;
	uint32_t crc = 0;
	bool told = snapshot_integer(said, "bytes", &bytes_said) && snapshot_integer(said, "crc32c", &crc_said) &&
		file_path(path, folder, name, suffix) == 0;
	int r = told ? file_checksum(path, &bytes, &crc) : -EBADMSG;
	if (r == -ENOMEM)
		return no_memory(err, folder);
	if (r == 0 && bytes == bytes_said && crc == crc_said)
		return 0;
	snprintf(what, sizeof what, "%s.%s is missing or damaged", name, suffix);
	return corrupt(err, folder, what);
}

static int files_verify(const char *folder, const json_t *j, const struct snapshot_arrays *arrays, struct error *err)
{
	const json_t *files = json_object_get(j, "files");
	if (json_object_size(files) != arrays->n + 1 + (arrays->name != NULL))
		return corrupt(err, folder, "it is of another optimizer");
	for (uint32_t i = 0; i <= arrays->n; i++) {
		int r = file_verify(folder, files, array_at(arrays, i).name, "safetensors", err);
		if (r)
			return r;
	}
	return arrays->name ? file_verify(folder, files, arrays->name, "bin", err) : 0;
}

// Once it was verified. The bytes of one that was read before go.
static int beside_load(const char *folder, struct snapshot_arrays *arrays, struct error *err)
{
	char path[PATH_MAX];
	struct stat st;
	if (!arrays->name)
		return 0;
	FILE *f = file_path(path, folder, arrays->name, "bin") ? NULL : fopen(path, "re");
	if (!f || fstat(fileno(f), &st) < 0 || (uint64_t)st.st_size > SNAPSHOT_FILE_MAX) {
		if (f)
			fclose(f);
		return corrupt(err, folder, "what lies beside its arrays cannot be read");
	}
	free(arrays->bytes);
	arrays->n_bytes = (size_t)st.st_size;
	arrays->bytes = malloc(arrays->n_bytes + 1);
	size_t got = arrays->bytes ? fread(arrays->bytes, 1, arrays->n_bytes, f) : 0;
	fclose(f);
	if (!arrays->bytes)
		return error_set(err, ERROR_MEMORY, NULL, "out of memory");
	return got == arrays->n_bytes ? 0 : corrupt(err, folder, "what lies beside its arrays cannot be read");
}

static int source_find(void *file, const char *name, struct tensor *ret_tensor, struct error *err)
{
	return safetensors_read(file, name, ret_tensor, err);
}

static void source_release(void *file, struct tensor *tensor)
{
	(void)file;
	free((void *)(uintptr_t)tensor->data);
	tensor->data = NULL;
}

int snapshot_array_read(const char *path, struct weights *w, struct real *array, struct error *err)
{
	struct safetensors *file = NULL;
	int r = safetensors_open(path, &file, err);
	struct tensor_source source = {.file = file, .find = source_find, .release = source_release};
	r = r ? r : weights_fill_array(w, array, &source, err);
	safetensors_close(file);
	return r;
}

static int array_load(const char *folder, struct weights *w, const struct optimizer_array *array, struct error *err)
{
	char path[PATH_MAX];
	if (file_path(path, folder, array->name, "safetensors"))
		return corrupt(err, folder, "its path is too long");
	return snapshot_array_read(path, w, array->array, err);
}

static int one_load(const char *folder, struct snapshot_arrays *arrays, struct snapshot_state *ret_state, struct error *err)
{
	json_t *j = NULL;
	int r = state_read(folder, ret_state, &j, err);
	r = r ? r : files_verify(folder, j, arrays, err);
	json_decref(j);
	for (uint32_t i = 0; r == 0 && i <= arrays->n; i++) {
		struct optimizer_array array = array_at(arrays, i);
		r = array_load(folder, arrays->weights, &array, err);
	}
	r = r ? r : beside_load(folder, arrays, err);
	if (r == 0)
		weights_refresh(arrays->weights);
	return r;
}

int snapshot_load(const char *directory, struct snapshot_arrays *arrays, struct snapshot_state *ret_state, struct error *ret_skipped,
		  struct error *err)
{
	char folder[PATH_MAX];
	struct dirent **names;
	*ret_skipped = (struct error){0};
	int n = names_list(directory, is_snapshot, &names), r = -ENOENT;
	if (n < 0)
		return n == -ENOENT ? n : error_system(err, n, NULL, "cannot read %s", directory);
	for (int i = n - 1; i >= 0; i--) {
		if (r && r != -ENOMEM)         // which another time may not be lacking; who is passed over is removed
			r = path_join(folder, directory, names[i]->d_name) ? -ENAMETOOLONG
				: one_load(folder, arrays, ret_state, ret_skipped);
		free(names[i]);
	}
	free(names);
	if (r == -ENOMEM)
		*err = *ret_skipped;
	else if (r && n)
		return error_set(err, ERROR_CORRUPT, NULL, "no checkpoint in %s can be used: %s", directory, ret_skipped->message);
	return r;
}

int snapshot_peek(const char *directory, struct snapshot_state *ret_state, char **ret_settings, struct error *err)
{
	char folder[PATH_MAX];
	struct dirent **names;
	int n = names_list(directory, is_snapshot, &names), r = -ENOENT;
	*ret_settings = NULL;
	if (n < 0 && n != -ENOENT)
		return error_system(err, n, NULL, "cannot read %s", directory);
	for (int i = n - 1; i >= 0; i--) {
		json_t *j = NULL;
		struct error why = {0};
		int k = r && r != -ENOMEM && path_join(folder, directory, names[i]->d_name) == 0 ? state_read(folder, ret_state, &j, &why)
			: -EALREADY;
		if (k == -ENOMEM) {
			*err = why;
			r = k;
		} else if (k == 0) {
			*ret_settings = snapshot_settings_decode(json_object_get(j, "settings"));
			r = *ret_settings ? 0 : corrupt(err, folder, "it does not say which settings it is of");
			json_decref(j);
		}
		free(names[i]);
	}
	if (n >= 0)
		free(names);
	return r;
}
