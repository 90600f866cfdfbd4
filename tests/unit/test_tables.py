#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""tests/bench/tables.py: documents quote the results, and nothing else."""
import os
import shutil
import subprocess
import sys
import tempfile
import unittest

TOP = os.environ.get("top_srcdir", os.path.join(os.path.dirname(os.path.abspath(__file__)), "../.."))
TOOL = os.path.join(TOP, "tests/bench/tables.py")
SCORE = """# make bench BENCH_PARTS=score BENCH_SHORT=1
# machine: a machine, 2 processors
# commit: abcdef1
# date: 2026-01-02
# load: 0.10 before, 1.90 after
date,commit,cpu,threads,length,sequences,engine,median_tokens_s,best_tokens_s,load
2026-01-02,abcdef1,x,2,512,4,kdserved-f32,300,310,1
2026-01-02,abcdef1,x,2,512,4,llama.cpp-BF16,100,120,1
2026-01-02,abcdef1,x,2,512,4,kdserved-f32,500,505,1
2026-01-02,abcdef1,x,2,512,4,llama.cpp-BF16,200,210,1
2026-01-02,abcdef1,x,2,512,4,kdserved-f32,200,310,1
"""


class Tables(unittest.TestCase):
    def setUp(self):
        self.directory = tempfile.mkdtemp(prefix="kdserved-tables-")
        self.addCleanup(shutil.rmtree, self.directory)
        os.makedirs(os.path.join(self.directory, "tests/bench/results"))
        os.makedirs(os.path.join(self.directory, "docs"))
        self.write("README.md", "nothing to quote\n")

    def write(self, name, text):
        with open(os.path.join(self.directory, name), "w", encoding="utf-8") as f:
            f.write(text)

    def read(self, name):
        with open(os.path.join(self.directory, name), encoding="utf-8") as f:
            return f.read()

    def tables(self, check=True, expect=0):
        tool = shutil.copy(TOOL, os.path.join(self.directory, "tests/bench/tables.py"))
        done = subprocess.run([sys.executable, tool, *(["--check", self.directory] if check else [])], capture_output=True, text=True, timeout=60)
        self.assertEqual(done.returncode, expect, done.stderr)
        return done.stderr

    def test_the_documents_of_this_tree_say_what_its_results_say(self):
        done = subprocess.run([sys.executable, TOOL, "--check", TOP], capture_output=True, text=True, timeout=60)
        self.assertEqual(done.returncode, 0, done.stderr)

    def test_a_table_is_the_medians_and_says_where_they_come_from(self):
        self.write("tests/bench/results/score.csv", SCORE)
        self.write("docs/performance.md", "before\n<!-- table score -->\n| stale |\n<!-- end of table -->\nafter\n")
        self.assertIn("docs/performance.md", self.tables(expect=1))
        self.tables(check=False)
        self.tables()
        text = self.read("docs/performance.md")
        self.assertTrue(text.startswith("before\n") and text.endswith("after\n"))
        self.assertIn("| kdserved-f32 | 4 x 512 | 3 | 300 | 505 | 2 |\n", text)
        self.assertIn("| llama.cpp-BF16 | 4 x 512 | 2 | 150 | 210 | 1 |\n", text)
        for word in ("`make bench BENCH_PARTS=score BENCH_SHORT=1`", "a machine, 2 processors", "commit abcdef1", "load 0.10 before",
                     "(../tests/bench/results/score.csv)"):
            self.assertIn(word, text)
        self.assertNotIn("stale", text)

    def test_what_was_not_measured_is_said(self):
        self.write("docs/performance.md", "<!-- table score -->\n<!-- end of table -->\n")
        self.tables(check=False)
        self.assertIn("Not measured: `make bench BENCH_PARTS=score`.", self.read("docs/performance.md"))

    def test_results_that_lack_a_column_and_tables_nobody_makes_are_refused(self):
        self.write("tests/bench/results/score.csv", "length,sequences,engine\n512,4,kdserved\n")
        self.write("docs/performance.md", "<!-- table score -->\n<!-- end of table -->\n")
        self.assertIn("score.csv", self.tables(expect=1))
        self.write("docs/performance.md", "<!-- table nonsense -->\n<!-- end of table -->\n")
        self.assertIn("nonsense", self.tables(expect=1))


if __name__ == "__main__":
    unittest.main()
