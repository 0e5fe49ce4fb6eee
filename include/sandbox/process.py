"""A supervised child process that leaves nothing behind.

Each child leads its own session, so that a signal to its group reaches whatever it started (TorchServe's Java
starts Python workers). Each carries two environment variables, which its own children inherit: the state folder
of the sandbox it belongs to, and its name. By these the processes of a sandbox are found again after the
supervisor was killed, without pid files that could name somebody else's process by now.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import hashlib
import os
import signal
import stat
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

import psutil

from sandbox.errors import SandboxError

MARK = "MODEL_RELEASE_SANDBOX"
NAME = "MODEL_RELEASE_SANDBOX_PROCESS"

#: Seconds that a part may take for what it does in a moment on an idle machine. Only a hang meets it: a program that
#: has ended is told at once.
PATIENCE = 600.0

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None

_TMP = "/tmp"  # noqa: S108 - `short_folder` makes a private folder there and checks whose it is

# What a child may see of the supervisor's environment. Credentials and Airflow's settings are not its business.
_INHERITED = ("PATH", "HOME", "USER", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH", "SSL_CERT_FILE")
# glibc keeps up to eight heaps for each core in a program with threads, and gives little of them back. A laptop has
# better use for that memory.
_FRUGAL = {"MALLOC_ARENA_MAX": "2"}


class Child:
    """One program under supervision. `start` and `stop` may be called again at any time.

    `log` is appended to and holds stdout and stderr. `grace` is how many seconds the group may take to end after
    `stop_sign` before it is killed.
    """

    def __init__(
        self,
        name: str,
        argv: Sequence[str | Path],
        *,
        state_dir: Path,
        log: Path,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        grace: float = 5.0,
        stop_sign: signal.Signals = signal.SIGTERM,
    ) -> None:
        self.name = name
        self._argv = [str(part) for part in argv]
        self._log = log
        self._cwd = cwd
        self._grace, self._stop_sign = grace, stop_sign
        self._env = {key: os.environ[key] for key in _INHERITED if key in os.environ}
        self._env |= {**_FRUGAL, **(env or {}), MARK: str(state_dir.resolve()), NAME: name}
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int | None:
        """The leader's process id, which is the group's id too; None before the first start."""
        return self._process.pid if self._process else None

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    @property
    def exit_code(self) -> int | None:
        """As a container reports it: 128 + N for a process ended by signal N. None while it runs."""
        code = self._process.returncode if self._process else None
        return code if code is None or code >= 0 else 128 - code

    async def start(self) -> None:
        """Starts the program. Does nothing if it runs."""
        if self.running:
            return
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("ab") as log:
            try:
                self._process = await asyncio.create_subprocess_exec(
                    *self._argv,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=self._env,
                    cwd=self._cwd,
                    start_new_session=True,
                    preexec_fn=partial(die_with, os.getpid(), self._stop_sign),
                )
            except OSError as error:
                raise SandboxError(f"{self.name}: cannot start {self._argv[0]}: {error.strerror}") from error

    async def wait(self) -> int:
        """Waits until the program ends by itself, ends what it left behind, and returns its exit code."""
        if self._process is None:
            raise SandboxError(f"{self.name} was never started")
        await self._process.wait()
        await self.stop()
        return self.exit_code or 0

    async def stop(self) -> None:
        """Ends the whole group: `stop_sign`, then SIGKILL after the grace. Returns when none of it is left."""
        if self._process is None:
            return
        group = self._process.pid
        for sign, patience in ((self._stop_sign, self._grace), (signal.SIGKILL, PATIENCE)):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, sign)
            if await _group_ends(group, patience):
                break
        await self._process.wait()

    def tail(self, lines: int = 20) -> str:
        """The last lines of the log."""
        return tail(self._log, lines)


def short_folder(state_dir: Path) -> Path:
    """A private folder with a short path, for Unix sockets: those are limited to about 90 characters.

    It belongs to the sandbox in `state_dir` alone, is always the same, and holds nothing worth keeping.
    """
    digest = hashlib.sha256(str(state_dir.resolve()).encode()).hexdigest()[:12]
    # Test runners like to set TMPDIR to something long.
    folder = Path(min(tempfile.gettempdir(), _TMP, key=len)) / f"sandbox-{digest}"
    folder.mkdir(mode=0o700, exist_ok=True)
    state = folder.lstat()
    if not stat.S_ISDIR(state.st_mode) or state.st_uid != os.getuid():
        raise SandboxError(f"{folder} belongs to somebody else; remove it")
    folder.chmod(0o700)
    return folder


def tail(log: Path, lines: int | None) -> str:
    """The last `lines` lines of a file (all of them for None); empty if there is no file."""
    try:
        text = log.read_text(errors="replace")
    except FileNotFoundError:
        return ""
    return text if lines is None else "\n".join(text.splitlines()[-lines:] if lines > 0 else [])


def processes(state_dir: Path, name: str | None = None) -> list[psutil.Process]:
    """All living processes of the sandbox in `state_dir`, or those whose name is `name` or begins with `name/`.

    Never contains the calling process or one it was started by.
    """
    mark = str(state_dir.resolve())
    own = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    others = [process for process in psutil.process_iter() if process.pid not in own]
    marked = {process.pid for process in others if _is_marked(process, mark, name)}
    # A process that gave itself a title, as Airflow's do, has written it over its environment. It still belongs to
    # the session that its child of ours leads; or, as PostgreSQL's with sessions of their own, to its parent.
    sessions = {_session(pid) for pid in marked} - {None, os.getsid(0)}
    mine = marked | {process.pid for process in others if _session(process.pid) in sessions}
    while born := {process.pid for process in others if process.pid not in mine and _parent(process) in mine}:
        mine |= born
    found = []
    for process in others:
        with contextlib.suppress(psutil.Error):
            if process.pid in mine and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def _is_marked(process: psutil.Process, mark: str, name: str | None) -> bool:
    with contextlib.suppress(psutil.Error, OSError):
        environment = process.environ()
        wanted = f"{name}/" if name else ""
        return environment.get(MARK) == mark and f"{environment.get(NAME)}/".startswith(wanted)
    return False


def _session(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except OSError:
        return None


def _parent(process: psutil.Process) -> int | None:
    try:
        return process.ppid()
    except psutil.Error:
        return None


def end(victims: Iterable[psutil.Process], grace: float = 5.0) -> None:
    """Ends these processes: SIGTERM, SIGKILL after `grace` seconds. Those that are gone already are no error."""
    left = list(victims)
    for sign, patience in ((signal.SIGTERM, grace), (signal.SIGKILL, PATIENCE)):
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.send_signal(sign)
        left = psutil.wait_procs(left, timeout=patience)[1]
        if not left:
            return


def die_with(parent: int, sign: signal.Signals = signal.SIGTERM) -> None:
    """For a child: asks the kernel for this signal at the death of its parent (Linux only)."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, sign)
        if os.getppid() != parent:
            os._exit(1)


async def _group_ends(group: int, patience: float) -> bool:
    deadline = time.monotonic() + patience
    pause = 0.01
    while _group_lives(group):
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(pause)
        pause = min(pause * 2, 0.1)
    return True


def _group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # macOS says so for a group of zombies
        pass
    # Where nobody collects orphans (a container without init), zombies stay members of the group for ever.
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                return True
    return False
