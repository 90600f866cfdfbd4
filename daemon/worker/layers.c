// SPDX-License-Identifier: Apache-2.0
#include "daemon/worker/layers.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/error.h"

#define FIELD "student-from-layers"

static int uniform(const char *text, uint32_t n_layers, struct layers *ret, struct error *err)
{
	char *end;
	unsigned long n = strtoul(text, &end, 10);
	if (!isdigit((unsigned char)*text) || *end || n < 1 || n > n_layers || n > LAYERS_MAX)
		return error_set(err, ERROR_INVALID, FIELD, "uniform:%.20s: a number from 1 to %u is expected", text, n_layers);
	for (ret->n = 0; ret->n < n; ret->n++)
		ret->of[ret->n] = (uint32_t)((uint64_t)(ret->n + 1) * n_layers / n) - 1;
	return 0;
}

int layers_parse(const char *text, uint32_t n_layers, struct layers *ret, struct error *err)
{
	const char *at = text;
	ret->n = 0;
	if (strncmp(text, "uniform:", 8) == 0)
		return uniform(text + 8, n_layers, ret, err);
	for (;;) {
		char *end;
		unsigned long layer = strtoul(at, &end, 10);
		if (!isdigit((unsigned char)*at) || layer >= n_layers || ret->n == LAYERS_MAX)
			return error_set(err, ERROR_INVALID, FIELD,
					 "%.40s: numbers below %u separated by commas are expected, or uniform:N", text, n_layers);
		ret->of[ret->n++] = (uint32_t)layer;
		if (!*end)
			return 0;
		at = *end == ',' ? end + 1 : "";
	}
}

// "model.layers.3.mlp.up_proj.weight", "h.3.attn.c_attn.weight", "bert.encoder.layer.3.output.dense.weight": the first number that
// stands alone between dots is the layer's.
static const char *layer_number(const char *name)
{
	for (const char *dot = strchr(name, '.'); dot; dot = strchr(dot + 1, '.')) {
		size_t n = strspn(dot + 1, "0123456789");
		if (n && dot[1 + n] == '.')
			return dot + 1;
	}
	return NULL;
}

static int find(void *file, const char *name, struct tensor *ret_tensor, struct error *err)
{
	const struct layers *l = file;
	const char *number = layer_number(name);
	char other[192];
	if (!number)
		return l->from.find(l->from.file, name, ret_tensor, err);
	char *rest;
	unsigned long layer = strtoul(number, &rest, 10);
	int n = layer < l->n ? snprintf(other, sizeof other, "%.*s%u%s", (int)(number - name), name, l->of[layer], rest) : -1;
	if (n < 0 || (size_t)n >= sizeof other)
		return error_set(err, ERROR_INTERNAL, NULL, "%s: no layer of the model stands for it", name);
	return l->from.find(l->from.file, other, ret_tensor, err);
}

static void release(void *file, struct tensor *tensor)
{
	const struct layers *l = file;
	if (l->from.release)
		l->from.release(l->from.file, tensor);
}

struct tensor_source layers_source(struct layers *l, const struct tensor_source *from)
{
	l->from = *from;
	struct tensor_source s = *from;
	s.file = l;
	s.find = find;
	s.release = release;
	return s;
}
