// SPDX-License-Identifier: Apache-2.0
#include "daemon/options.h"

#include "common/error.h"
#include "daemon/server/address.h"

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

void options_done(struct options *o)
{
	config_done(options_table, options_count, o);
}

static int check_address(const char *name, const char *text, bool allow_remote, struct error *err)
{
	struct address a;
	int r = address_parse(text, name, &a, err);
	if (r)
		return r;
	if (!allow_remote && address_is_remote(&a))
		return error_set(err, ERROR_INVALID, name,
				 "%s = %s can be reached from other machines, and there is no authentication yet: "
				 "use a loopback address or set allow-remote = yes",
				 name, text);
	return 0;
}

int options_check(const struct options *o, struct error *err)
{
	int r = 0;
	if (!o->teacher)
		return error_set(err, ERROR_INVALID, "teacher", "no teacher is named: set teacher = PATH or give --teacher PATH");
	if (!o->http && !o->socket.n)
		return error_set(err, ERROR_INVALID, "http", "both doors are closed: set http or socket");
	if (o->runs && !o->socket.n)
		return error_set(err, ERROR_INVALID, "socket", "runs need the binary door: set socket");
	if (o->http)
		r = check_address("http", o->http, o->allow_remote, err);
	for (size_t i = 0; r == 0 && i < o->socket.n; i++)
		r = check_address("socket", o->socket.items[i], o->allow_remote, err);
	return r;
}

const char *options_device(const struct options *o)
{
	static const char *const devices[] = {"auto", "cpu", "cuda", "ref"};
	return devices[o->device];
}
