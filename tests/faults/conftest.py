"""One scene for all faults of a session; the table of what was seen is written at its end.

`FAULTS_TABLE=tests/faults/README.md` says where. With `FAULTS_KEPT=FILE` too, the matrix can be run in pieces: what
other pieces saw is kept there and written with this one's.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from .scene import Row, Scene, built
from .table import table

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
            rows, outcomes = _with_other_pieces(made.rows)
            Path(where).write_text(table(rows, outcomes), encoding="utf-8")


@pytest.fixture(autouse=True)
def _left_at_rest(request: pytest.FixtureRequest, scene: Scene) -> Iterator[None]:
    """A test that fails in the midst of a release leaves it to nobody: the next ones begin on a service at rest."""
    yield
    if not _outcomes.get(request.node.name, True):
        scene.end_all()


@pytest.fixture
def unguarded(scene: Scene) -> Iterator[None]:
    """Without the guard, which would be there before the fault is."""
    with scene.unguarded():
        yield


def _with_other_pieces(rows: list[Row]) -> tuple[list[Row], dict[str, bool]]:
    """What was seen now, and of the tests that did not run now, what is kept of them."""
    if not (file := os.environ.get("FAULTS_KEPT")):
        return rows, _outcomes
    kept = json.loads(Path(file).read_text()) if Path(file).exists() else {"rows": [], "outcomes": {}}
    others = [Row(**row) for row in kept["rows"] if row["test"] not in _outcomes]
    everything, outcomes = [*others, *rows], {**kept["outcomes"], **_outcomes}
    Path(file).write_text(json.dumps({"rows": [asdict(row) for row in everything], "outcomes": outcomes}, indent=1))
    return everything, outcomes
