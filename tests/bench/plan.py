#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What kdctl plan promises against what happens: plan.py BUILD_FOLDER TEACHER [ROUNDS], CSV on stdout. In every round a new daemon is
measured once (kdctl plan --measure, sequences of 512 tokens); from these figures the plan is made for sequences of 128, 512 and 2048
tokens, then such are scored (top-64, f16). A row for tokens/s and one for the bytes of a position at each length, and one for the memory
the daemon has then. error: of the prediction, as a share of what was measured."""
import json
import os
import random
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.realpath(__file__)), "..", "e2e"))
import kdserved
from kdserved import Daemon

LENGTHS = (128, 512, 2048)
BATCH, CACHE = 2048, 8192         # kdserved's defaults
TOKENS = 6144                     # scored of each length: three passes


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


def measure(build, server, directory, rng, length):
    path, records = os.path.join(directory, "corpus.jsonl"), os.path.join(directory, "records")
    corpus(path, rng, length)
    summary = kdctl(build, "--server", server, "--json", "score", "--format", "jsonl", "--batch",
                    str(max(1, BATCH // length)), "--top-k", "64", "--values", "f16", "--no-store", "--records", records, path)["summary"]
    os.unlink(records)
    return summary


def row(round_, length, what, predicted, measured):
    print("%d,%d,%s,%.6g,%.6g,%.3f,%.1f" % (round_, length, what, predicted, measured, predicted / measured - 1, os.getloadavg()[0]),
          flush=True)


def one_round(build, teacher, directory, round_, rng):
    with Daemon("--threads", os.environ.get("THREADS", "0"), model=teacher, patience=600) as daemon:
        server = "unix:" + daemon.socket_path
        plan = ("--batch", str(BATCH), "--cache-tokens", str(CACHE))
        figures = kdctl(build, "--server", server, "--json", "plan", teacher, "--measure", "--length", "512", *plan)
        device = ("--flops", repr(figures["flops"]), "--bandwidth", repr(figures["bandwidth"]))
        for length in LENGTHS:
            told = kdctl(build, "--json", "plan", teacher, *device, "--length", str(length), *plan)
            done = measure(build, server, directory, rng, length)
            row(round_, length, "tokens/s", told["score_tokens_per_s"], done["tokens_per_second"])
            row(round_, length, "bytes of a row", told["row_bytes"], done["wire_bytes_per_position"])
        row(round_, LENGTHS[-1], "memory", told["memory_bytes"], memory_bytes(daemon.process.pid))


def main():
    if len(sys.argv) < 3:
        raise SystemExit("usage: plan.py BUILD_FOLDER TEACHER [ROUNDS]")
    build, rng = os.path.realpath(sys.argv[1]), random.Random(5)
    kdserved.PROGRAM = os.path.join(build, "kdserved")
    print("round,length,figure,predicted,measured,error,load")
    with tempfile.TemporaryDirectory(prefix="plan-") as directory:
        for round_ in range(int(sys.argv[3]) if len(sys.argv) > 3 else 1):
            one_round(build, sys.argv[2], directory, round_, rng)


if __name__ == "__main__":
    main()
