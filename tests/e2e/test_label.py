# SPDX-License-Identifier: Apache-2.0
"""kdctl label: the teacher answers prompts, whatever interrupts it; its answers are learned, their prompts are not."""
import json
import os
import shutil
import subprocess
import tempfile
import unittest

import kdserved
from kdserved import BUILD, Daemon
from test_policy import reports
from test_training import WORDS, WORKER, read, settings

KDCTL = os.path.join(BUILD, "kdctl")


class Label(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.daemon = Daemon()
        cls.addClassCleanup(cls.daemon.stop)

    def setUp(self):
        self.directory = tempfile.mkdtemp(prefix="kdserved-e2e-")
        self.addCleanup(shutil.rmtree, self.directory)
        self.prompts = self.path("prompts.jsonl", "".join(json.dumps({"prompt": " ".join(WORDS[i % 7:i % 7 + 2 + i % 5]), "n": i}) + "\n"
                                                          for i in range(40)))

    def path(self, name, text=None):
        path = os.path.join(self.directory, name)
        if text is not None:
            with open(path, "w") as f:
                f.write(text)
        return path

    def label(self, *arguments, expect=0):
        done = subprocess.run([KDCTL, "--server", "unix:" + self.daemon.socket_path, "--json", "label", *arguments, "--tokens", "12"],
                              capture_output=True, text=True, timeout=kdserved.PATIENCE)
        self.assertEqual(done.returncode, expect, done.stderr)
        self.assertNotIn("Sanitizer", done.stderr)
        return json.loads(done.stdout) if expect == 0 else done.stderr

    def train(self, text, expect=0):
        config, output = self.path("run.conf", text), self.path("out")
        done = subprocess.run([WORKER, "--config", config, "--output", output], capture_output=True, text=True, timeout=kdserved.PATIENCE)
        self.assertEqual(done.returncode, expect, done.stderr)
        return done.stderr, output

    def test_every_prompt_is_answered_the_same_however_it_is_asked(self):
        whole, other = self.path("whole.jsonl"), self.path("other.jsonl")
        said = self.label(self.prompts, "--output", whole, "--samples", "2", "--seed", "5")
        self.assertEqual((said["prompts"], said["kept"]), (40, 0))
        lines = [json.loads(line) for line in read(whole).splitlines()]
        self.assertEqual([(x["item"], x["sample"]) for x in lines], [(i, k) for i in range(40) for k in range(2)])
        self.assertEqual(said["tokens"], sum(x["n_tokens"] for x in lines))
        for x in lines:
            self.assertEqual(x["finish"], "length" if x["n_tokens"] == 12 and x["finish"] == "length" else "stop")
            self.assertLess(x["logprob"], 0)
        self.assertTrue(any(a["response"] != b["response"] for a, b in zip(lines[::2], lines[1::2])))
        self.label(self.prompts, "--output", other, "--samples", "2", "--seed", "5", "--batch", "7")
        self.assertEqual(read(other), read(whole))
        status, one = self.daemon.post("/v1/generate", {"prompt": lines[6]["prompt"], "max_tokens": 12, "temperature": 1, "seed": 5, "n": 2})
        if status == 200 and "samples" in one:
            self.assertEqual(one["samples"][0]["text"], lines[6]["response"])

    def test_what_was_interrupted_goes_on_to_the_same_bytes(self):
        whole, torn = self.path("whole.jsonl"), self.path("torn.jsonl")
        self.label(self.prompts, "--output", whole, "--samples", "3")
        data = read(whole)
        ends = [i + 1 for i, c in enumerate(data) if c == 10]
        for cut in (0, 1, ends[0], ends[30] + 17, ends[59], ends[-1]):
            with open(torn, "wb") as f:
                f.write(data[:cut])
            said = self.label(self.prompts, "--output", torn, "--samples", "3", "--resume")
            self.assertEqual((said["prompts"], said["kept"]), (40, sum(end <= cut for end in ends) // 3))
            self.assertEqual(read(torn), data)
        said = self.label(self.prompts, "--output", self.path("new.jsonl"), "--samples", "3", "--resume")
        self.assertEqual(said["kept"], 0)

    def test_what_does_not_belong_together_is_refused(self):
        output = self.path("out.jsonl")
        self.label(self.prompts, "--output", output)
        kept = read(output)
        self.assertIn("is there already", self.label(self.prompts, "--output", output, expect=1))
        self.assertIn("other options", self.label(self.prompts, "--output", output, "--resume", "--seed", "2", expect=1))
        fewer = self.path("fewer.jsonl", "".join(line + "\n" for line in read(self.prompts).decode().splitlines()[:30]))
        self.assertIn("more items than", self.label(fewer, "--output", output, "--resume", expect=1))
        changed = self.path("changed.jsonl", read(self.prompts).decode().replace(" ", "  ", 60))
        self.assertIn("another prompt", self.label(changed, "--output", output, "--resume", expect=1))
        self.assertEqual(read(output), kept)
        for text, why in (("{\n", "bad.jsonl:1: "), ('{"text":"a"}\n', 'bad.jsonl:1: has no "prompt"'), ('{"prompt":3}\n', "has no")):
            self.assertIn(why, self.label(self.path("bad.jsonl", text), "--output", self.path("bad.out"), "--resume", expect=1))
        self.label("--output", output, expect=2)
        self.label(self.prompts, "--output", output, "--tokens", "0", expect=2)

    def test_answers_are_learned_without_their_prompts(self):
        output = self.path("answers.jsonl")
        self.label(self.prompts, "--output", output, "--samples", "4", "--temperature", "0.5")
        common = {"corpus": output, "corpus_prompt": "prompt", "corpus_field": "response", "loss": "cross-entropy", "held_out": 0.1,
                  "sequence_length": 40, "steps": 30, "tokenizer": self.daemon.model}
        said, out = self.train(settings(self.directory, teacher="labels", **common))
        steps = reports(out)
        lines = [json.loads(line) for line in read(output).splitlines()]
        n = [len(self.daemon.post("/v1/tokenize", {"text": x["response"]})[1]["tokens"]) + (x["finish"] == "stop") for x in lines]
        learned = steps[30]["positions"] / (30 * 8)
        self.assertAlmostEqual(learned, sum(n) / len(n), delta=0.1 * learned)
        self.assertLess(steps[30]["loss"], steps[1]["loss"])
        shutil.rmtree(out)
        said, out = self.train(settings(self.directory, server="unix:" + self.daemon.socket_path, rollouts=0.5, rollout_tokens=10, rollout_prompt=4,
                                        **dict(common, loss="jsd top-k=8 support=both:8", steps=8)))
        steps = reports(out)
        self.assertTrue(any("rollouts" in s for s in steps.values()))
        self.assertTrue(all(s.get("rollout_tokens", 0) <= 10 for s in steps.values()))

    def test_the_teachers_answer_and_the_students_stand_in_pairs(self):
        output = self.path("answers.jsonl")
        self.label(self.prompts, "--output", output)
        text = settings(self.directory, server="unix:" + self.daemon.socket_path, corpus=output, corpus_prompt="prompt", corpus_field="response",
                        loss=["skew-forward-kl on=text top-k=16", "skew-reverse-kl on=rollouts detach-mix=on top-k=16 support=both:16"],
                        rollouts=1, rollout_pairs="yes", rollout_tokens=10, rollout_prompt=4, sequence_length=40, held_out=0.1, steps=0, epochs=1)
        said, out = self.train(text)
        steps = reports(out)
        self.assertEqual(max(steps), 9)                                        # 36 prompts, each twice, 8 sequences a step
        for s in steps.values():
            self.assertEqual(s["rollouts"], 4)
            self.assertIn("loss_skew_forward_kl", s)
            self.assertIn("loss_skew_reverse_kl", s)
        self.assertIn("rollout-pairs: ", self.train(text.replace("rollouts = 1", "rollouts = 0.5"), expect=78)[0])

    def test_prompts_that_cannot_be_are_refused(self):
        base = {"teacher": "labels", "loss": "cross-entropy", "tokenizer": self.daemon.model, "corpus_prompt": "prompt", "steps": 1}
        said, _ = self.train(settings(self.directory, **base), expect=78)
        self.assertIn("only lines of a .jsonl corpus have prompts", said)
        lines = self.path("a.jsonl", '{"text":"the tin hen"}\n' * 4)
        said, _ = self.train(settings(self.directory, **dict(base, corpus=lines)), expect=1)
        self.assertIn('a.jsonl:1: has no "prompt"', said)
        long = self.path("b.jsonl", json.dumps({"prompt": "the " * 100, "text": "hen"}) + "\n" + '{"prompt":"the tin","text":"hen"}\n' * 6)
        said, _ = self.train(settings(self.directory, **dict(base, corpus=long)))
        self.assertIn("1 prompts are as long as sequence-length", said)


if __name__ == "__main__":
    unittest.main()
