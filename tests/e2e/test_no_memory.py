# SPDX-License-Identifier: Apache-2.0
"""Allocations that fail, one by one (tests/crash/malloc_fault.c): the n-th of a question, for every n until the question is through. Each
time the answer is the right one, an error or a closed connection; the process lives, the next answer is right, and nothing is left behind.
Then the same for programs that run once: they do their work, or say in a line why not. KDSERVED_TEST_ALLOCATIONS bounds the failures of
each scenario (0 = every n); what is left out is spread evenly."""
import http.client
import json
import mmap
import os
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import unittest

import kdserved
from kdserved import BUILD, PATIENCE, Closed, Daemon, ProtocolError, Refused, wait_until

MODULE = os.path.join(BUILD, "tests", "crash", ".libs", "libmallocfault.so")
LIMIT = int(os.environ.get("KDSERVED_TEST_ALLOCATIONS", "24"))


def program(name):
    """libtool's stand-in for a program not yet installed is a shell script: the program itself is beside its libraries."""
    real = os.path.join(BUILD, ".libs", name)
    return real if os.path.exists(real) else os.path.join(BUILD, name)


KDCTL, WORKER = program("kdctl"), program("kdserved-worker")
TOKENS = [[1, 2, 3, 4, 5], [250, 9], list(range(40))]
ASK = {"sequences": [{"tokens": t} for t in TOKENS], "top_k": 9, "own": True, "entropy": True, "temperatures": [1, 2],
       "gather": [[5, 9], [7]], "draws": {"n": 5, "seed": 7}}
UNKEPT = 2           # of a score frame's flags: neither look in the store nor add to it
DURABLE = 1


class Control:
    """What the tester and the library share (struct control)."""

    def __init__(self, path):
        with open(path, "wb") as f:
            f.truncate(40)
        self.path = path
        with open(path, "r+b") as f:
            self.map = mmap.mmap(f.fileno(), 40)

    def arm(self, n, span=1):
        struct.pack_into("<Q", self.map, 8, span)
        struct.pack_into("<Q", self.map, 16, 0)
        struct.pack_into("<Q", self.map, 0, n)

    def disarm(self):
        """How many allocations there were since."""
        struct.pack_into("<Q", self.map, 0, 0)
        return struct.unpack_from("<Q", self.map, 16)[0]

    def held(self):
        """(blocks, bytes)"""
        return struct.unpack_from("<qq", self.map, 24)

    def environment(self):
        return {"LD_PRELOAD": MODULE, "KD_MALLOC_FAULT": self.path, "OMP_NUM_THREADS": "1",
                "LD_LIBRARY_PATH": os.path.join(BUILD, ".libs")}


def chosen(n):
    """Which of n failures are tried."""
    if not LIMIT or n <= LIMIT:
        return range(1, n + 1)
    return sorted({1 + (n - 1) * i // (LIMIT - 1) for i in range(LIMIT)})


def skip_reason():
    if not os.path.exists(MODULE):
        return "built with a sanitizer, or without shared libraries"


@unittest.skipIf(skip_reason(), skip_reason())
class NoMemory(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.directory = tempfile.mkdtemp(prefix="kdserved-e2e-")
        cls.addClassCleanup(shutil.rmtree, cls.directory, ignore_errors=True)
        cls.control = Control(os.path.join(cls.directory, "control"))
        cls.store, cls.runs = os.path.join(cls.directory, "store"), os.path.join(cls.directory, "runs")
        os.mkdir(cls.runs)
        cls.daemon = Daemon("--store", cls.store, "--store-shard", "1M", "--runs", cls.runs, directory=cls.directory,
            environment=cls.control.environment())
        cls.addClassCleanup(cls.daemon.stop)
        cls.next_token = 0
        with cls.daemon.client() as c:
            cls.canary = c.score(TOKENS, top_k=9, own=True, flags=UNKEPT)

    def web(self, method, path, body=None):
        status, headers, data = self.daemon.http(method, path, body, timeout=PATIENCE)
        if status == 200:
            return self.essence(data)
        self.assertGreaterEqual(status, 400)
        if data and headers.get("Content-Type") == "application/json":       # nothing: no memory for the text; others are libmicrohttpd's own
            self.assertIn("error", json.loads(data))
        return None

    def essence(self, data):
        """An answer without what differs between two of the same."""
        if not data.startswith(b"{"):
            return None if data.startswith(b"#") else data
        reply = json.loads(data)
        for name in ("id", "created", "uptime_seconds"):
            reply.pop(name, None)
        for s in reply.get("sequences", []):
            s.pop("cached", None)
        return reply

    def check_alive(self):
        self.assertIsNone(self.daemon.process.poll(), self.daemon.log())
        with self.daemon.client() as c:
            self.assertEqual(c.score(TOKENS, top_k=9, own=True, flags=UNKEPT), self.canary)

    def settled(self):
        """Blocks held once nothing is under way."""
        wait_until(lambda: self.daemon.metrics()["kd_reserved_requests"] == 0, "everything to be given back")
        seen = []

        def quiet():
            seen.append(self.control.held())
            return len(seen) > 5 and len(set(seen[-5:])) == 1
        wait_until(quiet, "the memory to be quiet")
        return seen[-1][0]

    def attempt(self, ask, n):
        """What came of one question whose n-th allocation fails: its answer or None; how many allocations it made."""
        self.control.arm(n)
        try:
            answer = ask()
        except (ConnectionError, http.client.HTTPException, Closed, ProtocolError, Refused):
            answer = None
        return answer, self.control.disarm()

    def loop(self, ask, fresh=False):
        """`fresh`: each answer is another."""
        for _ in range(3):
            ask()
        before = self.settled()
        reference, n = self.attempt(ask, 1 << 60)
        grown_clean = self.settled() - before
        self.assertGreater(n, 1)
        numbers = chosen(n)
        bound = 4 + grown_clean * len(numbers)
        for _ in range(6):      # a leak grows each time; the cache of prefixes grows by a node where a continuation was cut for the first time
            grown, refused = self.fail_each(ask, numbers, None if fresh else reference)
            if grown <= bound:
                break
        print("%s: %d allocations, %d made to fail, %d answers refused, %d blocks more (one clean question: %d)" %
            (self.id().rsplit(".", 1)[1], n, len(numbers), refused, grown, grown_clean), file=sys.stderr)
        self.assertLessEqual(grown, bound)

    def fail_each(self, ask, numbers, reference):
        """(blocks held more than before, questions that had no answer)"""
        before, refused = self.settled(), 0
        for i in numbers:
            with self.subTest(failing=i):
                answer, seen = self.attempt(ask, i)
                refused += answer is None
                if answer is not None and reference is not None:
                    self.assertTrue(answer == reference, "another answer: %.200s" % answer)
                self.check_alive()
            if os.environ.get("KD_MALLOC_TRACE"):
                print("# %d: %s, %d blocks more" % (i, "refused" if answer is None else "answered", self.settled() - before),
                    self.daemon.log().rsplit("---", 1)[-1], sep="\n", file=sys.stderr)
                self.daemon.lines.append("---")
            if self.daemon.process.poll() is not None:
                self.fail("the process is gone")
        return self.settled() - before, refused

    def test_score_over_http(self):
        self.loop(lambda: self.web("POST", "/v1/score", dict(ASK, encoding="base64")))

    def test_text_and_features_over_http(self):
        self.loop(lambda: self.web("POST", "/v1/score", {"sequences": [{"text": "the cat and the dog"}], "dense": True,
            "features": [{"kind": "final"}], "pooling": "mean"}))

    def frames(self, flags):
        with self.daemon.client() as c:
            return c.score(TOKENS, top_k=9, own=True, flags=flags)

    def test_score_over_frames(self):
        self.loop(lambda: self.frames(UNKEPT))

    def test_a_stored_answer(self):
        with self.daemon.client() as c:
            c.score(TOKENS, top_k=9, own=True, flags=DURABLE)
        self.loop(lambda: self.web("POST", "/v1/score", {"sequences": ASK["sequences"], "top_k": 3, "own": True}))

    def durable(self):
        """A question never asked before, whose answer must be on the disk before it comes."""
        type(self).next_token += 1
        sequence = [self.next_token % 250, self.next_token // 250, 77]
        with self.daemon.client() as c:
            got = c.score([sequence], top_k=5, flags=DURABLE)
        self.control.map[0:8] = bytes(8)       # what is asked again is not to fail; the count stays
        with self.daemon.client() as c:
            again = c.score([sequence], top_k=5)
        # It is on the disk, but without memory for its place in the index only the next start finds it.
        self.assertEqual(again[0][1], got[0][1])
        return got

    def test_append_to_the_store(self):
        self.loop(self.durable, fresh=True)

    def test_rotation_of_shards(self):
        """Answers of about 200 KiB: a new shard every five."""
        def big():
            type(self).next_token += 1
            i = self.next_token
            with self.daemon.client() as c:
                got = c.score([[i % 250, i // 250] + [9] * 200], top_k=200, flags=DURABLE)
            return {0: len(got)}
        self.loop(big, fresh=True)

    def test_generate(self):
        self.loop(lambda: self.web("POST", "/v1/generate", {"prompts": [{"tokens": [1, 2, 3]}], "max_tokens": 6, "n": 2, "seed": 5,
            "temperature": 1}))

    def test_completions(self):
        self.loop(lambda: self.web("POST", "/v1/completions", {"prompt": [5, 6, 7], "max_tokens": 6, "seed": 3, "logprobs": 2, "echo": True,
            "ignore_eos": True}))

    def test_a_stream(self):
        def texts():
            status, _, data = self.daemon.http("POST", "/v1/completions", {"prompt": [5, 6, 7], "max_tokens": 6, "seed": 3,
                "stream": True, "ignore_eos": True})
            if status != 200:
                return None
            whole = data.endswith(b"data: [DONE]\n\n") and b'data: {"error"' not in data
            events = [json.loads(e[6:]) for e in data.decode().split("\n\n") if e.startswith("data: {")]
            return "".join(c["text"] for e in events for c in e.get("choices", [])) if whole else None
        self.loop(texts)

    def test_small_resources_over_both_doors(self):
        asks = [("POST", "/v1/tokenize", {"text": "the cat"}), ("POST", "/v1/detokenize", {"tokens": [9, 8]}), ("GET", "/v1/model", None),
                ("GET", "/metrics", None), ("GET", "/v1/runs", None), ("GET", "/v1/models", None),
                ("POST", "/v1/weights", {"tensor": "head", "first": 1, "count": 3})]

        def ask():
            with self.daemon.client() as c:
                called = [c.call(m, p, json.dumps(b).encode() if b else b"") for m, p, b in asks]
            return [self.web(m, p, b) for m, p, b in asks] + [self.essence(b) if s == 200 else None for s, b in called]

        def attempt():
            answers = ask()
            return answers if all(a is not None for a in (answers[i] for i in (0, 1, 2))) else None
        self.loop(attempt, fresh=True)


@unittest.skipIf(skip_reason(), skip_reason())
class Programs(unittest.TestCase):
    """Programs that run once. A failure may cost their work, never more than that, and they say so."""

    @classmethod
    def setUpClass(cls):
        cls.directory = tempfile.mkdtemp(prefix="kdserved-e2e-")
        cls.addClassCleanup(shutil.rmtree, cls.directory, ignore_errors=True)
        cls.store, cls.text = cls.path("store"), cls.path("text")
        cls.daemon = Daemon("--store", cls.store, directory=cls.directory)
        cls.addClassCleanup(cls.daemon.stop)
        with cls.daemon.client() as c:
            c.score([[i, i + 1, i + 2] for i in range(20)], top_k=5, own=True, flags=DURABLE)
        with open(cls.text, "w") as f:
            f.write("the cat and the dog in the garden\n\nand then another\n\n" * 20)
        with open(cls.path("good.conf"), "w") as f:
            f.write("# settings\nteacher = one=%s\nthreads = 1\nhttp = \nsocket = unix:%s\nstore-max-bytes = 5G\n" %
                (cls.daemon.model, cls.path("other.sock")))
        with open(cls.path("run.conf"), "w") as f:
            f.write("teacher = labels\ntokenizer = %s\ncorpus = %s\nloss = cross-entropy\nsteps = 2\nsequence-length = 8\nmicro-batch = 2\n"
                "student-width = 16\nstudent-layers = 1\nstudent-heads = 2\nstudent-kv-heads = 1\nstudent-ffn-width = 32\nthreads = 1\n"
                "evaluate-every = 0\nheld-out = 0.2\n" % (cls.daemon.model, cls.text))

    @classmethod
    def path(cls, name):
        return os.path.join(cls.directory, name)

    def run_one(self, control, n, make, good):
        command = make()
        control.arm(n)
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=PATIENCE * 2, env=dict(os.environ, **control.environment()))
        seen = control.disarm()
        with self.subTest(failing=n):
            self.assertIn(done.returncode, (*good, 1, 78), (command, done.stderr))
            if done.returncode not in good:
                self.assertGreaterEqual(done.stderr.count("\n"), 1, done.stderr)
        return done, seen

    def loop(self, make, good=(0,), exact=False):
        """`exact`: the output is always the same, and a failure is called a lack of memory."""
        control = Control(self.path("control"))
        reference, n = self.run_one(control, 1 << 60, make, good)
        self.assertIn(reference.returncode, good, reference.stderr)
        numbers, failed = chosen(n), 0
        for i in numbers:
            done, _ = self.run_one(control, i, make, good)
            failed += done.returncode not in good
            with self.subTest(failing=i):
                if exact and done.returncode in good:
                    self.assertEqual(done.stdout, reference.stdout)
                elif exact:
                    self.assertRegex(done.stderr.lower(), "memory")
        print("%s: %d allocations, %d made to fail, %d of them fatal" % (self.id().rsplit(".", 1)[1], n, len(numbers), failed), file=sys.stderr)
        self.assertGreater(n, 1)

    def test_the_settings_are_read(self):
        self.loop(lambda: [kdserved.PROGRAM, "--config", self.path("good.conf"), "--check-config"])

    def test_a_model_is_loaded(self):
        """A daemon that reaches its teacher is stopped again; one that does not has said why."""
        control = Control(self.path("control"))

        def start(n):
            control.arm(n)
            process = subprocess.Popen([kdserved.PROGRAM, "--config", self.path("good.conf")], stderr=subprocess.PIPE, text=True,
                env=dict(os.environ, **control.environment()))
            lines, seen = [], 0
            for line in process.stderr:
                lines.append(line)
                if ": teacher one:" in line:
                    seen = control.disarm()
                    process.terminate()
            status = process.wait(PATIENCE)
            process.stderr.close()
            return status, lines, seen
        status, lines, n = start(1 << 60)
        self.assertEqual(status, 0, lines)
        numbers, fatal = chosen(n), 0
        for i in numbers:
            with self.subTest(failing=i):
                status, lines, _ = start(i)
                fatal += status != 0
                self.assertIn(status, (0, 1, 78), lines)
                self.assertTrue(status == 0 or len(lines) > 0)
        print("a model is loaded: %d allocations, %d made to fail, %d of them fatal" % (n, len(numbers), fatal), file=sys.stderr)

    def test_kdctl_reads_a_store(self):
        for command in (["ls"], ["verify"], ["stat"], ["cat"]):
            with self.subTest(command=command):
                self.loop(lambda: [KDCTL, "store", *command, self.store])

    def test_kdctl_selects(self):
        def write(name, lines):
            with open(self.path(name), "w") as f:
                f.writelines(json.dumps(line) + "\n" for line in lines)
            return self.path(name)

        def scores(name, salt):
            return write(name, [*({"id": "%064x" % i, "tokens": [1, 2, 3], "spans": [-(i * salt % 7) - 0.123456789012345]} for i in range(5)),
                {"summary": {"items": 5}}])
        items = write("items", [{"text": "item %d" % i} for i in range(5)])
        mine, its = scores("mine", 3), scores("its", 5)
        self.loop(lambda: [KDCTL, "--json", "select", "difference", "--reference", its, "--count", "2", "--items", items, mine], exact=True)

    def test_kdctl_asks_a_server(self):
        server = ["--server", "unix:" + self.daemon.socket_path]
        for command in (["status"], ["model"], ["score", "--length", "8", self.text], ["generate", "--prompt", "the", "--tokens", "3",
            "--seed", "1"]):
            with self.subTest(command=command):
                self.loop(lambda: [KDCTL, *server, *command])

    def test_a_student_is_trained(self):
        count = [0]

        def make():
            count[0] += 1
            return [WORKER, "--config", self.path("run.conf"), "--output", self.path("run.%d" % count[0])]
        self.loop(make)


if __name__ == "__main__":
    if skip_reason():
        print(skip_reason())
        sys.exit(77)
    unittest.main(verbosity=2)
