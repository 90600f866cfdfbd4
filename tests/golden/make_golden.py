#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes the golden files of tests/golden with PyTorch and transformers, the reference that others use.

    make_golden.py --teacher SmolLM2-135M-Instruct.Q4_1.gguf     everything
    make_golden.py tiny train                                    only the named parts

Needs the packages below; where they are not importable it makes a virtual environment (--venv) and installs them there.
The tests read only what is committed, so this runs when a golden value is to be added, never during `make check`.

Files (little-endian; u32, f32, f64):
  teacher.bin        magic "KDGT", n_texts, n_ids, ids[n_ids] (a seeded set of vocabulary ids); per text: n_tokens, tokens, n_rows,
                     then per row: position, lse f64, own-token logit f32 (NaN at the last token), 64 top ids, 64 top logits f32,
                     n_ids logits f32. Whole rows would be 1 GB: the relative logit error (norm of the difference over norm) is taken
                     over the seeded ids of all rows of a text.
  models/NAME/       a Hugging Face directory with seeded random weights (of some also model.gguf, the same in GGUF), and golden.bin: magic "KDGM", n_sequences, V; per sequence:
                     n_tokens, tokens, logits f32 (n_tokens, V), computed in float64
  train*.bin         magic "KDGB": see train() below
  models/NAME/tokenizer.json    of the models that signals() serves: 96 tokens, one per printable character
  models/NAME/signals.bin, mixture.bin, teacher_signals.bin    see signals(), mixture() and teacher_signals() below
"""
import argparse
import hashlib
import json
import math
import os
import struct
import subprocess
import sys
from pathlib import Path

PACKAGES = ["torch==2.15.0", "transformers==5.23.0", "gguf==0.19.0", "safetensors==0.8.0", "numpy==2.4.6"]
HERE = Path(__file__).resolve().parent
TEACHER_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

# One length per text of texts.txt (longer texts are cut): 32 to 1024, with neighbours of the sizes at which tiles end.
LENGTHS = [32, 48, 64, 65, 97, 80, 128, 200, 129, 192, 160, 176, 320, 256, 350, 512, 448, 900, 768, 1024]
N_IDS, N_ROWS, TOP_K = 128, 16, 64


def u32(*values):
    return struct.pack(f"<{len(values)}I", *values)


def f32(array):
    import numpy
    return numpy.ascontiguousarray(array, dtype="<f4").tobytes()


def f64(*values):
    return struct.pack(f"<{len(values)}d", *values)


def install(venv):
    """Re-runs this script in a virtual environment that has the pinned packages."""
    python = venv / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    subprocess.run([str(python), "-m", "pip", "install", *PACKAGES], check=True)
    os.execv(str(python), [str(python), *sys.argv])


def packages_present():
    from importlib.metadata import PackageNotFoundError, version
    try:
        return all(version(p.split("==")[0]).split("+")[0] == p.split("==")[1] for p in PACKAGES)
    except PackageNotFoundError:
        return False


# (a) The real teacher, float32, on 20 texts.
def teacher(path):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != TEACHER_SHA256:
        sys.exit(f"{path}: SHA-256 {digest}, wanted {TEACHER_SHA256}")
    where = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    tokenizer = AutoTokenizer.from_pretrained(**where)
    model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32).eval()
    texts = (HERE / "texts.txt").read_text().rstrip("\n").split("\n%%\n")
    assert len(texts) == len(LENGTHS)
    generator = torch.Generator().manual_seed(1)
    V = model.config.vocab_size
    ids = torch.randperm(V, generator=generator)[:N_IDS].sort().values
    out = b"KDGT" + u32(len(texts), N_IDS, *ids.tolist())
    for text, length in zip(texts, LENGTHS):
        tokens = tokenizer(text, add_special_tokens=False).input_ids[:length]
        assert len(tokens) == length, (len(tokens), length)
        with torch.no_grad():
            logits = model(torch.tensor([tokens])).logits[0]
        rows = sorted({0, length - 1, *torch.randperm(length, generator=generator)[: N_ROWS - 2].tolist()})
        out += u32(length, *tokens, len(rows))
        for row in rows:
            z = logits[row]
            lse = torch.logsumexp(z.double(), 0).item()
            own = z[tokens[row + 1]].item() if row + 1 < length else float("nan")
            order = sorted(range(V), key=lambda j, z=z.tolist(): (-z[j], j))[:TOP_K]
            out += u32(row) + f64(lse) + f32([own]) + u32(*order) + f32(z[order]) + f32(z[ids])
        print(f"{length} tokens: mean lse {torch.logsumexp(logits.double(), 1).mean():.3f}", flush=True)
    (HERE / "teacher.bin").write_bytes(out)


# (b) Tiny models: one for each thing an architecture may have.
COMMON = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, vocab_size=96,
              max_position_embeddings=128, rms_norm_eps=1e-5, bos_token_id=1, eos_token_id=2)
GPT2 = dict(n_embd=32, n_layer=2, n_head=4, vocab_size=96, n_positions=128, bos_token_id=1, eos_token_id=2)
BERT = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, vocab_size=96, max_position_embeddings=128,
            pad_token_id=0)


def plain_rope(theta=10000.0):
    return {"rope_type": "default", "rope_theta": theta}


def tiny_models():
    import torch
    from transformers import BertConfig, Gemma2Config, Gemma3Config, Gemma3TextConfig, GPT2Config, LlamaConfig, MistralConfig, MixtralConfig, Qwen2Config
    from transformers import GraniteConfig, Phi3Config, Qwen3Config, Qwen3MoeConfig, SmolLM3Config
    llama3 = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
              "original_max_position_embeddings": 32}
    linear = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
    return {
        "llama": (LlamaConfig(**COMMON, tie_word_embeddings=False, rope_parameters=plain_rope()), torch.float32),
        "llama-tied": (LlamaConfig(**COMMON, tie_word_embeddings=True, rope_parameters=plain_rope(100000.0)), torch.bfloat16),
        "llama3": (LlamaConfig(**COMMON, tie_word_embeddings=False, rope_parameters=llama3), torch.float16),
        "linear": (LlamaConfig(**COMMON, tie_word_embeddings=True, rope_parameters=linear), torch.bfloat16),
        "qwen2": (Qwen2Config(**COMMON, tie_word_embeddings=False, rope_parameters=plain_rope()), torch.bfloat16),
        "qwen3": (Qwen3Config(**COMMON, head_dim=16, tie_word_embeddings=True, rope_parameters=plain_rope()), torch.bfloat16),
        "train": (LlamaConfig(**{**COMMON, "hidden_size": 16, "intermediate_size": 24, "vocab_size": 64}, tie_word_embeddings=False,
                              rope_parameters=plain_rope()), torch.float32),
        "gpt2": (GPT2Config(**GPT2), torch.float32),
        "gpt2-old": (GPT2Config(**{**GPT2, "n_inner": 40, "activation_function": "gelu"}, tie_word_embeddings=False), torch.bfloat16),
        "bert": (BertConfig(**BERT), torch.float32),
        "bert-old": (BertConfig(**{**BERT, "hidden_act": "gelu_new", "type_vocab_size": 1}), torch.bfloat16),
        "train-gpt2": (GPT2Config(**{**GPT2, "n_embd": 16, "n_inner": 24, "vocab_size": 64}), torch.float32),
        "train-bert": (BertConfig(**{**BERT, "hidden_size": 16, "intermediate_size": 24, "vocab_size": 64}), torch.float32),
        # new ones go to the end: a model's seed is its place
        "train-mistral": (MistralConfig(**{**COMMON, "hidden_size": 16, "intermediate_size": 24, "vocab_size": 64}, sliding_window=6,
                                        tie_word_embeddings=False, rope_parameters=plain_rope()), torch.float32),
        "mistral": (MistralConfig(**COMMON, sliding_window=8, tie_word_embeddings=False, rope_parameters=plain_rope()), torch.bfloat16),
        "qwen3-window": (Qwen3Config(**{**COMMON, "num_hidden_layers": 3}, head_dim=16, use_sliding_window=True, sliding_window=5,
                                     layer_types=["sliding_attention", "full_attention", "sliding_attention"], tie_word_embeddings=True,
                                     rope_parameters=plain_rope()), torch.float32),
        "gemma2": (Gemma2Config(**{**COMMON, "num_hidden_layers": 3}, head_dim=16, query_pre_attn_scalar=20, sliding_window=6,
                                attn_logit_softcapping=2.0, final_logit_softcapping=3.0, rope_parameters=plain_rope()), torch.float32),
        "gemma3": (Gemma3TextConfig(**{**COMMON, "num_hidden_layers": 3}, head_dim=16, query_pre_attn_scalar=16, sliding_window=6,
                                    layer_types=["sliding_attention", "full_attention", "sliding_attention"],
                                    rope_parameters={"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
                                                     "sliding_attention": plain_rope(500.0)}), torch.bfloat16),
        "mixtral": (MixtralConfig(**{**COMMON, "intermediate_size": 24}, num_local_experts=4, num_experts_per_tok=2, sliding_window=7,
                                  tie_word_embeddings=False, rope_parameters=plain_rope()), torch.bfloat16),
        "qwen3-moe": (Qwen3MoeConfig(**COMMON, head_dim=16, moe_intermediate_size=16, num_experts=6, num_experts_per_tok=3,
                                     norm_topk_prob=False, tie_word_embeddings=False, rope_parameters=plain_rope()), torch.float32),
        # As GGUF can say them: queries scaled by the size of a head, experts' probabilities normalised. Kept in GGUF alone.
        "gemma2-file": (Gemma2Config(**{**COMMON, "num_hidden_layers": 3}, head_dim=16, query_pre_attn_scalar=16, sliding_window=6,
                                     attn_logit_softcapping=2.0, final_logit_softcapping=3.0, rope_parameters=plain_rope()), torch.bfloat16),
        "qwen3-moe-file": (Qwen3MoeConfig(**COMMON, head_dim=16, moe_intermediate_size=16, num_experts=6, num_experts_per_tok=3,
                                          norm_topk_prob=True, tie_word_embeddings=False, rope_parameters=plain_rope()), torch.bfloat16),
        # As published: what is as in the class is not in the file (published_config).
        "gemma3-vision": (vision(Gemma3Config, num_hidden_layers=6, rope_parameters={
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
            "sliding_attention": plain_rope()}), torch.bfloat16),
        "gemma3-inner": (vision(Gemma3Config, num_hidden_layers=1, layer_types=["sliding_attention"]), torch.bfloat16),
        "yarn": (LlamaConfig(**COMMON, tie_word_embeddings=False, rope_parameters={
            "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32}), torch.bfloat16),
        "yarn-open": (Qwen3Config(**COMMON, head_dim=16, tie_word_embeddings=True, rope_parameters={
            "rope_type": "yarn", "rope_theta": 500.0, "factor": 3.0, "original_max_position_embeddings": 40, "beta_fast": 4.0, "beta_slow": 0.5,
            "truncate": False, "mscale": 0.7, "mscale_all_dim": 2.0}), torch.float16),
        "dynamic": (MistralConfig(**{**COMMON, "max_position_embeddings": 70}, sliding_window=None, tie_word_embeddings=False,
                                  rope_parameters={"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.5}), torch.bfloat16),
        "longrope": (LlamaConfig(**COMMON, tie_word_embeddings=True, rope_parameters={
            "rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 32, "short_factor": [1.0, 1.2, 1.5, 2.5],
            "long_factor": [1.0, 2.0, 4.0, 8.0]}), torch.bfloat16),
        "bias": (LlamaConfig(**COMMON, attention_bias=True, mlp_bias=True, tie_word_embeddings=False, rope_parameters=plain_rope()), torch.bfloat16),
        "train-bias": (LlamaConfig(**{**COMMON, "hidden_size": 16, "intermediate_size": 24, "vocab_size": 64}, attention_bias=True, mlp_bias=True,
                                   tie_word_embeddings=False, rope_parameters={"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0,
                                                                               "original_max_position_embeddings": 16}), torch.float32),
        # As Phi-4-mini and Phi-3-mini-4k: a part of each head rotates, by factors; all of it, in a window.
        "phi3": (Phi3Config(**{**COMMON, "hidden_size": 64}, pad_token_id=0, tie_word_embeddings=True, original_max_position_embeddings=32,
                            rope_parameters={"rope_type": "longrope", "rope_theta": 10000.0, "partial_rotary_factor": 0.75,
                                             "short_factor": [1.0, 1.1, 1.25, 1.5, 2.0, 3.0], "long_factor": [1.0, 2.0, 4.0, 8.0, 9.0, 10.0]}),
                 torch.bfloat16),
        "phi3-window": (Phi3Config(**COMMON, pad_token_id=0, tie_word_embeddings=False, sliding_window=7, rope_parameters=plain_rope()),
                        torch.float32),
        "smollm3": (SmolLM3Config(**{**COMMON, "num_hidden_layers": 5}, pad_token_id=0, tie_word_embeddings=True, rope_parameters=plain_rope(5000.0)),
                    torch.bfloat16),
        "smollm3-list": (SmolLM3Config(**{**COMMON, "num_hidden_layers": 3}, pad_token_id=0, attention_bias=True, no_rope_layers=[0, 1, 0, 1],
                                       tie_word_embeddings=False, rope_parameters={"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0,
                                                                                   "original_max_position_embeddings": 32}), torch.float32),
        "granite": (GraniteConfig(**COMMON, attention_bias=True, tie_word_embeddings=True, embedding_multiplier=3.0, residual_multiplier=0.4,
                                  attention_multiplier=0.2, logits_scaling=6.0, rope_parameters=plain_rope()), torch.bfloat16),
    }


def vision(configuration, **text):
    """A Gemma 3 with eyes, which no golden value looks through."""
    return configuration(text_config={**dict(hidden_size=32, intermediate_size=16, vocab_size=96, head_dim=8, query_pre_attn_scalar=8,
                                             sliding_window=6), **text},
                         vision_config=dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, image_size=4,
                                            patch_size=2, vision_use_head=False), mm_tokens_per_image=4)


def open_model(where, **options):
    """A model by the class that its config.json names."""
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM
    masked = "bert" in json.loads((where / "config.json").read_text())["model_type"]
    return (AutoModelForMaskedLM if masked else AutoModelForCausalLM).from_pretrained(where, **options)


def randomise(model, seed):
    """Weights that give logits worth comparing: about unit variance through every layer, gains and biases that matter."""
    import torch
    generator = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        noise = torch.randn(p.shape, generator=generator, dtype=torch.float64)
        if p.dim() == 1:
            p.data = noise * 0.5 if name.endswith("bias") else ("gemma" not in model.config.model_type) + 0.3 * noise
        else:
            inputs = p.shape[0] if ".c_" in name else p.shape[-1]       # GPT-2 keeps its matrices transposed; experts come stacked
            p.data = noise * (1.0 if "embed" in name or "wte" in name or "wpe" in name else 1.5 / inputs ** 0.5)


def old_style_config(path):
    """config.json as transformers 4 wrote it, which most published models have: rope_theta and rope_scaling at the top."""
    config = json.loads(path.read_text())
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    config["torch_dtype"] = config.pop("dtype")
    path.write_text(json.dumps(config, indent=2) + "\n")


def published_config(path):
    """config.json of a Gemma 3 with eyes, as published: most of what is as in transformers' class is left out."""
    config = json.loads(path.read_text())
    kept = ("hidden_size", "intermediate_size", "model_type", "num_hidden_layers", "sliding_window", "vocab_size", "head_dim",
            "query_pre_attn_scalar")
    config["text_config"] = {**{name: config["text_config"][name] for name in kept}, "rope_scaling": {"factor": 8.0, "rope_type": "linear"}}
    config["eos_token_id"] = [1, 106]
    del config["tie_word_embeddings"]
    path.write_text(json.dumps(config, indent=2) + "\n")


def inner_names(where):
    """As transformers 4.52 to 4.57 saved what now has its published names again."""
    from safetensors.torch import load_file, save_file
    path = where / "model.safetensors"
    new = {"model." + name.replace("language_model.model.", "language_model."): t for name, t in load_file(path).items()}
    save_file(new, path, metadata={"format": "pt"})


def old_style_names(where):
    """Tensors as the first published GPT-2 and BERT have them: other names, and what no masked or causal head reads."""
    import torch
    from safetensors.torch import load_file, save_file
    path = where / "model.safetensors"
    old = {}
    for name, t in load_file(path).items():
        name = name.removeprefix("transformer.")
        old[name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")] = t
    if "wte.weight" in old:
        old.update({f"h.{i}.attn.bias": torch.ones(1, 1, 4, 4) for i in range(2)})
    else:
        old.update({"bert.pooler.dense.weight": torch.ones(32, 32), "cls.seq_relationship.bias": torch.ones(2),
                    "bert.embeddings.position_ids": torch.arange(128)[None]})
    save_file(old, path, metadata={"format": "pt"})


# Up to where a scaling begins to matter, or to the last length that is served.
LONGER = {"llama3": (1, 3, 22, 70), "yarn": (1, 3, 22, 70), "yarn-open": (1, 3, 22, 70), "dynamic": (1, 3, 22, 70), "longrope": (1, 9, 31, 32), "phi3": (1, 9, 31, 32)}


def tiny(only=None):
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM
    for seed, (name, (config, dtype)) in enumerate(tiny_models().items()):
        if only and name not in only:
            continue
        where = HERE / "models" / name
        model = (AutoModelForMaskedLM if "bert" in name else AutoModelForCausalLM).from_config(config, dtype=torch.float64)
        randomise(model, seed)
        model.to(dtype).save_pretrained(where, max_shard_size="24KB" if name == "llama3" else "5GB")
        for extra in where.glob("generation_config.json"):
            extra.unlink()
        if name in ("llama", "llama3", "qwen2", "phi3-window"):
            old_style_config(where / "config.json")
        if name.endswith("-old"):
            old_style_names(where)
        if name == "gemma3-vision":
            published_config(where / "config.json")
        if name == "gemma3-inner":
            inner_names(where)
        # capped scores are computed by the plain form alone
        plain = {"experts_implementation": "eager"} if "num_experts_per_tok" in config.to_dict() else {}      # the others know no float64
        if name in GGUF_NAMES:
            write_gguf(name, config, where)
        model = open_model(where, dtype=torch.float64, attn_implementation="eager" if "gemma" in name else "sdpa", **plain).eval()
        generator = torch.Generator().manual_seed(100 + seed)
        V = config.get_text_config().vocab_size
        out = b"KDGM" + u32(4, V)
        for length in LONGER.get(name, (1, 3, 9, 22)):
            tokens = torch.randint(0, V, (length,), generator=generator)
            with torch.no_grad():
                logits = model(tokens[None]).logits[0]
            assert logits.dtype == torch.float64
            out += u32(length, *tokens.tolist()) + f32(logits)
        (where / "golden.bin").write_bytes(out)
        for extra in (where.iterdir() if name.endswith("-file") else []):
            if extra.name not in ("golden.bin", "model.gguf"):
                extra.unlink()
        print(f"{name}: {sum(p.numel() for p in model.parameters())} parameters, logits of deviation {logits.std():.2f}", flush=True)


GGUF_NAMES = {"gemma3": "gemma3", "mixtral": "llama", "gemma2-file": "gemma2", "qwen3-moe-file": "qwen3moe", "linear": "llama", "qwen2": "qwen2",
              "qwen3": "qwen3", "gpt2": "gpt2", "yarn": "llama", "bias": "llama", "phi3": "phi3", "phi3-window": "phi3", "smollm3": "smollm3", "granite": "granite"}


def gguf_tensors_gpt2(state):
    """As llama.cpp's converter writes them: matrices turned round."""
    names = {"wte": "token_embd", "wpe": "position_embd", "ln_f": "output_norm", "ln_1": "attn_norm", "attn.c_attn": "attn_qkv",
             "attn.c_proj": "attn_output", "ln_2": "ffn_norm", "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down"}
    for full, t in state.items():
        stem, what = full.removeprefix("transformer.").rsplit(".", 1)
        prefix = ""
        if stem.startswith("h."):
            _, i, stem = stem.split(".", 2)
            prefix = "blk.%s." % i
        yield prefix + names[stem] + "." + what, (t.T if ".c_" in full and what == "weight" else t).contiguous().float().numpy()


def gguf_tensors(name, config, state):
    """As llama.cpp's converter writes them: gains whole, experts stacked, llama's q and k with the pairs that rotate side by side."""
    import numpy
    layer = {"input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
             "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm", "self_attn.o_proj": "attn_output",
             "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
             "block_sparse_moe.gate": "ffn_gate_inp", "mlp.gate": "ffn_gate_inp", "self_attn.qkv_proj": "attn_qkv", "mlp.gate_up_proj": "ffn_up"}
    if "gemma" in name:
        layer.update({"post_attention_layernorm": "post_attention_norm", "pre_feedforward_layernorm": "ffn_norm",
                      "post_feedforward_layernorm": "post_ffw_norm"})
    expert = {"w1": "ffn_gate_exps", "w3": "ffn_up_exps", "w2": "ffn_down_exps", "gate_proj": "ffn_gate_exps", "up_proj": "ffn_up_exps",
              "down_proj": "ffn_down_exps"}
    top = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    stacks = {}
    for full, t in state.items():
        x = t.float().numpy()
        x = x + 1 if "gemma" in name and x.ndim == 1 else x
        stem, what = full.rsplit(".", 1)
        if stem in top:
            yield top[stem] + ".weight", x
            continue
        _, _, i, rest = stem.split(".", 3)
        if ".experts." in rest:
            stacks.setdefault((i, expert[rest.rsplit(".", 1)[1]]), {})[int(rest.split(".")[-2])] = x
            continue
        heads = {"self_attn.q_proj": config.num_attention_heads, "self_attn.k_proj": config.num_key_value_heads}.get(rest)
        if heads and GGUF_NAMES[name] in ("llama", "smollm3", "granite"):
            x = x.reshape(heads, 2, x.shape[0] // heads // 2, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)
        yield f"blk.{i}.{layer[rest]}.{what}", x
    for (i, what), parts in stacks.items():
        yield f"blk.{i}.{what}.weight", numpy.stack([parts[e] for e in range(len(parts))])


def write_gguf(name, config, where):
    import gguf
    import numpy
    from safetensors.torch import load_file
    architecture = GGUF_NAMES[name]
    w = gguf.GGUFWriter(where / "model.gguf", architecture)
    w.add_block_count(config.num_hidden_layers)
    w.add_context_length(config.max_position_embeddings)
    w.add_embedding_length(config.hidden_size)
    w.add_feed_forward_length(4 * config.n_embd if name == "gpt2" else config.intermediate_size)
    w.add_head_count(config.num_attention_heads)
    if name == "gpt2":
        w.add_layer_norm_eps(config.layer_norm_epsilon)
    else:
        w.add_head_count_kv(config.num_key_value_heads)
        w.add_layer_norm_rms_eps(config.rms_norm_eps)
        w.add_key_length(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
    if name in ("linear", "qwen2", "qwen3", "bias"):
        w.add_rope_freq_base(config.rope_parameters["rope_theta"])
    if name == "linear":
        w.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        w.add_rope_scaling_factor(config.rope_parameters["factor"])
    if architecture == "granite":
        w.add_logit_scale(config.logits_scaling)
        w.add_residual_scale(config.residual_multiplier)
        w.add_embedding_scale(config.embedding_multiplier)
        w.add_attention_scale(config.attention_multiplier)
    if architecture in ("phi3", "smollm3", "granite"):
        w.add_rope_freq_base(config.rope_parameters["rope_theta"])
    if name == "phi3":      # without a type
        original = config.original_max_position_embeddings
        w.add_rope_dimension_count(12)
        w.add_rope_scaling_orig_ctx_len(original)
        w.add_rope_scaling_attn_factors((1 + math.log(config.max_position_embeddings / original) / math.log(original)) ** 0.5)
        for which in ("long", "short"):
            w.add_tensor(f"rope_factors_{which}.weight", numpy.array(config.rope_parameters[which + "_factor"], dtype=numpy.float32))
    if name == "yarn":
        w.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        w.add_rope_scaling_factor(config.rope_parameters["factor"])
        w.add_rope_scaling_orig_ctx_len(config.rope_parameters["original_max_position_embeddings"])
    if getattr(config, "sliding_window", None):
        w.add_sliding_window(config.sliding_window)
    if name == "gemma3":
        w.add_rope_freq_base(config.rope_parameters["full_attention"]["rope_theta"])
        w.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        w.add_rope_scaling_factor(config.rope_parameters["full_attention"]["factor"])
        w.add_float32("gemma3.rope.freq_base_swa", config.rope_parameters["sliding_attention"]["rope_theta"])
        w.add_uint32("gemma3.attention.sliding_window_pattern", 2)
    if architecture == "gemma2":
        w.add_attn_logit_softcapping(config.attn_logit_softcapping)
        w.add_final_logit_softcapping(config.final_logit_softcapping)
    if architecture == "qwen3moe":
        w.add_expert_feed_forward_length(config.moe_intermediate_size)
    if name == "mixtral" or architecture == "qwen3moe":
        w.add_expert_count(config.num_local_experts if name == "mixtral" else config.num_experts)
        w.add_expert_used_count(config.num_experts_per_tok)
    state = load_file(where / "model.safetensors")
    for tensor, x in gguf_tensors_gpt2(state) if name == "gpt2" else gguf_tensors(name, config, state):
        w.add_tensor(tensor, x)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


# (c) Every signal of a question, on models that have a tokenizer: what the engine answers end to end.
SIGNAL_MODELS = ["llama", "qwen2", "qwen3", "linear"]
SIGNAL_TEMPERATURES = [0.5, 1.0, 2.0, 15.0]


def character_tokenizer():
    """tokenizer.json of 96 tokens, as GPT-2 spells bytes: newline, then space to tilde."""
    vocab = {chr(256 + b) if b <= 32 else chr(b): i for i, b in enumerate([10, *range(32, 127)])}
    level = {"type": "ByteLevel", "trim_offsets": True, "use_regex": True}
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
            "pre_tokenizer": {**level, "add_prefix_space": False}, "post_processor": None, "decoder": {**level, "add_prefix_space": True},
            "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                      "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "vocab": vocab, "merges": []}}


def word_tokenizer():
    """tokenizer.json of 96 tokens, as BERT's: five special ones, letters and digits that begin and that go on, some words."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = [chr(c) for c in range(97, 123)]
    words = special + letters + ["##" + c for c in letters] + list("0123456789") + list(".,!?'-") + ["the", "cat", "dog", "and", "in", "ho", "##use"]
    words += ["garden", "a" * 8, "##er", "##ing", "##ed", "is", "was", "it", "of", "to", "on", "at", "by", "no", "we", "so", "me", "my", "up", "as"][: 96 - len(words)]
    special_tokens = {n: {"id": n, "ids": [i], "tokens": [n]} for i, n in enumerate(special)}
    single = [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "[SEP]", "type_id": 0}}]
    added = [{"id": i, "content": n, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
             for i, n in enumerate(special)]
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
            "normalizer": {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None, "lowercase": True},
            "pre_tokenizer": {"type": "BertPreTokenizer"},
            "post_processor": {"type": "TemplateProcessing", "single": single, "pair": single, "special_tokens": special_tokens},
            "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
            "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100,
                      "vocab": {w: i for i, w in enumerate(words)}}}


def golden_sequences(name):
    """The sequences of models/NAME/golden.bin."""
    data = (HERE / "models" / name / "golden.bin").read_bytes()
    n, V = struct.unpack_from("<2I", data, 4)
    at, out = 12, []
    for _ in range(n):
        length, = struct.unpack_from("<I", data, at)
        out.append(list(struct.unpack_from(f"<{length}I", data, at + 4)))
        at += 4 + 4 * length + 4 * length * V
    return out, V


def forward_with_features(model, tokens):
    """logits (L, V); hidden: n_layers + 1 of (L, C), before the final norm; final (L, C); q, k, v: per layer (L, width)."""
    import torch
    hidden, qkv, hooks = {}, {}, []

    def keep(store, key):
        def hook(module, args, output):
            out = output[0] if isinstance(output, tuple) else output
            store[key] = out.detach().reshape(len(tokens), -1)
        return hook

    hooks.append(model.model.embed_tokens.register_forward_hook(keep(hidden, 0)))
    for i, layer in enumerate(model.model.layers):
        hooks.append(layer.register_forward_hook(keep(hidden, i + 1)))
        a = layer.self_attn
        for what, module in (("q", getattr(a, "q_norm", a.q_proj)), ("k", getattr(a, "k_norm", a.k_proj)), ("v", a.v_proj)):
            hooks.append(module.register_forward_hook(keep(qkv, (i, what))))
    final = {}
    hooks.append(model.model.norm.register_forward_hook(keep(final, 0)))
    with torch.no_grad():
        out = model(torch.tensor([tokens]), output_hidden_states=True)
    for h in hooks:
        h.remove()
    # what transformers itself calls hidden states: all but the last are the same, the last is after the norm
    for i, h in enumerate(out.hidden_states[:-1]):
        assert torch.equal(h[0], hidden[i])
    assert torch.equal(out.hidden_states[-1][0], final[0])
    return out.logits[0], hidden, final[0], qkv


def row_numbers(z, top_k):
    """lse at SIGNAL_TEMPERATURES, entropy, max prob, sum of squares, tail (ln of the mass outside the top-k): f64; argmax; top-k ids."""
    import torch
    z = z.double()
    logp = torch.log_softmax(z, 0)
    p = logp.exp()
    order = sorted(range(len(z)), key=lambda j, z=z.tolist(): (-z[j], j))[:top_k]
    outside = torch.ones_like(z, dtype=torch.bool)
    outside[order] = False
    tail = torch.logsumexp(logp[outside], 0).item()
    return f64(*(torch.logsumexp(z / t, 0).item() for t in SIGNAL_TEMPERATURES), -(p * logp).sum().item(), p.max().item(),
               (p * p).sum().item(), tail) + u32(*order)


def signals():
    """models/NAME/signals.bin: magic "KDGS", n_sequences, V, C, n_layers, q width, kv width, top_k, n_keep, keep ids. Per sequence: n_tokens,
    tokens; per row: row_numbers, lse over the kept ids f64, own log-prob f64 (NaN at the last). Then f32: hidden (n_layers + 1, L, C),
    final (L, C), q, k, v rows per layer (L, width)."""
    import torch
    from transformers import AutoModelForCausalLM
    for name in SIGNAL_MODELS + ["gpt2"]:
        (HERE / "models" / name / "tokenizer.json").write_text(json.dumps(character_tokenizer()) + "\n")
    (HERE / "models" / "bert" / "tokenizer.json").write_text(json.dumps(word_tokenizer()) + "\n")
    for name in ("llama", "qwen2", "qwen3"):
        where = HERE / "models" / name
        model = AutoModelForCausalLM.from_pretrained(where, dtype=torch.float64, attn_implementation="sdpa").eval()
        sequences, V = golden_sequences(name)
        c, top_k, keep = model.config, 16, [j for j in range(V) if j % 3 == 1 or j == 90]
        head = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
        out = b"KDGS" + u32(len(sequences), V, c.hidden_size, c.num_hidden_layers, c.num_attention_heads * head,
                            c.num_key_value_heads * head, top_k, len(keep), *keep)
        for tokens in sequences:
            logits, hidden, final, qkv = forward_with_features(model, tokens)
            out += u32(len(tokens), *tokens)
            for i, z in enumerate(logits):
                own = torch.log_softmax(z, 0)[tokens[i + 1]].item() if i + 1 < len(tokens) else float("nan")
                out += row_numbers(z, top_k) + f64(torch.logsumexp(z[keep], 0).item(), own)
            for i in range(c.num_hidden_layers + 1):
                out += f32(hidden[i])
            out += f32(final)
            for i in range(c.num_hidden_layers):
                out += b"".join(f32(qkv[i, what]) for what in "qkv")
        (where / "signals.bin").write_bytes(out)
        print(f"{name}: {len(out)} bytes of signals", flush=True)


MEAN = {"llama": 0.7, "linear": 0.3}
ARITHMETIC = {"llama": 1.0, "qwen2": 0.5, "linear": -0.5}


def mixture():
    """mixture.bin: magic "KDGX", V, n_tokens, tokens, f32 (L, V) of ln(sum of weight * p) over MEAN, then f32 (L, V) of the sum of
    weight * logits over ARITHMETIC; from the members' logits by numpy."""
    import numpy
    import torch
    from transformers import AutoModelForCausalLM
    sequences, V = golden_sequences("llama")
    tokens = sequences[-1]
    z = {}
    for name in ARITHMETIC:
        model = AutoModelForCausalLM.from_pretrained(HERE / "models" / name, dtype=torch.float64, attn_implementation="sdpa").eval()
        with torch.no_grad():
            z[name] = model(torch.tensor([tokens])).logits[0].numpy()
    p = {name: numpy.exp(x - x.max(1, keepdims=True)) for name, x in z.items()}
    mean = numpy.log(sum(w * p[name] / p[name].sum(1, keepdims=True) for name, w in MEAN.items()))
    signed = sum(w * z[name] for name, w in ARITHMETIC.items())
    (HERE / "mixture.bin").write_bytes(b"KDGX" + u32(V, len(tokens), *tokens) + f32(mean) + f32(signed))
    print(f"mixture: {len(tokens)} rows", flush=True)


TEACHER_LAYERS, TEACHER_ROWS = [0, 15, 30], [0, 1, 63, 79]


def teacher_signals(path):
    """teacher_signals.bin, of the sixth text of texts.txt: magic "KDGF", n_tokens, tokens, top_k, n_rows, n_layers, C, q width, kv width,
    layers; per row: position, row_numbers, then f32: hidden state after each of the layers, final, q, k, v of the last block."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    where = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    tokenizer = AutoTokenizer.from_pretrained(**where)
    model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32).eval()
    text = (HERE / "texts.txt").read_text().rstrip("\n").split("\n%%\n")[5]
    tokens = tokenizer(text, add_special_tokens=False).input_ids[: LENGTHS[5]]
    logits, hidden, final, qkv = forward_with_features(model, tokens)
    c = model.config
    last = c.num_hidden_layers - 1
    out = b"KDGF" + u32(len(tokens), *tokens, TOP_K, len(TEACHER_ROWS), len(TEACHER_LAYERS), c.hidden_size, qkv[last, "q"].shape[1],
                        qkv[last, "k"].shape[1], *TEACHER_LAYERS)
    for row in TEACHER_ROWS:
        out += u32(row) + row_numbers(logits[row], TOP_K)
        out += b"".join(f32(hidden[i][row]) for i in TEACHER_LAYERS) + f32(final[row])
        out += b"".join(f32(qkv[last, what][row]) for what in "qkv")
    (HERE / "teacher_signals.bin").write_bytes(out)
    print(f"teacher: {len(out)} bytes of signals", flush=True)


# (d) Greedy generation.
def greedy(model, prompt, n, eos):
    """n_prompt, prompt, n, tokens that generate() adds (the one that ends it included), their ln p f64. Every choice is clear of rounding."""
    import torch
    with torch.no_grad():
        out = model.generate(torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.int64), do_sample=False,
                             max_new_tokens=n, eos_token_id=eos, pad_token_id=0).tolist()[0]
        z = model(torch.tensor([out])).logits[0].double()
    logp = torch.log_softmax(z, 1)
    new = range(len(prompt), len(out))
    for i in new:
        first, second = z[i - 1].topk(2).values.tolist()
        assert z[i - 1].argmax() == out[i] and first - second > 1e-3, (i, first - second)
    return u32(len(prompt), *prompt, len(new), *out[len(prompt):]) + f64(*(logp[i - 1, out[i]].item() for i in new))


def generate():
    """models/NAME/generate.bin: magic "KDGN", n_prompts, greedy() of each: the sequences of golden.bin, 50 tokens, ended by token 2."""
    import torch
    from transformers import AutoModelForCausalLM
    for name in SIGNAL_MODELS + ["gpt2"]:
        model = AutoModelForCausalLM.from_pretrained(HERE / "models" / name, dtype=torch.float64).eval()
        prompts, _ = golden_sequences(name)
        out = b"KDGN" + u32(len(prompts)) + b"".join(greedy(model, p, 50, 2) for p in prompts)
        (HERE / "models" / name / "generate.bin").write_bytes(out)
        print(f"{name}: {len(out)} bytes of generation", flush=True)


GENERATE_PROMPTS = ["The capital of France is",
                    "<|im_start|>user\nName three primary colours.<|im_end|>\n<|im_start|>assistant\n",
                    "<|im_start|>user\nWhat is the boiling point of water?<|im_end|>\n<|im_start|>assistant\n"]


def teacher_generate(path):
    """teacher_generate.bin: like generate.bin, of GENERATE_PROMPTS, 48 tokens, ended by <|im_end|>."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    where = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    tokenizer = AutoTokenizer.from_pretrained(**where)
    model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32).eval()
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    out = b"KDGN" + u32(len(GENERATE_PROMPTS))
    for text in GENERATE_PROMPTS:
        prompt = tokenizer(text, add_special_tokens=False).input_ids
        out += greedy(model, prompt, 48, end)
    (HERE / "teacher_generate.bin").write_bytes(out)
    print(f"teacher: {len(out)} bytes of generation", flush=True)


# (e) Backward and five AdamW steps on the model "train", in float64.
def train(which="train"):
    """WHICH.bin, for the models train, train-gpt2, train-bert, train-mistral and train-bias: magic, n_steps, n_support; f64: w_ce, w_kd, temperature, learning rate, beta1, beta2, epsilon, weight decay, maximal
    gradient norm. Per step: n_sequences, per sequence n_tokens and tokens; n_rows (all rows that have a label, in order: the token after, or, of
    a masked model, the token itself), per row:
    support ids, teacher probabilities at the temperature f64 (the rest is the tail); loss f64, gradient norm f64.
    Then n_parameters, each: bytes of the name, name, n, gradient of the first step f32[n], value after the last step f32[n].

    loss = mean over rows of w_ce CE + w_kd T^2 KL(teacher; student), both with the ids outside the support as one symbol.
    """
    import torch
    n_steps, n_support, w_ce, w_kd, T, rate, betas, epsilon, decay, clip = 5, 4, 0.4, 0.6, 2.0, 1e-2, (0.9, 0.95), 1e-8, 0.1, 1.0
    model = open_model(HERE / "models" / which, dtype=torch.float64, attn_implementation="sdpa").eval()      # no dropout
    masked = "bert" in which
    V = model.config.vocab_size
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    optimizer = torch.optim.AdamW([{"params": matrices, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}],
                                  lr=rate, betas=betas, eps=epsilon)
    generator = torch.Generator().manual_seed(7)
    out = b"KDGB" + u32(n_steps, n_support) + f64(w_ce, w_kd, T, rate, *betas, epsilon, decay, clip)
    first = {}
    for step in range(n_steps):
        # PyTorch leaves out what BERT's padding token, 0, would learn as an input
        sequences = [torch.randint(int(masked), V, (n,), generator=generator) for n in (9 + step, 6)]
        out += u32(len(sequences)) + b"".join(u32(len(s), *s.tolist()) for s in sequences)
        n_rows = sum(len(s) - (not masked) for s in sequences)
        out += u32(n_rows)
        total = 0
        for s in sequences:
            z = model(s[None]).logits[0]
            z, labels = (z, s) if masked else (z[:-1], s[1:])
            p_full = torch.softmax(torch.randn(z.shape, generator=generator, dtype=torch.float64) * 3 / T, 1)
            support = torch.stack([torch.randperm(V, generator=generator)[:n_support] for _ in range(len(z))])
            p = p_full.gather(1, support)
            log_q = torch.log_softmax(z / T, 1)
            outside = torch.ones_like(z, dtype=torch.bool).scatter(1, support, False)
            log_q_tail = torch.logsumexp(log_q.masked_fill(~outside, -torch.inf), 1)
            p_tail = 1 - p.sum(1)
            kl = (p * (p.log() - log_q.gather(1, support))).sum(1) + p_tail * (p_tail.log() - log_q_tail)
            ce = torch.nn.functional.cross_entropy(z, labels, reduction="none")
            total = total + (w_ce * ce + w_kd * T * T * kl).sum()
            out += b"".join(u32(*i.tolist()) + f64(*q.tolist()) for i, q in zip(support, p))
        loss = total / n_rows
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            first = {name: q.grad.clone() for name, q in model.named_parameters()}
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        out += f64(loss.item(), norm.item())
        print(f"step {step + 1}: loss {loss.item():.6f}, gradient norm {norm.item():.4f}", flush=True)
    out += u32(len(first))
    for name, q in model.named_parameters():
        out += u32(len(name)) + name.encode() + u32(q.numel()) + f32(first[name].flatten()) + f32(q.detach().flatten())
    (HERE / f"{which}.bin").write_bytes(out)


def main():
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "kdserved"
    parser = argparse.ArgumentParser(description="Makes the golden files with PyTorch and transformers.")
    parser.add_argument("parts", nargs="*", help="tiny, train, train-gpt2, train-bert, train-mistral, train-bias, teacher, signals, mixture, teacher_signals, generate, teacher_generate (default: all)")
    parser.add_argument("--models", nargs="*", help="the tiny models to make (default: all)")
    parser.add_argument("--teacher", type=Path, default=cache / "SmolLM2-135M-Instruct.Q4_1.gguf", help="the GGUF file")
    parser.add_argument("--venv", type=Path, default=cache / "golden-venv", help="virtual environment to make when packages are missing")
    arguments = parser.parse_args()
    makers = {"tiny": lambda: tiny(arguments.models), "train": train, "train-gpt2": lambda: train("train-gpt2"),
              "train-bert": lambda: train("train-bert"), "train-mistral": lambda: train("train-mistral"), "train-bias": lambda: train("train-bias"), "teacher": lambda: teacher(arguments.teacher), "signals": signals, "mixture": mixture,
              "teacher_signals": lambda: teacher_signals(arguments.teacher), "generate": generate,
              "teacher_generate": lambda: teacher_generate(arguments.teacher)}
    if unknown := set(arguments.parts) - set(makers):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    if not packages_present():
        install(arguments.venv)
    for part in arguments.parts or makers:
        makers[part]()


if __name__ == "__main__":
    main()
