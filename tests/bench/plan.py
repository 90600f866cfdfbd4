#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What kdctl plan promises against what happens: plan.py BUILD_FOLDER TEACHER [ROUNDS], CSV on stdout. In every round, for each numeric
format, a new daemon is measured once (kdctl plan --measure, sequences of 512 tokens); from these figures the plan is made for sequences of
128, 512 and 2048 tokens, then such are scored (top-64, f16): a row for tokens/s and one for the bytes of a position at each length, and one
for the memory the daemon has then. With the same figures, a daemon under a memory cap that leaves most matrices on disk. Then training
(bench_train): the FLOP/s of one student at 512 tokens, from which other lengths and another student are planned. error: of the prediction, as
a share of what was measured; the largest of the medians is said at the end."""
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.realpath(__file__)), "..", "e2e"))
import kdserved
from kdserved import Daemon

LENGTHS = (128, 512, 2048)
BATCH, CACHE = 2048, 8192         # kdserved's defaults
TOKENS = 6144                     # scored of each length: three passes
STUDENTS = ((512, 8, 384), (128, 8, 384), (512, 6, 512))    # length, layers, width; the first is measured, the others are planned
STEPS = 4
THREADS = os.environ.get("THREADS", "0")
rows = []


def kdctl(build, *arguments):
    done = subprocess.run([os.path.join(build, "kdctl"), *arguments], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)


def memory_bytes(pid):
    """What the daemon has of its own: pages of the model's file, which the kernel may take back, are not in it."""
    with open("/proc/%d/status" % pid) as f:
        return next(int(line.split()[1]) << 10 for line in f if line.startswith("RssAnon"))


def corpus(path, rng, length):
    with open(path, "w") as f:
        for _ in range(TOKENS // length):
            f.write(json.dumps({"tokens": [rng.randrange(1000, 40000) for _ in range(length)]}) + "\n")


def score(build, server, directory, rng, length):
    path, records = os.path.join(directory, "corpus.jsonl"), os.path.join(directory, "records")
    corpus(path, rng, length)
    summary = kdctl(build, "--server", server, "--json", "score", "--format", "jsonl", "--length", str(length),
                    "--batch", str(max(1, BATCH // length)), "--top-k", "64", "--values", "f16", "--no-store", "--records", records, path)["summary"]
    os.unlink(records)
    return summary


def row(round_, kind, length, what, predicted, measured):
    rows.append((kind, length, what, predicted / measured - 1))
    print("%d,%s,%d,%s,%.6g,%.6g,%.3f,%.1f" % (round_, kind, length, what, predicted, measured, predicted / measured - 1, os.getloadavg()[0]),
          flush=True)


def start(teacher, *more):
    return Daemon("--threads", THREADS, "--batch-tokens", str(BATCH), "--cache-tokens", str(CACHE), *more, model=teacher, patience=600)


def scoring(build, teacher, directory, round_, rng, numeric):
    """The figures that the daemon's plan had, for later plans."""
    with start(teacher, "--numeric", numeric) as daemon:
        server = "unix:" + daemon.socket_path
        plan = ("--batch", str(BATCH), "--cache-tokens", str(CACHE))
        figures = kdctl(build, "--server", server, "--json", "plan", teacher, "--measure", "--length", "512", *plan)
        device = ("--flops", repr(figures["flops"]), "--bandwidth", repr(figures["bandwidth"]), "--products", figures["products"], *plan)
        for length in LENGTHS:
            told = kdctl(build, "--json", "plan", teacher, *device, "--length", str(length))
            done = score(build, server, directory, rng, length)
            row(round_, figures["products"], length, "tokens/s", told["score_tokens_per_s"], done["tokens_per_second"])
            row(round_, figures["products"], length, "bytes of a row", told["row_bytes"], done["wire_bytes_per_position"])
        row(round_, figures["products"], LENGTHS[-1], "memory", told["memory_bytes"], memory_bytes(daemon.process.pid))
    return figures, device


def streamed(build, teacher, directory, round_, rng, figures, device):
    """A cap that has room for half of the matrices."""
    free = kdctl(build, "--json", "plan", teacher, *device, "--memory", "1e12")
    cap = str(int(free["memory_needed_bytes"] + figures["resident_bytes"] / 2))
    told = kdctl(build, "--json", "plan", teacher, *device, "--length", "512", "--memory", cap)
    with start(teacher, "--memory", cap, "--stream-directory", directory) as daemon:
        daemon.wait_line("are read from")
        done = score(build, "unix:" + daemon.socket_path, directory, rng, 512)
        kind = figures["products"] + " streamed"
        row(round_, kind, 512, "tokens/s", told["score_tokens_per_s"], done["tokens_per_second"])


def student_file(directory, layers, width):
    path = os.path.join(directory, "student-%d-%d" % (layers, width))
    os.makedirs(path, exist_ok=True)
    with open(os.path.join(path, "config.json"), "w") as f:
        json.dump({"architectures": ["LlamaForCausalLM"], "hidden_size": width, "intermediate_size": (8 * width // 3 + 63) // 64 * 64,
                   "num_hidden_layers": layers, "num_attention_heads": width // 64, "vocab_size": 49152, "max_position_embeddings": 512,
                   "tie_word_embeddings": True}, f)
    return path


def training(build, teacher, directory, round_, device, precision):
    flops = None
    for length, layers, width in STUDENTS:
        student = student_file(directory, layers, width)
        plan = ("plan", teacher, *device, "--length", str(length), "--student", student)
        done = subprocess.run([os.path.join(build, "tests/bench/bench_train"), "cpu", THREADS, str(STEPS), "0", "kd", precision, str(length),
                               str(layers), str(width)], check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
        rate = float(done[-1].rsplit('",', 1)[1].split(",")[4])
        if flops is None:
            flops = rate * kdctl(build, "--json", *plan)["train_flop_per_token"]
            continue
        told = kdctl(build, "--json", *plan, "--train-flops", repr(flops))
        row(round_, "training %s %d x %d" % (precision, layers, width), length, "tokens/s", told["train_tokens_per_s"], rate)


def one_round(build, teacher, directory, round_, rng, precisions):
    figures, device = scoring(build, teacher, directory, round_, rng, "auto")
    scoring(build, teacher, directory, round_, rng, "int8")
    streamed(build, teacher, directory, round_, rng, figures, device)
    for precision in precisions:
        training(build, teacher, directory, round_, device, precision)


def main():
    if len(sys.argv) < 3:
        raise SystemExit("usage: plan.py BUILD_FOLDER TEACHER [ROUNDS]")
    build, rng = os.path.realpath(sys.argv[1]), random.Random(5)
    kdserved.PROGRAM = os.path.join(build, "kdserved")
    with open("/proc/cpuinfo") as f:
        precisions = ("f32", "bf16") if "avx512_bf16" in f.read() else ("f32",)
    print("round,kind,length,figure,predicted,measured,error,load")
    with tempfile.TemporaryDirectory(prefix="plan-") as directory:
        for round_ in range(int(sys.argv[3]) if len(sys.argv) > 3 else 1):
            one_round(build, sys.argv[2], directory, round_, rng, precisions)
    medians = {}
    for kind, length, what, error in rows:
        medians.setdefault((kind, length, what), []).append(error)
    worst = max(medians, key=lambda k: abs(statistics.median(medians[k])))
    print("# largest median error: %+.1f %% (%s, %d tokens, %s)" % (100 * statistics.median(medians[worst]), *worst))


if __name__ == "__main__":
    main()
