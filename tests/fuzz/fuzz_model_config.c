// SPDX-License-Identifier: Apache-2.0
// config.json: what is accepted passes the check, and, if its family is written, reads back the same.
#include <stdlib.h>
#include <string.h>

#include "common/error.h"
#include "daemon/model/config.h"
#include "tests/fuzz/fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct architecture a, b;
	struct error err;
	char *json = NULL;
	if (architecture_from_json((const char *)data, size, &a, &err) < 0)
		return 0;
	if (architecture_check(&a, &err) < 0 || architecture_n_parameters(&a) == 0)
		abort();
	if (architecture_to_json(&a, &json, &err) < 0) {
		if (architecture_trains(&a))
			abort();
		return 0;
	}
	if (architecture_from_json(json, strlen(json), &b, &err) < 0)
		abort();
	// Numbers travel as decimals of 17 digits; everything must come back equal.
	for (uint32_t i = 0; i < sizeof a.rope_divisors / sizeof *a.rope_divisors; i++)
		if (a.rope_divisors[i] != b.rope_divisors[i])
			abort();
	if (strcmp(a.name, b.name) != 0 || a.n_layers != b.n_layers || a.width != b.width || a.ffn_width != b.ffn_width ||
	    a.n_heads != b.n_heads || a.n_kv_heads != b.n_kv_heads || a.head_size != b.head_size || a.vocab_size != b.vocab_size ||
	    a.norm_epsilon != b.norm_epsilon || a.rope_theta != b.rope_theta || a.rope_scaling != b.rope_scaling ||
	    a.rope_factor != b.rope_factor || a.rope_attention_factor != b.rope_attention_factor || a.rope_size != b.rope_size ||
	    a.context_length != b.context_length ||
	    a.rope_beta_fast != b.rope_beta_fast || a.rope_truncate != b.rope_truncate ||
	    a.tied_head != b.tied_head || a.qkv_bias != b.qkv_bias || a.out_bias != b.out_bias || a.ffn_bias != b.ffn_bias ||
	    a.qk_norm != b.qk_norm ||
	    a.bos_id != b.bos_id || a.eos_id != b.eos_id)
		abort();
	free(json);
	return 0;
}
