// SPDX-License-Identifier: Apache-2.0
// What config.json of Phi-3, SmolLM3 and Granite says beside what Llama's family reads.
#include <errno.h>

#include "daemon/model/config_json.h"
#include "daemon/model/document.h"

int config_read_phi3(const json_t *o, struct architecture *a, struct error *err)
{
	a->fused = true;
	if (!json_object_get(o, "sliding_window"))      // absent is none here, unlike Mistral's
		return 0;
	return config_read_window(o, CONFIG_WINDOW_ALL, a, err);
}

// 1 for a layer that rotates, 0 for one that does not, for each layer at least.
static int read_list(const json_t *list, struct architecture *a, struct error *err)
{
	if (!json_is_array(list) || json_array_size(list) < a->n_layers)
		return error_set(err, ERROR_INVALID, "no_rope_layers", CONFIG_NAME ": no_rope_layers must be a list of at least %u numbers",
				 a->n_layers);
	for (uint32_t i = 0; i < a->n_layers; i++) {
		const json_t *v = json_array_get(list, i);
		if (!json_is_integer(v))
			return error_set(err, ERROR_INVALID, "no_rope_layers", CONFIG_NAME ": no_rope_layers[%u] must be 0 or 1", i);
		a->unrotated[i] = json_integer_value(v) == 0;
	}
	return 0;
}

int config_read_smollm3(const json_t *o, struct architecture *a, struct error *err)
{
	uint64_t interval = 4;
	int r = config_refuse_set(o, "use_sliding_window", "a sliding window", err);
	if (r < 0 || (r = architecture_check(a, err)) < 0)      // the number of layers, for one
		return r;
	if (config_has(o, "no_rope_layers"))
		return read_list(json_object_get(o, "no_rope_layers"), a, err);
	r = document_u64(o, CONFIG_NAME, "no_rope_layer_interval", 1, UINT32_MAX, &interval, err);
	for (uint32_t i = 0; i < a->n_layers; i++)
		a->unrotated[i] = (i + 1) % interval == 0;
	return r == -ENOENT ? 0 : r;
}

static int read_multiplier(const json_t *o, const char *key, double *ret, struct error *err)
{
	*ret = 1;
	int r = document_real(o, CONFIG_NAME, key, ret, err);
	if (r < 0 && r != -ENOENT)
		return r;
	return *ret > 0 ? 0 : error_set(err, ERROR_INVALID, key, CONFIG_NAME ": %s must be above 0", key);
}

int config_read_granite(const json_t *o, struct architecture *a, struct error *err)
{
	double scale;
	int r;
	if ((r = read_multiplier(o, "embedding_multiplier", &a->embedding_scale, err)) < 0 ||
	    (r = read_multiplier(o, "residual_multiplier", &a->residual_scale, err)) < 0 ||
	    (r = read_multiplier(o, "logits_scaling", &a->logit_divisor, err)) < 0 ||
	    (r = read_multiplier(o, "attention_multiplier", &scale, err)) < 0)
		return r;
	a->query_scalar = 1 / (scale * scale);
	return 0;
}
