// SPDX-License-Identifier: Apache-2.0
// One line per event to stderr, with the journal's priority prefix (<6>) when stderr is the journal. Only edges log; libraries return
// errors.
#pragma once

#include <syslog.h>

struct error;

void log_open(int max_priority);      // LOG_DEBUG ... LOG_ERR; before any other thread starts
void log_write(int priority, const char *format, ...) __attribute__((format(printf, 2, 3)));
#define log_error(...) log_write(LOG_ERR, __VA_ARGS__)
#define log_warning(...) log_write(LOG_WARNING, __VA_ARGS__)
#define log_notice(...) log_write(LOG_NOTICE, __VA_ARGS__)
#define log_info(...) log_write(LOG_INFO, __VA_ARGS__)
#define log_debug(...) log_write(LOG_DEBUG, __VA_ARGS__)
