# SPDX-License-Identifier: Apache-2.0
"""A crowd at the HTTP door, beside a storm at the binary one: scores, completions, streams and small resources mixed; clients that leave
before, while and after they are answered. Every answer is held against the same question asked alone; afterwards nothing is left behind
and hardly anything was computed for nobody. KDSERVED_TEST_CROWD sets the number of connections, KDSERVED_TEST_ROUNDS the requests of
each."""
import asyncio
import json
import os
import random
import re
import resource
import subprocess
import sys
import unittest

from kdserved import BUILD, PATIENCE, Daemon, wait_until

CONNECTIONS = int(os.environ.get("KDSERVED_TEST_CROWD", "100"))
ROUNDS = int(os.environ.get("KDSERVED_TEST_ROUNDS", "6"))
SANITIZED = bool(os.environ.get("KDSERVED_TEST_SANITIZED"))
TEXT = "the cat and the dog in the garden"


def tokens(seed, n):
    return [(seed * 31 + i * i * 7 + i) % 264 for i in range(n)]


def questions():
    """(path, body): what can be asked twice with the same answer."""
    for i in range(6):
        some = [{"tokens": tokens(i, 5 + 9 * i)}, {"tokens": tokens(i + 50, 12)}]
        yield "/v1/score", {"sequences": some, "top_k": 1 + 5 * i, "own": True, "entropy": bool(i % 2)}
        yield "/v1/score", {"sequences": some, "gather": [[i, 7], [3]], "draws": {"n": 9, "seed": i}, "temperatures": [1, 2],
            "encoding": "base64"}
        yield "/v1/score", {"sequences": some, "sum": True, "features": [{"kind": "final"}], "pooling": "mean"}
        yield "/v1/completions", {"prompt": [tokens(i, 20), tokens(i, 3)], "max_tokens": 1, "temperature": 0, "logprobs": 1, "echo": True}
        yield "/v1/completions", {"prompt": tokens(i, 15), "max_tokens": 1, "prompt_logprobs": 4, "seed": i}
        yield "/v1/completions", {"prompt": tokens(i, 8), "max_tokens": 5 + i, "seed": i, "n": 2, "logprobs": 2, "ignore_eos": True}
        yield "/v1/completions", {"prompt": tokens(i, 8), "max_tokens": 12, "seed": i, "stream": True, "ignore_eos": True}
    yield "/v1/tokenize", {"text": TEXT * 3}
    yield "/v1/weights", {"tensor": "head", "first": 10, "count": 20, "dtype": "f16", "encoding": "base64"}
    yield "/v1/score", {"sequences": [{"tokens": [1, 999]}], "top_k": 1}
    yield "/v1/completions", {"prompt": "a", "nonsense": 1}


def essence(status, body):
    """What an answer says, without what may differ between two of the same: ids, times, the cache, where a stream was cut."""
    if body.startswith(b"data: "):
        texts, ends = {}, []
        for event in re.findall(rb"data: (.*)\n\n", body):
            if event == b"[DONE]":
                ends.append("done")
                continue
            for choice in json.loads(event)["choices"]:
                texts[choice["index"]] = texts.get(choice["index"], "") + choice["text"]
                if choice["finish_reason"]:
                    ends.append((choice["index"], choice["finish_reason"]))
        return status, texts, ends
    reply = json.loads(body)
    for name in ("id", "created"):
        reply.pop(name, None)
    for s in reply.get("sequences", []):
        s.pop("cached", None)
    return status, reply


class Crowd(unittest.TestCase):
    arguments = ()       # of the daemon, more

    @classmethod
    def setUpClass(cls):
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))    # the daemon inherits it
        cls.daemon = Daemon("--max-tokens", "512", "--max-connections", str(2 * CONNECTIONS + 50), "--queue-requests", "65536",
            "--cache-tokens", "65536", "--batch-tokens", "256", *cls.arguments, patience=PATIENCE)
        cls.addClassCleanup(cls.daemon.stop)
        cls.asked = []
        for path, body in questions():
            data = json.dumps(body).encode()
            status, _, reply = cls.daemon.http("POST", path, data)
            assert status in (200, 400), reply
            head = b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % (path.encode(),
                len(data))
            cls.asked.append((head, data, essence(status, reply)))

    async def read_reply(self, reader):
        head = await reader.readuntil(b"\r\n\r\n")
        status = int(head.split()[1])
        length = re.search(rb"(?i)content-length: (\d+)", head)
        if length:
            return status, await reader.readexactly(int(length.group(1)))
        assert re.search(rb"(?i)transfer-encoding: chunked", head), head
        body = b""
        while True:
            size = int(await reader.readline(), 16)
            piece = await reader.readexactly(size + 2)
            if not size:
                return status, body
            body += piece[:-2]

    async def one(self, seed):
        """One client: some questions on a connection, which may end in each of the ways a connection ends."""
        rng = random.Random(seed)
        reader = writer = None
        for _ in range(ROUNDS):
            if not writer:
                reader, writer = await asyncio.open_connection("127.0.0.1", self.daemon.port)
            head, data, want = rng.choice(self.asked)
            fate = rng.random()
            try:
                if fate < 0.08:                        # leaves in the middle of its question
                    writer.write((head + data)[:rng.randrange(1, len(head) + len(data))])
                    self.counts["cut"] += 1
                elif fate < 0.20:                      # leaves as soon as it has asked
                    writer.write(head + data)
                    await writer.drain()
                    self.counts["left"] += 1
                elif fate < 0.30:                      # leaves in the middle of its answer
                    writer.write(head + data)
                    await reader.readexactly(rng.randrange(1, 200))
                    self.counts["torn"] += 1
                else:
                    writer.write(head + data)
                    got = essence(*await self.read_reply(reader))
                    self.counts["answered"] += 1
                    if got != want:
                        self.wrong.append((head, data, got, want))
                    continue
            except asyncio.IncompleteReadError:        # the whole answer was shorter
                pass
            writer.transport.abort() if rng.random() < 0.5 else writer.close()
            writer = None
        if writer:
            writer.close()

    async def everyone(self, seed):
        await asyncio.gather(*(self.one("%d.%d" % (seed, i)) for i in range(CONNECTIONS)))

    def crowd(self, seed):
        self.counts, self.wrong = dict.fromkeys(("answered", "cut", "left", "torn"), 0), []
        storm = subprocess.Popen([os.path.join(BUILD, "tests", "e2e", "storm"), "unix:" + self.daemon.socket_path, str(CONNECTIONS),
            str(2 * CONNECTIONS), str(seed)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        asyncio.run(self.everyone(seed))
        out, err = storm.communicate(timeout=900)
        self.assertEqual((storm.returncode, err), (0, ""))
        self.assertEqual(json.loads(out)["wrong"], 0)
        self.assertEqual(self.wrong, [], "%d wrong answers of %d" % (len(self.wrong), self.counts["answered"]))
        wait_until(lambda: self.descriptors() <= self.before, "every connection to be closed", self.daemon.patience)
        self.daemon.read_lines(0)
        return dict(self.counts, frames=json.loads(out))

    def descriptors(self):
        return len(os.listdir("/proc/%d/fd" % self.daemon.process.pid))

    def memory(self):
        """Resident kilobytes."""
        with open("/proc/%d/status" % self.daemon.process.pid) as f:
            return int(f.read().split("VmRSS:")[1].split()[0])

    def test_a_crowd_gets_its_own_answers_and_leaves_nothing_behind(self):
        wait_until(lambda: self.daemon.metrics()["kd_reserved_requests"] == 0, "the first answers to be gone")
        self.before = self.descriptors()
        sums = [self.crowd(1)]
        memory = self.memory()
        sums += [self.crowd(seed) for seed in (2, 3, 4)]
        grown = self.memory() - memory
        m = wait_until(lambda: (m := self.daemon.metrics())["kd_reserved_requests"] == 0 and m, "the work of those who left to be let go")
        share = m["kd_sequences_wasted_total"] / m["kd_forward_sequences_total"]
        print(*sums, "grown %d KiB" % grown, "wasted %.3f %%" % (100 * share), sep="\n", file=sys.stderr)
        self.assertEqual([m["kd_reserved_" + what] for what in ("requests", "tokens", "bytes")], [0, 0, 0])
        for door in ("http", "socket"):
            parts = [m['kd_requests_%s{door="%s"}' % (name, door)] for name in ("answered_total", "rejected_total", "cancelled_total",
                "in_flight")]
            self.assertEqual(m['kd_requests_accepted_total{door="%s"}' % door], sum(parts))
            self.assertEqual(parts[3], 0)
        for one in sums:
            self.assertGreater(one["answered"], CONNECTIONS)
            self.assertGreater(min(one["cut"], one["left"], one["torn"]), 0)
        self.assertGreater(m['kd_requests_cancelled_total{door="http"}'], 0)
        self.assertLessEqual(share, 0.01)
        if not SANITIZED:
            self.assertLess(grown, 8192)


if __name__ == "__main__":
    unittest.main(verbosity=2)
