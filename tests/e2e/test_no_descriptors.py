# SPDX-License-Identifier: Apache-2.0
"""No file descriptor left: at accept of either door, and when the store needs a new shard. Who is connected is served all the while, nothing
spins, and once there are descriptors again everybody is served."""
import os
import resource
import shutil
import socket
import tempfile
import time
import unittest

import kdserved
from kdserved import Closed, Daemon, wait_until

N = 6                # connections that find no descriptor
N_KEPT = 40          # answers; a dozen or so fill a shard
DURABLE = 1
GET = b"GET /live HTTP/1.1\r\nHost: x\r\n\r\n"


class NoDescriptors(unittest.TestCase):
    def setUp(self):
        self.directory = tempfile.mkdtemp(prefix="kdserved-e2e-")
        self.addCleanup(shutil.rmtree, self.directory, ignore_errors=True)
        self.daemon = Daemon("--store", os.path.join(self.directory, "store"), "--store-shard", "1M", directory=self.directory)
        self.addCleanup(self.daemon.stop)
        self.hard = resource.prlimit(self.daemon.process.pid, resource.RLIMIT_NOFILE)[1]

    def allow(self, n):
        resource.prlimit(self.daemon.process.pid, resource.RLIMIT_NOFILE, (n, self.hard))

    def lowest_free(self):
        """A limit of so many leaves none."""
        used = {int(name) for name in os.listdir("/proc/%d/fd" % self.daemon.process.pid)}
        return min(set(range(len(used) + 1)) - used)

    def cpu_seconds(self):
        with open("/proc/%d/stat" % self.daemon.process.pid) as f:
            fields = f.read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def web(self):
        s = socket.create_connection(("127.0.0.1", self.daemon.port), timeout=kdserved.PATIENCE)
        self.addCleanup(s.close)
        return s

    def lives(self, s):
        s.sendall(GET)
        return b"200 OK" in s.recv(65536)

    def exhaust(self):
        """A client at each door, and not one descriptor more."""
        web, frames = self.web(), self.daemon.client()
        self.addCleanup(frames.socket.close)
        self.assertTrue(self.lives(web))
        self.allow(self.lowest_free())
        return web, frames

    def test_at_accept(self):
        web, frames = self.exhaust()
        waiting = [self.web() for _ in range(N)]
        others = [kdserved.Client(self.daemon.socket_path, hello=False) for _ in range(N)]
        for s in waiting:
            s.sendall(GET)
        began, cpu = time.monotonic(), self.cpu_seconds()
        while time.monotonic() - began < 1.5:
            self.assertTrue(self.lives(web))
            self.assertEqual(len(frames.score([[1, 2]], top_k=1)), 1)
            time.sleep(0.1)
        used = (self.cpu_seconds() - cpu) / (time.monotonic() - began)
        self.assertLess(used, 0.5, "the daemon spins while it has no descriptors")
        self.allow(self.hard)
        for s in waiting:
            try:
                self.assertIn(b"200 OK", s.recv(65536))
            except ConnectionError:
                pass                                       # refused rather than left waiting
        for c in others:
            with c:
                try:
                    c.send(kdserved.PING, 1)
                    c.receive()
                except (Closed, ConnectionError):
                    pass
        wait_until(lambda: self.daemon.http("GET", "/live")[0] == 200, "new connections")
        with self.daemon.client() as c:
            self.assertEqual(len(c.score([[1, 2]], top_k=1)), 1)

    def keep(self, client, i):
        """An answer of some 70 KiB, on the disk when it comes."""
        self.assertEqual(len(client.score([[i % 250, i // 250] + [9] * 60], top_k=200, flags=DURABLE)), 1)

    def test_a_new_shard_needs_no_other_descriptor_than_the_last(self):
        with self.daemon.client() as c:
            self.keep(c, 0)
        web, frames = self.exhaust()
        for i in range(1, N_KEPT):
            self.keep(frames, i)
        self.assertTrue(self.lives(web))
        self.allow(self.hard)
        self.assertGreater(self.daemon.metrics()["kd_store_shards"], 2)
        with self.daemon.client() as c:
            for i in range(N_KEPT):
                self.assertTrue(c.score([[i % 250, i // 250] + [9] * 60], top_k=200)[0][0], "a record that was acknowledged")


if __name__ == "__main__":
    unittest.main(verbosity=2)
