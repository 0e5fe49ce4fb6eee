"""What a plan says before a release starts."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from model_release.judging import Past, PolicyError
from model_release.judging.foretold import Plan
from model_release.judging.plan import chosen_deadline, plan
from model_release.judging.simulate import bad_requests

from .builders import policy


def ask(*, past: Past | None = None, **more: Any) -> Plan:
    """Ten requests a second at 10 %, unless said."""
    asked: dict[str, Any] = {
        "requests_per_second": 10,
        "deadline_minutes": 30,
        "window_seconds": 10,
    }
    about = {name: more.pop(name) for name in asked if name in more}
    limits = {"max_rate": 0.05} if not more.keys() & {"max_rate", "max_ratio", "metrics"} else {}
    way = {} if more.keys() & {"ramp", "traffic"} else {"shares": [0.1]}
    return plan(policy(**limits, **(way | more)), past=past, **(asked | about))


def past(rate: float, *, requests: int = 100, burst: float = 1, windows: int = 720) -> Past:
    counted = np.full(windows, float(requests))
    bad = bad_requests(np.random.default_rng(5), counted, np.full(windows, rate), burst, requests)
    pairs = zip(counted, bad, strict=True)
    return Past.from_dict({"windows": [{"requests": int(n), "bad": {"errors": int(b)}} for n, b in pairs]})


def mixed_rate(one: Past) -> float:
    return sum(side.bad["errors"] or 0 for side in one.windows) / sum(side.requests or 0 for side in one.windows)


def test_it_says_what_a_good_canary_needs_and_when_a_bad_one_is_found() -> None:
    made = ask(past=past(0.01))
    assert made.possible
    assert made.in_time > 0.95
    assert made.metrics[0].stable_rate == pytest.approx(0.01, rel=0.1)
    assert made.metrics[0].known
    assert 1 < (made.minutes_needed or 0) < 15
    assert 1 < (made.metrics[0].minutes_found or 0) < 15
    assert made.sentences[0].startswith("At 10 requests a second and 10 % of them a good canary needs about ")
    assert "one at twice its limit is found in " in made.sentences[0]
    assert made.refusal == ""


def test_a_past_in_bursts_takes_longer_and_its_incidents_do_not_count() -> None:
    calm, bursts = ask(past=past(0.01)), ask(past=past(0.01, burst=6))
    assert bursts.metrics[0].burst > 4 > 1.5 > calm.metrics[0].burst
    assert (bursts.minutes_needed or 0) > 1.5 * (calm.minutes_needed or 99)
    before, incident = past(0.01), past(0.5, windows=60)
    mixed = Past((*before.windows[:300], *incident.windows, *before.windows[300:660]))
    assert ask(past=mixed).metrics[0].stable_rate < 0.015 < mixed_rate(mixed)


def test_what_nobody_counted_is_assumed_to_be_at_a_fifth_of_its_limit() -> None:
    for nothing in (None, Past(), Past.from_dict({"windows": [{"requests": 100, "bad": {}}] * 100})):
        (metric,) = ask(past=nothing).metrics
        assert (metric.known, metric.stable_rate, metric.burst) == (False, 0.01, 1)


def test_a_release_that_cannot_end_in_time_is_refused_in_one_line_with_three_ways_that_would() -> None:
    made = ask(requests_per_second=0.5, past=past(0.01, requests=5))
    assert not made.possible
    assert [way.kind for way in made.ways] == ["limit", "deadline", "share"]
    assert all(way.minutes for way in made.ways)
    assert "\n" not in made.refusal
    assert made.refusal.startswith("At 0.5 requests a second and 10 % of them ")
    for words in (
        "a limit of 10 % for errors (max_rate 0.1)",
        "a deadline of ",
        "50 % of the traffic",
    ):
        assert f" with {words}" in made.refusal


def test_the_ways_keep_their_word() -> None:
    """Each taken, the release is possible, and takes about as long as was said."""
    asked: dict[str, Any] = {"requests_per_second": 0.8, "past": past(0.01, requests=8)}
    limit, deadline, share = ask(**asked).ways
    wider = ask(**asked, max_rate=dict(limit.changes)["max_rate"], deadline_minutes=120)
    assert wider.minutes_needed == pytest.approx(limit.minutes, rel=0.35)
    assert ask(**asked, deadline_minutes=deadline.to).in_time >= 0.8
    half = ask(**asked, shares=[share.to], deadline_minutes=120)
    assert half.minutes_needed == pytest.approx(share.minutes, rel=0.35)


def test_a_wider_limit_beside_stable_is_a_floor() -> None:
    (limit,) = [way for way in ask(max_rate=0.05, max_ratio=2.0, floor=0.01).ways if way.kind == "limit"]
    assert (limit.to, limit.changes) == (0.04, (("floor", 0.02),))


def test_all_steps_are_planned_as_the_one_test_that_they_are() -> None:
    steps, last = ask(shares=[0.1, 0.3]), ask(shares=[0.3])
    assert steps.shares == (0.1, 0.3)
    assert (last.minutes_needed or 99) < (steps.minutes_needed or 0) < (ask().minutes_needed or 0)
    assert steps.sentences[0].startswith("At 10 requests a second and 10 and 30 % of them a good canary needs about ")
    assert ask(traffic=0.1).minutes_needed == ask().minutes_needed, "a policy without steps is one share"


def test_a_ramp_is_planned_by_what_it_may_reach() -> None:
    made = plan(
        policy(max_rate=0.05, ramp={"budget": 20, "most": 0.35}, indifference=2),
        requests_per_second=10,
        deadline_minutes=30,
        window_seconds=10,
    )
    assert made.shares == (0.35,)
    assert made.sentences[0].startswith("At 10 requests a second and up to 35 % of them a good canary needs about ")
    assert (made.minutes_needed or 0) >= 2, "a ramp takes twelve windows at least"


@pytest.mark.parametrize("way", [{"shares": [0.1, 0.3]}, {"ramp": {"budget": 20, "most": 0.35}}])
def test_the_share_that_is_asked_for_at_first_is_no_wrong_split_later(way: dict[str, Any]) -> None:
    asked: dict[str, Any] = {"requests_per_second": 10, "deadline_minutes": 30, "window_seconds": 10}
    made = plan(policy(max_rate=0.05, **way, traffic=0.1), **asked)
    assert made == plan(policy(max_rate=0.05, **way), **asked)
    assert (made.minutes_needed or 99) < 15


@pytest.mark.parametrize(
    ("per_second", "max_rate", "least", "most"),
    [(50, 0.05, 10, 10), (1, 0.05, 11, 240), (0.01, 0.05, 241, 1440), (0.0, 0.05, 1440, 1440)],
    ids=["busy", "quiet", "nearly idle", "idle"],
)
def test_a_deadline_is_chosen_from_ten_minutes_to_a_day(
    per_second: float, max_rate: float, least: float, most: float
) -> None:
    asked = policy(max_rate=max_rate, shares=[0.1, 0.3], indifference=2)
    minutes = chosen_deadline(asked, requests_per_second=per_second, window_seconds=10)
    assert least <= minutes <= most
    assert minutes == chosen_deadline(asked, requests_per_second=per_second, window_seconds=10)
    if 10 < minutes < 1440:
        found = plan(asked, requests_per_second=per_second, deadline_minutes=minutes, window_seconds=10)
        assert found.in_time >= 0.9, "nearly all good canaries end by it, as promoted"


def test_what_can_never_be_promoted_says_why() -> None:
    worse = ask(past=past(0.06)).refusal
    assert worse.startswith("errors are at 5.8 % on stable, and the limit is 5 %: a canary as good as stable fails; ")
    assert worse.endswith(" with a limit of 12 % for errors (max_rate 0.12)"), "twice what stable is at"
    alone = ask(max_ratio=1.5, past=past(0.01), traffic=1.0)
    assert "stable gets no requests; give max_rate" in alone.refusal
    rare = ask(max_ratio=1.5, past=past(0.0))
    assert "too rare on stable to compare with; give max_rate or a floor" in rare.refusal
    quiet = ask(requests_per_second=0)
    assert "no traffic" in quiet.refusal
    assert quiet.sentences == (f"Nothing would be promoted: {quiet.refusal}.",)
    assert not any(one.possible for one in (alone, rare, quiet))


def test_the_slowest_metric_is_named() -> None:
    metrics = [{"name": "errors", "max_rate": 0.01}, {"name": "slow", "max_rate": 0.2}, {"name": "x", "observe": True}]
    made = ask(metrics=metrics, requests_per_second=3)
    assert made.slowest == "errors"
    assert [metric.name for metric in made.metrics] == ["errors", "slow"], "what is only shown is not planned"
    assert "errors take longest" in made.sentence


def test_a_regression_that_is_not_found_in_time_is_told_with_the_one_that_is() -> None:
    (metric,) = (made := ask(requests_per_second=0.5)).metrics
    assert metric.minutes_found is None
    assert metric.found_in_time < 0.8
    assert 0.1 < (metric.smallest or 0) < 1
    assert (
        f"Found by then, four of five times: {round(100 * (metric.smallest or 0))} % errors and more" in made.sentence
    )


def test_the_same_question_has_the_same_answer_and_it_is_plain_json() -> None:
    assert ask() == ask()
    told = json.loads(json.dumps(ask().to_dict(), allow_nan=False))
    assert (told["shares"], told["possible"]) == ([0.1], True)


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"requests_per_second": -1}, "requests_per_second"),
        ({"deadline_minutes": 0}, "deadline_minutes"),
        ({"window_seconds": float("nan")}, "window_seconds"),
        ({"shares": [0.1, 0.0]}, r"policy.shares\[1\]"),
        ({"shares": []}, "policy.shares"),
    ],
)
def test_bad_figures_are_refused(more: dict[str, Any], field: str) -> None:
    with pytest.raises(PolicyError, match=f"^{field}: "):
        ask(**more)
