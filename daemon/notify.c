// SPDX-License-Identifier: Apache-2.0
#include "daemon/notify.h"

#include <errno.h>
#include <limits.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <systemd/sd-daemon.h>
#include <time.h>
#include <unistd.h>

#include "daemon/clock.h"

#define LOOKS 4                      // in the watchdog's time: a late one does not matter
#define EXTEND_US 60000000u          // asked for beyond now, at each look at a loading that goes on
#define WORKING_MS 20                // of processor time between two looks: reading a file takes more, waiting for a dead disk less
#define AFTER_DRAIN_MS 15000         // fsync, workers that write checkpoints

#define MESSAGE_BYTES 640
#define MAX_UNSENT 8
#define AGAIN_MS 200                 // until what nobody read is sent again

// sd_notify(3) waits until somebody reads, and a daemon that waits for its manager answers nobody. So messages leave through a socket of
// our own that never waits. One that finds no room is sent again at later looks, in its order:
// READY must not be lost because somebody was busy.
static struct {
	struct sockaddr_un address;
	socklen_t address_bytes;         // 0 = nobody wants to know
	char unsent[MAX_UNSENT][MESSAGE_BYTES];
	unsigned n_unsent;
} manager;

// A path, or a name after '@'.
static void find_manager(void)
{
	const char *name = getenv("NOTIFY_SOCKET");
	size_t n = name ? strlen(name) : 0;
	manager.address_bytes = 0;
	if (n < 2 || n >= sizeof manager.address.sun_path || (*name != '/' && *name != '@'))
		return;
	manager.address.sun_family = AF_UNIX;
	memcpy(manager.address.sun_path, name, n + 1);
	if (*name == '@')
		manager.address.sun_path[0] = '\0';
	manager.address_bytes = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + n + (*name == '/'));
}

// False when there is no room for it now. What cannot be sent at all is as if it were: nobody is there.
static bool send_now(const char *text)
{
	int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	ssize_t n = fd < 0 ? -1 : sendto(fd, text, strlen(text), MSG_NOSIGNAL, (const struct sockaddr *)&manager.address,
		manager.address_bytes);
	bool again = n < 0 && (errno == EAGAIN || errno == ENOBUFS || errno == EMFILE || errno == ENFILE);
	if (fd >= 0)
		close(fd);
	return !again;
}

static void send_unsent(void)
{
	unsigned n = 0;
	while (n < manager.n_unsent && send_now(manager.unsent[n]))
		n++;
	manager.n_unsent -= n;
	memmove(manager.unsent, manager.unsent + n, manager.n_unsent * sizeof *manager.unsent);
}

// keep: it matters later, too. With too many of these the oldest are not told.
static void tell(bool keep, const char *text)
{
	if (!manager.address_bytes)
		return;
	send_unsent();
	if ((!manager.n_unsent && send_now(text)) || !keep)
		return;
	if (manager.n_unsent == MAX_UNSENT)
		memmove(manager.unsent, manager.unsent + 1, --manager.n_unsent * sizeof *manager.unsent);
	snprintf(manager.unsent[manager.n_unsent++], MESSAGE_BYTES, "%s", text);
}

static uint64_t processor_ms(void)
{
	struct timespec t;
	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
	return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

void notify_init(struct notify *n, uint64_t stall_ms)
{
	uint64_t us = 0;
	find_manager();
	*n = (struct notify){.stall_ms = stall_ms, .beat_ms = clock_ms(), .cpu_ms = processor_ms()};
	if (sd_watchdog_enabled(0, &us) > 0)
		n->watchdog_ms = us / 1000 < INT_MAX ? us / 1000 : INT_MAX;
}

int notify_timeout(const struct notify *n, bool loading)
{
	if (manager.n_unsent)
		return AGAIN_MS;
	if (loading)
		return manager.address_bytes ? NOTIFY_TICK_MS : -1;
	return n->watchdog_ms ? (int)(n->watchdog_ms / LOOKS) : -1;
}

void notify_loading(struct notify *n)
{
	char text[64];
	uint64_t now = processor_ms();
	snprintf(text, sizeof text, "EXTEND_TIMEOUT_USEC=%u", EXTEND_US);
	send_unsent();
	if (now - n->cpu_ms >= WORKING_MS)
		tell(false, text);
	n->cpu_ms = now;
}

void notify_engine(struct notify *n, uint64_t beats)
{
	uint64_t now = clock_ms();
	send_unsent();
	bool alive = beats != n->beats || now - n->beat_ms < n->stall_ms;
	if (beats != n->beats)
		n->beat_ms = now;
	n->beats = beats;
	if (n->watchdog_ms && alive)
		tell(false, "WATCHDOG=1");
}

void notify_ready(void)
{
	tell(true, "READY=1");
}

void notify_status(const char *format, ...)
{
	char text[MESSAGE_BYTES] = "STATUS=";
	size_t n = strlen(text);
	va_list arguments;
	va_start(arguments, format);
	vsnprintf(text + n, sizeof text - n, format, arguments);
	va_end(arguments);
	for (char *p = text; *p; p++)
		if ((unsigned char)*p < 0x20)
			*p = ' ';    // a line break would begin another assignment
	tell(true, text);
}

void notify_reloading(void)
{
	char text[96];
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);    // newer systemd waits for a READY that is later than this
	snprintf(text, sizeof text, "RELOADING=1\nMONOTONIC_USEC=%llu",
		 (unsigned long long)t.tv_sec * 1000000 + (unsigned long long)t.tv_nsec / 1000);
	tell(true, text);
}

void notify_stopping(uint64_t drain_ms)
{
	char text[128];
	snprintf(text, sizeof text, "STOPPING=1\nSTATUS=Answering what was accepted\nEXTEND_TIMEOUT_USEC=%llu",
		 (unsigned long long)(drain_ms + AFTER_DRAIN_MS) * 1000);
	tell(true, text);
}
