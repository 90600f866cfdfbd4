// SPDX-License-Identifier: Apache-2.0
// One line per event to stderr, or, where stderr is the journal and somebody can speak its language, one entry with fields. Only edges log;
// libraries return errors.
#pragma once

#include <stdbool.h>
#include <syslog.h>

struct error;

void log_open(int max_priority);      // LOG_DEBUG ... LOG_ERR; before any other thread starts
void log_set_level(int max_priority); // from now on; any thread

// What an entry is made of. field and value: what it is about besides ("KD_RUN", a run's id); both NULL = nothing.
struct log_event { int priority; const char *message, *file, *function; int line; const char *field, *value; };
typedef bool log_journal_fn(const struct log_event *event);    // false: it could not be sent
// Before any other thread starts. Lines on stderr remain for programs that never call it, and wherever stderr is not the journal.
void log_set_journal(log_journal_fn *send);
// The end is near: lines again, since the journal cannot tell whose an entry is once its process is gone; a line it can.
void log_leave(void);

void log_write(int priority, const char *file, int line, const char *function, const char *field, const char *value,
	       const char *format, ...)
	__attribute__((format(printf, 7, 8)));
#define log_about(priority, field, value, ...) log_write(priority, __FILE__, __LINE__, __func__, field, value, __VA_ARGS__)
#define log_error(...) log_about(LOG_ERR, NULL, NULL, __VA_ARGS__)
#define log_warning(...) log_about(LOG_WARNING, NULL, NULL, __VA_ARGS__)
#define log_notice(...) log_about(LOG_NOTICE, NULL, NULL, __VA_ARGS__)
#define log_info(...) log_about(LOG_INFO, NULL, NULL, __VA_ARGS__)
#define log_debug(...) log_about(LOG_DEBUG, NULL, NULL, __VA_ARGS__)
