// SPDX-License-Identifier: Apache-2.0
// Reads golden files (make_golden.py says what lies in them) and runs a model over token sequences to compare with them.
#pragma once

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "common/cursor.h"
#include "daemon/model/forward.h"
#include "daemon/model/head.h"
#include "daemon/model/model.h"

struct golden_file {
	uint8_t *bytes;
	struct reader reader;
};

void golden_open(struct golden_file *g, const char *name, const char magic[4]);    // name under tests/golden; fails the test when absent
void golden_close(struct golden_file *g);                                         // all bytes must have been read
uint32_t *golden_u32s(struct golden_file *g, uint32_t n);                         // the caller frees these
double *golden_f32s(struct golden_file *g, size_t n);
void golden_path(char *to, size_t size, const char *name);

// The real teacher: $KDSERVED_TEACHER, else where the quick start keeps it. False when it is not there.
bool golden_teacher(char *to, size_t size);

struct golden_model {
	struct backend *backend;
	struct model_file *file;
	struct weights *weights;
	struct activations *activations;
	struct head *head;
};

// A model for scoring, or (training) with its parameters filled from the file.
// The device a program of this folder holds to account, given when it is compiled.
#ifndef DEVICE
#define DEVICE "cpu"
#endif
// Whether it is there; says why not.
bool golden_device_found(void);

void golden_model_open(struct golden_model *m, const char *path, const char *device, enum backend_numeric numeric, bool training,
		       uint32_t max_positions);
void golden_model_close(struct golden_model *m);
// Scores every row of n sequences given one after another; rows as in head_score, in batch order (T of them).
void golden_score(struct golden_model *m, const uint32_t *tokens, const uint32_t *lengths, uint32_t n, struct sweep_row *out);

double relative_error(const double *got, const double *want, size_t n);    // norm of the difference over norm
void *golden_array(size_t n, size_t size);                                 // zeroed; never NULL
