// SPDX-License-Identifier: Apache-2.0
// Faults of GPUs are counted over restarts.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/error.h"
#include "daemon/teacher/faults.h"
#include "tests/unit/leftovers.h"

static char folder[] = "/tmp/kdserved-faults-XXXXXX";

static int make_folder(void **state)
{
	(void)state;
	strcpy(strrchr(folder, '-'), "-XXXXXX");
	return mkdtemp(folder) ? 0 : -1;
}

static int remove_folder(void **state)
{
	(void)state;
	tree_remove(folder);
	return 0;
}

static void assert_counts(const char *directory, unsigned restart, unsigned reset, unsigned support)
{
	struct faults f = {0};
	struct error err = {0};
	assert_int_equal(faults_open(&f, directory, &err), 0);
	assert_int_equal(f.n[DEVICE_FAULT_RESTART], restart);
	assert_int_equal(f.n[DEVICE_FAULT_RESET], reset);
	assert_int_equal(f.n[DEVICE_FAULT_SUPPORT], support);
	faults_close(&f);
}

static void counts_outlive_the_process(void **state)
{
	(void)state;
	assert_counts(folder, 0, 0, 0);
	for (enum device_fault fault = DEVICE_FAULT_RESTART; fault < N_DEVICE_FAULTS; fault++)
		for (enum device_fault i = DEVICE_FAULT_RESTART; i <= fault; i++) {
			struct faults f = {0};
			struct error err = {0};
			assert_int_equal(faults_open(&f, folder, &err), 0);
			assert_int_equal(faults_note(&f, fault, &err), 0);
			faults_close(&f);
		}
	assert_counts(folder, 1, 2, 3);
}

static void without_a_folder_they_are_only_counted(void **state)
{
	(void)state;
	struct faults f = {0};
	struct error err = {0};
	assert_int_equal(faults_open(&f, "", &err), 0);
	assert_int_equal(faults_note(&f, DEVICE_FAULT_RESET, &err), 0);
	assert_int_equal(f.n[DEVICE_FAULT_RESET], 1);
	faults_close(&f);
}

static void write_text(const char *text)
{
	char path[128];
	snprintf(path, sizeof path, "%s/gpu.faults", folder);
	FILE *f = fopen(path, "w");
	assert_non_null(f);
	assert_int_equal(fwrite(text, 1, strlen(text), f), strlen(text));
	assert_int_equal(fclose(f), 0);
}

// It is told, and written over by the next fault.
static void a_broken_file_is_no_count(void **state)
{
	static const char *const broken[] = {"", "restart 1\nreset", "reset 1\nrestart 2\nsupport 3\n", "restart x\nreset 1\nsupport 1\n"};
	(void)state;
	for (size_t i = 0; i < sizeof broken / sizeof *broken; i++) {
		struct faults f = {0};
		struct error err = {0};
		write_text(broken[i]);
		assert_true(faults_open(&f, folder, &err) < 0);
		assert_non_null(strstr(err.message, "gpu.faults"));
		assert_int_equal(f.n[DEVICE_FAULT_RESTART], 0);
		assert_int_equal(faults_note(&f, DEVICE_FAULT_RESTART, &err), 0);
		faults_close(&f);
		assert_counts(folder, 1, 0, 0);
	}
}

static void a_disk_that_refuses_is_told(void **state)
{
	(void)state;
	struct faults f = {0};
	struct error err = {0};
	assert_int_equal(faults_open(&f, "/nowhere/at/all", &err), 0);
	assert_true(faults_note(&f, DEVICE_FAULT_SUPPORT, &err) < 0);
	assert_int_equal(f.n[DEVICE_FAULT_SUPPORT], 1);
	faults_close(&f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(counts_outlive_the_process, make_folder, remove_folder),
		cmocka_unit_test(without_a_folder_they_are_only_counted),
		cmocka_unit_test_setup_teardown(a_broken_file_is_no_count, make_folder, remove_folder),
		cmocka_unit_test(a_disk_that_refuses_is_told),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
