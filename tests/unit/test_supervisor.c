// SPDX-License-Identifier: Apache-2.0
// Runs of a fake worker (fake_worker.c): how each kind of end is told, what a restarted supervisor knows, and what is refused.
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include <cmocka.h>
#include <jansson.h>

#include "common/error.h"
#include "daemon/train/supervisor.h"
#include "tests/unit/leftovers.h"

struct fixture {
	char directory[64], worker[4096];
	struct supervisor *s;
	struct supervisor_limits limits;
	unsigned n_told;
	char told[4096];                       // every event, a line each
};

static void take_event(void *arg, const char *id, const char *what)
{
	struct fixture *f = arg;
	f->n_told++;
	size_t n = strlen(f->told);
	snprintf(f->told + n, sizeof f->told - n, "%s: %s\n", id, what);
}

static void fixture_open(struct fixture *f)
{
	struct error err = {0};
	struct supervisor_options o = {f->directory, f->worker, "unix:/nowhere", f->limits, take_event, f};
	if (supervisor_open(&o, &f->s, &err))
		fail_msg("%s", err.message);
}

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof *f);
	const char *top = getenv("top_builddir");
	strcpy(f->directory, "/tmp/kdserved-test-XXXXXX");
	assert_non_null(mkdtemp(f->directory));
	snprintf(f->worker, sizeof f->worker, "%s/tests/unit/fake_worker", top ? top : ".");
	f->limits = (struct supervisor_limits){.max_running = 1, .window_ms = 3600000, .delay_ms = 20};
	fixture_open(f);
	*state = f;
	return 0;
}

static void allow_restarts(struct fixture *f, uint32_t n, uint64_t delay_ms)
{
	f->limits.restarts = n;
	f->limits.delay_ms = delay_ms;
	supervisor_change(f->s, &f->limits);
}

static int teardown(void **state)
{
	struct fixture *f = *state;
	supervisor_close(f->s, 2000);
	tree_remove(f->directory);
	free(f);
	return 0;
}

static int start(struct fixture *f, const char *name, const char *what, char *id, struct error *err)
{
	char config[256];
	int n = snprintf(config, sizeof config, "corpus = /fake/%s\nsteps = 10\n", what);
	return supervisor_start(f->s, name, config, (size_t)n, id, err);
}

static json_t *get(struct fixture *f, const char *id)
{
	char *text = NULL;
	assert_int_equal(supervisor_get(f->s, id, &text, NULL), 0);
	json_t *j = json_loads(text, 0, NULL);
	free(text);
	assert_non_null(j);
	return j;
}

static const char *text_of(json_t *j, const char *key)
{
	const char *text = json_string_value(json_object_get(j, key));
	return text ? text : "";
}

// Dispatches until the run is in `state`; the caller drops the object. Fails the test after a minute.
static json_t *wait_for(struct fixture *f, const char *id, const char *state)
{
	for (time_t end = time(NULL) + 60; time(NULL) < end;) {
		json_t *j = get(f, id);
		if (strcmp(text_of(j, "state"), state) == 0)
			return j;
		json_decref(j);
		struct pollfd p = {.fd = supervisor_fd(f->s), .events = POLLIN};
		poll(&p, 1, 20);
		supervisor_dispatch(f->s);
	}
	fail_msg("run %s never was %s", id, state);
	return NULL;
}

static json_int_t step_of(json_t *j)
{
	return json_integer_value(json_object_get(json_object_get(j, "progress"), "step"));
}

// Until the fake worker has blocked SIGTERM and waits for it.
static void wait_ready(struct fixture *f, const char *id)
{
	json_t *j;
	while (step_of(j = get(f, id)) != 3) {
		json_decref(j);
		supervisor_dispatch(f->s);
		usleep(1000);
	}
	json_decref(j);
}

static void a_finished_run_succeeds_with_its_last_progress(void **state)
{
	char id[RUN_ID_MAX + 1];
	assert_int_equal(start(*state, "good", "success", id, NULL), 0);
	assert_string_equal(id, "good");
	json_t *j = wait_for(*state, id, "succeeded");
	assert_int_equal(step_of(j), 10);
	assert_string_equal(text_of(j, "reason"), "");
	assert_true(json_real_value(json_object_get(j, "finished")) >= json_real_value(json_object_get(j, "started")));
	json_decref(j);
	assert_int_equal(supervisor_n_running(((struct fixture *)*state)->s), 0);
}

static void a_failure_is_told_by_its_last_line(void **state)
{
	char id[RUN_ID_MAX + 1];
	assert_int_equal(start(*state, NULL, "failure", id, NULL), 0);
	json_t *j = wait_for(*state, id, "failed");
	assert_string_equal(text_of(j, "reason"), "corpus: cannot open /fake/failure");
	json_decref(j);
}

static void a_crash_fails_one_run_and_the_next_goes_on(void **state)
{
	char bad[RUN_ID_MAX + 1], good[RUN_ID_MAX + 1];
	assert_int_equal(start(*state, NULL, "crash", bad, NULL), 0);
	assert_int_equal(start(*state, NULL, "success", good, NULL), 0);
	json_t *j = wait_for(*state, bad, "failed");
	assert_string_equal(text_of(j, "reason"), "killed by signal 11 (SIGSEGV): about to fall");
	json_decref(j);
	json_decref(wait_for(*state, good, "succeeded"));
}

static void silence_and_a_status_is_a_reason_too(void **state)
{
	char id[RUN_ID_MAX + 1];
	assert_int_equal(start(*state, NULL, "unheard-of", id, NULL), 0);
	json_t *j = wait_for(*state, id, "failed");
	assert_string_equal(text_of(j, "reason"), "exit status 78");
	json_decref(j);
}

static void garbage_and_huge_lines_are_passed_over(void **state)
{
	char id[RUN_ID_MAX + 1];
	assert_int_equal(start(*state, NULL, "garbage", id, NULL), 0);
	json_t *j = wait_for(*state, id, "succeeded");
	assert_int_equal(step_of(j), 7);
	json_t *progress = json_object_get(j, "progress");
	assert_null(json_object_get(progress, "BAD KEY"));
	assert_null(json_object_get(progress, "nested"));
	assert_null(json_object_get(progress, "unfinished"));
	json_decref(j);
}

static void a_stopped_run_says_so_and_can_go_on(void **state)
{
	struct fixture *f = *state;
	char id[RUN_ID_MAX + 1], queued[RUN_ID_MAX + 1];
	struct error err = {0};
	assert_int_equal(start(f, "long", "wait", id, NULL), 0);
	assert_int_equal(start(f, "later", "success", queued, NULL), 0);
	json_t *j = get(f, queued);
	assert_string_equal(text_of(j, "state"), "queued");
	json_decref(j);
	json_decref(wait_for(f, id, "running"));
	assert_int_equal(start(f, "long", "wait", id, &err), error_errno(ERROR_CONFLICT));
	assert_int_equal(supervisor_stop(f->s, queued, NULL), 0);
	json_decref(wait_for(f, queued, "stopped"));
	wait_ready(f, id);
	assert_int_equal(supervisor_stop(f->s, id, NULL), 0);
	json_decref(wait_for(f, id, "stopped"));
	assert_int_equal(supervisor_stop(f->s, id, &err), error_errno(ERROR_CONFLICT));
	assert_int_equal(start(f, "later", "success", queued, NULL), 0);
	json_decref(wait_for(f, queued, "succeeded"));
	assert_int_equal(start(f, "later", "success", queued, &err), error_errno(ERROR_CONFLICT));
}

static void the_same_name_continues_only_the_same_question(void **state)
{
	struct fixture *f = *state;
	char id[RUN_ID_MAX + 1];
	struct error err = {0};
	assert_int_equal(start(f, "again", "resume", id, NULL), 0);
	json_t *j = wait_for(f, id, "failed");
	assert_string_equal(text_of(j, "reason"), "not resumed");
	json_decref(j);
	assert_int_equal(start(f, "again", "success", id, &err), error_errno(ERROR_CONFLICT));
	assert_int_equal(start(f, "again", "resume", id, NULL), 0);
	json_decref(wait_for(f, id, "succeeded"));
}

static void write_status(struct fixture *f, const char *id, const char *text)
{
	char path[256];
	snprintf(path, sizeof path, "%s/%s", f->directory, id);
	assert_int_equal(mkdir(path, 0750), 0);
	snprintf(path, sizeof path, "%s/%s/status.json", f->directory, id);
	FILE *to = fopen(path, "w");
	fputs(text, to);
	fclose(to);
}

static void a_restart_lists_old_runs_and_marks_interrupted_ones(void **state)
{
	struct fixture *f = *state;
	char id[RUN_ID_MAX + 1], *text = NULL, path[128];
	assert_int_equal(start(f, "done", "success", id, NULL), 0);
	json_decref(wait_for(f, "done", "succeeded"));
	supervisor_close(f->s, 0);
	write_status(f, "half", "{\"id\": \"half\", \"state\": \"running\", \"created\": 1.5, \"pid\": 1, \"progress\": {\"step\": 4}}");
	write_status(f, "broken", "{\"id\": ");
	write_status(f, "NOT-A-RUN", "{}");
	snprintf(path, sizeof path, "%s/empty", f->directory);
	assert_int_equal(mkdir(path, 0750), 0);
	fixture_open(f);
	json_t *j = get(f, "done");
	assert_string_equal(text_of(j, "state"), "succeeded");
	assert_int_equal(step_of(j), 10);
	json_decref(j);
	j = get(f, "half");
	assert_string_equal(text_of(j, "state"), "failed");
	assert_non_null(strstr(text_of(j, "reason"), "interrupted"));
	assert_int_equal(step_of(j), 4);
	json_decref(j);
	j = get(f, "broken");
	assert_string_equal(text_of(j, "reason"), "status.json is damaged");
	json_decref(j);
	assert_int_equal(supervisor_list(f->s, &text, NULL), 0);
	j = json_loads(text, 0, NULL);
	free(text);
	assert_int_equal(json_array_size(json_object_get(j, "runs")), 3);
	json_decref(j);
}

static void queued_runs_start_after_a_restart(void **state)
{
	struct fixture *f = *state;
	char id[RUN_ID_MAX + 1];
	assert_int_equal(start(f, "first", "wait", id, NULL), 0);
	assert_int_equal(start(f, "second", "success", id, NULL), 0);
	json_t *j;
	while (step_of(j = get(f, "first")) != 3) {
		json_decref(j);
		supervisor_dispatch(f->s);
		usleep(1000);
	}
	json_decref(j);
	supervisor_close(f->s, 5000);
	fixture_open(f);
	json_decref(wait_for(f, "first", "stopped"));
	json_decref(wait_for(f, "second", "succeeded"));
}

static void bad_questions_are_refused_by_name(void **state)
{
	struct fixture *f = *state;
	char id[RUN_ID_MAX + 1] = "";
	static const struct { const char *name, *config, *field; } cases[] = {
		{"../up", "corpus = /a\n", "name"}, {"", "corpus = /a\n", "name"}, {"Capital", "corpus = /a\n", "name"},
		{NULL, "steps = 5\n", "corpus"}, {NULL, "corpus = /a\nsteps = many\n", "steps"}, {NULL, "corpus = relative\n", "corpus"},
		{NULL, "corpus = /a\nloss = fkl\n", "loss"},
		{NULL, "corpus = /a\nstudent-width = 100\nstudent-heads = 6\n", "student-width"},
		{NULL, "corpus = /a\nstudent = ../model\n", "student"}, {NULL, "corpus = /a\nunknown-key = 1\n", "unknown-key"},
	};
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		struct error err = {0};
		assert_int_equal(supervisor_start(f->s, cases[i].name, cases[i].config, strlen(cases[i].config), id, &err),
			error_errno(ERROR_INVALID));
		assert_string_equal(err.field, cases[i].field);
	}
	struct error err = {0};
	assert_int_equal(supervisor_stop(f->s, "nobody", &err), error_errno(ERROR_NOT_FOUND));
	assert_string_equal(id, "");
}

static void a_worker_that_cannot_start_is_a_failed_run(void **state)
{
	struct fixture *f = *state;
	char id[RUN_ID_MAX + 1];
	supervisor_close(f->s, 0);
	strcpy(f->worker, "/nonexistent/kdserved-worker");
	fixture_open(f);
	assert_int_equal(start(f, NULL, "success", id, NULL), 0);
	json_t *j = wait_for(f, id, "failed");
	assert_non_null(strstr(text_of(j, "reason"), "No such file"));
	json_decref(j);
}

static json_int_t restarts_of(json_t *j)
{
	return json_integer_value(json_object_get(j, "restarts"));
}

static void a_worker_that_dies_is_followed_by_others_that_go_on(void **state)
{
	struct fixture *f = *state;
	char id[RUN_ID_MAX + 1];
	allow_restarts(f, 5, 10);
	for (int i = 0; i < 2; i++) {
		assert_int_equal(start(f, NULL, i ? "exits-3" : "killed-3", id, NULL), 0);
		json_t *j = wait_for(f, id, "succeeded");
		assert_int_equal(restarts_of(j), 3);
		assert_int_equal(step_of(j), 10);
		assert_string_equal(text_of(j, "reason"), "");
		json_decref(j);
		assert_int_equal(f->n_told, 3 * (i + 1));
		assert_non_null(strstr(f->told, i ? "disk: not now; another worker follows in" : "killed by signal 9 (SIGKILL)"));
	}
	assert_int_equal(supervisor_n_restarts(f->s), 6);
}

static void the_wait_doubles_and_is_seen(void **state)
{
	struct fixture *f = *state;
	char id[RUN_ID_MAX + 1];
	uint32_t n[SUPERVISOR_STATES];
	allow_restarts(f, 2, 60000);
	assert_int_equal(start(f, "slow", "killed-9", id, NULL), 0);
	json_t *j = wait_for(f, id, "restarting");
	double seconds = json_number_value(json_object_get(j, "restarting_in_s"));
	assert_true(seconds > 50 && seconds <= 60);
	assert_null(json_object_get(j, "pid"));
	json_decref(j);
	supervisor_count(f->s, n);
	assert_int_equal(n[5], 1);
	assert_string_equal(supervisor_state_name(5), "restarting");
	assert_int_equal(supervisor_n_running(f->s), 0);
	assert_int_equal(start(f, "slow", "killed-9", id, NULL), error_errno(ERROR_CONFLICT));
	assert_int_equal(supervisor_stop(f->s, "slow", NULL), 0);
	json_decref(wait_for(f, "slow", "stopped"));
	assert_int_equal(start(f, "slow", "killed-9", id, NULL), 0);      // somebody wants it: counted anew
	j = wait_for(f, id, "restarting");
	assert_non_null(strstr(f->told, "in 60 s"));
	json_decref(j);
	allow_restarts(f, 2, 10);
	assert_int_equal(supervisor_stop(f->s, "slow", NULL), 0);
	assert_int_equal(start(f, "quick", "killed-9", id, NULL), 0);
	j = wait_for(f, id, "failed");
	assert_int_equal(restarts_of(j), 2);
	assert_non_null(strstr(text_of(j, "reason"), "(restarted 2 times within 3.6e+03 s)"));
	assert_non_null(strstr(f->told, "quick: killed by signal 9 (SIGKILL); another worker follows in 0.01 s\n"));
	assert_non_null(strstr(f->told, "quick: killed by signal 9 (SIGKILL); another worker follows in 0.02 s\n"));
	json_decref(j);
}

static void its_own_fault_ends_a_run(void **state)
{
	struct fixture *f = *state;
	static const struct { const char *what, *reason; } cases[] = {
		{"own-fault", "corpus: cannot open it"}, {"unheard-of", "exit status 78"}, {"usage", "exit status 2"}};
	char id[RUN_ID_MAX + 1];
	allow_restarts(f, 5, 10);
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		assert_int_equal(start(f, NULL, cases[i].what, id, NULL), 0);
		json_t *j = wait_for(f, id, "failed");
		assert_string_equal(text_of(j, "reason"), cases[i].reason);
		assert_int_equal(restarts_of(j), 0);
		json_decref(j);
	}
	assert_int_equal(supervisor_n_restarts(f->s), 0);
}

static void others_run_while_one_waits(void **state)
{
	struct fixture *f = *state;
	char waiting[RUN_ID_MAX + 1], other[RUN_ID_MAX + 1];
	allow_restarts(f, 5, 60000);
	assert_int_equal(start(f, NULL, "killed-1", waiting, NULL), 0);
	json_decref(wait_for(f, waiting, "restarting"));
	assert_int_equal(start(f, NULL, "success", other, NULL), 0);
	json_decref(wait_for(f, other, "succeeded"));
	json_decref(wait_for(f, waiting, "restarting"));
}

static void an_end_of_the_daemon_while_one_waits_is_clean(void **state)
{
	struct fixture *f = *state;
	char id[RUN_ID_MAX + 1];
	allow_restarts(f, 5, 60000);
	assert_int_equal(start(f, "late", "killed-1", id, NULL), 0);
	json_decref(wait_for(f, id, "restarting"));
	supervisor_close(f->s, 1000);
	write_status(f, "lost",
		"{\"id\": \"lost\", \"state\": \"restarting\", \"restarts\": 4, \"created\": 1.5, \"progress\": {\"step\": 4}}");
	fixture_open(f);
	json_t *j = wait_for(f, "late", "stopped");
	assert_non_null(strstr(text_of(j, "reason"), "before the worker was started again"));
	json_decref(j);
	j = wait_for(f, "lost", "failed");
	assert_non_null(strstr(text_of(j, "reason"), "interrupted"));
	assert_int_equal(restarts_of(j), 4);
	json_decref(j);
	assert_int_equal(start(f, "late", "killed-1", id, NULL), 0);      // it has died once already: this one goes on
	json_decref(wait_for(f, id, "succeeded"));
}

// One worker is gone at once, another takes a while to write a checkpoint: both have until the deadline.
static void a_worker_may_save_until_the_deadline(void **state)
{
	struct fixture *f = *state;
	char quick[RUN_ID_MAX + 1], slow[RUN_ID_MAX + 1];
	f->limits.max_running = 2;
	supervisor_change(f->s, &f->limits);
	assert_int_equal(start(f, "quick", "wait", quick, NULL), 0);
	assert_int_equal(start(f, "slow", "save", slow, NULL), 0);
	wait_ready(f, quick);
	wait_ready(f, slow);
	supervisor_close(f->s, 60000);
	fixture_open(f);
	json_t *j = get(f, slow);
	assert_string_equal(text_of(j, "state"), "stopped");
	assert_string_equal(text_of(j, "reason"), "");
	json_decref(j);
}

static void more_may_run_from_now_on(void **state)
{
	struct fixture *f = *state;
	char first[RUN_ID_MAX + 1], second[RUN_ID_MAX + 1];
	assert_int_equal(start(f, NULL, "wait", first, NULL), 0);
	assert_int_equal(start(f, NULL, "wait", second, NULL), 0);
	json_decref(wait_for(f, first, "running"));
	json_decref(wait_for(f, second, "queued"));
	f->limits.max_running = 2;
	supervisor_change(f->s, &f->limits);
	json_decref(wait_for(f, second, "running"));
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(a_finished_run_succeeds_with_its_last_progress, setup, teardown),
		cmocka_unit_test_setup_teardown(a_failure_is_told_by_its_last_line, setup, teardown),
		cmocka_unit_test_setup_teardown(a_crash_fails_one_run_and_the_next_goes_on, setup, teardown),
		cmocka_unit_test_setup_teardown(silence_and_a_status_is_a_reason_too, setup, teardown),
		cmocka_unit_test_setup_teardown(garbage_and_huge_lines_are_passed_over, setup, teardown),
		cmocka_unit_test_setup_teardown(a_stopped_run_says_so_and_can_go_on, setup, teardown),
		cmocka_unit_test_setup_teardown(the_same_name_continues_only_the_same_question, setup, teardown),
		cmocka_unit_test_setup_teardown(a_restart_lists_old_runs_and_marks_interrupted_ones, setup, teardown),
		cmocka_unit_test_setup_teardown(queued_runs_start_after_a_restart, setup, teardown),
		cmocka_unit_test_setup_teardown(bad_questions_are_refused_by_name, setup, teardown),
		cmocka_unit_test_setup_teardown(a_worker_that_cannot_start_is_a_failed_run, setup, teardown),
		cmocka_unit_test_setup_teardown(a_worker_that_dies_is_followed_by_others_that_go_on, setup, teardown),
		cmocka_unit_test_setup_teardown(the_wait_doubles_and_is_seen, setup, teardown),
		cmocka_unit_test_setup_teardown(its_own_fault_ends_a_run, setup, teardown),
		cmocka_unit_test_setup_teardown(others_run_while_one_waits, setup, teardown),
		cmocka_unit_test_setup_teardown(an_end_of_the_daemon_while_one_waits_is_clean, setup, teardown),
		cmocka_unit_test_setup_teardown(a_worker_may_save_until_the_deadline, setup, teardown),
		cmocka_unit_test_setup_teardown(more_may_run_from_now_on, setup, teardown),
	};
	signal(SIGPIPE, SIG_IGN);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
