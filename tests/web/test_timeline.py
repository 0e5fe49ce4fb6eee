"""What a release's page tells of its way: the pins of its track, and the events, by what the record says."""

from __future__ import annotations

from typing import Any

import pytest

from model_release.spec import ModelSpec
from model_release.web import words
from model_release.web.release import release
from model_release.web.timeline import marks, timeline

from .makers import record_of, spec


def traffic(record: Any) -> list[tuple[str, str | None]]:
    """Word and mark of each change of traffic."""
    return [(one["word"], one["mark"]) for one in timeline(record) if one["kind"] == "traffic"]


@pytest.mark.parametrize(
    ("outcome", "rate", "track", "told"),
    [
        (
            "promoted",
            0.0,
            {0: "done", 10: "done", 30: "done", 100: "done"},
            ["Staged at 0 %", "Opened at 10 %", "Opened at 30 %", "All of the traffic", "Settled"],
        ),
        (
            "rolled_back",
            0.2,
            {0: "done", 10: "done", 100: "open"},
            ["Staged at 0 %", "Opened at 10 %", "Taken back", "Settled"],
        ),
    ],
)
def test_a_release_has_come_as_far_as_its_canary_did(
    outcome: str, rate: float, track: dict[int, str], told: list[str]
) -> None:
    one = spec("digits")
    record = record_of(one, outcome=outcome, rate=rate)
    shown = release(record, one, {})
    assert {pin["percent"]: pin["state"] for pin in shown["track"]} == track
    assert [word for word, _ in traffic(record)] == told


def test_the_way_of_a_ramp_is_as_far_as_it_came_and_what_it_may_reach() -> None:
    record = record_of(spec("digits"), outcome=None, rate=0.0)
    given = spec("digits").model_dump(mode="json")
    ramped = ModelSpec.model_validate({**given, "rollout": {"ramp": {"budget": 20, "most": 35}}})
    shown = {pin["percent"]: pin["state"] for pin in release(record, ramped, {})["track"]}
    came = {int(one["percent"]) for one in record.traffic}
    assert set(shown) == {0, *came, 35, 100}
    assert (shown[max(came)], shown[35]) == ("now", "open")


def test_a_settling_that_took_the_traffic_back_is_told_as_that() -> None:
    record = record_of(spec("digits"), outcome=None, rate=0.0)
    opened = record.traffic[-1]
    assert opened["percent"] > 0
    record.record_traffic("2099-01-01T00:00:00.000+00:00", "settle", 0, {"digits-predictor-00001": 100})
    assert traffic(record)[-1] == ("Taken back", "0 %")
    assert marks(record)[-1]["tone"] == "bad"


def test_a_step_that_passed_is_not_called_promoted_before_the_release_is() -> None:
    assert words.passed("Promoted: 0 of 207 canary requests failed.") == "Passed: 0 of 207 canary requests failed."
    assert words.passed("Rolled back: 15 of 128 failed.") == "Rolled back: 15 of 128 failed."
    assert words.passed(None) == ""
