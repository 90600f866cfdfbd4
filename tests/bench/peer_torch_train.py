# SPDX-License-Identifier: Apache-2.0
"""PyTorch's training step on bench_train's student: peer_torch_train.py {ce|kd} {f32|bf16} THREADS STEPS. The same shape (8 layers, width
384, 6 heads, feed-forward 1024, 49152 tokens, tied head), batch (4 x 512 tokens) and loss; AdamW with its fused kernel, attention without
the matrix of scores, bf16 by autocast. One CSV row: tokens for a second of the clock, of its best step, for a second of processor time of
all threads; peak memory in MiB; version. train_throughput.sh sets what the allocator and OpenMP want to be told."""
import resource
import sys
import time

import torch
import torch.nn.functional as F
from torch import nn

LAYERS, WIDTH, HEADS, FFN, VOCABULARY, BATCH, LENGTH, TOP_K = 8, 384, 6, 1024, 49152, 4, 512, 64


class Norm(nn.Module):
    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x):
        return F.rms_norm(x, (WIDTH,), self.gain, 1e-5)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = Norm(), Norm()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        self.gate_up, self.down = nn.Linear(WIDTH, 2 * FFN, bias=False), nn.Linear(FFN, WIDTH, bias=False)

    def forward(self, x, cosine, sine):
        q, k, v = (t.view(BATCH, LENGTH, HEADS, -1).transpose(1, 2) for t in self.qkv(self.norm1(x)).chunk(3, -1))
        q, k = (torch.cat((a * cosine - b * sine, b * cosine + a * sine), -1) for a, b in (t.chunk(2, -1) for t in (q, k)))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(BATCH, LENGTH, WIDTH))
        gate, up = self.gate_up(self.norm2(x)).chunk(2, -1)
        return x + self.down(F.silu(gate) * up)


class Student(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.norm = nn.Embedding(VOCABULARY, WIDTH), Norm()
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        for p in self.parameters():
            if p.dim() > 1:
                nn.init.normal_(p, std=0.04)
        size = WIDTH // HEADS
        angle = torch.outer(torch.arange(LENGTH).float(), 1e4 ** (-torch.arange(0, size, 2).float() / size))
        self.cosine, self.sine = angle.cos(), angle.sin()

    def forward(self, tokens):
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x, self.cosine.to(x.dtype), self.sine.to(x.dtype))
        return F.linear(self.norm(x).view(-1, WIDTH), self.embedding.weight)


def processor_seconds():
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main():
    loss_kind, precision, threads, steps = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    torch.set_num_threads(threads)
    torch.manual_seed(1)
    student = Student()
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4, betas=(.9, .95), weight_decay=.1, fused=True)
    tokens = torch.randint(0, VOCABULARY, (BATCH, LENGTH))
    labels = torch.randint(0, VOCABULARY, (BATCH * LENGTH,))
    ids = torch.randint(0, VOCABULARY, (BATCH * LENGTH, TOP_K))
    teacher = torch.softmax(torch.randn(BATCH * LENGTH, TOP_K), -1)

    def step():
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
            logits = student(tokens).float()
            if loss_kind == "ce":
                loss = F.cross_entropy(logits, labels)
            else:
                loss = -(teacher * (logits.gather(1, ids) - logits.logsumexp(-1, keepdim=True))).sum(-1).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()

    step()                     # warms up
    walls, processors = [], []
    for _ in range(steps):
        begin, processor = time.perf_counter(), processor_seconds()
        step()
        walls.append(time.perf_counter() - begin)
        processors.append(processor_seconds() - processor)
    n, peak = BATCH * LENGTH, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{steps * n / sum(walls):.0f},{n / min(walls):.0f},{n / min(processors):.1f},{peak:.0f},{torch.__version__}")


main()
