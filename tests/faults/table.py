"""The table in README.md: `FAULTS_TABLE=tests/faults/README.md pytest tests/faults` writes it.

A row stands for checks that all passed; a test that did not pass, or has not run, is named.
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

Written by a run of `tests/faults` on {day}: {cells} cells, {faults} faults at {stages} stages, against a real Airflow
(scheduler, triggerer, LocalExecutor) and the sandbox, with {rate:.0f} requests of users a second. After each the same
was checked from outside: one revision answers at the front door, has 100 % in status and spec, holds the right version,
and had answered a smoke prediction, as had every revision that a user met; no split, no lease, no half version and no
process of a build is left; the record's last sentence says what happened. {tests}

A cell stands here only when all of its checks held: none of the {cells} ends on an unproven revision, or leaves a
canary that nobody watches.

## Fault by stage

In a cell: how the release ended. Empty: not done to it there, or it cannot happen there.

{matrix}

## Each cell

Cells with one last sentence are faults of one release. "Requests" are the users' while it was under way, with those
that failed and by whose hand.

{details}
"""


def table(rows: Sequence[Row], outcomes: Mapping[str, bool]) -> str:
    """The whole page."""
    failed = [name for name, passed in outcomes.items() if not passed]
    # Nor does a row stand for a test that was cut off: it never said that all of its checks held.
    rows = [row for row in rows if outcomes.get(row.test)]
    missing = sorted(_every_test() - set(outcomes))
    tests = f"Of {len(outcomes) + len(missing)} tests {sum(outcomes.values())} passed."
    tests += f" Not passed: {', '.join(failed)}." if failed else ""
    tests += f" Not run to their end, so nothing is said of their faults: {', '.join(missing)}." if missing else ""
    stages = [stage for stage in STAGES if any(row.stage == stage for row in rows)]
    faults = sorted({row.fault for row in rows}, key=str.casefold)
    matrix = [["fault", *stages], ["---"] * (len(stages) + 1)]
    for fault in faults:
        ended = {row.stage: row.ended for row in rows if row.fault == fault}
        matrix.append([fault, *(ended.get(stage, "") for stage in stages)])
    details = [
        ["fault", "during", "ended", "last sentence of the decision record", "traffic ends on", "requests"],
        ["---"] * 6,
        *(
            [row.fault, row.stage, row.ended, row.sentence, row.traffic, row.users]
            for row in sorted(rows, key=lambda row: (row.fault.casefold(), STAGES.index(row.stage)))
        ),
    ]
    return PAGE.format(
        day=f"{datetime.now(UTC):%Y-%m-%d}",
        cells=len(rows),
        faults=len(faults),
        stages=len(stages),
        rate=RATE,
        tests=tests,
        matrix=_markdown(matrix),
        details=_markdown(details),
    )


def _every_test() -> set[str]:
    """The names of all tests of the matrix: a run in pieces must not hide what no piece ran."""
    files = Path(__file__).parent.glob("test_*.py")
    return {name for file in files for name in re.findall(r"^def (test_\w+)", file.read_text(), re.MULTILINE)}


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)
