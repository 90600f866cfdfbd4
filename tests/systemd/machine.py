# SPDX-License-Identifier: Apache-2.0
"""A booted container: systemd as its own pid 1, in its own root (an overlay over a cached Debian, in memory), its own /tmp and network.
Everything lives in a mount and pid namespace of the test, so nothing of it outlives the test, however that ends."""
import os
import re
import shutil
import subprocess
import sys
import tempfile

BUILD = os.environ.get("top_builddir", os.getcwd())
SOURCE = os.environ.get("top_srcdir", os.getcwd())
PATIENCE = float(os.environ.get("KDSERVED_TEST_PATIENCE", "60"))
ROOT = os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "kdserved", "boot", "root")

sys.path.insert(0, os.path.join(SOURCE, "tests", "e2e"))
import kdserved     # noqa: E402


def skip(why):
    print("skipped: " + why)
    sys.exit(77)


def enter():
    """Runs the calling program again inside namespaces of its own; skips where that, or booting, is impossible."""
    if os.environ.get("KDSERVED_TEST_INSIDE"):
        return
    if os.environ.get("KDSERVED_TEST_SANITIZED"):
        skip("the container has no sanitizer's library")
    if os.geteuid() != 0:
        skip("only root can boot a container")
    for tool in ("systemd-nspawn", "unshare", "nsenter"):
        if not shutil.which(tool):
            skip("no " + tool)
    if not os.path.exists(os.path.join(ROOT, "lib/systemd/systemd")):
        skip("no Debian in %s: make boot-root makes it (downloads about 100 MB)" % ROOT)
    command = ["unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--mount-proc"]
    if subprocess.run([*command, "true"], stderr=subprocess.DEVNULL).returncode:
        skip("no mount and pid namespaces here")
    os.environ["KDSERVED_TEST_INSIDE"] = "1"
    os.execvp("unshare", [*command, sys.executable, *sys.argv])


def wait_until(condition, what):
    """Each look is a program or two."""
    return kdserved.wait_until(condition, what, PATIENCE, pause=0.05)


def text_of(path):
    with open(path) as f:
        return f.read()


def inner_pid(pid):
    """What a process is called in its own namespace."""
    try:
        with open("/proc/%s/status" % pid) as f:
            found = re.search(r"^NSpid:\t.*\t(\d+)$", f.read(), re.M)
    except OSError:
        return None
    return found and found.group(1)


class Machine:
    def __init__(self):
        self.scratch = tempfile.mkdtemp(prefix="kdserved-boot-")
        try:
            subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", self.scratch], check=True)
            for name in ("upper", "work", "root"):
                os.mkdir(os.path.join(self.scratch, name))
            self.root = os.path.join(self.scratch, "root")
            overlay = "lowerdir=%s,upperdir=%s/upper,workdir=%s/work" % (ROOT, self.scratch, self.scratch)
            subprocess.run(["mount", "-t", "overlay", "-o", overlay, "overlay", self.root], check=True)
        except subprocess.CalledProcessError:
            os.rmdir(self.scratch) if not os.path.ismount(self.scratch) else None
            skip("no overlay file system here")
        self.console = open(os.path.join(self.scratch, "console"), "w+b")
        self.process = self.leader = None

    def path(self, name):
        return os.path.join(self.root, name.lstrip("/"))

    def write(self, name, text, mode=0o644):
        os.makedirs(os.path.dirname(self.path(name)), exist_ok=True)
        with open(self.path(name), "w") as f:
            f.write(text)
        os.chmod(self.path(name), mode)

    def install(self):
        """make install, into the root."""
        done = subprocess.run([os.environ.get("MAKE", "make"), "-s", "-C", BUILD, "install", "DESTDIR=" + self.root],
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode:
            raise AssertionError("make install: " + done.stdout[-3000:])
        self.lend_libraries()
        subprocess.run(["chroot", self.root, "ldconfig"], check=True)

    def lend_libraries(self):
        """CUDA's, of a build with it, which are no package of the root's: too large to copy."""
        told = subprocess.run(["ldd", os.path.join(BUILD, "kdserved")], capture_output=True, text=True, check=True).stdout
        for name, path in re.findall(r"^\s*(\S+) => (/\S+)", told, re.M):
            if not path.startswith(("/lib", "/usr/lib", BUILD)):
                self.write("/usr/local/lib/" + name, "")
                subprocess.run(["mount", "--bind", os.path.realpath(path), self.path("/usr/local/lib/" + name)], check=True)

    def boot(self):
        command = ["systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--directory", self.root, "--boot", "--private-network",
                   "--resolv-conf=off", "--timezone=off", "--link-journal=no"]
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=self.console, stderr=subprocess.STDOUT)

        def first_process():
            if self.process.poll() is not None:
                skip("systemd-nspawn cannot boot here: " + self.said()[-500:])
            with open("/proc/%d/task/%d/children" % (self.process.pid, self.process.pid)) as f:
                children = f.read().split()
            return next((int(pid) for pid in children if inner_pid(pid) == "1"), None)
        self.leader = wait_until(first_process, "the container's first process")
        wait_until(lambda: self.run("systemctl", "is-system-running", check=False).stdout.strip() in ("running", "degraded"),
                   lambda: "the boot: " + self.said())

    def said(self):
        self.console.seek(0)
        return self.console.read().decode(errors="replace")

    def run(self, *command, check=True):
        """In the container, with its own programs."""
        done = subprocess.run(["nsenter", "--target", str(self.leader), "--all", "--", *command], capture_output=True, text=True,
                              stdin=subprocess.DEVNULL, timeout=PATIENCE * 3)
        if check and done.returncode:
            raise AssertionError("%s: %s%s" % (" ".join(command), done.stdout, done.stderr))
        return done

    def network(self, *command, **more):
        """This machine's programs in the container's network: a Popen."""
        return subprocess.Popen(["nsenter", "--target", str(self.leader), "--net", "--", *command], stdin=subprocess.DEVNULL,
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **more)

    def python(self, script, *arguments):
        p = self.network(sys.executable, "-c", script, *arguments)
        out, _ = p.communicate(timeout=PATIENCE * 3)
        if p.returncode:
            raise AssertionError(out)
        return out

    def show(self, unit, name):
        return self.run("systemctl", "show", "-P", name, unit).stdout.strip()

    def journal(self, unit, *more):
        return self.run("journalctl", "--no-pager", "-o", "cat", "-u", unit, *more).stdout

    def main_pid(self, unit):
        """As this test sees it."""
        inside = self.show(unit, "MainPID")
        if inside == "0":
            return 0
        return next((int(pid) for pid in os.listdir("/proc") if pid.isdigit() and inner_pid(pid) == inside and self.is_inside(pid)), 0)

    def is_inside(self, pid):
        try:
            return os.readlink("/proc/%s/ns/pid" % pid) == os.readlink("/proc/%d/ns/pid" % self.leader)
        except OSError:
            return False

    def close(self):
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.console.close()
        subprocess.run(["umount", "--lazy", self.root], check=False)
        subprocess.run(["umount", "--lazy", self.scratch], check=False)
        os.rmdir(self.scratch)
