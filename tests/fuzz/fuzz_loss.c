// SPDX-License-Identifier: Apache-2.0
// Lines "loss" of a run's configuration: what was taken has finite settings within bounds and can be asked and described; what was not says
// why, with its line.
#include <math.h>
#include <string.h>

#include "common/error.h"
#include "common/query.h"
#include "daemon/loss/objective.h"
#include "daemon/loss/schedule.h"
#include "tests/fuzz/fuzz.h"

static void require(int ok)
{
	if (!ok)
		__builtin_trap();
}

static void objective_use(struct objective *o)
{
	char words[64];
	float temperatures[OBJECTIVE_MAX_TERMS];
	static const uint64_t steps[] = {0, 1, 499, 1000, UINT64_MAX};
	require(objective_begin(o, 1000, 50) == 0);
	for (size_t i = 0; i < sizeof steps / sizeof *steps; i++) {
		struct query q;
		query_init(&q);
		objective_query(o, objective_n_teachers(o) - 1, steps[i], 1, 50, &q);
		require(q.n_temperatures <= QUERY_MAX_TEMPERATURES && q.top_k <= 50);
		objective_step(o, steps[i]);
		uint32_t n = objective_temperatures(o, temperatures);
		for (uint32_t k = 0; k < n; k++)
			require(temperatures[k] >= 0.0499f && temperatures[k] <= 100);
	}
	for (uint32_t i = 0; i < objective_n_terms(o); i++) {
		objective_describe(o, i, words, sizeof words);
		require(strlen(words) > 0);
		objective_bias(o, i, 50);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
	char text[4096], *rest = text, *line;
	struct objective *o;
	struct error err = {0};
	if (n >= sizeof text)
		return 0;
	memcpy(text, data, n);
	text[n] = '\0';
	require(objective_new(&o) == 0);
	while ((line = strsep(&rest, "\n")))
		if (objective_add(o, line, "fuzz.conf:1", &err))
			require(err.code && strncmp(err.message, "fuzz.conf:1: ", 13) == 0);
	if (objective_check(o, &err) == 0 && objective_width(o, UINT64_MAX) < 1 << 20)
		objective_use(o);
	objective_free(o);
	return 0;
}
