# SPDX-License-Identifier: Apache-2.0
"""The bits of an answer are a function of its question alone: not of company, threads, the cache of prefixes, the store, or a restart.
KDSERVED_TEST_SEQUENCES asks for more sequences (make torture-bits: 1,000)."""
import os
import random
import shutil
import tempfile
import unittest

import tiny_model
from kdserved import Daemon

N = int(os.environ.get("KDSERVED_TEST_SEQUENCES", "40"))
NO_STORE = 2
ASK = {"top_k": 6, "own": True, "entropy": True, "temperatures": (1.0, 2.5)}
GOLDEN = os.path.join(os.environ.get("top_srcdir", os.path.join(os.path.dirname(__file__), "..", "..")), "tests", "golden", "models")


def sequences(vocabulary, longest):
    """Some share their beginnings, some are of the lengths at which tiles end."""
    rng = random.Random(5)
    lengths = [n for n in (1, 2, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129) if n <= longest]
    made = []
    for i in range(N):
        n = lengths[i % len(lengths)] if i % 3 else rng.randrange(1, longest + 1)
        head = made[rng.randrange(i)][:n // 2] if i % 4 == 3 else []
        made.append(head + [rng.randrange(vocabulary) for _ in range(n - len(head))])
    return made


def differing_bits(have, want):
    if len(have) != len(want):
        return 8 * max(len(have), len(want))
    return sum(bin(a ^ b).count("1") for a, b in zip(have, want))


class Bits(unittest.TestCase):
    def setUp(self):
        self.directory = tempfile.mkdtemp(prefix="kdserved-e2e-")
        self.addCleanup(shutil.rmtree, self.directory)

    def ask(self, client, wanted, flags, batches):
        """The records of all, asked in the given batches of their numbers."""
        records = [None] * len(wanted)
        for batch in batches:
            answers = client.score([wanted[i] for i in batch], flags=flags, **ASK)
            for place, i in enumerate(batch):
                records[i] = answers[place][1]
        return records

    def check(self, what, have, want):
        self.assertEqual(sum(differing_bits(a, b) for a, b in zip(have, want)), 0, what)
        self.assertEqual(len(have), len(want))

    def batches(self, seed):
        rng = random.Random(seed)
        numbers = list(range(N))
        rng.shuffle(numbers)
        made = []
        while numbers:
            n = rng.randrange(1, 17)
            made.append(numbers[:n])
            numbers = numbers[n:]
        return made

    def run_model(self, model, vocabulary, longest, *more):
        wanted = sequences(vocabulary, longest)
        alone = [[i] for i in range(N)]
        common = ("--max-tokens", str(longest + 8), "--cache-tokens", "2048", "--batch-tokens", "300", *more)
        store = ("--store", os.path.join(self.directory, "store"))
        with Daemon(*common, "--threads", "1", model=model) as d, d.client() as c:
            want = self.ask(c, wanted, NO_STORE, alone)
            self.check("random batches, 1 thread", self.ask(c, wanted, NO_STORE, self.batches(1)), want)
            # a prompt leaves its prefixes in the cache, which later scores may begin from
            for tokens in wanted[:: max(1, N // 10)]:
                d.post("/v1/generate", {"prompts": [{"tokens": tokens}], "max_tokens": 2, "temperature": 0})
            self.check("with prefixes remembered", self.ask(c, wanted, NO_STORE, self.batches(2)), want)
        with Daemon(*common, *store, "--threads", "2", model=model) as d, d.client() as c:
            self.check("alone, 2 threads", self.ask(c, wanted, NO_STORE, alone), want)
            self.check("random batches, 2 threads, stored", self.ask(c, wanted, 0, self.batches(3)), want)
            self.check("from the store", self.ask(c, wanted, 0, self.batches(4)), want)
        with Daemon(*common, *store, "--threads", "1", model=model) as d, d.client() as c:
            self.check("from the store after a restart", self.ask(c, wanted, 0, self.batches(5)), want)
            self.check("computed after a restart", self.ask(c, wanted, NO_STORE, self.batches(6)), want)

    def test_a_llama(self):
        model = os.path.join(self.directory, "model")
        tiny_model.write(model)
        self.run_model(model, 265, 129)

    def test_products_of_int8(self):
        model = os.path.join(self.directory, "model")
        tiny_model.write(model)
        self.run_model(model, 265, 129, "--numeric", "int8")

    # Windows; capped scores; experts, whose rows are gathered from all of a batch.
    def test_other_architectures(self):
        for name in ("qwen3-window", "gemma2", "gemma3", "mixtral", "qwen3-moe"):
            with self.subTest(name):
                model = os.path.join(self.directory, name)
                shutil.copytree(os.path.join(GOLDEN, name), model)
                shutil.copy(os.path.join(GOLDEN, "llama", "tokenizer.json"), model)
                self.run_model(model, 96, 65)
                shutil.rmtree(os.path.join(self.directory, "store"))


if __name__ == "__main__":
    unittest.main()
