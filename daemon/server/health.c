// SPDX-License-Identifier: Apache-2.0
#include "daemon/server/health.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

#include "common/buffer.h"
#include "daemon/server/reloads.h"
#include "daemon/server/service.h"
#include "daemon/server/tls.h"
#include "daemon/store/store.h"
#include "daemon/teacher/teacher.h"

#define SPACE_SHARE 20                     // of the file system: a twentieth
#define SPACE_BYTES (UINT64_C(1) << 30)    // of a small one that is little; of a large one a twentieth is much

static const char *const names[] = {
	[HEALTH_DEVICE] = "device", [HEALTH_STORE] = "store", [HEALTH_SPACE] = "space", [HEALTH_CANARY] = "canary",
	[HEALTH_CERTIFICATE] = "certificate",
};

const char *health_name(enum health_state state)
{
	return names[state];
}

static void read_store(struct store *store, struct health *h)
{
	struct store_stats t;
	store_stats(store, &t);
	h->degraded[HEALTH_STORE] = t.failing || t.disk_read_only;
	h->degraded[HEALTH_SPACE] = t.disk_bytes && t.free_bytes < t.disk_bytes / SPACE_SHARE && t.free_bytes < SPACE_BYTES;
}

void health_read(struct service *s, struct health *ret)
{
	uint32_t n;
	*ret = (struct health){0};
	ret->ready = service_check_ready(s, &ret->why) == 0;
	if (service_store(s))
		read_store(service_store(s), ret);
	if (service_tls(s))
		ret->degraded[HEALTH_CERTIFICATE] = tls_current_expiry(service_tls(s)) <= time(NULL);
	if (teacher_state(service_teacher(s)) != TEACHER_READY)
		return;
	const struct teacher_info *infos = teacher_infos(service_teacher(s), &n);
	ret->degraded[HEALTH_DEVICE] = infos->second_choice;
	for (uint32_t i = 0; i < n; i++)
		ret->degraded[HEALTH_CANARY] |= *infos[i].canary_note != '\0';
}

bool health_is_degraded(const struct health *h)
{
	for (int i = 0; i < N_HEALTH_STATES; i++)
		if (h->degraded[i])
			return true;
	return false;
}

void health_list(struct buffer *b, const struct health *h)
{
	const char *between = "[";
	for (int i = 0; i < N_HEALTH_STATES; i++) {
		if (!h->degraded[i])
			continue;
		buffer_printf(b, "%s\"%s\"", between, names[i]);
		between = ",";
	}
	buffer_text(b, *between == '[' ? "[]" : "]");
}

// Behind what is served: what an administrator asked for and did not get.
static void add_reloads(struct service *s, char *text)
{
	struct reloads_stats t;
	size_t n = strlen(text);
	reloads_read(service_reloads(s), &t);
	if (*t.why)
		snprintf(text + n, HEALTH_TEXT_BYTES - n, "; reload refused: %s", t.why);
	else if (t.n_restart)
		snprintf(text + n, HEALTH_TEXT_BYTES - n, "; restart needed for: %s", t.restart);
}

static void serving_text(struct service *s, char ret_text[HEALTH_TEXT_BYTES])
{
	struct health h;
	health_read(s, &h);
	if (!h.ready) {
		snprintf(ret_text, HEALTH_TEXT_BYTES, "Not ready: %s", h.why.message);
		return;
	}
	const struct teacher_info *t = teacher_info(service_teacher(s));
	const char *between = "; degraded: ";
	size_t n = (size_t)snprintf(ret_text, HEALTH_TEXT_BYTES, "Serving %s on %s", t->name, t->device);
	for (int i = 0; i < N_HEALTH_STATES; i++) {
		if (!h.degraded[i])
			continue;
		n += (size_t)snprintf(ret_text + n, HEALTH_TEXT_BYTES - n, "%s%s", between, names[i]);
		between = ", ";
	}
}

void health_text(struct service *s, char ret_text[HEALTH_TEXT_BYTES])
{
	serving_text(s, ret_text);
	add_reloads(s, ret_text);
}
