// SPDX-License-Identifier: Apache-2.0
// The known question: weights that change in memory, answers of another device, and the file of the first start.
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "common/error.h"
#include "daemon/clock.h"
#include "daemon/model/weights.h"
#include "daemon/teacher/canary.h"
#include "daemon/teacher/teacher_internal.h"
#include "kernels/backend.h"
#include "tests/golden/engine.h"

#define PATIENCE_MS 60000

static char directory[4096];

// The state after loading; the caller closes.
static enum teacher_state open_teacher(struct teacher **ret, const char *model, const char *device, bool reference, uint64_t interval_ms,
				       struct error *err)
{
	char path[4096], name[64];
	uint64_t ignored;
	snprintf(name, sizeof name, "models/%s", model);
	golden_path(path, sizeof path, name);
	int fd = eventfd(0, 0);
	struct teacher_source source = {.name = "teacher", .path = path};
	struct teacher_options options = {.sources = &source, .n_sources = 1, .device = device, .numeric = "f32", .n_threads = 1,
		.max_tokens = 64, .batch_tokens = 256, .max_top_k = 64, .max_gather = 1, .max_draws = 1, .cache_tokens = 512,
		.max_generating = 2, .generate_batch = 64, .canary_directory = *directory ? directory : NULL, .canary_reference = reference,
		.event_fd = fd};
	assert_int_equal(teacher_open(&options, ret, err), 0);
	teacher_set_canary_interval(*ret, interval_ms);
	while (teacher_state(*ret) == TEACHER_LOADING)
		assert_int_equal(read(fd, &ignored, sizeof ignored), sizeof ignored);
	close(fd);
	if (teacher_state(*ret) == TEACHER_FAILED)
		teacher_error(*ret, err);
	return teacher_state(*ret);
}

static struct teacher *open_right(const char *model, const char *device, bool reference, uint64_t interval_ms)
{
	struct teacher *t;
	struct error err = {0};
	if (open_teacher(&t, model, device, reference, interval_ms, &err) != TEACHER_READY)
		fail_msg("%s on %s: %s", model, device, err.message);
	return t;
}

static struct teacher_stats stats_of(struct teacher *t)
{
	struct teacher_stats s;
	teacher_stats(t, &s);
	return s;
}

// Until one more answer is found right, or the teacher failed.
static void check_once(struct teacher *t)
{
	uint64_t before = stats_of(t).n_canaries, end = clock_ms() + PATIENCE_MS;
	while (teacher_state(t) == TEACHER_READY && stats_of(t).n_canaries == before) {
		int wait = teacher_check(t);
		assert_true(clock_ms() < end);
		usleep(wait > 0 ? 1000 : 0);
	}
}

static void every_architecture_answers_it_alike_alone_and_in_company(void **state)
{
	static const char *const models[] = {"llama", "qwen2", "qwen3", "gpt2", "bert", "linear"};
	(void)state;
	for (size_t i = 0; i < sizeof models / sizeof *models; i++) {
		struct teacher *t = open_right(models[i], "cpu", false, 0);
		assert_int_equal(stats_of(t).n_canaries, 2);
		assert_int_equal(teacher_check(t), -1);
		teacher_close(t);
	}
}

static void the_reference_agrees(void **state)
{
	static const char *const models[] = {"llama", "qwen3", "gpt2", "bert"};
	(void)state;
	for (size_t i = 0; i < sizeof models / sizeof *models; i++) {
		struct teacher *t = open_right(models[i], "cpu", true, 0);
		assert_int_equal(stats_of(t).n_canaries, 3);
		teacher_close(t);
	}
}

static void its_passes_are_not_counted_and_leave_nothing(void **state)
{
	(void)state;
	struct teacher *t = open_right("llama", "cpu", false, 1);
	check_once(t);
	check_once(t);
	struct teacher_stats s = stats_of(t);
	assert_int_equal(s.n_passes + s.n_rows + s.n_sequences + s.n_positions + s.n_slots_used, 0);
	assert_int_equal(s.n_late_allocations, 0);
	assert_in_range(s.n_canaries, 4, 1000);
	teacher_close(t);
}

// One number of one layer's norm, by little: as a bit that fell over in memory.
static void a_weight_that_changes_in_memory_is_found(void **state)
{
	(void)state;
	struct teacher *t = open_right("llama", "cpu", false, 1);
	check_once(t);
	assert_int_equal(teacher_state(t), TEACHER_READY);
	struct real *norm = t->members[0].weights->layers[0].ffn_norm;
	double was;
	t->backend->ops->real_read(t->backend, &was, norm, 1);
	float now = (float)was * 1.001f + 0.001f;
	t->backend->ops->real_write(t->backend, norm, &now, 1);
	for (int i = 0; i < 3 && teacher_state(t) == TEACHER_READY; i++)    // one may be under way already
		check_once(t);
	struct error err;
	assert_int_equal(teacher_state(t), TEACHER_FAILED);
	teacher_error(t, &err);
	assert_string_equal(err.field, CANARY_FIELD);
	assert_non_null(strstr(err.message, "another answer now"));
	assert_int_equal(teacher_check(t), -1);
	teacher_close(t);
}

static void after_it_nothing_is_answered(void **state)
{
	static const uint32_t tokens[] = {1, 2, 3};
	(void)state;
	struct sequence s = {(uint32_t *)tokens, 3};
	struct engine e = {.teacher = open_right("llama", "cpu", false, 1)};
	const struct teacher_info *info = teacher_info(e.teacher);
	e.limits = (struct query_limits){.max_tokens = info->max_tokens, .max_top_k = 4, .vocab_size = info->architecture.vocab_size};
	struct query q;
	query_init(&q);
	q.top_k = 2;
	const float zeros[64] = {0};
	uint32_t width = info->architecture.width;
	assert_in_range(width, 1, 64);
	e.teacher->backend->ops->real_write(e.teacher->backend, e.teacher->members[0].weights->vectors.final_norm, zeros, width);
	for (int i = 0; i < 3 && teacher_state(e.teacher) == TEACHER_READY; i++)
		check_once(e.teacher);
	struct request *r = engine_request_score(&e, &q, &s, 1);
	engine_submit(&e, r);
	engine_wait(r);
	assert_int_equal(r->items[0].error.code, ERROR_UNAVAILABLE);
	assert_null(r->items[0].record);
	engine_free(r);
	engine_close(&e);
}

// ---- the file

static void only_file(char to[8192])
{
	char command[8192];
	snprintf(command, sizeof command, "ls -d %s/*", directory);
	FILE *p = popen(command, "r");
	assert_non_null(fgets(to, 4096, p));
	to[strcspn(to, "\n")] = '\0';
	assert_int_equal(getc(p), EOF);
	pclose(p);
}

static void use_directory(void)
{
	strcpy(directory, "/tmp/kdserved-canary-XXXXXX");
	assert_non_null(mkdtemp(directory));
}

static void drop_directory(const char *file)
{
	unlink(file);
	assert_int_equal(rmdir(directory), 0);
	*directory = '\0';
}

// The same weights asked under another question number: a whole record, of the same teacher, with another answer.
static void keep_wrong_answer(const char *path, float off)
{
	struct record_rows *rows;
	struct record *kept, *wrong;
	uint8_t bytes[65536];
	size_t n;
	int fd = open(path, O_RDONLY);
	ssize_t got = read(fd, bytes, sizeof bytes);
	close(fd);
	assert_true(got > 0);
	assert_int_equal(record_from_bytes(bytes, (size_t)got, &kept, NULL), 0);
	assert_int_equal(record_decode(kept, &rows, NULL), 0);
	rows->lse[5] += off;
	assert_int_equal(record_encode(rows, &wrong, NULL), 0);
	const void *data = record_bytes(wrong, &n);
	fd = open(path, O_WRONLY | O_TRUNC);
	assert_int_equal(write(fd, data, n), n);
	close(fd);
	record_rows_free(rows);
	record_unref(kept);
	record_unref(wrong);
}

static void the_first_answer_is_kept_and_later_starts_must_give_it(void **state)
{
	char file[8192];
	struct teacher *t;
	struct error err = {0};
	(void)state;
	use_directory();
	teacher_close(open_right("llama", "cpu", false, 0));
	only_file(file);
	teacher_close(open_right("llama", "cpu", false, 0));
	keep_wrong_answer(file, 0.005f);                         // another processor's rounding
	teacher_close(open_right("llama", "cpu", false, 0));
	keep_wrong_answer(file, 0.05f);
	assert_int_equal(open_teacher(&t, "llama", "cpu", false, 0, &err), TEACHER_FAILED);
	assert_string_equal(err.field, CANARY_FIELD);
	assert_non_null(strstr(err.message, "log-sum-exp"));
	assert_non_null(strstr(err.message, file));
	teacher_close(t);
	unlink(file);                                            // as the message says
	teacher_close(open_right("llama", "cpu", false, 0));
	drop_directory(file);
}

static void a_damaged_file_is_made_anew_and_a_disk_that_refuses_costs_nothing(void **state)
{
	char file[8192];
	(void)state;
	use_directory();
	teacher_close(open_right("llama", "cpu", false, 0));
	only_file(file);
	assert_int_equal(truncate(file, 100), 0);
	teacher_close(open_right("llama", "cpu", false, 0));
	keep_wrong_answer(file, 0);                              // whole again, else this fails
	unlink(file);
	assert_int_equal(rmdir(directory), 0);
	struct teacher *t = open_right("llama", "cpu", false, 0);
	assert_non_null(strstr(teacher_info(t)->canary_note, "cannot create"));
	teacher_close(t);
	*directory = '\0';
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_architecture_answers_it_alike_alone_and_in_company),
		cmocka_unit_test(the_reference_agrees),
		cmocka_unit_test(its_passes_are_not_counted_and_leave_nothing),
		cmocka_unit_test(a_weight_that_changes_in_memory_is_found),
		cmocka_unit_test(after_it_nothing_is_answered),
		cmocka_unit_test(the_first_answer_is_kept_and_later_starts_must_give_it),
		cmocka_unit_test(a_damaged_file_is_made_anew_and_a_disk_that_refuses_costs_nothing),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
