// SPDX-License-Identifier: Apache-2.0
#include "daemon/options.h"

#include <errno.h>
#include <inttypes.h>
#include <libgen.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/error.h"
#include "common/transport.h"
#include "daemon/server/address.h"
#include "daemon/server/auth.h"
#include "daemon/server/tls.h"
#include "daemon/store/packed.h"
#include "daemon/teacher/choice.h"

const struct config_option options_table[] = {
#define ROW(field, name, type, min, max, fallback, choices, unit, help, reloadable) \
	{name, CONFIG_##type, min, max, fallback, choices, unit, help, offsetof(struct options, field), \
	 offsetof(struct options, where.field), reloadable},
#define OPTION(...) ROW(__VA_ARGS__, false)
#define RELOADABLE(...) ROW(__VA_ARGS__, true)
#include "daemon/options.def"
#undef OPTION
#undef ROW
};
const size_t options_count = sizeof options_table / sizeof *options_table;

int options_init(struct options *o, struct error *err)
{
	return config_init(options_table, options_count, o, err);
}

// The directories systemd made for a unit (StateDirectory=, RuntimeDirectory=): the first of each.
static int default_below(struct options *o, const char *variable, const char *name, const char *kind, const char *file, struct error *err)
{
	char path[OPTIONS_PATH_BYTES];
	const char *directory = getenv(variable);
	if (!directory || !*directory)
		return 0;
	int n = snprintf(path, sizeof path, "%s%.*s/%s", kind, (int)strcspn(directory, ":"), directory, file);
	if (n < 0 || (size_t)n >= sizeof path)
		return error_set(err, ERROR_TOO_LARGE, name, "$%s is too long", variable);
	int r = config_set(options_table, options_count, o, name, "", "default", err);    // the items of a list would add up
	return r ? r : config_set(options_table, options_count, o, name, path, "default", err);
}

int options_init_unit(struct options *o, struct error *err)
{
	int r = options_init(o, err);
	r = r ? r : default_below(o, "STATE_DIRECTORY", "store", "", "store", err);
	r = r ? r : default_below(o, "STATE_DIRECTORY", "runs", "", "runs", err);
	r = r ? r : default_below(o, "STATE_DIRECTORY", "stream-directory", "", "", err);
	return r ? r : default_below(o, "RUNTIME_DIRECTORY", "socket", "unix:", "kdserved.sock", err);
}

void options_done(struct options *o)
{
	config_done(options_table, options_count, o);
}

// A file that a setting names, or else one of systemd's credentials, if it is there.
static bool find_file(const char *setting, const char *credential, char ret_path[OPTIONS_PATH_BYTES])
{
	const char *credentials = getenv("CREDENTIALS_DIRECTORY");
	int n = 0;
	if (setting)
		n = snprintf(ret_path, OPTIONS_PATH_BYTES, "%s", setting);
	else if (credentials)
		n = snprintf(ret_path, OPTIONS_PATH_BYTES, "%s/%s", credentials, credential);
	return n > 0 && n < OPTIONS_PATH_BYTES && (setting || access(ret_path, F_OK) == 0);
}

bool options_tokens(const struct options *o, char ret_path[OPTIONS_PATH_BYTES])
{
	return find_file(o->tokens, "api-tokens", ret_path);
}

bool options_tls(const struct options *o, char ret_certificate[OPTIONS_PATH_BYTES], char ret_key[OPTIONS_PATH_BYTES])
{
	return find_file(o->tls_certificate, "tls-certificate", ret_certificate) && find_file(o->tls_key, "tls-key", ret_key);
}

int options_check_address(const struct options *o, const char *name, const char *text, struct error *err)
{
	char path[OPTIONS_PATH_BYTES], key[OPTIONS_PATH_BYTES];
	struct address a;
	int r = address_parse(text, name, &a, err);
	if (r || !address_is_remote(&a))
		return r;
	if (!options_tokens(o, path))
		return error_set(err, ERROR_INVALID, name, "%s = %s can be reached from other machines, where anybody could ask: "
				 "set tokens = FILE (kdctl token new makes its lines), or use a loopback address", name, text);
	if (!o->allow_remote && !options_tls(o, path, key))
		return error_set(err, ERROR_INVALID, name,
				 "%s = %s can be reached from other machines, and tokens and answers would travel unencrypted: "
				 "set tls-certificate and tls-key, or set allow-remote = yes if that network is trusted, "
				 "or use a loopback address", name, text);
	return 0;
}

// "NAME=PATH" where what stands before "=" can be a name: a path with "=" in it can be given as ./path.
static int read_teacher(const char *text, struct teacher_source *ret, struct error *err)
{
	const char *equals = strchr(text, '=');
	struct teacher_source s = {.path = text};
	if (equals && equals - text < TEACHER_NAME_BYTES) {
		snprintf(s.name, sizeof s.name, "%.*s", (int)(equals - text), text);
		if (choice_name_is_valid(s.name))
			s.path = equals + 1;
	}
	if (s.path == text) {
		size_t end = strlen(text), begin;
		while (end > 1 && text[end - 1] == '/')
			end--;
		for (begin = end; begin && text[begin - 1] != '/';)
			begin--;
		begin = begin < end ? begin : 0;    // "/" alone
		snprintf(s.name, sizeof s.name, "%.*s", (int)(end - begin), text + begin);
	}
	*ret = s;
	return *s.path ? 0 : error_set(err, ERROR_INVALID, "teacher", "teacher = %.200s names no path", text);
}

int options_teachers(const struct options *o, struct teacher_source ret_sources[OPTIONS_MAX_TEACHERS], struct error *err)
{
	if (!o->teacher.n)
		return error_set(err, ERROR_INVALID, "teacher", "no teacher is named: set teacher = PATH or give --teacher PATH");
	if (o->teacher.n > OPTIONS_MAX_TEACHERS)
		return error_set(err, ERROR_TOO_LARGE, "teacher", "%zu teachers, the limit is %d", o->teacher.n, OPTIONS_MAX_TEACHERS);
	for (size_t i = 0; i < o->teacher.n; i++) {
		int r = read_teacher(o->teacher.items[i], &ret_sources[i], err);
		if (r)
			return r;
		for (size_t j = 0; j < i; j++)
			if (strcmp(ret_sources[j].name, ret_sources[i].name) == 0)
				return error_set(err, ERROR_INVALID, "teacher",
						 "two teachers are called \"%.100s\": write teacher = NAME=PATH", ret_sources[i].name);
	}
	return 0;
}

int options_compression(const struct options *o, int *ret_level, struct error *err)
{
	struct error why = {0};
	int r = packed_level(o->store_compression ? o->store_compression : "none", ret_level, &why);
	return r ? error_set(err, why.code, "store-compression", "store-compression = %s", why.message) : 0;
}

// ---- all that is wrong

struct checking { const struct options *o; struct config_errors *all; };

// "kdserved.conf:12: ", or nothing for a default.
struct place { char text[128]; };
static struct place place_of(const char *where)
{
	struct place p = {""};
	if (where && strcmp(where, "default") != 0)
		snprintf(p.text, sizeof p.text, "%.120s: ", where);
	return p;
}

// " (kdserved.conf:9)": of the other row that has to do with it.
static struct place other_place(const char *where)
{
	struct place p = {" (the default)"};
	if (where && strcmp(where, "default") != 0)
		snprintf(p.text, sizeof p.text, " (%.120s)", where);
	return p;
}

// An error that a function found, with who set the row before it.
static void add_at(const struct checking *c, const char *where, const struct error *e)
{
	struct error whole = *e;
	if (*place_of(where).text)
		snprintf(whole.message, sizeof whole.message, "%s%.190s", place_of(where).text, e->message);
	config_errors_add(c->all, &whole);
}

static void add(const struct checking *c, const char *where, const char *field, const char *format, ...)
	__attribute__((format(printf, 4, 5)));

static void add(const struct checking *c, const char *where, const char *field, const char *format, ...)
{
	char text[sizeof((struct error *)0)->message];
	struct error e = {0};
	va_list arguments;
	va_start(arguments, format);
	vsnprintf(text, sizeof text, format, arguments);
	va_end(arguments);
	error_set(&e, ERROR_INVALID, field, "%s", text);
	add_at(c, where, &e);
}

static void check_doors(const struct checking *c)
{
	const struct options *o = c->o;
	struct error err = {0};
	if (!o->http && !o->socket.n)
		add(c, o->where.http, "http", "both doors are closed: set http%s or socket%s", other_place(o->where.http).text,
		    other_place(o->where.socket).text);
	if (o->runs && !o->socket.n)
		add(c, o->where.runs, "socket", "runs need the binary door: set socket%s", other_place(o->where.socket).text);
	if (o->tls_certificate && !o->tls_key)
		add(c, o->where.tls_certificate, "tls-key", "tls-certificate and tls-key go together: tls-key is not set");
	if (o->tls_key && !o->tls_certificate)
		add(c, o->where.tls_key, "tls-certificate", "tls-certificate and tls-key go together: tls-certificate is not set");
	if (o->http && options_check_address(o, "http", o->http, &err))
		add_at(c, o->where.http, &err);
	for (size_t i = 0; i < o->socket.n; i++)
		if (options_check_address(o, "socket", o->socket.items[i], &err))
			add_at(c, o->socket.where[i], &err);
}

// Only where both were set: the defaults of limits are generous, and who lowers one need not know the others.
static void check_limits(const struct checking *c)
{
	const struct options *o = c->o;
	if (o->where.max_tokens && o->where.queue_tokens && o->max_tokens > o->queue_tokens)
		add(c, o->where.max_tokens, "max-tokens", "max-tokens = %" PRId64 " is more than queue-tokens = %" PRId64
		    "%s: no such sequence would be let in", o->max_tokens, o->queue_tokens, other_place(o->where.queue_tokens).text);
	if (o->where.credits && o->where.queue_requests && o->credits > o->queue_requests)
		add(c, o->where.credits, "credits", "credits = %" PRId64 " is more than queue-requests = %" PRId64
		    "%s: a connection would be promised what is refused", o->credits, o->queue_requests,
		    other_place(o->where.queue_requests).text);
}

static void check_memory(const struct checking *c)
{
	const struct options *o = c->o;
	const char *device = options_device(o);
	if (!o->memory.bytes && o->memory.share == 0)
		return;
	if (strcmp(device, "cuda") == 0 || strcmp(device, "ref") == 0)
		add(c, o->where.memory, "memory", "memory is for a teacher on the CPU: it cannot be kept with device = %s%s%s", device,
		    other_place(o->where.device).text, strcmp(device, "cuda") == 0 ? "; gpu-memory can" : "");
	if (o->canary_reference)
		add(c, o->where.memory, "memory", "memory cannot be kept with canary-reference = yes%s, which holds all weights in memory",
		    other_place(o->where.canary_reference).text);
	if (!o->stream_directory)
		add(c, o->where.memory, "stream-directory", "memory needs a stream-directory%s",
			other_place(o->where.stream_directory).text);
}

void options_check_all(const struct options *o, struct config_errors *all)
{
	struct teacher_source teachers[OPTIONS_MAX_TEACHERS];
	const struct checking c = {o, all};
	struct error err = {0};
	int level;
	if (options_teachers(o, teachers, &err))
		add_at(&c, o->where.teacher, &err);
	check_doors(&c);
	check_limits(&c);
	check_memory(&c);
	if (options_compression(o, &level, &err))
		add_at(&c, o->where.store_compression, &err);
}

int options_check(const struct options *o, struct error *err)
{
	struct config_errors all = {0};
	options_check_all(o, &all);
	int r = all.n ? error_errno(all.items[0].code) : all.n_more ? -ENOMEM : 0;
	if (all.n && err)
		*err = all.items[0];
	else if (r)
		error_set(err, ERROR_MEMORY, NULL, "no memory to check the settings");
	config_errors_done(&all);
	return r;
}

void options_warn(const struct options *o, struct config_errors *all)
{
	const struct checking c = {o, all};
	if (o->store_max_bytes && o->store_max_bytes < o->store_shard)
		add(&c, o->where.store_max_bytes, "store-max-bytes",
		    "store-max-bytes is less than one shard, store-shard%s: the store will pass it",
		    other_place(o->where.store_shard).text);
	if (!o->store && (o->store_max_bytes || o->store_max_age))
		add(&c, o->store_max_bytes ? o->where.store_max_bytes : o->where.store_max_age, "store",
		    "it says what a store lets go of, and there is none: set store%s", other_place(o->where.store).text);
}

// ---- what they name

// A directory that can be written to, or (made) can be made.
static void check_directory(const struct checking *c, const char *where, const char *name, const char *path, bool made)
{
	char parent[OPTIONS_PATH_BYTES];
	struct error err = {0};
	struct stat st;
	if (!path)
		return;
	bool there = stat(path, &st) == 0;
	if (!there && errno == ENOENT && made) {
		snprintf(parent, sizeof parent, "%s", path);
		path = dirname(parent);
		there = stat(path, &st) == 0;
	}
	if (there && !S_ISDIR(st.st_mode))
		add(c, where, name, "%s = %s: not a directory", name, path);
	else if ((!there || access(path, W_OK | X_OK)) && error_system(&err, errno, name, "%s = %s", name, path))
		add_at(c, where, &err);
}

static void check_secrets(const struct checking *c)
{
	const struct options *o = c->o;
	char path[OPTIONS_PATH_BYTES], key[OPTIONS_PATH_BYTES];
	struct auth *auth = NULL;
	struct tls *tls = NULL;
	struct error err = {0};
	if (options_tokens(o, path) && auth_open(path, &auth, &err))
		add_at(c, o->where.tokens, &err);
	else
		auth_close(auth);
	if (options_tls(o, path, key) && tls_open_files(path, key, &tls, &err))
		add_at(c, strcmp(err.field, "tls-key") == 0 ? o->where.tls_key : o->where.tls_certificate, &err);
	tls_close(tls);
}

static void check_teachers(const struct checking *c)
{
	struct teacher_source s[OPTIONS_MAX_TEACHERS];
	const struct options *o = c->o;
	struct error err = {0};
	size_t n = options_teachers(o, s, NULL) == 0 ? o->teacher.n : 0;
	for (size_t i = 0; i < n; i++)
		if (access(s[i].path, R_OK) && error_system(&err, errno, "teacher", "teacher = %s", s[i].path))
			add_at(c, o->teacher.where[i], &err);
}

void options_check_files(const struct options *o, struct config_errors *all)
{
	const struct checking c = {o, all};
	struct error err = {0};
	check_teachers(&c);
	check_secrets(&c);
	check_directory(&c, o->where.store, "store", o->store, true);
	check_directory(&c, o->where.runs, "runs", o->runs, true);
	if (o->memory.bytes || o->memory.share > 0)
		check_directory(&c, o->where.stream_directory, "stream-directory", o->stream_directory, false);
	if (o->worker && access(o->worker, X_OK) && error_system(&err, errno, "worker", "worker = %s", o->worker))
		add_at(&c, o->where.worker, &err);
}

const char *options_device(const struct options *o)
{
	static const char *const devices[] = {"auto", "cpu", "cuda", "ref"};
	return devices[o->device];
}
