# SPDX-License-Identifier: Apache-2.0
"""soak.py MINUTES [CSV]: the crowd of test_crowd.py, again and again, at a daemon that also keeps its answers (and lets the oldest go). After
each round the resident memory and the descriptors are read, and written to the file if one is named. At the end the memory of the last
quarter is held to that of the second: at most 1 MiB an hour more, and half a MiB for the noise of the allocator; descriptors must be the same,
the accounts add up and every answer have been right."""
import statistics
import sys
import tempfile
import time

import test_crowd
from kdserved import wait_until


class Soak(test_crowd.Crowd):
    def runTest(self):
        pass


def main(minutes, csv=None):
    with tempfile.TemporaryDirectory(prefix="kdserved-soak-") as store:
        Soak.arguments = ("--store", store, "--store-shard", "1M", "--store-max-bytes", "16M")
        Soak.setUpClass()
        soak, samples, answered = Soak(), [], 0
        try:
            wait_until(lambda: soak.daemon.metrics()["kd_reserved_requests"] == 0, "the first answers to be gone")
            soak.before = soak.descriptors() + 4           # shards come and go
            end = time.monotonic() + 60 * minutes
            while time.monotonic() < end:
                answered += soak.crowd(len(samples) + 1)["answered"]
                samples.append((time.monotonic(), soak.memory(), soak.descriptors()))
                if csv:
                    with open(csv, "a") as f:
                        f.write("%.1f,%d,%d\n" % (samples[-1][0] - samples[0][0], *samples[-1][1:]))
            m = soak.daemon.metrics()
        finally:
            Soak.doClassCleanups()
    n = len(samples) // 4
    early, late = samples[n:2 * n], samples[-n:]
    assert n, "too few rounds: more minutes"
    hours = (late[0][0] - early[0][0]) / 3600
    grown = statistics.median(s[1] for s in late) - statistics.median(s[1] for s in early)
    descriptors = [max(s[2] for s in part) for part in (early, late)]
    print("%d rounds, %d answers over HTTP, %d KiB, %+d KiB in %.2f h, descriptors %d then %d, store %d bytes" % (len(samples), answered,
        samples[-1][1], grown, hours, *descriptors, m["kd_store_bytes"]))
    for door in ("http", "socket"):
        parts = [m['kd_requests_%s{door="%s"}' % (name, door)] for name in ("answered_total", "rejected_total", "cancelled_total", "in_flight")]
        assert m['kd_requests_accepted_total{door="%s"}' % door] == sum(parts), parts
    assert grown <= 1024 * hours + 512, "memory grows"
    assert descriptors[1] <= descriptors[0] + 4, "descriptors grow"


if __name__ == "__main__":
    main(float(sys.argv[1]), *sys.argv[2:3])
