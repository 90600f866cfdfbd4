# SPDX-License-Identifier: Apache-2.0
"""Ways of training that are tested one by one elsewhere, together: the losses follow those of the plain run."""
import json
import math
import os
import re
import subprocess
import unittest

import kdserved
import test_processes
import test_training
from test_mlm import BERT
from test_trainer_options import write_documents
from test_training import FILES, kill_at, metrics, read, settings

FEATURES = ["forward-kl top-k=8", "hidden-mse layers=1:1,2:2 weight=0.5", "minilm heads=4 weight=0.5",
            "hidden-cosine layers=final weight=0.1"]


class Runs(unittest.TestCase):
    worker, finish = test_training.Training.worker, test_training.Training.finish

    def run_well(self, daemon, name, text, *arguments):
        output = os.path.join(daemon.directory, name)
        self.finish(self.worker(daemon, output, text, *arguments))
        return metrics(output)

    def run_together(self, daemon, n, name, text):
        output = os.path.join(daemon.directory, name)
        with open(output + ".conf", "w") as f:
            f.write(text)
        done = subprocess.run(["mpirun", "-n", str(n), test_training.WORKER, "--config", output + ".conf", "--output", output, "--server",
                               "unix:" + daemon.socket_path], stderr=subprocess.PIPE, text=True, env=test_processes.ENVIRONMENT,
                              timeout=2 * kdserved.PATIENCE, check=False)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertNotIn("Sanitizer", done.stderr)
        return metrics(output)

    def follow(self, one, other, share):
        """Every number within so much of the other's, from a run of the same steps."""
        self.assertEqual(sorted(one), sorted(other))
        self.assertGreater(len(one), 3)
        for step in one:
            self.assertEqual(set(one[step]), set(other[step]))
            for name, value in one[step].items():
                self.assertAlmostEqual(other[step][name], value, delta=share * max(1, abs(value)), msg="%s of step %d" % (name, step))


class Combinations(Runs):
    def documents(self, daemon, **more):
        path = os.path.join(daemon.directory, "documents.jsonl")
        if not os.path.exists(path):
            write_documents(path)
        return settings(daemon.directory, **{"corpus": path, "held_out": 0, "warmup": 0, "steps": 6, **more})

    def batches(self, daemon):
        """How many micro-batches of one place make a step of all documents, packed and apart."""
        out = os.path.join(daemon.directory, "count")
        said = self.finish(self.worker(daemon, out, self.documents(daemon, packing="bfd", steps=1)))
        return ("bfd", int(said.split("packed into ")[1].split()[0])), ("off", int(said.split("corpus: ")[1].split()[0]))

    def test_losses_on_features_of_packed_documents_are_those_of_documents_apart(self):
        with kdserved.Daemon() as daemon:
            packed, apart = (self.run_well(daemon, packing, self.documents(daemon, packing=packing, micro_batch=1, accumulate=batch,
                                                                           loss=FEATURES)) for packing, batch in self.batches(daemon))
            self.follow(apart, packed, 3e-5)
            self.assertLess(apart[6]["loss"], apart[1]["loss"] - 0.05)

    def test_losses_on_features_in_bf16_follow_f32(self):
        with kdserved.Daemon() as daemon:
            runs = [self.run_well(daemon, precision, settings(daemon.directory, precision=precision, loss=FEATURES, steps=16))
                    for precision in ("f32", "bf16")]
            for step, numbers in runs[0].items():
                for name in [name for name in numbers if name.startswith("loss")]:
                    self.assertAlmostEqual(runs[1][step][name], numbers[name], delta=0.03 * numbers[name] + 1e-3,
                                           msg="%s of step %d" % (name, step))
            self.assertNotEqual(runs[0], runs[1])

    def test_checkpointing_changes_no_bit_of_losses_on_features(self):
        with kdserved.Daemon() as daemon:
            plain = {"loss": FEATURES + ["hidden-mse layers=1:0,3:2 name=more"], "student_layers": 4, "steps": 8}
            plain["loss"][1] = "hidden-mse layers=1:1,3:2 weight=0.5"
            for name, more in (("plain", {}), ("each", {"gradient_checkpointing": "yes"}),
                               ("three", {"gradient_checkpointing": "yes", "gradient_checkpointing_layers": 3, "precision": "f32"})):
                self.run_well(daemon, name, settings(daemon.directory, **plain, **more))
            for name in ("each", "three"):
                out, other = (os.path.join(daemon.directory, n) for n in (name, "plain"))
                self.assertEqual(metrics(out), metrics(other), name)
                for file in FILES:
                    self.assertEqual(read(out, "student", file), read(other, "student", file), file)

    def test_masked_tokens_of_packed_documents_see_their_own_document_alone(self):
        """The teacher reads each document by itself: a student that is the teacher has no distance only where packing keeps them apart."""
        with kdserved.Daemon(*kdserved.EXACT, model=BERT) as daemon:
            for packing in ("bfd", "off", "wrapped"):
                text = self.documents(daemon, packing=packing, mlm="yes", student_family="bert", student=daemon.model, learning_rate=0,
                                      steps=4, values="f32", feature_values="f32", mlm_probability=0.4,
                                      loss=["forward-kl top-k=16", "reverse-kl top-k=96", "hidden-mse layers=1:1", "minilm"])
                for step, numbers in self.run_well(daemon, packing, text).items():
                    names = [name for name in numbers if name.startswith("loss_")]
                    self.assertEqual(len(names), 4)
                    for name in names:
                        self.assertLess(abs(numbers[name]), 1e-5, "%s of step %d, %s" % (name, step, packing))

    @unittest.skipUnless(test_processes.built_with_mpi(), "built without MPI")
    def test_several_processes_with_packing_and_features_are_one(self):
        with kdserved.Daemon() as daemon:
            for name, more in (("packed", {"packing": "bfd", "loss": FEATURES}), ("weighed", {"packing": "bfd", "reweight": "extremes"}),
                               ("off", {"packing": "off", "reweight": "linear-upper", "gradient_checkpointing": "yes"})):
                text = self.documents(daemon, **more, micro_batch=3, accumulate=4, held_out=0.1, evaluate_every=3)
                self.follow(self.run_well(daemon, name, text), self.run_together(daemon, 2, name + "-2", text), 2e-5)

    def answers(self, daemon):
        """The documents as answers to a prompt."""
        path = os.path.join(daemon.directory, "answers.jsonl")
        write_documents(path)
        with open(path, encoding="utf-8") as f:
            lines = [json.loads(line) for line in f if line.strip()]
        with open(path, "w", encoding="utf-8") as f:
            f.writelines(json.dumps({"prompt": "the %d " % i, "text": line["text"]}) + "\n" for i, line in enumerate(lines))
        return path

    @unittest.skipUnless(test_processes.built_with_mpi(), "built without MPI")
    def test_several_processes_learn_answers_and_not_their_prompts(self):
        with kdserved.Daemon() as daemon:
            path = self.answers(daemon)
            for packing in ("off", "bfd"):
                text = settings(daemon.directory, corpus=path, corpus_prompt="prompt", packing=packing, micro_batch=3, accumulate=4,
                                steps=6, evaluate_every=3)
                self.follow(self.run_well(daemon, packing, text), self.run_together(daemon, 2, packing + "-2", text), 2e-5)

    @unittest.skipUnless(test_processes.built_with_mpi(), "built without MPI")
    def test_several_processes_with_masked_tokens_are_one(self):
        with kdserved.Daemon(model=BERT) as daemon:
            text = self.documents(daemon, packing="bfd", mlm="yes", student_family="bert", micro_batch=3, accumulate=4,
                                  loss=["forward-kl top-k=16", "hidden-cosine layers=1:1"])
            self.follow(self.run_well(daemon, "one", text), self.run_together(daemon, 2, "two", text), 2e-5)


class Stages(unittest.TestCase):
    worker, finish = test_training.Training.worker, test_training.Training.finish

    def recipe(self, name):
        """Its losses, with a switch after 12 steps."""
        with open(os.path.join(os.environ.get("top_srcdir", "."), "etc", "recipes", name), encoding="utf-8") as f:
            lines = [line[7:].strip() for line in f if line.startswith("loss = ")]
        return [line.replace("1000=", "12=").replace("1001=", "13=") for line in lines]

    def test_glmd_goes_on_from_its_first_run_and_then_to_temperature_1(self):
        with kdserved.Daemon() as daemon:
            first, second = os.path.join(daemon.directory, "first"), os.path.join(daemon.directory, "second")
            self.finish(self.worker(daemon, first, settings(daemon.directory, loss=self.recipe("glmd-corpus.conf"))))
            documents = Combinations.answers(self, daemon)
            said = self.finish(self.worker(daemon, second, settings(
                daemon.directory, corpus=documents, corpus_prompt="prompt", packing="bfd", student=os.path.join(first, "student"),
                loss=self.recipe("glmd-task.conf"), learning_rate=0.003, values="f32")))
            self.assertIn("temperature 15 (times T^2)", said)
            before, steps = metrics(first), metrics(second)
            self.assertLess(before[24]["loss"], 0.8 * before[1]["loss"])
            # it begins where the first run ended, on other text
            self.assertLess(steps[1]["loss_forward_kl"], 0.9 * before[1]["loss_forward_kl"])
            for step, numbers in steps.items():
                now = "loss_forward_kl" if step <= 13 else "loss_soft_cross_entropy"
                self.assertEqual(numbers["loss"], numbers[now], step)
            self.assertLess(steps[24]["held_out_kl"], steps[8]["held_out_kl"])
            kls = [numbers["kl_soft_cross_entropy"] for _, numbers in sorted(steps.items())]
            self.assertTrue(all(kl > 0 for kl in kls), kls)


class Domains(Runs):
    def texts(self, daemon):
        words, paths = test_training.corpus(4000).split(), []
        for name, text in (("easy", "the the " * 1200), ("words", " ".join(words)), ("letters", " ".join(w[::-1] for w in words[:1500]))):
            paths.append(os.path.join(daemon.directory, name + ".txt"))
            with open(paths[-1], "w", encoding="utf-8") as f:
                f.write(text)
        return paths

    def shares(self, said):
        """step -> {domain: (student's perplexity, teacher's, share)}"""
        found = {}
        line = r"domain \S*/(\w+)\.txt: perplexity ([0-9.]+) \(teacher ([0-9.]+)\), share ([0-9.]+) from step (\d+) on"
        for name, student, teacher, share, step in re.findall(line, said):
            found.setdefault(int(step), {})[name] = (float(student), float(teacher), float(share))
        return found

    def keys(self, daemon, **more):
        return {"corpus": self.texts(daemon), "domains": "ddk", "domains_every": 5, "held_out": 0.1, "held_out_max": 64, "steps": 18,
                "evaluate_every": 9, "checkpoint_every": 7, "loss": ["cross-entropy", "forward-kl top-k=16 weight=0.2"], **more}

    def test_shares_follow_the_ratio_of_perplexities_and_are_resumed(self):
        with kdserved.Daemon() as daemon:
            text = settings(daemon.directory, **self.keys(daemon))
            whole, parts = os.path.join(daemon.directory, "whole"), os.path.join(daemon.directory, "parts")
            said = self.shares(self.finish(self.worker(daemon, whole, text)))
            self.assertEqual(sorted(said), [1, 6, 11, 16])
            before = None
            for _, domains in sorted(said.items()):
                self.assertEqual(set(domains), {"easy", "words", "letters"})
                psi = {k: math.exp(min(s / t, 10)) * (before[k] if before else 1) for k, (s, t, _) in domains.items()}
                for k, (_, _, share) in domains.items():
                    want = psi[k] / sum(psi.values())
                    self.assertAlmostEqual(share, want if before is None else 0.5 * want + 0.5 / 3, delta=0.005)
                before = {k: share for k, (_, _, share) in domains.items()}
            process = self.worker(daemon, parts, text)
            kill_at(process, parts, 7)
            again = self.shares(self.finish(self.worker(daemon, parts, text, "--resume")))
            self.assertNotIn(1, again)
            self.assertEqual(again[16], said[16])
            self.assertEqual(metrics(parts), metrics(whole))
            other = settings(daemon.directory, **self.keys(daemon, domains="off", steps=30))
            self.assertIn("domains differs", self.finish(self.worker(daemon, whole, other, "--resume"), expect=1))

    @unittest.skipUnless(test_processes.built_with_mpi(), "built without MPI")
    def test_several_processes_draw_the_same_domains(self):
        with kdserved.Daemon() as daemon:
            text = settings(daemon.directory, **self.keys(daemon, packing="off", micro_batch=2, accumulate=4))
            self.follow(self.run_well(daemon, "one", text), self.run_together(daemon, 2, "two", text), 2e-5)

    def test_what_has_no_domains_is_refused(self):
        with kdserved.Daemon() as daemon:
            texts = self.texts(daemon)
            for number, (status, said, keys) in enumerate((
                    (78, "two or more lines corpus", {"corpus": texts[0]}), (78, "packing = bfd", {"packing": "bfd"}),
                    (78, "is of no domain", {"rollouts": 1, "rollout_prompt": 8, "rollout_tokens": 8}), (78, "held-out = 0", {"held_out": 0}),
                    (78, "domains-alpha", {"domains_alpha": 2}), (78, "domains-every", {"domains_every": 0}),
                    (1, "no held-out sequence is of it", {"held_out_max": 2}))):
                text = settings(daemon.directory, **self.keys(daemon, **keys))
                self.assertIn(said, self.finish(self.worker(daemon, os.path.join(daemon.directory, "out%d" % number), text), expect=status))


class Reweighting(unittest.TestCase):
    worker, finish = test_training.Training.worker, test_training.Training.finish

    def test_sequences_weigh_by_their_losses_after_so_many_steps_and_resumed(self):
        with kdserved.Daemon() as daemon:
            runs = {}
            for kind in ("off", "linear-upper", "quadratic", "extremes"):
                out = os.path.join(daemon.directory, kind)
                text = settings(daemon.directory, reweight=kind, reweight_after=4, reweight_temperature=0.25, steps=10, checkpoint_every=3)
                said = self.finish(self.worker(daemon, out, text))
                self.assertEqual("weigh by their losses: %s, delta 1, r 0.25, after 4 steps" % kind in said, kind != "off", said)
                runs[kind] = metrics(out)
                parts = [step["loss_forward_kl"] + 0.1 * step["loss_cross_entropy"] for _, step in sorted(runs[kind].items())]
                alike = [abs(runs[kind][i + 1]["loss"] - part) < 1e-5 for i, part in enumerate(parts)]
                self.assertEqual(alike, [True] * 4 + [kind == "off"] * 6)
            for kind in ("linear-upper", "quadratic", "extremes"):
                self.assertEqual([runs[kind][i] for i in range(1, 5)], [runs["off"][i] for i in range(1, 5)])
                self.assertEqual(runs[kind][5]["loss_forward_kl"], runs["off"][5]["loss_forward_kl"])
                self.assertNotEqual(runs[kind][6]["loss_forward_kl"], runs["off"][6]["loss_forward_kl"])
            # the upper half counts more, so that its loss is more than the mean
            for i in range(5, 11):
                upper = runs["linear-upper"][i]
                self.assertGreater(upper["loss"], upper["loss_forward_kl"] + 0.1 * upper["loss_cross_entropy"])
            parts, whole = os.path.join(daemon.directory, "parts"), os.path.join(daemon.directory, "extremes")
            process = self.worker(daemon, parts, text)
            kill_at(process, parts, 6)
            self.finish(self.worker(daemon, parts, text, "--resume"))
            self.assertEqual(metrics(parts), metrics(whole))
            self.assertEqual(read(parts, "student", "model.safetensors"), read(whole, "student", "model.safetensors"))

    def test_what_cannot_be_weighed_is_refused(self):
        with kdserved.Daemon() as daemon:
            for number, (said, keys) in enumerate((
                    ("one of", {"reweight": "linear"}), ("micro-batch = 2 or more", {"micro_batch": 1}),
                    ("losses on features", {"loss": "hidden-mse"}), ("reweight-temperature", {"reweight_temperature": 0}),
                    ("reweight-strength", {"reweight_strength": -1}),
                    ("no measure of a sequence", {"loss": ["jsd", "policy-gradient"], "rollouts": 1, "rollout_prompt": 8,
                                                  "rollout_tokens": 8}))):
                text = settings(daemon.directory, **{"reweight": "quadratic", **keys})
                self.assertIn(said, self.finish(self.worker(daemon, os.path.join(daemon.directory, "out%d" % number), text), expect=78))


if __name__ == "__main__":
    unittest.main()
