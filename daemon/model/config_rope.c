// SPDX-License-Identifier: Apache-2.0
// Rotation in config.json. Old files: "rope_theta" beside "rope_scaling": {"type" or "rope_type": ...}; new ones: all of it in
// "rope_parameters". As in transformers, rope_scaling goes first where both are there. A key that is not its kind's is refused.
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/model/config_json.h"
#include "daemon/model/document.h"

#define ORIGINAL "original_max_position_embeddings"

enum kind { DEFAULT = 1, LINEAR = 2, LLAMA3 = 4, DYNAMIC = 8, YARN = 16, LONGROPE = 32, ALL = 63 };

static const struct { const char *name; enum kind kind; } kinds[] = {
	{"default", DEFAULT}, {"linear", LINEAR}, {"llama3", LLAMA3}, {"dynamic", DYNAMIC}, {"yarn", YARN}, {"longrope", LONGROPE},
};

static const struct { const char *key; unsigned kinds; } keys[] = {
	{"rope_type", ALL}, {"type", ALL}, {"rope_theta", ALL}, {"partial_rotary_factor", ALL}, {"factor", ALL},
	{"finetuned", ALL},      // whether the scaled model was trained on; no number
	{ORIGINAL, ALL}, {"low_freq_factor", LLAMA3}, {"high_freq_factor", LLAMA3},
	{"attention_factor", YARN | LONGROPE}, {"beta_fast", YARN}, {"beta_slow", YARN}, {"mscale", YARN}, {"mscale_all_dim", YARN},
	{"truncate", YARN}, {"short_factor", LONGROPE}, {"long_factor", LONGROPE},
};

static int check_keys(const json_t *scaling, enum kind kind, const char *type, struct error *err)
{
	const char *key;
	const json_t *v;
	json_object_foreach((json_t *)(uintptr_t)scaling, key, v) {
		bool known = false;
		for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
			known = known || (!strcmp(key, keys[i].key) && keys[i].kinds & kind);
		if (json_is_object(v))
			return CONFIG_REFUSE("rope_parameters", "rope parameters per layer type (%.32s) are not supported", key);
		if (!known && !json_is_null(v))
			return CONFIG_REFUSE("rope_parameters", "%.48s is not supported in rope parameters of the type %s", key, type);
	}
	return 0;
}

static int read_kind(const json_t *scaling, struct architecture *a, enum kind *ret, struct error *err)
{
	const char *type = "default";
	int r = document_string(scaling, CONFIG_NAME, "rope_type", &type, err);
	if (r == -ENOENT)
		r = document_string(scaling, CONFIG_NAME, "type", &type, err);
	if (r < 0 && r != -ENOENT)
		return r;
	if (!strcmp(type, "su") && !strcmp(a->name, "phi3"))      // its first name, which only that class knows
		type = "longrope";
	for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
		bool known = strcmp(a->name, "phi3") != 0 || kinds[i].kind & (DEFAULT | LONGROPE);
		if (known && !strcmp(type, kinds[i].name)) {
			*ret = kinds[i].kind;
			return check_keys(scaling, kinds[i].kind, type, err);
		}
	}
	return CONFIG_REFUSE("rope_type", "rope scaling %.32s is not supported in models of the family %s "
			     "(supported: default, linear, llama3, dynamic, yarn, longrope; Phi-3: default, longrope, su)", type, a->name);
}

// The share of a head's dimensions that rotate.
static int read_partial(const json_t *o, struct architecture *a, struct error *err)
{
	double v = 1;
	int r = document_real(o, CONFIG_NAME, "partial_rotary_factor", &v, err);
	if (r < 0)
		return r == -ENOENT ? 0 : r;
	if (!(v > 0 && v <= 1) || (uint32_t)(a->head_size * v) < 2)
		return error_set(err, ERROR_INVALID, "partial_rotary_factor", CONFIG_NAME ": partial_rotary_factor is %g: it must be "
				 "a share of the head size %u that is at least 2", v, a->head_size);
	a->rope_size = v < 1 ? (uint32_t)(a->head_size * v) : 0;
	return 0;
}

static int need_real(const json_t *o, const char *key, double *ret, struct error *err)
{
	int r = document_real(o, CONFIG_NAME, key, ret, err);
	return r == -ENOENT ? error_set(err, ERROR_INVALID, key, CONFIG_NAME ": the rope scaling needs %s", key) : r;
}

// Absent and null are as 0, which is as if it were not there.
static int read_optional(const json_t *o, const char *key, double *ret, struct error *err)
{
	*ret = 0;
	int r = document_real(o, CONFIG_NAME, key, ret, err);
	return r == -ENOENT ? 0 : r;
}

// The length may stand outside of the scaling too, where transformers 5 looks first and transformers 4 never; Phi-3's class has one always.
static int read_original(const json_t *o, const json_t *scaling, struct architecture *a, struct error *err)
{
	uint32_t outer = 0;
	int r = config_read_size(scaling, ORIGINAL, a->context_length, &a->rope_original_context, err);
	if (r < 0 || !o || (!config_has(o, ORIGINAL) && strcmp(a->name, "phi3") != 0))
		return r;
	if ((r = config_read_size(o, ORIGINAL, 4096, &outer, err)) < 0)
		return r;
	if (config_has(scaling, ORIGINAL) && outer != a->rope_original_context)
		return CONFIG_REFUSE(ORIGINAL, ORIGINAL " is there twice, with two values");
	a->rope_original_context = outer;
	return 0;
}

static int read_llama3(const json_t *o, struct architecture *a, struct error *err)
{
	a->rope_scaling = ROPE_SCALING_LLAMA3;
	int r = need_real(o, "low_freq_factor", &a->rope_low_frequency_factor, err);
	return r < 0 ? r : need_real(o, "high_freq_factor", &a->rope_high_frequency_factor, err);
}

static double yarn_scale(double factor, double slope)
{
	return factor <= 1 ? 1 : 0.1 * slope * log(factor) + 1;
}

static int read_yarn(const json_t *o, struct architecture *a, struct error *err)
{
	double numerator, denominator;
	int r;
	if ((r = read_optional(o, "mscale", &numerator, err)) < 0 || (r = read_optional(o, "mscale_all_dim", &denominator, err)) < 0 ||
	    (r = read_optional(o, "beta_fast", &a->rope_beta_fast, err)) < 0 ||
	    (r = read_optional(o, "beta_slow", &a->rope_beta_slow, err)) < 0)
		return r;
	bool both = numerator != 0 && denominator != 0;
	a->rope_scaling = ROPE_SCALING_YARN;
	a->rope_beta_fast = a->rope_beta_fast != 0 ? a->rope_beta_fast : 32;
	a->rope_beta_slow = a->rope_beta_slow != 0 ? a->rope_beta_slow : 1;
	a->rope_attention_factor = both ? yarn_scale(a->rope_factor, numerator) / yarn_scale(a->rope_factor, denominator)
		: yarn_scale(a->rope_factor, 1);
	a->rope_truncate = !json_object_get(o, "truncate");      // null is false
	r = document_bool(o, CONFIG_NAME, "truncate", &a->rope_truncate, err);
	return r == -ENOENT ? 0 : r;
}

// One for each pair of dimensions that rotates.
static int read_divisors(const json_t *o, const char *key, struct architecture *a, float *ret, struct error *err)
{
	const json_t *list = json_object_get(o, key);
	uint32_t n = architecture_rope_size(a) / 2;
	if (!json_is_array(list) || json_array_size(list) != n || n > ARCHITECTURE_MAX_HEAD_SIZE / 2)
		return error_set(err, ERROR_INVALID, key, CONFIG_NAME ": %s must be a list of %u numbers", key, n);
	for (uint32_t i = 0; i < n; i++) {
		const json_t *v = json_array_get(list, i);
		ret[i] = (float)json_number_value(v);
		if (!(ret[i] > 0 && isfinite(ret[i])))      // 0 is what is no number too
			return error_set(err, ERROR_INVALID, key, CONFIG_NAME ": %s[%u] must be a number above 0", key, i);
	}
	return 0;
}

static int read_longrope(const json_t *o, struct architecture *a, struct error *err)
{
	float long_divisors[ARCHITECTURE_MAX_HEAD_SIZE / 2];      // looked at, but see ROPE_SCALING_LONGROPE
	double factor;
	int r;
	if ((r = read_divisors(o, "short_factor", a, a->rope_divisors, err)) < 0 ||
	    (r = read_divisors(o, "long_factor", a, long_divisors, err)) < 0 || (r = read_optional(o, "factor", &factor, err)) < 0)
		return r;
	if (factor == 0)
		factor = (double)a->context_length / a->rope_original_context;
	a->rope_scaling = ROPE_SCALING_LONGROPE;
	a->rope_attention_factor = factor <= 1 ? 1 : sqrt(1 + log(factor) / log(a->rope_original_context));
	if (a->context_length > a->rope_original_context)
		a->context_length = a->rope_original_context;
	return 0;
}

// Up to the context nothing is scaled, and longer sequences are refused.
static int read_dynamic(struct architecture *a, struct error *err)
{
	if (!(a->rope_factor > 0 && a->rope_factor <= 1e6))
		return error_set(err, ERROR_INVALID, "factor", CONFIG_NAME ": rope factor is %g", a->rope_factor);
	a->rope_factor = 0;
	return 0;
}

static int read_scaling(const json_t *scaling, enum kind kind, struct architecture *a, struct error *err)
{
	int r = kind & (LINEAR | LLAMA3 | DYNAMIC | YARN) ? need_real(scaling, "factor", &a->rope_factor, err) : 0;
	if (r < 0 || kind == DEFAULT)
		return r;
	if (kind == LINEAR)
		a->rope_scaling = ROPE_SCALING_LINEAR;
	return kind == LLAMA3 ? read_llama3(scaling, a, err) : kind == DYNAMIC ? read_dynamic(a, err) :
	       kind == YARN ? read_yarn(scaling, a, err) : kind == LONGROPE ? read_longrope(scaling, a, err) : 0;
}

// What is there goes before what follows from the rest.
static int read_attention_factor(const json_t *scaling, struct architecture *a, struct error *err)
{
	double factor = 0;
	int r = document_real(scaling, CONFIG_NAME, "attention_factor", &factor, err);
	if (r < 0)
		return r == -ENOENT ? 0 : r;
	if (!(factor > 0))
		return error_set(err, ERROR_INVALID, "attention_factor", CONFIG_NAME ": rope attention_factor is %g; it must be above 0",
				 factor);
	a->rope_attention_factor = factor;
	return 0;
}

int config_read_rope_object(const json_t *o, const json_t *scaling, struct architecture *a, struct error *err)
{
	enum kind kind = DEFAULT;
	int r;
	if (!json_is_object(scaling))
		return error_set(err, ERROR_INVALID, "rope_scaling", CONFIG_NAME ": rope parameters must be an object");
	if ((r = read_kind(scaling, a, &kind, err)) < 0 || (r = read_partial(scaling, a, err)) < 0 ||
	    ((r = document_real(scaling, CONFIG_NAME, "rope_theta", &a->rope_theta, err)) < 0 && r != -ENOENT))
		return r;
	if (!o && config_has(scaling, "truncate"))      // by kind of layer transformers looks for it in another place
		return CONFIG_REFUSE("truncate", "truncate is not supported in rope parameters by kind of layer");
	if (kind & (LLAMA3 | YARN | LONGROPE) && (r = read_original(o, scaling, a, err)) < 0)
		return r;
	r = read_scaling(scaling, kind, a, err);
	return r < 0 ? r : read_attention_factor(scaling, a, err);
}

int config_read_theta(const json_t *o, double default_theta, struct architecture *a, struct error *err)
{
	a->rope_theta = default_theta;
	int r = read_partial(o, a, err);
	if (r == 0)
		r = document_real(o, CONFIG_NAME, "rope_theta", &a->rope_theta, err);
	return r == -ENOENT ? 0 : r;
}

int config_read_rope(const json_t *o, double default_theta, struct architecture *a, struct error *err)
{
	const char *key = config_has(o, "rope_scaling") ? "rope_scaling" : "rope_parameters";
	int r = config_read_theta(o, default_theta, a, err);
	return r < 0 || !config_has(o, key) ? r : config_read_rope_object(o, json_object_get(o, key), a, err);
}

static json_t *divisors_json(const struct architecture *a)
{
	json_t *list = json_array();
	for (uint32_t i = 0; list && i < architecture_rope_size(a) / 2; i++) {
		if (json_array_append_new(list, json_real(config_decimal_of(a->rope_divisors[i])))) {
			json_decref(list);
			return NULL;
		}
	}
	return list;
}

// Under the old key with the newer "rope_type", which transformers before and after version 5 read alike; but that some of version 4 make
// YaRN's factor anew where the original context is said: it is not where it is the model's own, which is what all take then.
json_t *config_rope_json(const struct architecture *a)
{
	json_int_t original = (json_int_t)a->rope_original_context;
	if (a->rope_scaling == ROPE_SCALING_LINEAR)
		return json_pack("{s:s, s:f}", "rope_type", "linear", "factor", a->rope_factor);
	if (a->rope_scaling == ROPE_SCALING_LLAMA3)
		return json_pack("{s:s, s:f, s:f, s:f, s:I}", "rope_type", "llama3", "factor", a->rope_factor, "low_freq_factor",
				 a->rope_low_frequency_factor, "high_freq_factor", a->rope_high_frequency_factor, ORIGINAL, original);
	if (a->rope_scaling == ROPE_SCALING_YARN) {
		json_t *o = json_pack("{s:s, s:f, s:f, s:f, s:f, s:b, s:I}", "rope_type", "yarn", "factor", a->rope_factor,
				      "attention_factor", a->rope_attention_factor, "beta_fast", a->rope_beta_fast, "beta_slow",
				      a->rope_beta_slow, "truncate", (int)a->rope_truncate, ORIGINAL, original);
		if (a->rope_original_context == a->context_length)
			json_object_del(o, ORIGINAL);
		return o;
	}
	if (a->rope_scaling == ROPE_SCALING_LONGROPE)      // up to the original context, beyond which the long factors would begin
		return json_pack("{s:s, s:o, s:o, s:f, s:I}", "rope_type", "longrope", "short_factor", divisors_json(a), "long_factor",
				 divisors_json(a), "attention_factor", a->rope_attention_factor, ORIGINAL, original);
	return json_null();
}
