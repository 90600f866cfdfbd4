# SPDX-License-Identifier: Apache-2.0
"""Clients who ask for much over HTTP and hardly read it: the text that waits for them is among what queue-bytes bounds, who comes too many is
refused at once, another token's answers are made beside them, and nothing of an answer is lost."""
import hashlib
import json
import os
import re
import socket
import sys
import tempfile
import unittest

import kdserved
from kdserved import Daemon, wait_until

MIB = 1 << 20
QUEUE_MIB, READERS, SEQUENCES = 32, 24, 4
TOKENS = [[i] + [7] * 1022 for i in range(SEQUENCES)]
SECRETS = {"slow": "kds_who-reads-slowly", "quick": "kds_who-reads-quickly"}


def question(encoding="json"):
    """Dense rows in u8: the text of one sequence is some ten times its record."""
    return json.dumps({"sequences": [{"tokens": t} for t in TOKENS], "dense": True, "values": "u8", "encoding": encoding}).encode()


def ask(d, body):
    """A client with as little room of its own as the kernel grants."""
    s = socket.socket()
    s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    s.settimeout(kdserved.PATIENCE)
    s.connect(("127.0.0.1", d.port))
    s.sendall(b"POST /v1/score HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\nAuthorization: Bearer %s\r\n"
              b"Content-Length: %d\r\n\r\n%s" % (SECRETS["slow"].encode(), len(body), body))
    return s


def read_head(s):
    head = b""
    while b"\r\n\r\n" not in head:
        head += s.recv(1)
    return int(head.split()[1]), head.decode().lower()


def read_chunks(s):
    """The body of a reply whose head was read."""
    data, body, at = bytearray(), bytearray(), 0
    with s:
        while piece := s.recv(MIB):
            data += piece
    while True:
        end = data.index(b"\r\n", at)
        n = int(data[at:end], 16)
        if not n:
            return bytes(body)
        body += data[end + 2:end + 2 + n]
        at = end + 4 + n


def resident_mib(d):
    with open("/proc/%d/status" % d.process.pid) as f:
        return int(re.search(r"VmRSS:\s+(\d+)", f.read()).group(1)) / 1024


class SlowReaders(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory(prefix="kdserved-slow-")
        self.addCleanup(directory.cleanup)
        tokens, store = (os.path.join(directory.name, name) for name in ("tokens", "store"))
        with open(tokens, "w", opener=lambda p, flags: os.open(p, flags, 0o600)) as f:
            for name, secret in SECRETS.items():
                f.write("%s %s score\n" % (name, hashlib.sha256(secret.encode()).hexdigest()))
        self.daemon = Daemon("--tokens", tokens, "--store", store, "--max-tokens", "1024", "--queue-bytes", "%dM" % QUEUE_MIB, "--write-timeout",
                             "%ds" % (5 * kdserved.PATIENCE))
        self.addCleanup(self.daemon.stop)

    def post(self, who, body):
        return self.daemon.http("POST", "/v1/score", body, {"Authorization": "Bearer " + SECRETS[who]})

    def metrics(self):
        body = self.daemon.http("GET", "/metrics", headers={"Authorization": "Bearer " + SECRETS["quick"]})[2].decode()
        return {name: float(value) for name, value in re.findall(r"^(\S+) (\S+)$", body, re.M)}

    def crowd(self, body):
        """Sends the question from everywhere; gives the clients that were let in and have a status."""
        clients, refused = [], 0
        for s in [ask(self.daemon, body) for _ in range(READERS)]:
            status, head = read_head(s)
            if status == 200:
                clients.append(s)
                continue
            self.assertEqual(status, 429)
            self.assertIn("retry-after: ", head)
            s.close()
            refused += 1
        self.assertGreater(len(clients), 1)
        self.assertGreater(refused, 1)
        return clients

    def test_what_waits_for_them_is_bounded_and_none_of_it_is_lost(self):
        for encoding in ("json", "base64"):
            with self.subTest(encoding=encoding):
                body = question(encoding)
                self.assertEqual(self.post("slow", body)[0], 200)       # from now on the store has the answers
                want = self.post("slow", body)[2]
                before = resident_mib(self.daemon)
                clients = self.crowd(body)
                m = self.metrics()
                self.assertLessEqual(m["kd_reserved_bytes"], QUEUE_MIB * MIB)
                self.assertGreater(m["kd_reserved_bytes"], len(clients) * len(want) / SEQUENCES)
                grown = resident_mib(self.daemon) - before
                print("%s: %d of %d readers of %.1f MiB let in: %.1f MiB reserved, %.1f MiB grown" % (
                    encoding, len(clients), READERS, len(want) / MIB, m["kd_reserved_bytes"] / MIB, grown), file=sys.stderr)
                if not os.environ.get("KDSERVED_TEST_SANITIZED"):
                    self.assertLess(grown, QUEUE_MIB + 8)
                self.assertEqual(self.post("slow", body)[0], 429)
                self.assertEqual(self.post("quick", body)[::2], (200, want))       # has its share
                for s in clients:
                    self.assertEqual(read_chunks(s), want)
                wait_until(lambda: self.metrics()["kd_reserved_bytes"] == 0, "all of it to be taken")
                self.assertEqual(self.post("slow", body)[::2], (200, want))


if __name__ == "__main__":
    unittest.main(verbosity=2)
