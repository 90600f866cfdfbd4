# SPDX-License-Identifier: Apache-2.0
"""Threads that stand still."""
import ctypes
import os

PTRACE_SEIZE, PTRACE_INTERRUPT, PTRACE_DETACH = 0x4206, 0x4207, 17
WALL, NOHANG = 0x40000000, 1
libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]


def thread_name(pid, tid):
    with open("/proc/%d/task/%s/comm" % (pid, tid)) as f:
        return f.read().strip()


class Frozen:
    """One thread of a process, stopped by a debugger's means: the others go on."""

    def __init__(self, pid, name):
        self.tid = next(int(t) for t in os.listdir("/proc/%d/task" % pid) if thread_name(pid, t) == name)
        for request in (PTRACE_SEIZE, PTRACE_INTERRUPT):
            if libc.ptrace(request, self.tid, None, None):
                raise OSError(ctypes.get_errno(), "ptrace")
        self.wait(0)

    def wait(self, flags):
        status = ctypes.c_int()
        return libc.waitpid(self.tid, ctypes.byref(status), WALL | flags)

    def reap(self):
        """The kernel keeps a killed thread until its debugger has looked at it."""
        self.wait(NOHANG)
        return True

    def thaw(self):
        libc.ptrace(PTRACE_DETACH, self.tid, None, None)
