# SPDX-License-Identifier: Apache-2.0
"""kdctl score against a daemon: every form of input, every signal as /v1/score gives it, interruptions."""
import json
import os
import random
import signal
import struct
import subprocess
import tempfile
import shutil
import unittest

import kdserved
import tiny_model
from kdserved import BUILD, Daemon, wait_until

KDCTL = os.path.join(BUILD, "kdctl")
TEXT = "the cat and the dog in the garden\nand a bird\n"


def npy(shape, descr, data, order="False", version=1):
    header = "{'descr': '%s', 'fortran_order': %s, 'shape': %s, }" % (descr, order, shape)
    header = header.ljust(117) + "\n"
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H" if version == 1 else "<I", len(header)) + header.encode() + data


class Base(unittest.TestCase):
    arguments = ()

    @classmethod
    def setUpClass(cls):
        cls.daemon = Daemon("--max-tokens", "512", *cls.arguments)
        cls.addClassCleanup(cls.daemon.stop)

    def setUp(self):
        self.directory = tempfile.mkdtemp(prefix="kdserved-e2e-")
        self.addCleanup(shutil.rmtree, self.directory)

    def path(self, name, data=None):
        path = os.path.join(self.directory, name)
        if data is not None:
            with open(path, "wb") as f:
                f.write(data.encode() if isinstance(data, str) else data)
        return path

    def read(self, name):
        with open(self.path(name), "rb") as f:
            return f.read()

    def command(self, *arguments, json=True):
        return [KDCTL, "--server", "unix:" + self.daemon.socket_path] + ["--json"] * json + ["score", *arguments]

    def score(self, *arguments, expect=0, **more):
        """(objects of the lines, summary); with expect = 1 or 2 the one line of the error."""
        done = subprocess.run(self.command(*arguments), capture_output=True, text=True, timeout=120, **more)
        self.assertEqual(done.returncode, expect, done.stderr)
        if expect:
            self.assertEqual(done.stderr.count("\n"), 1)
            return done.stderr
        self.assertEqual(done.stderr, "")
        *lines, last = map(json.loads, done.stdout.splitlines())
        return lines, last["summary"]


class Input(Base):
    def tokens(self, *arguments, **more):
        lines, _ = self.score("--top-k", "1", *arguments, **more)
        return [line["tokens"] for line in lines]

    def test_token_files(self):
        ids = [5, 17, 200, 3, 99, 0, 42]
        for name, data in (("a.u16", struct.pack("<7H", *ids)), ("a.u32", struct.pack("<7I", *ids)),
                ("a.npy", npy("(7,)", "<i8", struct.pack("<7q", *ids))), ("b.npy", npy("(7,)", "<u2", struct.pack("<7H", *ids), version=2))):
            self.assertEqual(self.tokens("--length", "3", self.path(name, data)), [ids[:3], ids[3:6], ids[6:]], name)
        rows = npy("(2, 4)", "<i4", struct.pack("<8i", *range(8)))
        self.assertEqual(self.tokens("--length", "3", self.path("c.npy", rows)), [[0, 1, 2], [3], [4, 5, 6], [7]])
        with open(self.path("a.u16")) as f:
            self.assertEqual(self.tokens("--length", "7", "--format", "u16", "-", stdin=f), [ids])

    def test_broken_token_files(self):
        cases = ((npy("(7,)", "<f4", b""), "whole numbers"), (npy("(1, 2, 3)", "<i4", b""), "one or two dimensions"),
            (npy("(2, 0)", "<i4", b""), "have no tokens"), (npy("(2, 2)", "<i4", bytes(16), order="True"), "columns come first"),
            (npy("(3,)", "<i4", struct.pack("<3i", 1, -1, 2)), "byte 132: not a token id"),
            (npy("(2, 3)", "<i4", bytes(16)), "in the middle of a row"), (npy("(2,)", "<i4", bytes(7)), "in the middle of a number"))
        for data, message in cases:
            self.assertIn(message, self.score("--top-k", "1", self.path("x.npy", data), expect=1))

    def test_texts_are_tokenized_as_one(self):
        text = TEXT * 6500           # two pieces
        got = sum(self.tokens("--length", "512", "--first", "-1", "--no-own", self.path("t.txt", text)), [])
        status, reply = self.daemon.post("/v1/tokenize", {"text": text})
        self.assertEqual(status, 200)
        self.assertEqual(got, reply["tokens"])

    def test_lines_keep_their_order_and_their_own_questions(self):
        lines = [{"tokens": [i % 250, 1, 2, 3]} for i in range(50)]
        lines[7]["gather"] = [[1], [], [5, 5], [9]]
        lines[8]["gather"] = [4, 2]
        lines[9].update(first=-2, last=2)
        lines[10]["spans"] = [[1, 4], [2, 3]]
        got, summary = self.score("--top-k", "1", "--batch", "3", self.path("l.jsonl", "\n".join(map(json.dumps, lines))))
        self.assertEqual([g["tokens"] for g in got], [line["tokens"] for line in lines])
        self.assertEqual([len(r["gather"]) for r in got[7]["rows"]], [1, 0, 2, 1])
        self.assertEqual([len(r["gather"]) for r in got[8]["rows"]], [2] * 4)
        self.assertEqual((got[9]["first"], got[9]["last"], len(got[9]["rows"])), (2, 2, 1))
        self.assertEqual(len(got[10]["spans"]), 2)
        self.assertEqual((summary["sequences"], summary["tokens"], summary["positions"]), (50, 200, 197))


class Signals(Base):
    def compare(self, arguments, question):
        tokens = [[5, 17, 200, 3, 99, 256, 258], [1, 2], [9]]
        path = self.path("in.jsonl", "".join(json.dumps({"tokens": t}) + "\n" for t in tokens))
        status, reply = self.daemon.post("/v1/score", dict({"sequences": [{"tokens": t} for t in tokens]}, **question))
        self.assertEqual(status, 200, reply)
        lines, summary = self.score("--values", "f32", *arguments, path)
        self.assertEqual(lines, reply["sequences"])
        return lines, summary

    def test_lines_are_the_sequences_of_v1_score(self):
        self.compare(["--top-k", "5"], {"top_k": 5, "own": True, "temperatures": [1]})
        self.compare(["--top-k", "9", "--top-mass", "0.5", "--no-own", "--entropy", "--max-prob", "--argmax", "--sum-squares", "--tail",
            "--temperatures", "0.5,2"], {"top_k": 9, "top_mass": 0.5, "entropy": True, "max_prob": True, "argmax": True,
            "sum_squares": True, "tail": True, "temperatures": [0.5, 2]})
        self.compare(["--top-k", "0", "--no-own", "--dense", "--keep", "3,1,4,1,59"], {"dense": True, "keep": [1, 3, 4, 59]})
        self.compare(["--top-k", "4", "--draws", "20", "--tau", "0.8", "--seed", "7", "--draws-tail", "--no-own"],
            {"top_k": 4, "draws": {"n": 20, "tau": 0.8, "seed": 7, "tail": True}})
        self.compare(["--top-k", "0", "--gather", "7,7,250", "--first", "-1"], {"gather": [7, 7, 250], "own": True, "first": -1})
        self.compare(["--top-k", "0", "--no-own", "--features", "hidden:1,final,q:0,v:1", "--feature-values", "f32"],
            {"features": [{"kind": "hidden", "layer": 1}, {"kind": "final"}, {"kind": "q", "layer": 0}, {"kind": "v", "layer": 1}],
             "feature_values": "f32"})
        self.compare(["--top-k", "0", "--no-own", "--features", "hidden:2", "--pooling", "mean", "--feature-values", "f16"],
            {"features": [{"kind": "hidden", "layer": 2}], "pooling": "mean", "feature_values": "f16"})

    def test_sums_are_the_perplexity(self):
        path = self.path("in.jsonl", "".join(json.dumps({"tokens": t}) + "\n" for t in ([5, 17, 200, 3], [1, 2, 3], [7])))
        _, long = self.score("--top-k", "0", "--values", "f32", path)
        lines, short = self.score("--top-k", "0", "--no-own", "--sum", "--first", "-1", self.path("in.jsonl",
            "".join(json.dumps({"tokens": t}) + "\n" for t in ([5, 17, 200, 3], [1, 2, 3]))))
        self.assertEqual([sorted(line) for line in lines], [["cached", "first", "id", "last", "spans", "tokens"]] * 2)
        self.assertEqual((long["scored_tokens"], short["scored_tokens"]), (5, 5))
        self.assertAlmostEqual(long["nll"], short["nll"], places=4)

    def test_bytes_on_the_wire_are_counted_exactly(self):
        tokens = [[i % 250] * 20 for i in range(10)]
        _, summary = self.score("--top-k", "5", self.path("in.jsonl", "".join(json.dumps({"tokens": t}) + "\n" for t in tokens)))
        with self.daemon.client() as c:
            c.start_score(tokens, flags=4, top_k=5, own=True, values=1, temperatures=(1.0,))
            kind, total = None, 0
            while kind != kdserved.DONE:
                kind, _, body = c.receive()
                total += 32 + len(body) if kind == kdserved.ANSWER else 0
        self.assertEqual(summary["wire_bytes_per_position"], total / 200)

    def test_values_are_as_close_as_promised(self):
        path = self.path("in.jsonl", json.dumps({"tokens": [5, 17, 200, 3]}))
        exact, _ = self.score("--top-k", "20", "--values", "f32", path)
        for values, share in (("f16", 2 ** -11), ("u8", 0.5 / 255)):
            rough, _ = self.score("--top-k", "20", "--values", values, path)
            for a, b in zip(exact[0]["rows"], rough[0]["rows"]):
                width, found = a["logits"][0] - a["logits"][-1], dict(zip(b["ids"], b["logits"]))     # those that became equal: by id
                self.assertEqual(sorted(a["ids"]), sorted(found))
                self.assertEqual(b["logits"], sorted(b["logits"], reverse=True))
                for i, x in zip(a["ids"], a["logits"]):
                    self.assertLessEqual(abs(x - found[i]), width * share * 1.001 + 1e-6)


class Resume(Base):
    N = 500

    def setUp(self):
        super().setUp()
        random.seed(5)
        lines = [{"tokens": [random.randrange(250) for _ in range(random.randrange(1, 60))]} for _ in range(self.N)]
        self.input = self.path("in.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
        self.options = ["--top-k", "8", "--batch", "2", "--in-flight", "4", "--no-store"]

    def whole(self, option):
        _, summary = self.score(*self.options, option, self.path("whole"), self.input)
        self.assertEqual((summary["sequences"], summary["resumed"]), (self.N, 0))
        return self.read("whole")

    def kill_in_the_middle(self, option, n):
        """Starts, waits until the output has n bytes, kills."""
        out = self.path("out")
        process = subprocess.Popen(self.command(*self.options, option, out, "--resume", self.input), stdout=subprocess.DEVNULL)
        wait_until(lambda: (os.path.exists(out) and os.path.getsize(out) >= n) or process.poll() is not None, "%d bytes of output" % n)
        process.send_signal(signal.SIGKILL)
        return process.wait()

    def test_killed_and_resumed_is_the_same_as_never_stopped(self):
        for option in ("--records", "--output"):
            whole = self.whole(option)
            status = [self.kill_in_the_middle(option, len(whole) * i // 5) for i in (1, 2, 4)]
            self.assertIn(-signal.SIGKILL, status)
            before = os.path.getsize(self.path("out"))
            _, summary = self.score(*self.options, option, self.path("out"), "--resume", self.input)
            self.assertEqual(summary["sequences"] + summary["resumed"], self.N)
            self.assertGreater(summary["resumed"], 0)
            self.assertEqual(self.read("out"), whole, before)
            os.remove(self.path("out"))
            os.remove(self.path("whole"))

    def test_a_torn_end_is_cut_wherever_it_is(self):
        self.N = 5
        self.setUp()
        for option in ("--records", "--output"):
            whole = self.whole(option)
            for n in list(range(0, len(whole), 199)) + [len(whole) - 1, len(whole)]:
                self.path("out", whole[:n])
                _, summary = self.score(*self.options, option, self.path("out"), "--resume", self.input)
                self.assertEqual(self.read("out"), whole, n)
                self.assertEqual(summary["sequences"] + summary["resumed"], 5)
            if option == "--records":
                for data in (whole + bytes(100), whole[:-60] + bytes(60), whole + whole[:50]):    # what a power failure may leave
                    self.path("out", data)
                    self.score(*self.options, option, self.path("out"), "--resume", self.input)
                    self.assertEqual(self.read("out"), whole)
            os.remove(self.path("whole"))

    def test_what_is_not_ours_is_refused(self):
        self.N = 5
        self.setUp()
        whole = self.whole("--records")
        out = self.path("out", whole)
        resume = lambda *more, options=self.options: self.score(*options, "--records", out, *more, expect=1)
        self.assertIn("it is not empty: --resume", resume(self.input))
        other = self.path("other.jsonl", '{"tokens":[1,2,3]}\n' * 5)
        self.assertIn("record 0 does not answer sequence 0", resume("--resume", other))
        self.assertIn("record 0 does not answer sequence 0", resume("--resume", self.input, options=["--top-k", "7", "--no-store"]))
        with open(self.input) as f:
            short = self.path("short.jsonl", "".join(f.readlines()[:3]))
        self.assertIn("more answers than the input has sequences", resume("--resume", short))
        damaged = bytearray(whole)
        damaged[200] ^= 1
        self.path("out", damaged)
        self.assertIn("damaged at byte 0", resume("--resume", self.input))
        self.path("out", b"this is somebody's letter")
        self.assertIn("damaged at byte 0", resume("--resume", self.input))
        self.assertEqual(self.read("out"), b"this is somebody's letter")
        _, summary = self.score(*self.options, "--records", out, "--overwrite", self.input)
        self.assertEqual(self.read("out"), whole)
        lines = self.path("lines", '{"id":"0"}\n')
        self.assertIn("line 1 does not answer sequence 0", self.score("--output", lines, "--resume", self.input, expect=1))
        self.assertIn("it is not a file", self.score("--output", "/dev/full", "--resume", self.input, expect=1))
        self.assertIn("No space left", self.score("--output", "/dev/full", self.input, expect=1))


class Teachers(Base):
    @classmethod
    def setUpClass(cls):
        cls.other = tempfile.mkdtemp(prefix="kdserved-e2e-")
        cls.addClassCleanup(shutil.rmtree, cls.other)
        tiny_model.write(os.path.join(cls.other, "second"), seed=2)
        cls.arguments = ("--teacher", "other=" + os.path.join(cls.other, "second"))
        super().setUpClass()

    def ask(self, *teacher):
        done = subprocess.run([KDCTL, "--server", "unix:" + self.daemon.socket_path, *teacher, "--json", "score", self.path("in.jsonl",
            '{"tokens":[5,17,200]}')], capture_output=True, text=True, timeout=60)
        return json.loads(done.stdout.splitlines()[-1])["summary"]["teacher"] if done.returncode == 0 else done.stderr

    def test_a_teacher_is_asked_by_name_or_fingerprint(self):
        first, other = [t["id"] for t in self.daemon.get("/v1/model")[1]["teachers"]]
        self.assertEqual([self.ask(), self.ask("--teacher", "model")], [first, first])
        self.assertEqual([self.ask("--teacher", "other"), self.ask("--teacher", other)], [other, other])
        self.assertIn("--teacher nobody: the server has model, other\n", self.ask("--teacher", "nobody"))
        self.assertIn("the teacher expected is none of this server's", self.ask("--teacher", "0" * 63 + "1"))


class Full(Base):
    arguments = ("--queue-requests", "2", "--queue-tokens", "512")

    def test_a_server_that_is_full_is_asked_for_less(self):
        path = self.path("in.jsonl", "".join(json.dumps({"tokens": [i % 250] * 100}) + "\n" for i in range(60)))
        _, summary = self.score("--top-k", "3", "--batch", "2", "--in-flight", "16", path)
        self.assertEqual(summary["sequences"], 60)


if __name__ == "__main__":
    unittest.main(verbosity=2)
