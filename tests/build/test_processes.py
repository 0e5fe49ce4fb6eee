"""The process that does what needs torch: how its end is told, what it sees of its parent, and that it ends with it."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.patience import LIMIT, until

from model_release.build import processes
from model_release.errors import ArchiveError, ParityError


def child(program: str, tmp_path: Path, timeout: float = LIMIT) -> Any:
    return processes.run(
        ["-c", program],
        what="the child",
        log=logging.getLogger("child").info,
        env=processes.environment(),
        timeout=timeout,
        cwd=tmp_path,
    )


def test_a_childs_end_is_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match=f"killed by signal {int(signal.SIGKILL)}.*memory"):
        child("import os; os.kill(os.getpid(), 9)", tmp_path)
    with pytest.raises(ArchiveError, match="took more than 1 s and was stopped"):
        child("import time; time.sleep(3600)", tmp_path, timeout=1)
    with pytest.raises(ArchiveError, match="ended with code 1 and without a result: ZeroDivisionError"):
        child("1/0", tmp_path)
    with pytest.raises(ArchiveError, match="ended with code 0 and without a result: no output"):
        child("pass", tmp_path)
    with pytest.raises(ParityError, match=r"^figures$"):
        child('print(\'{"error": "ParityError", "message": "figures"}\'); raise SystemExit(1)', tmp_path)


def test_a_child_that_is_begun_waits_for_what_it_is_to_look_at(tmp_path: Path) -> None:
    program = "import json, sys; sys.stdin.read(); print(json.dumps({'report': open('there').read()}))"
    begun = processes.begun(
        ["-c", program], what="it", log=print, env=processes.environment(), timeout=LIMIT, cwd=tmp_path
    )
    with begun as report:
        (tmp_path / "there").write_text("made meanwhile")
        assert report() == "made meanwhile"


def test_a_child_that_is_begun_for_nothing_ends_with_whoever_began_it(tmp_path: Path) -> None:
    program = "import os, sys; open('pid', 'w').write(f'{os.getpid()} '); sys.stdin.read(); open('looked', 'w')"
    begun = processes.begun(
        ["-c", program], what="it", log=print, env=processes.environment(), timeout=LIMIT, cwd=tmp_path
    )

    def begin() -> None:
        with begun:
            until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text().endswith(" "))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        begin()
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
    assert not (tmp_path / "looked").exists()


def test_a_task_that_is_stopped_takes_its_child_along(tmp_path: Path) -> None:
    class Stopped(Exception):
        pass

    pids: list[int] = []

    def stop(line: str) -> None:
        pids.append(int(line))
        raise Stopped

    program = "import os, time; print(os.getpid(), flush=True); time.sleep(3600)"
    with pytest.raises(Stopped):
        processes.run(
            ["-c", program], what="the child", log=stop, env=processes.environment(), timeout=LIMIT, cwd=tmp_path
        )
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)


def test_a_child_sees_no_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", "secret")
    report = child("import os, json; print(json.dumps({'report': dict(os.environ)}))", tmp_path)
    assert "secret" not in report.values()
    assert report["HF_HUB_OFFLINE"] == "1"


def test_a_task_that_is_killed_takes_its_child_along(tmp_path: Path) -> None:
    """SIGKILL leaves a task no word; Linux ends the child all the same."""
    program = "import os, time; print(os.getpid(), flush=True); time.sleep(3600)"
    task = (
        "from pathlib import Path\n"
        "from model_release.build import processes\n"
        f"processes.run(['-c', {program!r}], what='the child', log=lambda line: print(line, flush=True), "
        f"env=processes.environment(), timeout={LIMIT}, cwd=Path({str(tmp_path)!r}))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", task],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(processes.PACKAGE_ROOT)},
    ) as worker:
        assert worker.stdout is not None
        pid = int(worker.stdout.readline())
        worker.kill()

    def gone() -> bool:
        try:
            return "zombie" in Path(f"/proc/{pid}/status").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return True

    until(gone, "the child goes on alone")
