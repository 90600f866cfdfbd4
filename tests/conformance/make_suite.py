# SPDX-License-Identifier: Apache-2.0
"""Writes records.txt and frames.txt (see README) from kdserved_bytes.py. Run it in this folder; the same input gives the same files."""
import random
import struct

import kdserved_bytes as kd
from suite_records import record_cases
from suite_frames import frame_cases

FLOATS = {"max_logit", "lse", "logits", "dense", "own_logit", "entropy", "max_prob", "sum_squares", "tail", "gathered", "draw_log_ratios",
          "span_sums"}


def words(name, values):
    if name in FLOATS or name.startswith("feature"):
        return " ".join("%08x" % struct.unpack("<I", kd.f32_bytes(v))[0] for v in values)
    return " ".join(map(str, values))


def hex_lines(data):
    for at in range(0, len(data), 64):
        yield "hex " + data[at:at + 64].hex()


def write(path, what, cases):
    names = set()
    with open(path, "w") as f:
        f.write("# %s of the conformance suite; written by make_suite.py, explained in README.\n" % what)
        for name, kind, verdict, data, lines in cases:
            assert name not in names, name
            names.add(name)
            body = ["case " + name, "is " + kind, verdict, *hex_lines(data), *lines, "end"]
            f.write("\n" + "\n".join(body) + "\n")
    print("%s: %d cases" % (path, len(names)))


def record_lines(record):
    q = record.query
    yield "key " + kd.key_of(record.teacher, record.tokens, q).hex()
    yield "vocabulary %d" % record.vocab_size
    yield "tokens " + words("tokens", record.tokens)
    yield "rows %d %d" % (q.first, q.last)
    for name, values in record.decoded().items():
        yield ("%s %s" % (name.replace(" ", "_"), words(name, values))).rstrip()


if __name__ == "__main__":
    write("records.txt", "Records", record_cases(record_lines))
    write("frames.txt", "Frames", frame_cases())
