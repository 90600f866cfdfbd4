#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""make_model.py 8b|1b FOLDER: a random Llama in bfloat16 (config.json and one safetensors file), made on the GPU in seconds."""
import json
import os
import sys

import torch
from safetensors.torch import save_file

SHAPES = {"8b": dict(hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8),
          "1b": dict(hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32, num_key_value_heads=8)}
VOCABULARY = 128256


def tensors(s):
    C, F, L = s["hidden_size"], s["intermediate_size"], s["num_hidden_layers"]
    D = C // s["num_attention_heads"]
    KV = D * s["num_key_value_heads"]
    yield "model.embed_tokens.weight", (VOCABULARY, C)
    for i in range(L):
        p = f"model.layers.{i}."
        for name, shape in [("self_attn.q_proj", (C, C)), ("self_attn.k_proj", (KV, C)), ("self_attn.v_proj", (KV, C)), ("self_attn.o_proj", (C, C)),
                            ("mlp.gate_proj", (F, C)), ("mlp.up_proj", (F, C)), ("mlp.down_proj", (C, F))]:
            yield p + name + ".weight", shape
        yield p + "input_layernorm.weight", (C,)
        yield p + "post_attention_layernorm.weight", (C,)
    yield "model.norm.weight", (C,)
    yield "lm_head.weight", (VOCABULARY, C)


def main():
    shape, folder = SHAPES[sys.argv[1]], sys.argv[2]
    if os.path.exists(folder + "/config.json"):
        return
    os.makedirs(folder, exist_ok=True)
    torch.manual_seed(1)
    made = {}
    for name, dims in tensors(shape):
        made[name] = torch.ones(dims, dtype=torch.bfloat16) if len(dims) == 1 else \
            (torch.randn(dims, device="cuda", dtype=torch.bfloat16) * dims[1] ** -0.5).cpu()
    save_file(made, folder + "/model.safetensors", metadata={"format": "pt"})
    config = dict(shape, architectures=["LlamaForCausalLM"], model_type="llama", vocab_size=VOCABULARY, max_position_embeddings=16384,
                  rms_norm_eps=1e-5, rope_theta=500000.0, hidden_act="silu", tie_word_embeddings=False, torch_dtype="bfloat16",
                  attention_bias=False, mlp_bias=False, head_dim=shape["hidden_size"] // shape["num_attention_heads"])
    with open(folder + "/config.json", "w") as f:
        json.dump(config, f)


main()
