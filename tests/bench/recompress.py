#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What a general compressor (zstd) would still gain on records: recompress.py TEACHER DIRECTORY TEXT [RECORDS]. Real rows of TEXT, 256
tokens a record, top-64 and own, in each format of values; every record compressed alone. One CSV row per format and level."""
import os
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.realpath(__file__)), "..", "e2e"))
from kdserved import Daemon

TOKENS = 256
FORMATS = {"f32": 0, "f16": 1, "u8": 2}


def main():
    if len(sys.argv) < 4:
        raise SystemExit("usage: recompress.py TEACHER DIRECTORY TEXT [RECORDS]")
    n = int(sys.argv[4]) if len(sys.argv) > 4 else 10
    with open(sys.argv[3], encoding="utf-8", errors="ignore") as f:
        text = f.read(6 * TOKENS * n)
    records = {name: [] for name in FORMATS}
    with tempfile.TemporaryDirectory(prefix="recompress-", dir=sys.argv[2]) as store, \
            Daemon("--store", store, model=sys.argv[1], patience=300) as d, d.client(timeout=300) as c:
        tokens = d.post("/v1/tokenize", {"text": text})[1]["tokens"]
        for i in range(min(n, len(tokens) // TOKENS)):
            for name, values in FORMATS.items():
                answers = c.score([tokens[i * TOKENS:(i + 1) * TOKENS]], top_k=64, values=values, own=True)
                records[name].append(answers[0][1])
    print("values,level,bytes/token,zstd_bytes/token,gain_%")
    for name, each in records.items():
        before = sum(map(len, each))
        for level in 1, 3, 9, 19:
            after = sum(len(subprocess.run(["zstd", "-q", "-%d" % level, "-c"], input=r, stdout=subprocess.PIPE, check=True).stdout)
                        for r in each)
            print("%s,%d,%.1f,%.1f,%.1f" % (name, level, before / TOKENS / len(each), after / TOKENS / len(each), 100 - 100 * after / before))


if __name__ == "__main__":
    main()
