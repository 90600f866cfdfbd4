// SPDX-License-Identifier: Apache-2.0
// One write(2) per line, so lines of several threads never mix. Control characters are escaped: a message can hold pieces of hostile
// input, which must not forge a second line or steer a terminal.
#include "daemon/log.h"

#include <errno.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#define LOG_LINE_MAX 1024

static int log_max_priority = LOG_INFO;
static bool log_to_journal;

// systemd says in JOURNAL_STREAM which device:inode is the journal; anything else (a redirect) gets plain lines.
static bool stderr_is_journal(void)
{
	const char *stream = getenv("JOURNAL_STREAM");
	unsigned long long device, inode;
	struct stat st;
	if (!stream || sscanf(stream, "%llu:%llu", &device, &inode) != 2 || fstat(STDERR_FILENO, &st))
		return false;
	return st.st_dev == device && st.st_ino == inode;
}

void log_open(int max_priority)
{
	log_max_priority = max_priority;
	log_to_journal = stderr_is_journal();
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

void log_write(int priority, const char *format, ...)
{
	char message[LOG_LINE_MAX], line[LOG_LINE_MAX + 128];
	if (priority > log_max_priority)
		return;
	int saved_errno = errno;
	va_list arguments;
	va_start(arguments, format);
	vsnprintf(message, sizeof message, format, arguments);
	va_end(arguments);
	for (char *p = message; *p; p++)
		if ((unsigned char)*p < 0x20 || *p == 0x7f)
			*p = '?';
	int n = log_to_journal ? snprintf(line, sizeof line, "<%d>%s\n", priority, message)
		: snprintf(line, sizeof line, "%.64s: %s%s\n", program_invocation_short_name, priority_word(priority), message);
	ssize_t written = write(STDERR_FILENO, line, (size_t)n);
	(void)written;    // nowhere is left to complain to
	errno = saved_errno;
}
