"""What must hold for any counts."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model_release.judging import Judge, Policy, Window, judge

KINDNESS = {"rollback": 0, "inconclusive": 1, "continue": 2, "promote": 3}
NAMES = ("errors", "slow")

quick = settings(max_examples=80, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])


@st.composite
def sides(draw: st.DrawFn, /, largest: int) -> dict[str, Any]:
    requests = draw(st.integers(0, largest) | st.sampled_from([0, 1, largest]))
    bad = {name: draw(st.integers(0, requests) | st.sampled_from([0, requests])) for name in NAMES}
    return {"requests": requests, "bad": bad}


@st.composite
def runs(draw: st.DrawFn, /, largest: int = 300, gaps: bool = False) -> list[dict[str, Any]]:
    side = sides(largest)
    stable = side | st.none()
    found = draw(st.lists(st.fixed_dictionaries({"canary": side, "stable": stable}), min_size=1, max_size=12))
    found *= draw(st.sampled_from([1, 1, 3, 10]))
    if gaps:
        for place in draw(st.lists(st.integers(0, len(found) - 1), max_size=4)):
            found[place] = {"canary": {"requests": None, "bad": {}}, "stable": None}
    return found


@st.composite
def policies(draw: st.DrawFn, /, **fixed: Any) -> Policy:
    metrics = []
    for name in NAMES:
        limits: dict[str, Any] = {}
        if draw(st.booleans()):
            limits["max_rate"] = draw(st.sampled_from([0.001, 0.02, 0.3, 0.9]))
        if draw(st.booleans()) or not limits:
            limits |= {
                "max_ratio": draw(st.sampled_from([0.5, 1, 1.5, 4])),
                "floor": draw(st.sampled_from([0, 0.005, 0.1])),
            }
        metrics.append({"name": name, "critical": draw(st.booleans()), **limits})
    return Policy.from_dict(
        {
            "metrics": metrics,
            "min_requests": draw(st.sampled_from([1, 100])),
            "traffic": draw(st.sampled_from([None, 0.0, 0.1, 0.5, 1.0])),
            "warm_up": draw(st.sampled_from([0, 0, 2])),
            **fixed,
        }
    )


def read(data: list[dict[str, Any]]) -> list[Window]:
    return [Window.from_dict(w) for w in data]


@quick
@given(policies(), runs(), st.data())
def test_more_bad_canary_requests_never_make_the_verdict_kinder(
    p: Policy, data: list[dict[str, Any]], more: st.DataObject
) -> None:
    before = judge(p, read(data))
    worse = json.loads(json.dumps(data))
    for w in worse:
        for name in NAMES:
            bad, requests = w["canary"]["bad"][name], w["canary"]["requests"]
            w["canary"]["bad"][name] = more.draw(st.integers(bad, requests))
    after = judge(p, read(worse))
    assert KINDNESS[after.decision] <= KINDNESS[before.decision]


@quick
@given(policies(traffic=None, warm_up=0), runs(), st.integers(2, 1000))
def test_scaling_both_sides_never_turns_a_failure_into_a_pass(
    p: Policy, data: list[dict[str, Any]], factor: int
) -> None:
    def larger(side: dict[str, Any] | None) -> dict[str, Any] | None:
        if side is None:
            return None
        return {"requests": side["requests"] * factor, "bad": {k: v * factor for k, v in side["bad"].items()}}

    # A share weighs a window the same however many requests it holds, so the evidence against does not move.
    forever = Policy.from_dict(p.to_dict() | {"min_requests": 10**15, "false_rollback": 1e-300})
    for upto in range(1, len(data) + 1, 17):
        small = judge(forever, read(data[:upto]))
        large = judge(forever, read([{k: larger(v) for k, v in w.items()} for w in data[:upto]]))
        for m, a, b in zip(p.metrics, small.metrics, large.metrics, strict=True):
            assert a.evidence_against is not None
            assert b.evidence_against is not None
            # Beside stable, more requests make its usual rate better known, and tell more surely that it is ill.
            if m.max_ratio is None and not b.set_aside:
                np.testing.assert_allclose(a.evidence_against, b.evidence_against, rtol=2e-3)
            assert not (a.evidence_against >= p.needed_against * 1.01 and b.state == "pass")


@quick
@given(policies(), runs(gaps=True), st.booleans())
def test_the_order_of_metrics_does_not_matter(p: Policy, data: list[dict[str, Any]], final: bool) -> None:
    turned = Policy.from_dict(p.to_dict() | {"metrics": [m.to_dict() for m in reversed(p.metrics)]})
    one, other = judge(p, read(data), final=final), judge(turned, read(data), final=final)
    assert one.decision == other.decision
    assert one.windows_used == other.windows_used
    assert sorted(one.metrics, key=lambda m: m.name) == sorted(other.metrics, key=lambda m: m.name)
    if one.decision in ("rollback", "promote"):
        assert one.reason == other.reason


@quick
@given(policies(), runs(largest=10**9, gaps=True), st.booleans())
def test_no_counts_make_it_crash_or_overflow(p: Policy, data: list[dict[str, Any]], final: bool) -> None:
    with np.errstate(all="raise", under="ignore"):
        verdict = judge(p, read(data), final=final)
    text = json.dumps(verdict.to_dict(), allow_nan=False)
    assert "nan" not in text
    assert "inf " not in verdict.reason
    assert verdict.reason.endswith(".")
    assert "  " not in verdict.reason
    for m in verdict.metrics:
        assert m.evidence_against is not None
        assert m.evidence_for is not None
        assert 0 <= m.evidence_against < 1e101
        assert 0 <= m.evidence_for < 1e101
        assert m.design_effect >= 1


@quick
@given(policies(), runs(gaps=True))
def test_one_at_a_time_is_the_same_as_all_at_once(p: Policy, data: list[dict[str, Any]]) -> None:
    one, all_at_once = Judge(p), Judge(p)
    for w in read(data):
        said = one.add(w)
    all_at_once.extend(read(data))
    assert all_at_once.verdict() == said


@quick
@given(policies(), runs(gaps=True))
def test_the_same_counts_give_the_same_verdict_from_json(p: Policy, data: list[dict[str, Any]]) -> None:
    again = Policy.from_dict(json.loads(json.dumps(p.to_dict())))
    assert judge(again, read(json.loads(json.dumps(data)))) == judge(p, read(data))


def test_nothing_is_read_that_was_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums over columns that are filled later took what was left in memory, and once in many runs warned of it."""
    data = read([{"canary": {"requests": 30, "bad": dict.fromkeys(NAMES, 1)}, "stable": None}] * 4)
    p = Policy.from_dict({"metrics": [{"name": name, "max_rate": 0.1, "max_ratio": 1.5} for name in NAMES]})
    said, empty = judge(p, data), np.empty

    def left_over(shape: Any, *args: Any, **kwargs: Any) -> Any:
        made = empty(shape, *args, **kwargs)
        if made.dtype == float and made.ndim:
            made[0::2], made[1::2] = np.inf, -np.inf
        return made

    monkeypatch.setattr(np, "empty", left_over)
    with np.errstate(all="raise", under="ignore"):
        assert judge(p, data) == said
