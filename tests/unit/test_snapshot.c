// SPDX-License-Identifier: Apache-2.0
// Checkpoints: what was saved comes back bit for bit, a damaged one is passed over, old ones and half-written ones go.
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

#include "daemon/model/weights.h"
#include "daemon/worker/snapshot.h"
#include "kernels/backend.h"
#include "tests/unit/leftovers.h"
#include "tests/unit/starve.h"

struct fixture {
	char directory[64];
	struct backend *backend;
	struct weights *weights;
	struct optimizer *optimizer;
	struct snapshot_arrays arrays;
};

static int setup(void **state)
{
	struct architecture a = {.name = "llama", .n_layers = 1, .width = 8, .ffn_width = 12, .n_heads = 2, .n_kv_heads = 1, .head_size = 4,
				 .vocab_size = 11, .context_length = 16, .norm_epsilon = 1e-5f, .rope_theta = 10000, .tied_head = true,
				 .bos_id = -1, .eos_id = -1};
	struct backend_options o = {.n_threads = 1, .max_rows = 16};
	struct fixture *f = calloc(1, sizeof *f);
	strcpy(f->directory, "/tmp/kdserved-test-XXXXXX");
	assert_non_null(mkdtemp(f->directory));
	assert_int_equal(backend_open("cpu", &o, &f->backend, NULL), 0);
	assert_int_equal(weights_new_trainable(f->backend, &a, 3, 16, &f->weights, NULL), 0);
	assert_int_equal(optimizer_new(&(struct optimizer_options){.learning_rate = 1, .steps = 1}, f->weights, &f->optimizer, NULL), 0);
	f->arrays.weights = f->weights;
	f->arrays.n = optimizer_arrays(f->optimizer, f->arrays.list);
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;
	optimizer_free(f->optimizer);
	weights_free(f->weights);
	backend_close(f->backend);
	tree_remove(f->directory);
	free(f);
	return 0;
}

// Fills the three arrays with numbers that depend on `salt`, some of them subnormal or negative.
static void arrays_fill(struct fixture *f, float salt)
{
	struct parameters *p = f->weights->parameters;
	struct real *arrays[3] = {p->value, f->arrays.list[0].array, f->arrays.list[1].array};
	float *x = malloc(p->n_values * sizeof *x);
	for (int k = 0; k < 3; k++) {
		for (size_t i = 0; i < p->n_values; i++)
			x[i] = i % 5 == 4 ? 1e-41f * salt : sinf((float)i * salt + (float)k);
		f->backend->ops->real_write(f->backend, arrays[k], x, p->n_values);
	}
	free(x);
}

static double *arrays_read(struct fixture *f)
{
	struct parameters *p = f->weights->parameters;
	struct real *arrays[3] = {p->value, f->arrays.list[0].array, f->arrays.list[1].array};
	double *x = malloc(3 * p->n_values * sizeof *x);
	for (int k = 0; k < 3; k++)
		f->backend->ops->real_read(f->backend, x + (size_t)k * p->n_values, arrays[k], p->n_values);
	return x;
}

static struct snapshot_state state_of(uint64_t step)
{
	struct snapshot_state s = {.step = step, .position = 8 * step, .n_positions = 77 * step, .n_masked = 1, .seconds = 1.0 / 3,
				   .seed = 9, .sequence_length = 64, .batch = 8, .n_held_out = 5, .sequential = 1, .n_evaluations = 2,
				   .best_evaluation = 1, .rollout_chance = 0.1 + 0.2, .rollout_reference = 1.0 / 3};
	s.guard = (struct guard_state){3, 1.0 / 3, -2, 1e-300, 5, 6.1, 7, 8, 1, 2, 1};
	memset(&s.teacher, 0xab, sizeof s.teacher);
	memset(&s.dataset, 0xcd, sizeof s.dataset);
	s.before = (struct student_evaluation){.kl = 1.0 / 7, .ce = 2.0 / 7, .agreement = 3.0 / 7, .teacher_ce = 4.0 / 7,
					       .bits_per_byte = 5.0 / 7, .teacher_bits_per_byte = 6.0 / 7, .n_positions = 100};
	s.last = (struct student_evaluation){.kl = 1.0 / 9, .ce = 2.0 / 9, .agreement = 3.0 / 9, .teacher_ce = NAN, .bits_per_byte = NAN,
					     .teacher_bits_per_byte = NAN, .n_positions = 100};
	s.best = s.last;
	return s;
}

static void save(struct fixture *f, uint64_t step, uint32_t keep)
{
	struct snapshot_state s = state_of(step);
	struct error err = {0};
	arrays_fill(f, (float)step);
	if (snapshot_save(f->directory, &f->arrays, &s, keep, &err))
		fail_msg("%s", err.message);
}

// Loads and checks that everything of `step` came back.
static void assert_loads(struct fixture *f, uint64_t step, bool skipped)
{
	struct snapshot_state s, expected = state_of(step);
	struct error skip, err = {0};
	arrays_fill(f, (float)step);
	double *right = arrays_read(f);
	arrays_fill(f, 1234);
	if (snapshot_load(f->directory, &f->arrays, &s, &skip, &err))
		fail_msg("%s", err.message);
	double *got = arrays_read(f);
	assert_memory_equal(got, right, 3 * f->weights->parameters->n_values * sizeof *got);
	assert_int_equal(skip.code != ERROR_NONE, skipped);
	assert_int_equal(s.step, expected.step);
	assert_int_equal(s.position, expected.position);
	assert_int_equal(s.n_positions, expected.n_positions);
	assert_true(s.seconds == expected.seconds && s.before.kl == expected.before.kl && s.last.ce == expected.last.ce);
	assert_true(isnan(s.last.teacher_ce) && s.before.teacher_ce == expected.before.teacher_ce);
	assert_int_equal(snapshot_compare(&s, &expected, NULL), 0);
	free(right);
	free(got);
}

static void what_was_saved_comes_back_bit_for_bit(void **state)
{
	save(*state, 5, 2);
	assert_loads(*state, 5, false);
}

static void nothing_there_is_not_an_error_of_the_disk(void **state)
{
	struct fixture *f = *state;
	struct snapshot_state s;
	struct error skip, err = {0};
	char path[128];
	assert_int_equal(snapshot_load(f->directory, &f->arrays, &s, &skip, &err), -ENOENT);
	snprintf(path, sizeof path, "%s/absent", f->directory);
	assert_int_equal(snapshot_load(path, &f->arrays, &s, &skip, &err), -ENOENT);
	assert_int_equal(err.code, ERROR_NONE);
}

static void only_the_newest_are_kept_and_half_written_ones_go(void **state)
{
	struct fixture *f = *state;
	char path[128];
	int n = 0;
	snprintf(path, sizeof path, "%s/.new-000000000003", f->directory);
	assert_int_equal(mkdir(path, 0750), 0);
	for (uint64_t step = 8; step <= 11; step++)    // over a change in the number of digits
		save(f, step, 2);
	save(f, 11, 2);                                // again over what is there
	DIR *d = opendir(f->directory);
	for (struct dirent *e; (e = readdir(d));)
		n += strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0;
	closedir(d);
	assert_int_equal(n, 2);
	assert_loads(f, 11, false);
}

static void damage(struct fixture *f, uint64_t step, const char *leaf, long at, bool cut)
{
	char path[160];
	struct stat st;
	snprintf(path, sizeof path, "%s/step-%012llu/%s", f->directory, (unsigned long long)step, leaf);
	assert_int_equal(stat(path, &st), 0);
	if (cut) {
		assert_int_equal(truncate(path, st.st_size - 1), 0);
		return;
	}
	FILE *file = fopen(path, "r+");
	fseek(file, at < 0 ? st.st_size + at : at, SEEK_SET);
	int c = fgetc(file);
	fseek(file, -1, SEEK_CUR);
	fputc(c ^ 1, file);
	fclose(file);
}

static void a_damaged_one_is_passed_over_for_the_one_before(void **state)
{
	struct fixture *f = *state;
	static const char *const leaves[] = {"parameters.safetensors", "moment1.safetensors", "moment2.safetensors", "state.json"};
	char path[160];
	for (int i = 0; i < 4; i++)
		for (int how = 0; how < 4; how++) {
			save(f, 20, 2);
			save(f, 21, 2);
			if (how < 3)
				damage(f, 21, leaves[i], how == 0 ? 30 : -5, how == 2);
			else
				snprintf(path, sizeof path, "%s/step-000000000021/%s", f->directory, leaves[i]),
					assert_int_equal(unlink(path), 0);
			assert_loads(f, 20, true);
		}
}

// A run went on from the one before the damaged one: that is behind it, and must not count as the newest.
static void one_behind_the_step_that_is_saved_is_not_kept_for_it(void **state)
{
	struct fixture *f = *state;
	save(f, 10, 2);
	save(f, 20, 2);
	damage(f, 20, "parameters.safetensors", 1000, false);
	assert_loads(f, 10, true);
	save(f, 15, 1);
	assert_loads(f, 15, false);
}

// Ends this process as kill -9 would at the nth of the calls below.
static unsigned die_at;

static void die(void)
{
	if (die_at && --die_at == 0)
		_exit(9);
}

#define STANDS_BEFORE(name, parameters, arguments, type) \
	int name parameters; \
	int name parameters \
	{ \
		static int (*real) type; \
		die(); \
		if (!real) \
			real = (int (*) type)dlsym(RTLD_NEXT, #name); \
		return real arguments; \
	}
STANDS_BEFORE(unlink, (const char *path), (path), (const char *))
STANDS_BEFORE(rmdir, (const char *path), (path), (const char *))
STANDS_BEFORE(rename, (const char *from, const char *to), (from, to), (const char *, const char *))
STANDS_BEFORE(renameat2, (int a, const char *from, int b, const char *to, unsigned flags), (a, from, b, to, flags),
	      (int, const char *, int, const char *, unsigned))

// Stopped before its next step, a run writes the checkpoint of that step again.
static void killed_while_one_is_replaced_there_is_one_that_loads(void **state)
{
	struct fixture *f = *state;
	int status = 9 << 8;
	save(f, 5, 1);
	for (unsigned n = 1; WEXITSTATUS(status) == 9; n++) {
		pid_t pid = fork();
		assert_true(pid >= 0);
		if (pid == 0) {
			die_at = n;
			struct snapshot_state s = state_of(5);
			_exit(snapshot_save(f->directory, &f->arrays, &s, 1, NULL) ? 1 : 0);
		}
		assert_int_equal(waitpid(pid, &status, 0), pid);
		assert_true(WIFEXITED(status) && (WEXITSTATUS(status) == 9 || WEXITSTATUS(status) == 0));
		assert_true(WEXITSTATUS(status) == 9 || n > 4);
		assert_loads(f, 5, false);
		arrays_fill(f, 5);
	}
}

static void all_damaged_is_an_error_not_a_fresh_start(void **state)
{
	struct fixture *f = *state;
	struct snapshot_state s;
	struct error skip, err = {0};
	save(f, 1, 2);
	damage(f, 1, "moment2.safetensors", -1, false);
	assert_int_equal(snapshot_load(f->directory, &f->arrays, &s, &skip, &err), error_errno(ERROR_CORRUPT));
	assert_non_null(strstr(err.message, "moment2.safetensors"));
}

static void one_of_another_optimizer_is_not_gone_on_with(void **state)
{
	struct fixture *f = *state;
	struct snapshot_state s;
	struct error skip, err = {0};
	save(f, 1, 2);
	f->arrays.n--;
	assert_int_equal(snapshot_load(f->directory, &f->arrays, &s, &skip, &err), error_errno(ERROR_CORRUPT));
	assert_non_null(strstr(err.message, "another optimizer"));
	f->arrays.n++;
}

static void what_lies_beside_the_arrays_comes_back_or_is_damaged(void **state)
{
	struct fixture *f = *state;
	uint8_t bytes[1000];
	struct snapshot_state s;
	struct error skip, err = {0};
	for (size_t i = 0; i < sizeof bytes; i++)
		bytes[i] = (uint8_t)(i * 7);
	f->arrays.name = "beside";
	f->arrays.bytes = bytes, f->arrays.n_bytes = sizeof bytes;
	save(f, 1, 2);
	bytes[0] = 9;
	save(f, 2, 2);
	f->arrays.bytes = NULL, f->arrays.n_bytes = 0;
	assert_int_equal(snapshot_load(f->directory, &f->arrays, &s, &skip, &err), 0);
	assert_int_equal(f->arrays.n_bytes, sizeof bytes);
	assert_memory_equal(f->arrays.bytes, bytes, sizeof bytes);
	damage(f, 2, "beside.bin", 500, false);
	assert_int_equal(snapshot_load(f->directory, &f->arrays, &s, &skip, &err), 0);
	assert_non_null(strstr(skip.message, "beside.bin is missing or damaged"));
	assert_true(s.step == 1 && f->arrays.bytes[0] == 0 && memcmp(f->arrays.bytes + 1, bytes + 1, sizeof bytes - 1) == 0);
	free(f->arrays.bytes);
	f->arrays.name = NULL, f->arrays.bytes = NULL;
	assert_int_equal(snapshot_load(f->directory, &f->arrays, &s, &skip, &err), error_errno(ERROR_CORRUPT));
}

static void settings_are_told_without_the_arrays(void **state)
{
	struct fixture *f = *state;
	struct snapshot_state s;
	struct error err = {0};
	char *lines = NULL;
	assert_int_equal(snapshot_peek(f->directory, &s, &lines, &err), -ENOENT);
	assert_int_equal(err.code, ERROR_NONE);
	f->arrays.settings = "seed = 1\nloss = jsd; taid\nteacher-layers = \n";
	save(f, 1, 3);
	f->arrays.settings = "seed = 2\n";
	save(f, 2, 3);
	save(f, 3, 3);
	damage(f, 2, "parameters.safetensors", -1, false);
	damage(f, 3, "state.json", 30, false);
	assert_int_equal(snapshot_peek(f->directory, &s, &lines, &err), 0);
	assert_string_equal(lines, "seed = 2\n");
	assert_true(s.step == 2);
	free(lines);
	damage(f, 2, "state.json", 30, false);
	assert_int_equal(snapshot_peek(f->directory, &s, &lines, &err), 0);
	assert_string_equal(lines, "seed = 1\nloss = jsd; taid\nteacher-layers = \n");
	free(lines);
	f->arrays.settings = NULL;
}

static void what_would_change_the_run_is_named(void **state)
{
	(void)state;
	struct snapshot_state saved = state_of(1), now[7];
	static const char *const fields[7] = {"teacher", "corpus", "seed", "sequence-length", "micro-batch", "held-out", "order"};
	for (int i = 0; i < 7; i++)
		now[i] = state_of(7);
	now[0].teacher.bytes[31] ^= 1;
	now[1].dataset.bytes[0] ^= 1;
	now[2].seed++;
	now[3].sequence_length++;
	now[4].batch++;
	now[5].n_held_out++;
	now[6].sequential = 0;
	for (int i = 0; i < 7; i++) {
		struct error err = {0};
		assert_int_equal(snapshot_compare(&saved, &now[i], &err), error_errno(ERROR_CONFLICT));
		assert_string_equal(err.field, fields[i]);
	}
}

// Who is passed over is removed: a lack of memory must not be taken for damage.
static void without_memory_no_checkpoint_is_passed_over(void **state)
{
	struct fixture *f = *state;
	struct snapshot_state s;
	struct error skipped, err = {0};
	char *settings;
	unsigned n = 1;
	save(f, 1, 2);
	save(f, 2, 2);
	for (starved = true; starved; n++) {
		starved = false;
		n_left = n;
		int r = snapshot_load(f->directory, &f->arrays, &s, &skipped, &err);
		n_left = 0;
		if (r ? err.code != ERROR_MEMORY : s.step != 2)
			fail_msg("allocation %u: %s", n, skipped.message);
	}
	assert_true(n > 20);
	for (n = 1, starved = true; starved; n++) {
		starved = false;
		n_left = n;
		int r = snapshot_peek(f->directory, &s, &settings, &err);
		n_left = 0;
		assert_true(r == 0 || r == -EBADMSG || err.code == ERROR_MEMORY);
		assert_int_equal(r ? 2 : s.step, 2);
		free(settings);
	}
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(what_was_saved_comes_back_bit_for_bit, setup, teardown),
		cmocka_unit_test_setup_teardown(nothing_there_is_not_an_error_of_the_disk, setup, teardown),
		cmocka_unit_test_setup_teardown(only_the_newest_are_kept_and_half_written_ones_go, setup, teardown),
		cmocka_unit_test_setup_teardown(a_damaged_one_is_passed_over_for_the_one_before, setup, teardown),
		cmocka_unit_test_setup_teardown(one_of_another_optimizer_is_not_gone_on_with, setup, teardown),
		cmocka_unit_test_setup_teardown(settings_are_told_without_the_arrays, setup, teardown),
		cmocka_unit_test_setup_teardown(what_lies_beside_the_arrays_comes_back_or_is_damaged, setup, teardown),
		cmocka_unit_test_setup_teardown(one_behind_the_step_that_is_saved_is_not_kept_for_it, setup, teardown),
		cmocka_unit_test_setup_teardown(killed_while_one_is_replaced_there_is_one_that_loads, setup, teardown),
		cmocka_unit_test_setup_teardown(all_damaged_is_an_error_not_a_fresh_start, setup, teardown),
		cmocka_unit_test_setup_teardown(without_memory_no_checkpoint_is_passed_over, setup, teardown),
		cmocka_unit_test(what_would_change_the_run_is_named),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
