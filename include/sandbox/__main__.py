"""The command line of the sandbox: `python -m sandbox up | down | status | load | stop | start | kill | logs`."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import psutil
from rich.console import Console

from sandbox import process, programs, status
from sandbox.errors import SandboxError
from sandbox.waiting import Waiting
from sandbox.wishes import Load, Wishes

DEFAULT_STATE = Path(".sandbox")
_PARTS = ("envoy", "prometheus", "s3", "hub", "postgres", "airflow", "guard")


def main(argv: list[str] | None = None) -> int:
    """Runs one command; 0 if it did what was asked, 1 with one line on stderr if not."""
    options = _parser().parse_args(argv)
    try:
        return int(options.run(options) or 0)
    except SandboxError as error:
        print(f"sandbox: {error}", file=sys.stderr)
        return 1


def _up(options: argparse.Namespace, console: Console | None = None) -> int:
    """Starts the sandbox, in the background unless told otherwise, and returns when it is ready."""
    state: Path = options.state
    say: Callable[[str], object] = partial(print, flush=True) if console is None else partial(_print, console)
    state.mkdir(parents=True, exist_ok=True, mode=0o700)
    if options.foreground:
        with status.sole_supervisor(state):
            return asyncio.run(_supervise(state, dict(options.port), _project(options)))
    if status.supervisor(state) is not None:
        _wait_for_another(state, say)
    elif console is None:
        _start_in_background(options, say)
    else:
        with Waiting(console) as waiting:
            _start_in_background(options, say, waiting.on)
    return 0


def _wait_for_another(state: Path, say: Callable[[str], object]) -> None:
    """Somebody has started it already, and may be about to."""
    if not status.is_ready(state):
        say(f"The sandbox in {state} is being started by another command; {state}/logs/supervisor.log says how far.")
    _until(state, lambda: status.is_ready(state), "its start")
    say(f"The sandbox in {state} runs already.")


def _print(console: Console, line: str) -> None:
    console.print(line, markup=False, soft_wrap=True)


def _release(options: argparse.Namespace) -> int:
    """Starts what is missing and releases the example three times: a first version, a better one, a bad one; or, as
    `--story wrong`, one that answers quickly, without errors, and wrongly."""
    from sandbox import demo

    def stop() -> int:
        return _down(options)

    if options.runtime == "kserve":
        programs.kserve_python()
    options.state.mkdir(parents=True, exist_ok=True, mode=0o700)
    up, more = partial(_up, options), (options.picture, options.runtime, options.story)
    with status.sole_story(options.state):
        return demo.release(options.state, options.airflow, up, stop, *more)


def _walkthrough(options: argparse.Namespace) -> int:
    """Starts what is missing and walks through the mission: one service, three tasks, each released by canary."""
    from sandbox import walkthrough

    def stop() -> int:
        return _down(options)

    options.state.mkdir(parents=True, exist_ok=True, mode=0o700)
    with status.sole_story(options.state):
        _up(options)
        return walkthrough.walkthrough(options.state, stop, options.page)


async def _supervise(state: Path, ports: dict[str, int], project: Path | None) -> int:
    # Only the supervisor needs the parts; the other commands stay quick.
    from sandbox.stack import Stack

    ended = asyncio.Event()
    for sign in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(sign, ended.set)
    began = time.monotonic()
    sandbox = Stack(state, wanted_ports=ports, project=project, say=lambda line: print(line, flush=True))
    until_ended = asyncio.create_task(ended.wait())
    starting = asyncio.create_task(sandbox.start())
    await asyncio.wait([starting, until_ended], return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        starting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await starting
        return 1
    await starting
    print(f"The sandbox is ready after {time.monotonic() - began:.1f} s.", flush=True)
    watching = asyncio.create_task(sandbox.watch())
    await asyncio.wait([watching, until_ended], return_when=asyncio.FIRST_COMPLETED)
    watching.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.wait([watching])
    await sandbox.stop()
    if not watching.cancelled() and watching.exception():
        raise SandboxError(f"the supervisor failed: {watching.exception()!r}")
    return 0


def _project(options: argparse.Namespace) -> Path | None:
    project: Path | None = options.airflow
    return project


def _start_in_background(
    options: argparse.Namespace, say: Callable[[str], object], look: Callable[[str], object] = lambda _: None
) -> None:
    log = options.state / "logs/supervisor.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    ports = [part for name, number in options.port for part in ("--port", f"{name}={number}")]
    argv = [sys.executable, "-m", "sandbox", "up", "--foreground", "--state", str(options.state), *ports]
    argv += ["--airflow", str(options.airflow)] if options.airflow else []
    package = str(Path(__file__).resolve().parents[1])
    paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
    # A supervisor that was killed left one that says "ready".
    (options.state / status.FILE).unlink(missing_ok=True)
    with log.open("w") as out:
        supervisor = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        )
    try:
        _show_until_ready(options.state, supervisor, log, say, look)
    except KeyboardInterrupt:
        supervisor.terminate()
        supervisor.wait()
        raise SandboxError("interrupted; everything is stopped") from None


def _show_until_ready(
    state: Path,
    supervisor: subprocess.Popen[bytes],
    log: Path,
    say: Callable[[str], object],
    look: Callable[[str], object],
) -> None:
    """Says what the supervisor says until it is ready; `look` is told which parts are not. Raises SandboxError with its
    last line if it ends."""
    awaited: list[str] = []
    with log.open() as lines:
        while True:
            ended = supervisor.poll() is not None
            line = lines.readline().rstrip("\n")
            if line.startswith("sandbox: "):
                raise SandboxError(line.removeprefix("sandbox: "))
            if line:
                say(line)
                if line.startswith(status.STARTING):
                    awaited = line.removeprefix(status.STARTING).split(", ")
                awaited = [name for name in awaited if line.split()[0] != name]
            elif ended:
                raise SandboxError(f"the supervisor ended with code {supervisor.returncode}; {log} says why")
            elif status.is_ready(state):
                return
            else:
                look(", ".join(awaited) or "the supervisor")
                time.sleep(0.05)


def _down(options: argparse.Namespace) -> int:
    """Stops the sandbox and whatever a killed supervisor left behind. Nothing to stop is no error."""
    supervisor = status.supervisor(options.state)
    if supervisor is not None:
        with contextlib.suppress(psutil.NoSuchProcess):
            supervisor.send_signal(signal.SIGTERM)
        with contextlib.suppress(psutil.TimeoutExpired):
            supervisor.wait(15)
    left = process.processes(options.state)
    if supervisor is not None and supervisor.is_running() and supervisor.status() != psutil.STATUS_ZOMBIE:
        left.append(supervisor)
    process.end(left)
    (options.state / status.FILE).unlink(missing_ok=True)
    shutil.rmtree(process.short_folder(options.state), ignore_errors=True)
    survivors = process.processes(options.state)
    if survivors:
        raise SandboxError(f"these processes do not end: {', '.join(str(one.pid) for one in survivors)}")
    print(f"The sandbox in {options.state} is stopped.")
    return 0


def _status(options: argparse.Namespace) -> int:
    """Says what runs; exit code 1 if the sandbox is not ready."""
    found = status.status(options.state)
    if options.json:
        print(json.dumps(found))
    elif not found["parts"]:
        print(f"No sandbox runs in {options.state}. `make up` starts one, `make release` shows releases in one.")
    else:
        for name, part in found["parts"].items():
            print(f"{name:<11} {'running' if part['running'] else 'stopped':<8} {part['url']}")
        print(f"{found['processes']} processes, {found['memory_mb']} MB")
    return 0 if found["ready"] else 1


def _load(options: argparse.Namespace) -> int:
    """Starts the load, changes it, ends it, or (without options) shows what it counted."""
    _need_supervisor(options.state)
    wishes = Wishes.read(options.state)
    if options.end:
        wishes.with_load(None).write(options.state)
    elif options.service or options.rate:
        before = wishes.load
        service = options.service or (before.service if before else "")
        rate = options.rate or (before.rate if before else 20.0)
        wishes.with_load(Load(service, rate)).write(options.state)
        _until(options.state, lambda: (options.state / "load.json").exists(), "the load")
    else:
        print(json.dumps(status.status(options.state)["load"], indent=1))
    return 0


def _stop_part(options: argparse.Namespace) -> int:
    """Stops one part and keeps it stopped, for fault tests."""
    _need_supervisor(options.state)
    Wishes.read(options.state).without(options.part).write(options.state)
    _until(options.state, lambda: not status.part_runs(options.state, options.part), options.part)
    return 0


def _start_part(options: argparse.Namespace) -> int:
    """Starts a part that was stopped."""
    _need_supervisor(options.state)
    Wishes.read(options.state).including(options.part).write(options.state)
    _until(options.state, lambda: status.part_runs(options.state, options.part), options.part)
    return 0


def _kill(options: argparse.Namespace) -> int:
    """Kills a revision's processes, as the kernel does with one that takes too much memory."""
    victims = process.processes(options.state, options.revision)
    if not victims or "/" not in options.revision:
        raise SandboxError(f"no process of revision {options.revision}: write namespace/revision of one that runs")
    for victim in victims:
        with contextlib.suppress(psutil.NoSuchProcess):
            victim.kill()
    print(f"Killed {len(victims)} processes of {options.revision}.")
    return 0


def _logs(options: argparse.Namespace) -> int:
    """Shows the end of a part's log."""
    folder: Path = options.state / "logs"
    names = sorted(file.stem for file in folder.glob("*.log"))
    if options.part not in names:
        raise SandboxError(f"no log of {options.part}: there are {', '.join(names) or 'none yet'}")
    print(process.tail(folder / f"{options.part}.log", options.lines))
    return 0


def _need_supervisor(state: Path) -> None:
    if status.supervisor(state) is None:
        raise SandboxError(f"no sandbox runs in {state}: start it with `python -m sandbox up`")


def _until(state: Path, holds: Callable[[], bool], what: str) -> None:
    """Waits for what the supervisor was asked to do; one that has ended meanwhile will not do it."""
    deadline = time.monotonic() + process.PATIENCE
    while not holds():
        if status.supervisor(state) is None:
            raise SandboxError(f"the sandbox ended before {what} was done; `python -m sandbox logs` says more")
        if time.monotonic() > deadline:
            raise SandboxError(
                f"{what} does not do so within {process.PATIENCE:.0f} s; `python -m sandbox logs` says more"
            )
        time.sleep(0.05)


def _port(text: str) -> tuple[str, int]:
    name, _, number = text.partition("=")
    if not name or not number.isdigit() or not 1024 <= int(number) <= 55_535:
        raise argparse.ArgumentTypeError(f"{text}: write NAME=NUMBER, with a number from 1024 to 55535")
    return name, int(number)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="sandbox", description="A cluster's stand-in for a laptop.")
    commands = parser.add_subparsers(required=True, metavar="command")

    def command(name: str, run: object) -> argparse.ArgumentParser:
        text = (run.__doc__ or "").splitlines()[0]
        added = commands.add_parser(name, help=text, description=text)
        added.add_argument("--state", type=Path, default=DEFAULT_STATE, help="the state folder (.sandbox)")
        added.set_defaults(run=run)
        return added

    up = command("up", _up)
    up.add_argument(
        "--airflow",
        type=Path,
        nargs="?",
        const=programs.REPOSITORY,
        metavar="PROJECT",
        help="with Airflow, for the DAGs of that folder (this repository)",
    )
    up.add_argument("--foreground", action="store_true", help="stay, and stop everything on Ctrl-C")
    release = command("release", _release)
    release.add_argument("--airflow", type=Path, default=programs.REPOSITORY, metavar="PROJECT", help="whose DAGs")
    release.add_argument("--picture", type=Path, metavar="FILE", help="draw the last release as an SVG")
    release.add_argument("--runtime", choices=("torchserve", "kserve"), default="torchserve", help="what serves it")
    release.add_argument("--story", choices=("bad", "wrong"), default="bad", help="which bad version it ends with")
    release.set_defaults(foreground=False)
    walk = command("walkthrough", _walkthrough)
    walk.add_argument("--airflow", type=Path, default=programs.REPOSITORY, metavar="PROJECT", help="whose DAGs")
    walk.add_argument("--page", type=Path, metavar="FILE", help="write it down, charts in a folder beside the file")
    walk.set_defaults(foreground=False)
    for starting in (up, release, walk):
        starting.add_argument(
            "--port", type=_port, action="append", default=[], metavar="NAME=NUMBER", help="fix a port"
        )
    command("down", _down)
    command("status", _status).add_argument("--json", action="store_true")
    load = command("load", _load)
    load.add_argument("--service", help="namespace/name")
    load.add_argument("--rate", type=float, help="requests a second (20)")
    load.add_argument("--end", action="store_true", help="end the load")
    command("stop", _stop_part).add_argument("part", choices=_PARTS)
    command("start", _start_part).add_argument("part", choices=_PARTS)
    command("kill", _kill).add_argument("revision", help="namespace/revision")
    logs = command("logs", _logs)
    logs.add_argument("part", nargs="?", default="supervisor")
    logs.add_argument("--lines", type=int, default=50)
    return parser


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    sys.exit(main())
