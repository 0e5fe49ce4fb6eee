"""Leases that the editions before this one have written, with their own code and to an API server: they are read, and
say what they said. Each line of the table is one of tests/data/leases-before.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from model_release.cluster.lease import RELEASE, Lease
from model_release.cluster.release import Phase, Release
from model_release.release.outcome import outcome_of

LEASES = json.loads((Path(__file__).parents[1] / "data" / "leases-before.json").read_text())
#: the commit whose code wrote it, what it said of its stage → phase, share, why it was turned back
TABLE: list[tuple[str, str, Phase, int | None, str | None]] = [
    ("8333b5f", "claimed", Phase.CLAIMED, None, None),
    ("8333b5f", "staged", Phase.STAGED, None, None),
    ("8333b5f", "open at 30 %", Phase.OPEN, 30, None),
    ("8333b5f", "open at 30 %", Phase.CLOSING, None, "Rolled back by anna: users complain"),
    ("8333b5f", "rolled back by root", Phase.CLOSING, None, "Rolled back by root: no reason given"),
    ("8333b5f", "rolling back by hand", Phase.CLOSING, None, "Rolled back by root: no reason given"),
    ("8333b5f", "rolling back", Phase.CLOSING, None, "rolled back; why is in the run's log"),
    ("8333b5f", "rolled back by anna", Phase.CLOSING, None, "Rolled back by anna: broken"),
    ("8333b5f", "go_live", Phase.PROMOTED, None, None),
    ("8333b5f", "open at 50 %", Phase.OPEN, 50, None),
    ("809098b", "claimed", Phase.CLAIMED, None, None),
    ("809098b", "open at 25 %", Phase.OPEN, 25, None),
    ("809098b", "open at 50 %", Phase.OPEN, 50, None),
    ("809098b", "promoting", Phase.PROMOTED, None, None),
    ("809098b", "promote", Phase.PROMOTED, None, None),
    ("809098b", "rolling back", Phase.CLOSING, None, "9 of 30 failed"),
    ("809098b", "rolled back", Phase.RESTORED, 0, "9 of 30 failed"),
    ("809098b", "rolling back", Phase.CLOSING, None, "so far so good"),
    ("809098b", "rolled back", Phase.RESTORED, 0, "so far so good"),
    ("809098b", "open at 25 %", Phase.CLOSING, None, "nobody looked for 63 s"),
    ("809098b", "rolled back by anna", Phase.CLOSING, None, "Rolled back by anna: users complain"),
    ("809098b", "rolled back", Phase.RESTORED, 0, "Rolled back by anna: users complain"),
    ("809098b", "open at 50 %", Phase.OPEN, 50, None),
    ("809098b", "rolling back", Phase.CLOSING, None, "9 of 30"),
    ("809098b", "rolled back", Phase.RESTORED, 0, "9 of 30"),
    ("809098b", "promoting", Phase.PROMOTED, None, None),
    ("809098b", "staging", Phase.STAGED, None, None),
    ("809098b", "staged", Phase.STAGED, None, None),
    ("809098b", "open at 25 %", Phase.OPEN, 25, None),
    ("809098b", "staged", Phase.PROMOTED, None, None),
    ("809098b", "staging", Phase.PROMOTED, None, None),
    ("809098b", "rolled back by root", Phase.CLOSING, None, "Rolled back by root: no reason given"),
    ("809098b", "rolling back by hand", Phase.CLOSING, None, "Rolled back by root: no reason given"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("kept", "row"), list(zip(LEASES, TABLE, strict=True)), ids=[f"{row[0]} {row[1]}" for row in TABLE]
)
def test_it_is_read_as_what_it_was(kept: dict[str, Any], row: tuple[str, str, Phase, int | None, str | None]) -> None:
    edition, stage, phase, percent, closed = row
    lease = Lease(kept["lease"])
    said = json.loads(lease.raw["metadata"]["annotations"][RELEASE])
    assert (kept["written_by"], said["stage"]) == (edition, stage)
    found = lease.release
    assert found is not None
    assert (found.phase, found.percent, found.closed) == (phase, percent, closed)
    assert found.promoted == (said["promoted"] and not closed)
    assert (found.namespace, found.name, found.record) == (lease.namespace, lease.service, said["release"])
    assert (found.canary, found.owner.identity) == (said["canary"], lease.holder)
    assert (found.baseline is None) == (said["baseline"] is None)
    if closed:
        assert outcome_of(found).kind == "rolled_back"
    # Written once more, it is one of this edition, and says the same.
    again = {**kept["lease"]["metadata"]["annotations"], RELEASE: json.dumps(found.as_dict())}
    assert Lease({**kept["lease"], "metadata": {**kept["lease"]["metadata"], "annotations": again}}).release == found


def test_what_it_had_taken_over_is_read_too() -> None:
    said = json.loads(LEASES[0]["lease"]["metadata"]["annotations"][RELEASE])
    found = Release.from_dict({**said, "baseline": None, "inherited": {**said, "stage": "open at 30 %", "percent": 30}})
    assert found.inherited is not None
    assert (found.inherited.phase, found.inherited.percent) == (Phase.OPEN, 30)
    assert found.left == found.inherited
    assert Release.from_dict(found.as_dict()) == found


def test_stretches_of_an_edition_that_did_not_count_their_windows_are_read() -> None:
    """Format 2, written by 265c567: each step was a test of its own then."""
    stretch = {"until": None, "beside_question": False, "again": 0, "why": ""}
    first = {**stretch, "percent": 10, "opened_at": "2026-03-01T02:00:00.000+00:00"}
    written = {
        "format": 2,
        "owner": {"dag_id": "release_digits", "run_id": "manual__1", "url": "u", "installation": "i"},
        "record": "r1",
        "phase": "open",
        "baseline": None,
        "canary": "digits-00002",
        "watches": [
            {**first, "until": "2026-03-01T02:05:00.000+00:00"},
            {**stretch, "percent": 30, "opened_at": "2026-03-01T02:05:02.000+00:00"},
        ],
        "inherited": None,
    }
    found = Release.from_dict(written, "models", "digits")
    assert [(one.percent, one.windows) for one in found.watches] == [(10, None), (30, None)]
    assert (found.percent, found.as_dict()["format"]) == (30, 3)
