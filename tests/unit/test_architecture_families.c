// SPDX-License-Identifier: Apache-2.0
// config.json of Phi-3, SmolLM3 and Granite: what their classes have beside what Llama's has.
#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "tests/unit/architecture.h"

#define PHI3 "{\"architectures\":[\"Phi3ForCausalLM\"],\"model_type\":\"phi3\"," SIZES
#define SMOLLM3 "{\"architectures\":[\"SmolLM3ForCausalLM\"],\"model_type\":\"smollm3\"," SIZES

static void phi_3_is_read(void **state)
{
	(void)state;
	struct architecture a = parsed(PHI3 ",\"rope_scaling\":null,\"sliding_window\":100,\"original_max_position_embeddings\":512}");
	assert_true(a.fused && a.window == 100 && !a.rope_size && a.norm_epsilon == 1e-5f && !architecture_trains(&a) && !a.tied_head);
	assert_true(parsed(PHI3 "}").window == 0);
	// half of a head rotates: four factors. Without the key the class' original context is 4096.
#define FOUR "\"short_factor\":[1,1,2,3],\"long_factor\":[1,2,3,4]"
	a = parsed(PHI3 ",\"partial_rotary_factor\":0.5,\"rope_scaling\":{\"type\":\"su\"," FOUR "}}");
	assert_true(a.rope_size == 8 && a.rope_scaling == ROPE_SCALING_LONGROPE && a.rope_original_context == 4096);
	assert_int_equal(a.context_length, 512);
	a = parsed(PHI3 ",\"original_max_position_embeddings\":64,\"sliding_window\":100,"
		   "\"rope_parameters\":{\"rope_type\":\"longrope\","
		   "\"partial_rotary_factor\":0.5," FOUR "}}");
	assert_true(a.context_length == 64 && a.window == 0 && a.rope_attention_factor == sqrt(1 + log(8) / log(64)));
	refused(PHI3 ",\"rope_scaling\":{\"type\":\"longrope\",\"original_max_position_embeddings\":64," FOUR "}}",
		-EOPNOTSUPP, "twice");
	refused(PHI3 ",\"rope_scaling\":{\"type\":\"yarn\",\"factor\":2}}", -EOPNOTSUPP, "Phi-3: default, longrope, su");
	refused(PHI3 ",\"partial_rotary_factor\":0.6}", -EINVAL, "9 dimensions rotate");
	refused(PHI3 ",\"partial_rotary_factor\":0.05}", -EINVAL, "at least 2");
	refused(PHI3 ",\"attention_bias\":true}", -EOPNOTSUPP, "attention_bias");
}

static void smollm3_leaves_layers_unrotated(void **state)
{
	(void)state;
	struct architecture a = parsed(SMOLLM3 ",\"no_rope_layers\":null}");
	assert_true(!a.unrotated[1] && !a.unrotated[0] && a.rope_theta == 2e6 && a.tied_head && !architecture_trains(&a));
	a = parsed(SMOLLM3 ",\"no_rope_layers\":[0,1,0],\"attention_bias\":true,\"tie_word_embeddings\":false}");
	assert_true(a.unrotated[0] && !a.unrotated[1] && a.out_bias && a.qkv_bias && !a.tied_head);
	assert_true(parsed(SMOLLM3 ",\"no_rope_layer_interval\":2}").unrotated[1]);
	refused(SMOLLM3 ",\"no_rope_layer_interval\":0}", -EINVAL, "no_rope_layer_interval");
	refused(SMOLLM3 ",\"no_rope_layers\":[0]}", -EINVAL, "at least 2 numbers");
	refused(SMOLLM3 ",\"no_rope_layers\":[0,true]}", -EINVAL, "no_rope_layers[1]");
	refused(SMOLLM3 ",\"use_sliding_window\":true}", -EOPNOTSUPP, "use_sliding_window");
}

#define GRANITE "{\"architectures\":[\"GraniteForCausalLM\"],\"model_type\":\"granite\"," SIZES

static void granite_multiplies(void **state)
{
	(void)state;
	struct architecture a = parsed(GRANITE ",\"embedding_multiplier\":12,\"residual_multiplier\":0.25,\"attention_multiplier\":0.125,"
				       "\"logits_scaling\":8.0}");
	assert_true(a.embedding_scale == 12 && a.residual_scale == 0.25 && a.logit_divisor == 8 && a.query_scalar == 64);
	assert_true(!architecture_trains(&a) && parsed(GRANITE "}").query_scalar == 1);      // the class' default, not the root
	refused(GRANITE ",\"residual_multiplier\":0}", -EINVAL, "residual_multiplier must be above 0");
	refused(GRANITE ",\"logits_scaling\":\"8\"}", -EINVAL, "logits_scaling must be a number");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(phi_3_is_read),
		cmocka_unit_test(smollm3_leaves_layers_unrotated),
		cmocka_unit_test(granite_multiplies),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
