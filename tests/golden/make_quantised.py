#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes quantised.bin: 20 steps of quantisation-aware training of tests/golden/models/train, int8 and int4, in PyTorch, float64.

The loop is the written one: the matrices of the layers become the nearest points of their grid, gradients are taken there, the optimizer steps
what lies behind them, straight through. A grid is symmetric, scale = max|w| / (2^(bits - 1) - 1), one for each row at 8 bits and for each 32
columns of a row at 4 (for the row where 32 does not divide it). Needs torch and transformers as make_golden.py does.

quantised.bin is laid out as losses.bin (make_losses.py), with the magic "KDGQ" and, before each method, u32 bits.
"""
import torch
from transformers import AutoModelForCausalLM

from make_losses import BETAS, CLIP, DECAY, EPSILON, HERE, LENGTH, N_DRAWS, N_SEQUENCES, N_STEPS, RATE, ForwardKL, f64, u32


def nearest(w, bits):
    rows, columns = w.shape
    group = 32 if bits < 8 and columns % 32 == 0 else columns
    parts = w.reshape(rows, columns // group, group)
    scale = parts.abs().amax(-1, keepdim=True) / (2 ** (bits - 1) - 1)
    return torch.where(scale > 0, scale * torch.round(parts / scale), parts).reshape(rows, columns)


def train(method, bits, tokens, zt, draws):
    model = AutoModelForCausalLM.from_pretrained(HERE / "models" / "train", dtype=torch.float64, attn_implementation="sdpa").eval()
    behind = {name: p.detach().clone() for name, p in model.named_parameters() if p.dim() == 2 and "layers." in name}
    groups = [{"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": DECAY},
              {"params": [p for p in model.parameters() if p.dim() == 1], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=BETAS, eps=EPSILON)
    parameters, losses = dict(model.named_parameters()), []
    for step in range(N_STEPS):
        with torch.no_grad():
            for name, w in behind.items():
                parameters[name].copy_(nearest(w, bits))
        zs = model(tokens).logits[:, :-1].flatten(0, 1)
        loss = method.loss(step, zt, zs, tokens[:, 1:].flatten(), draws).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        with torch.no_grad():
            for name, w in behind.items():
                parameters[name].copy_(w)
        optimizer.step()
        behind = {name: parameters[name].detach().clone() for name in behind}
        losses.append(loss.item())
    print(bits, "bits", " ".join(f"{x:.5f}" for x in losses[::4]), flush=True)
    return losses


def main():
    generator = torch.Generator().manual_seed(14)       # no weight comes so near the middle of two points that the rows' float32 lse decides
    V = AutoModelForCausalLM.from_pretrained(HERE / "models" / "train").config.vocab_size
    tokens = torch.randint(0, V, (N_SEQUENCES, LENGTH), generator=generator)
    zt = (torch.randn((N_SEQUENCES * (LENGTH - 1), V), generator=generator) * 2).to(torch.float32).to(torch.float64)
    out = b"KDGQ" + u32(N_SEQUENCES, LENGTH, V, N_STEPS) + f64(RATE, *BETAS, EPSILON, DECAY, CLIP)
    out += u32(*tokens.flatten().tolist()) + zt.to(torch.float32).numpy().astype("<f4").tobytes() + u32(N_DRAWS)
    out += u32(0) * (N_SEQUENCES * (LENGTH - 1))       # nobody draws
    out += u32(2)
    for bits in (8, 4):
        method = ForwardKL()
        out += u32(bits, len(method.lines)) + b"".join(u32(len(line)) + line.encode() for line in method.lines)
        out += f64(*train(method, bits, tokens, zt, None))
    (HERE / "quantised.bin").write_bytes(out)


if __name__ == "__main__":
    main()
