// SPDX-License-Identifier: Apache-2.0
// What becomes of a run whose worker ended: it is over, or another worker follows after a while. And the one timer behind all that is due.
#include "daemon/train/supervisor_internal.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#include "daemon/clock.h"

#define RESTART_LONGEST_MS 300000      // between a death and the next worker
#define KILL_LOOK_MS 1000              // how often it is tried to end a worker that does not stop

static uint64_t delay_of(const struct supervisor *s, uint32_t n)
{
	uint64_t ms = s->limits.delay_ms;
	while (n-- && ms < RESTART_LONGEST_MS)
		ms *= 2;
	return ms < RESTART_LONGEST_MS ? ms : RESTART_LONGEST_MS;
}

// Whether another worker may follow now; counts it.
static bool restart_take(struct supervisor *s, struct entry *e)
{
	uint64_t now = clock_ms();
	if (!e->n_restarts || now - e->window_began_ms > s->limits.window_ms) {
		e->window_began_ms = now;
		e->n_restarts = 0;
	}
	if (s->closing || e->n_restarts >= s->limits.restarts)
		return false;
	e->n_restarts++;
	return true;
}

static void tell(struct supervisor *s, const struct entry *e, const char *what)
{
	if (s->event)
		s->event(s->event_arg, e->run.id, what);
}

void supervisor_ended(struct supervisor *s, struct entry *e, int status)
{
	char reason[ENTRY_REASON_MAX], text[ENTRY_REASON_MAX + 96];
	bool again;
	enum run_state state = entry_classify(e, &s->context, status, reason, &again);
	if (state == RUN_FAILED && again && restart_take(s, e)) {
		uint64_t ms = delay_of(s, e->n_restarts - 1);
		entry_postpone(e, &s->context, reason, ms);
		snprintf(text, sizeof text, "%s; another worker follows in %.3g s", reason, (double)ms * 1e-3);
		tell(s, e, text);
	} else {
		if (state == RUN_FAILED && again && e->n_restarts)
			snprintf(text, sizeof text, "%.*s (restarted %u times within %.3g s)", ENTRY_REASON_MAX - 1, reason, e->n_restarts,
				 (double)s->limits.window_ms * 1e-3);
		else
			snprintf(text, sizeof text, "%s", reason);
		entry_finish(e, &s->context, state, text);
		if (state == RUN_FAILED)
			tell(s, e, text);
	}
	supervisor_timer_arm(s);
}

// In ms; UINT64_MAX: nothing is due.
static uint64_t next_due(const struct supervisor *s)
{
	uint64_t now = clock_ms(), next = UINT64_MAX;
	for (uint32_t i = 0; i < s->n_entries; i++) {
		const struct entry *e = s->entries[i];
		uint64_t ms = UINT64_MAX;
		if (e->process.pid && e->stopping)
			ms = KILL_LOOK_MS;
		else if (e->run.state == RUN_RESTARTING)
			ms = e->run.restart_at_ms > now ? e->run.restart_at_ms - now : 1;
		next = ms < next ? ms : next;
	}
	return next;
}

void supervisor_timer_arm(struct supervisor *s)
{
	uint64_t ms = next_due(s);
	struct itimerspec t = {0};
	if (ms != UINT64_MAX)
		t.it_value = (struct timespec){.tv_sec = (time_t)(ms / 1000), .tv_nsec = (long)(ms % 1000) * 1000000};
	timerfd_settime(s->timer_fd, 0, &t, NULL);
}

void supervisor_timer_fired(struct supervisor *s)
{
	uint64_t ticks, now = clock_ms();
	if (read(s->timer_fd, &ticks, sizeof ticks) < 0 && errno != EAGAIN)
		return;
	for (uint32_t i = 0; i < s->n_entries; i++) {
		struct entry *e = s->entries[i];
		if (e->process.pid && e->stopping && now >= e->kill_at_ms)
			process_signal(&e->process, SIGKILL);
		if (e->run.state != RUN_RESTARTING || now < e->run.restart_at_ms)
			continue;
		e->run.state = RUN_QUEUED;     // dispatch() starts it as soon as one more may run
		e->run.restarts++;
		s->n_restarts++;
		s->n_queued++;
		run_save(s->context.directory, &e->run, true, NULL);
	}
	supervisor_timer_arm(s);
}
