// SPDX-License-Identifier: Apache-2.0
// Sliding windows in config.json: which layers look back at a few positions only. Said layer by layer (layer_types), or by the older keys
// of a family: Mistral's layers all slide, Qwen's do from max_window_layers on.
#include <errno.h>
#include <string.h>

#include "daemon/model/config_json.h"
#include "daemon/model/document.h"

static int read_layer_types(const json_t *types, struct architecture *a, struct error *err)
{
	if (!json_is_array(types) || json_array_size(types) != a->n_layers)
		return error_set(err, ERROR_INVALID, "layer_types",
				 CONFIG_NAME ": layer_types must be a list with one word for each of %u layers", a->n_layers);
	for (uint32_t i = 0; i < a->n_layers; i++) {
		const char *type = json_string_value(json_array_get(types, i));
		a->sliding[i] = type && !strcmp(type, "sliding_attention");
		if (!a->sliding[i] && (!type || strcmp(type, "full_attention") != 0))
			return CONFIG_REFUSE("layer_types", "layer_types[%u] is %.32s (supported: full_attention, sliding_attention)", i,
					     type ? type : "no word");
	}
	return 0;
}

// sliding_window: absent is 4096 in every family that has one, null is none.
static int read_length(const json_t *o, uint64_t *ret, struct error *err)
{
	const json_t *v = json_object_get(o, "sliding_window");
	*ret = v ? 0 : 4096;
	if (!v || json_is_null(v))
		return 0;
	return document_u64(o, CONFIG_NAME, "sliding_window", 1, UINT32_MAX, ret, err);
}

// Qwen: nothing slides unless use_sliding_window says so.
static int read_qwen(const json_t *o, bool *ret_used, uint64_t *ret_first, struct error *err)
{
	int r = document_bool(o, CONFIG_NAME, "use_sliding_window", ret_used, err);
	if (r == 0 || r == -ENOENT)
		r = document_u64(o, CONFIG_NAME, "max_window_layers", 0, UINT32_MAX, ret_first, err);
	return r == -ENOENT ? 0 : r;
}

int config_read_window(const json_t *o, enum config_window rule, struct architecture *a, struct error *err)
{
	const json_t *types = json_object_get(o, "layer_types");
	uint64_t window = 0, first = rule == CONFIG_WINDOW_LATE ? 28 : 0;
	bool used = rule == CONFIG_WINDOW_ALL || rule == CONFIG_WINDOW_MIXED;
	int r = 0;
	if (a->n_layers > ARCHITECTURE_MAX_LAYERS)
		return architecture_check(a, err);
	if (rule == CONFIG_WINDOW_LATE)
		r = read_qwen(o, &used, &first, err);
	if (r == 0 && used)
		r = read_length(o, &window, err);
	if (r < 0)
		return r;
	// Mixtral's and Phi-3's classes know no layer_types; Mistral's with them are what transformers calls Ministral.
	if (types && !json_is_null(types) && (rule != CONFIG_WINDOW_ALL || !(a->n_experts || a->fused))) {
		if ((r = read_layer_types(types, a, err)) < 0)
			return r;
	} else if (rule != CONFIG_WINDOW_MIXED) {
		for (uint32_t i = 0; i < a->n_layers; i++)
			a->sliding[i] = i >= first;
	}
	for (uint32_t i = 0; rule == CONFIG_WINDOW_NONE && i < a->n_layers; i++)
		if (types && !json_is_null(types) && a->sliding[i])
			return CONFIG_REFUSE("layer_types",
				"layer_types[%u] is sliding_attention, which models of the family %s do not have", i, a->name);
	a->window = (uint32_t)window;
	architecture_settle_window(a);
	return 0;
}

int config_write_window(const struct architecture *a, enum config_window rule, json_t *o)
{
	json_t *types = json_array();
	int r = types ? 0 : -ENOMEM;
	if (rule == CONFIG_WINDOW_ALL)
		r |= json_object_set_new(o, "sliding_window", a->window ? json_integer((json_int_t)a->window) : json_null());
	bool mixed = false;
	for (uint32_t i = 0; i < a->n_layers; i++)
		mixed = mixed || (a->window && !a->sliding[i]);
	for (uint32_t i = 0; i < a->n_layers; i++)
		r |= json_array_append_new(types, json_string(a->sliding[i] ? "sliding_attention" : "full_attention"));
	if (rule == CONFIG_WINDOW_ALL && mixed)
		r |= json_object_set(o, "layer_types", types);
	if (a->window && rule != CONFIG_WINDOW_ALL)
		r |= json_object_set_new(o, "use_sliding_window", json_true()) | json_object_set(o, "layer_types", types) |
		     json_object_set_new(o, "sliding_window", json_integer((json_int_t)a->window));
	json_decref(types);
	return r ? -ENOMEM : 0;
}
