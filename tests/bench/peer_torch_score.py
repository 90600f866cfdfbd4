# SPDX-License-Identifier: Apache-2.0
"""PyTorch scoring the shape of SmolLM2-135M (random weights): peer_torch_score.py {f32|bf16} THREADS LENGTH SEQUENCES PASSES. One forward
pass, then for all positions, 512 at a time so that the logits stay small, the top 64 and the log-sum-exp of float logits: what kdserved answers.
Prints the version, median and best tokens per second, behind a first pass that does not count. peer_llamacpp.sh sets what the allocator
and OpenMP want to be told. Versions before 2 have neither fused attention nor rms_norm: theirs is written out."""
import statistics
import sys
import time

import torch
import torch.nn.functional as F

LAYERS, WIDTH, HEADS, KV_HEADS, FFN, VOCABULARY, TOP_K, HEAD_ROWS = 30, 576, 9, 3, 1536, 49152, 64, 512
SIZE = WIDTH // HEADS


def norm(x, gain):
    if hasattr(F, "rms_norm"):
        return F.rms_norm(x, (WIDTH,), gain, 1e-5)
    return x * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-5).to(x.dtype) * gain


def attention(q, k, v, mask):
    k, v = (t.repeat_interleave(HEADS // KV_HEADS, 1) for t in (k, v))
    if hasattr(F, "scaled_dot_product_attention"):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return torch.softmax(q @ k.transpose(-1, -2) * SIZE ** -0.5 + mask, -1) @ v


class Teacher:
    def __init__(self, dtype, length):
        def matrix(rows, columns):
            return (torch.randn(rows, columns) * 0.04).to(dtype)
        self.layers = [(torch.ones(WIDTH, dtype=dtype), matrix((HEADS + 2 * KV_HEADS) * SIZE, WIDTH), matrix(WIDTH, WIDTH),
                        torch.ones(WIDTH, dtype=dtype), matrix(2 * FFN, WIDTH), matrix(WIDTH, FFN)) for _ in range(LAYERS)]
        self.embedding, self.gain = matrix(VOCABULARY, WIDTH), torch.ones(WIDTH, dtype=dtype)
        angle = torch.outer(torch.arange(length).float(), 1e5 ** (-torch.arange(0, SIZE, 2).float() / SIZE))
        self.cosine, self.sine = angle.cos().to(dtype), angle.sin().to(dtype)
        self.mask = torch.full((length, length), float("-inf")).triu(1).to(dtype)

    def rotated(self, x):
        a, b = x.chunk(2, -1)
        return torch.cat((a * self.cosine - b * self.sine, b * self.cosine + a * self.sine), -1)

    def hidden(self, tokens):
        n, length = tokens.shape
        x = F.embedding(tokens, self.embedding)
        for gain1, qkv, out, gain2, gate_up, down in self.layers:
            q, k, v = F.linear(norm(x, gain1), qkv).view(n, length, -1, SIZE).transpose(1, 2).split((HEADS, KV_HEADS, KV_HEADS), 1)
            y = attention(self.rotated(q), self.rotated(k), v, self.mask)
            x = x + F.linear(y.transpose(1, 2).reshape(n, length, WIDTH), out)
            gate, up = F.linear(norm(x, gain2), gate_up).chunk(2, -1)
            x = x + F.linear(F.silu(gate) * up, down)
        return norm(x, self.gain).view(-1, WIDTH)

    def score(self, tokens):
        for rows in self.hidden(tokens).split(HEAD_ROWS):
            logits = F.linear(rows, self.embedding).float()
            logits.topk(TOP_K)
            logits.logsumexp(-1)


def main():
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[sys.argv[1]]
    threads, length, sequences, passes = (int(a) for a in sys.argv[2:6])
    torch.set_num_threads(threads)
    torch.manual_seed(1)
    teacher, tokens = Teacher(dtype, length), torch.randint(0, VOCABULARY, (sequences, length))
    rates = []
    with torch.no_grad():
        for _ in range(passes + 1):
            begin = time.perf_counter()
            teacher.score(tokens)
            rates.append(tokens.numel() / (time.perf_counter() - begin))
    print("%s median %.1f best %.1f" % (torch.__version__.split("+")[0], statistics.median(rates[1:]), max(rates[1:])))


main()
