"""`make test` counts all of its parts, and is never green when one of them is not."""

from __future__ import annotations

import re
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest
from tests.run import MARKS, PARTS, Part, together

PASSED = "tests/test_spec.py ....  [100%]\n===== 4 passed, 7 deselected in 75.31s (0:01:15) =====\n"
FAILED = (
    "tests/test_one.py .FE  [100%]\n==== FAILURES ====\n___ test_it ___\nE  assert 0\n"
    "==== 1 failed, 2 passed, 1 skipped, 2 errors in 3.10s ====\n"
)


def part(name: str, output: str, code: int) -> Part:
    end = f"sys.exit({code})" if code >= 0 else f"os.kill(os.getpid(), {-code})"
    program = f"import os, sys; sys.stdout.write({output!r}); sys.stdout.flush(); {end}"
    one = Part(name)
    one.run([sys.executable, "-c", program])
    return one


def test_all_parts_are_counted_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert together([part("releases", PASSED, 0), part("rest", PASSED, 0)]) == (0, "8 passed, 0 failed")
    lines = [re.sub(r"^\d\d:\d\d ", "", line) for line in capsys.readouterr().out.splitlines()]
    assert lines[:2] == ["releases │ tests/test_spec.py ....  [100%]", "releases │ ended: 4 passed, 0 failed"]


def test_what_failed_is_told_at_the_end_and_not_among_what_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    failed = part("rest", FAILED, 1)
    assert together([part("releases", PASSED, 0), failed]) == (1, "6 passed, 3 failed, 1 skipped")
    assert "assert 0" not in capsys.readouterr().out
    assert "E  assert 0" in failed.told


@pytest.mark.parametrize(("output", "code"), [("", -9), ("no tests ran in 0.10s\n", 5), ("collected 3 items\n", 3)])
def test_a_part_that_crashed_or_found_nothing_is_not_well(output: str, code: int) -> None:
    ended, line = together([part("releases", output, code), part("rest", PASSED, 0)])
    assert (ended, line) == (abs(code), f"4 passed, 0 failed; the releases ended with code {code}")


def test_the_parts_are_all_of_the_tests_but_the_long_ones(tmp_path: Path) -> None:
    """Played with a small tree of the same folders and marks: collecting the whole one takes half a minute."""
    marks = {
        "e2e/test_a.py": ["e2e"],
        "e2e/test_b.py": ["e2e", "walk"],
        "faults/test_a.py": ["faults"],
        "faults/test_b.py": ["e2e"],
        "release/test_a.py": [],
        "judging/test_a.py": ["simulation"],
        "browser/test_a.py": ["e2e", "walk"],
        "browser/test_b.py": [],
        "web/test_a.py": [],
        "commands/test_a.py": [],
        "compose/test_a.py": [],
        "doctor/test_a.py": [],
        "models/test_a.py": ["stack"],
        "handlers/test_a.py": [],
        "sandbox/test_a.py": ["stack"],
        "sandbox/test_quick_and_wrong.py": ["stack"],
        "build/test_a.py": ["stack"],
    }
    for name, own in marks.items():
        file = tmp_path / "tests" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        said = ", ".join(f"pytest.mark.{one}" for one in own)
        file.write_text(f"import pytest\npytestmark = [{said}]\ndef test_it(): pass\n")
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = --import-mode=importlib\nnorecursedirs = .*\n")

    def found(where: list[str]) -> set[str]:
        command = [sys.executable, "-m", "pytest", "-p", "no:asyncio", "-qq", "--collect-only", "-m", MARKS, *where]
        said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True).stdout
        return set(re.findall(r"tests/(\S+\.py)", said.split("warnings summary")[0]))

    assert {name: found(where) for name, where in PARTS.items()} == {
        "releases": {"faults/test_b.py", "e2e/test_a.py"},
        "counting": {
            f"{one}/test_a.py" for one in ("models", "build", "judging", "handlers", "web", "commands", "compose")
        }
        | {"browser/test_b.py", "sandbox/test_quick_and_wrong.py"},
        "rest": {"release/test_a.py", "sandbox/test_a.py", "doctor/test_a.py"},
    }


def test_every_release_is_where_the_part_looks_for_it() -> None:
    folders = PARTS["releases"]
    tests = Path(__file__).parent
    marked = [path for path in tests.rglob("test_*.py") if re.search(r"mark\.e2e\b(?!.*walk)", path.read_text())]
    assert marked
    assert [str(path) for path in marked if f"tests/{path.relative_to(tests).parts[0]}" not in folders] == []


def test_no_folder_of_tests_is_passed_over(pytestconfig: pytest.Config) -> None:
    """By its defaults pytest never looks into a folder named `build`, `dist` or `venv`, and says nothing."""
    tests = Path(__file__).parent
    passed_over = pytestconfig.getini("norecursedirs")
    folders = {part for file in tests.rglob("test_*.py") for part in file.relative_to(tests).parent.parts}
    assert "build" in folders
    assert {one: pattern for one in folders for pattern in passed_over if fnmatch(one, pattern)} == {}
