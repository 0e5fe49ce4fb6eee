from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.patience import until

from sandbox import process
from sandbox.errors import SandboxError
from sandbox.process import Child


def child(state: Path, script: str, **options: float) -> Child:
    return Child("part", ["/bin/sh", "-c", script], state_dir=state, log=state / "part.log", **options)


async def test_stop_ends_the_whole_group_even_if_it_ignores_sigterm(state: Path) -> None:
    stubborn = child(state, "trap '' TERM; sleep 3600 & sleep 3600 & echo up; wait; sleep 3600", grace=0.2)
    await stubborn.start()
    until(lambda: "up" in stubborn.tail())
    assert len(process.processes(state)) == 3
    await stubborn.stop()
    assert process.processes(state) == []
    assert stubborn.exit_code == 137
    await stubborn.stop()  # twice is once


async def test_what_a_crashed_program_leaves_behind_is_ended(state: Path) -> None:
    crashing = child(state, "sleep 3600 & echo gone wrong; exit 3")
    await crashing.start()
    assert await crashing.wait() == 3
    assert process.processes(state) == []
    assert crashing.tail() == "gone wrong"


async def test_starting_again_runs_one_process_only(state: Path) -> None:
    sleeper = child(state, "sleep 3600")
    await sleeper.start()
    first = sleeper.pid
    await sleeper.start()
    assert sleeper.pid == first
    await sleeper.stop()
    await sleeper.start()
    assert sleeper.running
    assert sleeper.pid != first
    await sleeper.stop()


async def test_the_supervisors_secrets_are_not_inherited(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "very secret")
    curious = child(state, "env")
    await curious.start()
    await curious.wait()
    assert "very secret" not in curious.tail(100)
    assert f"{process.MARK}={state}" in curious.tail(100)


async def test_a_program_that_is_not_there_is_one_line(state: Path) -> None:
    with pytest.raises(SandboxError, match=r"^part: cannot start /no/such/program: No such file or directory$"):
        await Child("part", ["/no/such/program"], state_dir=state, log=state / "part.log").start()


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal is Linux's")
def test_children_die_with_a_killed_supervisor(state: Path) -> None:
    script = (
        "import asyncio, sys; from pathlib import Path; from sandbox.process import Child\n"
        "async def main():\n"
        "    state = Path(sys.argv[1])\n"
        "    await Child('part', ['sleep', '3600'], state_dir=state, log=state / 'part.log').start()\n"
        "    await asyncio.sleep(3600)\n"
        "asyncio.run(main())\n"
    )
    include = Path(process.__file__).parents[1]
    supervisor = subprocess.Popen([sys.executable, "-c", script, state], env={**os.environ, "PYTHONPATH": str(include)})
    until(lambda: process.processes(state))
    supervisor.send_signal(signal.SIGKILL)
    supervisor.wait()
    until(lambda: not process.processes(state))


async def test_orphans_are_found_by_name_and_ended(state: Path) -> None:
    one = Child("models/r-00001/a", ["sleep", "3600"], state_dir=state, log=state / "1.log")
    other = Child("models/r-00001b/a", ["sleep", "3600"], state_dir=state, log=state / "2.log")
    await one.start()
    await other.start()
    assert [found.pid for found in process.processes(state, "models/r-00001")] == [one.pid]
    assert process.processes(state.parent / "another") == []
    process.end(process.processes(state))
    assert process.processes(state) == []
    await one.stop()
    await other.stop()


def test_the_short_folder_is_short_private_and_always_the_same(tmp_path: Path) -> None:
    long = tmp_path / ("x" * 100)
    folder = process.short_folder(long)
    assert folder == process.short_folder(long)
    assert folder != process.short_folder(tmp_path)
    assert len(str(folder)) < 40
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.rmdir()
    process.short_folder(tmp_path).rmdir()


def test_a_short_folder_of_somebody_else_is_refused(tmp_path: Path) -> None:
    folder = process.short_folder(tmp_path)
    folder.rmdir()
    folder.symlink_to(tmp_path)
    try:
        with pytest.raises(SandboxError, match="belongs to somebody else; remove it"):
            process.short_folder(tmp_path)
    finally:
        folder.unlink()
