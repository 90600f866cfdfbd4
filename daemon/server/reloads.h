// SPDX-License-Identifier: Apache-2.0
// How the settings were read again (SIGHUP): for /v1/status, /metrics and the status text. The main thread writes, any reads.
#pragma once

#include <pthread.h>
#include <stdint.h>

struct buffer;

#define RELOADS_WHY_BYTES 320
#define RELOADS_NAMES_BYTES 1024

struct reloads_stats {
	uint64_t n_good, n_bad;
	double good_seconds;                   // when they were last read without an error, since 1970; the start counts
	char why[RELOADS_WHY_BYTES];           // why the last time was refused; "" = it was not
	uint32_t n_restart;                    // settings that changed in the file and wait for a restart
	char restart[RELOADS_NAMES_BYTES];     // their names, a space between
};

struct reloads { pthread_mutex_t lock; struct reloads_stats stats; };

void reloads_init(struct reloads *r);
void reloads_done(struct reloads *r);
void reloads_good(struct reloads *r, const char *restart, uint32_t n_restart);
void reloads_bad(struct reloads *r, const char *why);
void reloads_read(struct reloads *r, struct reloads_stats *ret);
void reloads_status(struct reloads *r, struct buffer *b);      // {"reloads":..,...}
