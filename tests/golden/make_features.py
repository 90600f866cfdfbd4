#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes features.bin: 20 steps of training of tests/golden/models/train by losses on features, in PyTorch, float64, automatic differentiation.

Written from the definitions of the losses alone; nothing here knows how the worker computes them. Needs torch and transformers as
make_golden.py does. The test reads only what is committed.

features.bin (little-endian): magic "KDGH", n_sequences, length, V, n_steps, the teacher's n_layers, C, q width, k and v width; f64: learning
rate, beta1, beta2, epsilon, weight decay, maximal gradient norm; tokens u32[n_sequences, length]; teacher's hidden rows f32[n_layers + 2, rows, C]
(the last: after its norm), q, k, v rows of its last block f32[rows, each width], rows = n_sequences (length - 1); n_methods, each: n_lines, per
line its bytes and text (a line "loss" of a run's configuration); how many values the projections have, in order, and where they start f32;
losses f64[n_steps].
"""
import math
import struct
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

HERE = Path(__file__).resolve().parent
N_SEQUENCES, LENGTH, N_STEPS = 3, 12, 20
N_LAYERS, C, Q, KV = 3, 10, 12, 6
RATE, BETAS, EPSILON, DECAY, CLIP = 1e-2, (0.9, 0.95), 1e-8, 0.1, 1.0


def u32(*values):
    return struct.pack(f"<{len(values)}I", *values)


def f64(*values):
    return struct.pack(f"<{len(values)}d", *values)


def f32(tensor):
    return tensor.detach().to(torch.float32).numpy().astype("<f4").tobytes()


def rounded(tensor):
    return tensor.to(torch.float32).to(torch.float64)


class Seen:
    """What lies inside the student: rows 0 .. length - 2 of each sequence (n_sequences, length - 1, width)."""

    def __init__(self, model):
        self.hidden, self.parts = {}, {}
        for i, layer in enumerate(model.model.layers):
            layer.register_forward_hook(lambda m, x, y, i=i: self.keep(self.hidden, i + 1, y[0] if isinstance(y, tuple) else y))
            for name in "qkv":
                getattr(layer.self_attn, name + "_proj").register_forward_hook(lambda m, x, y, key=(name, i + 1): self.keep(self.parts, key, y))
        model.model.embed_tokens.register_forward_hook(lambda m, x, y: self.keep(self.hidden, 0, y))
        model.model.norm.register_forward_hook(lambda m, x, y: self.keep(self.hidden, "final", y))

    def keep(self, where, key, y):
        where[key] = y[:, :-1]


def projection(generator, n=1):
    return [rounded(torch.randn((C, 16), generator=generator) * 0.3).requires_grad_() for _ in range(n)]


class Hidden:
    lines = ["hidden-mse layers=0:1,2:3", "cross-entropy weight=0.3"]

    def start(self, generator):
        return projection(generator, 2)

    def loss(self, seen, teacher, logits, labels, P):
        first, second = [(seen.hidden[s] @ p.T - teacher.hidden[t]) for (s, t), p in zip([(0, 1), (2, 3)], P)]
        return (first ** 2).mean() + (second ** 2).mean() + 0.3 * torch.nn.functional.cross_entropy(logits, labels)


class Patient:
    """PKD: directions of the last row of each sequence, squared distance over the width; one projection for both pairs."""
    lines = ["hidden-mse layers=1:1,2:2 normalise=on sum=on pooling=last projection=shared"]

    def start(self, generator):
        return projection(generator)

    def loss(self, seen, teacher, logits, labels, P):
        total = 0
        for i in (1, 2):
            s, t = seen.hidden[i][:, -1] @ P[0].T, teacher.hidden[i][:, -1]
            total = total + ((s / s.norm(dim=-1, keepdim=True) - t / t.norm(dim=-1, keepdim=True)) ** 2).sum(-1).mean()
        return total


class Cosine:
    lines = ["hidden-cosine layers=final bias=on"]

    def start(self, generator):
        return projection(generator) + [torch.zeros(C, dtype=torch.float64, requires_grad=True)]

    def loss(self, seen, teacher, logits, labels, P):
        return (1 - torch.nn.functional.cosine_similarity(seen.hidden["final"] @ P[0].T + P[1], teacher.hidden["final"], dim=-1)).mean()


def relation(a, b, heads, b_heads=None):
    """ln softmax of a b' / sqrt(d) under the causal mask, (sequences, heads, rows, rows); head h of a looks at head h / (heads / b_heads)."""
    n, rows, _ = a.shape
    b_heads = b_heads or heads
    a = a.view(n, rows, heads, -1).transpose(1, 2)
    b = b.view(n, rows, b_heads, -1).transpose(1, 2).repeat_interleave(heads // b_heads, 1)
    scores = a @ b.transpose(-1, -2) / math.sqrt(a.shape[-1])
    return torch.log_softmax(scores.masked_fill(torch.ones(rows, rows).triu(1).bool(), -1e300), -1)


def kl(log_p, log_q):
    return (log_p.exp() * (log_p - log_q)).sum(-1).mean()


class Relations:
    lines = ["minilm heads=2", "hidden-cosine layers=1:2 weight=0.5"]

    def start(self, generator):
        return projection(generator)

    def loss(self, seen, teacher, logits, labels, P):
        total = sum(kl(relation(teacher.parts[x], teacher.parts[x], 2), relation(seen.parts[x, 2], seen.parts[x, 2], 2)) for x in "qkv")
        cosine = torch.nn.functional.cosine_similarity(seen.hidden[1] @ P[0].T, teacher.hidden[2], dim=-1)
        return total + 0.5 * (1 - cosine).mean()


class Attention:
    """MiniLM v1, heads of k and v shared by two of q."""
    lines = ["minilm version=v1 layers=2:3"]

    def start(self, generator):
        return []

    def loss(self, seen, teacher, logits, labels, P):
        t, s = teacher.parts, {x: seen.parts[x, 2] for x in "qkv"}

        def values(rows):
            return rows.view(*rows.shape[:2], 2, -1).repeat_interleave(2, 2).flatten(2)
        return kl(relation(t["q"], t["k"], 4, 2), relation(s["q"], s["k"], 4, 2)) + kl(relation(values(t["v"]), values(t["v"]), 4),
                                                                                       relation(values(s["v"]), values(s["v"]), 4))


class Margin:
    lines = ["margin-mse layers=2:3 pooling=mean score=cosine"]

    def start(self, generator):
        return []

    def loss(self, seen, teacher, logits, labels, P):
        s, t = (torch.nn.functional.normalize(x.mean(1), dim=-1) for x in (seen.hidden[2], teacher.hidden[3]))
        gaps = [((s[i] @ s[j] - s[i] @ s[k]) - (t[i] @ t[j] - t[i] @ t[k])) ** 2 for i, j, k in ((0, 1, 2), (1, 0, 2), (2, 0, 1))]
        return torch.stack(gaps).mean()


class Teacher:
    def __init__(self, generator):
        shape = (N_SEQUENCES, LENGTH - 1)
        self.hidden = {i: rounded(torch.randn((*shape, C), generator=generator)) for i in [*range(N_LAYERS + 1), "final"]}
        self.parts = {x: rounded(torch.randn((*shape, width), generator=generator)) for x, width in zip("qkv", (Q, KV, KV))}


def train(method, start, tokens, teacher):
    model = AutoModelForCausalLM.from_pretrained(HERE / "models" / "train", dtype=torch.float64, attn_implementation="sdpa").eval()
    seen, P = Seen(model), [p.clone().detach().requires_grad_() for p in start]
    every = list(model.parameters()) + P
    groups = [{"params": [p for p in every if p.dim() > 1], "weight_decay": DECAY}, {"params": [p for p in every if p.dim() == 1], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=BETAS, eps=EPSILON)
    losses = []
    for _ in range(N_STEPS):
        logits = model(tokens).logits[:, :-1].flatten(0, 1)
        loss = method.loss(seen, teacher, logits, tokens[:, 1:].flatten(), P)
        optimizer.zero_grad(set_to_none=False)
        loss.backward()
        for p in every:                    # what a loss does not reach decays all the same, as in one array of all parameters
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        torch.nn.utils.clip_grad_norm_(every, CLIP)
        optimizer.step()
        losses.append(loss.item())
    print(method.lines[0], " ".join(f"{x:.5f}" for x in losses[::4]), flush=True)
    return losses


def main():
    generator = torch.Generator().manual_seed(12)
    torch.set_default_dtype(torch.float64)
    V = AutoModelForCausalLM.from_pretrained(HERE / "models" / "train").config.vocab_size
    tokens = torch.randint(0, V, (N_SEQUENCES, LENGTH), generator=generator)
    teacher = Teacher(generator)
    out = b"KDGH" + u32(N_SEQUENCES, LENGTH, V, N_STEPS, N_LAYERS, C, Q, KV) + f64(RATE, *BETAS, EPSILON, DECAY, CLIP)
    out += u32(*tokens.flatten().tolist()) + b"".join(f32(x) for x in teacher.hidden.values()) + b"".join(f32(x) for x in teacher.parts.values())
    methods = [Hidden(), Patient(), Cosine(), Relations(), Attention(), Margin()]
    out += u32(len(methods))
    for method in methods:
        start = method.start(generator)
        out += u32(len(method.lines)) + b"".join(u32(len(line)) + line.encode() for line in method.lines)
        out += u32(sum(p.numel() for p in start)) + b"".join(f32(p) for p in start)
        out += f64(*train(method, start, tokens, teacher))
    (HERE / "features.bin").write_bytes(out)


if __name__ == "__main__":
    main()
