# SPDX-License-Identifier: Apache-2.0
"""On-policy distillation: the student writes, the teacher judges, nothing depends on when the run was stopped."""
import json
import os
import signal
import subprocess
import unittest

import kdserved
from test_training import FILES, WORKER, kill_at, metrics, read, settings

GKD = {"rollouts": 0.5, "rollout_prompt": 6, "rollout_tokens": 20}


def reports(directory):
    """step -> everything said of it"""
    lines = [json.loads(line) for line in read(directory, "metrics.jsonl").splitlines()]
    return {line["step"]: line for line in lines if "loss" in line}


class Policy(unittest.TestCase):
    def worker(self, daemon, output, text, *arguments):
        with open(output + ".conf", "w") as f:
            f.write(text)
        return subprocess.Popen([WORKER, "--config", output + ".conf", "--output", output, "--server", "unix:" + daemon.socket_path, *arguments],
                                stderr=subprocess.PIPE, text=True)

    def finish(self, process, expect=0):
        _, err = process.communicate(timeout=kdserved.PATIENCE)
        self.assertEqual(process.returncode, expect, err)
        self.assertNotIn("Sanitizer", err)
        return err

    def killed_and_resumed(self, at, steps, **more):
        """Returns the reports of the run that was never stopped."""
        with kdserved.Daemon() as daemon:
            text = settings(daemon.directory, steps=steps, checkpoint_every=at, evaluate_every=5, **more)
            whole, parts = os.path.join(daemon.directory, "whole"), os.path.join(daemon.directory, "parts")
            self.finish(self.worker(daemon, whole, text))
            process = self.worker(daemon, parts, text)
            kill_at(process, parts, at)
            self.finish(self.worker(daemon, parts, text, "--resume"))
            self.assertEqual(metrics(parts), metrics(whole))
            for name in FILES:
                self.assertEqual(read(parts, "student", name), read(whole, "student", name), name)
            return reports(whole)

    def test_gkd_mixes_by_a_coin_and_resumes_exactly(self):
        said = self.killed_and_resumed(at=7, steps=20, loss=["jsd beta=0.5 top-k=16 support=both:8"], **GKD)
        drawn = [step for step, report in said.items() if "rollouts" in report]
        self.assertTrue(3 < len(drawn) < 17, drawn)
        for step in drawn:
            self.assertEqual(said[step]["rollouts"], 8)
            self.assertLessEqual(said[step]["rollout_tokens"], 20)
        self.assertLess(said[20]["held_out_kl"], said[1]["held_out_kl"])

    def test_adaptive_replay_resumes_with_its_buffer(self):
        """The loss is made to rise (a learning rate that hurts), so that steps go over to what the student writes, and to the buffer."""
        said = self.killed_and_resumed(at=15, steps=40, loss="skew-reverse-kl alpha=0.1 top-k=16 support=both:8", rollouts="adaptive", warmup=0,
                                       learning_rate=0.2, rollout_rise=0.8, rollout_replay=16, rollout_fresh=0.4, rollout_prompt=6,
                                       rollout_tokens=20)
        wrote, replayed = ([step for step, report in said.items() if key in report] for key in ("rollouts", "rollouts_replayed"))
        self.assertEqual(said[1]["rollout_chance"], 0)
        self.assertEqual([step for step in wrote if step <= 5], [])
        self.assertGreaterEqual(said[40]["rollout_chance"], 0.8)
        self.assertTrue(min(wrote) < 15 and len(wrote) > 3 and len(replayed) > 3, (wrote, replayed))
        self.assertEqual(wrote[:2], sorted(wrote + replayed)[:2])              # two steps of 8 fill it
        self.assertEqual({said[step]["rollouts_replayed"] for step in replayed}, {8})
        self.assertEqual(said[40]["rollout_buffer"], 16)
        buffers = [said[step].get("rollout_buffer", 0) for step in sorted(said)]
        self.assertEqual(buffers, sorted(buffers))

    def test_tokens_of_the_teacher_are_mixed_in_and_resume_exactly(self):
        losses = ["policy-gradient gamma=1 current=off length-normalise=on clip=0.2 reward-scale=0.5 reward-limit=100",
                  "reverse-kl support=both:8 top-k=16 on=rollouts"]
        said = self.killed_and_resumed(at=4, steps=10, loss=losses, rollouts=1, rollout_mix=0.3, rollout_prompt=5, rollout_tokens=12)
        self.assertEqual({report["rollouts"] for report in said.values()}, {8})

    def test_a_token_of_the_teacher_has_its_distribution(self):
        """rollout-mix near 1: what is written is the teacher's, and where teacher and student differ, ln p - ln q says so."""
        with kdserved.Daemon() as first, kdserved.Daemon(model=self.taught(first)) as daemon:
            means = []
            for mix in (0, 0.99):
                output = os.path.join(daemon.directory, "mix-%g" % mix)
                self.finish(self.worker(daemon, output, settings(daemon.directory, steps=20, learning_rate=0, loss="policy-gradient", rollouts=1,
                                                                rollout_prompt=4, rollout_tokens=24, rollout_mix=mix)))
                said = reports(output)
                means.append(sum(said[s]["rollout_k1"] for s in said) / len(said))
            # k1 is the mean of ln q - ln p: KL(q; p) > 0 over the student's tokens, about -KL(p; q) < 0 over the teacher's.
            self.assertGreater(means[0], 0.3)
            self.assertLess(means[1], -0.3)
            kl = said[1]["held_out_kl"]
            self.assertTrue(0.6 * kl < -means[1] < 1.6 * kl, (means, kl))

    def taught(self, daemon):
        """A model that has learned something: the base of tests that need a teacher worth learning from."""
        output = os.path.join(daemon.directory, "learned")
        self.finish(self.worker(daemon, output, settings(daemon.directory, steps=80, loss="cross-entropy")))
        return os.path.join(output, "student")

    def test_on_policy_the_student_comes_nearer_where_it_goes(self):
        with kdserved.Daemon() as first, kdserved.Daemon(model=self.taught(first)) as daemon:
            output = os.path.join(daemon.directory, "out")
            text = settings(daemon.directory, steps=60, loss="reverse-kl support=both:64 top-k=64", rollouts=1, rollout_prompt=4,
                            rollout_tokens=24, seed=2)
            self.finish(self.worker(daemon, output, text))
            said = reports(output)
            for name in ("rollout_k1", "rollout_k3", "loss_reverse_kl"):
                early, late = (sum(said[s][name] for s in steps) / len(steps) for steps in (range(1, 6), range(56, 61)))
                self.assertLess(late, 0.75 * early, name)

    def test_a_policy_gradient_beside_text_resumes_exactly(self):
        losses = ["policy-gradient gamma=1 current=off length-normalise=on clip=0.2", "reverse-kl support=student:16 top-k=16 on=rollouts",
                  "cross-entropy on=text weight=0.5", "forward-kl on=text top-k=16 weight=0.5"]
        said = self.killed_and_resumed(at=4, steps=11, loss=losses, rollouts="linear:0.2:1", rollout_share=0.5, rollout_prompt=5,
                                       rollout_tokens=12, rollout_temperature=1.2)
        drawn = [step for step, report in said.items() if "rollouts" in report]
        self.assertTrue(drawn and len(drawn) < 11, drawn)
        for step, report in said.items():
            self.assertEqual("loss_policy_gradient" in report, step in drawn)
            self.assertEqual(report.get("rollouts"), 4 if step in drawn else None)
            self.assertIn("loss_cross_entropy", report)
        self.assertEqual(said[11]["objective_reverse_kl"].split(", temperature")[0], "reverse-kl: weight 1, on rollouts")

    def test_the_policy_gradient_alone_lowers_the_reverse_kl(self):
        with kdserved.Daemon() as first, kdserved.Daemon(model=self.taught(first)) as daemon:
            output = os.path.join(daemon.directory, "out")
            # Other seeds stay on the first level for 100 or 200 steps, on each processor another.
            text = settings(daemon.directory, steps=100, loss="policy-gradient gamma=0", rollouts=1, rollout_prompt=4, rollout_tokens=24,
                            micro_batch=8, seed=4)
            self.finish(self.worker(daemon, output, text))
            said = reports(output)
            early, late = (sum(said[s]["rollout_k1"] for s in steps) / len(steps) for steps in (range(1, 11), range(91, 101)))
            self.assertLess(late, 0.75 * early)
            self.assertAlmostEqual(said[7]["loss"], said[7]["rollout_k1"], places=3)

    def test_a_resumed_run_must_repeat_what_changes_its_numbers(self):
        with kdserved.Daemon() as daemon:
            keys = {"steps": 12, "loss": "jsd beta=0.5 top-k=16", "checkpoint_every": 4, **GKD}
            whole, parts = os.path.join(daemon.directory, "whole"), os.path.join(daemon.directory, "parts")
            self.finish(self.worker(daemon, whole, settings(daemon.directory, **keys)))
            process = self.worker(daemon, parts, settings(daemon.directory, **keys))
            kdserved.wait_until(lambda: os.path.exists(os.path.join(parts, "checkpoints", "step-%012d" % 4)) or process.poll() is not None, "one")
            process.send_signal(signal.SIGKILL)
            process.wait()
            process.stderr.close()
            for key, value in (("precision", "bf16"), ("rollout_temperature", 0.9), ("rollout_share", 0.5), ("rollouts", 0.6), ("optimizer", "lion"),
                               ("loss", "jsd beta=0.4 top-k=16"), ("micro_batch", 2), ("device", "ref"), ("steps", 13), ("values", "f32"),
                               ("student_rope_theta", 5000), ("packing", "off"), ("weight_decay", 0)):
                more = {"accumulate": 4} if key == "micro_batch" else {}
                said = self.finish(self.worker(daemon, parts, settings(daemon.directory, **{**keys, key: value, **more}), "--resume"), expect=1)
                self.assertRegex(said, r"(%s: is \"|corpus differs).*cannot be resumed" % key.replace("_", "-"))
            said = self.finish(self.worker(daemon, parts, settings(daemon.directory, **{**keys, "threads": 2, "keep": 1, "checkpoint_every": 3,
                                                                                       "gradient_checkpointing": "yes"}), "--resume"))
            self.assertIn("resumed after step", said)
            self.assertEqual(metrics(parts), metrics(whole))

    def test_what_cannot_be_is_refused_before_anything_starts(self):
        with kdserved.Daemon() as daemon:
            for field, keys in (("rollouts", {"rollouts": "often"}), ("rollouts", {"rollouts": "linear:0:2"}),
                                ("rollout-tokens", {"rollouts": 0.5, "rollout_prompt": 40, "rollout_tokens": 20}),
                                ("rollouts: is 0, and loss policy-gradient learns from what the student writes", {"loss": "policy-gradient"}),
                                ("rollout-temperature", {**GKD, "rollout_temperature": 0.00001}),
                                ("rollouts: adaptive: evaluations set the chance, and evaluate-every = 0 leaves them out",
                                 {**GKD, "rollouts": "adaptive", "evaluate_every": 0}),
                                ("rollouts: adaptive: evaluations set the chance, and held-out = 0 leaves them out",
                                 {**GKD, "rollouts": "adaptive", "held_out": 0}),
                                ("rollout-replay: 7 is less than the 8 sequences that a step takes out of it", {**GKD, "rollout_replay": 7}),
                                ("rollout-replay: 1048576 sequences of", {**GKD, "rollout_replay": 1048576, "sequence_length": 4096}),
                                ("rollout-replay: and rollout-pairs", {**GKD, "rollouts": 1, "rollout_pairs": "yes", "rollout_replay": 16}),
                                ("rollout-mix: needs rollout-temperature = 1", {**GKD, "rollout_mix": 0.2, "rollout_temperature": 0.9}),
                                ("rollout-fresh: linear:2:0: a number from 0 to 1 is expected", {**GKD, "rollout_fresh": "linear:2:0"}),
                                (": rollout-rise = 0 is below the minimum", {**GKD, "rollout_rise": 0})):
                output = os.path.join(daemon.directory, "out")
                said = self.finish(self.worker(daemon, output, settings(daemon.directory, **keys)), expect=78)
                self.assertIn(field if ": " in field else field + ": ", said)
                self.assertFalse(os.path.exists(output))
            path = os.path.join(daemon.directory, "shards.conf")
            with open(path, "w") as f:
                f.write(settings(daemon.directory, teacher="shards:" + daemon.directory, tokenizer=daemon.model, **GKD))
            done = subprocess.run([WORKER, "--config", path, "--output", os.path.join(daemon.directory, "out")], capture_output=True, text=True)
            self.assertEqual(done.returncode, 78)
            self.assertIn("rollouts: need a live teacher: shards cannot say anything of text that is new", done.stderr)


if __name__ == "__main__":
    unittest.main()
