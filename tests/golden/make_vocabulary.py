#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes vocabulary.bin and vocabulary/: 20 steps of training of tests/golden/models/train on a teacher with another tokenizer (ULD, GOLD
and a divergence of the ids that both have), in PyTorch, float64, with automatic differentiation.

Written from the definitions of the losses alone. Rows are compared where a token of both ends at the same byte and a token of both follows.
Needs torch, transformers and tokenizers as make_golden.py does. The test reads only what is committed.

vocabulary/teacher.json, student.json: byte-level BPE tokenizers of nine letters; <|end|> is in both.
vocabulary.bin (little-endian): magic "KDGV", n_sequences, V of the teacher, n_steps; f64: learning rate, beta1, beta2, epsilon, weight
decay, maximal gradient norm; of each sequence: n, the teacher's tokens u32[n], its logits f32[n, V], how many tokens the student reads
and at how many places both meet; n_methods, each: n_lines, per line its bytes and text, n_positions of a step, losses f64[n_steps].
"""
import json
import math

import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from make_losses import BETAS, CLIP, DECAY, EPSILON, HERE, N_STEPS, RATE, f64, u32

SPACE, END = "\u0120", "<|end|>"
TEACHER = [("a", "b"), ("ab", "c"), (SPACE, "d"), ("e", "f"), (SPACE + "d", "e"), ("g", "h"), ("c", "a"), (SPACE, "f"), ("a", "d"),
           ("ef", "a")]
STUDENT = [("b", "c"), ("a", "bc"), ("d", "e"), (SPACE, "a"), ("e", "f"), ("g", "h"), ("gh", "a"), (SPACE, "gha"), ("f", SPACE),
           ("de", "f"), ("a", "d")]
TEXTS = [("abc def deaf ghab ", "cab face egg"), ("bad hedge gaga abc ", "deaf def"), ("ghabc head cafe ", "abba dad fed"),
         ("face dhe ", "ghab")]


def tokenizer_make(name, merges, first_ids, end):
    vocab = {}
    for symbol in first_ids + [a + b for a, b in merges]:
        if len(vocab) == end:
            vocab[END] = end
        vocab[symbol] = len(vocab)
    special = {"id": vocab[END], "content": END, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
               "special": True}
    made = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [special], "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
        "post_processor": None, "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
                  "fuse_unk": False, "byte_fallback": False, "vocab": vocab, "merges": ["%s %s" % m for m in merges]},
    }
    path = HERE / "vocabulary" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(made, indent=1) + "\n")
    return Tokenizer.from_file(str(path)), vocab


def read(tokenizer, text):
    """Ids and the byte after each; the special token between the two texts is one byte."""
    ids, ends, at = [], [], 0
    for i, part in enumerate(text):
        if i:
            at += 1
            ids.append(tokenizer.token_to_id(END))
            ends.append(at)
        for token in tokenizer.encode(part).ids:
            at += len(tokenizer.id_to_token(token))        # each letter is one byte
            ids.append(token)
            ends.append(at)
    return ids, ends


class Sequence:
    def __init__(self, teacher, student, text, generator, V):
        self.teacher, teacher_ends = read(teacher, text)
        self.student, student_ends = read(student, text)
        assert teacher_ends[-1] == student_ends[-1]
        self.zt = (torch.randn((len(self.teacher), V), generator=generator) * 2).to(torch.float32).to(torch.float64)
        common = sorted(set(teacher_ends) & set(student_ends))
        self.meetings = [(teacher_ends.index(e), student_ends.index(e)) for e in common]


def ranks(p, q, k):
    """L1 gap of both rows sorted, of the k largest of each, and of what is left of them."""
    n = max(p.shape[-1], q.shape[-1])
    a, b = (torch.nn.functional.pad(x.sort(-1, descending=True).values, (0, n - x.shape[-1])) for x in (p, q))
    value = (a[:k] - b[:k]).abs().sum()
    return value + (a[k:].sum() - b[k:].sum()).abs() if k < n else value


class Uld:
    def __init__(self, k, temperature, lines, hard=0.0):
        self.k, self.T, self.lines, self.hard = k, temperature, lines, hard

    def loss(self, s, zs):
        total, n = 0, 0
        for t, b in s.meetings[:-1]:
            total = total + self.T ** 2 * ranks(torch.softmax(s.zt[t] / self.T, -1), torch.softmax(zs[b] / self.T, -1), self.k)
            n += 1
        if self.hard:
            total = 1.5 * total + self.hard * torch.nn.functional.cross_entropy(zs[:-1], torch.tensor(s.student[1:]), reduction="sum")
            n = len(s.student) - 1
        return total, n


class Gold:
    """The first row of a span times the probabilities of its later tokens; ids with the same text by JSD, the others sorted."""
    def __init__(self, beta, same, lines):
        self.beta, self.lines = beta, lines
        self.at = torch.tensor([t for t, _ in same])
        self.bt = torch.tensor([b for _, b in same])

    def part(self, P, Q):
        M = self.beta * P + (1 - self.beta) * Q
        return (self.beta * P * (P / M).log() + (1 - self.beta) * Q * (Q / M).log()).sum()

    def loss(self, s, zs):
        log_p, log_q = torch.log_softmax(s.zt, -1), torch.log_softmax(zs, -1)
        V, total = log_p.shape[-1], 0
        share = len(self.at) / V
        for (t, b), (t1, b1) in zip(s.meetings, s.meetings[1:]):
            P = (log_p[t] + sum(log_p[k - 1, s.teacher[k]] for k in range(t + 2, t1 + 1))).exp()
            Q = (log_q[b] + sum(log_q[k - 1, s.student[k]] for k in range(b + 2, b1 + 1))).exp()
            others_p, others_q = torch.ones(V, dtype=bool), torch.ones(zs.shape[-1], dtype=bool)
            others_p[self.at], others_q[self.bt] = False, False
            total = total + share * self.part(P[self.at], Q[self.bt])
            total = total + (1 - share) * ranks(P[others_p], Q[others_q], 1 << 20)
        return total, len(s.student) - 1


class Jsd:
    """Of the ids that both have, and one symbol for all others."""
    def __init__(self, same, lines):
        self.lines, self.at, self.bt = lines, torch.tensor([t for t, _ in same]), torch.tensor([b for _, b in same])

    @staticmethod
    def coarse(log_row, ids):
        rest = torch.ones(log_row.shape[-1], dtype=bool)
        rest[ids] = False
        return torch.cat([log_row[ids], torch.logsumexp(log_row[rest], -1, keepdim=True)])

    def loss(self, s, zs):
        total = 0
        for t, b in s.meetings[:-1]:
            p = self.coarse(torch.log_softmax(s.zt[t], -1), self.at)
            q = self.coarse(torch.log_softmax(zs[b], -1), self.bt)
            m = torch.logaddexp(p, q) - math.log(2)
            total = total + ((p.exp() * (p - m)).sum() + (q.exp() * (q - m)).sum()) / 2
        return total, len(s.meetings) - 1


def train(method, sequences):
    model = AutoModelForCausalLM.from_pretrained(HERE / "models" / "train", dtype=torch.float64, attn_implementation="sdpa").eval()
    groups = [{"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": DECAY},
              {"params": [p for p in model.parameters() if p.dim() == 1], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=BETAS, eps=EPSILON)
    losses = []
    for _ in range(N_STEPS):
        parts = [method.loss(s, model(torch.tensor([s.student])).logits[0]) for s in sequences]
        n = sum(count for _, count in parts)
        loss = sum(total for total, _ in parts) / n
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        losses.append(loss.item())
    print(method.lines[0], n, "positions", " ".join(f"{x:.5f}" for x in losses[::4]), flush=True)
    return n, losses


def main():
    generator = torch.Generator().manual_seed(21)
    letters = list("abcdefgh") + [SPACE]
    teacher, teacher_vocab = tokenizer_make("teacher.json", TEACHER, letters, 2)
    student, student_vocab = tokenizer_make("student.json", STUDENT, letters[::-1], 0)
    V = len(teacher_vocab)
    same = [(i, student_vocab[text]) for text, i in teacher_vocab.items() if text in student_vocab]
    sequences = [Sequence(teacher, student, text, generator, V) for text in TEXTS]
    methods = [Uld(1 << 20, 1.0, ["uld top-k=64"]), Uld(5, 2.0, ["uld top-k=5 temperature=2 weight=1.5", "cross-entropy weight=0.5"], 0.5),
               Gold(0.5, same, ["gold top-k=64"]), Gold(0.3, same, ["gold beta=0.3 top-k=64"]), Jsd(same, ["jsd top-k=64"])]
    out = b"KDGV" + u32(len(sequences), V, N_STEPS) + f64(RATE, *BETAS, EPSILON, DECAY, CLIP)
    for s in sequences:
        out += u32(len(s.teacher), *s.teacher) + s.zt.to(torch.float32).numpy().astype("<f4").tobytes()
        out += u32(len(s.student), len(s.meetings))
    out += u32(len(methods))
    for method in methods:
        out += u32(len(method.lines)) + b"".join(u32(len(line)) + line.encode() for line in method.lines)
        n, losses = train(method, sequences)
        out += u32(n) + f64(*losses)
    (HERE / "vocabulary.bin").write_bytes(out)


if __name__ == "__main__":
    main()
