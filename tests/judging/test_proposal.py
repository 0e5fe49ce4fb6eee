"""Limits that a service's own past proposes."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from model_release.judging import Past, Policy
from model_release.judging.proposal import LADDER, Proposal, propose
from model_release.judging.simulate import bad_requests

from .builders import policy

TRAFFIC = {"requests_per_second": 20, "deadline_minutes": 30, "window_seconds": 10}


def past(rate: float = 0.003, *, burst: float = 1, incident: int = 0) -> Past:
    rng, requests = np.random.default_rng(9), np.full(720, 200.0)
    rates = np.full(720, rate)
    rates[300 : 300 + incident] = 0.3
    bad = bad_requests(rng, requests, rates, burst, 200)
    return Past.from_dict({"windows": [{"requests": 200, "bad": {"errors": int(b)}} for b in bad]})


def one(asked: Policy, before: Past, **more: Any) -> Proposal:
    (found,) = propose(asked, before, **{**TRAFFIC, **more})
    return found


def test_the_smallest_limit_that_good_canaries_can_keep_in_time() -> None:
    found = one(policy(shares=[0.3], max_rate=0.2, indifference=2), past())
    assert found.to in LADDER
    assert 0.006 < (found.to or 0) < 0.02, "twice stable's rate at least, and no more than is needed"
    assert found.changes == (("max_rate", found.to),)
    assert found.after
    assert found.after.in_time >= 0.95
    assert found.false_rollbacks <= 0.02
    assert found.sentence.startswith("errors: stable is at 0.3 %, in bursts of 1; the limit ")
    assert " instead of 20 %: a good canary needs " in found.sentence
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["changes"] == {"max_rate": found.to}


def test_once_it_is_written_it_proposes_the_same() -> None:
    first = one(policy(shares=[0.3], max_rate=0.2, max_ratio=1.5, floor=0.1), past(incident=40))
    again = one(policy(shares=[0.3], max_ratio=1.5, **dict(first.changes)), past(incident=40))
    assert again.changes == first.changes
    assert ", as it is: " in again.sentence


def test_less_traffic_bursts_and_a_worse_stable_ask_for_a_wider_limit() -> None:
    plain, asked = one(policy(shares=[0.3], max_rate=0.2), past()), policy(shares=[0.3], max_rate=0.2)
    assert (one(asked, past(), requests_per_second=1).to or 1) > (plain.to or 0)
    assert (one(asked, past(burst=8)).to or 1) > (plain.to or 0)
    assert (one(asked, past(0.02)).to or 1) > (plain.to or 0)
    assert "stable is at 0.4 %" in one(asked, past(incident=40)).sentence, "an incident is not how stable usually is"


def test_a_limit_beside_stable_is_proposed_as_its_floor() -> None:
    found = one(policy(shares=[0.3], max_ratio=2.0, floor=0.1), past())
    assert [name for name, _ in found.changes] == ["floor"]
    assert dict(found.changes)["floor"] == pytest.approx((found.to or 0) / 2, rel=0.05)
    bare = one(policy(shares=[0.3], max_ratio=2.0), past())
    assert (bare.changes, "there is nothing to write" in bare.sentence) == ((), True)


def test_where_no_limit_would_do_it_says_so() -> None:
    found = one(policy(shares=[0.3], max_rate=0.2), past(0.35))
    assert (found.to, found.changes, found.after) == (None, (), None)
    assert found.sentence.endswith("; no limit up to 50 % lets 95 % of good canaries end in time")


def test_what_is_only_shown_or_was_never_counted_is_left_out() -> None:
    metrics = [
        {"name": "errors", "max_rate": 0.2},
        {"name": "seen", "observe": True},
        {"name": "slow", "max_rate": 0.1},
    ]
    assert [found.metric for found in propose(policy(metrics=metrics, shares=[0.3]), past(), **TRAFFIC)] == ["errors"]
