# SPDX-License-Identifier: Apache-2.0
"""kdctl capture: what a training run needs, accounts that add up, and nothing lost by any interruption."""
import json
import os
import random
import shutil
import signal
import struct
import subprocess
import tempfile
import time
import unittest

import kdserved
import tiny_model
from kdserved import BUILD, Daemon, wait_until
from test_offline import WORKER, text_of
from test_training import FILES, corpus, metrics, read

KDCTL = os.path.join(BUILD, "kdctl")


class Base(unittest.TestCase):
    arguments = ()

    @classmethod
    def setUpClass(cls):
        cls.daemon = Daemon("--max-tokens", "512", *cls.arguments)
        cls.addClassCleanup(cls.daemon.stop)

    def setUp(self):
        self.directory = tempfile.mkdtemp(prefix="kdserved-e2e-")
        self.addCleanup(shutil.rmtree, self.directory)
        self.store = os.path.join(self.directory, "store")

    def path(self, name, data=None):
        path = os.path.join(self.directory, name)
        if data is not None:
            with open(path, "wb") as f:
                f.write(data if isinstance(data, bytes) else data.encode())
        return path

    def lines(self, name, objects):
        return self.path(name, "".join(json.dumps(o) + "\n" for o in objects))

    def command(self, *arguments, daemon=None, store=None, json=True):
        where = ["--store", store or self.store] if store is not False else []
        daemon = daemon or self.daemon
        return [KDCTL, "--server", "unix:" + daemon.socket_path] + ["--json"] * json + ["capture", "--top-k", "5", *arguments, *where]

    def capture(self, *arguments, expect=0, **more):
        """(summary or None, stderr)"""
        done = subprocess.run(self.command(*arguments, **more), capture_output=True, text=True, timeout=kdserved.PATIENCE)
        self.assertEqual(done.returncode, expect, done.stderr)
        self.assertNotIn("Sanitizer", done.stderr)
        printed = [json.loads(line) for line in done.stdout.splitlines()]
        return printed[-1]["summary"] if printed and "summary" in printed[-1] else None, done.stderr

    def records(self, store=None):
        """key -> record as kdctl shows it, without its place"""
        done = subprocess.run([KDCTL, "--json", "store", "cat", store or self.store], capture_output=True, text=True, check=True)
        found = {}
        for line in map(json.loads, done.stdout.splitlines()):
            if "key" in line:
                line.pop("place")
                self.assertNotIn(line["key"], found)
                found[line["key"]] = line
        return found

    def manifest(self):
        with open(os.path.join(self.store, "manifest.json")) as f:
            return json.load(f)

    def balanced(self, s):
        for what in ("sequences", "tokens"):
            self.assertEqual(s["input"][what], s["answered"][what] + s["from_store"][what] + s["refused"][what])
        self.assertEqual(s["input"]["unsettled"], 0)

    def numbers(self, s):
        self.balanced(s)
        return s["answered"]["sequences"], s["from_store"]["sequences"], s["refused"]["sequences"]


    def shards_are_live(self, ends):
        """ends: tokens behind each document."""
        text = corpus(1500)
        files = [self.path("a.txt", text[:5000]), self.path("b.txt", text[5000:])]
        shape = dict(corpus=files[0] + "\ncorpus = " + files[1], epochs=1, student_context=64)
        live, offline, own = (os.path.join(self.directory, name) for name in ("live", "offline", "own"))

        def work(output, **keys):
            self.path("run.conf", text_of(**shape, **keys))
            done = subprocess.run([WORKER, "--config", self.path("run.conf"), "--output", output], capture_output=True, text=True,
                                  timeout=kdserved.PATIENCE)
            self.assertEqual(done.returncode, 0, done.stderr)
        work(live, server="unix:" + self.daemon.socket_path)
        work(own, server="unix:" + self.daemon.socket_path, tokenizer=self.daemon.model)
        s, _ = self.capture("--length", "48", "--top-k", "16", "--temperatures", "1,2", *files)
        self.assertEqual(s["state"], "complete")
        n_tokens = sum(len(self.daemon.post("/v1/tokenize", {"text": t, "add_special": False})[1]["tokens"]) for t in (text[:5000], text[5000:]))
        self.assertEqual(48 * s["input"]["sequences"] + s["input"]["left_over_tokens"] - n_tokens, ends * 2)
        work(offline, teacher="shards:" + self.store, tokenizer=os.path.join(self.store, "tokenizer.json"))
        for other in offline, own:
            self.assertEqual(metrics(other), metrics(live))
            for name in FILES:
                self.assertEqual(read(other, "student", name), read(live, "student", name), name)
        self.assertTrue([n for n in os.listdir(self.store) if n.endswith(".teacher")])


class Ended(Base):
    """A teacher whose tokenizer_config.json names what ends a text, which its tokenizer.json does not."""

    @classmethod
    def setUpClass(cls):
        directory = tempfile.mkdtemp(prefix="kdserved-e2e-")
        cls.addClassCleanup(shutil.rmtree, directory)
        tiny_model.write(os.path.join(directory, "model"))
        with open(os.path.join(directory, "model", "tokenizer_config.json"), "w") as f:
            json.dump({"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": None, "eos_token": {"content": "<|end|>", "special": True}}, f)
        cls.daemon = Daemon("--max-tokens", "512", directory=directory)
        cls.addClassCleanup(cls.daemon.stop)

    def test_it_stands_behind_each_document_whoever_packs(self):
        self.assertEqual(self.daemon.get("/v1/tokenizer_config")[1]["eos_token"], "<|end|>")
        self.shards_are_live(ends=1)
        end = self.daemon.post("/v1/tokenize", {"text": "<|end|>", "specials": True, "add_special": False})[1]["tokens"]
        self.assertEqual(len(end), 1)
        with open(os.path.join(self.store, "tokenizer_config.json")) as f:
            self.assertEqual(json.load(f)["eos_token"], "<|end|>")


class Corpora(Base):
    def test_a_run_from_the_shards_is_the_live_run(self):
        self.assertNotIn("eos_token", self.daemon.get("/v1/tokenizer_config")[1])
        self.shards_are_live(ends=0)

    def test_what_is_done_of_a_text_is_told_by_what_was_answered_not_by_what_was_read(self):
        text = corpus(20000)
        done = subprocess.run(self.command("--length", "32", "--batch", "1", "--in-flight", "1", "--report", "0.01", self.path("a.txt", text)),
                              capture_output=True, text=True, timeout=kdserved.PATIENCE)
        self.assertEqual(done.returncode, 0, done.stderr)
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        seen = [line["progress"] for line in lines if "progress" in line]
        n = lines[-1]["summary"]["answered"]["sequences"]
        self.assertGreater(n, 20)
        self.assertTrue(seen)
        for p in seen:
            self.assertLess(abs(p["corpus_bytes_done"] / len(text.encode()) - p["answered"] / n), 2 / n)

    def test_lines_are_answered_or_refused_by_name(self):
        path = self.path("in.jsonl", b"\n".join([
            json.dumps({"tokens": [5, 17, 200]}).encode(), b'{"text": "the cat"}', b'{"text": "\xff\xfe"}', b"{", b"",
            json.dumps({"tokens": list(range(200)) * 2}).encode(), json.dumps({"tokens": [9999]}).encode(), b'{"tokens": [1.5]}',
            b'{"text": ""}', json.dumps({"tokens": [1, 2, 3], "spans": [[2, 9]]}).encode(), json.dumps({"tokens": [4, 4], "first": 1}).encode()]))
        s, err = self.capture("--jsonl", "--max-length", "300", "--batch", "2", path, expect=1)
        self.assertEqual(self.numbers(s), (3, 0, 6))
        self.assertEqual(s["input"]["empty_lines"], 2)
        refused = [line for line in err.splitlines() if ": refused: " in line]
        self.assertEqual([int(line.split("line ")[1].split(":")[0]) for line in refused], [3, 4, 6, 7, 8, 10])
        self.assertIn("400 tokens, at most 300 are allowed", err)
        self.assertIn("tokens[0]", refused[3])
        self.assertIn("6 of 9 sequences were refused", err)
        self.assertEqual(s["refused"]["codes"], {"invalid": 5, "too_large": 1})
        self.assertEqual([r["where"] for r in s["refused"]["first"]], [path + ": line %d" % n for n in (3, 4, 6, 7, 8, 10)])
        self.assertEqual(len(self.records()), 3)
        s, _ = self.capture("--lines", "--max-length", "300", "--too-long", "cut", path, expect=1)
        self.assertEqual(self.numbers(s), (1, 3, 5))
        self.assertEqual((s["input"]["cut_sequences"], s["input"]["cut_tokens"]), (1, 100))
        self.assertIn(list(range(200)) + list(range(100)), [r["tokens"] for r in self.records().values()])

    def test_texts_in_lines_are_tokenized_as_the_server_does(self):
        texts = ["the cat and the dog", "in the garden <|end|> and on", "\u00e9t\u00e9 \u4e2d"]
        self.capture("--jsonl", self.lines("in.jsonl", [{"text": t} for t in texts]))
        self.assertEqual(sorted(r["tokens"] for r in self.records().values()),
                         sorted(self.daemon.post("/v1/tokenize", {"text": t})[1]["tokens"] for t in texts))
        self.capture("--jsonl", "--specials", self.lines("in.jsonl", [{"text": texts[1]}]))
        self.assertIn(self.daemon.post("/v1/tokenize", {"text": texts[1], "specials": True})[1]["tokens"],
                      [r["tokens"] for r in self.records().values()])

    def test_text_that_is_not_utf8_is_refused_before_anything_is_asked_or_replaced(self):
        path = self.path("t.txt", b"the cat " * 500 + b"\xff and \xc3\x28" + b" the dog" * 500)
        s, err = self.capture("--length", "64", path, expect=1)
        self.assertIn("byte 4000: not UTF-8, as are 1 more", err)
        self.assertIsNone(s)
        self.assertEqual(self.records(), {})
        s, _ = self.capture("--length", "64", "--invalid-utf8", "replace", path)
        self.assertEqual(s["corpus"][0]["replaced"], 2)
        self.assertGreater(self.numbers(s)[0], 10)

    def test_token_files(self):
        ids = [5, 17, 200, 3, 99, 0, 42]
        s, _ = self.capture("--length", "3", self.path("a.u16", struct.pack("<7H", *ids)), self.path("b.u16", struct.pack("<2H", 8, 9)))
        self.assertEqual(self.numbers(s), (4, 0, 0))
        self.assertEqual(sorted(r["tokens"] for r in self.records().values()), sorted([ids[:3], ids[3:6], ids[6:], [8, 9]]))
        self.capture("--length", "3", self.path("c.u16", b"\1\0\2"), expect=1)

    def test_only_what_is_missing_is_asked(self):
        some = [{"tokens": [i, i + 1, i + 2]} for i in range(40)]
        s, _ = self.capture("--jsonl", self.lines("a.jsonl", some[:30] + some[:5]))
        self.assertEqual(sum(self.numbers(s)), 35)
        self.assertEqual(len(self.records()), 30)
        self.assertEqual(s["answered"]["sequences"] - s["answered"]["repeated"], 30)
        before = self.records()
        s, _ = self.capture("--jsonl", self.lines("b.jsonl", some))
        self.assertEqual(self.numbers(s), (10, 30, 0))
        s, _ = self.capture("--jsonl", "--top-k", "3", "--no-own", self.lines("b.jsonl", some))     # a part of what is there
        self.assertEqual(self.numbers(s), (0, 40, 0))
        s, _ = self.capture("--jsonl", "--entropy", self.lines("b.jsonl", some))
        self.assertEqual(self.numbers(s), (40, 0, 0))
        after = self.records()
        self.assertEqual({k: after[k] for k in before}, before)
        captures = self.manifest()["captures"]
        self.assertEqual(len(captures), 4)
        self.capture("--jsonl", "--entropy", self.lines("b.jsonl", some))
        self.assertEqual([c["id"] for c in self.manifest()["captures"]], [c["id"] for c in captures])

    def test_every_signal(self):
        path = self.lines("in.jsonl", [{"tokens": [5, 17, 200, 3]}, {"tokens": [1, 2], "gather": [[1, 2], [3]]}])
        s, _ = self.capture("--jsonl", "--entropy", "--max-prob", "--tail", "--sum", "--draws", "20", "--features", "final", "--values", "u8",
                            "--temperatures", "0.5,2", "--gather", "7", path)
        self.assertEqual(self.numbers(s), (2, 0, 0))
        score = subprocess.run([KDCTL, "--server", "unix:" + self.daemon.socket_path, "--json", "score", "--top-k", "5", "--entropy", "--max-prob",
                                "--tail", "--sum", "--draws", "20", "--features", "final", "--values", "u8", "--temperatures", "0.5,2",
                                "--gather", "7", path], capture_output=True, text=True, check=True)
        rows = {tuple(line["tokens"]): line["rows"] for line in map(json.loads, score.stdout.splitlines()) if "rows" in line}
        self.assertEqual({tuple(r["tokens"]): r["rows"] for r in self.records().values()}, rows)

    def test_usage(self):
        path = self.lines("in.jsonl", [{"tokens": [1]}])
        for arguments, more in ((["-"], {}), ([], {}), ([path], {"store": False}), ([path, "--server-side"], {}),
                                ([path, "--length", "9"], {}), ([path, "--format", "text", "--max-length", "9"], {}),
                                ([path, "--too-long", "x"], {}), ([path, "--server-side", "--no-store"], {"store": False})):
            self.capture(*arguments, expect=2, **more)
        for arguments, words in (([path, "--max-length", "9999"], "more than the server's limit"), ([self.path("none.jsonl")], "No such file"),
                                 ([self.directory + "/"], "not a file"), ([self.path("e.txt", "")], "fills no sequence")):
            self.assertIn(words, self.capture(*arguments, expect=1)[1])
        self.path("store/manifest.json", "{}")
        self.assertIn("not a manifest of captures", self.capture(path, expect=1)[1])

    def test_a_second_writer_is_refused(self):
        with Daemon("--store", self.store) as other:
            _, err = self.capture(self.lines("in.jsonl", [{"tokens": [1]}]), expect=1)
            self.assertIn("another process", err)
            self.assertEqual(other.get("/live")[0], 200)

    def test_the_servers_own_store(self):
        path = self.lines("in.jsonl", [{"tokens": [i, 2]} for i in range(20)])
        self.assertIn("has no store", self.capture("--server-side", path, store=False, expect=1)[1])
        with Daemon("--store", self.path("theirs")) as other:
            for numbers in (20, 0, 0), (0, 20, 0):
                s, _ = self.capture("--server-side", "--durable", "--manifest", self.path("m.json"), path, store=False, daemon=other)
                self.assertEqual(self.numbers(s), numbers)
        self.assertEqual(len(self.records(self.path("theirs"))), 20)
        with open(self.path("m.json")) as f:
            self.assertEqual(len(json.load(f)["captures"]), 1)

    def test_a_corpus_that_changes_is_told(self):
        path = self.lines("in.jsonl", [{"tokens": [i, 2, 3]} for i in range(200)])
        os.kill(self.daemon.process.pid, signal.SIGSTOP)
        try:
            process = subprocess.Popen(self.command("--batch", "1", "--in-flight", "1", path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            time.sleep(0.2)      # it has no answer, however long this takes
        finally:
            os.kill(self.daemon.process.pid, signal.SIGCONT)
        wait_until(lambda: os.path.exists(os.path.join(self.store, "manifest.json")), "the manifest")
        os.kill(self.daemon.process.pid, signal.SIGSTOP)
        try:
            with open(path, "a") as f:
                f.write('{"tokens": [4, 4]}\n')
        finally:
            os.kill(self.daemon.process.pid, signal.SIGCONT)
        out, err = process.communicate(timeout=kdserved.PATIENCE)
        if process.returncode == 0:
            self.skipTest("it was done before the file changed")
        self.assertIn("was changed while it was captured", err)
        self.assertEqual(json.loads(out.splitlines()[-1])["summary"]["state"], "failed")


class Interruptions(Base):
    arguments = ("--credits", "4")

    def setUp(self):
        super().setUp()
        rng = random.Random(5)
        self.input = self.lines("in.jsonl", [{"tokens": [rng.randrange(250) for _ in range(rng.randrange(2, 60))]} for _ in range(240)])

    def follow(self, *arguments, until, **more):
        """Starts a capture that reports all the time, returns it and the last progress seen once until(progress) is true or it ended."""
        process = subprocess.Popen(self.command("--report", "0.01", "--batch", "2", "--in-flight", "2", *arguments, self.input, **more),
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        seen = None
        for line in map(json.loads, process.stdout):
            if "summary" in line:       # one that ends before the first report has told nothing before
                seen = {name: line["summary"][name]["sequences"] for name in ("answered", "from_store")}
            seen = line.get("progress", seen)
            if seen and until(seen):
                break
        return process, seen

    def end(self, process):
        out, err = process.communicate(timeout=kdserved.PATIENCE)
        summary = [json.loads(line) for line in out.splitlines() if "summary" in line]
        return summary[0]["summary"] if summary else None, err

    def test_killed_at_any_time_it_goes_on_and_loses_nothing_it_reported(self):
        whole = os.path.join(self.directory, "whole")
        s, _ = self.capture(self.input, store=whole)
        self.assertEqual(self.numbers(s), (240, 0, 0))
        rng, reported, rounds = random.Random(1), 0, 0
        while reported < 240:
            self.assertLess(rounds, 1000, "it does not get on")
            wanted = reported + rng.randrange(1, 25)
            process, seen = self.follow(until=lambda p: p["answered"] + p["from_store"] >= wanted)
            if process.poll() is None:
                time.sleep(rng.random() * 0.02)
            process.kill()
            process.communicate()
            rounds += 1
            if not seen:
                continue
            reported = max(reported, seen["answered"] + seen["from_store"])
            there = self.records() if os.path.exists(self.store) else {}
            self.assertGreaterEqual(len(there), reported)
            unsettled = [c["input"]["sequences"] - c["input"]["unsettled"] for c in self.manifest()["captures"]]
            self.assertLessEqual(unsettled[0], len(there))
        self.assertGreater(rounds, 1)        # how many depends on how quick the machine is
        s, _ = self.capture(self.input)
        self.assertEqual(self.numbers(s), (0, 240, 0))
        self.assertEqual(self.records(), self.records(whole))
        self.assertEqual([c["state"] for c in self.manifest()["captures"]], ["complete"])

    def test_a_signal_ends_it_in_order(self):
        process, seen = self.follow(until=lambda p: p["answered"] >= 20)
        process.send_signal(signal.SIGTERM)
        s, err = self.end(process)
        if process.returncode == 0:
            self.skipTest("it was done before the signal")
        self.assertEqual(process.returncode, 1)
        self.assertIn("stopped: the same command goes on", err)
        self.assertEqual(s["state"], "stopped")
        self.assertEqual(len(self.records()), s["answered"]["sequences"])
        s, _ = self.capture(self.input)
        self.assertEqual(self.numbers(s)[2], 0)

    def test_a_server_that_goes_is_waited_for_and_another_teacher_is_not(self):
        directory = tempfile.mkdtemp(prefix="kdserved-e2e-")
        self.addCleanup(shutil.rmtree, directory)
        arguments = ("--max-tokens", "512")
        daemon = Daemon(*arguments, directory=directory)
        process, seen = self.follow(until=lambda p: p["answered"] >= 10, daemon=daemon)
        daemon.process.kill()
        daemon.stop(expect=None)
        daemon = Daemon(*arguments, directory=directory)
        s, err = self.end(process)
        self.assertEqual(process.returncode, 0, err)
        self.assertEqual(self.numbers(s), (240, 0, 0))
        self.assertEqual(len(self.records()), 240)
        shutil.rmtree(self.store)
        process, seen = self.follow(until=lambda p: p["answered"] >= 10, daemon=daemon)
        daemon.stop()
        shutil.rmtree(os.path.join(directory, "model"))
        tiny_model.write(os.path.join(directory, "model"), seed=99)
        with Daemon(*arguments, directory=directory):
            s, err = self.end(process)
        self.assertEqual(process.returncode, 1)
        self.assertIn("the server has another teacher now", err)
        self.assertEqual((s["state"], len(self.records())), ("failed", s["answered"]["sequences"]))

    def test_patience_ends(self):
        daemon = Daemon("--max-tokens", "512")
        process, _ = self.follow("--patience", "0.5", until=lambda p: p["answered"] >= 10, daemon=daemon)
        daemon.process.kill()
        daemon.stop(expect=None)
        s, err = self.end(process)
        self.assertEqual(process.returncode, 1)
        self.assertIn("waiting for it", err)
        self.assertEqual(s["state"], "failed")
        self.assertEqual(len(self.records()), s["answered"]["sequences"])
        _, err = self.capture("--patience", "0.3", self.input, daemon=daemon, expect=1)
        self.assertIn("waiting for the server", err)

    def test_a_server_that_is_full_is_asked_for_less(self):
        with Daemon("--max-tokens", "512", "--queue-requests", "1") as daemon:
            s, _ = self.capture("--batch", "1", "--in-flight", "16", self.input, daemon=daemon)
        self.assertEqual(self.numbers(s), (240, 0, 0))


if __name__ == "__main__":
    unittest.main(verbosity=2)
