# SPDX-License-Identifier: Apache-2.0
"""Clients who ask for much over HTTP and hardly read it: the text that waits for them stays near door-bytes, nobody else waits for them, and
nothing of an answer is lost."""
import concurrent.futures
import json
import os
import re
import socket
import sys
import tempfile
import threading
import time
import unittest

import kdserved
from kdserved import Daemon, wait_until

MIB = 1 << 20
DOOR_MIB, READERS, SEQUENCES = 8, 24, 4
TOKENS = [[i] + [7] * 1022 for i in range(SEQUENCES)]


def question(turn):
    """Dense rows in u8: the text of one sequence is some ten times its record."""
    return json.dumps({"sequences": [{"tokens": t} for t in TOKENS[turn:] + TOKENS[:turn]], "dense": True, "values": "u8"}).encode()


def ask(d, body):
    """A client with as little room of its own as the kernel grants."""
    s = socket.socket()
    s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    s.settimeout(kdserved.PATIENCE)
    s.connect(("127.0.0.1", d.port))
    s.sendall(b"POST /v1/score HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" %
              (len(body), body))
    return s


def read_all(s):
    """(status, body) of a reply in chunks."""
    data = bytearray()
    with s:
        while piece := s.recv(MIB):
            data += piece
    head, _, rest = bytes(data).partition(b"\r\n\r\n")
    if b"chunked" not in head.lower():
        return int(head.split()[1]), rest
    body, at = bytearray(), 0
    while True:
        end = rest.index(b"\r\n", at)
        n = int(rest[at:end], 16)
        if not n:
            return int(head.split()[1]), bytes(body)
        body += rest[end + 2:end + 2 + n]
        at = end + 4 + n


def resident_mib(d):
    with open("/proc/%d/status" % d.process.pid) as f:
        return int(re.search(r"VmRSS:\s+(\d+)", f.read()).group(1)) / 1024


class SlowReaders(unittest.TestCase):
    def daemon(self, *arguments):
        store = tempfile.TemporaryDirectory(prefix="kdserved-slow-")
        self.addCleanup(store.cleanup)
        d = Daemon("--max-tokens", "1024", "--store", store.name, *arguments)
        self.addCleanup(d.stop)
        self.assertEqual(d.http("POST", "/v1/score", question(0))[0], 200)       # from now on the store has the answers
        return d

    def check_account(self, m):
        n = [m['kd_requests_%s{door="http"}' % what] for what in ("accepted_total", "answered_total", "rejected_total", "cancelled_total", "in_flight")]
        self.assertEqual(n[0], sum(n[1:]))

    def test_what_waits_for_them_is_bounded_and_none_of_it_is_lost(self):
        d = self.daemon("--door-bytes", "%dM" % DOOR_MIB, "--write-timeout", "%ds" % (5 * kdserved.PATIENCE))
        wants = [d.http("POST", "/v1/score", question(i))[2] for i in range(SEQUENCES)]
        piece_mib = len(wants[0]) / SEQUENCES / MIB
        self.assertGreater(READERS * 2 * piece_mib, 8 * DOOR_MIB)
        before = resident_mib(d)
        readers = [ask(d, question(i % SEQUENCES)) for i in range(READERS)]
        wait_until(lambda: d.metrics()["kd_door_bytes"] >= DOOR_MIB * MIB, "text that nobody takes")
        end = time.monotonic() + 2
        while time.monotonic() < end:
            self.assertEqual(d.post("/v1/score", {"sequences": [{"tokens": [1, 2]}], "top_k": 1})[0], 200)
            held = d.metrics()["kd_door_bytes"] / MIB
            self.assertLess(held, DOOR_MIB + 2 * 2 * piece_mib)        # one for each thread of the desk, whose room grows by doubling
        grown = resident_mib(d) - before
        print("%d readers of %.1f MiB: %.0f MiB at the door, %.0f MiB grown" % (READERS, len(wants[0]) / MIB, held, grown), file=sys.stderr)
        if not os.environ.get("KDSERVED_TEST_SANITIZED"):
            self.assertLess(grown, DOOR_MIB + 2 * 2 * piece_mib + 16)
        with concurrent.futures.ThreadPoolExecutor(READERS) as pool:             # whoever is not read holds what another waits for
            for i, got in enumerate(pool.map(read_all, readers)):
                self.assertEqual(got, (200, wants[i % SEQUENCES]))
        wait_until(lambda: d.metrics()["kd_door_bytes"] == 0, "all of it to be taken")
        m = d.metrics()
        self.check_account(m)
        self.assertEqual((m['kd_requests_rejected_total{door="http"}'], m['kd_requests_cancelled_total{door="http"}']), (0, 0))

    def test_who_waits_too_long_for_room_is_refused(self):
        d = self.daemon("--door-bytes", "1M", "--max-json", "8M", "--write-timeout", "1s")
        done = threading.Event()

        def trickle(s):
            while not done.wait(0.01):
                s.recv(8192)
        with d.client() as holder:
            text = b'{"text":"' + b"a cat, " * 300000 + b'"}'
            holder.send(kdserved.CALL, 1, b"\x04\x00" + len("/v1/tokenize").to_bytes(2, "little") + len(text).to_bytes(4, "little") +
                        b"POST/v1/tokenize" + text)
            holder.socket.recv(1)
            self.assertGreater(d.metrics()["kd_door_bytes"], MIB)            # a reply that is taken slowly
            thread = threading.Thread(target=trickle, args=(holder.socket,))
            thread.start()
            try:
                status, headers, reply = d.http("POST", "/v1/score", question(0))
                self.assertEqual((status, json.loads(reply)["error"]["code"], headers["Retry-After"]), (429, "overloaded", "1"))
                self.assertEqual(d.post("/v1/score", {"sequences": [{"tokens": [1, 2]}], "top_k": 1})[0], 200)
                ask(d, question(0)).close()                  # leaves while it waits
                wait_until(lambda: d.metrics()['kd_requests_in_flight{door="http"}'] == 0, "it to be over")
            finally:
                done.set()
                thread.join()
        self.assertEqual(d.http("POST", "/v1/score", question(0))[0], 200)
        m = wait_until(lambda: (m := d.metrics())['kd_requests_in_flight{door="http"}'] == 0 and m, "all of them to be over")
        self.check_account(m)
        self.assertEqual(m["kd_door_bytes"], 0)

    def test_a_drain_ends_though_somebody_waits_for_room(self):
        d = self.daemon("--door-bytes", "1M", "--write-timeout", "1h", "--drain-timeout", "2s")
        readers = [ask(d, question(0)) for _ in range(6)]
        wait_until(lambda: d.metrics()["kd_door_bytes"] >= MIB, "text that nobody takes")
        d.stop()
        self.assertEqual(d.process.returncode, 0)
        for s in readers:
            s.close()


if __name__ == "__main__":
    unittest.main(verbosity=2)
