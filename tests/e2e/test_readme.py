# SPDX-License-Identifier: Apache-2.0
"""The curl commands of README.md, run as they stand (only the port is another)."""
import json
import os
import re
import shutil
import subprocess
import sys
import unittest

from kdserved import PATIENCE, Daemon

README = os.path.join(os.environ.get("top_srcdir", "."), "README.md")
ADDRESS = "127.0.0.1:8321"


def commands():
    with open(README, encoding="utf-8") as file:
        blocks = re.findall(r"^```sh\n(.*?)^```", file.read(), re.M | re.S)
    joined = "".join(blocks).replace("\\\n", " ")
    return [line for line in joined.splitlines() if line.strip()]


class Readme(unittest.TestCase):
    def test_every_curl_command_answers(self):
        lines = commands()
        self.assertGreaterEqual(len(lines), 5)
        with Daemon() as d:
            for line in lines:
                self.assertIn(ADDRESS, line)
                mine = line.replace(ADDRESS, "127.0.0.1:%d" % d.port).replace("curl -s", "curl -sS --fail-with-body", 1)
                done = subprocess.run(["bash", "-c", mine], capture_output=True, text=True, timeout=PATIENCE)
                self.assertEqual(done.returncode, 0, "%s\n%s%s" % (mine, done.stdout, done.stderr))
                if "/metrics" not in line:
                    json.loads(done.stdout)

    def test_the_score_example_gives_what_the_text_says(self):
        line = next(c for c in commands() if "/v1/score" in c)
        with Daemon() as d:
            mine = line.replace(ADDRESS, "127.0.0.1:%d" % d.port)
            reply = json.loads(subprocess.run(["bash", "-c", mine], capture_output=True, text=True, timeout=PATIENCE, check=True).stdout)
        row = reply["sequences"][0]["rows"][0]
        self.assertEqual((row["status"], len(row["lse"]), len(row["ids"]), len(row["logits"])), ("ok", 2, 8, 8))
        self.assertEqual(row["logits"], sorted(row["logits"], reverse=True))
        self.assertGreater(row["lse"][0], row["logits"][0])


if __name__ == "__main__":
    if not shutil.which("curl"):
        print("skipped: curl is not installed")
        sys.exit(77)
    unittest.main()
