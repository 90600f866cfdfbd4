# SPDX-License-Identifier: Apache-2.0
"""Writes the worked examples into tests/unit/*_golden.h and, in place of the dumps that begin with the same 16 bytes' magic and kind, into
the manual. Run it in the source folder after a format changed; prose around the dumps is for people to mend."""
import kdserved_bytes as kd

HEADER = """// SPDX-License-Identifier: Apache-2.0
// The worked examples of %s, byte for byte; written by tests/conformance/write_examples.py.
#pragma once

#include <stdint.h>
"""


def write_header(path, manual, arrays):
    with open(path, "w") as f:
        f.write(HEADER % manual)
        for name, data in arrays.items():
            f.write("\n" + kd.c_array(name, data))


def write_manual(path, examples):
    """The n-th dump of the page becomes the n-th example."""
    out, dumps, inside = [], list(examples), False
    for line in open(path):
        if inside and line.startswith(".Ed"):
            out += [text.rstrip() + "\n" for text in kd.hexdump(dumps.pop(0))]
            inside = False
        if not inside:
            out.append(line)
        if line.startswith(".Bd -literal -offset indent"):
            inside = True
    assert not dumps, "%s has fewer dumps than there are examples" % path
    open(path, "w").writelines(out)


if __name__ == "__main__":
    records, frames = [kd.first_example(), kd.second_example()], kd.frame_examples()
    write_header("tests/unit/record_golden.h", "kdserved-record.5", {"record_golden": records[0], "record_golden_2": records[1]})
    write_header("tests/unit/frame_golden.h", "kdserved-protocol.7", {name + "_golden": data for name, data in frames.items()})
    write_manual("man/kdserved-record.5", records)
    write_manual("man/kdserved-protocol.7", frames.values())
