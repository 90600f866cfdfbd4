# SPDX-License-Identifier: Apache-2.0
"""Masked language models: a tiny BERT teacher and a BERT student, from corpus to export, resumed, and refused where it does not fit."""
import json
import os
import subprocess
import unittest

import kdserved
import test_training
from test_training import kill_at, metrics, read, settings

BERT = os.path.join(os.environ.get("top_srcdir", "."), "tests", "golden", "models", "bert")


class Masked(unittest.TestCase):
    worker, finish = test_training.Training.worker, test_training.Training.finish

    def text(self, daemon, **more):
        keys = {"mlm": "yes", "student_family": "bert", "loss": ["forward-kl top-k=16", "cross-entropy weight=0.1"], "learning_rate": 0.003}
        return settings(daemon.directory, **{**keys, **more})

    def test_a_bert_student_learns_what_a_bert_teacher_says_of_masked_tokens(self):
        with kdserved.Daemon(model=BERT) as daemon:
            output = os.path.join(daemon.directory, "out")
            said = self.finish(self.worker(daemon, output, self.text(daemon, steps=60, evaluate_every=60)))
            steps = metrics(output)
            self.assertLess(steps[60]["held_out_kl"], 0.8 * steps[1].get("held_out_kl", float(said.split("held-out KL to the teacher ")[1].split()[0])))
            with open(os.path.join(output, "student", "config.json")) as f:
                self.assertEqual(json.load(f)["architectures"], ["BertForMaskedLM"])
            # About 15 % of the positions are learned, not all of them.
            with open(os.path.join(output, "metrics.jsonl")) as f:
                last = [json.loads(line) for line in f][-1]
            self.assertGreater(last["positions"], 0.10 * 60 * 8 * 48)
            self.assertLess(last["positions"], 0.20 * 60 * 8 * 48)
            # What was exported is a teacher of its own, and a student to go on from.
            with kdserved.Daemon(model=os.path.join(output, "student")) as second:
                self.assertEqual(second.get("/v1/model")[1]["objective"], "masked")
            again = os.path.join(daemon.directory, "again")
            self.finish(self.worker(daemon, again, self.text(daemon, steps=2, learning_rate=0, student=os.path.join(output, "student"))))
            self.assertAlmostEqual(metrics(again)[2]["held_out_kl"], steps[60]["held_out_kl"], places=4)

    def test_the_teacher_as_student_has_no_distance(self):
        with kdserved.Daemon(*kdserved.EXACT, model=BERT) as daemon:
            output = os.path.join(daemon.directory, "out")
            losses = ["forward-kl top-k=16", "reverse-kl top-k=96", "jsd top-k=16"]
            self.finish(self.worker(daemon, output, self.text(daemon, steps=1, student=daemon.model, learning_rate=0, loss=losses, values="f32")))
            step = metrics(output)[1]
            names = [name for name in step if name.startswith("loss_")]
            self.assertEqual(len(names), len(losses))
            for name in names + ["held_out_kl"]:
                self.assertLess(abs(step[name]), 1e-5, name)

    def test_cross_entropy_alone_names_masked_tokens(self):
        with kdserved.Daemon(model=BERT) as daemon:
            output = os.path.join(daemon.directory, "out")
            self.finish(self.worker(daemon, output, self.text(daemon, loss="cross-entropy", steps=30)))
            steps = metrics(output)
            self.assertLess(sum(steps[i]["loss"] for i in range(26, 31)), 0.9 * sum(steps[i]["loss"] for i in range(1, 6)))

    def test_killed_and_resumed_is_the_same_as_never_stopped(self):
        with kdserved.Daemon(model=BERT) as daemon:
            text = self.text(daemon, steps=15, packing="bfd", order="shuffled")
            whole, parts = os.path.join(daemon.directory, "whole"), os.path.join(daemon.directory, "parts")
            self.finish(self.worker(daemon, whole, text))
            process = self.worker(daemon, parts, text)
            kill_at(process, parts, 6)
            self.finish(self.worker(daemon, parts, text, "--resume"))
            self.assertEqual(metrics(parts), metrics(whole))
            self.assertEqual(len(metrics(whole)), 15)
            self.assertEqual(read(parts, "student", "model.safetensors"), read(whole, "student", "model.safetensors"))

    def test_what_does_not_fit_is_refused(self):
        with kdserved.Daemon(model=BERT) as daemon:
            for number, (status, said, keys) in enumerate((
                    (78, "bert and mlm = yes go together", {"student_family": "llama"}), (78, "bert and mlm = yes go together", {"mlm": "no"}),
                    (78, "support=student", {"loss": "reverse-kl support=student:4"}),
                    (78, "writes nothing", {"rollouts": 0.5, "rollout_prompt": 8, "rollout_tokens": 8}),
                    (1, "without mlm = yes", {"mlm": "no", "student_family": "llama"}))):
                out = os.path.join(daemon.directory, "out%d" % number)
                self.assertIn(said, self.finish(self.worker(daemon, out, self.text(daemon, **keys)), expect=status))
            path = os.path.join(daemon.directory, "labels")
            with open(path + ".conf", "w") as f:
                f.write(self.text(daemon, teacher="labels", tokenizer=BERT, loss="cross-entropy"))
            alone = subprocess.run([test_training.WORKER, "--config", path + ".conf", "--output", path], capture_output=True, text=True, check=False)
            self.assertEqual(alone.returncode, 78, alone.stderr)
            self.assertIn("needs a live teacher", alone.stderr)
        with kdserved.Daemon() as daemon:
            said = self.finish(self.worker(daemon, os.path.join(daemon.directory, "out"), self.text(daemon)), expect=1)
            self.assertIn("with mlm = yes the teacher", said)


if __name__ == "__main__":
    unittest.main()
