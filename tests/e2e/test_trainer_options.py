# SPDX-License-Identifier: Apache-2.0
"""Runs that compute the same in another way: layers computed twice, documents packed."""
import json
import os
import unittest

import kdserved
import test_training
from test_training import FILES, corpus, kill_at, metrics, read, settings


def write_documents(path, field="text"):
    """Lines of 1 to 12 words, a few of many; blank ones between."""
    words = corpus(1500).split()
    with open(path, "w") as f:
        at = i = 0
        while at < len(words):
            n = 40 if i % 17 == 5 else 1 + i * 7 % 12
            f.write(json.dumps({"id": i, field: " ".join(words[at:at + n])}) + ("\n\n" if i % 5 == 0 else "\n"))
            at, i = at + n, i + 1


class Options(unittest.TestCase):
    worker, finish = test_training.Training.worker, test_training.Training.finish

    def test_gradient_checkpointing_changes_no_bit_and_needs_less(self):
        with kdserved.Daemon() as daemon:
            outputs, needs = [], []
            for more in ({}, {"gradient_checkpointing": "yes"},
                         {"gradient_checkpointing": "yes", "gradient_checkpointing_layers": 3}):
                outputs.append(os.path.join(daemon.directory, "out%d" % len(outputs)))
                said = self.finish(self.worker(daemon, outputs[-1], settings(daemon.directory, student_layers=4, steps=6, **more)))
                needs.append(float(said.split("activations of a micro-batch need ")[1].split(" MiB")[0]))
            self.assertEqual(len(metrics(outputs[0])), 6)
            for other in outputs[1:]:
                self.assertEqual(metrics(other), metrics(outputs[0]))
                for name in FILES:
                    self.assertEqual(read(other, "student", name), read(outputs[0], "student", name), name)
            self.assertLess(needs[1], needs[2])
            self.assertLess(needs[2], needs[0])

    def test_bf16_follows_f32_with_masters_in_f32(self):
        with kdserved.Daemon() as daemon:
            runs = {}
            for precision in ("f32", "bf16"):
                out = os.path.join(daemon.directory, precision)
                said = self.finish(self.worker(daemon, out, settings(daemon.directory, precision=precision, steps=40)))
                self.assertIn("training on cpu, %s" % precision, said)
                runs[precision] = metrics(out)
            self.assertEqual(len(runs["f32"]), 40)
            differs = 0
            for step, numbers in runs["f32"].items():
                self.assertAlmostEqual(runs["bf16"][step]["loss"], numbers["loss"], delta=0.01 * numbers["loss"], msg=step)
                differs += runs["bf16"][step]["loss"] != numbers["loss"]
            self.assertGreater(differs, 30)
            checkpoint = sorted(os.listdir(os.path.join(daemon.directory, "bf16", "checkpoints")))[-1]
            parameters = read(daemon.directory, "bf16", "checkpoints", checkpoint, "parameters.safetensors")
            n = int.from_bytes(parameters[:8], "little")
            header = json.loads(parameters[8:8 + n])
            self.assertEqual({t["dtype"] for name, t in header.items() if name != "__metadata__"}, {"F32"})
            low = [parameters[i:i + 2] != b"\0\0" for i in range(8 + n, len(parameters), 4)]
            self.assertGreater(sum(low), 0.9 * len(low))         # not what bfloat16 can hold

    def test_a_bf16_run_is_resumed(self):
        test_training.Training.killed_and_resumed(self, precision="bf16", gradient_checkpointing="yes")

    def documents(self, daemon, **more):
        path = os.path.join(daemon.directory, "documents.jsonl")
        write_documents(path)
        return settings(daemon.directory, **{"corpus": path, "steps": 6, "held_out": 0, "warmup": 0, **more})

    def test_packed_documents_give_the_losses_of_documents_apart(self):
        """All documents in every step: the order of places does not matter."""
        with kdserved.Daemon() as daemon:
            first = os.path.join(daemon.directory, "first")
            said = self.finish(self.worker(daemon, first, self.documents(daemon, packing="bfd", steps=1)))
            n = int(said.split("corpus: ")[1].split()[0])
            n_places = int(said.split("packed into ")[1].split()[0])
            self.assertLess(2 * n_places, n)
            losses = {}
            for packing, batch in (("bfd", n_places), ("off", n)):
                out = os.path.join(daemon.directory, packing)
                self.finish(self.worker(daemon, out, self.documents(daemon, packing=packing, micro_batch=1, accumulate=batch)))
                losses[packing] = metrics(out)
            self.assertEqual(len(losses["off"]), 6)
            for step, numbers in losses["off"].items():
                for name, value in numbers.items():
                    self.assertAlmostEqual(losses["bfd"][step][name], value, delta=2e-5 * max(1, abs(value)), msg="%d %s" % (step, name))
            self.assertLess(losses["off"][6]["loss"], losses["off"][1]["loss"] - 0.1)

    def test_the_guard_ends_a_run_that_leaves_its_curve(self):
        """A learning rate that rises until it hurts: the first evaluations fall, later ones do not."""
        with kdserved.Daemon() as daemon:
            keys = {"steps": 80, "warmup": 80, "learning_rate": 0.1, "evaluate_every": 2, "guard_fit": 0.15, "loss": "forward-kl top-k=16"}
            said = {}
            for guard in ("stop", "warn", "off"):
                output = os.path.join(daemon.directory, guard)
                said[guard] = self.finish(self.worker(daemon, output, settings(daemon.directory, guard=guard, **keys))), metrics(output)
            self.assertIn("stopped early: guard = stop", said["stop"][0])
            self.assertIn("the held-out KL has left the curve that it showed early in the run, 3 evaluations in a row", said["stop"][0])
            self.assertTrue(16 < max(said["stop"][1]) < 80)
            self.assertIn("the held-out KL has left the curve", said["warn"][0])
            self.assertNotIn("the held-out KL has left the curve", said["off"][0])
            self.assertEqual(said["warn"][1], said["off"][1])
            self.assertEqual(max(said["warn"][1]), 80)
            self.assertEqual(said["stop"][1], {step: said["off"][1][step] for step in said["stop"][1]})
            with open(os.path.join(daemon.directory, "stop", "metrics.jsonl")) as f:
                last = json.loads(f.readlines()[-1])
            self.assertEqual(last["guard_alarms"], 1)
            self.assertGreater(last["guard_residual"], 3)
            self.assertGreater(last["teacher_parameters"], 0)
            self.assertAlmostEqual(last["capacity_ratio"], last["teacher_parameters"] / (2.5 * last["n_parameters"]))
            self.assertIn("the law of capacity gap names a teacher of about", said["off"][0])

    def test_a_packed_run_is_resumed_and_not_as_another(self):
        with kdserved.Daemon() as daemon:
            keys = {"packing": "bfd", "steps": 9, "checkpoint_every": 4, "held_out": 0.1, "evaluate_every": 3, "micro_batch": 2,
                    "accumulate": 1, "loss": ["forward-kl top-k=8", "reverse-kl support=both:4 top-k=4 weight=0.5"]}
            text = self.documents(daemon, **keys)
            whole, parts = os.path.join(daemon.directory, "whole"), os.path.join(daemon.directory, "parts")
            self.finish(self.worker(daemon, whole, text))
            process = self.worker(daemon, parts, text)
            kill_at(process, parts, 4)
            other = self.documents(daemon, **{**keys, "packing": "off"})
            self.assertRegex(self.finish(self.worker(daemon, parts, other, "--resume"), expect=1), "corpus differs|packing: is")
            self.finish(self.worker(daemon, parts, text, "--resume"))
            self.assertEqual(metrics(parts), metrics(whole))
            self.assertEqual(len(metrics(whole)), 9)

    def test_lines_that_are_not_documents_are_refused(self):
        with kdserved.Daemon() as daemon:
            path = os.path.join(daemon.directory, "bad.jsonl")
            for line, said in (('{"text": "a b"}\n[1]', "bad.jsonl:2: not a JSON object"), ('{"body": "a"}', 'bad.jsonl:1: has no "text"'),
                               ('{"text": 1}', "bad.jsonl:1"), ('{"text": "a', "bad.jsonl:1: not valid JSON"),
                               ('{"text": "%s"}' % ("x" * (17 << 20)), "a line of more than 16777216 bytes"),
                               ('{"text": "", "x": [%s]}' % ",".join("0" * 5000), "more than 4096 values")):
                with open(path, "w") as f:
                    f.write(line)
                text = settings(daemon.directory, corpus=path, packing="bfd")
                self.assertIn(said, self.finish(self.worker(daemon, os.path.join(daemon.directory, "out"), text), expect=1))
            text = settings(daemon.directory, packing="bfd", rollouts=0.5, rollout_prompt=8, rollout_tokens=8)
            self.assertIn("packing = bfd", self.finish(self.worker(daemon, os.path.join(daemon.directory, "out"), text), expect=78))
            write_documents(path, field="body")
            text = settings(daemon.directory, corpus=path, corpus_field="body", steps=1)
            self.assertIn("sequences of 48 tokens", self.finish(self.worker(daemon, os.path.join(daemon.directory, "fine"), text)))


if __name__ == "__main__":
    unittest.main()
