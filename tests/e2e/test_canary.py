#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The known question, from outside: bits of a weight are changed in the daemon's memory, and it must not go on."""
import json
import os
import struct
import sys
import tempfile
import unittest

import kdserved
from kdserved import Daemon, wait_until

SKIP = 77


def places(pid, data):
    """Where the bytes lie in the process's writable memory."""
    found = []
    with open("/proc/%d/maps" % pid) as maps, open("/proc/%d/mem" % pid, "rb", 0) as memory:
        for line in maps:
            span, mode = line.split()[:2]
            begin, end = (int(x, 16) for x in span.split("-"))
            if mode[:2] != "rw" or end - begin > 1 << 30:
                continue
            try:
                memory.seek(begin)
                block = memory.read(end - begin)
            except (OSError, ValueError, OverflowError):
                continue
            at = block.find(data)
            while at >= 0:
                found.append(begin + at)
                at = block.find(data, at + 1)
    return found


def damage(pid, data):
    """Flips one bit in each copy of the bytes, of the first number; how many there are. A bit of the upper half: what lies below it, products
    of bfloat16 may round away, and then the answer is no other."""
    found = places(pid, data)
    with open("/proc/%d/mem" % pid, "r+b", 0) as memory:
        for place in found:
            memory.seek(place + 2)
            byte = memory.read(1)[0]
            memory.seek(place + 2)
            memory.write(bytes([byte ^ 0x20]))
    return len(found)


def norm_weights(model):
    """The bytes of a layer's norm, as float32, from the model's safetensors file."""
    with open(os.path.join(model, "model.safetensors"), "rb") as f:
        n, = struct.unpack("<Q", f.read(8))
        header = json.loads(f.read(n))
        entry = header["model.layers.0.post_attention_layernorm.weight"]
        begin, end = entry["data_offsets"]
        f.seek(8 + n + begin)
        data = f.read(end - begin)
    if entry["dtype"] == "F32":
        return data
    assert entry["dtype"] == "BF16", entry
    return b"".join(b"\0\0" + data[i:i + 2] for i in range(0, len(data), 2))


class Canary(unittest.TestCase):
    def damaged(self, *arguments):
        d = Daemon("--canary-interval", "100ms", *arguments)
        before = d.metrics()["kd_canary_right_total"]
        wait_until(lambda: d.metrics()["kd_canary_right_total"] > before, "a second right answer")
        self.assertEqual(d.get("/ready")[0], 200)
        self.assertEqual(d.metrics()["kd_forward_passes_total"], 0)
        self.assertGreater(damage(d.process.pid, norm_weights(d.model)), 0)
        return d

    def test_a_changed_bit_of_a_weight_ends_the_process_with_70(self):
        d = self.damaged()
        try:
            self.assertEqual(d.wait_exit(), 70)
            self.assertIn("canary: the known question has another answer now", d.log())
        finally:
            d.stop(expect=70)

    def test_an_answer_other_than_the_first_starts_refuses_to_start(self):
        with tempfile.TemporaryDirectory(prefix="kdserved-e2e-") as directory:
            store = os.path.join(directory, "store")
            with Daemon("--store", store, directory=directory):
                pass
            name, = (n for n in os.listdir(store) if n.endswith(".canary"))
            path = os.path.join(store, name)
            with Daemon("--store", store, directory=directory):
                pass
            with open(path, "r+b") as f:
                record = bytearray(f.read())
                at = record.rindex(b"\x09\x00", 0, len(record))    # the entropies' section
                self.assertEqual(len(record) - at - 8, struct.unpack_from("<I", record, at + 4)[0])
                value, = struct.unpack_from("<f", record, at + 8)
                struct.pack_into("<f", record, at + 8, value / 2)
                struct.pack_into("<I", record, 12, kdserved.crc32c(bytes(record[:12] + record[16:])))
                f.seek(0)
                f.write(record)
            d = Daemon("--store", store, directory=directory, wait=False)
            self.assertEqual(d.wait_exit(), 70)
            self.assertRegex(d.log(), r"canary: .*%s.*entropy at position 0" % name.replace(".", r"\."))
            d.stop(expect=70)
            os.unlink(path)
            with Daemon("--store", store, directory=directory):
                pass

    def test_the_reference_is_asked_where_that_is_wanted(self):
        with Daemon("--canary-reference", "--canary-interval", "0") as d:
            self.assertEqual(d.metrics()["kd_canary_right_total"], 3)


def may_write_memory():
    try:
        with open("/proc/self/mem", "r+b", 0):
            return sys.platform == "linux"
    except OSError:
        return False


if __name__ == "__main__":
    if not may_write_memory():
        print("SKIP: the memory of processes may not be written here")
        sys.exit(SKIP)
    unittest.main(verbosity=2)
