# SPDX-License-Identifier: Apache-2.0
"""Losses on what lies inside the models: from a live teacher, resumed, and from shards, with the same numbers; and what cannot be is refused."""
import os
import shutil
import subprocess
import tempfile
import unittest

import kdserved
import test_training
import tiny_model
from test_training import FILES, WORKER, conf, corpus, kill_at, metrics, read, tensors

# Wider than the teacher, so hidden rows need a projection; 4 heads divide all widths (48 and 24, 32 and 16).
SHAPE = {"sequence-length": 32, "micro-batch": 3, "steps": 18, "warmup": 2, "learning-rate": 0.01, "student-width": 48, "student-layers": 2,
         "student-heads": 4, "student-kv-heads": 2, "student-ffn-width": 64, "student-context": 64, "evaluate-every": 3, "checkpoint-every": 4,
         "held-out-max": 4, "threads": 1}
MIXES = [["forward-kl top-k=8", "hidden-mse layers=uniform projection=shared bias=on weight=linear:1:0.1", "minilm heads=4 weight=0.5"],
         ["minilm version=v1"],
         ["hidden-mse layers=1:1 normalise=on sum=on pooling=last weight=10", "margin-mse pooling=last score=cosine",
          "cross-entropy weight=0.1"],
         ["hidden-cosine layers=final", "hidden-mse layers=0:0,2:1 pooling=mean"]]


class Features(unittest.TestCase):
    finish = test_training.Training.finish

    def setUp(self):
        self.directory = tempfile.mkdtemp(prefix="kdserved-features-")
        self.text = os.path.join(self.directory, "corpus.txt")
        with open(self.text, "w") as f:
            f.write(corpus(600))

    def tearDown(self):
        shutil.rmtree(self.directory)

    def work(self, name, *arguments, **keys):
        output = os.path.join(self.directory, name)
        with open(output + ".conf", "w") as f:
            f.write(conf({**SHAPE, "corpus": self.text, **{k.replace("_", "-"): v for k, v in keys.items()}}))
        return output, subprocess.Popen([WORKER, "--config", output + ".conf", "--output", output, *arguments], stderr=subprocess.PIPE, text=True)

    def run_well(self, name, *arguments, **keys):
        output, process = self.work(name, *arguments, **keys)
        self.finish(process)
        return output

    def test_live_resumed_and_from_shards_are_the_same(self):
        for i, losses in enumerate(MIXES):
            kept = os.path.join(self.directory, "kept%d" % i)
            with kdserved.Daemon() as daemon:
                model = os.path.join(self.directory, "model%d" % i)
                shutil.copytree(daemon.model, model)
                live = {"server": "unix:" + daemon.socket_path, "loss": losses}
                whole = self.run_well("whole%d" % i, store=kept, **live)
                output, process = self.work("parts%d" % i, **live)
                kill_at(process, output, 4)
                parts = self.run_well("parts%d" % i, "--resume", **live)
            offline = self.run_well("offline%d" % i, teacher="shards:" + kept, tokenizer=model, teacher_layers=tiny_model.LAYERS, loss=losses)
            first, last = metrics(whole)[1], metrics(whole)[18]
            self.assertEqual(sum(k.startswith("loss_") for k in first), len(losses))
            self.assertLess(last["loss"], first["loss"], losses)
            for other in (parts, offline):
                self.assertEqual(metrics(other), metrics(whole), losses)
                for name in FILES:
                    self.assertEqual(read(other, "student", name), read(whole, "student", name), name)

    def test_projections_are_kept_in_checkpoints_and_not_exported(self):
        with kdserved.Daemon() as daemon:
            output = self.run_well("out", server="unix:" + daemon.socket_path, loss=MIXES[0], average=0.9, checkpoint_every=9, steps=9,
                                   parameters="projection.* learning-rate=2 weight-decay=0")
        names = ["projection.hidden-mse.weight", "projection.hidden-mse.bias"]
        folder = os.path.join(output, "checkpoints", "step-%012d" % 9)
        self.assertFalse(any("projection" in name for name in tensors(os.path.join(output, "student"))))
        for file in ("parameters", "moment1", "moment2", "average"):
            shutil.copy(os.path.join(folder, file + ".safetensors"), os.path.join(folder, "model.safetensors"))
            held = tensors(folder)
            for name in names:
                self.assertTrue(any(held[name]), (file, name))

    def test_a_teacher_as_student_has_no_distance(self):
        with kdserved.Daemon(*kdserved.EXACT) as daemon:
            losses = ["hidden-mse layers=uniform", "hidden-cosine layers=final", "minilm", "minilm version=v1 layers=1:1,2:2", "margin-mse"]
            output = self.run_well("same", server="unix:" + daemon.socket_path, student=daemon.model, steps=1, learning_rate=0, loss=losses,
                                   feature_values="f32")
            for name, value in metrics(output)[1].items():
                if name.startswith("loss_"):
                    self.assertLess(abs(value), 1e-5, name)

    def refused(self, line, words, status=1, **keys):
        output, process = self.work("refused", loss=["forward-kl", line], **keys)
        said = self.finish(process, expect=status)
        for word in [words] if isinstance(words, str) else words:
            self.assertIn(word, said)
        shutil.rmtree(output, ignore_errors=True)

    def test_what_cannot_be_is_refused_by_its_line(self):
        with kdserved.Daemon() as daemon:
            live = {"server": "unix:" + daemon.socket_path}
            number = conf({**SHAPE, "corpus": self.text, **live}).count("\n") + 1
            where = "refused.conf:%d: loss " % number
            self.refused("minilm heads=5", [where + "minilm: heads=5", "5 heads do not divide the student's q rows of 48"], **live)
            self.refused("minilm heads=12", ["12 heads do not divide the teacher's q rows of 32"], **live)
            self.refused("minilm version=v1 heads=2", ["v1 compares attention head by head: the student has 4 heads"], **live)
            self.refused("minilm layers=final", ["layers: final has no q, k and v rows"], **live)
            self.refused("minilm layers=0:1", ["0:1 is out of range"], **live)
            self.refused("hidden-mse layers=2:3", [where + "hidden-mse: layers: 2:3 is out of range", "the teacher to 2"], **live)
            self.refused("hidden-mse projection=none", ["projection=none: the student's rows are 48 wide, the teacher's 32"], **live)
            self.refused("hidden-mse bias=on", "bias: there is no projection: projection=each makes one", student_width=32, **live)
            self.refused("margin-mse", ["micro-batch: is 2 sequences; 3 or more"], micro_batch=2, **live)
            self.refused("margin-mse triples=three", ["a multiple of 3"], micro_batch=4, **live)
            self.refused("margin-mse pooling=none", ["pooling: mean or last is expected"], status=78, **live)
            self.refused("hidden-mse layers=two", ["layers=two: last, final, uniform"], status=78, **live)
            self.refused("hidden-mse temperature=2", ["temperature: this loss has no such parameter"], status=78, **live)
            self.refused("hidden-mse", ["teacher-layers: ", "the teacher has 2"], teacher_layers=3, **live)

    def test_shards_without_the_rows_are_refused(self):
        kept = os.path.join(self.directory, "kept")
        with kdserved.Daemon() as daemon:
            model = os.path.join(self.directory, "model")
            shutil.copytree(daemon.model, model)
            self.run_well("live", server="unix:" + daemon.socket_path, loss="forward-kl", store=kept)
        shards = {"teacher": "shards:" + kept, "tokenizer": model}
        self.refused("hidden-mse", ["loss hidden-mse: layers: shards do not say how many layers the teacher has: set teacher-layers"], **shards)
        self.refused("hidden-mse layers=uniform", ["the student's 2 layers do not divide the teacher's 3"], teacher_layers=3, **shards)
        self.refused("hidden-mse layers=1:1", ["have no answer", "rows of 1 layers"], **shards)


if __name__ == "__main__":
    unittest.main()
