#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A store on a file system of 4 MiB that fills up: questions are answered, only durable ones are refused, both doors say what is wrong, and
all is well again once there is space. Mounts a tmpfs in a namespace of its own; skipped (77) where that is not allowed."""
import ctypes
import os
import shutil
import sys
import tempfile
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.realpath(__file__)), "..", "conformance"))
import kdserved_bytes as kd
from kdserved import DONE, SCORE, WHOLE, Daemon, ProtocolError, wait_until

CLONE_NEWNS, MS_REC, MS_PRIVATE, MNT_DETACH = 0x20000, 0x4000, 1 << 18, 2
DURABLE = 1
LENGTH = 40
mount_point = None


def small_disk():
    """An empty file system of 4 MiB that only this process and its children see, or None."""
    libc = ctypes.CDLL(None, use_errno=True)
    path = tempfile.mkdtemp(prefix="kdserved-full-")
    if libc.unshare(CLONE_NEWNS) or libc.mount(None, b"/", None, MS_REC | MS_PRIVATE, None) or \
            libc.mount(b"tmpfs", path.encode(), b"tmpfs", 0, b"size=4m,mode=0755"):
        os.rmdir(path)
        return None
    return path


def tokens(i):
    return [i % 250, i // 250 % 250] + [(7 * j + i) % 250 for j in range(LENGTH - 2)]


def ask(client, i, flags=0):
    """Whether it came from the store."""
    request_id = client.next_id
    client.next_id += 1
    client.send(SCORE, request_id, kd.score_body(kd.Query(dense=True, values=kd.F32), [tokens(i)], flags=flags))
    try:
        return client.finish_score(request_id)[0][0]
    except ProtocolError as e:
        if e.index != WHOLE:                        # one sequence failed; the request ends all the same
            assert client.receive()[:2] == (DONE, request_id)
        raise


class FullDisk(unittest.TestCase):
    def fill(self, client):
        """Durable questions until one is refused. How many were not."""
        n = 0
        while True:
            try:
                self.assertFalse(ask(client, n, DURABLE))
            except ProtocolError as e:
                self.assertEqual(e.code, "store")
                self.assertIn(os.path.join(mount_point, "store"), e.message)
                return n
            n += 1
            self.assertLess(n, 1000)

    def expect_degraded(self, d, client, n):
        self.assertEqual(d.get("/ready"), (200, {"ready": True, "degraded": ["store", "space"]}))
        self.assertEqual(d.metrics()["kd_store_failing"], 1)
        self.assertTrue(d.get("/v1/status")[1]["store"]["failing"])
        wait_until(lambda: "answers are not stored until there is space again" in d.log(), "the log")
        for i in range(n, n + 20):                  # answered, though not kept
            self.assertFalse(ask(client, i))
        for i in range(0, n, 7):                    # what is there is found
            self.assertTrue(ask(client, i))
        # as large as what was refused: a smaller one may still fit
        status, reply = d.post("/v1/score", {"sequences": [{"tokens": tokens(n + 30)}], "dense": True, "durable": True})
        self.assertEqual((status, reply["error"]["code"]), (507, "store"), reply)
        self.assertIn(os.path.join(mount_point, "store"), reply["error"]["message"])
        status, reply = d.post("/v1/score", {"sequences": [{"tokens": tokens(n)}], "top_k": 3})
        self.assertEqual(status, 200, reply)
        self.assertEqual(len(reply["sequences"][0]["rows"]), LENGTH)

    def test_serving_goes_on_and_storing_comes_back(self):
        store, filler = os.path.join(mount_point, "store"), os.path.join(mount_point, "filler")
        with open(filler, "wb") as f:
            f.write(bytes(2 << 20))
        with Daemon("--store", store) as d:
            with d.client() as client:
                n = self.fill(client)
                self.assertGreater(n, 10)
                self.expect_degraded(d, client, n)
                self.assertEqual(self.fill_fails_still(client, n), "store")
                os.unlink(filler)                   # nobody asks anything until all is said to be well
                wait_until(lambda: d.get("/ready")[1] == {"ready": True}, "/ready")
                self.assertTrue(self.is_stored(client, n))
                self.assertEqual(d.metrics()["kd_store_failing"], 0)
                wait_until(lambda: "answers are stored again" in d.log(), "the log")
                self.assertFalse(ask(client, n + 500, DURABLE))
            directory = d.directory
            d.own = False
        with Daemon("--store", store, directory=directory) as d, d.client() as client:
            self.assertEqual(d.metrics()["kd_store_corrupt_total"], 0)
            for i in list(range(n + 1)) + [n + 500]:
                self.assertTrue(ask(client, i), i)
        shutil.rmtree(directory)

    def fill_fails_still(self, client, n):
        with self.assertRaises(ProtocolError) as caught:
            ask(client, n + 100, DURABLE)
        return caught.exception.code

    def is_stored(self, client, n):
        try:
            ask(client, n, DURABLE)
            return True
        except ProtocolError:
            return False


if __name__ == "__main__":
    mount_point = small_disk()
    if not mount_point:
        print("cannot mount a tmpfs here")
        sys.exit(77)
    try:
        ok = unittest.main(exit=False).result.wasSuccessful()
    finally:
        ctypes.CDLL(None).umount2(mount_point.encode(), MNT_DETACH)
        os.rmdir(mount_point)
    sys.exit(not ok)
