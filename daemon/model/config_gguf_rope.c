// SPDX-License-Identifier: Apache-2.0
// Rotation in GGUF metadata: keys "rope.*", and tensors of divisors (rope_freqs: llama3's scaling; rope_factors_short, _long: LongRoPE's).
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/error.h"
#include "daemon/model/config_gguf.h"

// llama3 scaling arrives as the divisors it leads to. Meta's own setting (low 1, high 4, original 8192, any factor) is recognised, so that
// frequencies are computed as transformers does and config.json can name it.
static bool is_llama3(struct architecture *a)
{
	uint32_t R = architecture_rope_size(a), half = R / 2;
	double factor = (double)a->rope_divisors[half - 1];
	for (uint32_t i = 0; i < half; i++) {
		double wavelength = 2 * M_PI * pow(a->rope_theta, 2.0 * i / R), want, smooth = (8192 / wavelength - 1) / 3;
		want = wavelength < 8192 / 4.0 ? 1 : wavelength > 8192 ? factor : 1 / ((1 - smooth) / factor + smooth);
		if (fabs((double)a->rope_divisors[i] - want) > 1e-4 * want)
			return false;
	}
	a->rope_scaling = ROPE_SCALING_LLAMA3;
	a->rope_factor = factor;
	a->rope_low_frequency_factor = 1;
	a->rope_high_frequency_factor = 4;
	a->rope_original_context = 8192;
	memset(a->rope_divisors, 0, sizeof a->rope_divisors);
	return true;
}

// -ENOENT: there is no such tensor.
static int read_divisors(const struct config_source *s, const char *name, struct architecture *a, float *ret)
{
	struct tensor t;
	uint32_t n = architecture_rope_size(a) / 2;
	int r = gguf_read(s->file, name, &t, s->err);
	if (r < 0)
		return r;
	if (t.dtype != DTYPE_F32 || t.n_dims != 1 || t.dims[0] != n || n > ARCHITECTURE_MAX_HEAD_SIZE / 2)
		r = error_set(s->err, ERROR_INVALID, name, "tensor %s must be %u F32 values", name, n);
	else
		dtype_to_float(t.dtype, t.data, ret, n);
	free((void *)(uintptr_t)t.data);
	return r;
}

static int read_freqs(const struct config_source *s, struct architecture *a)
{
	static const char name[] = "rope_freqs.weight";
	bool all_one = true;
	if (architecture_rope_size(a) < 2)
		return 0;      // architecture_check will say so
	int r = read_divisors(s, name, a, a->rope_divisors);
	if (r < 0)
		return r == -ENOENT ? 0 : r;
	if (a->rope_scaling != ROPE_SCALING_NONE)
		return error_set(s->err, ERROR_INVALID, name, "tensor %s must be without another scaling", name);
	for (uint32_t i = 0; i < architecture_rope_size(a) / 2; i++)
		all_one = all_one && a->rope_divisors[i] == 1;
	if (all_one)
		memset(a->rope_divisors, 0, sizeof a->rope_divisors);
	else if (!is_llama3(a))
		a->rope_scaling = ROPE_SCALING_DIVISORS;
	return 0;
}

static int read_original(const struct config_source *s, struct architecture *a)
{
	return config_gguf_size(s, "rope.scaling.original_context_length", a->context_length, &a->rope_original_context);
}

// The attention factor of a file is beside the one that YaRN has by itself.
static int read_yarn(const struct config_source *s, double factor, struct architecture *a)
{
	int r;
	a->rope_scaling = ROPE_SCALING_YARN;
	a->rope_factor = factor;
	a->rope_beta_fast = 32;
	a->rope_beta_slow = 1;
	a->rope_truncate = true;
	a->rope_attention_factor *= factor > 1 ? 0.1 * log(factor) + 1 : 1;
	if ((r = config_gguf_optional(s, "rope.scaling.yarn_beta_fast", &a->rope_beta_fast)) < 0 ||
	    (r = config_gguf_optional(s, "rope.scaling.yarn_beta_slow", &a->rope_beta_slow)) < 0)
		return r;
	return read_original(s, a);
}

static int read_longrope(const struct config_source *s, double factor, struct architecture *a)
{
	static const char *const names[] = {"rope_factors_long.weight", "rope_factors_short.weight"};      // the short ones stay
	int r = 0;
	if (factor != 0 && factor != 1)
		return error_set(s->err, ERROR_UNSUPPORTED, "rope.scaling.factor", "GGUF metadata: %s.rope.scaling.factor is %g: "
				 "a factor beside those of longrope is not supported", s->family, factor);
	for (size_t i = 0; i < sizeof names / sizeof *names && r == 0; i++)
		if ((r = read_divisors(s, names[i], a, a->rope_divisors)) == -ENOENT)
			r = error_set(s->err, ERROR_INVALID, names[i], "tensor %s is missing", names[i]);
	if (r < 0 || (r = read_original(s, a)) < 0)
		return r;
	a->rope_scaling = ROPE_SCALING_LONGROPE;
	if (a->context_length > a->rope_original_context)
		a->context_length = a->rope_original_context;
	architecture_settle_window(a);
	return 0;
}

// As in llama.cpp a factor counts where no type is named, and Phi-3's divisors where they are there.
static int read_scaling(const struct config_source *s, double factor, struct architecture *a)
{
	char name[128], word[16] = "linear";
	const char *type = NULL;
	struct tensor t;
	size_t n = 0;
	int r = gguf_get_string(s->file, config_gguf_key(s, "rope.scaling.type", name), &type, &n, s->err);
	if (r < 0 && r != -ENOENT)
		return r;
	bool named = r == 0;
	if (named)
		snprintf(word, sizeof word, "%.*s", n < sizeof word ? (int)n : 0, type);
	if (!strcmp(s->family, "phi3") && (!named || !strcmp(word, "none")) && gguf_find(s->file, "rope_factors_short.weight", &t) == 0)
		return read_longrope(s, factor, a);
	if (!a->gemma && !strcmp(word, "longrope"))
		return read_longrope(s, factor, a);
	if (!strcmp(word, "none") || (!named && (factor == 0 || factor == 1)))
		return 0;
	if (strcmp(word, "linear") != 0 && (a->gemma || strcmp(word, "yarn") != 0))
		return error_set(s->err, ERROR_UNSUPPORTED, name, "GGUF metadata: rope scaling %.*s is not supported "
				 "(supported: none, linear%s)", n < 32 ? (int)n : 32, type, a->gemma ? "" : ", yarn, longrope");
	if (factor == 0)
		return config_gguf_missing(s, config_gguf_key(s, "rope.scaling.factor", name));
	if (!strcmp(word, "yarn"))
		return read_yarn(s, factor, a);
	a->rope_scaling = ROPE_SCALING_LINEAR;
	a->rope_factor = factor;
	return 0;
}

static int read_size(const struct config_source *s, struct architecture *a)
{
	uint32_t size;
	int r = config_gguf_size(s, "rope.dimension_count", a->head_size, &size);
	if (r == 0 && size == 0)
		return error_set(s->err, ERROR_INVALID, "rope.dimension_count", "GGUF metadata: %s.rope.dimension_count is 0", s->family);
	a->rope_size = size == a->head_size ? 0 : size;
	return r;
}

int config_gguf_rope(const struct config_source *s, struct architecture *a)
{
	double factor = 0;
	int r;
	a->rope_theta = 10000;
	a->rope_attention_factor = 1;
	if ((r = read_size(s, a)) < 0 || (r = config_gguf_optional(s, "rope.freq_base", &a->rope_theta)) < 0 ||
	    (r = config_gguf_optional(s, "rope.scale_linear", &factor)) < 0 ||
	    (r = config_gguf_optional(s, "rope.scaling.factor", &factor)) < 0 ||
	    (r = config_gguf_optional(s, "rope.scaling.attn_factor", &a->rope_attention_factor)) < 0 ||
	    (r = read_scaling(s, factor, a)) < 0)
		return r;
	bool needed = a->rope_scaling == ROPE_SCALING_YARN || a->rope_scaling == ROPE_SCALING_LONGROPE;
	if (!needed && a->rope_attention_factor == 1)
		a->rope_attention_factor = 0;
	return read_freqs(s, a);
}
