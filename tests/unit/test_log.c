// SPDX-License-Identifier: Apache-2.0
// Where a line of the log goes: plain lines, lines for the journal's stream, entries with fields.
// libsystemd's sender is replaced by our own.
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>
#include <cmocka.h>

#include "daemon/log.h"
#include "daemon/log_journal.h"

static char entry[8192];                // the last one sent, a field a line
static int n_entries, refusal;

int sd_journal_sendv(const struct iovec *iov, int n);
int sd_journal_sendv(const struct iovec *iov, int n)
{
	size_t at = 0;
	if (refusal)
		return refusal;
	for (int i = 0; i < n; i++)
		at += (size_t)snprintf(entry + at, sizeof entry - at, "%.*s\n", (int)iov[i].iov_len, (const char *)iov[i].iov_base);
	n_entries++;
	return 0;
}

static int saved, file;
static char text[4096];

static int catch(void **state)
{
	(void)state;
	char path[] = "/tmp/kdserved-test-log-XXXXXX";
	saved = dup(STDERR_FILENO);
	file = mkstemp(path);
	unlink(path);
	dup2(file, STDERR_FILENO);
	n_entries = refusal = 0;
	*entry = '\0';
	log_set_journal(log_journal);
	return 0;
}

static int release(void **state)
{
	(void)state;
	dup2(saved, STDERR_FILENO);
	close(saved);
	close(file);
	unsetenv("JOURNAL_STREAM");
	return 0;
}

static const char *written(void)
{
	ssize_t n = pread(file, text, sizeof text - 1, 0);
	text[n > 0 ? n : 0] = '\0';
	return text;
}

static void name_stream(int inode_off)
{
	struct stat st;
	char stream[64];
	fstat(STDERR_FILENO, &st);
	snprintf(stream, sizeof stream, "%llu:%llu", (unsigned long long)st.st_dev, (unsigned long long)st.st_ino + (unsigned)inode_off);
	setenv("JOURNAL_STREAM", stream, 1);
}

static void a_terminal_or_file_gets_plain_lines(void **state)
{
	(void)state;
	static const char *const streams[] = {NULL, "", "x", "1", "1:", "0:0", "-1:-1", "18446744073709551616:1"};
	for (size_t i = 0; i < sizeof streams / sizeof *streams; i++) {
		streams[i] ? setenv("JOURNAL_STREAM", streams[i], 1) : unsetenv("JOURNAL_STREAM");
		log_open(LOG_INFO);
		log_warning("number %zu", i);
	}
	name_stream(1);              // of another file: a redirect inside a unit
	log_open(LOG_INFO);
	log_warning("another's");
	assert_int_equal(n_entries, 0);
	assert_non_null(strstr(written(), "test_log: warning: number 0\n"));
	assert_non_null(strstr(written(), "test_log: warning: number 7\n"));
	assert_non_null(strstr(written(), "test_log: warning: another's\n"));
}

static void the_journal_gets_fields(void **state)
{
	(void)state;
	name_stream(0);
	log_open(LOG_INFO);
	log_about(LOG_WARNING, "KD_RUN", "night-1", "run %s: gone\nPRIORITY=0", "night-1");
	assert_int_equal(n_entries, 1);
	assert_string_equal(written(), "");
	static const char *const lines[] = {
		"MESSAGE=run night-1: gone?PRIORITY=0\n", "\nPRIORITY=4\n", "\nCODE_FUNC=the_journal_gets_fields\n",
		"tests/unit/test_log.c\n", "\nCODE_LINE=", "\nKD_RUN=night-1\n", "\nSYSLOG_IDENTIFIER="};
	for (size_t i = 0; i < sizeof lines / sizeof *lines; i++)
		if (!strstr(entry, lines[i]))
			fail_msg("no %s in %s", lines[i], entry);
	log_notice("plain");
	assert_null(strstr(entry, "KD_"));
}

static void what_the_journal_refuses_is_a_line_with_its_priority(void **state)
{
	(void)state;
	name_stream(0);
	log_open(LOG_INFO);
	refusal = -111;
	log_error("still told");
	assert_string_equal(written(), "<3>still told\n");
}

static void the_level_changes_while_running(void **state)
{
	(void)state;
	unsetenv("JOURNAL_STREAM");
	log_open(LOG_WARNING);
	log_info("not this");
	log_set_level(LOG_DEBUG);
	log_debug("but this");
	log_set_level(LOG_ERR);
	log_warning("nor this");
	assert_non_null(strstr(written(), "but this"));
	assert_null(strstr(text, "not this"));
	assert_null(strstr(text, "nor this"));
}

static void long_messages_are_cut_not_split(void **state)
{
	(void)state;
	char *huge = calloc(1, 100000);
	memset(huge, 'x', 99999);
	name_stream(0);
	log_open(LOG_INFO);
	log_info("%s", huge);
	assert_int_equal(n_entries, 1);
	assert_true(strlen(entry) < 2000);
	free(huge);
}

// Last: it cannot be taken back.
static void last_words_are_lines(void **state)
{
	(void)state;
	name_stream(0);
	log_open(LOG_INFO);
	log_leave();
	log_notice("stopped");
	assert_int_equal(n_entries, 0);
	assert_string_equal(written(), "<5>stopped\n");
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, catch, release)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(a_terminal_or_file_gets_plain_lines), TEST(the_journal_gets_fields),
		TEST(what_the_journal_refuses_is_a_line_with_its_priority), TEST(the_level_changes_while_running),
		TEST(long_messages_are_cut_not_split), TEST(last_words_are_lines),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
