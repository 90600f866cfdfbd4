# SPDX-License-Identifier: Apache-2.0
"""A student that kdserved-worker wrote, read by `transformers`: it loads with AutoModelForCausalLM and AutoTokenizer, gives the same
token ids and, to 1e-4, the same logits as kdserved gives when it serves that student.

    check_student.py [STUDENT_DIRECTORY]

Without an argument it trains tiny students first (one for each export type). Needs the built programs ($top_builddir) and the Python
packages torch and transformers; exits 77 (skipped) where these cannot be imported."""
import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "e2e"))
try:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
except ImportError as missing:
    print("skipped:", missing)
    sys.exit(77)
import subprocess

import kdserved
import test_training

TEXTS = ["On the thin path, another hen and then the winter.", "def f(x):\n\treturn x ** 2  # 3.14\n", "na\u00efve caf\u00e9 \u2014 \u6f22\u5b57 \U0001f600!"]
TOLERANCE = 1e-4


def check(student):
    model = AutoModelForCausalLM.from_pretrained(student, torch_dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(student)
    vocab_size = model.config.vocab_size
    k, worst = min(vocab_size, 1024), 0.0
    with kdserved.Daemon("--numeric", "f32", "--max-json", "64M", model=student) as daemon:
        for text in TEXTS:
            status, ours = daemon.post("/v1/tokenize", {"text": text})
            assert status == 200, ours
            ids = tokenizer(text)["input_ids"]
            assert ids == ours["tokens"], (text, ids, ours["tokens"])
            assert tokenizer.decode(ids, skip_special_tokens=True) == text, text
            status, reply = daemon.post("/v1/score", {"sequences": [{"tokens": ids}], "top_k": k})
            assert status == 200, reply
            with torch.no_grad():
                theirs = model(torch.tensor([ids])).logits[0]
            assert theirs.shape == (len(ids), vocab_size)
            for row, reference in zip(reply["sequences"][0]["rows"], theirs):
                difference = (torch.tensor(row["logits"]) - reference[row["ids"]]).abs().max().item()
                lse = abs(row["lse"][0] - torch.logsumexp(reference, 0).item())
                worst = max(worst, difference, lse)
    generated = model.generate(torch.tensor([ids]), max_new_tokens=4, do_sample=False)
    assert generated.shape[1] > len(ids)
    print("%s: %d tokens in the vocabulary, largest difference of a logit or lse %.2e" % (student, vocab_size, worst))
    assert worst <= TOLERANCE, worst


def train_and_check():
    with kdserved.Daemon() as daemon:
        for kind in ("f32", "bf16", "f16"):
            output = os.path.join(daemon.directory, "out-" + kind)
            config = output + ".conf"
            with open(config, "w") as f:
                f.write(test_training.settings(daemon.directory, steps=6, student_type=kind, student_tied_head="no" if kind == "f16" else "yes"))
            subprocess.run([test_training.WORKER, "--config", config, "--output", output, "--server", "unix:" + daemon.socket_path], check=True)
            check(os.path.join(output, "student"))
        output = os.path.join(daemon.directory, "out-gpt2")
        with open(output + ".conf", "w") as f:
            f.write(test_training.settings(daemon.directory, steps=6, student_family="gpt2"))
        subprocess.run([test_training.WORKER, "--config", output + ".conf", "--output", output, "--server", "unix:" + daemon.socket_path], check=True)
        check(os.path.join(output, "student"))


if __name__ == "__main__":
    check(sys.argv[1]) if len(sys.argv) > 1 else train_and_check()
