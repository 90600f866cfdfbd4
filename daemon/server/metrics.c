// SPDX-License-Identifier: Apache-2.0
#include "daemon/server/metrics.h"

#include <inttypes.h>
#include <stddef.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

#include "common/error.h"
#include "common/buffer.h"
#include "daemon/server/auth.h"
#include "daemon/server/health.h"
#include "daemon/server/reloads.h"
#include "daemon/server/service.h"
#include "daemon/server/tls.h"
#include "daemon/store/store.h"
#include "daemon/teacher/faults.h"
#include "daemon/teacher/teacher.h"
#include "daemon/train/supervisor.h"

static void head(struct buffer *b, const char *name, const char *type, const char *help)
{
	buffer_printf(b, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, type);
}

static void counter(struct buffer *b, const char *name, const char *help, uint64_t value)
{
	head(b, name, "counter", help);
	buffer_printf(b, "%s %" PRIu64 "\n", name, value);
}

static void gauge(struct buffer *b, const char *name, const char *help, double value)
{
	head(b, name, "gauge", help);
	buffer_printf(b, "%s %.15g\n", name, value);
}

static void histogram(struct buffer *b, const char *name, const char *help, struct histogram *h)
{
	uint64_t n = 0;
	head(b, name, "histogram", help);
	for (int i = 0; i < HISTOGRAM_BUCKETS; i++) {
		n += atomic_load(&h->counts[i]);
		buffer_printf(b, "%s_bucket{le=\"%g\"} %" PRIu64 "\n", name, histogram_bound(i), n);
	}
	n += atomic_load(&h->counts[HISTOGRAM_BUCKETS]);
	buffer_printf(b, "%s_bucket{le=\"+Inf\"} %" PRIu64 "\n%s_sum %.6f\n%s_count %" PRIu64 "\n", name, n, name,
		      (double)atomic_load(&h->sum_us) * 1e-6, name, n);
}

static void per_door(struct buffer *b, const char *name, const char *type, const char *help, uint64_t http, uint64_t socket)
{
	head(b, name, type, help);
	buffer_printf(b, "%s{door=\"http\"} %" PRIu64 "\n%s{door=\"socket\"} %" PRIu64 "\n", name, http, name, socket);
}

#define PER_DOOR(b, name, type, help, t, field)                                                                                            \
	per_door(b, name, type, help, (t)->doors[REQUEST_HTTP].field, (t)->doors[REQUEST_SOCKET].field)

static void encode_requests(struct buffer *b, struct service *s)
{
	struct service_stats t;
	service_stats(s, &t);
	PER_DOOR(b, "kd_requests_accepted_total", "counter", "Requests read; always answered + rejected + cancelled + in flight.", &t,
		 accepted);
	PER_DOOR(b, "kd_requests_answered_total", "counter", "Requests whose whole answer was handed to the client's connection.", &t,
		 answered);
	PER_DOOR(b, "kd_requests_rejected_total", "counter", "Requests that ended with an error.", &t, rejected);
	PER_DOOR(b, "kd_requests_cancelled_total", "counter", 
		 "Requests taken back, and those whose client left or was cut off before it took the whole answer.", &t, cancelled);
	PER_DOOR(b, "kd_requests_in_flight", "gauge", "Requests under way.", &t, in_flight);
	head(b, "kd_requests_errors_total", "counter", "Requests that ended with an error, by its code.");
	for (int i = ERROR_NONE + 1; i < N_ERROR_CODES; i++)
		buffer_printf(b, "kd_requests_errors_total{code=\"%s\"} %" PRIu64 "\n", error_name((enum error_code)i),
			      t.rejected_by_code[i]);
	histogram(b, "kd_request_seconds", "From a request's acceptance to the end of its answer.", service_request_seconds(s));
	counter(b, "kd_sequences_cached_total", "Sequences answered from the store.", t.n_cached);
	counter(b, "kd_sequences_computed_total", "Sequences answered by the teacher.", t.n_computed);
	counter(b, "kd_sequences_wasted_total", "Sequences computed whose client left during the forward pass.", t.n_wasted);
	counter(b, "kd_answers_unkept_total", "Answers the store refused or had no room for.", t.n_unkept);
	gauge(b, "kd_reserved_requests", "Requests under way.", (double)t.reserved.requests);
	gauge(b, "kd_reserved_tokens", "Tokens of requests under way.", (double)t.reserved.tokens);
	gauge(b, "kd_reserved_bytes", "Upper bound of the answers under way, and over HTTP of their text.", (double)t.reserved.bytes);
	gauge(b, "kd_reserved_bytes_limit", "The limit of kd_reserved_bytes.", (double)t.limits.bytes);
	gauge(b, "kd_door_bytes", "Of bodies being received, and of replies that wait to be taken.", (double)t.held_bytes);
	gauge(b, "kd_door_bytes_limit", "The limit of kd_door_bytes.", (double)t.held_limit);
}

// A number of bytes of every teacher, at `at` of its info.
static void encode_bytes(struct buffer *b, const struct teacher_info *infos, uint32_t n, const char *name, const char *help, size_t at)
{
	char id[CONTENT_ID_HEX];
	head(b, name, "gauge", help);
	for (uint32_t i = 0; i < n; i++) {
		content_id_to_hex(&infos[i].fingerprint, id);
		buffer_printf(b, "%s{id=\"%s\"} %" PRIu64 "\n", name, id, *(const uint64_t *)(const void *)((const char *)&infos[i] + at));
	}
}

static void encode_infos(struct buffer *b, const struct teacher_info *infos, uint32_t n)
{
	char id[CONTENT_ID_HEX];
	head(b, "kd_teacher_info", "gauge", "The teachers; the value is 1.");
	for (uint32_t i = 0; i < n; i++) {
		content_id_to_hex(&infos[i].fingerprint, id);
		buffer_printf(b, "kd_teacher_info{id=\"%s\",architecture=\"%s\",device=\"%s\",numeric=\"%s\"} 1\n", id,
			      infos[i].architecture.name, infos[i].device, infos[i].numeric);
	}
	head(b, "kd_teacher_upload_seconds", "gauge", "Reading a teacher's weights and bringing them to the device.");
	for (uint32_t i = 0; i < n; i++) {
		content_id_to_hex(&infos[i].fingerprint, id);
		buffer_printf(b, "kd_teacher_upload_seconds{id=\"%s\"} %.6f\n", id, infos[i].upload_seconds);
	}
	encode_bytes(b, infos, n, "kd_teacher_upload_bytes", "Those weights, as they lie in the file.",
		     offsetof(struct teacher_info, upload_bytes));
	encode_bytes(b, infos, n, "kd_teacher_stored_bytes", "Of them, kept so and unpacked in each pass, where memory has no room.",
		     offsetof(struct teacher_info, stored_bytes));
	encode_bytes(b, infos, n, "kd_teacher_streamed_bytes", "Of weights as computed with, read from disk in each pass, likewise.",
		     offsetof(struct teacher_info, streamed_bytes));
}

static void encode_teacher(struct buffer *b, struct service *s)
{
	struct teacher *teacher = service_teacher(s);
	struct teacher_stats t;
	teacher_stats(teacher, &t);
	gauge(b, "kd_teacher_state", "0 loading, 1 ready, 2 failed.", teacher_state(teacher));
	counter(b, "kd_forward_passes_total", "Forward passes.", t.n_passes);
	counter(b, "kd_forward_mixed_passes_total", "Forward passes shared by several requests.", t.n_mixed_passes);
	counter(b, "kd_forward_sequences_total", "Sequences in forward passes.", t.n_sequences);
	counter(b, "kd_forward_positions_total", "Positions in forward passes.", t.n_positions);
	counter(b, "kd_rows_total", "Rows computed.", t.n_rows);
	counter(b, "kd_rows_not_finite_total", "Rows where the teacher gave NaN or infinity.", t.n_not_finite);
	counter(b, "kd_sequences_dropped_total", "Sequences dropped before any work: client gone or deadline passed.", t.n_dropped);
	counter(b, "kd_forward_shared_positions_total", "Positions of scores that another of the same pass had in common with them.",
		t.n_shared);
	counter(b, "kd_canary_right_total", "Answers to the known question that were right.", t.n_canaries);
	gauge(b, "kd_canary_age_seconds", "Since the last of them.", (double)t.canary_age_ms * 1e-3);
	counter(b, "kd_generated_tokens_total", "Tokens chosen.", t.n_generated);
	counter(b, "kd_prompt_reused_positions_total", "Positions of prompts that the cache had.", t.n_reused);
	gauge(b, "kd_generating", "Samples waiting or under way.", (double)t.n_generating);
	gauge(b, "kd_cache_slots", "Places in the cache of keys and values.", (double)t.n_slots);
	gauge(b, "kd_cache_slots_used", "Those that hold something.", (double)t.n_slots_used);
	gauge(b, "kd_cache_slots_idle", "Those that hold it for whoever begins alike, and can make room.", (double)t.n_slots_idle);
	counter(b, "kd_device_late_allocations_total", "Times the device was asked for memory after the start, where all is reserved.",
		t.n_late_allocations);
	gauge(b, "kd_device_memory_bytes", "Of the device's own memory, reserved at start; 0 on the CPU.", (double)t.memory_bytes);
	counter(b, "kd_weights_read_bytes_total", "Of weights that memory has no room for, read from disk by passes.", t.streamed_bytes);
	gauge(b, "kd_sequences_waiting", "Sequences waiting for the teacher.", (double)t.n_waiting);
	struct teacher_seconds *seconds = teacher_seconds(teacher);
	histogram(b, "kd_queue_seconds", "From a request's acceptance to the pass that computes a score of it.", &seconds->queue);
	histogram(b, "kd_batch_seconds", "Choosing what a pass holds.", &seconds->batch);
	histogram(b, "kd_forward_seconds", "For the trunk: giving it to the device and waiting for it.", &seconds->forward);
	histogram(b, "kd_epilogue_seconds", "After a pass: the head, all that is read from it, records and tokens made.",
		&seconds->epilogue);
	histogram(b, "kd_encode_seconds", "Making a piece of a reply.", service_encode_seconds(s));
	if (teacher_state(teacher) != TEACHER_READY)
		return;
	uint32_t n;
	const struct teacher_info *infos = teacher_infos(teacher, &n);
	gauge(b, "kd_device_fallback", "1 when device = auto found no usable GPU and the teachers run on the CPU.", *infos->fallback != 0);
	encode_infos(b, infos, n);
}

static void encode_store(struct buffer *b, struct store *store)
{
	struct store_stats t;
	store_stats(store, &t);
	gauge(b, "kd_store_records", "Records on disk.", (double)t.n_records);
	gauge(b, "kd_store_shards", "Shards on disk.", (double)t.n_shards);
	gauge(b, "kd_store_bytes", "Bytes on disk.", (double)t.n_bytes);
	counter(b, "kd_store_appended_total", "Records appended.", t.n_appended);
	counter(b, "kd_store_appended_bytes_total", "Bytes appended.", t.appended_bytes);
	counter(b, "kd_store_duplicates_total", "Records not appended because their key was there.", t.n_duplicates);
	counter(b, "kd_store_hits_total", "Questions found.", t.n_hits);
	counter(b, "kd_store_contained_total", "Of the questions found: cut out of an answer that contains them.", t.n_contained);
	counter(b, "kd_store_misses_total", "Questions not found.", t.n_misses);
	counter(b, "kd_store_failed_appends_total", "Records the disk refused.", t.n_failed_appends);
	counter(b, "kd_store_corrupt_total", "Damaged records met.", t.n_corrupt);
	counter(b, "kd_store_removed_shards_total", "Shards removed by store-max-bytes and store-max-age.", t.n_removed_shards);
	counter(b, "kd_store_removed_bytes_total", "Their bytes.", t.removed_bytes);
	counter(b, "kd_store_recovered_bytes_total", "Bytes cut from a torn tail at start.", t.recovered_bytes);
	gauge(b, "kd_store_free_bytes", "Free on the file system of the store.", (double)t.free_bytes);
	histogram(b, "kd_store_append_seconds", "Writing what was queued, each time.", store_append_seconds(store));
	gauge(b, "kd_store_queued_bytes", "Bytes waiting for the disk.", (double)t.queued_bytes);
	gauge(b, "kd_store_uring", "1 when io_uring is in use, 0 after falling back to pwrite.", t.uring);
	gauge(b, "kd_store_direct", "1 when shards are written past the page cache (O_DIRECT).", t.direct);
	counter(b, "kd_uring_cq_overflow_total", "Completions io_uring had to hold back for want of room; none are lost.", t.n_overflows);
	gauge(b, "kd_store_failing", "1 while the disk refuses appends.", t.failing);
}

static void encode_runs(struct buffer *b, struct supervisor *runs)
{
	uint32_t n[SUPERVISOR_STATES];
	supervisor_count(runs, n);
	gauge(b, "kd_runs_running", "Training runs under way.", supervisor_n_running(runs));
	head(b, "kd_runs", "gauge", "Training runs known, by their state.");
	for (unsigned i = 0; i < SUPERVISOR_STATES; i++)
		buffer_printf(b, "kd_runs{state=\"%s\"} %" PRIu32 "\n", supervisor_state_name(i), n[i]);
	counter(b, "kd_run_restarts_total", "Workers started in the place of one that died.", supervisor_n_restarts(runs));
	histogram(b, "kd_training_step_seconds", "Steps of training, as their workers report them.", supervisor_step_seconds(runs));
}

static void encode_health(struct buffer *b, struct service *s)
{
	struct health h;
	health_read(s, &h);
	gauge(b, "kd_ready", "1 when score requests are taken.", h.ready);
	head(b, "kd_degraded", "gauge", "1 when something is not as it should be although questions are answered: see GET /ready.");
	for (int i = 0; i < N_HEALTH_STATES; i++)
		buffer_printf(b, "kd_degraded{state=\"%s\"} %d\n", health_name((enum health_state)i), h.degraded[i]);
}

static void encode_faults(struct buffer *b, const struct faults *faults)
{
	if (!faults)
		return;
	head(b, "kd_gpu_fatal_total", "counter", "GPU faults that ended the server, before this start too where there is a store.");
	for (enum device_fault f = DEVICE_FAULT_NONE + 1; f < N_DEVICE_FAULTS; f++)
		buffer_printf(b, "kd_gpu_fatal_total{class=\"%s\"} %" PRIuFAST64 "\n", device_fault_name(f), atomic_load(&faults->n[f]));
}

static void encode_reloads(struct buffer *b, struct reloads *reloads)
{
	struct reloads_stats t;
	reloads_read(reloads, &t);
	head(b, "kd_reloads_total", "counter", "Times the settings were read again (SIGHUP): taken over, or refused for an error in them.");
	buffer_printf(b, "kd_reloads_total{result=\"good\"} %" PRIu64 "\nkd_reloads_total{result=\"refused\"} %" PRIu64 "\n",
		t.n_good, t.n_bad);
	head(b, "kd_settings_read_seconds", "gauge", "When they were last read without an error, in seconds since 1970.");
	buffer_printf(b, "kd_settings_read_seconds %.3f\n", t.good_seconds);
	gauge(b, "kd_settings_restart_needed", "Settings that were changed and wait for a restart.", t.n_restart);
}

static void encode_certificate(struct buffer *b, struct tls_current *tls)
{
	if (tls && tls_current_is_on(tls))
		gauge(b, "kd_tls_certificate_expiry_seconds",
		      "When the doors' certificate expires, or one sent with it, in seconds since 1970.", (double)tls_current_expiry(tls));
}

static double resident_bytes(void)
{
	unsigned long long pages = 0;
	FILE *f = fopen("/proc/self/statm", "re");
	if (!f)
		return 0;
	if (fscanf(f, "%*u %llu", &pages) != 1)        // NOLINT(cert-err34-c): the kernel writes it
		pages = 0;
	fclose(f);
	return (double)pages * (double)sysconf(_SC_PAGESIZE);
}

void metrics_encode(struct buffer *b, struct service *s)
{
	encode_health(b, s);
	encode_reloads(b, service_reloads(s));
	encode_certificate(b, service_tls(s));
	encode_requests(b, s);
	auth_metrics(service_auth(s), b);
	encode_teacher(b, s);
	encode_faults(b, service_faults(s));
	if (service_store(s))
		encode_store(b, service_store(s));
	if (service_supervisor(s))
		encode_runs(b, service_supervisor(s));
	gauge(b, "kd_start_time_seconds", "When the process began to serve, in seconds since 1970.",
		(double)time(NULL) - service_uptime(s));
	gauge(b, "kd_uptime_seconds", "Since start.", service_uptime(s));
	gauge(b, "kd_resident_bytes", "Resident memory of the process.", resident_bytes());
}
