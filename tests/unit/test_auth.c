// SPDX-License-Identifier: Apache-2.0
// Bearer tokens: their lines, who is let in, what they may, how much, and what a reload changes.
#include <setjmp.h>
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

#include "common/buffer.h"
#include "common/error.h"
#include "common/query.h"
#include "daemon/log.h"
#include "daemon/server/auth.h"

struct file { char path[64]; struct auth *auth; };

static char *digest_of(const char *secret)
{
	static char hex[CONTENT_ID_HEX];
	struct content_id id = bearer_digest(secret, strlen(secret));
	content_id_to_hex(&id, hex);
	return hex;
}

static void file_write(const struct file *f, const char *text)
{
	FILE *to = fopen(f->path, "w");
	assert_non_null(to);
	assert_true(fputs(text, to) >= 0);
	assert_int_equal(fclose(to), 0);
}

static void line_add(char *text, size_t size, const char *name, const char *secret, const char *rest)
{
	size_t n = strlen(text);
	snprintf(text + n, size - n, "%s %s %s\n", name, digest_of(secret), rest);
}

static int file_open(void **state)
{
	struct file *f = calloc(1, sizeof *f);
	strcpy(f->path, "test_auth.XXXXXX");
	int fd = mkstemp(f->path);
	assert_true(fd >= 0);
	close(fd);
	*state = f;
	return 0;
}

static int file_close(void **state)
{
	struct file *f = *state;
	auth_close(f->auth);
	unlink(f->path);
	free(f);
	return 0;
}

static struct auth *open_with(struct file *f, const char *text)
{
	struct error err = {0};
	file_write(f, text);
	if (auth_open(f->path, &f->auth, &err))
		fail_msg("%s", err.message);
	return f->auth;
}

static struct principal *login(struct auth *a, const char *secret)
{
	struct principal *p = NULL;
	struct error err = {0};
	if (auth_login(a, secret, &p, &err))
		fail_msg("%s", err.message);
	return p;
}

static void assert_refused(struct auth *a, const char *secret)
{
	struct principal *p = NULL;
	struct error err = {0};
	assert_int_equal(auth_login(a, secret, &p, &err), error_errno(ERROR_UNAUTHORIZED));
	assert_null(p);
	assert_true(!secret || !*secret || !strstr(err.message, secret));
}

// ---- lines

static void a_line_reads_back(void **state)
{
	(void)state;
	struct bearer t = {.name = "alice", .scopes = BEARER_SCORE | BEARER_TRAIN, .rate = BEARER_MAX_RATE,
			   .in_flight = BEARER_MAX_IN_FLIGHT, .k_max = BEARER_MAX_K, .expires = 1801396800}, again;
	struct buffer b = {0};
	t.digest = bearer_digest("s", 1);
	bearer_encode(&b, &t);
	assert_non_null(strstr(b.data, " score,train rate=1000000000000 in-flight=1000000 k-max=16777216 expires=2027-01-31T12:00:00Z"));
	assert_int_equal(bearer_decode(b.data, b.n, &again, NULL), 0);
	assert_string_equal(again.name, t.name);
	assert_true(content_id_is_same(&again.digest, &t.digest));
	assert_true(again.scopes == t.scopes && again.rate == t.rate && again.in_flight == t.in_flight && again.k_max == t.k_max &&
		    again.expires == t.expires);
	buffer_done(&b);
}

static void lines_that_are_not_tokens(void **state)
{
	(void)state;
	static const char *const rests[] = {
		"", "write", "score,score", "score,", ",", "none,score", "score rate=0", "score rate=1000000000001", "score rate=-1",
		"score rate=1.5", "score rate=", "score rate=1 rate=1", "score in-flight=1000001", "score k-max=16777217", "score x=1",
		"score expires=2027-02-29", "score expires=2027-1-1", "score expires=1970-01-01", "score expires=2027-01-01T24:00:00Z",
		"score expires=2027-01-01T00:00:00"};
	for (size_t i = 0; i < sizeof rests / sizeof *rests; i++) {
		char line[256];
		struct bearer t;
		struct error err = {0};
		snprintf(line, sizeof line, "a %s %s", digest_of("s"), rests[i]);
		if (bearer_decode(line, strlen(line), &t, &err) != error_errno(ERROR_INVALID))
			fail_msg("taken: %s", rests[i]);
	}
}

static void a_secret_in_the_wrong_place_is_not_shown(void **state)
{
	(void)state;
	static const char *const formats[] = {"alice %s score", "%s alice score", "alice score %s", "%s", "alice %s"};
	char secret[BEARER_SECRET_BYTES], line[256];
	struct bearer t;
	assert_int_equal(bearer_new_secret(secret), 0);
	for (size_t i = 0; i < sizeof formats / sizeof *formats; i++) {
		struct error err = {0};
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
		snprintf(line, sizeof line, formats[i], secret);
		assert_int_equal(bearer_decode(line, strlen(line), &t, &err), error_errno(ERROR_INVALID));
		assert_null(strstr(err.message, secret));
	}
}

static void secrets_differ(void **state)
{
	(void)state;
	char a[BEARER_SECRET_BYTES], b[BEARER_SECRET_BYTES];
	assert_int_equal(bearer_new_secret(a) | bearer_new_secret(b), 0);
	assert_true(strlen(a) == 47 && strlen(b) == 47 && strcmp(a, b) != 0 && strncmp(a, "kds_", 4) == 0);
}

// ---- the file

static void files_that_are_refused(void **state)
{
	struct file *f = *state;
	char text[1024] = "# fine\n\n";
	struct error err = {0};
	line_add(text, sizeof text, "a", "1", "score");
	line_add(text, sizeof text, "a", "2", "score");
	file_write(f, text);
	assert_int_equal(auth_open(f->path, &f->auth, &err), error_errno(ERROR_INVALID));
	*text = '\0';
	line_add(text, sizeof text, "a", "1", "score");
	line_add(text, sizeof text, "b", "1", "score");
	file_write(f, text);
	assert_int_equal(auth_open(f->path, &f->auth, &err), error_errno(ERROR_INVALID));
	strcpy(text, "# fine\n\nalice\n");
	file_write(f, text);
	assert_int_equal(auth_open(f->path, &f->auth, &err), error_errno(ERROR_INVALID));
	assert_non_null(strstr(err.message, ":3: "));
	file_write(f, "");
	assert_int_equal(chmod(f->path, 0620), 0);
	assert_int_equal(auth_open(f->path, &f->auth, &err), error_errno(ERROR_INVALID));
	assert_non_null(strstr(err.message, "chmod"));
	assert_int_equal(auth_open("test_auth.absent", &f->auth, &err), -2);
}

static void as_many_tokens_as_the_limit(void **state)
{
	struct file *f = *state;
	for (int extra = 0; extra < 2; extra++) {
		FILE *to = fopen(f->path, "w");
		struct error err = {0};
		char secret[16];
		assert_non_null(to);
		for (int i = 0; i < AUTH_MAX_TOKENS + extra; i++) {
			snprintf(secret, sizeof secret, "%d", i);
			fprintf(to, "n%d %s score\n", i, digest_of(secret));
		}
		fclose(to);
		assert_int_equal(auth_open(f->path, &f->auth, &err), extra ? error_errno(ERROR_TOO_LARGE) : 0);
		if (!extra) {
			assert_int_equal(auth_n_tokens(f->auth), AUTH_MAX_TOKENS);
			principal_unref(login(f->auth, secret));
			f->auth = auth_close(f->auth);
		}
	}
}

// ---- who

static void without_a_file_anybody_may_everything(void **state)
{
	struct file *f = *state;
	assert_int_equal(auth_open(NULL, &f->auth, NULL), 0);
	assert_false(auth_is_closed(f->auth));
	assert_null(auth_worker_secret(f->auth));
	struct principal *p = login(f->auth, NULL);
	assert_int_equal(auth_permit(p, BEARER_ADMIN, NULL), 0);
	assert_int_equal(auth_begin(p, &(struct queue_cost){1, UINT64_MAX, 0}, NULL), 0);
	auth_end(p, &(struct queue_cost){1, UINT64_MAX, 0}, UINT64_MAX);
	principal_unref(p);
}

static void nobody_may_nothing(void **state)
{
	(void)state;
	assert_int_equal(auth_permit(NULL, AUTH_ANY, NULL), error_errno(ERROR_UNAUTHORIZED));
}

static void only_known_tokens_are_let_in(void **state)
{
	char text[1024] = "", past[64];
	line_add(text, sizeof text, "alice", "right", "score");
	time_t now = time(NULL) - 1;
	strftime(past, sizeof past, "score expires=%Y-%m-%dT%H:%M:%SZ", gmtime(&now));
	line_add(text, sizeof text, "old", "bygone", past);
	now += 3600;
	strftime(past, sizeof past, "score expires=%Y-%m-%dT%H:%M:%SZ", gmtime(&now));
	line_add(text, sizeof text, "soon", "still good", past);
	struct auth *a = open_with(*state, text);
	assert_refused(a, NULL);
	assert_refused(a, "");
	assert_refused(a, "wrong");
	assert_refused(a, "bygone");
	assert_refused(a, "right ");
	assert_refused(a, digest_of("right"));
	principal_unref(login(a, "right"));
	principal_unref(login(a, "still good"));
	principal_unref(login(a, auth_worker_secret(a)));
}

static void scopes_are_what_the_line_says(void **state)
{
	static const char *const names[] = {"score", "generate", "train", "admin", "none", "score,train"};
	static const unsigned may[] = {1, 2, 4, 15, 0, 5};
	char text[1024] = "";
	for (size_t i = 0; i < 6; i++)
		line_add(text, sizeof text, (char[]){(char)('a' + i), 0}, names[i], names[i]);
	struct auth *a = open_with(*state, text);
	for (size_t i = 0; i < 6; i++) {
		struct principal *p = login(a, names[i]);
		assert_int_equal(auth_permit(p, AUTH_ANY, NULL), 0);
		for (unsigned bit = 1; bit < 16; bit *= 2)
			assert_int_equal(auth_permit(p, bit, NULL), may[i] & bit ? 0 : error_errno(ERROR_FORBIDDEN));
		assert_int_equal(auth_permit(p, BEARER_SCORE | BEARER_GENERATE, NULL), may[i] & 3 ? 0 : error_errno(ERROR_FORBIDDEN));
		principal_unref(p);
	}
}

// ---- how much

static void requests_under_way_are_bounded(void **state)
{
	char text[256] = "";
	struct error err = {0};
	line_add(text, sizeof text, "a", "s", "score in-flight=2");
	struct principal *p = login(open_with(*state, text), "s");
	assert_int_equal(auth_begin(p, &(struct queue_cost){1, 1, 0}, &err), 0);
	assert_int_equal(auth_begin(p, &(struct queue_cost){1, 1, 0}, &err), 0);
	assert_int_equal(auth_begin(p, &(struct queue_cost){1, 1, 0}, &err), error_errno(ERROR_OVERLOADED));
	auth_end(p, &(struct queue_cost){1, 1, 0}, 1);
	assert_int_equal(auth_begin(p, &(struct queue_cost){1, 1, 0}, &err), 0);
	auth_end(p, &(struct queue_cost){1, 1, 0}, 1);
	auth_end(p, &(struct queue_cost){1, 1, 0}, 1);
	principal_unref(p);
}

static void tokens_per_second_are_bounded(void **state)
{
	char text[256] = "";
	struct error err = {0};
	line_add(text, sizeof text, "a", "s", "score rate=10");
	struct principal *p = login(open_with(*state, text), "s");
	assert_int_equal(auth_begin(p, &(struct queue_cost){1, 9, 0}, &err), 0);
	// the last of the bucket; it leaves a debt of 1000 tokens, 100 seconds
	assert_int_equal(auth_begin(p, &(struct queue_cost){1, 1001, 0}, &err), 0);
	assert_int_equal(auth_begin(p, &(struct queue_cost){1, 1, 0}, &err), error_errno(ERROR_OVERLOADED));
	assert_in_range(err.retry_s, 99, 101);
	auth_end(p, &(struct queue_cost){1, 9, 0}, 9);
	auth_end(p, &(struct queue_cost){1, 1001, 0}, 1001);
	principal_unref(p);
}

static void what_was_not_used_is_given_back_and_no_more(void **state)
{
	char text[256] = "";
	struct error err = {0};
	const struct queue_cost large = {1, 1001, 0}, bucket = {1, 10, 0};
	line_add(text, sizeof text, "a", "s", "score rate=10");
	struct principal *p = login(open_with(*state, text), "s");
	assert_int_equal(auth_begin(p, &large, &err), 0);
	assert_int_equal(auth_begin(p, &bucket, &err), error_errno(ERROR_OVERLOADED));
	auth_end(p, &large, 1);
	assert_int_equal(auth_begin(p, &bucket, &err), 0);             // 1000 of 1001 are back
	auth_end(p, &bucket, 0);
	assert_int_equal(auth_begin(p, &bucket, &err), 0);
	auth_end(p, &bucket, 0);
	assert_int_equal(auth_begin(p, &large, &err), 0);
	assert_int_equal(auth_begin(p, &bucket, &err), error_errno(ERROR_OVERLOADED));
	assert_in_range(err.retry_s, 98, 100);
	auth_end(p, &large, 1001);
	assert_int_equal(auth_begin(p, &bucket, &err), error_errno(ERROR_OVERLOADED));
	principal_unref(p);
}

static void ids_of_a_row_are_bounded(void **state)
{
	char text[256] = "";
	struct query_limits limits = {.max_top_k = 100, .max_gather = 4, .max_draws = 9};
	line_add(text, sizeof text, "a", "s", "score k-max=8");
	struct principal *p = login(open_with(*state, text), "s");
	auth_limit(p, &limits);
	assert_true(limits.max_top_k == 8 && limits.max_gather == 4 && limits.max_draws == 8);
	principal_unref(p);
}

// ---- reload

static void a_reload_takes_back_changes_and_adds(void **state)
{
	struct file *f = *state;
	char text[512] = "";
	line_add(text, sizeof text, "a", "first", "score in-flight=1");
	line_add(text, sizeof text, "b", "second", "score");
	struct auth *a = open_with(f, text);
	struct principal *first = login(a, "first"), *second = login(a, "second");
	assert_int_equal(auth_begin(first, &(struct queue_cost){1, 1, 0}, NULL), 0);
	*text = '\0';
	line_add(text, sizeof text, "a", "first", "generate in-flight=2");
	line_add(text, sizeof text, "c", "third", "score");
	file_write(f, text);
	assert_int_equal(auth_reload(a, f->path, NULL), 0);
	assert_int_equal(auth_n_tokens(a), 2);
	assert_int_equal(auth_permit(second, AUTH_ANY, NULL), error_errno(ERROR_UNAUTHORIZED));
	assert_refused(a, "second");
	assert_int_equal(auth_permit(first, BEARER_SCORE, NULL), error_errno(ERROR_FORBIDDEN));
	assert_int_equal(auth_permit(first, BEARER_GENERATE, NULL), 0);
	assert_int_equal(auth_begin(first, &(struct queue_cost){1, 1, 0}, NULL), 0);       // the one under way still counts
	assert_int_equal(auth_begin(first, &(struct queue_cost){1, 1, 0}, NULL), error_errno(ERROR_OVERLOADED));
	principal_unref(login(a, "third"));
	principal_unref(login(a, auth_worker_secret(a)));
	file_write(f, "nonsense\n");
	assert_int_equal(auth_reload(a, f->path, NULL), error_errno(ERROR_INVALID));
	principal_unref(login(a, "third"));                    // nothing changed
	auth_end(first, &(struct queue_cost){1, 1, 0}, 1);
	auth_end(first, &(struct queue_cost){1, 1, 0}, 1);
	principal_unref(first);
	principal_unref(second);
}

static struct auth *watched;          // by the journal below
static unsigned n_lines;
static char last_line[256];

// The journal as a slow one: others come and go while it has a line.
static bool journal_takes(const struct log_event *event)
{
	struct buffer b = {0};
	auth_metrics(watched, &b);         // waits for the gate's lock
	assert_false(b.failed);
	buffer_done(&b);
	snprintf(last_line, sizeof last_line, "%s", event->message);
	n_lines++;
	return true;
}

// Lines go to journal_takes() from now on.
static void listen_to_the_log(void)
{
	char stream[64];
	struct stat st;
	assert_int_equal(fstat(STDERR_FILENO, &st), 0);
	snprintf(stream, sizeof stream, "%llu:%llu", (unsigned long long)st.st_dev, (unsigned long long)st.st_ino);
	assert_int_equal(setenv("JOURNAL_STREAM", stream, 1), 0);
	log_open(LOG_NOTICE);
	log_set_journal(journal_takes);
}

static void served(struct principal *p)
{
	assert_int_equal(auth_begin(p, &(struct queue_cost){.requests = 1}, NULL), 0);
	auth_serve(p, 7, 70);
	auth_end(p, &(struct queue_cost){.requests = 1}, 0);
}

static void nobody_waits_for_the_audit_trail(void **state)
{
	struct file *f = *state;
	char text[512] = "";
	line_add(text, sizeof text, "alice", "a", "score");
	line_add(text, sizeof text, "bob", "b", "score");
	watched = open_with(f, text);
	struct principal *alice = login(watched, "a"), *bob = login(watched, "b");
	listen_to_the_log();
	alarm(60);                             // a deadlock is a failure, not a hang
	assert_true(auth_audit(watched, 1) > 0);
	served(alice);
	while (!n_lines)
		auth_audit(watched, 1);
	assert_int_equal(n_lines, 1);
	assert_string_equal(last_line, "audit: token=alice requests=1 rows=7 values=70 all_requests=1 all_rows=7 all_values=70");
	served(bob);
	principal_unref(bob);
	*text = '\0';
	line_add(text, sizeof text, "alice", "a", "score");
	file_write(f, text);
	assert_int_equal(auth_reload(watched, f->path, NULL), 0);        // bob is forgotten
	assert_int_equal(n_lines, 2);
	assert_non_null(strstr(last_line, "token=bob requests=1 rows=7 values=70 "));
	served(alice);
	file_write(f, "");
	assert_int_equal(auth_reload(watched, f->path, NULL), 0);
	assert_int_equal(n_lines, 2);
	principal_unref(alice);        // who held the last reference
	assert_int_equal(n_lines, 3);
	assert_non_null(strstr(last_line, "token=alice requests=1 rows=7 values=70 all_requests=2 all_rows=14 all_values=140"));
	alarm(0);
	log_set_journal(NULL);
}

int main(void)
{
#define WITH_FILE(t) cmocka_unit_test_setup_teardown(t, file_open, file_close)
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_line_reads_back), cmocka_unit_test(lines_that_are_not_tokens),
		cmocka_unit_test(a_secret_in_the_wrong_place_is_not_shown), cmocka_unit_test(secrets_differ),
		WITH_FILE(files_that_are_refused), WITH_FILE(as_many_tokens_as_the_limit), WITH_FILE(without_a_file_anybody_may_everything),
		cmocka_unit_test(nobody_may_nothing), WITH_FILE(only_known_tokens_are_let_in), WITH_FILE(scopes_are_what_the_line_says),
		WITH_FILE(requests_under_way_are_bounded), WITH_FILE(tokens_per_second_are_bounded),
		WITH_FILE(what_was_not_used_is_given_back_and_no_more), WITH_FILE(ids_of_a_row_are_bounded),
		WITH_FILE(a_reload_takes_back_changes_and_adds), WITH_FILE(nobody_waits_for_the_audit_trail),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
