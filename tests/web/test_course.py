"""What the charts of a release are drawn from: each metric after each look."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from model_release.judging import Judge, Past, Policy, Side, Window
from model_release.judging.record import Record
from model_release.web.course import LINES, course
from model_release.web.evidence import evidence

from .conftest import Open
from .makers import NOW, record_of, spec
from .world import World

ONE = spec("faces")


def ill_record(looks: int = 12, ill: range = range(4, 9), min_requests: int = 10**6) -> Record:
    """A canary of which stable fails, too, for some windows."""
    windows = []
    for i in range(looks):
        begin = NOW + timedelta(seconds=10 * i)
        bad = 0.05 if i in ill else 0.0
        windows.append(
            Window(
                canary=Side(100, {"errors": round(100 * bad), "slow": 0}),
                stable=Side(900, {"errors": round(900 * bad), "slow": 9}),
                start=begin.isoformat(),
                end=(begin + timedelta(seconds=10)).isoformat(),
                share=0.1,
            )
        )
    record = record_of(ONE, outcome=None)
    policy = Policy.from_dict(ONE.policy(10) | {"min_requests": min_requests})
    judge = Judge(policy, Past())
    judge.extend(windows)
    record.steps = []
    record.record_step(
        10, NOW.isoformat(), window_seconds=10, policy=policy, windows=windows, final=False, verdict=judge.verdict()
    )
    return record


def test_each_metric_has_its_share_its_interval_and_its_limits_after_each_look() -> None:
    record = record_of(ONE)
    told = evidence(record)["course"]
    assert set(told["metrics"]) == {"errors", "slow"}
    for of in told["metrics"].values():
        assert {len(of[line]) for line in (*LINES, "aside")} == {len(told["times"])}
    errors = told["metrics"]["errors"]
    known = [i for i, value in enumerate(errors["canary"]) if value is not None]
    for i in known:
        assert errors["lower"][i] <= errors["canary"][i] <= errors["upper"][i]
        assert errors["limit"][i] == pytest.approx(1.5 * max(errors["stable"][i], 0.005)), (
            "1.5 x stable is the nearer one"
        )
        assert errors["beyond"][i] == pytest.approx(2 * errors["limit"][i]), "judge.indifference"
    assert told["metrics"]["slow"]["limit"][known[0]] == 0.05
    windows = record.steps[0]["windows"]
    assert errors["window"][0] == windows[0]["canary"]["bad"]["errors"] / windows[0]["canary"]["requests"]
    assert told["against"][0] == max(of["against"][0] for of in told["metrics"].values())
    assert told["for"][0] == min(of["for"][0] for of in told["metrics"].values())


def test_the_share_of_the_traffic_rises_when_it_was_opened() -> None:
    record = record_of(ONE)
    told = evidence(record)["course"]
    gap = len(record.steps[0]["windows"])
    assert told["percent"] == [10] * (gap + 1) + [30] * (len(told["times"]) - gap - 1)
    assert told["times"][gap] == pytest.approx(told["times"][gap + 1] - 10, abs=0.01), "the moment of the opening"


def test_windows_that_were_set_aside_are_marked() -> None:
    record = ill_record()
    told = evidence(record)
    aside = told["course"]["metrics"]["errors"]["aside"]
    (metric, _) = told["metrics"]
    assert sum(aside) == metric["set_aside"] > 0
    assert not any(aside[:4]), "nothing was wrong yet"
    assert not any(told["course"]["metrics"]["slow"]["aside"])


@pytest.mark.parametrize(
    ("min_requests", "state", "said"),
    [
        (10**6, "undecided", "Stable was failing too: {} windows set aside."),
        (1, "pass", "Stable failed in {} windows."),
    ],
)
def test_what_is_said_of_a_failing_stable_is_true_of_how_it_ended(
    min_requests: int, state: str, said: str, world: World, browse: Open
) -> None:
    """What passes keeps its limit with those windows and without them: none of them is set aside any more."""
    record = next(one for one in world.records.values() if one.model == "faces")
    record.steps[:] = ill_record(60, range(40, 45), min_requests).steps
    (metric, _) = evidence(record)["metrics"]
    assert metric["state"]["name"] == state
    assert said.format(metric["set_aside"]) in browse().get(f"/releases/{record.release}").text


def test_evidence_that_is_carried_has_no_gap_and_one_that_begins_anew_has() -> None:
    record = ill_record()
    looks = record.replay()
    steps: dict[tuple[int, str], Any] = {(10, NOW.isoformat()): record.steps[0]}
    later = (NOW + timedelta(seconds=60)).isoformat()
    moved = [replace(look, percent=30, opened=later) if look.window > 6 else look for look in looks]
    own = course(moved, steps | {(30, later): record.steps[0]})
    carried = course(moved, steps | {(30, later): record.steps[0] | {"carried": [[NOW.isoformat(), 6]]}})
    assert (len(own["times"]), len(carried["times"])) == (13, 12)
    assert own["for"][6] is None
    assert None not in carried["for"]
    assert carried["percent"] == [10] * 6 + [30] * 6


def test_what_was_not_counted_is_a_gap_and_a_policy_without_limits_has_none() -> None:
    record = ill_record(looks=3)
    record.steps[0]["windows"][1]["canary"] = {"requests": None, "bad": {"errors": None, "slow": None}}
    told = evidence(record)["course"]["metrics"]["errors"]
    assert told["window"][1] is None
    assert told["canary"][1] == told["canary"][0]
    bare = ill_record(looks=2)
    bare.steps[0]["policy"]["metrics"][0] = {"name": "errors", "observe": True}
    told = evidence(bare)["course"]["metrics"]["errors"]
    assert told["limit"] == told["beyond"] == [None, None]
