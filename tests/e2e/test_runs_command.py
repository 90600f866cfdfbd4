# SPDX-License-Identifier: Apache-2.0
"""kdctl runs watch and plot, and /v1/runs/ID/metrics, on a run that an earlier daemon left."""
import json
import os
import subprocess
import unittest
import xml.etree.ElementTree as xml

import kdserved

KDCTL = os.path.join(kdserved.BUILD, "kdctl")


class Runs(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.first = kdserved.Daemon()
        cls.addClassCleanup(cls.first.stop)
        cls.directory = os.path.join(cls.first.directory, "runs")
        cls.write("done", "succeeded", [{"step": i, "steps": 40, "loss": 4 / i, "learning_rate": 1e-3 / i, "held_out_kl": 3 - i // 10} for i in
                                        range(1, 41)])
        cls.write("early", "stopped", [])
        cls.daemon = kdserved.Daemon("--runs", cls.directory, model=cls.first.model)
        cls.addClassCleanup(cls.daemon.stop)

    @classmethod
    def write(cls, name, state, points):
        os.makedirs(os.path.join(cls.directory, name))
        with open(os.path.join(cls.directory, name, "status.json"), "w") as f:
            json.dump({"id": name, "state": state, "created": 1.5e9, "progress": points[-1] if points else {}}, f)
        with open(os.path.join(cls.directory, name, "run.conf"), "w") as f:
            f.write("corpus = /nowhere\n")
        if points:
            with open(os.path.join(cls.directory, name, "metrics.jsonl"), "w") as f:
                f.writelines(json.dumps(p) + "\n" for p in points)

    def runs(self, *arguments, expect=0):
        done = subprocess.run([KDCTL, "--server", "unix:" + self.daemon.socket_path, "runs", *arguments], capture_output=True, text=True, timeout=60)
        self.assertEqual(done.returncode, expect, done.stderr)
        return done.stderr if expect else done.stdout

    def test_the_course_is_a_resource(self):
        status, reply = self.daemon.get("/v1/runs/done/metrics")
        self.assertEqual(status, 200)
        self.assertEqual(reply["id"], "done")
        self.assertEqual([p["step"] for p in reply["points"]], list(range(1, 41)))
        self.assertEqual(self.daemon.get("/v1/runs/early/metrics")[1]["points"], [])
        for path, expected in (("/v1/runs/none/metrics", 404), ("/v1/runs//metrics", 404), ("/v1/runs/../metrics", 404), ("/v1/runs/done/log", 404)):
            self.assertEqual(self.daemon.get(path)[0], expected, path)
        self.assertEqual(self.daemon.http("POST", "/v1/runs/done/metrics", {})[0], 405)

    def test_a_run_is_drawn(self):
        for arguments in (["done"], ["--log", "done"], [os.path.join(self.directory, "done", "metrics.jsonl")]):
            picture = xml.fromstring(self.runs("plot", *arguments))
            lines = picture.findall(".//{http://www.w3.org/2000/svg}polyline")
            self.assertEqual([len(line.get("points").split()) for line in lines], [40, 5 if "--log" not in arguments else 3, 40])
        path = os.path.join(self.first.directory, "run.svg")
        self.assertEqual(self.runs("plot", "--keys", "loss", "--output", path, "done"), "")
        self.assertEqual(len(xml.parse(path).findall(".//{http://www.w3.org/2000/svg}polyline")), 1)

    def test_what_cannot_be_drawn_is_named(self):
        self.assertIn("no such numbers", self.runs("plot", "early", expect=1))
        self.assertIn("no such numbers", self.runs("plot", "--keys", "nothing", "done", expect=1))
        self.assertIn("--keys", self.runs("plot", "--keys", "a,,b", "done", expect=2))
        self.assertIn("one ID", self.runs("plot", expect=2))
        self.assertIn("none: no such run", self.runs("plot", "none", expect=1))
        self.assertIn("none.jsonl", self.runs("plot", "none.jsonl", expect=1))
        self.assertIn("--seconds", self.runs("watch", "--seconds", "0", "done", expect=2))

    def test_watching_ends_with_the_run(self):
        out = self.runs("watch", "done")
        self.assertIn("done  succeeded  step 40/40", out)
        self.assertIn("was stopped", self.runs("watch", "early", expect=1))


if __name__ == "__main__":
    unittest.main()
