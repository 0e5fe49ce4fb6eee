"""What a plan says before a release starts."""

from __future__ import annotations

import json
from typing import Any

import pytest

from model_release.judging import PolicyError
from model_release.judging.plan import Plan, plan

from .builders import policy


def ask(*, max_rate: float | None = 0.05, max_ratio: float | None = None, floor: float = 0, **more: Any) -> Plan:
    limits = {k: v for k, v in (("max_rate", max_rate), ("max_ratio", max_ratio), ("floor", floor)) if v}
    asked: dict[str, Any] = {
        "requests_per_minute": 1200,
        "deadline_minutes": 30,
        "window_seconds": 10,
        "shares": [0.1],
    }
    return plan(policy(**limits), **(asked | more))


def test_a_plan_that_can_decide_says_after_how_many_requests_and_what_it_finds() -> None:
    made = ask(stable_rates={"errors": 0.01})
    step = made.steps[0]
    assert made.possible
    assert step.canary_requests == 3600
    assert step.requests_needed is not None
    assert 100 <= step.requests_needed < 1000
    assert step.minutes_needed == pytest.approx(step.requests_needed / 120, rel=0.01)
    assert 0.05 < (step.metrics[0].smallest_regression or 0) < 0.1
    assert made.sentence.startswith("At 1200 requests a minute and 10 % a good canary is promoted after about ")
    assert "it finds errors from " in made.sentence


def test_too_little_traffic_is_refused_with_what_to_raise() -> None:
    made = ask(requests_per_minute=2)
    assert not made.possible
    assert made.steps[0].canary_requests == 6
    assert made.sentence.startswith(
        "At 2 requests a minute and 10 % the deadline of 30 min sees 6 canary requests: nothing below "
    )
    assert "; raise the deadline to " in made.sentence
    assert "the share to 50 %" in made.sentence


def test_a_wider_share_is_named_when_it_is_enough() -> None:
    made = ask(requests_per_minute=20)
    assert "raise the share to 45 % or the deadline to 2.5 h" in made.sentence
    assert ask(requests_per_minute=30, shares=[0.45]).possible
    assert ask(requests_per_minute=20, deadline_minutes=150).possible


def test_what_can_never_be_promoted_says_why() -> None:
    assert "errors are at 6 % on stable, the limit is 5 %" in ask(stable_rates={"errors": 0.06}).sentence
    alone = ask(max_rate=None, max_ratio=1.5, stable_rates={"errors": 0.01}, shares=[1.0])
    assert "stable gets no requests; give max_rate" in alone.sentence
    rare = ask(max_rate=None, max_ratio=1.5, stable_rates={"errors": 0.0})
    assert "too rare on stable to compare with; give max_rate or a floor" in rare.sentence
    assert "no traffic" in ask(requests_per_minute=0).sentence
    assert not any(p.possible for p in (alone, rare, ask(requests_per_minute=0)))


def test_more_of_everything_finds_more() -> None:
    small, large = ask(), ask(requests_per_minute=12_000)
    assert (large.steps[0].metrics[0].smallest_regression or 1) < (small.steps[0].metrics[0].smallest_regression or 0)
    steps = ask(shares=[0.1, 0.3]).steps
    assert (steps[1].minutes_needed or 99) < (steps[0].minutes_needed or 0)
    assert ask(shares=[0.1, 0.3]).minutes_needed == pytest.approx(sum(s.minutes_needed or 0 for s in steps))


def test_the_same_question_has_the_same_answer_and_it_is_plain_json() -> None:
    assert ask() == ask()
    assert json.loads(json.dumps(ask().to_dict(), allow_nan=False))["steps"][0]["share"] == 0.1


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"requests_per_minute": -1}, "requests_per_minute"),
        ({"deadline_minutes": 0}, "deadline_minutes"),
        ({"window_seconds": float("nan")}, "window_seconds"),
        ({"shares": [0.1, 0.0]}, r"shares\[1\]"),
        ({"shares": []}, "shares"),
        ({"stable_rates": {"errors": 2}}, r"stable_rates\.errors"),
    ],
)
def test_bad_figures_are_refused(more: dict[str, Any], field: str) -> None:
    with pytest.raises(PolicyError, match=f"^{field}: "):
        ask(**more)
