// SPDX-License-Identifier: Apache-2.0
// kdctl store: shared by its commands, which look after a directory of records without a server.
#pragma once

#include "clients/kdctl/kdctl.h"

struct error;
struct record;
struct store;

// One of the commands: argv[0] is its name. Each returns the program's exit status.
int store_ls(struct kdctl *k, int argc, char **argv);
int store_cat(struct kdctl *k, int argc, char **argv);
int store_verify(struct kdctl *k, int argc, char **argv);
int store_stat(struct kdctl *k, int argc, char **argv);
int store_prune(struct kdctl *k, int argc, char **argv);
int store_compact(struct kdctl *k, int argc, char **argv);
int store_merge(struct kdctl *k, int argc, char **argv);

// getopt_long with the options that all have (--json, --help: prints `help`): the next option that is the command's own, -1 at the end of
// them, or -2: leave with *ret_status.
struct option;
int store_option(struct kdctl *k, int argc, char **argv, const struct option *options, const char *help, int *ret_status);
#define STORE_OPTIONS {"json", no_argument, NULL, 'j'}, {"help", no_argument, NULL, 'h'}

int store_expect_directory(const struct kdctl *k, const char *directory);                // 0, or 1 (said why)
int store_failure(const struct kdctl *k, const struct error *err);                       // says it; returns 1
bool store_threads(const char *text, unsigned *ret_threads);                             // 1 to 64; NULL: as many as processors
bool store_size(const char *text, uint64_t *ret_bytes);                                  // "10G"; above 0
bool store_duration(const char *text, uint64_t *ret_s);                                  // "30d"; above 0
// A damaged place: a line on stderr, and with --json one on stdout.
void store_report_damage(const struct kdctl *k, const char *place, uint64_t offset, uint64_t n_bytes, const char *message);
void store_bytes_text(uint64_t n, char ret_text[24]);                                    // "1.5 GiB"
// survey_progress's bar.
void store_progress(struct progress *p, uint64_t done, uint64_t all);
// What a record answers, under the names of /v1/score; of lists only how long they are.
struct query;
void store_add_query(json_t *j, const struct query *q);
