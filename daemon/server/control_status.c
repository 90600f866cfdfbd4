// SPDX-License-Identifier: Apache-2.0
// GET /v1/status: how the server fares, for people and for the status page.
#include "daemon/server/control_internal.h"

#include <inttypes.h>
#include <string.h>

#include "daemon/server/health.h"
#include "daemon/server/reloads.h"
#include "daemon/server/reply.h"
#include "daemon/server/service.h"
#include "daemon/store/store.h"
#include "daemon/teacher/teacher.h"
#include "daemon/train/supervisor.h"

#ifdef HAVE_CONFIG_H
#include "config.h"
#endif

static void store_status(struct buffer *b, struct store *store)
{
	struct store_stats t;
	store_stats(store, &t);
	buffer_printf(b,
		      ",\"store\":{\"records\":%" PRIu64 ",\"shards\":%" PRIu64 ",\"bytes\":%" PRIu64 ",\"hits\":%" PRIu64
		      ",\"contained\":%" PRIu64 ",\"misses\":%" PRIu64 ",\"appended\":%" PRIu64 ",\"removed_shards\":%" PRIu64
		      ",\"corrupt\":%" PRIu64 ",\"uring\":%s,\"failing\":%s}",
		      t.n_records, t.n_shards, t.n_bytes, t.n_hits, t.n_contained, t.n_misses, t.n_appended, t.n_removed_shards,
		      t.n_corrupt, t.uring ? "true" : "false",
		      t.failing ? "true" : "false");
}

static void device_status(struct buffer *b, struct teacher *teacher, const struct teacher_stats *t)
{
	uint32_t n;
	const struct teacher_info *infos = teacher_infos(teacher, &n);
	buffer_printf(b,
		      ",\"device\":{\"name\":\"%s\",\"numeric\":\"%s\",\"memory_bytes\":%" PRIu64 ",\"late_allocations\":%" PRIu64
		      ",\"description\":", infos->device, infos->numeric, t->memory_bytes, t->n_late_allocations);
	buffer_string(b, infos->description, strlen(infos->description));
	if (*infos->fallback) {
		buffer_text(b, ",\"fallback\":");
		buffer_string(b, infos->fallback, strlen(infos->fallback));
	}
	buffer_text(b, "},\"load\":{");
	for (uint32_t i = 0; i < n; i++) {
		buffer_text(b, i ? "," : "");
		buffer_string(b, infos[i].name, strlen(infos[i].name));
		buffer_printf(b, ":{\"seconds\":%.3f,\"upload_seconds\":%.3f,\"upload_bytes\":%" PRIu64 ",\"seconds_per_gib\":%.3f}",
			      infos[i].load_seconds,
			      infos[i].upload_seconds, infos[i].upload_bytes, teacher_upload_rate(&infos[i]));
	}
	buffer_text(b, "}");
}

static void request_status(struct buffer *b, const struct service_stats *t)
{
	uint64_t n[5] = {0};
	for (int i = 0; i < N_REQUEST_DOORS; i++) {
		n[0] += t->doors[i].accepted;
		n[1] += t->doors[i].answered;
		n[2] += t->doors[i].rejected;
		n[3] += t->doors[i].cancelled;
		n[4] += t->doors[i].in_flight;
	}
	buffer_printf(b, ",\"requests\":{\"accepted\":%" PRIu64 ",\"answered\":%" PRIu64 ",\"rejected\":%" PRIu64 ",\"cancelled\":%" PRIu64
		      ",\"in_flight\":%" PRIu64 "}", n[0], n[1], n[2], n[3], n[4]);
}

int control_get_status(const struct control_input *in, struct control_reply *out, struct error *err)
{
	struct service *s = in->service;
	struct buffer *b = &out->body;
	struct service_stats t;
	struct teacher_stats passes;
	struct health h;
	(void)err;
	service_stats(s, &t);
	teacher_stats(service_teacher(s), &passes);
	health_read(s, &h);
	buffer_printf(b, "{\"version\":\"%s\",\"uptime_s\":%.3f,\"ready\":%s", PACKAGE_VERSION, service_uptime(s),
		      h.ready ? "true" : "false");
	if (!h.ready) {
		buffer_text(b, ",\"why\":");
		buffer_string(b, h.why.message, strlen(h.why.message));
	}
	buffer_text(b, ",\"degraded\":");
	health_list(b, &h);
	buffer_text(b, ",\"settings\":");
	reloads_status(service_reloads(s), b);
	request_status(b, &t);
	buffer_printf(
		b, ",\"queue\":{\"requests\":%" PRIu64 ",\"tokens\":%" PRIu64 ",\"bytes\":%" PRIu64 ",\"requests_limit\":%" PRIu64
		",\"tokens_limit\":%" PRIu64 ",\"bytes_limit\":%" PRIu64 ",\"sequences_waiting\":%" PRIu64 "}",
		t.reserved.requests, t.reserved.tokens, t.reserved.bytes, t.limits.requests, t.limits.tokens, t.limits.bytes,
		passes.n_waiting);
	buffer_printf(b, ",\"sequences\":{\"cached\":%" PRIu64 ",\"computed\":%" PRIu64 "}", t.n_cached, t.n_computed);
	buffer_printf(b, ",\"forward\":{\"passes\":%" PRIu64 ",\"mixed_passes\":%" PRIu64 ",\"positions\":%" PRIu64 "}", passes.n_passes,
		      passes.n_mixed_passes, passes.n_positions);
	if (passes.n_canaries)
		buffer_printf(b, ",\"canary\":{\"right\":%" PRIu64 ",\"age_s\":%.3f}", passes.n_canaries,
			(double)passes.canary_age_ms * 1e-3);
	if (control_check_loaded(s, NULL) == 0)
		device_status(b, service_teacher(s), &passes);
	if (service_store(s))
		store_status(b, service_store(s));
	if (service_supervisor(s))
		buffer_printf(b, ",\"runs\":{\"running\":%" PRIu32 "}", supervisor_n_running(service_supervisor(s)));
	buffer_text(b, "}");
	return 0;
}
