// SPDX-License-Identifier: Apache-2.0
// Private to supervisor*.c: supervisor.c has the workers' lives, supervisor_restart.c what is due at a time, supervisor_request.c what the
// doors ask. All but _open and _close under the lock.
#pragma once

#include <pthread.h>
#include <stdbool.h>

#include "daemon/train/entry.h"
#include "daemon/train/supervisor.h"

struct supervisor {
	pthread_mutex_t lock;
	struct entry_context context;
	struct histogram step_seconds;
	struct supervisor_limits limits;
	uint32_t n_running, n_queued;
	uint64_t n_restarts;
	supervisor_event_fn *event;
	void *event_arg;
	int epoll_fd, timer_fd;
	bool closing;                  // nothing new is started
	struct entry **entries;        // never removed: an index stays good
	uint32_t n_entries;
};

struct entry *supervisor_find(const struct supervisor *s, const char *id);     // NULL: no such run
int supervisor_add(struct supervisor *s, struct entry *e, struct error *err);  // the table's from then on
void supervisor_queue_start(struct supervisor *s);             // as many as may run
// supervisor_restart.c
void supervisor_ended(struct supervisor *s, struct entry *e, int status);      // its worker was reaped
void supervisor_timer_arm(struct supervisor *s);       // for the next thing that is due: a kill, or a restart
void supervisor_timer_fired(struct supervisor *s);
