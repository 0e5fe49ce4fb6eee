"""What a person sees in the first minute: what is waited for, what is trained beside it, and what went wrong."""

from __future__ import annotations

import io
import re
import time
from pathlib import Path

import pytest
from rich.console import Console

from sandbox import __main__ as command
from sandbox import status
from sandbox.demo import Candidates
from sandbox.digits import READY
from sandbox.errors import SandboxError
from sandbox.waiting import Waiting, clock

from .test_process import until


def console(terminal: bool, record: bool = False) -> tuple[Console, io.StringIO]:
    written = io.StringIO()
    return Console(file=written, force_terminal=terminal, record=record, width=100), written


def test_on_a_terminal_a_line_moves_that_says_what_is_waited_for() -> None:
    shown, written = console(terminal=True)
    with Waiting(shown) as waiting:
        waiting.on("airflow, s3")
        until(lambda: "0:00 airflow, s3" in written.getvalue())
        frames = len(written.getvalue())
        until(lambda: len(written.getvalue()) > frames)
        waiting.on("airflow")
        until(lambda: re.search(r"0:0\d airflow\s*\x1b", written.getvalue()))


@pytest.mark.parametrize("options", [{"terminal": False}, {"terminal": True, "record": True}])
def test_elsewhere_and_in_a_picture_there_are_only_lines(options: dict[str, bool]) -> None:
    shown, written = console(**options)
    with Waiting(shown) as waiting:
        waiting.on("airflow")
        shown.print("s3 is ready")
    assert written.getvalue() == "s3 is ready\n"


def test_the_time_begins_anew_with_what_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    waiting = Waiting(console(terminal=False)[0])
    waiting.on("airflow")
    now[0] += 67
    waiting.on("airflow")
    assert waiting.__rich__().plain == "1:07 airflow"
    waiting.on("export")
    assert waiting.__rich__().plain == "0:00 export"
    assert clock(601.9) == "10:01"


class Supervisor:
    """Writes a line into its log, or None, at each look at whether it runs; `then` comes when there is no more."""

    returncode = 3

    def __init__(self, log: Path, lines: list[str | None], then: object) -> None:
        self._log, self._lines, self._then = log, lines, then

    def poll(self) -> int | None:
        if not self._lines:
            return self._then() if callable(self._then) else 3
        line = self._lines.pop(0)
        if line is not None:
            with self._log.open("a") as log:
                log.write(f"{line}\n")
        return None


def test_the_parts_that_are_not_ready_are_named_until_none_is_left(tmp_path: Path) -> None:
    log, said, looked = tmp_path / "supervisor.log", list[str](), list[str]()
    log.touch()

    def ready() -> None:
        (tmp_path / status.FILE).write_text('{"ready": true, "parts": {}}')

    lines = ["Starting airflow, envoy, s3", "  s3          ready after  1.0 s", None, "  airflow     ready after", None]
    supervisor = Supervisor(log, lines, ready)
    command._show_until_ready(tmp_path, supervisor, log, said.append, looked.append)
    assert [line.split()[0] for line in said] == ["Starting", "s3", "airflow"]
    assert looked == ["airflow, envoy", "envoy"]


def test_a_supervisor_that_ends_before_it_is_ready_is_one_line(tmp_path: Path) -> None:
    log = tmp_path / "supervisor.log"
    log.touch()
    for lines, line in (
        (["Starting s3", "sandbox: port 8333 is taken"], "port 8333 is taken"),
        (["Starting s3"], f"the supervisor ended with code 3; {log} says why"),
    ):
        log.write_text("")
        with pytest.raises(SandboxError, match=re.escape(line)):
            command._show_until_ready(
                tmp_path, Supervisor(log, lines, None), log, lambda _: None, lambda _: None
            )  # fmt: skip


def test_what_another_command_starts_is_waited_for_and_what_it_does_not_start_is_one_line(tmp_path: Path) -> None:
    ready, said = tmp_path / status.FILE, list[str]()
    with status.sole_supervisor(tmp_path):

        def say(line: str) -> None:
            said.append(line)
            ready.write_text('{"ready": true, "parts": {}}')

        command._wait_for_another(tmp_path, say)
        command._wait_for_another(tmp_path, say)
    assert [re.sub(r".* (is being started|runs already).*", r"\1", line) for line in said] == [
        "is being started",
        "runs already",
        "runs already",
    ]
    ready.unlink()
    with pytest.raises(SandboxError, match="ended before its start was done"):
        command._wait_for_another(tmp_path, said.append)


def test_one_story_at_a_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with status.sole_story(tmp_path):
        assert command.main(["release", "--state", str(tmp_path)]) == 1
    assert "is under way in" in capsys.readouterr().err


NAMES = ("first", "better")


@pytest.fixture
def training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Python that trains nothing, but says what the real one says: `sandbox.digits` below this folder."""
    package = tmp_path / "include" / "sandbox"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    monkeypatch.setattr("sandbox.demo.__file__", str(package / "demo.py"))
    return package / "digits.py"


@pytest.mark.stack
def test_a_candidate_is_waited_for_alone_and_the_others_go_on(training: Path, tmp_path: Path) -> None:
    training.write_text(
        "import pathlib, sys, time\n"
        f"print('first: epoch 10/10', 'first{READY}', 'better: epoch 5/26', sep='\\n', flush=True)\n"
        "while not pathlib.Path(sys.argv[2], 'go').exists(): time.sleep(0.01)\n"
        f"print('better{READY}', flush=True)\n"
    )
    shown, written = console(terminal=False)
    with (
        Candidates(tmp_path, tmp_path / "evaluation", shown, NAMES) as candidates,
        Waiting(shown) as waiting,
    ):
        candidates.wait_for("first", waiting)
        assert "first: epoch 10/10" in written.getvalue()
        assert READY not in written.getvalue()
        candidates.folder.mkdir()
        (candidates.folder / "go").touch()
        candidates.wait_for("better", waiting)
        with pytest.raises(SandboxError, match=r"^candidate bad was not trained: code 0; .*training\.log says more$"):
            candidates.wait_for("bad", waiting)


@pytest.mark.stack
def test_a_training_that_fails_is_one_line_and_one_that_is_left_ends(training: Path, tmp_path: Path) -> None:
    training.write_text("import sys\nsys.exit('No space left on device')\n")
    shown, _ = console(terminal=False)
    line = r"^candidate first was not trained: No space left on device; .*training\.log says more$"
    with (
        Candidates(tmp_path, tmp_path / "evaluation", shown, NAMES) as candidates,
        Waiting(shown) as waiting,
        pytest.raises(SandboxError, match=line),
    ):
        candidates.wait_for("first", waiting)
    training.write_text("import time\ntime.sleep(600)\n")
    with Candidates(tmp_path, tmp_path / "evaluation", shown, NAMES) as candidates:
        left = candidates._training
        assert left.poll() is None
    assert left.poll() is not None
