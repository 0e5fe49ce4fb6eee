"""What the judge is told besides the windows: stable's past, the canary's share, and how it may grow."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from model_release.judging import EvidenceError, Judge, Past, Policy, PolicyError, Window, judge, ramp
from model_release.judging.clusters import lower, tail, tilt, upper
from model_release.judging.policy import Ramp

from .builders import policy, window

LIMITS: dict[str, Any] = {"max_rate": 0.02, "max_ratio": 1.5, "floor": 0.005}


def past_of(bad: list[int], requests: int = 200) -> Past:
    return Past.from_dict({"windows": [{"requests": requests, "bad": {"errors": b}} for b in bad]})


def at(share: float, n: int, b: int, m: int, s: int, place: int) -> Window:
    return window((n, b), (m, s), at=place, share=share)


def test_a_past_makes_a_promotion_earlier() -> None:
    good = [window((20, 0), (180, int(i % 4 == 0)), at=i) for i in range(120)]
    alone = judge(policy(**LIMITS), good)
    told = judge(policy(**LIMITS), good, past_of([int(i % 4 == 0) for i in range(720)]))
    assert alone.decision == told.decision == "promote"
    assert told.windows_used < alone.windows_used


def test_a_bursty_past_makes_it_later() -> None:
    good = [window((20, 0), (180, int(i % 4 == 0)), at=i) for i in range(150)]
    calm = judge(policy(**LIMITS), good, past_of([int(i % 4 == 0) for i in range(720)]))
    bursty = judge(policy(**LIMITS), good, past_of([10 * (i % 40 == 0) for i in range(720)]))
    assert bursty.metrics[0].design_effect > 3 * calm.metrics[0].design_effect
    assert bursty.windows_used > calm.windows_used


def test_what_a_past_does_not_know_is_absent_and_never_zero() -> None:
    gaps = Past.from_dict({"windows": [{"requests": None, "bad": {}}, {"requests": 200, "bad": {"slow": 3}}] * 300})
    good = [window((20, 0), (180, 0), at=i) for i in range(30)]
    assert judge(policy(**LIMITS), good, gaps).to_dict() == judge(policy(**LIMITS), good).to_dict()


def test_of_a_long_past_the_oldest_windows_are_left_out() -> None:
    assert len(past_of([0] * 1000).windows) == 720


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"windows": [{"requests": 5, "bad": {"errors": 6}}]}, "past.windows[0].bad.errors: 6 bad of 5"),
        ({"windows": {}}, "past.windows: a list"),
        ([], "past: a mapping"),
        ({"windows": [], "of": "stable"}, "past: a mapping with windows, and nothing else"),
    ],
)
def test_a_past_that_cannot_be_is_refused(data: Any, words: str) -> None:
    with pytest.raises(EvidenceError) as refusal:
        Past.from_dict(data)
    assert str(refusal.value).startswith(words)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"indifference": 0.5}, "policy.indifference: 0.5 is out of range"),
        ({"deadline_windows": 1}, "policy.deadline_windows: 1 is not a whole number of at least 2"),
        ({"shares": [0.3, 0.1]}, "policy.shares: [0.3, 0.1] do not rise"),
        ({"deadline_confidence": 1.0}, "policy.deadline_confidence: 1.0 is out of range"),
        ({"ramp": {"budget": 0}}, "policy.ramp.budget: 0 is out of range"),
        ({"ramp": {"most": 0.005}}, "policy.ramp.most: 0.005 is out of range"),
        ({"ramp": {"budget": 5, "least": 1}}, "policy.ramp.least: unknown field"),
        ({"ramp": {}, "shares": [0.1]}, "policy.ramp: chooses the shares"),
    ],
)
def test_a_policy_that_cannot_be_is_refused(more: dict[str, Any], words: str) -> None:
    with pytest.raises(PolicyError) as refusal:
        policy(**LIMITS, **more)
    assert str(refusal.value).startswith(words)


def test_evidence_is_carried_over_the_steps_and_the_last_one_promotes() -> None:
    p = policy(**LIMITS, shares=[0.1, 0.3], indifference=2, traffic=0.1)
    one, share, opened = Judge(p), 0.1, []
    for i in range(200):
        n = round(200 * share)
        verdict = one.add(at(share, n, 0, 200 - n, int(i % 3 == 0), i))
        if verdict.decision == "open":
            assert verdict.share == 0.3
            assert verdict.reason.startswith("Open wider, to 30 %: ")
            opened.append(i)
            share = 0.3
        if one.decided:
            break
    assert len(opened) == 1
    assert verdict.decision == "promote"
    assert verdict.metrics[0].canary["requests"] > 60, "what was seen at 10 % counts at 30 %"
    assert verdict.traffic is not None
    assert verdict.traffic.wanted == 0.3


def test_a_ramp_opens_by_what_a_bad_canary_could_still_hurt() -> None:
    p = policy(**LIMITS, ramp={"budget": 20, "most": 0.35}, indifference=2, traffic=0.05)
    # 200 a window, found in two, gone in three: 12 of them at 2 %, and at 5 % it were 30.
    assert ramp.begin(Ramp(budget=20, most=0.35), 200) == 0.02
    one, share, shares = Judge(p), 0.05, [0.05]
    for i in range(200):
        n = round(200 * share)
        verdict = one.add(at(share, n, 0, 200 - n, 0, i))
        if verdict.decision == "open":
            share = verdict.share or 0.0
            shares.append(share)
        if one.decided:
            break
    assert verdict.decision == "promote"
    assert verdict.windows_used >= ramp.LEAST_WINDOWS
    assert shares == sorted(shares)
    assert shares[-1] == 0.35


@pytest.mark.parametrize("per_window", [20, 200, 600])
def test_a_canary_of_which_nothing_works_costs_no_more_than_the_budget(per_window: int) -> None:
    """To the end of the window in which the gateway acts; the first level is the least that there is."""
    given = Ramp(budget=20, most=0.35)
    share, dead = ramp.begin(given, per_window), 0
    one = Judge(policy(**LIMITS, ramp={"budget": 20, "most": 0.35}, traffic=share))
    for i in range(9):
        n = round(per_window * share)
        dead += n
        if one.add(at(share, n, n, per_window - n, 0, i)).decision == "rollback":
            break
    assert dead + n <= given.budget


def test_a_ramp_stays_while_something_speaks_against_the_canary() -> None:
    p = policy(**LIMITS, ramp={"budget": 20, "most": 0.35}, traffic=0.05)
    one = Judge(p)
    for i in range(40):
        verdict = one.add(at(0.05, 10, int(i % 5 == 0), 190, 0, i))
        if verdict.decision == "open":
            assert (verdict.metrics[0].evidence_against or 0) < 10
    assert verdict.decision != "promote"


def test_the_look_at_the_deadline_decides_what_no_look_before_it_could() -> None:
    p = policy(max_rate=0.02, indifference=2)
    seen = [window((10, 0), (90, 0), at=i) for i in range(10)]
    past = past_of([int(i % 4 == 0) for i in range(720)])
    assert judge(p, seen, past).decision == "continue"
    ended = judge(p, seen, past, final=True)
    assert ended.decision == "promote"
    assert "By the look at the deadline" in ended.reason


def test_at_the_deadline_less_confidence_may_be_enough_and_is_named() -> None:
    seen = [window((10, 0), (90, 0), at=i) for i in range(10)]
    past = past_of([4 * (i % 40 == 0) for i in range(720)])
    usual = policy(max_rate=0.02, indifference=2)
    assert judge(usual, seen, past, final=True).decision == "inconclusive"
    ended = judge(policy(max_rate=0.02, indifference=2, deadline_confidence=0.7), seen, past, final=True)
    assert (ended.decision, ended.confidence) == ("promote", 0.7)
    assert ended.reason.endswith("By the look at the deadline, with 70 % confidence.")
    sure = judge(policy(max_rate=0.02, indifference=2, deadline_confidence=0.7), seen * 5, past, final=True)
    assert (sure.decision, sure.confidence) == ("promote", None), (
        "the usual risk is met, and nothing is said of another"
    )
    assert "confidence" not in sure.to_dict()


def test_windows_in_which_stable_was_ill_are_set_aside_and_said_so() -> None:
    p = policy(max_rate=0.02, max_ratio=1.5, floor=0.005)
    ill = [window((20, 4), (180, 36), at=i) for i in range(30)]
    verdict = judge(p, ill)
    assert verdict.decision == "continue"
    assert verdict.metrics[0].set_aside == 30
    assert "stable was failing too, 30 windows set aside" in verdict.reason
    dead = [window((20, 20), (180, 36), at=i) for i in range(30)]
    assert judge(p, dead).decision == "rollback", "the canary is worse than an ill stable, all the same"


def test_a_good_canary_does_not_wait_for_a_stable_that_stays_ill() -> None:
    """Rolled back it would be back on what fails: all windows together show that the canary keeps its limit."""
    p, usual = policy(max_rate=0.02, max_ratio=1.5, floor=0.005, indifference=2), past_of([1] * 720)
    beside = [window((20, 0), (180, 120), at=i) for i in range(60)]
    verdict = judge(p, beside, usual)
    assert (verdict.decision, verdict.metrics[0].set_aside) == ("promote", verdict.windows_used)
    assert "; stable failed in 7 windows; " in verdict.reason
    alone = policy(max_rate=0.02, indifference=2)
    healthy = judge(alone, [window((20, 0), (180, 1), at=i) for i in range(60)], usual)
    ill = judge(alone, beside, usual)
    assert healthy.windows_used < ill.windows_used <= 1.6 * healthy.windows_used, "the price of looking twice"
    late = judge(p, beside[: verdict.windows_used - 1], usual, final=True)
    assert late.decision == "promote", "at the deadline the windows count that stable spent ill, as most were such"
    as_bad = [window((20, 1), (180, 120), at=i) for i in range(60)]
    assert judge(p, as_bad, usual, final=True).decision == "inconclusive", (
        "5 % of errors are too many, whatever stable does"
    )


def test_beside_a_stable_that_stays_ill_the_canarys_own_bursts_count() -> None:
    """As many bad requests, one by one and at once: in bursts they say less, also where no window is calm."""
    p, usual = policy(max_rate=0.02, indifference=2, min_requests=10**9), past_of([1] * 720)

    def favour(bad: list[int]) -> float:
        seen = judge(p, [window((20, one), (180, 120), at=i) for i, one in enumerate(bad)], usual)
        assert seen.metrics[0].set_aside == len(bad)
        return float(seen.metrics[0].evidence_for or 0)

    assert favour([0, 0, 0, 0, 1] * 8) > 1000 * favour(([0] * 19 + [4]) * 2)


def test_an_incident_of_stables_is_no_burst_from_its_first_window_on() -> None:
    """Three windows pass until it is known that it lasts: then they are taken out again, however they were read."""
    p = policy(max_rate=0.02, indifference=2, min_requests=10**9)
    well, ill = [((20, 0), (180, int(i % 3 == 0))) for i in range(60)], [((20, 0), (180, 90))] * 4

    def dispersion(counts: list[Any]) -> float:
        one = Judge(p)
        one.extend(window(canary, stable, at=i) for i, (canary, stable) in enumerate(counts))
        return float(one.verdict().metrics[0].design_effect)

    usual = dispersion(well[:16])
    assert dispersion([*well[:16], *ill[:3]]) > 5 * usual, "as yet it may be a burst"
    assert dispersion([*well[:16], *ill]) == usual


def test_a_canary_of_which_nothing_works_needs_two_windows() -> None:
    verdict = judge(policy(**LIMITS), [window((6, 6), (180, 0), at=i) for i in range(5)])
    assert (verdict.decision, verdict.windows_used) == ("rollback", 2)
    assert "nothing worked in the last 2 windows, and stable did" in verdict.reason
    alike = judge(policy(**LIMITS), [window((6, 6), (180, 180), at=i) for i in range(5)])
    assert alike.decision == "continue", "stable fails the same way"


def test_an_interval_holds_the_share_and_narrows() -> None:
    p = policy(**LIMITS)
    few = judge(p, [window((20, int(i % 10 == 0)), (180, 1), at=i) for i in range(20)]).metrics[0]
    many = judge(p, [window((20, int(i % 10 == 0)), (180, 1), at=i) for i in range(60)], final=True).metrics[0]
    for metric in (few, many):
        assert metric.lower <= metric.canary["bad"] / metric.canary["requests"] <= metric.upper
    assert many.upper <= few.upper


def test_slower_at_other_edges_than_the_limits_is_found() -> None:
    limits = {"name": "slow", "max_ratio": 1.5, "floor": 0.01}
    edges = {"edges": [50, 100, 500]}

    def shown(canary: list[int]) -> Window:
        sides = {"canary": (20, canary), "stable": (180, [90, 18, 1])}
        data = {name: {"requests": n, "bad": {"slow": at[2]}, "edges": {"slow": at}} for name, (n, at) in sides.items()}
        return Window.from_dict(data)

    every = Policy.from_dict({"metrics": [limits | edges], "min_requests": 10**6})
    found = judge(every, [shown([20, 12, 0])] * 60)
    assert found.decision == "rollback"
    assert "canary requests took longer than 100 ms (60 %), " in found.reason, "what was found, and where"
    assert "on stable (10 %)" in found.reason
    assert judge(every, [shown([10, 2, 0])] * 60).decision == "continue"
    with pytest.raises(EvidenceError, match="4 counts, and the policy names 3 edges"):
        judge(every, [Window.from_dict({"canary": {"requests": 9, "bad": {}, "edges": {"slow": [4, 3, 2, 1]}}})])


def test_the_first_editions_document_is_read_as_it_is() -> None:
    first = {"metrics": [{"name": "errors", "max_rate": 0.02}], "steps": 2, "traffic": 0.1, "values": []}
    p = Policy.from_dict(first)
    assert (p.indifference, p.shares, p.ramp) == (1.0, (), None)
    assert Policy.from_dict(json.loads(json.dumps(p.to_dict()))) == p


@pytest.mark.parametrize("burst", [1.0, 1.5, 3.0, 10.0])
@pytest.mark.parametrize("fraction", [1e-6, 0.2, 0.7, 1.0, 3.0])
def test_the_tilt_is_the_one_that_makes_most_of_its_rate(fraction: float, burst: float) -> None:
    def gain(f: float) -> float:
        return float(fraction * np.log(f) + (1 - f) / (burst - (burst - 1) * f))

    best = float(tilt(fraction, burst))
    near = [best * 0.99, best * 1.01]
    assert all(gain(best) >= gain(f) - 1e-12 for f in near if f * (burst - 1) < burst)


def test_the_tail_is_poissons_where_requests_fail_alone() -> None:
    mean = 7.5
    terms = np.exp(-mean) * np.cumprod(np.concatenate([[1.0], mean / np.arange(1, 4)]))
    assert float(tail(np.array(3.0), np.array(750.0), np.array(0.01), np.array(1.0))) == pytest.approx(terms.sum())


def test_the_tail_of_large_counts_is_never_below_the_exact_one() -> None:
    exact = float(tail(np.array(500.0), np.array(59_000.0), np.array(0.01), np.array(1.0)))
    bound = float(tail(np.array(500.0), np.array(61_000.0), np.array(0.01), np.array(1.0)))
    assert 0 < exact < 1e-3
    assert 0 < bound < 1e-3


def test_an_interval_without_requests_is_everything() -> None:
    nothing = np.array(0.0)
    assert float(upper(nothing, nothing, np.array(1.0))) == 1.0
    assert float(lower(nothing, nothing, np.array(1.0))) == 0.0
