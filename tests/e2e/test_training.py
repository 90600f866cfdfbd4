# SPDX-License-Identifier: Apache-2.0
"""A training run from corpus to student: through the daemon and by hand, over the binary door, killed and resumed."""
import json
import os
import signal
import subprocess
import time
import unittest

import kdserved
import tiny_model

WORKER = os.path.join(kdserved.BUILD, "kdserved-worker")
WORDS = "the tin hen and then an onion in the inn near them on the thin path another hand than the winter there over".split()
LOSSES = ["forward-kl temperature=2 top-k=16", "cross-entropy weight=0.1"]
KEYS = {"loss", "gradient_norm", "learning_rate", "held_out_kl"}
FILES = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}


def corpus(n_words=12000):
    """Text with structure to learn, from a generator without a seed to forget."""
    state, words = 1, []
    for _ in range(n_words):
        state = (state * 1103515245 + 12345) % 2 ** 31
        words.append(WORDS[(state >> 16) % len(WORDS)])
    return "\n".join(" ".join(words[i:i + 12]) + "." for i in range(0, n_words, 12))


def settings(directory, **more):
    path = os.path.join(directory, "corpus.txt")
    with open(path, "w") as f:
        f.write(corpus())
    keys = {"corpus": path, "sequence-length": 48, "micro-batch": 4, "accumulate": 2, "steps": 24, "warmup": 3, "learning-rate": 0.01,
            "student-width": 32, "student-layers": 2, "student-heads": 4, "student-kv-heads": 2, "student-ffn-width": 64,
            "student-context": 64, "loss": LOSSES, "evaluate-every": 8, "checkpoint-every": 6,
            "held-out-max": 8, "threads": 1}
    keys.update({k.replace("_", "-"): v for k, v in more.items()})
    return conf(keys)


def conf(keys):
    """Lines of a run's configuration; a list is a key that is repeated, None is one that is left out."""
    lists = {k: v if isinstance(v, list) else [v] for k, v in keys.items() if v is not None}
    return "".join("%s = %s\n" % (k, one) for k, v in lists.items() for one in v)


def metrics(directory):
    """step -> its numbers, the last time it was reported"""
    steps = {}
    with open(os.path.join(directory, "metrics.jsonl")) as f:
        for line in f:
            report = json.loads(line)
            if "loss" in report:
                steps[report["step"]] = {k: v for k, v in report.items() if k in KEYS or k.startswith(("loss_", "kl_"))}
    return steps


def read(*path):
    with open(os.path.join(*path), "rb") as f:
        return f.read()


def tensors(directory):
    """name -> bytes, of a model.safetensors"""
    data = read(directory, "model.safetensors")
    n = int.from_bytes(data[:8], "little")
    header = json.loads(data[8:8 + n])
    return {name: data[8 + n + t["data_offsets"][0]:8 + n + t["data_offsets"][1]] for name, t in header.items() if name != "__metadata__"}


def kill_at(process, output, step):
    """Kills a worker once the step's checkpoint is there (or it has ended)."""
    checkpoint = os.path.join(output, "checkpoints", "step-%012d" % step)
    kdserved.wait_until(lambda: os.path.exists(checkpoint) or process.poll() is not None, "a checkpoint")
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stderr.close()


class Training(unittest.TestCase):
    def worker(self, daemon, output, text, *arguments):
        config = output + ".conf"
        with open(config, "w") as f:
            f.write(text)
        return subprocess.Popen([WORKER, "--config", config, "--output", output, "--server", "unix:" + daemon.socket_path, *arguments],
                                stderr=subprocess.PIPE, text=True)

    def finish(self, process, expect=0):
        _, err = process.communicate(timeout=kdserved.PATIENCE)
        self.assertEqual(process.returncode, expect, err)
        self.assertNotIn("Sanitizer", err)
        return err

    def test_a_run_of_the_daemon_learns_and_leaves_a_student(self):
        with kdserved.Daemon() as first:
            directory, store = os.path.join(first.directory, "runs"), os.path.join(first.directory, "own")
            with kdserved.Daemon("--runs", directory, "--worker", WORKER, "--store", os.path.join(first.directory, "kept"),
                                 model=first.model) as daemon:
                status, made = daemon.post("/v1/runs", {"name": "learn", "config": settings(first.directory, store=store)})
                self.assertIn(status, (200, 201, 202), made)
                run = kdserved.wait_until(lambda: self.ended(daemon, "learn"), "the run to end")
                self.assertEqual(run["state"], "succeeded", run)
                said = run["progress"]
                self.assertEqual((said["step"], said["steps"], said["masked"]), (24, 24, 0))
                self.assertEqual(said["objective_forward_kl"],
                                 "forward-kl: weight 1, temperature 2 (times T^2), the teacher's 16 likeliest ids, form ghost")
                self.assertEqual(said["objective_cross_entropy"], "cross-entropy: weight 0.1")
                self.assertAlmostEqual(said["loss"], said["loss_forward_kl"] + 0.1 * said["loss_cross_entropy"])
                self.assertLess(said["held_out_kl"], 0.9 * said["held_out_kl_before"])
                self.assertEqual(daemon.get("/v1/runs")[1]["runs"][0]["id"], "learn")
                self.assertEqual(set(os.listdir(os.path.join(directory, "learn", "student"))), FILES)
                self.assertTrue(any(name.endswith(".shard") for name in os.listdir(store)))
                status, again = daemon.post("/v1/runs", {"name": "learn", "config": settings(first.directory, store=store)})
                self.assertEqual((status, again["error"]["code"]), (409, "conflict"))

    def ended(self, daemon, name):
        status, run = daemon.get("/v1/runs/" + name)
        self.assertEqual(status, 200)
        return run if run["state"] in ("succeeded", "failed", "stopped") else None

    def test_a_bad_loss_is_refused_before_anything_starts(self):
        with kdserved.Daemon() as daemon:
            output = os.path.join(daemon.directory, "out")
            said = self.finish(self.worker(daemon, output, settings(daemon.directory, loss=["forward-kl", "jsd beta=2"])), expect=78)
            self.assertRegex(said, r"out\.conf:\d+: loss jsd: beta=2: from 0 to 1 is expected")
            self.assertFalse(os.path.exists(output))
            text = settings(daemon.directory, loss="forward-kl teacher=other")
            self.assertIn("teacher=other", self.finish(self.worker(daemon, output, text), expect=78))

    def test_killed_and_resumed_is_the_same_as_never_stopped(self):
        self.killed_and_resumed()

    def test_every_array_of_an_optimizer_is_resumed(self):
        self.killed_and_resumed(optimizer="lion", learning_rate=0.002, average=0.9, quantize="int8", export="best",
                                parameters="model.embed_tokens.* learning-rate=0.5 weight-decay=0")

    def test_a_run_that_no_longer_learns_ends_early_with_its_best_student(self):
        with kdserved.Daemon() as daemon:
            output = os.path.join(daemon.directory, "out")
            said = self.finish(self.worker(daemon, output, settings(daemon.directory, steps=200, warmup=0, learning_rate=3, evaluate_every=2,
                                                                    early_stop=3, export="best")))
            self.assertIn("stopped early", said)
            steps = metrics(output)
            self.assertLess(max(steps), 200)
            best = read(output, "best.safetensors")
            self.assertEqual(read(output, "student", "model.safetensors")[-64:], best[-64:])

    def killed_and_resumed(self, **more):
        with kdserved.Daemon() as daemon:
            text = settings(daemon.directory, steps=60, **more)
            whole, parts = os.path.join(daemon.directory, "whole"), os.path.join(daemon.directory, "parts")
            self.finish(self.worker(daemon, whole, text))
            for seen in (12, 30):
                process = self.worker(daemon, parts, text, *(["--resume"] if seen > 12 else []))
                kill_at(process, parts, seen)
            self.finish(self.worker(daemon, parts, text), expect=1)                    # not by accident
            process = self.worker(daemon, parts, text, "--resume")
            self.finish(process)
            self.assertEqual(metrics(parts), metrics(whole))
            self.assertEqual(sorted(metrics(whole)), list(range(1, 61)))
            for name in FILES:
                self.assertEqual(read(parts, "student", name), read(whole, "student", name), name)

    def test_every_kind_of_loss_resumes_where_it_was(self):
        """The student's own ids, draws, TAID's state and schedules: killed and resumed, the same losses."""
        losses = [["reverse-kl support=both:6 top-k=8", "taid top-k=8 rate=0.01"],
                  ["jsd support=student:40 normalise-beta=on", "cross-entropy weight=linear:0.001:0 smoothing=0.1"],
                  ["forward-kl form=draws draws=12", "soft-cross-entropy temperature=linear:1:2 top-k=8"],
                  ["forward-kl form=head-draws top-k=4 draws=6 tau=0.8", "dkd top-k=4", "logit-mse top-k=4"],
                  ["forward-kl form=uniform tail=on top-k=8", "top-n-ranking support=both:4 top-k=4"]]
        with kdserved.Daemon() as daemon:
            for i, lines in enumerate(losses):
                text = settings(daemon.directory, loss=lines, steps=9, checkpoint_every=4, evaluate_every=3)
                whole, parts = os.path.join(daemon.directory, "whole%d" % i), os.path.join(daemon.directory, "parts%d" % i)
                said = self.finish(self.worker(daemon, whole, text))
                self.assertEqual(said.count(": weight "), len(lines), said)
                process = self.worker(daemon, parts, text)
                kill_at(process, parts, 4)
                self.finish(self.worker(daemon, parts, text, "--resume"))
                self.assertEqual(metrics(parts), metrics(whole), lines)
                self.assertLess(metrics(whole)[9]["held_out_kl"], metrics(whole)[1]["held_out_kl"], lines)

    def test_several_teachers_live_and_from_shards_killed_and_resumed(self):
        """Two live teachers and one in shards, a mean of them, coins that leave losses out: resumed, the same losses."""
        lines = ["forward-kl teacher=second:3,own:1 top-k=32", "reverse-kl teacher=second support=both:4 top-k=8 keep=0.6 weight=0.5",
                 "forward-kl teacher=own trust=label top-k=8 keep=0.5 temperature=2 name=doubted"]
        with kdserved.Daemon() as own:
            other = os.path.join(own.directory, "other")
            tiny_model.write(other, seed=2)
            with kdserved.Daemon(model=other) as second:
                text = settings(own.directory, loss=lines, steps=12, checkpoint_every=4, evaluate_every=6,
                                other_teacher=["second server:unix:" + second.socket_path, "unused server:unix:" + own.socket_path])
                whole, parts = os.path.join(own.directory, "whole"), os.path.join(own.directory, "parts")
                said = self.finish(self.worker(own, whole, text))
                self.assertIn("teacher second:3,own:1", said)
                process = self.worker(own, parts, text)
                kill_at(process, parts, 4)
                self.finish(self.worker(own, parts, text, "--resume"))
                self.assertEqual(metrics(parts), metrics(whole))
                reverse = ["loss_reverse_kl" in step for step in metrics(whole).values()]
                self.assertTrue(any(reverse) and not all(reverse))
                self.assertEqual(read(parts, "student", "model.safetensors"), read(whole, "student", "model.safetensors"))
                another = settings(own.directory, loss=lines, steps=12, other_teacher="second server:unix:" + own.socket_path)
                self.assertIn("the teacher is another one", self.finish(self.worker(own, parts, another, "--resume"), expect=1))

                # What the second said, kept by a run that has it for its own, is the same teacher from shards.
                kept = os.path.join(own.directory, "kept")
                self.finish(self.worker(second, os.path.join(own.directory, "keeps"), settings(
                    own.directory, loss="forward-kl top-k=8", store=kept, steps=0, learning_rate=0)))
                both = ["forward-kl teacher=past top-k=8", "forward-kl top-k=8"]
                results = {}
                for name, where in (("live", "server:unix:" + second.socket_path), ("shards", "shards:" + kept)):
                    output = os.path.join(own.directory, name)
                    self.finish(self.worker(own, output, settings(own.directory, loss=both, steps=6, other_teacher="past " + where)))
                    results[name] = metrics(output)
                self.assertEqual(results["live"], results["shards"])
                self.assertNotEqual(results["live"][1]["loss_forward_kl"], results["live"][1]["loss_forward_kl_2"])
                text = settings(own.directory, loss="forward-kl teacher=past temperature=3 top-k=8", other_teacher="past shards:" + kept)
                self.assertIn("have no answer", self.finish(self.worker(own, os.path.join(own.directory, "none"), text), expect=1))

    def test_a_teacher_with_another_tokenizer_is_refused_by_its_line(self):
        with kdserved.Daemon() as own:
            other = os.path.join(own.directory, "other")
            tiny_model.write(other, seed=2)
            path = os.path.join(other, "tokenizer.json")
            with open(path) as f:
                content = json.load(f)
            vocab = content["model"]["vocab"]
            vocab["on"], vocab["and"] = vocab["and"], vocab["on"]
            with open(path, "w") as f:
                json.dump(content, f)
            with kdserved.Daemon(model=other) as second:
                text = settings(own.directory, loss=["forward-kl", "forward-kl teacher=second"],
                                other_teacher="second server:unix:" + second.socket_path)
                said = self.finish(self.worker(own, os.path.join(own.directory, "out"), text), expect=1)
                self.assertRegex(said, r"out\.conf:\d+: the teacher second has another tokenizer")

    def test_a_damaged_checkpoint_is_passed_over(self):
        with kdserved.Daemon() as daemon:
            output = os.path.join(daemon.directory, "out")
            self.finish(self.worker(daemon, output, settings(daemon.directory)))
            before = metrics(output)
            newest = sorted(os.listdir(os.path.join(output, "checkpoints")))[-1]
            with open(os.path.join(output, "checkpoints", newest, "moment1.safetensors"), "r+b") as f:
                f.seek(-3, 2)
                byte = f.read(1)
                f.seek(-1, 1)
                f.write(bytes([byte[0] ^ 16]))
            said = self.finish(self.worker(daemon, output, settings(daemon.directory), "--resume"))
            self.assertIn("passed over", said)
            self.assertIn("resumed after step 18", said)
            self.assertEqual(metrics(output), before)

    def test_sigterm_leaves_a_checkpoint_to_go_on_from(self):
        with kdserved.Daemon() as daemon:
            output = os.path.join(daemon.directory, "out")
            text = settings(daemon.directory, steps=100000, checkpoint_every=0, evaluate_every=0)
            process = self.worker(daemon, output, text)
            kdserved.wait_until(lambda: os.path.exists(os.path.join(output, "metrics.jsonl")) and metrics(output), "a step")
            process.terminate()
            self.assertIn("stopped after step", self.finish(process))
            self.assertEqual(len(os.listdir(os.path.join(output, "checkpoints"))), 1)

    def test_a_teacher_that_goes_away_is_waited_for(self):
        with kdserved.Daemon() as keeper:
            daemon = kdserved.Daemon(directory=os.path.join(keeper.directory, "second"), model=keeper.model)
            output = os.path.join(keeper.directory, "out")
            text = settings(keeper.directory, steps=200, epochs=100)
            process = self.worker(daemon, output, text)
            kdserved.wait_until(lambda: os.path.exists(os.path.join(output, "metrics.jsonl")) and metrics(output), "a step")
            daemon.process.kill()
            daemon.stop(expect=-signal.SIGKILL)
            done = max(metrics(output))
            self.assertLess(done, 200)
            time.sleep(1)                              # the time without a teacher is the thing tested
            self.assertIsNone(process.poll())
            daemon = kdserved.Daemon(directory=daemon.directory, model=keeper.model)
            said = self.finish(process)
            self.assertIn("answers again", said)
            self.assertEqual(sorted(metrics(output)), list(range(1, 201)))
            daemon.stop()

    def test_another_teacher_ends_the_run(self):
        with kdserved.Daemon() as keeper:
            daemon = kdserved.Daemon(directory=os.path.join(keeper.directory, "second"), model=keeper.model)
            output = os.path.join(keeper.directory, "out")
            process = self.worker(daemon, output, settings(keeper.directory, steps=100000))
            kdserved.wait_until(lambda: os.path.exists(os.path.join(output, "metrics.jsonl")) and metrics(output), "a step")
            daemon.process.kill()
            daemon.stop(expect=-signal.SIGKILL)
            other = os.path.join(keeper.directory, "other")
            tiny_model.write(other, seed=2)
            daemon = kdserved.Daemon(directory=daemon.directory, model=other)
            self.assertIn("error: ", self.finish(process, expect=1))
            daemon.stop()

    def test_a_student_of_some_layers_of_the_teacher(self):
        with kdserved.Daemon() as daemon:
            output = os.path.join(daemon.directory, "out")
            text = settings(daemon.directory, student=daemon.model, student_from_layers="1", steps=1, learning_rate=0)
            self.finish(self.worker(daemon, output, text))
            with open(os.path.join(output, "student", "config.json")) as f:
                self.assertEqual(json.load(f)["num_hidden_layers"], 1)
            teacher, student = tensors(daemon.model), tensors(os.path.join(output, "student"))
            self.assertTrue(any(".layers.0." in name for name in student))
            for name, values in student.items():
                self.assertEqual(values, teacher[name.replace(".layers.0.", ".layers.1.")], name)
            for layers in ("2", "0,", "a", "uniform:3", "-1"):
                said = self.finish(self.worker(daemon, output + layers, settings(daemon.directory, student=daemon.model, student_from_layers=layers)),
                                   expect=1)
                self.assertIn("student-from-layers", said)

    def test_a_teacher_as_student_has_no_distance(self):
        with kdserved.Daemon(*kdserved.EXACT) as daemon:
            output = os.path.join(daemon.directory, "out")
            losses = [LOSSES[0], "reverse-kl support=student:16", "jsd support=both:8 top-k=8", "skew-reverse-kl",
                      "jeffreys top-k=16", "taid", "dkd", "adaptive-kl", "alpha-beta", "dac-kl", "logit-mse of=log-prob"]
            text = settings(daemon.directory, steps=1, student=daemon.model, learning_rate=0, loss=losses, values="f32")
            self.finish(self.worker(daemon, output, text))
            step = metrics(output)[1]
            self.assertEqual(sum(k.startswith("loss_") for k in step), len(losses))
            for name in step:
                if name.startswith("loss_"):
                    self.assertLess(abs(step[name]), 1e-5, name)
            self.assertLess(abs(step["held_out_kl"]), 1e-5)
            # The tokenizer that was exported means the same, and so do the weights.
            self.assertEqual(json.loads(read(output, "student", "config.json"))["hidden_size"], tiny_model.WIDTH)


if __name__ == "__main__":
    unittest.main()
