# SPDX-License-Identifier: Apache-2.0
"""See stored.sh. stored.py TEACHER COMMIT ROUNDS SEQUENCES"""
import datetime
import json
import os
import random
import re
import shutil
import statistics
import sys
import tempfile

from streamed import LENGTH, peak_mib, score, start

MIB = 1 << 20
SPARE = 20 * MIB             # the window, and a little


def refusal(teacher, directory, n_sequences):
    """MiB without which it does not start, buffers of a shelf left out, as it says itself."""
    d = start(teacher, directory, n_sequences * LENGTH, "--memory", "1M", wait=False)
    try:
        d.wait_exit()
        found = re.search(r"needs (\d+) MiB .*buffers (\d+)\)", d.log())
        return int(found.group(1)) - int(found.group(2))
    finally:
        d.stop(expect=None)


def main(teacher, commit, rounds, n_sequences):
    directory = tempfile.mkdtemp(prefix="kdserved-stored-")
    rng, ratios = random.Random(3), []
    try:
        cap = refusal(teacher, directory, n_sequences) * MIB + os.path.getsize(teacher) + SPARE
        with start(teacher, directory, n_sequences * LENGTH) as packed, \
                start(teacher, directory, n_sequences * LENGTH, "--memory", str(cap)) as stored, \
                packed.client(timeout=7200) as a, stored.client(timeout=7200) as b:
            model = stored.get("/v1/model")[1]
            if not model["stored_bytes"]:
                raise SystemExit("stored.py: nothing is stored under %d MiB: %s" % (cap // MIB, json.dumps(model)))
            element = 2 if model["numeric"] == "bf16" else 4
            print("date,commit,load,threads,packed_mib,stored_mib,cap_mib,packed_peak_mib,peak_mib,tokens,packed_tokens_s,stored_tokens_s,ratio,"
                  "packed_processor_s,stored_processor_s,processor_ratio,same_bits", flush=True)
            tokens = n_sequences * LENGTH
            for i in range(-1, rounds):
                wanted = [[rng.randrange(model["vocab_size"]) for _ in range(LENGTH)] for _ in range(n_sequences)]
                runs = [(a, packed), (b, stored)]
                results = {d: score(c, d, wanted) for c, d in (runs if i % 2 == 0 else reversed(runs))}
                p, s = results[packed], results[stored]
                if i < 0:      # what a process meets for the first time
                    continue
                ratios.append((s[0] / p[0], s[1] / p[1]))
                print("%s,%s,%.1f,%d,%d,%d,%d,%d,%d,%d,%.1f,%.1f,%.3f,%.2f,%.2f,%.3f,%d" % (
                    datetime.date.today(), commit, os.getloadavg()[0], os.cpu_count(), element * model["n_parameters"] // MIB,
                    model["stored_bytes"] // MIB, cap // MIB, peak_mib(packed), peak_mib(stored), tokens, tokens / p[0], tokens / s[0],
                    ratios[-1][0], p[1], s[1], ratios[-1][1], p[3] == s[3]), flush=True)
            print("# median: a pass takes %.3f times as long (processor time %.3f) in %d rounds" % (
                statistics.median(x for x, _ in ratios), statistics.median(y for _, y in ratios), rounds))
    finally:
        shutil.rmtree(directory)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
