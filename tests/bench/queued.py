#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What it costs to have much waiting: queued.py BUILD_FOLDER TEACHER [ROUNDS [TOKENS]], CSV on stdout. One request of 8, 64 and 512 sequences
(of TOKENS tokens each, all positions, top-64), in turns, the small ones as often as it takes to compute the same number of tokens: tokens
per second by the clock and per second of the daemon's processor time, and how much memory the daemon had more at its highest than before, for each
token that waited. A row for each number and round; the daemon is a new one for each, so that memory one of them left behind serves no other."""
import os
import random
import sys
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.realpath(__file__)), "..", "e2e"))
import kdserved
from kdserved import Daemon

QUEUED = (8, 64, 512)


class Watch(threading.Thread):
    """The highest resident memory of its own that a process had meanwhile."""

    def __init__(self, pid):
        super().__init__()
        self.path, self.most, self.over = "/proc/%d/status" % pid, 0, threading.Event()
        self.first = self.look()
        self.start()

    def look(self):
        with open(self.path) as f:
            return next(int(line.split()[1]) << 10 for line in f if line.startswith("RssAnon"))

    def run(self):
        while not self.over.wait(0.02):
            self.most = max(self.most, self.look())

    def stop(self):
        self.over.set()
        self.join()
        return self.most - self.first


def processor_seconds(pid):
    with open("/proc/%d/stat" % pid) as f:
        return sum(map(int, f.read().rsplit(")", 1)[1].split()[11:13])) / os.sysconf("SC_CLK_TCK")


def ask(client, rng, n, tokens):
    answers = client.score([[rng.randrange(1000, 40000) for _ in range(tokens)] for _ in range(n)], top_k=64, values=1, flags=2)
    assert len(answers) == n


def main(build, teacher, rounds=3, tokens=64):
    kdserved.PROGRAM = os.path.join(build, "kdserved")
    rng = random.Random(1)
    print("queued,round,tokens,tokens_s,tokens_cpu_s,bytes_per_queued_token,load")
    for i in range(rounds):
        for n in QUEUED[i % 3:] + QUEUED[:i % 3]:
            with Daemon("--threads", os.environ.get("THREADS", "0"), model=teacher, patience=600) as d:
                with d.client(timeout=3600) as client:
                    ask(client, rng, 8, tokens)                           # memory that is met for the first time
                    watch, before, began = Watch(d.process.pid), processor_seconds(d.process.pid), time.monotonic()
                    for _ in range(QUEUED[-1] // n):
                        ask(client, rng, n, tokens)
                    took, used, more = time.monotonic() - began, processor_seconds(d.process.pid) - before, watch.stop()
                    total = QUEUED[-1] * tokens
                    print("%d,%d,%d,%.1f,%.1f,%.0f,%.1f" % (n, i, total, total / took, total / used, more / (n * tokens), os.getloadavg()[0]),
                          flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:5]))
