#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What storing costs scoring: storing.py TEACHER DIRECTORY [ROUNDS [SEQUENCES [TOKENS]]]. Two daemons with the same teacher, one with a store
in DIRECTORY, are asked the same new questions (top-64, f16) in turn, the order changing from round to round; one CSV row a round, then the
median of the ratios of storing to not storing. Neighbouring rounds are compared because a busy machine disturbs both alike."""
import os
import random
import statistics
import sys
import tempfile
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.realpath(__file__)), "..", "e2e"))
from kdserved import Daemon, wait_until


def rate(client, sequences):
    begin = time.monotonic()
    answers = client.score(sequences, top_k=64, values=1, own=True)
    seconds = time.monotonic() - begin
    if len(answers) != len(sequences) or any(cached for cached, _ in answers.values()):
        raise SystemExit("storing.py: an answer was not computed")
    return sum(map(len, sequences)) / seconds


def main():
    if len(sys.argv) < 3:
        raise SystemExit("usage: storing.py TEACHER DIRECTORY [ROUNDS [SEQUENCES [TOKENS]]]")
    n_rounds, n_sequences, n_tokens = [int(v) for v in sys.argv[3:6] + ["12", "4", "256"][len(sys.argv) - 3:]]
    rng = random.Random(5)
    ratios = []
    with tempfile.TemporaryDirectory(prefix="storing-", dir=sys.argv[2]) as directory, \
            Daemon("--store", directory, model=sys.argv[1], patience=300) as kept, Daemon(model=sys.argv[1], patience=300) as plain, \
            kept.client(timeout=300) as a, plain.client(timeout=300) as b:
        print("round,storing_tokens/s,without_tokens/s,ratio,load")
        for i in range(-1, n_rounds):              # the first warms up
            sequences = [[rng.randrange(1000, 40000) for _ in range(n_tokens)] for _ in range(n_sequences)]
            order = [(a, sequences), (b, sequences)]
            rates = {id(c): rate(c, s) for c, s in (order if i % 2 else reversed(order))}
            if i < 0:
                continue
            ratios.append(rates[id(a)] / rates[id(b)])
            print("%d,%.0f,%.0f,%.3f,%.1f" % (i, rates[id(a)], rates[id(b)], ratios[-1], os.getloadavg()[0]), flush=True)
        wait_until(lambda: kept.get("/v1/status")[1]["store"]["appended"] == (n_rounds + 1) * n_sequences, "storing")
    ratios.sort()
    print("median,,,%.3f,quartiles,%.3f,%.3f" % (statistics.median(ratios), ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]))


if __name__ == "__main__":
    main()
