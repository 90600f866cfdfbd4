// SPDX-License-Identifier: Apache-2.0
// What config.json of a mixture of experts says beside what Llama's family reads: Mixtral and Qwen3-MoE.
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "daemon/model/config_json.h"
#include "daemon/model/document.h"

static int read_counts(const json_t *o, const char *key, struct architecture *a, struct error *err)
{
	const char *other = !strcmp(key, "num_experts") ? "num_local_experts" : "num_experts";    // newer files may use either
	int r = config_read_size(o, json_object_get(o, key) ? key : json_object_get(o, other) ? other : key, 0, &a->n_experts, err);
	if (r == 0 && a->n_experts == 0)
		return error_set(err, ERROR_INVALID, key, CONFIG_NAME ": %s is 0", key);
	return r < 0 ? r : config_read_size(o, "num_experts_per_tok", 0, &a->n_experts_used, err);
}

int config_read_mixtral(const json_t *o, struct architecture *a, struct error *err)
{
	a->normalise_experts = true;
	int r = read_counts(o, "num_local_experts", a, err);
	if (r < 0 || !json_object_get(o, "sliding_window"))      // absent is none here, unlike Mistral's
		return r;
	return config_read_window(o, CONFIG_WINDOW_ALL, a, err);
}

// Layers that are no mixtures would need another width, which no published model uses.
static int check_sparse(const json_t *o, struct error *err)
{
	uint64_t step = 1;
	int r = document_u64(o, CONFIG_NAME, "decoder_sparse_step", 0, UINT32_MAX, &step, err);
	if (r < 0 && r != -ENOENT)
		return r;
	if (step != 1)
		return CONFIG_REFUSE("decoder_sparse_step", "decoder_sparse_step %llu is not supported (supported: 1)",
			(unsigned long long)step);
	if (json_array_size(json_object_get(o, "mlp_only_layers")))
		return CONFIG_REFUSE("mlp_only_layers", "layers without experts (mlp_only_layers) are not supported");
	return 0;
}

int config_read_qwen3_moe(const json_t *o, struct architecture *a, struct error *err)
{
	int r;
	snprintf(a->name, sizeof a->name, "qwen3moe");
	a->qk_norm = true;
	if ((r = check_sparse(o, err)) < 0 || (r = config_refuse_set(o, "use_sliding_window", "a sliding window", err)) < 0 ||
	    (r = read_counts(o, "num_experts", a, err)) < 0 ||
	    (r = config_read_size(o, "moe_intermediate_size", 0, &a->ffn_width, err)) < 0)
		return r;
	r = document_bool(o, CONFIG_NAME, "norm_topk_prob", &a->normalise_experts, err);
	return r == -ENOENT ? 0 : r;
}
