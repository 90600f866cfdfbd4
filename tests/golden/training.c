// SPDX-License-Identifier: Apache-2.0
#include "tests/golden/training.h"

#include <stdio.h>

#include "common/error.h"
#include "common/record.h"

struct objective *golden_objective(struct golden_file *g, const char *name, char *ret_first, size_t room)
{
	struct objective *o = NULL;
	struct error err = {0};
	assert_int_equal(objective_new(&o), 0);
	uint32_t n_lines = reader_u32(&g->reader);
	for (uint32_t i = 0; i < n_lines; i++) {
		char line[128] = {0};
		uint32_t n = reader_u32(&g->reader);
		assert_in_range(n, 1, sizeof line - 1);
		reader_copy(&g->reader, line, n);
		if (objective_add(o, line, name, &err))
			fail_msg("%s", err.message);
		if (i == 0)
			snprintf(ret_first, room, "%s", line);
	}
	return o;
}

double golden_train(struct student *student, struct optimizer *optimizer, struct record_rows **answers, uint32_t n, uint64_t step,
		    uint32_t n_positions, struct student_sums *ret_sums)
{
	struct error err = {0};
	double norm;
	*ret_sums = (struct student_sums){0};
	if (student_train(student, (const struct record_rows *const *)answers, n, ret_sums, &err) ||
	    optimizer_step(optimizer, step + 1, ret_sums->n_positions, &norm, &err))
		fail_msg("%s", err.message);
	assert_int_equal(ret_sums->n_positions, n_positions);
	for (uint32_t i = 0; i < n; i++)
		record_rows_free(answers[i]);
	return ret_sums->objective.total / (double)ret_sums->n_positions;
}
