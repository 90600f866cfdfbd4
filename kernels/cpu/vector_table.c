// SPDX-License-Identifier: Apache-2.0
// The table of one instruction set; compiled once for each.
#include "kernels/backend.h"
#include "kernels/cpu/vector_block.h"
#include "kernels/cpu/vector_ops.h"

#define VECTOR_STRING(name) VECTOR_STRING_OF(name)
#define VECTOR_STRING_OF(name) #name

const struct cpu_vector VECTOR_NAME(vector, TABLE_SUFFIX) = {
	.name = VECTOR_STRING(TABLE_SUFFIX),
	.set = LANES == 16 ? VECTOR_AVX512 : LANES == 8 ? VECTOR_AVX2 : VECTOR_BASELINE,
	.rmsnorm = VECTOR(rmsnorm),
	.rmsnorm_backward = VECTOR(rmsnorm_backward),
	.gain_backward = VECTOR(gain_backward),
	.layernorm = VECTOR(layernorm),
	.layernorm_moments = VECTOR(layernorm_moments),
	.layernorm_gains = VECTOR(layernorm_gains),
	.layernorm_backward = VECTOR(layernorm_backward),
	.rotate = VECTOR(rotate),
	.swiglu = VECTOR(swiglu),
	.swiglu_backward = VECTOR(swiglu_backward),
	.gelu = {[GELU_ERF] = VECTOR(gelu_erf), [GELU_TANH] = VECTOR(gelu_tanh)},
	.gelu_backward = {[GELU_ERF] = VECTOR(gelu_erf_backward), [GELU_TANH] = VECTOR(gelu_tanh_backward)},
	.add = VECTOR(add),
	.tile_store = VECTOR(tile_store),
	.to_bf16 = VECTOR(to_bf16),
	.round_bf16 = VECTOR(round_bf16),
	.dequantize = VECTOR(dequantize),
	.sum_squares = VECTOR(sum_squares),
	.adamw = VECTOR(adamw),
	.panel = 2 * LANES,
	.gradient_pack = VECTOR(gradient_pack),
	.gradient = VECTOR(gradient),
	.int8_terms = INT8_TERMS,
	.int8_operand_bytes = 4 / INT8_TERMS,
	.int8_offset = INT8_OFFSET,
	.quantize = INT8(quantize),
	.operands = INT8(operands),
	.int8_unit = INT8(int8_unit),
#ifdef __AVX512BF16__
	.bf16_unit = BF16(bf16_unit),
	.bf16_pack = BF16(bf16_pack),
#endif
	.block_maxima = VECTOR(block_maxima),
	.bound_of_largest = VECTOR(bound_of_largest),
	.find = VECTOR(find),
	.exp_sum = VECTOR(exp_sum),
	.exp_blocks = VECTOR(exp_blocks),
	.softmax = VECTOR(softmax),
	.mix = VECTOR(mix),
	.soft_cap = VECTOR(soft_cap),
	.mix_log = VECTOR(mix_log),
	.attention = BF16(attention),
	.attention_backward = VECTOR(attention_backward),
	.attention_scratch = BF16(attention_scratch),
};
