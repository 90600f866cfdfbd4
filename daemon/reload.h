// SPDX-License-Identifier: Apache-2.0
// SIGHUP: the settings are read anew, as at start, and checked, as at start. Any error and nothing changes; else what can change does, at
// once, and what cannot is named.
#pragma once

#include <stdbool.h>

struct auth;
struct config_errors;
struct options;
struct service;
struct service_options;
struct store;
struct supervisor;
struct supervisor_limits;
struct teacher;
struct tls_current;

struct reload {
	struct options *options;           // those in force; replaced row by row
	char **argv;                       // of the process
	struct auth *auth;
	struct tls_current *tls;           // what the doors show
	struct service *service;
	struct teacher *teacher;
	struct store *store;               // may be NULL
	struct supervisor *supervisor;     // may be NULL
};

// The main thread's. False: refused, and logged.
bool reload(const struct reload *r);

// What of the settings these are made of: at start, and again at each reload.
void reload_service_options(const struct options *o, struct service_options *ret);
void reload_supervisor_limits(const struct options *o, struct supervisor_limits *ret);
int reload_log_priority(const struct options *o);
// Every error, as a line of the log; with those that were not kept counted.
void reload_log_errors(const char *before, int priority, const struct config_errors *all);
