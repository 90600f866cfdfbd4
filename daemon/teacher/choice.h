// SPDX-License-Identifier: Apache-2.0
// Who is asked: one of the resident teachers, or several whose rows become one before anything is read from them.
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "common/sequence.h"
#include "daemon/model/head.h"
#include "daemon/teacher/teacher.h"

struct error;

#define CHOICE_MAX_MEMBERS 8
#define CHOICE_MAX_WEIGHT 1e4          // of either sign: beyond, sums of logits leave what f32 can hold

// As a request says it, by name. n_members 0: the first teacher.
struct choice_query {
	bool is_mixture;
	enum head_rule rule;           // of a mixture
	uint32_t n_members;            // 1 unless is_mixture
	struct choice_member { char name[TEACHER_NAME_BYTES]; double weight; } members[CHOICE_MAX_MEMBERS];
};

// As the engine takes it.
struct choice {
	bool is_mixture;
	enum head_rule rule;
	uint32_t n_members;
	uint32_t members[CHOICE_MAX_MEMBERS];      // numbers of teachers
	double weights[CHOICE_MAX_MEMBERS];        // of a mean they sum to 1
	struct content_id fingerprint;             // the teacher's own; of a mixture a hash of rule, members and weights
};

// The names' teachers (a fingerprint in hexadecimal is a name too). ERROR_NOT_FOUND for a name nobody has; ERROR_INVALID for weights that
// make no mixture. Fields are "teacher", "mixture.members[1].weight".
int choice_resolve(const struct choice_query *q, const struct teacher_info *teachers, uint32_t n_teachers, struct choice *ret,
		   struct error *err);
// The number of the teacher with this name, or fingerprint.
int choice_find(const char *name, const char *field, const struct teacher_info *teachers, uint32_t n_teachers, uint32_t *ret,
		struct error *err);
bool choice_equal(const struct choice *a, const struct choice *b);

// A name for requests: 1 to 127 letters, digits, '.', '_' and '-'.
bool choice_name_is_valid(const char *name);
