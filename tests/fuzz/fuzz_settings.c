// SPDX-License-Identifier: Apache-2.0
// A run's configuration, as the supervisor gets it from clients: what was read is within each row's limits, and a refusal says which line.
#include <string.h>

#include "common/error.h"
#include "daemon/train/settings.h"
#include "tests/fuzz/fuzz.h"

static void require(int ok)
{
	if (!ok)
		__builtin_trap();
}

static void check_values(const struct run_settings *s)
{
	size_t n;
	const struct config_option *table = settings_table(&n);
	for (size_t i = 0; i < n; i++) {
		const struct config_option *row = &table[i];
		const char *field = (const char *)s + row->offset;
		double v = row->min;
		if (row->type == CONFIG_INTEGER)
			v = (double)*(const int64_t *)(const void *)field;
		if (row->type == CONFIG_SIZE || row->type == CONFIG_DURATION)
			v = (double)*(const uint64_t *)(const void *)field;
		if (row->type == CONFIG_REAL)
			v = *(const double *)(const void *)field;
		require(v >= row->min && v <= row->max);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
	struct run_settings s;
	struct error err = {0};
	size_t n_rows;
	const struct config_option *table = settings_table(&n_rows);
	require(settings_init(&s, &err) == 0);
	if (config_read_text(table, n_rows, &s, (const char *)data, n, "run.conf", &err))
		require(err.code && strstr(err.message, "run.conf") != NULL);
	check_values(&s);
	err = (struct error){0};
	if (settings_check(&s, &err))
		require(err.code && err.message[0]);
	(void)settings_shards(&s);
	(void)settings_labels(&s);
	settings_done(&s);
	return 0;
}
