// SPDX-License-Identifier: Apache-2.0
// What a power cut must not take: the names of new folders, and what a file held before it is written anew. What was synced is noted.
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>

#include "common/error.h"
#include "common/output.h"
#include "daemon/store/store.h"
#include "daemon/train/run.h"
#include "daemon/train/supervisor.h"
#include "tests/unit/leftovers.h"

#define MOST 256

static struct stat synced[MOST];
static unsigned n_synced, n_renamed, n_renamed_unsynced;
static char root[] = "/tmp/kdserved-names-XXXXXX";

int __wrap_fsync(int fd);
int __real_fsync(int fd);
int __wrap_rename(const char *from, const char *to);
int __real_rename(const char *from, const char *to);

int __wrap_fsync(int fd)
{
	if (n_synced == MOST || fstat(fd, &synced[n_synced++]))
		abort();
	return __real_fsync(fd);
}

static bool is_synced(const char *path)
{
	struct stat st;
	assert_int_equal(stat(path, &st), 0);
	for (unsigned i = 0; i < n_synced; i++)
		if (synced[i].st_dev == st.st_dev && synced[i].st_ino == st.st_ino)
			return true;
	return false;
}

int __wrap_rename(const char *from, const char *to)
{
	n_renamed++;
	n_renamed_unsynced += !is_synced(from);
	return __real_rename(from, to);
}

static const char *under(const char *leaf)
{
	static char path[256];
	snprintf(path, sizeof path, "%s/%s", root, leaf);
	return path;
}

static void folder(const char *leaf, const char *parent)
{
	struct error err;
	n_synced = 0;
	assert_int_equal(output_folder(under(leaf), 0750, "field", &err), 0);
	assert_true(is_synced(under(parent)));
	n_synced = 0;
	assert_int_equal(output_folder(under(leaf), 0750, "field", &err), 0);
	assert_int_equal(n_synced, 0);                 // it was there
}

static void a_new_folder_is_in_its_parent(void **state)
{
	struct error err;
	(void)state;
	folder("a", "");
	folder("a/b", "a");
	folder("a/c//", "a");
	assert_int_equal(output_folder(under("none/b"), 0750, "field", &err), -ENOENT);
	assert_string_equal(err.field, "field");
}

static void a_new_run_is_in_the_folder_of_runs(void **state)
{
	static const char config[] = "corpus = /nowhere\nsteps = 10\n";
	struct supervisor *s = NULL;
	struct error err;
	char id[RUN_ID_MAX + 1];
	(void)state;
	n_synced = 0;
	char *directory = strdup(under("runs"));
	const struct supervisor_options o = {.directory = directory, .worker_path = "/bin/false"};     // none may run
	assert_int_equal(supervisor_open(&o, &s, &err), 0);
	assert_true(is_synced(root));
	n_synced = 0;
	assert_int_equal(supervisor_start(s, "one", config, sizeof config - 1, id, &err), 0);
	assert_true(is_synced(directory));
	assert_true(is_synced(under("runs/one")) && is_synced(under("runs/one/run.conf")) && is_synced(under("runs/one/status.json")));
	supervisor_close(s, 1000);
	free(directory);
}

static void progress_does_not_endanger_the_state(void **state)
{
	struct run r;
	struct error err;
	(void)state;
	assert_int_equal(mkdir(under("one"), 0750), 0);
	assert_int_equal(run_init(&r, "one"), 0);
	n_synced = n_renamed = n_renamed_unsynced = 0;
	assert_int_equal(run_save(root, &r, true, &err), 0);
	assert_int_equal(run_save(root, &r, false, &err), 0);
	assert_int_equal(n_renamed, 2);
	assert_int_equal(n_renamed_unsynced, 0);
	run_done(&r);
}

static void a_new_store_is_in_its_parent(void **state)
{
	struct store *s = NULL;
	struct error err;
	(void)state;
	n_synced = 0;
	char *directory = strdup(under("store"));
	assert_int_equal(store_open(&(struct store_options){.directory = directory}, &s, &err), 0);
	assert_true(is_synced(root));
	store_close(s);
	free(directory);
}

static int setup(void **state)
{
	(void)state;
	return mkdtemp(root) ? 0 : -1;
}

static int teardown(void **state)
{
	(void)state;
	return tree_remove(root);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_new_folder_is_in_its_parent),
		cmocka_unit_test(a_new_run_is_in_the_folder_of_runs),
		cmocka_unit_test(progress_does_not_endanger_the_state),
		cmocka_unit_test(a_new_store_is_in_its_parent),
	};
	return cmocka_run_group_tests(tests, setup, teardown);
}
