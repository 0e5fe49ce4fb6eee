"""The page README.md: `FAULTS_TABLE=tests/faults/README.md pytest tests/faults` writes it.

A cell stands for checks that all passed; a test that did not pass, or has not run, is named instead.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from .models import RATE
from .scene import Row

STAGES = ("build", "claim", "stage", "open", "watch", "decide", "promote", "roll back", "bake", "settle", "afterwards")

PAGE = """# What was done to releases, and how each ended

Written by runs of `tests/faults` on {day}: {cells} cells, {faults} faults at {stages} stages in {releases} releases,
against a real Airflow (scheduler, triggerer, LocalExecutor) and the sandbox, with {rate:.0f} requests of users a
second. {passed} of {tests} tests passed.

After each release the same was checked from outside:

- one revision answers at the front door, has 100 % in status and spec, and holds the right version;
- it had answered a smoke prediction, as had every revision that a user met, but for one that somebody made by hand and
  gave traffic, whose requests are counted;
- no request failed but on a revision that the fault itself broke, or while the fault left nobody to answer;
- no split, no lease, no half version and no process of a build is left;
- the run's state and the record's last sentence say what happened.

A cell stands here only when all of that held: none of the {cells} ends on an unproven revision, or leaves a canary that
nobody watches.
{unproven}
## Fault by stage

In a cell: how the release ended. Empty: not done to it there, or it cannot happen there.

{matrix}

## Each release

What was done to it and at which stage, with the last sentence of its decision record. Requests are the users' while it
was under way, with those that failed and on which revision (`-`: nobody answered).

{details}
"""


def table(rows: Sequence[Row], outcomes: Mapping[str, bool]) -> str:
    """The whole page."""
    # Nor does a row stand for a test that was cut off: it never said that all of its checks held.
    rows = [row for row in rows if outcomes.get(row.test)]
    missing = sorted(_every_test() - {name.partition("[")[0] for name in outcomes})  # without its parameters
    failed = sorted(name for name, passed in outcomes.items() if not passed)
    unproven = _listed("Not passed", failed) + _listed("Not run to their end", missing)
    stages = [stage for stage in STAGES if any(row.stage == stage for row in rows)]
    faults = sorted({row.fault for row in rows}, key=str.casefold)
    matrix = [["fault", *stages], ["---"] * (len(stages) + 1)]
    for fault in faults:
        ended = {row.stage: row.ended for row in rows if row.fault == fault}
        matrix.append([fault, *(ended.get(stage, "") for stage in stages)])
    releases = _by_release(rows)
    details = [["what was done", "how it ended", "traffic ends on", "requests"], ["---"] * 4]
    details += [[_done(done), done[0].sentence, done[0].traffic, done[0].users] for done in releases]
    return PAGE.format(
        day=f"{datetime.now(UTC):%Y-%m-%d}",
        cells=len(rows),
        faults=len(faults),
        stages=len(stages),
        releases=len(releases),
        rate=RATE,
        passed=sum(outcomes.values()),
        tests=len(outcomes) + len(missing),
        unproven=f"\nNothing is said here of the faults of these tests.\n\n{unproven}" if unproven else "",
        matrix=_markdown(matrix),
        details=_markdown(details),
    )


def _by_release(rows: Sequence[Row]) -> list[list[Row]]:
    """The cells of one release together, in the order of the first thing that was done to it."""
    found: dict[tuple[str, str], list[Row]] = {}
    for row in sorted(rows, key=_order):
        found.setdefault((row.release, row.sentence), []).append(row)
    return list(found.values())


def _order(row: Row) -> tuple[str, int]:
    return row.fault.casefold(), STAGES.index(row.stage)


def _done(rows: Sequence[Row]) -> str:
    """`API down: stage, watch`; a line for each fault."""
    stages: dict[str, list[str]] = {}
    for row in rows:
        stages.setdefault(row.fault, []).append(row.stage)
    return "<br>".join(f"**{fault}**: {', '.join(where)}" for fault, where in stages.items())


def _listed(what: str, tests: Sequence[str]) -> str:
    return "\n".join([f"{what}:\n", *(f"- `{test}`" for test in tests), "\n"]) if tests else ""


def _every_test() -> set[str]:
    """The names of all tests of the matrix: a run in pieces must not hide what no piece ran."""
    files = Path(__file__).parent.glob("test_*.py")
    return {name for file in files for name in re.findall(r"^def (test_\w+)", file.read_text(), re.MULTILINE)}


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)
