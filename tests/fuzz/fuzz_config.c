// SPDX-License-Identifier: Apache-2.0
// Settings files against the daemon's own table: what was read is within each row's limits.
#include <string.h>

#include "common/error.h"
#include "daemon/options.h"
#include "tests/fuzz/fuzz.h"

static void require(int ok)
{
	if (!ok)
		__builtin_trap();
}

static void check_values(const struct options *o)
{
	for (size_t i = 0; i < options_count; i++) {
		const struct config_option *row = &options_table[i];
		const char *field = (const char *)o + row->offset;
		double v = row->min;
		if (row->type == CONFIG_INTEGER)
			v = (double)*(const int64_t *)(const void *)field;
		if (row->type == CONFIG_SIZE || row->type == CONFIG_DURATION)
			v = (double)*(const uint64_t *)(const void *)field;
		require(v >= row->min && v <= row->max);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
	struct options o;
	struct error err = {0};
	require(options_init(&o, &err) == 0);
	if (config_read_text(options_table, options_count, &o, (const char *)data, n, "fuzz.conf", &err))
		require(err.code && strstr(err.message, "fuzz.conf") != NULL);
	check_values(&o);
	options_check(&o, &err);
	options_done(&o);
	return 0;
}
