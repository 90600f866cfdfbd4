// SPDX-License-Identifier: Apache-2.0
// What systemd is told (as sd_notify(3) tells it, but without ever waiting for it), and when the engine still deserves the watchdog's food.
// Nothing here does anything without systemd. The main thread's alone.
#pragma once

#include <stdbool.h>
#include <stdint.h>

#define NOTIFY_TICK_MS 5000          // while loading

struct notify {
	uint64_t watchdog_ms;            // 0 = the unit has none
	uint64_t stall_ms;               // how long the engine may show no sign of life
	uint64_t beats, beat_ms;         // its last one, and when it was seen
	uint64_t cpu_ms;                 // of the process, when the loading was last seen to go on
};

// stall_ms: beyond it the watchdog is no longer fed; 0 = whenever the engine did nothing between two looks.
void notify_init(struct notify *n, uint64_t stall_ms);
int notify_timeout(const struct notify *n, bool loading);      // for poll: ms until the next look, -1 = none is needed
// A look while the teacher is being read: more time is asked for as long as the process works.
void notify_loading(struct notify *n);
// A look at the engine, which has shown `beats` signs of life in all.
void notify_engine(struct notify *n, uint64_t beats);
void notify_ready(void);
void notify_status(const char *format, ...) __attribute__((format(printf, 1, 2)));
void notify_reloading(void);         // notify_ready() ends it
void notify_stopping(uint64_t drain_ms);
