// SPDX-License-Identifier: Apache-2.0
#include "daemon/notify.h"

#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <systemd/sd-daemon.h>
#include <time.h>

#include "daemon/clock.h"

#define LOOKS 4                      // in the watchdog's time: a late one does not matter
#define EXTEND_US 60000000u          // asked for beyond now, at each look at a loading that goes on
#define WORKING_MS 20                // of processor time between two looks: reading a file takes more, waiting for a dead disk less
#define AFTER_DRAIN_MS 15000         // fsync, workers that write checkpoints

static uint64_t processor_ms(void)
{
	struct timespec t;
	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
	return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

void notify_init(struct notify *n, uint64_t stall_ms)
{
	uint64_t us = 0;
	*n = (struct notify){.stall_ms = stall_ms, .beat_ms = clock_ms(), .cpu_ms = processor_ms()};
	if (sd_watchdog_enabled(0, &us) > 0)
		n->watchdog_ms = us / 1000 < INT_MAX ? us / 1000 : INT_MAX;
}

int notify_timeout(const struct notify *n, bool loading)
{
	if (loading)
		return getenv("NOTIFY_SOCKET") ? NOTIFY_TICK_MS : -1;
	return n->watchdog_ms ? (int)(n->watchdog_ms / LOOKS) : -1;
}

void notify_loading(struct notify *n)
{
	uint64_t now = processor_ms();
	if (now - n->cpu_ms >= WORKING_MS)
		sd_notifyf(0, "EXTEND_TIMEOUT_USEC=%u", EXTEND_US);
	n->cpu_ms = now;
}

void notify_engine(struct notify *n, uint64_t beats)
{
	uint64_t now = clock_ms();
	bool alive = beats != n->beats || now - n->beat_ms < n->stall_ms;
	if (beats != n->beats)
		n->beat_ms = now;
	n->beats = beats;
	if (n->watchdog_ms && alive)
		sd_notify(0, "WATCHDOG=1");
}

void notify_ready(void)
{
	sd_notify(0, "READY=1");
}

void notify_status(const char *format, ...)
{
	char text[512];
	va_list arguments;
	va_start(arguments, format);
	vsnprintf(text, sizeof text, format, arguments);
	va_end(arguments);
	for (char *p = text; *p; p++)
		if ((unsigned char)*p < 0x20)
			*p = ' ';    // a line break would begin another assignment
	sd_notifyf(0, "STATUS=%s", text);
}

void notify_reloading(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);    // newer systemd waits for a READY that is later than this
	sd_notifyf(0, "RELOADING=1\nMONOTONIC_USEC=%llu",
		   (unsigned long long)t.tv_sec * 1000000 + (unsigned long long)t.tv_nsec / 1000);
}

void notify_stopping(uint64_t drain_ms)
{
	sd_notifyf(0, "STOPPING=1\nSTATUS=Answering what was accepted\nEXTEND_TIMEOUT_USEC=%llu",
		   (unsigned long long)(drain_ms + AFTER_DRAIN_MS) * 1000);
}
