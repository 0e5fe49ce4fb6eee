"""One scene for all faults of a session, and the table of what was seen.

`FAULTS_TABLE=tests/faults/README.md pytest tests/faults` writes it. A row stands for checks that all passed; a test
that did not pass is named.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .scene import RATE, Scene, built

TABLE = """# What was done to releases, and how each ended

Written by a run of `tests/faults` on {day}: {count} faults against a real Airflow (scheduler, triggerer,
LocalExecutor), with {rate:.0f} requests of users a second. After each the same was checked from outside: one revision
answers at the front door, has 100 % in status and spec, holds the right version, and had answered a smoke prediction;
no split and no lease is left. Rows with one last sentence are faults of one release. {tests}

| fault | during | ended | last sentence of the decision record | traffic ends on | users' requests during it |
|---|---|---|---|---|---|
{rows}
"""

_outcomes: dict[str, bool] = {}


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    name = report.nodeid.split("::")[-1]
    if "tests/faults/" in report.nodeid and (report.when == "call" or report.failed):
        _outcomes[name] = _outcomes.get(name, True) and report.passed


@pytest.fixture(scope="session")
def scene(live: Any) -> Iterator[Scene]:
    for made in built(live):
        yield made
        if where := os.environ.get("FAULTS_TABLE"):
            Path(where).write_text(_table(made), encoding="utf-8")


def _table(scene: Scene) -> str:
    from datetime import UTC, datetime

    rows = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in scene.rows)
    failed = [name for name, passed in _outcomes.items() if not passed]
    tests = f"All {len(_outcomes)} tests passed." if not failed else f"Not passed: {', '.join(failed)}."
    day = f"{datetime.now(UTC):%Y-%m-%d}"
    return TABLE.format(day=day, count=len(scene.rows), rate=RATE, tests=tests, rows=rows)
