// SPDX-License-Identifier: Apache-2.0
// SIGTERM and SIGINT. The handler itself says that no question is taken any more: whatever the main thread does then (a log line, a reload,
// a disk that does not answer), /ready has said 503 before it comes round to draining.
#pragma once

#include <stdatomic.h>

// Both signals are blocked until stop_watch, and in all threads that were started before it.
void stop_block(void);
// From now on the calling thread takes them. The first writes the eventfd; a second one ends the process at once, whatever is blocked.
void stop_watch(int event_fd);
// Which signal asked for the end; 0 = none. Any thread may look.
extern _Atomic int stop_signal;
// The process ends at the latest after so many seconds from now.
void stop_arm(unsigned seconds);
