// SPDX-License-Identifier: Apache-2.0
#include "daemon/model/checkpoint.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>

#include "common/error.h"
#include "common/output.h"

int checkpoint_write_file(const char *path, const void *bytes, size_t n, struct error *err)
{
	struct output o;
	int r = output_open(&o, path, err);
	if (r == 0)
		r = output_write(&o, bytes, n);
	return output_close(&o, r);
}

// Names go into JSON as they are.
static bool is_plain_name(const char *s)
{
	if (!*s)
		return false;
	for (; *s; s++)
		if (*s < 0x20 || *s > 0x7e || *s == '"' || *s == '\\')
			return false;
	return true;
}

static int check_tensors(const struct checkpoint_tensor *tensors, size_t n, const char *path, struct error *err)
{
	for (size_t i = 0; i < n; i++) {
		const struct tensor *t = &tensors[i].tensor;
		uint64_t bytes = t->dtype == DTYPE_F32 ? 4 : t->dtype == DTYPE_F16 || t->dtype == DTYPE_BF16 ? 2 : 0;
		if (!is_plain_name(tensors[i].name))
			return error_set(err, ERROR_INVALID, path, "tensor name \"%s\" is not plain ASCII", tensors[i].name);
		if (!bytes)
			return error_set(err, ERROR_UNSUPPORTED, path, "tensor %s: cannot write %s (supported: F32 F16 BF16)",
					 tensors[i].name, dtype_name(t->dtype));
		for (uint32_t k = 0; k < t->n_dims; k++)
			if (__builtin_mul_overflow(bytes, t->dims[k], &bytes))
				bytes = UINT64_MAX;
		if (t->n_dims > TENSOR_MAX_DIMS || bytes != t->n_bytes)
			return error_set(err, ERROR_INVALID, path, "tensor %s: its shape does not make %zu bytes",
				tensors[i].name, t->n_bytes);
	}
	return 0;
}

// The header, padded with spaces so that data starts at a multiple of 8 (the format's wish). {"format":"pt"} is what transformers asks for.
static int make_header(const struct checkpoint_tensor *tensors, size_t n, char **ret_text, size_t *ret_n)
{
	FILE *f = open_memstream(ret_text, ret_n);
	uint64_t offset = 0;
	if (!f)
		return -ENOMEM;
	fputs("{\"__metadata__\":{\"format\":\"pt\"}", f);
	for (size_t i = 0; i < n; i++) {
		const struct tensor *t = &tensors[i].tensor;
		fprintf(f, ",\"%s\":{\"dtype\":\"%s\",\"shape\":[", tensors[i].name, dtype_name(t->dtype));
		for (uint32_t k = 0; k < t->n_dims; k++)
			fprintf(f, "%s%llu", k ? "," : "", (unsigned long long)t->dims[k]);
		fprintf(f, "],\"data_offsets\":[%llu,%llu]}", (unsigned long long)offset, (unsigned long long)offset + t->n_bytes);
		offset += t->n_bytes;
	}
	fputc('}', f);
	for (long at = ftell(f); at % 8; at++)
		fputc(' ', f);
	int failed = ferror(f);
	if (fclose(f) || failed) {
		free(*ret_text);
		return -ENOMEM;
	}
	return 0;
}

int checkpoint_write_safetensors(const char *path, const struct checkpoint_tensor *tensors, size_t n, struct error *err)
{
	char *header = NULL;
	size_t header_n = 0;
	struct output o;
	int r = check_tensors(tensors, n, path, err);
	if (r < 0)
		return r;
	if (make_header(tensors, n, &header, &header_n) < 0)
		return error_set(err, ERROR_MEMORY, path, "no memory for the header of %s", path);
	uint8_t length[8];
	for (int i = 0; i < 8; i++)
		length[i] = (uint8_t)((uint64_t)header_n >> (8 * i));
	r = output_open(&o, path, err);
	if (r == 0 && (r = output_write(&o, length, sizeof length)) == 0)
		r = output_write(&o, header, header_n);
	for (size_t i = 0; i < n && r == 0; i++)
		r = output_write(&o, tensors[i].tensor.data, tensors[i].tensor.n_bytes);
	free(header);
	return output_close(&o, r);
}
