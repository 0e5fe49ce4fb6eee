"""Runs Python with the given arguments, and lets it die with whoever started it.

`python leash.py ARGUMENTS…` becomes `python ARGUMENTS…`. Airflow ends a stopped task with SIGKILL after five seconds,
and a killed task can end nobody: without this an export would go on alone, for as long as it takes. Linux keeps the
wish (PR_SET_PDEATHSIG, prctl(2)) across execve; elsewhere the process runs without it.

`LEASH_MEMORY` is how many bytes of memory of its own the process may have (RLIMIT_DATA, setrlimit(2); Linux only): one
that opens what came from outside must not be able to take the worker's.
"""

import ctypes
import os
import resource
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    if sys.platform == "linux":
        memory = int(os.environ.pop("LEASH_MEMORY", "0"))
        if memory:
            _, most = resource.getrlimit(resource.RLIMIT_DATA)
            memory = memory if most == resource.RLIM_INFINITY else min(memory, most)
            resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
        parent = int(os.environ.pop("LEASH_HELD_BY", "0"))
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if parent and os.getppid() != parent:  # it died before the wish was made
            sys.exit(1)
    os.execv(sys.executable, [sys.executable, *sys.argv[1:]])  # noqa: S606 -- a list, never a shell


if __name__ == "__main__":
    main()
