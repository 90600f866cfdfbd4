#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A daemon's training run whose worker is killed again and again: the daemon starts it again each time, and it ends with the losses, and the
student, of a run that nobody touched. KDSERVED_TEST_KILLS: how often. And the waits between, and their ends."""
import os
import signal
import time
import unittest

import kdserved
from kdserved import Daemon, wait_until
from test_training import FILES, WORKER, metrics, read, settings

KILLS = int(os.environ.get("KDSERVED_TEST_KILLS", "4"))
FINAL = ("succeeded", "failed", "stopped")
RESTARTS = ("--run-restarts", "1000", "--run-restart-delay", "10ms")


class Restarts(unittest.TestCase):
    def setUp(self):
        self.keeper = Daemon()                                  # the corpus and the model outlive each daemon of a test
        self.addCleanup(self.keeper.stop)
        self.directory = os.path.join(self.keeper.directory, "runs")

    def daemon(self, *arguments):
        d = Daemon("--runs", self.directory, "--worker", WORKER, *arguments, model=self.keeper.model)
        self.addCleanup(lambda: d.process.poll() is None and d.stop())
        return d

    def start(self, d, name, **more):
        status, reply = d.post("/v1/runs", {"name": name, "config": settings(self.keeper.directory, **more)})
        self.assertEqual(status, 201, reply)

    def run_of(self, d, name):
        return d.get("/v1/runs/" + name)[1]

    def ended(self, d, name):
        run = self.run_of(d, name)
        return run if run["state"] in FINAL else None

    def kill(self, pid):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass                                                # it was quicker

    def kill_often(self, d, name):
        """Another worker each time, a different while after its first step."""
        killed, reported = [], 0
        while len(killed) < KILLS:
            def next_one():
                run = self.run_of(d, name)
                if run["state"] in FINAL:
                    raise AssertionError("it ended after %d kills: %s" % (len(killed), run))
                at = os.path.join(self.directory, name, "metrics.jsonl")
                size = os.path.getsize(at) if os.path.exists(at) else 0
                return run["state"] == "running" and run["pid"] not in killed and size > reported and run
            run = wait_until(next_one, "a step of the next worker")
            time.sleep(0.03 * (len(killed) % 5))                # where in a step, or a checkpoint, it is
            self.kill(run["pid"])
            killed.append(run["pid"])
            reported = os.path.getsize(os.path.join(self.directory, name, "metrics.jsonl"))
        return killed

    def test_killed_again_and_again_it_ends_with_the_same_losses(self):
        d = self.daemon(*RESTARTS)
        more = {"steps": 40 + 10 * KILLS, "checkpoint_every": 3, "evaluate_every": 20, "epochs": 100}
        self.start(d, "whole", **more)
        self.assertEqual(wait_until(lambda: self.ended(d, "whole"), "the run nobody touches")["state"], "succeeded")
        self.start(d, "killed", **more)
        killed = self.kill_often(d, "killed")
        run = wait_until(lambda: self.ended(d, "killed"), "the run that is killed")
        self.assertEqual(run["state"], "succeeded", run)
        self.assertGreaterEqual(run["restarts"], 1)
        self.assertLessEqual(run["restarts"], len(killed))
        self.assertEqual(d.metrics()["kd_run_restarts_total"], run["restarts"])
        self.assertEqual(metrics(os.path.join(self.directory, "killed")), metrics(os.path.join(self.directory, "whole")))
        for name in FILES:
            self.assertEqual(read(self.directory, "killed", "student", name), read(self.directory, "whole", "student", name), name)
        self.assertRegex(d.log(), r"run killed: killed by signal 9 \(SIGKILL\).*; another worker follows in 0\.01 s")

    def test_what_its_settings_name_and_is_not_there_is_not_tried_again(self):
        d = self.daemon(*RESTARTS)
        self.start(d, "wrong")
        wait_until(lambda: self.ended(d, "wrong"), "a good run")
        text = settings(self.keeper.directory, student="/nonexistent/student", student_width=None, student_layers=None, student_heads=None,
                        student_kv_heads=None, student_ffn_width=None, student_context=None)
        status, reply = d.post("/v1/runs", {"name": "absent", "config": text})
        self.assertEqual(status, 201, reply)
        run = wait_until(lambda: self.ended(d, "absent"), "the run to fail")
        self.assertEqual((run["state"], run.get("restarts", 0)), ("failed", 0), run)
        self.assertEqual(d.metrics()["kd_run_restarts_total"], 0)

    def falling(self, *arguments):
        """A daemon with a run that waits for its second worker."""
        d = self.daemon(*arguments)
        self.start(d, "falls", steps=100000, epochs=100000)
        run = wait_until(lambda: self.run_of(d, "falls").get("pid") and self.run_of(d, "falls"), "a worker")
        self.kill(run["pid"])
        wait_until(lambda: self.run_of(d, "falls")["state"] == "restarting", "the wait")
        return d

    def test_a_daemon_stops_at_once_while_a_run_waits_and_another_takes_it_up(self):
        d = self.falling("--run-restart-delay", "5min")
        began = time.monotonic()
        d.stop()
        self.assertLess(time.monotonic() - began, kdserved.PATIENCE / 3)
        d = self.daemon()
        run = self.run_of(d, "falls")
        self.assertEqual(run["state"], "stopped")
        self.assertIn("before the worker was started again", run["reason"])
        self.start(d, "falls", steps=100000, epochs=100000)
        wait_until(lambda: self.run_of(d, "falls").get("progress", {}).get("step", 0) > 0 and self.run_of(d, "falls")["state"] == "running", "it")

    def test_stopping_a_run_ends_its_wait(self):
        d = self.falling("--run-restart-delay", "5min")
        self.assertEqual(d.http("DELETE", "/v1/runs/falls")[0], 200)
        self.assertEqual(self.run_of(d, "falls")["state"], "stopped")
        self.assertEqual(d.metrics()["kd_run_restarts_total"], 0)


if __name__ == "__main__":
    unittest.main()
