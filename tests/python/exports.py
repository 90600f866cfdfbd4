# SPDX-License-Identifier: Apache-2.0
"""For tests of exports: a store that holds every signal, made of the lines kept for fuzzing."""
import glob
import json
import os
import shutil
import subprocess
import sys
import tempfile

import support
from kdserved import BUILD

KDCTL = os.path.join(BUILD, "kdctl")
ENVIRONMENT = {**os.environ, "KDSERVED_PYTHON": sys.executable,
               "PYTHONPATH": os.path.abspath(os.path.join(support.TOP, "clients", "python"))}


def kdctl(*arguments, status=0, **more):
    done = subprocess.run([KDCTL, *arguments], env=ENVIRONMENT, capture_output=True, text=True, **more)
    assert done.returncode == status, (arguments, done)
    return done.stdout + done.stderr


class Folder:
    """A store with every signal and room for files beside it."""

    def __init__(self):
        self.path = tempfile.mkdtemp(prefix="kdserved-export-")
        self.store = self.file("store")
        valid = sorted(glob.glob(os.path.join(support.TOP, "tests", "fuzz", "corpus", "line", "valid_*")))
        with open(self.file("all.jsonl"), "w") as to:
            for path in valid:
                with open(path) as line:
                    to.write(line.read() + "\n")
        kdctl("store", "import", self.store, self.file("all.jsonl"))
        self.n = len(valid)

    def file(self, name):
        return os.path.join(self.path, name)

    def lines(self, store=None):
        return [json.loads(line) for line in self.text(store).splitlines()]

    def text(self, store=None):
        """The records of a store as lines; two stores with the same have the same bytes in them."""
        command = [KDCTL, "store", "export", store or self.store, "--output", "-"]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def remove(self):
        shutil.rmtree(self.path)
