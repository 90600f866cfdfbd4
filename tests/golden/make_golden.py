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
  models/NAME/       a Hugging Face directory with seeded random weights, and golden.bin: magic "KDGM", n_sequences, V; per sequence:
                     n_tokens, tokens, logits f32 (n_tokens, V), computed in float64
  train.bin          magic "KDGB": see train() below
"""
import argparse
import hashlib
import json
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


def plain_rope(theta=10000.0):
    return {"rope_type": "default", "rope_theta": theta}


def tiny_models():
    import torch
    from transformers import LlamaConfig, Qwen2Config, Qwen3Config
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
    }


def randomise(model, seed):
    """Weights that give logits worth comparing: about unit variance through every layer, gains and biases that matter."""
    import torch
    generator = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        noise = torch.randn(p.shape, generator=generator, dtype=torch.float64)
        if p.dim() == 1:
            p.data = noise * 0.5 if name.endswith("bias") else 1 + 0.3 * noise
        else:
            p.data = noise * (1.0 if "embed" in name else 1.5 / p.shape[1] ** 0.5)


def old_style_config(path):
    """config.json as transformers 4 wrote it, which most published models have: rope_theta and rope_scaling at the top."""
    config = json.loads(path.read_text())
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    config["torch_dtype"] = config.pop("dtype")
    path.write_text(json.dumps(config, indent=2) + "\n")


def tiny():
    import torch
    from transformers import AutoModelForCausalLM
    for seed, (name, (config, dtype)) in enumerate(tiny_models().items()):
        where = HERE / "models" / name
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float64)
        randomise(model, seed)
        model.to(dtype).save_pretrained(where, max_shard_size="24KB" if name == "llama3" else "5GB")
        for extra in where.glob("generation_config.json"):
            extra.unlink()
        if name in ("llama", "llama3", "qwen2"):
            old_style_config(where / "config.json")
        model = AutoModelForCausalLM.from_pretrained(where, dtype=torch.float64, attn_implementation="sdpa").eval()
        generator = torch.Generator().manual_seed(100 + seed)
        out = b"KDGM" + u32(4, config.vocab_size)
        for length in (1, 3, 22, 70) if name == "llama3" else (1, 3, 9, 22):
            tokens = torch.randint(0, config.vocab_size, (length,), generator=generator)
            with torch.no_grad():
                logits = model(tokens[None]).logits[0]
            assert logits.dtype == torch.float64
            out += u32(length, *tokens.tolist()) + f32(logits)
        (where / "golden.bin").write_bytes(out)
        print(f"{name}: {sum(p.numel() for p in model.parameters())} parameters, logits of deviation {logits.std():.2f}", flush=True)


# (c) Backward and five AdamW steps on the model "train", in float64.
def train():
    """train.bin: magic, n_steps, n_support; f64: w_ce, w_kd, temperature, learning rate, beta1, beta2, epsilon, weight decay, maximal
    gradient norm. Per step: n_sequences, per sequence n_tokens and tokens; n_rows (all rows that have a label, in order), per row:
    support ids, teacher probabilities at the temperature f64 (the rest is the tail); loss f64, gradient norm f64.
    Then n_parameters, each: bytes of the name, name, n, gradient of the first step f32[n], value after the last step f32[n].

    loss = mean over rows of w_ce CE + w_kd T^2 KL(teacher; student), both with the ids outside the support as one symbol.
    """
    import torch
    from transformers import AutoModelForCausalLM
    n_steps, n_support, w_ce, w_kd, T, rate, betas, epsilon, decay, clip = 5, 4, 0.4, 0.6, 2.0, 1e-2, (0.9, 0.95), 1e-8, 0.1, 1.0
    model = AutoModelForCausalLM.from_pretrained(HERE / "models" / "train", dtype=torch.float64, attn_implementation="sdpa").train()
    V = model.config.vocab_size
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    optimizer = torch.optim.AdamW([{"params": matrices, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}],
                                  lr=rate, betas=betas, eps=epsilon)
    generator = torch.Generator().manual_seed(7)
    out = b"KDGB" + u32(n_steps, n_support) + f64(w_ce, w_kd, T, rate, *betas, epsilon, decay, clip)
    first = {}
    for step in range(n_steps):
        sequences = [torch.randint(0, V, (n,), generator=generator) for n in (9 + step, 6)]
        out += u32(len(sequences)) + b"".join(u32(len(s), *s.tolist()) for s in sequences)
        n_rows = sum(len(s) - 1 for s in sequences)
        out += u32(n_rows)
        total = 0
        for s in sequences:
            z = model(s[None]).logits[0, :-1]
            p_full = torch.softmax(torch.randn(z.shape, generator=generator, dtype=torch.float64) * 3 / T, 1)
            support = torch.stack([torch.randperm(V, generator=generator)[:n_support] for _ in range(len(z))])
            p = p_full.gather(1, support)
            log_q = torch.log_softmax(z / T, 1)
            outside = torch.ones_like(z, dtype=torch.bool).scatter(1, support, False)
            log_q_tail = torch.logsumexp(log_q.masked_fill(~outside, -torch.inf), 1)
            p_tail = 1 - p.sum(1)
            kl = (p * (p.log() - log_q.gather(1, support))).sum(1) + p_tail * (p_tail.log() - log_q_tail)
            ce = torch.nn.functional.cross_entropy(z, s[1:], reduction="none")
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
    (HERE / "train.bin").write_bytes(out)


def main():
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "kdserved"
    parser = argparse.ArgumentParser(description="Makes the golden files with PyTorch and transformers.")
    parser.add_argument("parts", nargs="*", help="teacher, tiny, train (default: all)")
    parser.add_argument("--teacher", type=Path, default=cache / "SmolLM2-135M-Instruct.Q4_1.gguf", help="the GGUF file")
    parser.add_argument("--venv", type=Path, default=cache / "golden-venv", help="virtual environment to make when packages are missing")
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - {"teacher", "tiny", "train"}:
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    if not packages_present():
        install(arguments.venv)
    parts = arguments.parts or ["tiny", "train", "teacher"]
    if "tiny" in parts:
        tiny()
    if "train" in parts:
        train()
    if "teacher" in parts:
        teacher(arguments.teacher)


if __name__ == "__main__":
    main()
