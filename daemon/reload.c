// SPDX-License-Identifier: Apache-2.0
// Its one complication is the order: all that can fail comes first, the tokens last of it, because with them the change begins.
#include "daemon/reload.h"

#include <stdio.h>
#include <string.h>

#include "common/error.h"
#include "common/transport.h"
#include "daemon/arguments.h"
#include "daemon/log.h"
#include "daemon/options.h"
#include "daemon/server/auth.h"
#include "daemon/server/reloads.h"
#include "daemon/server/service.h"
#include "daemon/server/tls.h"
#include "daemon/store/store.h"
#include "daemon/teacher/teacher.h"
#include "daemon/train/supervisor.h"

#define VALUE_BYTES 256

void reload_service_options(const struct options *o, struct service_options *ret)
{
	*ret = (struct service_options){
		.max_sequences = (uint32_t)o->max_sequences, .max_gather = (uint32_t)o->max_gather, .max_draws = (uint32_t)o->max_draws,
		.max_spans = (uint32_t)o->max_spans, .max_samples = (uint32_t)o->max_samples, .cache_tokens = (uint32_t)o->cache_tokens,
		.limits = {(uint64_t)o->queue_requests, (uint64_t)o->queue_tokens, o->queue_bytes},
		.doors = {
			.max_json = o->max_json, .door_bytes = o->door_bytes,
			.max_body = (uint32_t)o->max_body, .credits = (uint32_t)o->credits,
			.header_timeout_ms = o->header_timeout, .body_timeout_ms = o->body_timeout, .idle_timeout_ms = o->idle_timeout,
			.write_timeout_ms = o->write_timeout,
		},
	};
}

void reload_supervisor_limits(const struct options *o, struct supervisor_limits *ret)
{
	*ret = (struct supervisor_limits){.max_running = (uint32_t)o->max_running, .restarts = (uint32_t)o->run_restarts,
		.window_ms = o->run_restart_window, .delay_ms = o->run_restart_delay};
}

int reload_log_priority(const struct options *o)
{
	static const int priorities[] = {LOG_ERR, LOG_WARNING, LOG_NOTICE, LOG_INFO, LOG_DEBUG};
	return priorities[o->log_level];
}

void reload_log_errors(const char *before, int priority, const struct config_errors *all)
{
	for (size_t i = 0; i < all->n; i++)
		log_about(priority, *all->items[i].field ? "KD_SETTING" : NULL, all->items[i].field, "%s%s", before, all->items[i].message);
	if (all->n_more)
		log_about(priority, NULL, NULL, "%sand %zu more", before, all->n_more);
}

// ---- what can fail

static void read_fresh(const struct reload *r, struct options *fresh, struct config_errors *all)
{
	struct error err = {0};
	enum arguments_mode mode = MODE_RUN;
	if (options_init_unit(fresh, &err))
		config_errors_add(all, &err);
	else if (arguments_read(fresh, r->argv, &mode, all) != EXIT_USAGE)
		options_check_all(fresh, all);
}

// A server that began without tokens goes on without: who could reach it was decided by that.
static bool tokens_move(const struct reload *r, const struct options *fresh)
{
	char path[OPTIONS_PATH_BYTES];
	return options_tokens(fresh, path) == auth_is_closed(r->auth);
}

static void read_tokens(const struct reload *r, const struct options *fresh, struct config_errors *all)
{
	char path[OPTIONS_PATH_BYTES];
	struct error err = {0};
	const struct options *o = tokens_move(r, fresh) ? fresh : r->options;      // the same file again where it may not change
	if (options_tokens(o, path) && auth_reload(r->auth, path, &err))
		config_errors_add(all, &err);
}

// Likewise: doors that began encrypted stay so, and plain ones plain, since their listeners were allowed as that.
static bool certificate_moves(const struct reload *r, const struct options *fresh)
{
	char path[OPTIONS_PATH_BYTES], key[OPTIONS_PATH_BYTES];
	return options_tls(fresh, path, key) == tls_current_is_on(r->tls);
}

// Also where it waits for a restart: files that are no good are found here and not by that.
static void read_certificate(const struct options *fresh, struct config_errors *all, struct tls **ret_tls)
{
	char path[OPTIONS_PATH_BYTES], key[OPTIONS_PATH_BYTES];
	struct error err = {0};
	if (options_tls(fresh, path, key) && tls_open_files(path, key, ret_tls, &err))
		config_errors_add(all, &err);
}

// ---- what changes

// tokens and certificate: whether they may
struct changes { bool tokens, certificate; char restart[RELOADS_NAMES_BYTES]; uint32_t n, n_restart; };

static bool may_move(const struct changes *c, const struct config_option *row)
{
	if (strcmp(row->name, "tokens") == 0)
		return c->tokens;
	if (strcmp(row->name, "tls-certificate") == 0 || strcmp(row->name, "tls-key") == 0)
		return c->certificate;
	return row->reloadable;
}

static void add_name(struct changes *c, const char *name)
{
	size_t n = strlen(c->restart);
	snprintf(c->restart + n, sizeof c->restart - n, "%s%s", n ? " " : "", name);
	c->n_restart++;
}

// Old values end up in *fresh.
static void move_rows(const struct reload *r, struct options *fresh, struct changes *c)
{
	for (size_t i = 0; i < options_count; i++) {
		const struct config_option *row = &options_table[i];
		char old[VALUE_BYTES], new[VALUE_BYTES];
		if (config_is_same(row, r->options, fresh))
			continue;
		if (!may_move(c, row)) {
			add_name(c, row->name);
			continue;
		}
		config_format(row, r->options, old, sizeof old);
		config_format(row, fresh, new, sizeof new);
		log_about(LOG_NOTICE, "KD_SETTING", row->name, "SIGHUP: %s: %s -> %s", row->name,
			*old ? old : "(unset)", *new ? new : "(unset)");
		config_swap(row, r->options, fresh);
		c->n++;
	}
}

static void apply(const struct reload *r)
{
	const struct options *o = r->options;
	struct service_options s;
	struct supervisor_limits runs;
	const struct store_limits kept = {o->store_queue, o->store_max_bytes, (o->store_max_age + 999) / 1000};
	reload_service_options(o, &s);
	reload_supervisor_limits(o, &runs);
	service_change(r->service, &s);
	teacher_set_canary_interval(r->teacher, o->canary_interval);
	if (r->store)
		store_change(r->store, &kept);
	if (r->supervisor)
		supervisor_change(r->supervisor, &runs);
	log_set_level(reload_log_priority(o));
}

// From here on new connections are shown it.
static void show(const struct reload *r, struct tls *tls, struct changes *c)
{
	char date[TLS_DATE_BYTES];
	if (!tls_current_change(r->tls, tls))
		return;
	tls_current_date(r->tls, date);
	log_about(LOG_NOTICE, "KD_SETTING", "tls-certificate", "SIGHUP: tls-certificate: another one, good until %s", date);
	c->n++;
}

static void take_over(const struct reload *r, struct options *fresh, struct tls *tls)
{
	struct changes c = {.tokens = tokens_move(r, fresh), .certificate = certificate_moves(r, fresh)};
	char tokens[48] = "";
	move_rows(r, fresh, &c);
	if (!c.certificate && !strstr(c.restart, "tls-"))      // a credential came or went
		add_name(&c, "tls-certificate");
	if (tls && c.certificate)
		show(r, tls, &c);
	else
		tls_close(tls);
	apply(r);
	if (auth_is_closed(r->auth))
		snprintf(tokens, sizeof tokens, ", %zu tokens", auth_n_tokens(r->auth));
	log_notice("SIGHUP: settings read again: %u changed%s", c.n, tokens);
	if (c.n_restart)
		log_warning("SIGHUP: a restart is needed for: %s", c.restart);
	reloads_good(service_reloads(r->service), c.restart, c.n_restart);
}

bool reload(const struct reload *r)
{
	struct options fresh = {0};
	struct config_errors all = {0};
	struct tls *tls = NULL;
	read_fresh(r, &fresh, &all);
	if (!config_errors_any(&all))
		read_certificate(&fresh, &all, &tls);
	if (!config_errors_any(&all))
		read_tokens(r, &fresh, &all);
	bool good = !config_errors_any(&all);
	if (good) {
		take_over(r, &fresh, tls);
	} else {
		tls_close(tls);
		log_error("SIGHUP: the settings are refused, nothing was changed:");
		reload_log_errors("SIGHUP: ", LOG_ERR, &all);
		reloads_bad(service_reloads(r->service), all.n ? all.items[0].message : "no memory");
	}
	config_errors_done(&all);
	options_done(&fresh);
	return good;
}
