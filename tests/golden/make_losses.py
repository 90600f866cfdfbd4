#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes losses.bin: 20 steps of training of tests/golden/models/train by token losses, in PyTorch, float64, with automatic differentiation.

Written from the definitions of the losses alone; nothing here knows how the worker computes them. Needs torch and transformers as
make_golden.py does. The test reads only what is committed.

losses.bin (little-endian): magic "KDGL", n_sequences, length, V, n_steps; f64: learning rate, beta1, beta2, epsilon, weight decay, maximal
gradient norm; tokens u32[n_sequences, length]; teacher's logits f32[n_sequences, length - 1, V]; draws of each row: n, then per row
n_distinct, ids, counts; n_methods, each: n_lines, per line its bytes and text (a line "loss" of a run's configuration); losses f64[n_steps].
"""
import math
import struct
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

HERE = Path(__file__).resolve().parent
N_SEQUENCES, LENGTH, N_STEPS, N_DRAWS = 3, 12, 20, 10
RATE, BETAS, EPSILON, DECAY, CLIP = 1e-2, (0.9, 0.95), 1e-8, 0.1, 1.0


def u32(*values):
    return struct.pack(f"<{len(values)}I", *values)


def f64(*values):
    return struct.pack(f"<{len(values)}d", *values)


def likeliest(z, k):
    return torch.zeros_like(z, dtype=torch.bool).scatter(-1, z.topk(k).indices, True)


def with_bucket(log_p, S):
    """ln p of each id of S (elsewhere -inf) and, last, of all other ids together."""
    tail = torch.logsumexp(log_p.masked_fill(S, -torch.inf), -1, keepdim=True)
    return torch.cat([log_p.masked_fill(~S, -torch.inf), tail], -1)


def kl(log_a, log_b):
    """sum of a ln(a / b); a symbol that neither row has counts nothing."""
    absent = torch.isneginf(log_a)
    log_a, log_b = log_a.masked_fill(absent, 0), log_b.masked_fill(absent, 0)
    return (log_a.exp() * (log_a - log_b)).masked_fill(absent, 0).sum(-1)


def rows(zt, zs, S, T=1.0):
    return with_bucket(torch.log_softmax(zt / T, -1), S), with_bucket(torch.log_softmax(zs / T, -1), S)


class ForwardKL:
    lines = ["forward-kl temperature=2 top-k=4", "cross-entropy weight=0.3"]

    def loss(self, step, zt, zs, labels, draws):
        p, q = rows(zt, zs, likeliest(zt, 4), 2.0)
        return 4 * kl(p, q) + 0.3 * torch.nn.functional.cross_entropy(zs, labels, reduction="none")


class ReverseKL:
    """At the ids that the student finds likely at this very step, and the teacher's."""
    lines = ["reverse-kl support=both:5 top-k=3"]

    def loss(self, step, zt, zs, labels, draws):
        p, q = rows(zt, zs, likeliest(zt, 3) | likeliest(zs.detach(), 5))
        return kl(q, p)


class Jsd:
    lines = ["jsd beta=0.3 support=student:6"]

    def loss(self, step, zt, zs, labels, draws):
        beta = 0.3
        p, q = rows(zt, zs, likeliest(zs.detach(), 6))
        m = torch.logaddexp(p + math.log(beta), q + math.log(1 - beta))
        return beta * kl(p, m) + (1 - beta) * kl(q, m)


class Taid:
    """The share t of the teacher starts at .4 and rises with the fall of the cross-entropy to the target."""
    lines = ["taid t=linear:0.4:1:0-40 rate=0.05 momentum=0.9 top-k=5"]

    def __init__(self):
        self.t, self.momentum, self.previous = 0.4, 0.0, None

    def loss(self, step, zt, zs, labels, draws):
        self.t = max(self.t, 0.4 + 0.6 * step / 40)
        p, q = rows(zt, zs, likeliest(zt, 5))
        self.target = torch.log_softmax((1 - self.t) * q.detach() + self.t * p, -1)
        self.q = q.detach()
        return kl(self.target, q)

    def after(self):
        here = ~torch.isneginf(self.target)
        cross_entropy = -(self.target.exp() * self.q.masked_fill(~here, 0)).masked_fill(~here, 0).sum(-1).mean().item()
        if self.previous is not None:
            fall = (self.previous - cross_entropy) / (self.previous + 1e-15)
            self.momentum = 0.9 * self.momentum + 0.1 * fall
            self.t = min(1.0, self.t + 0.05 / (1 + math.exp(-self.momentum)) * (1 - self.t))
        self.previous = cross_entropy


class RandomSampling:
    """Drawn ids stand for the teacher's row; the value is less the row's own entropy."""
    lines = [f"forward-kl form=draws draws={N_DRAWS}"]

    def loss(self, step, zt, zs, labels, draws):
        log_p, log_q = torch.log_softmax(zt, -1), torch.log_softmax(zs, -1)
        entropy = -(log_p.exp() * log_p).sum(-1)
        return -(draws / N_DRAWS * log_q).sum(-1) - entropy


def train(method, tokens, zt, draws):
    model = AutoModelForCausalLM.from_pretrained(HERE / "models" / "train", dtype=torch.float64, attn_implementation="sdpa").eval()
    groups = [{"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": DECAY},
              {"params": [p for p in model.parameters() if p.dim() == 1], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=BETAS, eps=EPSILON)
    losses = []
    for step in range(N_STEPS):
        zs = model(tokens).logits[:, :-1].flatten(0, 1)
        loss = method.loss(step, zt, zs, tokens[:, 1:].flatten(), draws).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        losses.append(loss.item())
        if hasattr(method, "after"):
            method.after()
    print(method.lines[0], " ".join(f"{x:.5f}" for x in losses[::4]), flush=True)
    return losses


def main():
    generator = torch.Generator().manual_seed(11)
    V = AutoModelForCausalLM.from_pretrained(HERE / "models" / "train").config.vocab_size
    tokens = torch.randint(0, V, (N_SEQUENCES, LENGTH), generator=generator)
    zt = (torch.randn((N_SEQUENCES * (LENGTH - 1), V), generator=generator) * 2).to(torch.float32).to(torch.float64)
    ids = torch.multinomial(torch.softmax(zt, -1), N_DRAWS, replacement=True, generator=generator)
    draws = torch.zeros_like(zt).scatter_add(1, ids, torch.ones_like(ids, dtype=torch.float64))
    out = b"KDGL" + u32(N_SEQUENCES, LENGTH, V, N_STEPS) + f64(RATE, *BETAS, EPSILON, DECAY, CLIP)
    out += u32(*tokens.flatten().tolist()) + zt.to(torch.float32).numpy().astype("<f4").tobytes() + u32(N_DRAWS)
    for counts in draws:
        drawn = counts.nonzero().flatten().tolist()
        out += u32(len(drawn), *drawn, *(int(counts[i]) for i in drawn))
    methods = [ForwardKL(), ReverseKL(), Jsd(), Taid(), RandomSampling()]
    out += u32(len(methods))
    for method in methods:
        out += u32(len(method.lines)) + b"".join(u32(len(line)) + line.encode() for line in method.lines)
        out += f64(*train(method, tokens, zt, draws))
    (HERE / "losses.bin").write_bytes(out)


if __name__ == "__main__":
    main()
