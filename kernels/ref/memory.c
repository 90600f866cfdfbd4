// SPDX-License-Identifier: Apache-2.0
// Device arrays of the reference backend: double arrays in host memory.
#include <stdlib.h>
#include <string.h>

#include "common/error.h"
#include "kernels/ref/ref.h"

static double *values_new(struct backend *be, size_t n, struct error *err)
{
	double *values = calloc(n ? n : 1, sizeof *values);    // calloc checks the product
	be->n_allocations++;
	if (!values)
		error_set(err, ERROR_MEMORY, NULL, "no memory for an array of %zu doubles", n);
	return values;
}

struct real *ref_real_new(struct backend *be, size_t n, struct error *err)
{
	return (struct real *)values_new(be, n, err);
}

void ref_real_free(struct backend *be, struct real *x)
{
	(void)be;
	free(x);
}

struct real *ref_real_at(struct real *x, size_t i)
{
	return (struct real *)(ref_real(x) + i);
}

struct act *ref_act_new(struct backend *be, size_t n, struct error *err)
{
	return (struct act *)values_new(be, n, err);
}

void ref_act_free(struct backend *be, struct act *x)
{
	(void)be;
	free(x);
}

struct act *ref_act_at(struct act *x, size_t i)
{
	return (struct act *)(ref_act(x) + i);
}

static void values_write(double *to, const float *from, size_t n)
{
	for (size_t i = 0; i < n; i++)
		to[i] = from[i];
}

void ref_real_write(struct backend *be, struct real *to, const float *from, size_t n)
{
	(void)be;
	values_write(ref_real(to), from, n);
}

void ref_act_write(struct backend *be, struct act *to, const float *from, size_t n)
{
	(void)be;
	values_write(ref_act(to), from, n);
}

void ref_real_read(struct backend *be, double *to, const struct real *from, size_t n)
{
	(void)be;
	memcpy(to, from, n * sizeof *to);
}

void ref_act_read(struct backend *be, double *to, const struct act *from, size_t n)
{
	(void)be;
	memcpy(to, from, n * sizeof *to);
}

void ref_real_zero(struct backend *be, struct real *x, size_t n)
{
	(void)be;
	memset(x, 0, n * sizeof(double));
}

void ref_real_copy(struct backend *be, struct real *to, const struct real *from, size_t n)
{
	(void)be;
	memmove(to, from, n * sizeof(double));
}
