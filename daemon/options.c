// SPDX-License-Identifier: Apache-2.0
#include "daemon/options.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/error.h"
#include "daemon/server/address.h"
#include "daemon/server/auth.h"
#include "daemon/server/tls.h"
#include "daemon/teacher/choice.h"

const struct config_option options_table[] = {
#define OPTION(field, name, type, min, max, fallback, choices, unit, help) \
	{name, CONFIG_##type, min, max, fallback, choices, unit, help, offsetof(struct options, field)},
#include "daemon/options.def"
#undef OPTION
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
	bool encrypted = strcmp(name, "http") == 0 && options_tls(o, path, key);
	if (!o->allow_remote && !encrypted)
		return error_set(err, ERROR_INVALID, name, "%s = %s can be reached from other machines, and tokens and answers would travel "
				 "unencrypted: %sset allow-remote = yes if that network is trusted, or use a loopback address", name, text,
				 strcmp(name, "http") == 0 ? "set tls-certificate and tls-key, or " : "");
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
				return error_set(err, ERROR_INVALID, "teacher", "two teachers are called \"%.100s\": write teacher = NAME=PATH",
						 ret_sources[i].name);
	}
	return 0;
}

int options_check(const struct options *o, struct error *err)
{
	struct teacher_source teachers[OPTIONS_MAX_TEACHERS];
	int r = options_teachers(o, teachers, err);
	if (r)
		return r;
	if (!o->http && !o->socket.n)
		return error_set(err, ERROR_INVALID, "http", "both doors are closed: set http or socket");
	if (o->runs && !o->socket.n)
		return error_set(err, ERROR_INVALID, "socket", "runs need the binary door: set socket");
	if (!o->tls_certificate != !o->tls_key)
		return error_set(err, ERROR_INVALID, o->tls_key ? "tls-certificate" : "tls-key", "tls-certificate and tls-key go together");
	if (o->http)
		r = options_check_address(o, "http", o->http, err);
	for (size_t i = 0; r == 0 && i < o->socket.n; i++)
		r = options_check_address(o, "socket", o->socket.items[i], err);
	return r;
}

static int check_secrets(const struct options *o, struct error *err)
{
	char path[OPTIONS_PATH_BYTES], key[OPTIONS_PATH_BYTES];
	struct auth *auth = NULL;
	struct tls_files tls = {0};
	int r = options_tokens(o, path) ? auth_open(path, &auth, err) : 0;
	auth_close(auth);
	if (!r && options_tls(o, path, key))
		r = tls_files_open(path, key, &tls, err);
	tls_files_close(&tls);
	return r;
}

int options_check_files(const struct options *o, struct error *err)
{
	struct teacher_source s[OPTIONS_MAX_TEACHERS];
	int r = options_teachers(o, s, err);
	for (size_t i = 0; r == 0 && i < o->teacher.n; i++)
		if (access(s[i].path, R_OK))
			r = error_system(err, errno, "teacher", "teacher = %s", s[i].path);
	return r ? r : check_secrets(o, err);
}

const char *options_device(const struct options *o)
{
	static const char *const devices[] = {"auto", "cpu", "cuda", "ref"};
	return devices[o->device];
}
