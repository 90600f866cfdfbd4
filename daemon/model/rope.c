// SPDX-License-Identifier: Apache-2.0
// Rotation: limits of its settings, and the tables of cosines and sines that follow from them. The one place where frequencies are
// computed: in float and in the order of transformers' modeling_rope_utils.py, so that the tables are the same numbers.
#include <math.h>

#include "common/error.h"
#include "daemon/model/config_check.h"

static int check_divisors(const struct architecture *a, const char *name, struct error *err)
{
	int r = 0;
	for (uint32_t i = 0; i < architecture_rope_size(a) / 2 && r == 0; i++)
		r = config_check_real(name, a->rope_divisors[i], 0, 1e6, err);
	return r;
}

static int check_llama3(const struct architecture *a, struct error *err)
{
	int r = config_check_real("rope low_freq_factor", a->rope_low_frequency_factor, 0, 1e6, err);
	return r < 0 ? r : config_check_real("rope high_freq_factor", a->rope_high_frequency_factor, a->rope_low_frequency_factor,
					     1e6, err);
}

static int check_yarn(const struct architecture *a, struct error *err)
{
	int r;
	if ((r = config_check_real("rope_theta", a->rope_theta, 1, 1e30, err)) < 0 ||      // its logarithm divides
	    (r = config_check_real("rope beta_fast", a->rope_beta_fast, 0, 1e6, err)) < 0)
		return r;
	return config_check_real("rope beta_slow", a->rope_beta_slow, 0, 1e6, err);
}

static int check_scaling(const struct architecture *a, struct error *err)
{
	int r;
	if (a->rope_scaling == ROPE_SCALING_NONE)
		return 0;
	if (a->rope_scaling == ROPE_SCALING_DIVISORS)
		return check_divisors(a, "rope_freqs.weight", err);
	if (a->rope_scaling == ROPE_SCALING_LONGROPE)
		return check_divisors(a, "rope short_factor", err);
	if ((r = config_check_real("rope factor", a->rope_factor, 0, 1e6, err)) < 0 || a->rope_scaling == ROPE_SCALING_LINEAR)
		return r;
	if ((r = config_check_number("original_max_position_embeddings", a->rope_original_context, 1, 1u << 30, err)) < 0)
		return r;
	return a->rope_scaling == ROPE_SCALING_YARN ? check_yarn(a, err) : check_llama3(a, err);
}

int config_check_rope(const struct architecture *a, struct error *err)
{
	int r = config_check_real("rope_theta", a->rope_theta, 0, 1e30, err);
	if (r < 0)
		return r;
	if (a->rope_size % 2 || a->rope_size > a->head_size)
		return error_set(err, ERROR_INVALID, "rope_size", "%u dimensions rotate of a head of %u; it must be an even number of them",
				 a->rope_size, a->head_size);
	if (a->rope_attention_factor != 0 &&
	    (r = config_check_real("rope attention_factor", a->rope_attention_factor, 0, 1e6, err)) < 0)
		return r;
	return check_scaling(a, err);
}

// Frequencies whose wavelength is long against the original context are divided by the factor, short ones kept, those between blended.
static float llama3_frequency(const struct architecture *a, float frequency)
{
	float factor = (float)a->rope_factor, low = (float)a->rope_low_frequency_factor, high = (float)a->rope_high_frequency_factor;
	float original = (float)a->rope_original_context;
	float wavelength = (float)(2 * M_PI) / frequency;
	if (wavelength < (float)(a->rope_original_context / a->rope_high_frequency_factor))
		return frequency;
	if (wavelength > (float)(a->rope_original_context / a->rope_low_frequency_factor))
		return frequency / factor;
	float smooth = (original / wavelength - low) / (high - low);
	return (1 - smooth) * frequency / factor + smooth * frequency;
}

// The dimension, a real number, of which so many turns make the original context.
static double yarn_dimension(const struct architecture *a, double turns)
{
	return architecture_rope_size(a) * log(a->rope_original_context / (turns * 2 * M_PI)) / (2 * log(a->rope_theta));
}

// YaRN (arXiv 2309.00071): dimensions that turn fast are kept, slow ones divided by the factor, those between blended by their number.
static float yarn_frequency(const struct architecture *a, uint32_t i, float power)
{
	double low = yarn_dimension(a, a->rope_beta_fast), high = yarn_dimension(a, a->rope_beta_slow);
	if (a->rope_truncate) {
		low = floor(low);
		high = ceil(high);
	}
	low = fmax(low, 0);
	high = fmin(high, architecture_rope_size(a) - 1.0);
	if (low == high)
		high += 0.001;
	float ramp = fminf(fmaxf(((float)i - (float)low) / (float)(high - low), 0), 1), kept = 1 - ramp;
	return 1.0f / ((float)a->rope_factor * power) * (1 - kept) + 1.0f / power * kept;
}

static float rope_frequency(const struct architecture *a, uint32_t i)
{
	float exponent = (float)(2 * i) / (float)architecture_rope_size(a);
	float power = (float)pow((double)(float)a->rope_theta, (double)exponent), frequency = 1.0f / power;
	switch (a->rope_scaling) {
	case ROPE_SCALING_LINEAR:
		return frequency / (float)a->rope_factor;
	case ROPE_SCALING_LLAMA3:
		return llama3_frequency(a, frequency);
	case ROPE_SCALING_DIVISORS:
		return frequency / a->rope_divisors[i];
	case ROPE_SCALING_YARN:
		return yarn_frequency(a, i, power);
	case ROPE_SCALING_LONGROPE:
		return 1.0f / (a->rope_divisors[i] * power);
	default:
		return frequency;
	}
}

void architecture_rope_tables_sliding(const struct architecture *a, uint32_t n, float *ret_cosine, float *ret_sine)
{
	struct architecture plain = *a;
	plain.rope_theta = a->rope_theta_sliding;
	plain.rope_scaling = ROPE_SCALING_NONE;
	plain.rope_attention_factor = 0;
	architecture_rope_tables(&plain, n, ret_cosine, ret_sine);
}

void architecture_rope_tables(const struct architecture *a, uint32_t n, float *ret_cosine, float *ret_sine)
{
	uint32_t half = architecture_rope_size(a) / 2;
	float factor = a->rope_attention_factor != 0 ? (float)a->rope_attention_factor : 1;
	for (uint32_t i = 0; i < half; i++) {
		float frequency = rope_frequency(a, i);
		for (uint32_t t = 0; t < n; t++) {
			float angle = (float)t * frequency;
			ret_cosine[(size_t)t * half + i] = (float)cos((double)angle) * factor;
			ret_sine[(size_t)t * half + i] = (float)sin((double)angle) * factor;
		}
	}
}
