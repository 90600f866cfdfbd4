# SPDX-License-Identifier: Apache-2.0
"""Ten times more than can be answered, at both doors; slow clients by the hundred; half of the work taken back; a stop in the middle.
Where the machine is shared by others, a wall clock says more of them than of the daemon: so the goodput is held to the engine's own
processor time and refusals to the smallest resource asked beside them. KDSERVED_TEST_QUIET=1, for a machine with nothing else to do, holds
the plain figures: 90 % of the highest goodput, refusals in 10 ms, a good client within 1.5 times. There the daemon has one processor to itself
and the load has the others: its own work would else be counted as the daemon's. And a request takes some tens of milliseconds, by a larger
vocabulary: what is refused must cost little beside what is answered, and nobody's teacher answers 400 tokens in one."""
import asyncio
import json
import multiprocessing
import os
import re
import resource
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import unittest

import kdserved
import tiny_model
from kdserved import PATIENCE, Daemon, frame, score_body, wait_until

SECONDS = float(os.environ.get("KDSERVED_TEST_OVERLOAD", "2"))
QUIET = bool(os.environ.get("KDSERVED_TEST_QUIET"))
SANITIZED = bool(os.environ.get("KDSERVED_TEST_SANITIZED"))
SLOW = int(os.environ.get("KDSERVED_TEST_SLOW", "500"))
QUEUE = 8
VOCABULARY = 20000                               # where a request is to take some tens of milliseconds
WORK = [[i + 1] * 400 for i in range(4)]         # of one request
ASK = json.dumps({"sequences": [{"tokens": s} for s in WORK], "top_k": 4}).encode()
LIVE = b"GET /live HTTP/1.1\r\nHost: x\r\n\r\n"


def post(body):
    return b"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


def p99(values):
    return sorted(values)[min(len(values) - 1, len(values) * 99 // 100)]


class Web:
    """A connection to the HTTP door."""

    @staticmethod
    def flood(daemon):
        return "http", str(daemon.port), b"", post(ASK)

    @classmethod
    async def open(cls, daemon):
        self = cls()
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", daemon.port)
        return self

    async def ask(self, data):
        """(status, headers, body)"""
        self.writer.write(data)
        head = await self.reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: (\d+)", head)
        if length:
            body = await self.reader.readexactly(int(length.group(1)))
        else:
            body = b""
            while True:
                n = int(await self.reader.readline(), 16)
                body += (await self.reader.readexactly(n + 2))[:n]
                if not n:
                    break
        return int(head.split()[1]), head, body

    async def score(self):
        """True when answered, False when refused for now."""
        status, head, body = await self.ask(post(ASK))
        if status == 200:
            return len(json.loads(body)["sequences"]) == len(WORK)
        assert status in (429, 503) and re.search(rb"(?i)retry-after: [1-9]\d*\r\n", head), (status, head)
        return False

    def close(self):
        self.writer.close()


class Frames:
    """A connection to the binary door; one question at a time."""

    HELLO = frame(kdserved.HELLO, 0, struct.pack("<HH", 2, 2) + bytes(32) + struct.pack("<H", 0))

    @classmethod
    def flood(cls, daemon):
        return "frames", daemon.socket_path, cls.HELLO, cls.question(1)

    @staticmethod
    def question(request_id):
        return frame(kdserved.SCORE, request_id, score_body(WORK, top_k=4, flags=2))

    @classmethod
    async def open(cls, daemon):
        self = cls()
        self.reader, self.writer = await asyncio.open_unix_connection(daemon.socket_path)
        self.writer.write(cls.HELLO)
        kind, _, body = await self.receive()
        assert kind == kdserved.WELCOME, body
        return self

    async def receive(self):
        head = await self.reader.readexactly(32)
        _, _, kind, _, request_id, n, _, _, _ = struct.unpack("<4sBBHQIIII", head)
        return kind, request_id, await self.reader.readexactly(n)

    async def score(self, request_id=1):
        self.writer.write(self.question(request_id))
        n = 0
        while True:
            kind, _, body = await self.receive()
            if kind == kdserved.DONE:
                return n == len(WORK)
            if kind == kdserved.ERROR:
                error = kdserved.ProtocolError(body)
                assert error.code in ("overloaded", "unavailable"), error
                return False
            n += kind == kdserved.ANSWER

    def close(self):
        self.writer.close()


class Overload(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 65536), hard))    # the daemon inherits it
        folder = tempfile.TemporaryDirectory(prefix="kdserved-overload-")
        cls.addClassCleanup(folder.cleanup)
        cls.model = os.path.join(folder.name, "model")
        tiny_model.write(cls.model)
        if QUIET:
            tiny_model.grow(cls.model, VOCABULARY)

    def daemon(self, *arguments):
        first, *others = processors = sorted(os.sched_getaffinity(0))
        apart = QUIET and others
        if apart:
            os.sched_setaffinity(0, [first])                       # the daemon inherits it
        d = Daemon("--max-tokens", "512", "--max-connections", str(SLOW + 200), *arguments, model=self.model)
        self.addCleanup(d.stop)
        if apart:
            os.sched_setaffinity(0, others)
            self.addCleanup(os.sched_setaffinity, 0, processors)
        return d

    def engine_seconds(self, d):
        """Processor time of the thread that computes."""
        tasks = "/proc/%d/task" % d.process.pid
        for task in os.listdir(tasks):
            with open("%s/%s/comm" % (tasks, task)) as f:
                found = f.read() == "engine\n"
            if found:
                with open("%s/%s/schedstat" % (tasks, task)) as f:
                    return int(f.read().split()[0]) * 1e-9
        raise AssertionError("no engine thread")

    def memory(self, d):
        with open("/proc/%d/status" % d.process.pid) as f:
            return int(f.read().split("VmRSS:")[1].split()[0])

    def flood(self, door, where, greeting, question, n, answered, refused):
        """n clients of tests/e2e/flood that ask again and again, so long after each answer and refusal; a running process"""
        paths = []
        for data in (greeting, question):
            f = tempfile.NamedTemporaryFile(prefix="kdserved-flood-")
            self.addCleanup(f.close)
            f.write(data)
            f.flush()
            paths.append(f.name if data else "-")
        return subprocess.Popen([os.path.join(kdserved.BUILD, "tests/e2e/flood"), door, where, *paths, str(n), "%.6f" % answered,
            "%.6f" % refused, str(SECONDS)],
            stdout=subprocess.PIPE)

    def finish(self, flood):
        out, _ = flood.communicate(timeout=SECONDS + 4 * PATIENCE)
        self.assertEqual(flood.returncode, 0)
        return json.loads(out)

    def run_phase(self, d, door, n, pause):
        """(answers a second, answers a second of the engine's, what flood says of it, of the small requests beside)"""
        def computed():
            return d.metrics()["kd_sequences_computed_total"] / len(WORK)
        engine, before = self.engine_seconds(d), computed()
        asking = self.flood(*door.flood(d), n, 0, pause)
        small = self.flood("http", str(d.port), b"", LIVE, 1, 0.01, 0.01)
        counts, beside = self.finish(asking), self.finish(small)
        return counts["answers"] / SECONDS, (computed() - before) / (self.engine_seconds(d) - engine), counts, beside

    def highest(self, d, door):
        """What run_phase finds where nobody is refused; once more where the machine left no time for a single answer."""
        for _ in range(20):
            found = self.run_phase(d, door, QUEUE, 0.05)
            if found[0]:
                return found
        self.fail("no answer in %g seconds" % (20 * SECONDS))

    def overload(self, door):
        d = self.daemon("--queue-requests", str(QUEUE), "--batch-tokens", "512", "--cache-tokens", "0")
        self.run_phase(d, door, QUEUE, 0.05)                       # warm
        peak, peak_engine, alone, _ = self.highest(d, door)
        self.assertEqual(alone["refusals"], 0)
        pause = 1 / peak * QUEUE                                   # each of ten times as many asks as often as those that were answered
        self.run_phase(d, door, 10 * QUEUE, pause)
        before = self.memory(d)
        good, good_engine, counts, beside = self.run_phase(d, door, 10 * QUEUE, pause)
        grown = self.memory(d) / before
        m, refused = d.metrics(), counts["refusal_p99"]
        print("%s: %.1f answers/s at most, %.1f under ten times the load (of the engine's time %.1f, %.1f); %d refusals, p50 %.2f ms, p99 %.2f ms "
            "beside %.2f ms of /live; memory x%.3f" % (door.__name__, peak, good, peak_engine, good_engine, counts["refusals"],
                1e3 * counts["refusal_p50"], 1e3 * refused, 1e3 * beside["answer_p99"], grown), file=sys.stderr)
        self.assertGreater(counts["refusals"], good * SECONDS)
        self.assertGreaterEqual(good_engine, 0.75 * peak_engine)    # a processor that is shared has its cache emptied, too
        self.assertEqual(m["kd_sequences_wasted_total"], 0)
        self.assertLessEqual(refused, 3 * beside["answer_p99"] + 0.050)
        if not SANITIZED:
            self.assertLess(abs(grown - 1), 0.05)
        if QUIET:
            self.assertGreaterEqual(good, 0.9 * peak)
            self.assertLessEqual(refused, 0.010)

    def test_ten_times_the_load_over_http(self):
        self.overload(Web)

    def test_ten_times_the_load_over_frames(self):
        self.overload(Frames)

    def test_half_of_the_work_taken_back(self):
        n = 1000
        d = self.daemon("--credits", "65536", "--queue-requests", "65536", "--batch-tokens", "64")
        with d.client() as c:
            c.send_bytes(b"".join(frame(kdserved.SCORE, i, score_body([[i % 250, i // 250] + [7] * 40] * 2, top_k=1)) for i in range(1, n + 1))
                + b"".join(frame(kdserved.CANCEL, i) for i in range(2, n + 1, 2)))
            ended = {}
            while len(ended) < n:
                kind, i, body = c.receive()
                if kind in (kdserved.DONE, kdserved.ERROR):
                    ended[i] = kind
        m = d.metrics()
        share = m["kd_sequences_wasted_total"] / m["kd_forward_sequences_total"]
        n_back = sum(kind == kdserved.ERROR for kind in ended.values())
        print("%d of %d taken back, %.2f %% computed for nobody" % (n_back, n, 100 * share), file=sys.stderr)
        self.assertTrue(all(ended[i] == kdserved.DONE for i in range(1, n, 2)))
        self.assertLessEqual(share, 0.01)

    # ---- slow clients

    async def good_client(self, d, n):
        c, times = await Web.open(d), []
        body = post(json.dumps({"sequences": [{"tokens": [1, 2, 3, 4]}], "top_k": 4}).encode())
        for _ in range(n):
            began = time.monotonic()
            status, _, _ = await c.ask(body)
            times.append(time.monotonic() - began)
            assert status == 200
        c.close()
        return times

    def slow_clients(self, d, n, connected, stop):
        """A process of n clients that send a byte now and then: headers, bodies, a frame."""
        kinds = [b"GET /live HTTP/1.1\r\nHost: x\r\nX: ", b"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                 b"Content-Length: 4000\r\n\r\n{"]
        clients = []
        for i in range(n):
            if i % 2:
                s = socket.create_connection(("127.0.0.1", d.port))
                s.sendall(kinds[i // 2 % 2])
            else:
                s = d.client().socket
                s.sendall(frame(kdserved.SCORE, 1, bytes(4000))[:40])
            clients.append(s)
        connected.set()
        while not stop.wait(1):
            for s in clients:
                s.sendall(b" ")

    def test_slow_clients_do_not_slow_the_others(self):
        d = self.daemon("--header-timeout", "120s", "--body-timeout", "120s")

        asyncio.run(self.good_client(d, 100))
        alone, beside = [], []
        for _ in range(3):                # in turns, so that both meet the same neighbours
            alone.append(asyncio.run(self.good_client(d, 200)))
            connected, stop = multiprocessing.Event(), multiprocessing.Event()
            process = multiprocessing.Process(target=self.slow_clients, args=(d, SLOW, connected, stop))
            process.start()
            self.assertTrue(connected.wait(2 * PATIENCE))
            beside.append(asyncio.run(self.good_client(d, 200)))
            stop.set()
            process.join()
            self.assertEqual(process.exitcode, 0)         # none was cut meanwhile
        a, b = min(map(p99, alone)), min(map(p99, beside))
        middle = [sorted(sum(x, []))[len(sum(x, [])) // 2] for x in (alone, beside)]
        print("p99 of a good client %.2f ms alone, %.2f ms beside %d slow ones (x%.2f); median %.2f, %.2f ms" % (1e3 * a, 1e3 * b, SLOW, b / a,
            1e3 * middle[0], 1e3 * middle[1]), file=sys.stderr)
        self.assertEqual(d.http("GET", "/live")[0], 200)
        self.assertLessEqual(b, 1.5 * a if QUIET else 1.5 * a + 0.050)
        self.assertLessEqual(middle[1], 1.5 * middle[0] + (0.005 if QUIET else 0.050))

    # ---- stopping

    def test_a_stop_under_load_answers_all_that_was_accepted(self):
        d = self.daemon("--queue-requests", "1000", "--batch-tokens", "512", "--cache-tokens", "0", "--drain-timeout", "%ds" % (2 * PATIENCE))
        each = 20

        async def scene():
            web = [await Web.open(d) for _ in range(each)]
            frames = [await Frames.open(d) for _ in range(each)]
            tasks = [asyncio.create_task(c.score()) for c in web + frames]

            async def accepted():
                status, _, body = await probe.ask(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
                assert status == 200
                return sum(float(line.split()[1]) for line in body.decode().splitlines() if line.startswith("kd_requests_accepted_total{"))
            probe = await Web.open(d)
            end = time.monotonic() + PATIENCE
            while await accepted() < 2 * each:
                assert time.monotonic() < end
            began = time.monotonic()
            d.process.send_signal(signal.SIGTERM)
            while (await probe.ask(b"GET /ready HTTP/1.1\r\nHost: x\r\n\r\n"))[0] != 503:
                assert time.monotonic() < end
            ready = time.monotonic() - began
            pending = sum(not t.done() for t in tasks)
            late = await asyncio.gather(probe.score(), return_exceptions=True)
            return await asyncio.gather(*tasks, return_exceptions=True), ready, pending, late
        answers, ready, pending, late = asyncio.run(scene())
        print("%d of %d under way at SIGTERM; /ready fell after %.1f ms" % (pending, 2 * each, 1e3 * ready), file=sys.stderr)
        self.assertEqual(answers, [True] * (2 * each))
        self.assertNotEqual(late, [True])
        self.assertLess(ready, 0.1 if QUIET else 5)
        self.assertEqual(d.wait_exit(), 0)

    def test_a_second_signal_ends_within_a_second(self):
        d = Daemon("--batch-tokens", "64")
        with d.client() as c:
            c.start_score([[i % 250] * 500 for i in range(900)], top_k=1)
            wait_until(lambda: d.metrics()["kd_forward_passes_total"] > 0, "the first pass")
            d.process.send_signal(signal.SIGTERM)
            wait_until(lambda: d.http("GET", "/ready")[0] == 503, "the drain")
            began = time.monotonic()
            d.process.send_signal(signal.SIGTERM)
            self.assertEqual(d.process.wait(PATIENCE), 1)
            self.assertLess(time.monotonic() - began, 1 if QUIET else 20)     # half of the drain's 30
        d.stop(expect=1)


if __name__ == "__main__":
    unittest.main(verbosity=2)
