"""Runs the package's own programs: a list, never a shell; a bare environment; one JSON object a line back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Timer
from typing import Any

from model_release import errors
from model_release.errors import ArchiveError, ReleaseError

PACKAGE_ROOT = Path(__file__).resolve().parents[2]

# What a build needs of its surroundings. Credentials of the worker are not among it: the process opens files
# that came from outside.
_KEPT = (
    *("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "TMPDIR", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "SYSTEMROOT"),
    *("PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX"),
)


def environment(**more: str) -> dict[str, str]:
    """The environment of a build's process: offline, without the worker's secrets."""
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    return {**kept, **offline, "PYTHONHASHSEED": "0", **more}


def run(
    arguments: Sequence[str],
    *,
    what: str,
    log: Callable[[str], None],
    env: Mapping[str, str],
    timeout: float,
    cwd: Path,
) -> dict[str, Any]:
    """Runs `python *arguments` and returns the `report` it ends with, as `begun` says."""
    with begun(arguments, what=what, log=log, env=env, timeout=timeout, cwd=cwd) as report:
        return report()


@contextmanager
def begun(
    arguments: Sequence[str],
    *,
    what: str,
    log: Callable[[str], None],
    env: Mapping[str, str],
    timeout: float,
    cwd: Path,
) -> Iterator[Callable[[], dict[str, Any]]]:
    """Starts `python *arguments`. What is given ends its standard input, for which a program may wait with its imports
    done, and returns the `report` that it ends with. It ends with the block and with this process, however these end.

    Lines `{"progress": …}` and whatever else it prints go to `log` as they come. `{"error": class, "message": …}`
    is raised as that class; a process that ends without either raises `ArchiveError` with its last line, or says
    that it was killed (out of memory, mostly) or took more than `timeout` seconds from there on.
    """
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("leash.py")), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        errors="replace",
        env={**env, "LEASH_HELD_BY": str(os.getpid())},
        cwd=cwd,
    )
    try:
        yield lambda: _report(process, what, log, timeout)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        for stream in (process.stdin, process.stdout):
            if stream:
                stream.close()


def _report(process: subprocess.Popen[str], what: str, log: Callable[[str], None], timeout: float) -> dict[str, Any]:
    if process.stdin:
        process.stdin.close()
    expired: list[bool] = []

    def expire() -> None:
        expired.append(True)
        process.kill()

    timer = Timer(timeout, expire)
    timer.start()
    report: dict[str, Any] | None = None
    failure: ReleaseError | None = None
    tail: deque[str] = deque(maxlen=1)
    try:
        for line in map(str.rstrip, process.stdout or ()):
            message = _message(line)
            if "progress" in message:
                log(str(message["progress"]))
            elif "report" in message:
                report = message["report"]
            elif "error" in message:
                failure = _exception(str(message["error"]), str(message.get("message", "")))
            elif line:
                tail.append(line)
                log(line)
        code = process.wait()
    finally:
        timer.cancel()
    if failure is not None:
        raise failure
    if expired:
        raise ArchiveError(f"{what} took more than {timeout:.0f} s and was stopped")
    if code < 0:
        raise ArchiveError(f"{what} was killed by signal {-code}; signal 9 mostly means that memory ran out")
    if code or report is None:
        raise ArchiveError(f"{what} ended with code {code} and without a result: {tail[-1] if tail else 'no output'}")
    return report


def _message(line: str) -> dict[str, Any]:
    if not line.startswith("{"):
        return {}
    try:
        message = json.loads(line)
    except ValueError:
        return {}
    return message if isinstance(message, dict) else {}


def _exception(name: str, message: str) -> ReleaseError:
    kind = getattr(errors, name, None)
    if isinstance(kind, type) and issubclass(kind, ReleaseError):
        return kind(message)
    return ArchiveError(f"{name}: {message}")
