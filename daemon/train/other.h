// SPDX-License-Identifier: Apache-2.0
// One more teacher of a run beside its own: one line of the settings, "big server:unix:/run/kdserved/kdserved.sock model=big".
#pragma once

struct config_list;
struct error;

#define OTHER_MAX 7                    // lines of one run: with its own, as many teachers as an objective takes
#define OTHER_NAME_MAX 28

struct other {
	char name[OTHER_NAME_MAX + 1];
	const char *server;                    // "unix:PATH", "tcp:ADDRESS:PORT" or "tls:HOST:PORT"; else shards
	const char *shards;                    // directories, separated by commas
	const char *model;                     // name of one of the server's teachers; NULL = its first
	const char *ca, *server_name;          // with tls: as in struct kd_options
	const char *id;                        // fingerprint it must have; NULL = any
	char *memory;                          // what the words lie in
};

// `where` ("run.conf:12") begins the errors, whose field is "other-teacher". other_done it, also after a failure.
int other_parse(const char *text, const char *where, struct other *ret, struct error *err);
void other_done(struct other *o);              // harmless on zeroed memory
// The line that names `name`, parsed. ERROR_NOT_FOUND.
int other_find(const struct config_list *lines, const char *name, struct other *ret, const char **ret_where, struct error *err);
// Each line alone, and that no two have one name.
int other_check(const struct config_list *lines, struct error *err);
