# SPDX-License-Identifier: Apache-2.0
"""Programs whose standard input, output and errors are closed (kdserved <&- >&- 2>&-): nothing else gets those numbers, so nothing else is
given what is printed."""
import errno
import os
import shutil
import subprocess
import tempfile
import unittest

from kdserved import BUILD, PATIENCE, wait_until


def program(name):
    """libtool's script, which is a shell's, opens files of its own."""
    real = os.path.join(BUILD, ".libs", name)
    return real if os.path.exists(real) else os.path.join(BUILD, name)


KDSERVED, WORKER, KDCTL = [program(name) for name in ("kdserved", "kdserved-worker", "kdctl")]


def start(closed, *command, **more):
    def close():
        for fd in closed:
            os.close(fd)
    return subprocess.Popen(command, preexec_fn=close, env=dict(os.environ, LD_LIBRARY_PATH=os.path.join(BUILD, ".libs")), **more)


class Closed(unittest.TestCase):
    def setUp(self):
        self.directory = tempfile.mkdtemp(prefix="kdserved-e2e-")
        self.addCleanup(shutil.rmtree, self.directory, ignore_errors=True)
        self.fifo = os.path.join(self.directory, "fifo")
        os.mkfifo(self.fifo)

    def writer(self, process):
        """Of the FIFO, once the process reads it."""
        def opened():
            self.assertIsNone(process.poll())
            try:
                return os.open(self.fifo, os.O_WRONLY | os.O_NONBLOCK)
            except OSError as e:
                self.assertEqual(e.errno, errno.ENXIO)
                return None
        return wait_until(opened, "a reader")

    def held(self, closed, *command):
        """What the numbers stand for in a process that has come as far as reading a file."""
        p = start(closed, *command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            fd = self.writer(p)
            found = [os.readlink("/proc/%d/fd/%d" % (p.pid, n)) for n in closed]
            os.close(fd)
            p.wait(PATIENCE)
        finally:
            if p.poll() is None:
                p.kill()
                p.wait()
        return found

    def test_no_file_gets_their_numbers(self):
        for command in ((KDSERVED, "--check-config", "--config", self.fifo), (WORKER, "--check-config", "--config", self.fifo),
                        (KDCTL, "--server", "unix:/nowhere", "--token-file", self.fifo, "status")):
            for closed in ((0, 1, 2), (0,), (1,), (2,)):
                with self.subTest(command=command[0], closed=closed):
                    self.assertEqual(self.held(closed, *command), ["/dev/null"] * len(closed))

    def test_what_cannot_be_printed_is_still_an_error(self):
        p = start((1,), KDCTL, "token", "new", "somebody", stderr=subprocess.PIPE, text=True)
        _, said = p.communicate(timeout=PATIENCE)
        self.assertEqual((p.returncode, said.splitlines()[-1]), (1, "kdctl: token: cannot write the output: Bad file descriptor"))


if __name__ == "__main__":
    unittest.main(verbosity=2)
