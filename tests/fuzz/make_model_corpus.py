#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes the small valid and nearly valid inputs of corpus/gguf, gguf_parts, safetensors and model_config, beside this script."""
import json
import struct
from pathlib import Path

HERE = Path(__file__).parent / "corpus"
U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
FORMATS = {U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f", BOOL: "B", U64: "Q", I64: "q", F64: "d"}
# number, block elements, block bytes
TYPES = {"F32": (0, 1, 4), "F16": (1, 1, 2), "BF16": (30, 1, 2), "Q8_0": (8, 32, 34), "Q4_0": (2, 32, 18), "Q4_1": (3, 32, 20), "Q5_0": (6, 32, 22),
         "Q5_1": (7, 32, 24), "Q4_K": (12, 256, 144), "Q5_K": (13, 256, 176), "Q6_K": (14, 256, 210),
         "Q2_K": (10, 256, 84), "Q3_K": (11, 256, 110), "IQ4_NL": (20, 32, 18), "IQ4_XS": (23, 256, 136), "MXFP4": (39, 32, 17),
         "TQ1_0": (34, 256, 54), "TQ2_0": (35, 256, 66), "NVFP4": (40, 64, 36),
         "IQ1_S": (19, 256, 50), "IQ1_M": (29, 256, 56), "IQ2_XXS": (16, 256, 66), "IQ2_XS": (17, 256, 74), "IQ2_S": (22, 256, 82),
         "IQ3_XXS": (18, 256, 98), "IQ3_S": (21, 256, 110)}


def text(s):
    return struct.pack("<Q", len(s)) + s.encode()


def value(kind, v):
    return text(v) if kind == STRING else struct.pack("<" + FORMATS[kind], v)


def entry(key, kind, v):
    if isinstance(v, list):
        return text(key) + struct.pack("<IIQ", ARRAY, kind, len(v)) + b"".join(value(kind, x) for x in v)
    return text(key) + struct.pack("<I", kind) + value(kind, v)


def gguf(entries, tensors, version=3, alignment=32, cut=0):
    head, data = b"", b""
    for name, kind, dims in tensors:
        number, elements, size = TYPES[kind]
        count = 1
        for d in dims:
            count *= d
        head += text(name) + struct.pack("<I", len(dims)) + b"".join(struct.pack("<Q", d) for d in dims)
        head += struct.pack("<IQ", number, len(data))
        data += bytes(count // elements * size)
        data += bytes(-len(data) % alignment)
    out = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(entries)) + b"".join(entry(*e) for e in entries) + head
    out += bytes(-len(out) % alignment) + data
    return out[: len(out) - cut]


def model(family, matrix="F32", vocab=3, **extra):
    sizes = {"block_count": 1, "context_length": 16, "embedding_length": 8, "feed_forward_length": 12, "attention.head_count": 2,
             "attention.head_count_kv": 1}
    entries = [("general.architecture", STRING, family)] + [("%s.%s" % (family, k), U32, v) for k, v in sizes.items()]
    entries.append(("%s.attention.layer_norm_rms_epsilon" % family, F32, 1e-5))
    entries.append(("tokenizer.ggml.tokens", STRING, ["a", "b", "[PAD2]"]))
    entries.append(("tokenizer.ggml.token_type", I32, [1, 1, 5]))
    entries += [(k.replace("__", "."), *v) for k, v in extra.items()]
    tensors = [("token_embd.weight", matrix, [8, vocab]), ("output_norm.weight", "F32", [8]), ("blk.0.attn_norm.weight", "F32", [8]),
               ("blk.0.ffn_norm.weight", "F32", [8]), ("blk.0.attn_q.weight", matrix, [8, 8]), ("blk.0.attn_k.weight", matrix, [8, 4]),
               ("blk.0.attn_v.weight", matrix, [8, 4]), ("blk.0.attn_output.weight", matrix, [8, 8]), ("blk.0.ffn_gate.weight", matrix, [8, 12]),
               ("blk.0.ffn_up.weight", matrix, [8, 12]), ("blk.0.ffn_down.weight", matrix, [12, 8])]
    if family == "qwen2":
        tensors += [("blk.0.attn_%s.bias" % x, "F32", [8 if x == "q" else 4]) for x in "qkv"]
    return entries, tensors


def gguf_corpus():
    files = {"llama": gguf(*model("llama")), "qwen2_f16": gguf(*model("qwen2", "F16")), "qwen3_bf16": gguf(*model("qwen3", "BF16")),
             "v2": gguf(*model("llama"), version=2), "v1": gguf(*model("llama"), version=1), "cut": gguf(*model("llama"), cut=9),
             "linear": gguf(*model("llama", **{"llama__rope__scaling__type": (STRING, "linear"), "llama__rope__scaling__factor": (F32, 2.0)})),
             "yarn": gguf(*model("llama", **{"llama__rope__scaling__type": (STRING, "yarn")})),
             "yarn_whole": gguf(*model("qwen2", **{"qwen2__rope__scaling__type": (STRING, "yarn"), "qwen2__rope__scaling__factor": (F32, 4.0),
                                                   "qwen2__rope__scaling__original_context_length": (U32, 16),
                                                   "qwen2__rope__scaling__attn_factor": (F32, 1.5)})),
             "window": gguf(*model("llama", **{"llama__attention__sliding_window": (U32, 4)})),
             "bos": gguf(*model("llama", **{"tokenizer__ggml__bos_token_id": (U32, 1), "llama__attention__key_length": (U32, 4)})),
             "gemma": gguf(*model("gemma2")), "empty": gguf([], []), "huge_counts": b"GGUF" + struct.pack("<IQQ", 3, 2**63, 2**61)}
    entries, tensors = model("llama")
    pieces = ["<unk>", "<s>", "</s>", "\u2581", "t", "h", "e", "c", "a", "\u2581t", "he", "\u2581the", "  ", "<0x0A>", "at", "[PAD]"]
    spm = {"tokenizer__ggml__model": (STRING, "llama"), "tokenizer__ggml__scores": (F32, [-float(i % 11) for i in range(len(pieces))])}
    for name, more in (("spm", {}), ("spm_plain", {"tokenizer__ggml__add_space_prefix": (BOOL, False)}),
                       ("spm_few_scores", {"tokenizer__ggml__scores": (F32, [0.0])}), ("spm_nan", {"tokenizer__ggml__scores": (F32, [float("nan")] * 16)})):
        whole = dict((k, v) for k, *v in model("llama", **{**spm, **more})[0])
        whole["tokenizer.ggml.tokens"] = [STRING, pieces]
        whole["tokenizer.ggml.token_type"] = [I32, [2, 3, 3] + [1] * 9 + [4, 6, 1, 5]]
        if name == "spm_plain":       # every byte has a token
            whole["tokenizer.ggml.tokens"] = [STRING, pieces[:13] + ["<0x%02X>" % b for b in range(256)]]
            whole["tokenizer.ggml.token_type"] = [I32, [2, 3, 3] + [1] * 9 + [4] + [6] * 256]
            whole["tokenizer.ggml.scores"] = [F32, [0.0] * (13 + 256)]
        files[name] = gguf([(k, *v) for k, v in whole.items()], [])
    longrope = model("llama", **{"llama__rope__scaling__type": (STRING, "longrope"), "llama__rope__scaling__original_context_length": (U32, 16)})
    files["longrope"] = gguf(longrope[0], longrope[1] + [("rope_factors_long.weight", "F32", [2]), ("rope_factors_short.weight", "F32", [2])])
    files["freqs"] = gguf(entries, tensors + [("rope_freqs.weight", "F32", [2])])
    files["repeated"] = gguf(entries + entries[:1], tensors)
    files["repeated_tensor"] = gguf(entries, tensors + tensors[:1])
    for kind, (_, elements, _) in TYPES.items():
        files["type_" + kind.lower()] = gguf([("general.architecture", STRING, "llama")], [("t", kind, [elements, 2]), ("u", kind, [elements])])
    for alignment in (0, 8, 24, 4096, 8192):
        files["align_%d" % alignment] = gguf([("general.alignment", U32, alignment)], [("t", "F32", [3])], alignment=max(alignment, 8))
    for kind in FORMATS:
        files["value_%d" % kind] = gguf([("k", kind, 1), ("list", kind, [1, 0, 1])], [])
    return files


def gguf_parts_corpus():
    """Files of one model, one after the other."""
    entries, tensors = model("llama")

    def parts(n, total=None, counts=None, numbers=None, share=None):
        out = b""
        for i in range(n):
            split = [("split.no", U16, (numbers or range(n))[i]), ("split.count", U16, (counts or [n] * n)[i]),
                     ("split.tensors.count", I32, len(tensors) if total is None else total)]
            mine = tensors[i::n] if share is None else share[i]
            out += gguf((entries if i == 0 else []) + split, mine)
        return out
    return {"two": parts(2), "three": parts(3), "one": parts(1), "two_of_three": parts(2, counts=[3, 3]), "counts_differ": parts(2, counts=[2, 3]),
            "same_number": parts(2, numbers=[0, 0]), "other_order": parts(2, numbers=[1, 0]), "too_few": parts(2, total=99),
            "twice": parts(2, total=2 * len(tensors), share=[tensors, tensors]), "empty_first": parts(2, share=[[], tensors]),
            "no_keys": gguf(entries, tensors) + gguf([], []), "cut": parts(2)[:-9], "second_is_none": parts(2, counts=[2, 2])[:700] + b"GGUF"}


def safetensors(header, n, cut=0, raw=None):
    body = (raw if raw is not None else json.dumps(header, separators=(",", ":"))).encode()
    body += b" " * (-len(body) % 8)
    out = struct.pack("<Q", len(body)) + body + bytes(range(256)) * (n // 256 + 1)
    return out[: 8 + len(body) + n - cut]


def safetensors_corpus():
    def t(dtype, shape, begin, end):
        return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    two = {"__metadata__": {"format": "pt"}, "a": t("F32", [2], 0, 8), "b": t("BF16", [2, 3], 8, 20)}
    files = {"two": safetensors(two, 20), "cut": safetensors(two, 20, 1), "longer": safetensors(two, 21), "empty": safetensors({}, 0),
             "gap": safetensors({"a": t("F32", [1], 0, 4), "b": t("F32", [1], 8, 12)}, 12),
             "overlap": safetensors({"a": t("F32", [2], 0, 8), "b": t("F32", [2], 4, 12)}, 12),
             "twice": safetensors(None, 8, raw='{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}'),
             "zero": safetensors({"a": t("F32", [0, 5], 0, 0), "b": t("F16", [], 0, 2)}, 2),
             "deep": safetensors(None, 0, raw='{"a":' + "[" * 40 + "]" * 40 + "}"), "huge": struct.pack("<Q", 2**64 - 8) + bytes(8),
             "wide": safetensors({"a": t("F32", [2**40, 2**40], 0, 0)}, 0), "odd": safetensors({"a": t("F4", [9], 0, 5), "b": t("I64", [1], 5, 13)}, 13)}
    return files


def config_corpus():
    base = dict(architectures=["LlamaForCausalLM"], model_type="llama", hidden_size=64, intermediate_size=128, num_hidden_layers=2, vocab_size=100,
                num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512, rms_norm_eps=1e-5, hidden_act="silu", bos_token_id=1,
                eos_token_id=[2, 3], tie_word_embeddings=True, rope_theta=10000.0)
    llama3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192)
    changes = {"llama": {}, "mistral": dict(architectures=["MistralForCausalLM"], sliding_window=None), "qwen2": dict(architectures=["Qwen2ForCausalLM"]),
               "qwen3": dict(architectures=["Qwen3ForCausalLM"], head_dim=32, layer_types=["full_attention"] * 2), "linear": dict(
               rope_scaling=dict(type="linear", factor=2)), "llama3": dict(rope_scaling=llama3), "new": dict(rope_parameters=dict(llama3, rope_theta=5e5)),
               "yarn": dict(rope_scaling=dict(type="yarn", factor=2)), "yarn_whole": dict(rope_scaling=dict(
                   rope_type="yarn", factor=4.0, original_max_position_embeddings=128, beta_fast=16, beta_slow=2.0, truncate=False, mscale=0.7,
                   mscale_all_dim=1.0, attention_factor=1.25)), "dynamic": dict(rope_scaling=dict(type="dynamic", factor=2.0)),
               "longrope": dict(original_max_position_embeddings=128, rope_parameters=dict(
                   rope_type="longrope", factor=4.0, short_factor=[1.0, 1.5] * 4, long_factor=[2, 4] * 4, rope_theta=5e4)), "gelu": dict(hidden_act="gelu"), "window": dict(
               architectures=["MistralForCausalLM"], sliding_window=64), "negative": dict(head_dim=-1), "big": dict(vocab_size=2**40),
               "partial": dict(partial_rotary_factor=0.25), "bias": dict(attention_bias=True), "biases": dict(attention_bias=True, mlp_bias=True), "real": dict(hidden_size=64.0),
               "gpt2": dict(architectures=["GPT2LMHeadModel"], n_embd=64, n_layer=2, n_head=4, n_positions=512, n_inner=None),
               "phi3": dict(architectures=["Phi3ForCausalLM"], model_type="phi3", partial_rotary_factor=0.5, original_max_position_embeddings=128,
                            sliding_window=99, rope_scaling=dict(type="longrope", short_factor=[1.0, 1.5] * 2, long_factor=[2, 4] * 2)),
               "smollm3": dict(architectures=["SmolLM3ForCausalLM"], model_type="smollm3", no_rope_layers=[1, 0], use_sliding_window=False),
               "smollm3_interval": dict(architectures=["SmolLM3ForCausalLM"], model_type="smollm3", no_rope_layer_interval=3),
               "granite": dict(architectures=["GraniteForCausalLM"], model_type="granite", embedding_multiplier=12.0, logits_scaling=8,
                               residual_multiplier=0.22, attention_multiplier=0.015625),
               "bert": dict(architectures=["BertForMaskedLM"], hidden_act="gelu", type_vocab_size=2, layer_norm_eps=1e-12)}
    return {name: json.dumps(dict(base, **change)).encode() for name, change in changes.items()}


for folder, files in (("gguf", gguf_corpus()), ("gguf_parts", gguf_parts_corpus()), ("safetensors", safetensors_corpus()), ("model_config", config_corpus())):
    (HERE / folder).mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (HERE / folder / name).write_bytes(content)
