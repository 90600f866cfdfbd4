# SPDX-License-Identifier: Apache-2.0
# Writes rope_golden.h: cos and sin of transformers' LlamaRotaryEmbedding (float32) at chosen positions.
# Needs torch and transformers (pip install torch==2.15.0 transformers==5.23.0); the test itself needs neither.
import json
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

SIZES = dict(hidden_size=256, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=4, vocab_size=10,
             max_position_embeddings=4096)
LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=512)
CASES = [dict(rope_theta=100000.0), dict(rope_theta=10000.0, rope_scaling=dict(rope_type="linear", factor=3.0)),
         dict(rope_theta=500000.0, rope_scaling=LLAMA3), dict(rope_theta=1000000.0, head_dim=128),
         dict(rope_theta=10000.0, rope_scaling=dict(rope_type="yarn", factor=8.0, original_max_position_embeddings=512)),
         dict(rope_theta=500000.0, head_dim=128, rope_scaling=dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=1024, beta_fast=16,
                                                                    beta_slow=2, truncate=False, attention_factor=1.3)),
         dict(rope_theta=10000.0, rope_scaling=dict(rope_type="yarn", factor=2.0, original_max_position_embeddings=2048, mscale=0.707,
                                                    mscale_all_dim=1.0)),
         dict(rope_theta=10000.0, rope_scaling=dict(rope_type="dynamic", factor=4.0)),
         dict(rope_theta=10000.0, rope_scaling=dict(rope_type="longrope", factor=16.0, original_max_position_embeddings=4096, short_factor=[
             round(1 + 0.05 * i, 2) for i in range(32)], long_factor=[round(1.5 + i, 2) for i in range(32)]))]
POSITIONS = [0, 1, 2, 17, 100, 511, 1023, 4095]

cases = []
for case in CASES:
    raw = dict(SIZES, model_type="llama", **case)
    config = LlamaConfig(**{k: (dict(v) if isinstance(v, dict) else v) for k, v in raw.items() if k != "model_type"})
    rope = LlamaRotaryEmbedding(config)
    cos, sin = rope(torch.zeros(1, dtype=torch.float32), torch.tensor([POSITIONS]))
    half = cos.shape[-1] // 2
    points = [(t, k, cos[0, i, k].item(), sin[0, i, k].item()) for i, t in enumerate(POSITIONS) for k in range(0, half, half // 8)]
    cases.append((json.dumps(raw), points))
print("// SPDX-License-Identifier: Apache-2.0")
print("// Made by rope_golden.py from transformers.")
print("#define ROPE_GOLDEN_POINTS %d" % len(cases[0][1]))
print("static const struct {\n\tconst char *config;\n\tstruct { uint32_t position, index; float cosine, sine; } points[ROPE_GOLDEN_POINTS];")
print("} rope_golden[] = {")
for text, points in cases:
    print("\t{\"%s\", {" % text.replace('"', '\\"').replace(', \\"rope', ',"\n\t \"\\"rope').replace(', \\"max', ',"\n\t \"\\"max'))
    for i in range(0, len(points), 2):
        print("\t\t" + " ".join("{%d, %d, %sf, %sf}," % (t, k, float("%.9g" % c).hex(), float("%.9g" % s).hex()) for t, k, c, s in points[i:i + 2]))
    print("\t}},")
print("};")
