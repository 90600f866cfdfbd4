# SPDX-License-Identifier: Apache-2.0
"""kdctl select: by two models' scores, by the texts themselves, by a student's doubts, by domain."""
import hashlib
import json
import math
import os
import random
import re
import shutil
import subprocess
import tempfile
import unittest

import tiny_model
from kdserved import BUILD, Daemon

KDCTL = os.path.join(BUILD, "kdctl")
WORDS = "the cat and a dog in garden bird sings loud".split()


class Select(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.directory = tempfile.mkdtemp(prefix="kdserved-e2e-")
        cls.addClassCleanup(shutil.rmtree, cls.directory)

    def path(self, name):
        return os.path.join(self.directory, name)

    def write(self, name, lines):
        with open(self.path(name), "w", encoding="utf-8") as f:
            f.writelines(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines)
        return self.path(name)

    def lines(self, name):
        with open(self.path(name), encoding="utf-8") as f:
            return [json.loads(line) for line in f]

    def select(self, *arguments, expect=0):
        """stdout; with expect = 1 or 2 the one line of the error."""
        done = subprocess.run([KDCTL, "--json", "select", *arguments], capture_output=True, text=True, timeout=60)
        self.assertEqual(done.returncode, expect, done.stderr)
        if expect:
            self.assertEqual(done.stderr.count("\n"), 1, done.stderr)
            return done.stderr
        self.assertEqual(done.stderr, "")
        return done.stdout

    def scores(self, name, losses, n_tokens=11):
        return self.write(name, [{"id": "%064x" % i, "tokens": list(range(n_tokens)), "spans": [None if x is None else -x * (n_tokens - 1)]}
                                 for i, x in enumerate(losses)])

    def test_difference_takes_what_the_small_model_finds_harder(self):
        reference = self.scores("reference", [3.10, 2.50, 4.00, 2.90, None])
        teacher = self.scores("teacher", [2.60, 2.45, 3.90, 2.10, 1.0])
        items = self.write("items", ['{"text": "item %d"}\n' % i for i in range(5)])
        self.assertEqual(self.select("difference", "--reference", reference, "--count", "2", "--items", items, teacher),
                         '{"text": "item 0"}\n{"text": "item 3"}\n')
        summary = self.select("difference", "--reference", reference, "--ratio", "0.4", "--output", self.path("out"), "--values",
                              self.path("values"), teacher)
        self.assertEqual(json.loads(summary), {"summary": {"items": 5, "chosen": 2}})
        self.assertEqual([line["id"] for line in self.lines("out")], ["%064x" % i for i in (0, 3)])
        values = self.lines("values")
        for got, want in zip(values, [.5, .05, .1, .8]):
            self.assertAlmostEqual(got["value"], want)
        self.assertEqual(values[4], {"value": None, "chosen": False})

    def test_difference_of_two_teachers_of_one_daemon(self):
        model = os.path.join(self.directory, "model")
        tiny_model.write(model, seed=1)
        tiny_model.write(self.path("second"), seed=2)
        rng = random.Random(1)
        items = self.write("corpus.jsonl", [{"text": " ".join(rng.choices(WORDS, k=12))} for _ in range(9)])
        daemon = Daemon("--teacher", "small=" + self.path("second"), directory=self.directory)
        self.addCleanup(daemon.stop)
        for name in ("model", "small"):
            subprocess.run([KDCTL, "--server", "unix:" + daemon.socket_path, "--teacher", name, "score", "--sum", "--top-k", "0", "--no-own",
                            "--output", self.path(name + ".scores"), items], check=True, stdout=subprocess.DEVNULL)
        chosen = self.select("difference", "--reference", self.path("small.scores"), "--count", "4", "--items", items, self.path("model.scores"))
        loss = [[-line["spans"][0] / (len(line["tokens"]) - 1) for line in self.lines(name + ".scores")] for name in ("model", "small")]
        gap = [b - a for a, b in zip(*loss)]
        best = sorted(sorted(range(9), key=lambda i: -gap[i])[:4])
        corpus = self.lines("corpus.jsonl")
        self.assertEqual([json.loads(line) for line in chosen.splitlines()], [corpus[i] for i in best])

    def test_dsir_is_its_definition(self):
        def grams(text):
            words = re.findall(r"\w+|[^\w\s]+", text.lower())
            hashed = [int(hashlib.sha256(g.encode()).hexdigest(), 16) % 10000 for g in words + [" ".join(p) for p in zip(words, words[1:])]]
            return hashed, len(words)

        def shares(texts):
            counts = {}
            for text in texts:
                for b in grams(text)[0]:
                    counts[b] = counts.get(b, 0) + 1
            total = sum(counts.values())
            return {b: n / total for b, n in counts.items()}

        rng = random.Random(2)
        raw = [" ".join(rng.choices(WORDS + ["Ünder", "zu", "Straße,", "\"quoted\"", "don't"], k=rng.randrange(5, 30))) for _ in range(60)]
        target = ["The cat sings, and a dog sings in the garden.", "loud loud bird: ÜNDER zu"]
        p, q = shares(target), shares(raw)
        want = []
        for text in raw:
            hashed, n = grams(text)
            want.append(sum(math.log(p.get(b, 0) + 1e-8) - math.log(q.get(b, 0) + 1e-8) for b in hashed) if n >= 10 else None)
        items, wanted = self.write("raw", [{"text": t} for t in raw]), self.write("target", [{"text": t} for t in target])
        self.select("dsir", "--target", wanted, "--count", "10", "--top", "--min-words", "10", "--values", self.path("values"), "--output",
                    self.path("out"), items)
        values = self.lines("values")
        for got, value in zip(values, want):
            self.assertEqual(got["value"] is None, value is None)
            if value is not None:
                self.assertAlmostEqual(got["value"], value, places=8)
        best = sorted((i for i in range(60) if want[i] is not None), key=lambda i: -want[i])[:10]
        self.assertEqual([i for i in range(60) if values[i]["chosen"]], sorted(best))
        first = self.select("dsir", "--target", wanted, "--count", "10", "--min-words", "0", "--seed", "5", items)
        self.assertEqual(first, self.select("dsir", "--target", wanted, "--count", "10", "--min-words", "0", "--seed", "5", items))
        self.assertEqual(len(first.splitlines()), 10)

    def test_queries_ask_where_the_student_doubts(self):
        def line(gain):
            p = (1 + 1 - gain) / 2     # two ids of probability p and 1 - p: p - (1 - p) = 1 - gain
            return {"id": "0", "tokens": [1, 2], "rows": [{"status": "ok", "max_prob": p, "ids": [4, 5], "logits": [math.log(p), math.log(1 - p)]}]}
        scores = self.write("student", [line(g) for g in (.9, .8, .5, .2, .1)])
        self.select("queries", "--bad", "1", "--count", "3", "--top", "--values", self.path("values"), "--output", self.path("out"), scores)
        for got, p in zip(self.lines("values"), [.254777, .286624, .458599, None, None]):
            if p is None:
                self.assertEqual(got, {"value": None, "chosen": False})
            else:
                self.assertAlmostEqual(math.exp(got["value"]), p, places=5)
        self.assertIn("nothing worth asking", self.select("queries", "--bad", "5", scores, expect=1))

    def test_domains_follow_the_gap(self):
        teacher = self.scores("t", [math.log(x) for x in (6, 10, 8, 6)])
        student = self.scores("s", [math.log(x) for x in (9, 12, 20, 9)])
        items = self.write("held-out", [{"domain": d} for d in ("code", "prose", "law", "code")])
        got = json.loads(self.select("domains", "--student", student, "--items", items, teacher))
        for name, w, pair in (("code", .224260, (9, 6)), ("prose", .166136, (12, 10)), ("law", .609603, (20, 8))):
            self.assertAlmostEqual(got["weights"][name], w, places=5)
            for a, b in zip(got["perplexities"][name], pair):
                self.assertAlmostEqual(a, b)
        previous = self.write("previous", [got])
        later = self.scores("s", [math.log(x) for x in (8, 11.5, 14, 8)])
        got = json.loads(self.select("domains", "--student", later, "--items", items, "--previous", previous, teacher))
        for name, w in (("code", .253774), ("prose", .220388), ("law", .525839)):
            self.assertAlmostEqual(got["weights"][name], w, places=5)
        items = self.write("held-out", [{"domain": d} for d in ("code", "prose", "new", "code")])
        self.assertIn("domain new", self.select("domains", "--student", later, "--items", items, "--previous", previous, teacher, expect=1))

    def test_an_item_may_have_a_summary_of_its_own(self):
        target = self.write("target", [{"text": "a cat"}])
        items = self.write("items", [{"summary": "s", "text": "the cat"}, {"text": "a dog", "summary": {}}, {"summary": {"items": 2}}])
        out = self.select("dsir", "--target", target, "--top", "--min-words", "0", "--ratio", "1", items)
        self.assertEqual([json.loads(line)["text"] for line in out.splitlines()], ["the cat", "a dog"])

    def test_what_does_not_fit_together_is_named(self):
        two, three = self.scores("two", [1, 2]), self.scores("three", [1, 2, 3])
        cases = [
            (2, (), "METHOD"), (2, ("best", two), "best"), (2, ("difference", two), "--reference"), (2, ("dsir", two), "--target"),
            (2, ("domains", two), "--student"), (2, ("difference", "--ratio", "0", two), "--ratio"), (2, ("dsir", "--count", "1.5", two), "--count"),
            (1, ("difference", "--reference", three, two), "3"), (1, ("difference", "--reference", two, three), "line 3"),
            (1, ("difference", "--reference", two, "--items", three, two), "more items"),
            (1, ("difference", "--reference", two, self.path("none")), "none"),
            (1, ("dsir", "--target", two, two), "text"), (1, ("queries", two), "nothing worth"),
            (1, ("difference", "--reference", two, self.write("empty", [])), "nothing"),
            (1, ("difference", "--reference", two, self.write("broken", ['{"id": "0"\n'])), "item 1"),
            (1, ("difference", "--reference", two, self.write("list", ["[1]\n"])), "object"),
            (1, ("difference", "--reference", two, self.write("plain", [{"tokens": [1, 2]}, {}])), "line 1"),
            (1, ("difference", "--reference", two, "--output", self.path("no/where"), two), "no/where"),
        ]
        other = self.lines("two")
        other[1]["id"] = "f" * 64
        cases.append((1, ("difference", "--reference", two, self.write("other", other)), "other tokens"))
        for status, arguments, part in cases:
            with self.subTest(arguments):
                self.assertIn(part, self.select(*arguments, expect=status))


if __name__ == "__main__":
    unittest.main()
