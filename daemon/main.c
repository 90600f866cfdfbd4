// SPDX-License-Identifier: Apache-2.0
// kdserved: the order of starting and stopping, signals, systemd. Everything else is behind the doors.
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "common/error.h"
#include "common/heap.h"
#include "common/provenance.h"
#include "common/streams.h"
#include "daemon/arguments.h"
#include "daemon/clock.h"
#include "daemon/idle.h"
#include "daemon/listeners.h"
#include "daemon/log.h"
#include "daemon/log_journal.h"
#include "daemon/notify.h"
#include "daemon/options.h"
#include "daemon/reload.h"
#include "daemon/server/auth.h"
#include "daemon/server/health.h"
#include "daemon/server/http.h"
#include "daemon/server/service.h"
#include "daemon/server/socket.h"
#include "daemon/server/tls.h"
#include "daemon/stop.h"
#include "daemon/store/store.h"
#include "daemon/teacher/canary.h"
#include "daemon/teacher/faults.h"
#include "daemon/teacher/teacher.h"
#include "daemon/train/supervisor.h"

#define REF_STALL_MS 600000          // one layer on the reference device may take minutes; elsewhere far less than the watchdog's time
#define STATUS_MS 10000              // how often it is looked whether the status text still holds
#define LAST_MS 10000                // beyond the drain deadline, for what cannot be interrupted (fsync, workers)

struct daemon {
	struct options options;
	char **argv;                       // for the next reading of the settings
	int signal_fd, event_fd;
	struct listeners listeners;
	struct auth *auth;
	struct tls_current tls;            // of both doors
	struct supervisor *supervisor;
	struct store *store;
	struct teacher *teacher;
	struct service *service;
	struct notify notify;
	struct http *http;
	struct socket_door *socket;
	struct faults faults;
	bool was_ready;
	char status[HEALTH_TEXT_BYTES];    // as systemd was told
};

// ---- starting

static int open_teacher(struct daemon *d, struct error *err)
{
	static const char *const numerics[] = {"auto", "f32", "bf16", "int8", "fp8"};
	const struct options *o = &d->options;
	struct teacher_source sources[OPTIONS_MAX_TEACHERS];
	int r = options_teachers(o, sources, err);
	if (r)
		return r;
	struct teacher_options t = {
		.sources = sources, .n_sources = (uint32_t)o->teacher.n, .device = options_device(o), .numeric = numerics[o->numeric],
		.n_threads = (uint32_t)o->threads,
		.gpu_memory_bytes = o->gpu_memory.bytes, .gpu_memory_share = o->gpu_memory.share,
		.memory_bytes = o->memory.bytes, .memory_share = o->memory.share, .stream_directory = o->stream_directory,
		.max_tokens = (uint32_t)o->max_tokens, .batch_tokens = (uint32_t)o->batch_tokens, .max_top_k = (uint32_t)o->max_top_k,
		.max_gather = (uint32_t)o->max_gather, .max_draws = (uint32_t)o->max_draws,
		.cache_tokens = (uint32_t)o->cache_tokens, .max_generating = (uint32_t)o->max_generating,
		.generate_batch = (uint32_t)o->generate_batch, .canary_directory = o->store,
		.canary_reference = o->canary_reference, .event_fd = d->event_fd,
	};
	int opened = teacher_open(&t, &d->teacher, err);
	if (!opened)
		teacher_set_canary_interval(d->teacher, o->canary_interval);
	return opened;
}

// In the store's thread.
static void on_store_failing(void *arg, const struct error *why)
{
	const struct daemon *d = arg;
	if (why)
		log_warning("%s: answers are not stored until there is space again; questions are answered", why->message);
	else
		log_notice("store %s: answers are stored again", d->options.store);
	const uint64_t one = 1;
	if (write(d->event_fd, &one, sizeof one) < 0)
		return;    // full: the loop, which tells systemd, is awake already
}

static int open_store(struct daemon *d, struct error *err)
{
	const struct options *o = &d->options;
	struct store_options s = {.failing = on_store_failing, .failing_arg = d,
				  .directory = o->store, .shard_bytes = o->store_shard, .queue_bytes = o->store_queue,
				  .max_bytes = o->store_max_bytes, .max_age_s = (o->store_max_age + 999) / 1000};
	struct store_stats stats;
	if (!o->store)
		return 0;
	if (faults_open(&d->faults, o->store, err))
		log_warning("%s", err->message);
	int r = options_compression(o, &s.compression, err);
	r = r ? r : store_open(&s, &d->store, err);
	if (r)
		return r;
	store_stats(d->store, &stats);
	log_notice("store %s: %llu records in %llu shards", o->store, (unsigned long long)stats.n_records,
		(unsigned long long)stats.n_shards);
	if (!stats.uring)
		log_warning("store %s: the kernel refuses io_uring: writing with pwrite", o->store);
	if (stats.recovered_bytes)
		log_warning("store %s: cut %llu bytes of a torn tail", o->store, (unsigned long long)stats.recovered_bytes);
	return 0;
}

static void log_certificate(struct daemon *d)
{
	char date[TLS_DATE_BYTES];
	tls_current_date(&d->tls, date);
	log_about(LOG_NOTICE, "KD_SETTING", "tls-certificate", "tls-certificate: good until %s", date);
}

static int open_auth(struct daemon *d, struct error *err)
{
	char path[OPTIONS_PATH_BYTES], key[OPTIONS_PATH_BYTES];
	struct tls *tls = NULL;
	int r = options_tls(&d->options, path, key) ? tls_open_files(path, key, &tls, err) : 0;
	tls_current_init(&d->tls, tls);
	if (tls)
		log_certificate(d);
	bool closed = options_tokens(&d->options, path);
	if (!r)
		r = auth_open(closed ? path : NULL, &d->auth, err);
	if (!r && closed)
		log_notice("tokens: %zu in %s", auth_n_tokens(d->auth), path);
	return r;
}

static void on_run(void *arg, const char *id, const char *what)
{
	(void)arg;
	log_about(LOG_WARNING, "KD_RUN", id, "run %s: %s", id, what);
}

// Workers that this process starts log in with a secret it made; they send it to this address only. Before other threads start.
static int open_supervisor(struct daemon *d, struct error *err)
{
	const char *secret = auth_worker_secret(d->auth);
	if (secret && (setenv(AUTH_WORKER_ENV, secret, 1) || setenv(AUTH_WORKER_ENV "_FOR", d->listeners.address, 1)))
		return error_set(err, ERROR_MEMORY, NULL, "no memory for the environment");
	const struct options *o = &d->options;
	struct supervisor_options s = {
		.directory = o->runs, .worker_path = o->worker, .server_address = d->listeners.address, .event = on_run};
	reload_supervisor_limits(o, &s.limits);
	if (o->runs && o->worker && access(o->worker, X_OK))         // else each run finds out
		return error_system(err, errno, "worker", "worker = %s", o->worker);
	return o->runs ? supervisor_open(&s, &d->supervisor, err) : 0;
}

static int open_doors(struct daemon *d, struct error *err)
{
	const struct options *o = &d->options;
	struct service_options s;
	struct http_options h = {.listen_fd = d->listeners.http_fd, .inherited = d->listeners.http_inherited, .tls = &d->tls,
		.max_connections = (uint32_t)o->max_connections};
	struct socket_options b = {.listen_fds = d->listeners.socket_fds, .n_listen_fds = d->listeners.n_sockets,
		.inherited = d->listeners.sockets_inherited, .max_connections = (uint32_t)o->max_connections,
		.tls = &d->tls};
	reload_service_options(o, &s);
	s.auth = d->auth;
	s.tls = &d->tls;
	s.stop_signal = &stop_signal;
	s.faults = &d->faults;
	int r = service_open(&s, d->teacher, d->store, d->supervisor, &d->service, err);
	if (!r && h.listen_fd >= 0 && !(r = http_open(&h, d->service, &d->http, err)))
		d->listeners.http_fd = -1;    // taken over
	if (!r && b.n_listen_fds && !(r = socket_open(&b, d->service, &d->socket, err)))
		d->listeners.n_sockets = 0;
	return r;
}

// Blocked before any thread exists, so that only this one sees them.
static int open_signals(struct daemon *d, struct error *err)
{
	sigset_t set;
	signal(SIGPIPE, SIG_IGN);
	signal(SIGXFSZ, SIG_IGN);
	stop_block();
	sigemptyset(&set);
	sigaddset(&set, SIGHUP);
	sigprocmask(SIG_BLOCK, &set, NULL);
	d->signal_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	d->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	return d->signal_fd < 0 || d->event_fd < 0 ? error_system(err, errno, NULL, "signalfd") : 0;
}

static int daemon_open(struct daemon *d, struct error *err)
{
	int r = open_signals(d, err);
	if (!r)
		r = open_auth(d, err);
	if (!r)
		r = listeners_open(&d->options, &d->listeners, err);
	if (!r)
		r = open_supervisor(d, err);
	if (!r)
		r = open_store(d, err);
	if (!r)
		r = open_teacher(d, err);
	return r ? r : open_doors(d, err);
}

// ---- running

static bool is_config_fault(enum error_code code)
{
	return code == ERROR_INVALID || code == ERROR_UNSUPPORTED || code == ERROR_NOT_FOUND || code == ERROR_TOO_LARGE ||
		code == ERROR_CORRUPT || code == ERROR_UNAUTHORIZED;
}

// So that what is kept can be used without this daemon. Serving goes on without.
static void describe_teachers(struct daemon *d, const struct teacher_info *t, uint32_t n)
{
	struct error err = {0};
	for (uint32_t i = 0; d->store && i < n; i++) {
		struct provenance p = teacher_provenance(&t[i]);
		if (store_describe(d->store, &p, &err))
			log_warning("%s", err.message);
	}
}

static void announce_ready(struct daemon *d)
{
	uint32_t n;
	const struct teacher_info *t = teacher_infos(d->teacher, &n);
	d->was_ready = true;
	describe_teachers(d, t, n);
	for (uint32_t i = 0; i < n; i++) {
		log_notice("teacher %s: %s, %.1f million parameters, %s, on %s (%s, %s), loaded in %.1f s, "
			   "of it %.2f s for %.2f GiB of weights (%.2f s per GiB)", t[i].name, t[i].architecture.name,
			   (double)t[i].n_parameters * 1e-6, t[i].dtype, t[i].device, t[i].numeric, t[i].description, t[i].load_seconds,
				t[i].upload_seconds, (double)t[i].upload_bytes * 0x1p-30, teacher_upload_rate(&t[i]));
		if (t[i].architecture.rope_scaling == ROPE_SCALING_LONGROPE)
			log_notice("teacher %s: rotation by LongRoPE: its original context of %u tokens is served (longer sequences "
				   "change their beginning)", t[i].name, t[i].architecture.context_length);
		if (*t[i].room_note)
			log_notice("teacher %s: %s: large passes hide that, small ones wait for it, and so does each generated token",
				   t[i].name, t[i].room_note);
		if (*t[i].canary_note)
			log_warning("the known answer is not kept: %s", t[i].canary_note);
	}
	if (*t->fallback)
		log_notice("device = auto: %s: the teacher runs on the CPU", t->fallback);
	notify_ready();
}

// Why a device that failed for good did, and what is to be done. The next process says how often.
static void note_fault(struct daemon *d, enum device_fault fault)
{
	struct error err = {0};
	if (fault == DEVICE_FAULT_NONE)
		return;
	log_about(LOG_ERR, "KD_FAULT", device_fault_name(fault), "GPU fault (%s): %s", device_fault_name(fault), device_fault_hint(fault));
	if (faults_note(&d->faults, fault, &err))
		log_warning("%s", err.message);
}

static int failed_status(const struct daemon *d, const struct error *err, enum device_fault fault)
{
	if (fault == DEVICE_FAULT_RESET)
		return EXIT_DEVICE_RESET;
	if (d->was_ready || strcmp(err->field, CANARY_FIELD) == 0)
		return EXIT_DEVICE;
	return is_config_fault(err->code) ? EXIT_BAD_CONFIG : EXIT_FAILURE;
}

// The teacher's state changed. -1: go on; else the exit status.
static int on_teacher(struct daemon *d)
{
	struct error err;
	uint64_t n;
	if (read(d->event_fd, &n, sizeof n) < 0)
		return -1;
	switch (teacher_state(d->teacher)) {
	case TEACHER_READY:
		if (!d->was_ready)
			announce_ready(d);
		return -1;
	case TEACHER_FAILED:
		teacher_error(d->teacher, &err);
		log_error("teacher: %s%s%s", err.field, *err.field ? ": " : "", err.message);
		notify_status("The teacher failed: %s", err.message);
		note_fault(d, device_fault_of(err.field));
		return failed_status(d, &err, device_fault_of(err.field));
	default:
		return -1;
	}
}

static void on_hangup(struct daemon *d)
{
	struct signalfd_siginfo info;
	const struct reload r = {.options = &d->options, .argv = d->argv, .auth = d->auth, .tls = &d->tls, .service = d->service,
		.teacher = d->teacher, .store = d->store, .supervisor = d->supervisor};
	if (read(d->signal_fd, &info, sizeof info) != sizeof info)
		return;
	if (d->was_ready)
		notify_reloading();
	reload(&r);
	if (d->was_ready)
		notify_ready();
}

// The status text follows what /ready says. A store whose file system fills up tells nobody: so it is looked at now and then.
static void tell_status(struct daemon *d)
{
	char text[HEALTH_TEXT_BYTES];
	health_text(d->service, text);
	if (strcmp(text, d->status) == 0)
		return;
	memcpy(d->status, text, sizeof text);
	notify_status("%s", text);
}

static int shorter(int a_ms, int b_ms)      // -1 = never
{
	return a_ms >= 0 && (b_ms < 0 || a_ms < b_ms) ? a_ms : b_ms;
}

static int daemon_loop(struct daemon *d)
{
	int status = -1;
	struct pollfd fds[] = {
		{.fd = d->signal_fd, .events = POLLIN}, {.fd = d->event_fd, .events = POLLIN},
		{.fd = d->supervisor ? supervisor_fd(d->supervisor) : -1, .events = POLLIN},
	};
	while (status < 0) {
		bool loading = teacher_state(d->teacher) == TEACHER_LOADING;
		tell_status(d);
		tls_current_watch(&d->tls);
		int look = shorter(notify_timeout(&d->notify, loading), STATUS_MS);
		look = shorter(look, auth_audit(d->auth, d->options.audit_interval));
		int n = poll(fds, sizeof fds / sizeof *fds, shorter(look, teacher_check(d->teacher)));
		if (loading)
			notify_loading(&d->notify);
		else
			notify_engine(&d->notify, teacher_beats(d->teacher));
		if (n > 0 && fds[2].revents)
			supervisor_dispatch(d->supervisor);
		if (n > 0 && fds[1].revents)
			status = on_teacher(d);
		if (n > 0 && fds[0].revents && status < 0)
			on_hangup(d);
		if (stop_signal && status < 0) {
			log_notice("%s: draining", stop_signal == SIGTERM ? "SIGTERM" : "SIGINT");
			status = EXIT_SUCCESS;
		}
	}
	return status;
}

// ---- stopping

static void close_fd(int fd)
{
	if (fd >= 0)
		close(fd);
}

// Listeners and what they accepted, engine, store, workers: each has nothing left to give to the next. Works on a half-open daemon.
static void daemon_close(struct daemon *d)
{
	uint64_t deadline = clock_ms() + d->options.drain_timeout;
	if (d->service)
		service_drain(d->service);     // asked for by a signal it has begun already
	notify_stopping(d->options.drain_timeout);
	stop_arm((unsigned)((d->options.drain_timeout + LAST_MS) / 1000));      // behind the deadline
	if (d->listeners.http_inherited)
		http_stop(d->http, deadline);      // who connects waits for the next process; else /ready says 503 meanwhile
	socket_close(d->socket, deadline);
	http_close(d->http, deadline);
	teacher_close(d->teacher);
	service_close(d->service);
	log_leave();                   // the last lines of the audit trail are among those that must not be lost
	auth_close(d->auth);
	tls_current_done(&d->tls);
	store_close(d->store);
	faults_close(&d->faults);
	uint64_t now = clock_ms();
	supervisor_close(d->supervisor, deadline > now + 1000 ? deadline - now : 1000);
	listeners_close(&d->listeners);
	close_fd(d->signal_fd);
	close_fd(d->event_fd);
}

static void warn(void)
{
	struct config_errors all = {0};
	arguments_warn(&all);
	reload_log_errors("", LOG_WARNING, &all);
	config_errors_done(&all);
}

static int daemon_run(struct daemon *d)
{
	struct error err = {0};
	int status;
	log_open(reload_log_priority(&d->options));
	log_set_journal(log_journal);
	warn();
	notify_init(&d->notify, strcmp(options_device(&d->options), "ref") == 0 ? REF_STALL_MS : 0);
	d->signal_fd = d->event_fd = d->listeners.http_fd = -1;
	int r = daemon_open(d, &err);
	stop_watch(d->event_fd);
	if (r) {
		log_leave();
		log_error("%s", err.message);
		status = is_config_fault(err.code) ? EXIT_BAD_CONFIG : EXIT_FAILURE;
	} else {
		status = daemon_loop(d);
	}
	daemon_close(d);
	log_notice("stopped");
	return status;
}

static int complain(const struct config_errors *all, const char *kind)
{
	for (size_t i = 0; i < all->n; i++)
		fprintf(stderr, "kdserved: %s%s\n", kind, all->items[i].message);
	if (all->n_more)
		fprintf(stderr, "kdserved: %sand %zu more\n", kind, all->n_more);
	return config_errors_any(all) ? EXIT_BAD_CONFIG : EXIT_SUCCESS;
}

// Goes on where the start would end: who mends a file wants to know all that is wrong with it.
static int check_config(const struct options *o, struct config_errors *all)
{
	struct config_errors warnings = {0};
	options_check_all(o, all);
	options_check_files(o, all);
	arguments_warn(&warnings);
	options_warn(o, &warnings);
	complain(&warnings, "warning: ");
	config_errors_done(&warnings);
	int status = complain(all, "");
	if (!status)
		puts("kdserved: the settings are good");
	return status;
}

static int run_mode(struct daemon *d, int status, enum arguments_mode mode, struct config_errors *all)
{
	if (status != EXIT_USAGE && mode == MODE_CHECK)
		return check_config(&d->options, all);
	if (!status && arguments_print(mode))
		return EXIT_SUCCESS;
	if (!status)
		options_check_all(&d->options, all);
	complain(all, "");
	if (!status && config_errors_any(all))
		status = EXIT_BAD_CONFIG;
	return status ? status : daemon_run(d);
}

int main(int argc, char **argv)
{
	static struct daemon d;      // some 10 KiB of settings: not on the stack
	struct error err = {0};
	struct config_errors all = {0};
	enum arguments_mode mode = MODE_RUN;
	(void)argc;
	d.argv = argv;
	if (streams_init()) {
		perror("kdserved: /dev/null");
		return EXIT_FAILURE;
	}
	idle_init(argv);
	heap_init();
	if (options_init_unit(&d.options, &err)) {
		fprintf(stderr, "kdserved: %s\n", err.message);
		return EXIT_FAILURE;
	}
	int status = arguments_read(&d.options, argv, &mode, &all);
	status = run_mode(&d, status, mode, &all);
	config_errors_done(&all);
	options_done(&d.options);
	return status;
}
