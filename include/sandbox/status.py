"""What runs in a state folder, as the supervisor last wrote it down and the system has it now."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from sandbox.errors import SandboxError
from sandbox.process import processes

FILE = "status.json"
#: How the supervisor's line begins that names all parts, before the first of them is ready.
STARTING = "Starting "
_LOCK, _STORY = "supervisor.lock", "story.lock"


def status(state_dir: Path) -> dict[str, Any]:
    """{"ready", "pid", "parts": {name: {"running", "url", "pid"}}, "load", "processes", "memory_mb"}.

    Memory is in MB (PSS where the system tells), `load` the load's last summary or None.
    {"ready": False, "parts": {}} if nothing runs; a supervisor that was killed counts as nothing.
    """
    found, leader = _read(state_dir / FILE), supervisor(state_dir)
    if found is None or leader is None:
        return {"ready": False, "parts": {}}
    members = [*processes(state_dir), leader]
    memory = round(sum(_memory(process) for process in members) / 2**20)
    return {**found, "load": _read(state_dir / "load.json"), "processes": len(members), "memory_mb": memory}


def part_runs(state_dir: Path, part: str) -> bool:
    """Whether the supervisor says that this part runs."""
    found = _read(state_dir / FILE) or {"parts": {}}
    return bool(found["parts"].get(part, {}).get("running"))


def is_ready(state_dir: Path) -> bool:
    """Whether the supervisor says that all parts answer."""
    return bool((_read(state_dir / FILE) or {}).get("ready"))


def sole_supervisor(state_dir: Path) -> contextlib.AbstractContextManager[None]:
    """Holds the state folder's lock. Raises SandboxError if another process holds it."""
    line = f"a sandbox runs in {state_dir} already: stop it with `python -m sandbox down`"
    return _alone(state_dir / _LOCK, line)


def sole_story(state_dir: Path) -> contextlib.AbstractContextManager[None]:
    """One story at a time is told in a sandbox: two would release to one service. Raises SandboxError for the other."""
    line = (
        f"`make release` or `make walkthrough` is under way in {state_dir}, on another terminal: let it end, or stop it"
    )
    return _alone(state_dir / _STORY, line)


@contextlib.contextmanager
def _alone(file: Path, line: str) -> Iterator[None]:
    """Holds the lock. The kernel lets go of it when its holder ends, however it ends."""
    with file.open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SandboxError(line) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def supervisor(state_dir: Path) -> psutil.Process | None:
    """Who holds the lock of the state folder; None if nobody does."""
    try:
        with (state_dir / _LOCK).open("r+") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return psutil.Process(int(lock.read()))
    except (FileNotFoundError, psutil.NoSuchProcess, ValueError):
        pass
    return None


def _read(file: Path) -> dict[str, Any] | None:
    try:
        content: dict[str, Any] = json.loads(file.read_text())
    except FileNotFoundError:
        return None
    return content


def _memory(process: psutil.Process) -> int:
    try:
        full = process.memory_full_info()
        return int(getattr(full, "pss", full.uss))
    except psutil.Error:
        return 0
