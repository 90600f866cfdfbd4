#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""make_model.py 8b|1b FOLDER: a random Llama, made on the GPU in seconds: in bfloat16 (config.json and one safetensors file), and, with a third
argument q4_0, as FOLDER/model.gguf of Q4_0 blocks."""
import json
import os
import struct
import sys

import torch
from safetensors.torch import save_file

SHAPES = {"8b": dict(hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8),
          "1b": dict(hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32, num_key_value_heads=8)}
VOCABULARY = 128256
DEVICE = os.environ.get("MAKE_MODEL_DEVICE", "cuda")


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


GGUF_NAMES = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output", "self_attn.q_proj": "attn_q",
              "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate",
              "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
GGUF_F32, GGUF_Q4_0, GGUF_ALIGNMENT = 0, 2, 32


def gguf_name(name):
    if name.startswith("model.layers."):
        _, _, i, rest = name.removesuffix(".weight").split(".", 3)
        return f"blk.{i}.{GGUF_NAMES[rest]}.weight"
    return GGUF_NAMES[name.removesuffix(".weight")] + ".weight"


def gguf_header(s, infos):
    def text(x):
        return struct.pack("<Q", len(x)) + x.encode()

    integers = {"block_count": s["num_hidden_layers"], "context_length": 16384, "embedding_length": s["hidden_size"], "vocab_size": VOCABULARY,
                "feed_forward_length": s["intermediate_size"], "attention.head_count": s["num_attention_heads"],
                "attention.head_count_kv": s["num_key_value_heads"]}
    floats = {"attention.layer_norm_rms_epsilon": 1e-5, "rope.freq_base": 500000.0}
    out = struct.pack("<4sIQQ", b"GGUF", 3, len(infos), 1 + len(integers) + len(floats)) + text("general.architecture") + struct.pack("<I", 8) + text("llama")
    out += b"".join(text("llama." + k) + struct.pack("<II", 4, v) for k, v in integers.items())
    out += b"".join(text("llama." + k) + struct.pack("<If", 6, v) for k, v in floats.items())
    for name, dims, kind, offset in infos:
        out += text(name) + struct.pack("<I", len(dims)) + struct.pack(f"<{len(dims)}Q", *reversed(dims)) + struct.pack("<IQ", kind, offset)
    return out + b"\0" * (-len(out) % GGUF_ALIGNMENT)


def make_q4_0(s, path):
    infos, offset = [], 0
    for name, dims in tensors(s):
        size = 4 * dims[0] if len(dims) == 1 else dims[0] * dims[1] // 32 * 18
        infos.append((gguf_name(name), dims, GGUF_F32 if len(dims) == 1 else GGUF_Q4_0, offset))
        offset += size + -size % GGUF_ALIGNMENT
    with open(path + ".part", "wb") as f:
        f.write(gguf_header(s, infos))
        for _, dims, kind, _ in infos:
            if kind == GGUF_F32:
                data = torch.ones(dims).numpy().tobytes()
            else:      # d (q - 8): q is any of 16, so that its deviation is 4.6 d
                blocks = torch.randint(0, 256, (dims[0] * dims[1] // 32, 18), device=DEVICE, dtype=torch.uint8)
                blocks[:, :2] = torch.tensor([dims[1] ** -0.5 / 4.6], dtype=torch.float16).view(torch.uint8).to(DEVICE)
                data = blocks.cpu().numpy().tobytes()
            f.write(data + b"\0" * (-len(data) % GGUF_ALIGNMENT))
    os.rename(path + ".part", path)


def main():
    shape, folder = SHAPES[sys.argv[1]], sys.argv[2]
    if sys.argv[3:] == ["q4_0"]:
        os.makedirs(folder, exist_ok=True)
        torch.manual_seed(1)
        if not os.path.exists(folder + "/model.gguf"):
            make_q4_0(shape, folder + "/model.gguf")
        return
    if os.path.exists(folder + "/config.json"):
        return
    os.makedirs(folder, exist_ok=True)
    torch.manual_seed(1)
    made = {}
    for name, dims in tensors(shape):
        made[name] = torch.ones(dims, dtype=torch.bfloat16) if len(dims) == 1 else \
            (torch.randn(dims, device=DEVICE, dtype=torch.bfloat16) * dims[1] ** -0.5).cpu()
    save_file(made, folder + "/model.safetensors", metadata={"format": "pt"})
    config = dict(shape, architectures=["LlamaForCausalLM"], model_type="llama", vocab_size=VOCABULARY, max_position_embeddings=16384,
                  rms_norm_eps=1e-5, rope_theta=500000.0, hidden_act="silu", tie_word_embeddings=False, torch_dtype="bfloat16",
                  attention_bias=False, mlp_bias=False, head_dim=shape["hidden_size"] // shape["num_attention_heads"])
    with open(folder + "/config.json", "w") as f:
        json.dump(config, f)


main()
