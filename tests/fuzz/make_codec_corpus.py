# SPDX-License-Identifier: Apache-2.0
"""Writes tests/fuzz/corpus/record and frame from the cases of the conformance suite. In frame, a body has its kind as a byte before it; a
whole frame begins with its own magic. Run it anywhere."""
import os
import sys

HERE = os.path.dirname(os.path.realpath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "conformance"))
from suite_frames import frame_cases
from suite_records import record_cases

SMALL = 1500    # larger inputs slow a fuzzer down


def records():
    for name, kind, _, data, _ in record_cases(lambda record: ()):
        if kind == "record" and len(data) <= SMALL:
            yield name, data


def frames():
    for name, _, _, data, _ in frame_cases():
        body = data[32:]
        yield ("body-" + name, data[5:6] + body) if body and not name.startswith("header") else ("frame-" + name, data)
        if name.startswith("manual"):
            yield "frame-" + name, data


if __name__ == "__main__":
    for folder, examples in (("record", records()), ("frame", frames())):
        path = os.path.join(HERE, "corpus", folder)
        os.makedirs(path, exist_ok=True)
        for name, data in examples:
            with open(os.path.join(path, name), "wb") as f:
                f.write(data)
