// SPDX-License-Identifier: Apache-2.0
#include "daemon/server/reloads.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "common/buffer.h"

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_REALTIME, &t);
	long ms = t.tv_nsec / 1000000;
	return (double)t.tv_sec + (double)ms / 1000;
}

void reloads_init(struct reloads *r)
{
	*r = (struct reloads){.stats.good_seconds = now()};
	pthread_mutex_init(&r->lock, NULL);
}

void reloads_done(struct reloads *r)
{
	pthread_mutex_destroy(&r->lock);
}

void reloads_good(struct reloads *r, const char *restart, uint32_t n_restart)
{
	pthread_mutex_lock(&r->lock);
	r->stats.n_good++;
	r->stats.good_seconds = now();
	r->stats.why[0] = '\0';
	r->stats.n_restart = n_restart;
	snprintf(r->stats.restart, sizeof r->stats.restart, "%s", restart);
	pthread_mutex_unlock(&r->lock);
}

void reloads_bad(struct reloads *r, const char *why)
{
	pthread_mutex_lock(&r->lock);
	r->stats.n_bad++;
	snprintf(r->stats.why, sizeof r->stats.why, "%s", why);
	pthread_mutex_unlock(&r->lock);
}

void reloads_read(struct reloads *r, struct reloads_stats *ret)
{
	pthread_mutex_lock(&r->lock);
	*ret = r->stats;
	pthread_mutex_unlock(&r->lock);
}

void reloads_status(struct reloads *r, struct buffer *b)
{
	struct reloads_stats t;
	reloads_read(r, &t);
	buffer_printf(b, "{\"reloads\":%" PRIu64 ",\"refused\":%" PRIu64 ",\"read\":%.3f", t.n_good, t.n_bad, t.good_seconds);
	if (*t.why) {
		buffer_text(b, ",\"why\":");
		buffer_string(b, t.why, strlen(t.why));
	}
	buffer_text(b, ",\"restart_needed\":[");
	for (const char *name = t.restart; *name; name += strcspn(name, " "), name += *name == ' ') {
		buffer_text(b, name == t.restart ? "" : ",");
		buffer_string(b, name, strcspn(name, " "));
	}
	buffer_text(b, "]}");
}
