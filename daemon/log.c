// SPDX-License-Identifier: Apache-2.0
// One write(2) per line, so lines of several threads never mix. Control characters are escaped: a message can hold pieces of hostile
// input, which must not forge a second line or steer a terminal.
#include "daemon/log.h"

#include <errno.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#define LOG_LINE_MAX 1024

static atomic_int log_max_priority = LOG_INFO;
static bool log_to_journal;
static log_journal_fn *log_journal;
static atomic_bool log_leaving;

// systemd says in JOURNAL_STREAM which device:inode is the journal; anything else (a redirect) gets plain lines.
static bool stderr_is_journal(void)
{
	const char *stream = getenv("JOURNAL_STREAM");
	unsigned long long device, inode;
	struct stat st;
	// NOLINTNEXTLINE(cert-err34-c): systemd writes it; a number that is too large is no device's
	if (!stream || sscanf(stream, "%llu:%llu", &device, &inode) != 2 || fstat(STDERR_FILENO, &st))
		return false;
	return st.st_dev == device && st.st_ino == inode;
}

void log_open(int max_priority)
{
	log_set_level(max_priority);
	log_to_journal = stderr_is_journal();
}

void log_set_level(int max_priority)
{
	atomic_store(&log_max_priority, max_priority);
}

void log_set_journal(log_journal_fn *send)
{
	log_journal = send;
}

void log_leave(void)
{
	atomic_store(&log_leaving, true);
}

static const char *priority_word(int priority)
{
	switch (priority) {
	case LOG_ERR: return "error: ";
	case LOG_WARNING: return "warning: ";
	case LOG_DEBUG: return "debug: ";
	default: return "";
	}
}

static void write_line(int priority, const char *message)
{
	char text[LOG_LINE_MAX + 128];
	int n = log_to_journal ? snprintf(text, sizeof text, "<%d>%s\n", priority, message)
		: snprintf(text, sizeof text, "%.64s: %s%s\n", program_invocation_short_name, priority_word(priority), message);
	ssize_t written = write(STDERR_FILENO, text, (size_t)n);
	(void)written;    // nowhere is left to complain to
}

void log_write(int priority, const char *file, int line, const char *function, const char *field, const char *value,
	       const char *format, ...)
{
	char message[LOG_LINE_MAX];
	const struct log_event event = {priority, message, file, function, line, field, value};
	if (priority > atomic_load(&log_max_priority))
		return;
	int saved_errno = errno;
	va_list arguments;
	va_start(arguments, format);
	vsnprintf(message, sizeof message, format, arguments);
	va_end(arguments);
	for (char *p = message; *p; p++)
		if ((unsigned char)*p < 0x20 || *p == 0x7f)
			*p = '?';
	if (!log_to_journal || !log_journal || atomic_load(&log_leaving) || !log_journal(&event))
		write_line(priority, message);
	errno = saved_errno;
}
