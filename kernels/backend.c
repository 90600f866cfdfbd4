// SPDX-License-Identifier: Apache-2.0
// Opens a backend by name and keeps its first failure: an operation returns nothing, so the failure waits here until backend_sync()
// reports it, and stays for good (a poisoned device must never answer again).
#include "kernels/backend.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/error.h"
#include "kernels/backend_list.h"

// In the order in which "auto" tries them; "auto" never falls back on ref, which is a thousand times too slow for a service.
static const struct backend_ops *const backends[] = {
#ifdef HAVE_CUDA
	&backend_cuda_ops,
#endif
	&backend_cpu_ops,
	&backend_ref_ops,
};
#define N_BACKENDS (sizeof backends / sizeof *backends)

bool backend_has_gpu(void)
{
	return backends[0] != &backend_cpu_ops;
}

struct opened {
	struct backend backend;          // first: callers hold a pointer to it
	bool failed;
	char failure[256];
	char fallback[sizeof((struct error *)NULL)->message];
};

static int open_one(const struct backend_ops *ops, const struct backend_options *options, struct backend **ret_backend, struct error *err)
{
	struct opened *o = calloc(1, sizeof *o);
	if (!o)
		return error_set(err, ERROR_MEMORY, NULL, "no memory for backend %s", ops->name);
	o->backend.ops = ops;
	o->backend.room = UINT64_MAX;
	int r = ops->open(&o->backend, options, err);
	if (r < 0) {
		free(o);
		return r;
	}
	*ret_backend = &o->backend;
	return 0;
}

static void set_fallback(struct backend *be, const char *why)
{
	struct opened *o = (struct opened *)be;
	snprintf(o->fallback, sizeof o->fallback, "%s", why);
	be->fallback = o->fallback;
}

static int open_best(const struct backend_options *options, struct backend **ret_backend, struct error *err)
{
	struct error passed = {0};
	int r = error_set(&passed, ERROR_UNSUPPORTED, "device", "this build has no CUDA backend");
	for (size_t i = 0; i < N_BACKENDS; i++) {
		if (backends[i] == &backend_ref_ops)
			continue;
		struct error why = {0};
		r = open_one(backends[i], options, ret_backend, &why);
		if (r == 0 && backends[i] == &backend_cpu_ops)
			set_fallback(*ret_backend, passed.message);
		passed = why;
		if (r != -EOPNOTSUPP)    // a device that is there but broken is an error, not a reason to go on quietly
			break;
	}
	if (r < 0 && err)
		*err = passed;
	return r;
}

int backend_open(const char *name, const struct backend_options *options, struct backend **ret_backend, struct error *err)
{
	if (strcmp(name, "auto") == 0)
		return open_best(options, ret_backend, err);
	for (size_t i = 0; i < N_BACKENDS; i++)
		if (strcmp(name, backends[i]->name) == 0)
			return open_one(backends[i], options, ret_backend, err);
	return error_set(err, ERROR_UNSUPPORTED, "device", "backend \"%s\" is not built in", name);
}

void backend_close(struct backend *be)
{
	if (!be)
		return;
	be->ops->close(be);
	free((struct opened *)be);
}

int backend_sync(struct backend *be, struct error *err)
{
	be->ops->sync(be);
	return backend_check(be, err);
}

int backend_check(const struct backend *be, struct error *err)
{
	const struct opened *o = (const struct opened *)be;
	if (!o->failed)
		return 0;
	return error_set(err, ERROR_UNAVAILABLE, device_fault_field(be->fault), "backend %s failed: %s", be->ops->name, o->failure);
}

#define ROUNDING (2u << 20)              // of a large array: to huge pages

// Blocks at the edge are padded.
size_t backend_piece_bytes(uint32_t widest)
{
	size_t columns = ((size_t)widest + BACKEND_PIECE_COLUMNS - 1) / BACKEND_PIECE_COLUMNS * BACKEND_PIECE_COLUMNS;
	return columns * BACKEND_MAX_PIECE_ROWS * sizeof(float);
}

uint64_t backend_matrix_bytes(uint64_t n_elements, uint32_t element_bytes)
{
	uint64_t bytes;
	if (__builtin_mul_overflow(n_elements, element_bytes, &bytes) || __builtin_add_overflow(bytes, bytes / 64, &bytes) ||
	    __builtin_add_overflow(bytes, bytes < ROUNDING ? bytes : ROUNDING, &bytes))
		return UINT64_MAX;
	return bytes;
}

static bool round_up(uint64_t n, uint64_t *ret)
{
	return !__builtin_add_overflow(n, FP8_TILE - 1, ret) && (*ret -= *ret % FP8_TILE, true);
}

uint64_t backend_fp8_bytes(uint64_t n_rows, uint64_t n_columns)
{
	uint64_t rows, columns, bytes, scales;
	if (!round_up(n_rows, &rows) || !round_up(n_columns, &columns) || __builtin_mul_overflow(rows, columns, &bytes) ||
	    __builtin_mul_overflow(n_rows, sizeof(float), &scales) || __builtin_add_overflow(bytes, scales, &bytes))
		return UINT64_MAX;
	return bytes;
}

bool backend_keeps(struct backend *be, uint64_t n_elements, uint64_t stored_bytes)
{
	uint64_t bytes = backend_matrix_bytes(n_elements, be->element_bytes);
	if (be->room == UINT64_MAX)
		return true;
	if (be->stores)
		bytes -= bytes < stored_bytes ? bytes : stored_bytes;
	if (bytes > be->room)
		return false;
	be->room -= bytes;
	return true;
}

void backend_fail(struct backend *be, const char *format, ...)
{
	struct opened *o = (struct opened *)be;
	if (o->failed)
		return;
	o->failed = true;
	va_list arguments;
	va_start(arguments, format);
	vsnprintf(o->failure, sizeof o->failure, format, arguments);
	va_end(arguments);
}

bool backend_failed(const struct backend *be)
{
	return ((const struct opened *)be)->failed;
}
