"""Slices of the traffic: a metric judged in each of them, as one test with the whole."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from model_release.judging import EvidenceError, Judge, Policy, PolicyError, Verdict, Window, judge
from model_release.judging.record import Record
from model_release.judging.slices import MOST, NONE, OTHER, SliceEvidence, placed, which

EIGHT = ("at", "be", "ch", "de", "es", "fr", "it", "nl")
Rates = Mapping[str, float]


def policy(**fields: Any) -> Policy:
    slices = {"by": "country", **fields.pop("slices", {})}
    metric = {"name": "errors", "max_rate": 0.02, "slices": slices, **fields.pop("metric", {})}
    return Policy.from_dict({"metrics": [metric], "indifference": 2, **fields})


def side(counts: Mapping[str, tuple[int, int]] | None) -> dict[str, Any]:
    if counts is None:
        return {"requests": None, "bad": {"errors": None}, "slices": {"errors": None}}
    total, bad = (sum(pair[k] for pair in counts.values()) for k in (0, 1))
    return {"requests": total, "bad": {"errors": bad}, "slices": {"errors": counts}}


def windows(canary: Rates, stable: Rates, length: int, requests: tuple[int, int] = (10, 30)) -> list[Window]:
    """So many requests of each slice in each window, failing by chance at these rates."""
    rng = np.random.default_rng(5)

    def drawn(rates: Rates, number: int) -> dict[str, tuple[int, int]]:
        return {name: (number, int(rng.binomial(number, rate))) for name, rate in rates.items()}

    return [
        Window.from_dict({"canary": side(drawn(canary, requests[0])), "stable": side(drawn(stable, requests[1]))})
        for _ in range(length)
    ]


def even(rate: float = 0.01, **other: float) -> dict[str, float]:
    return dict.fromkeys(EIGHT, rate) | other


def errors(verdict: Verdict) -> Any:
    return verdict.metrics[0]


def test_one_bad_slice_rolls_back_and_is_named() -> None:
    """2 % of all requests fail on the canary, as its limit allows, and 9 % of one country's."""
    verdict = judge(policy(), windows(even(fr=0.09), even(), 60))
    assert verdict.decision == "rollback"
    assert verdict.reason.startswith("Rolled back: errors among country=fr: ")
    assert " % instead of " in verdict.reason
    assert "canary requests, " in verdict.reason
    assert "the limit is 2 %. Evidence " in verdict.reason
    first, *others = errors(verdict).slices
    assert (first.slice, first.state) == ("fr", "fail")
    assert {one.slice for one in others} == set(EIGHT) - {"fr"}
    assert {one.state for one in others} == {"judged"}
    assert first.canary["requests"] == 10 * verdict.windows_used
    plain = policy(metric={"slices": None})
    without = [
        Window.from_dict({s: {"requests": v["requests"], "bad": v["bad"]} for s, v in w.to_dict().items() if v})
        for w in windows(even(fr=0.09), even(), 60)
    ]
    assert judge(plain, without).decision == "promote"


def test_several_bad_slices_are_named_together() -> None:
    verdict = judge(policy(slices={"at_least": 80}), windows(even(0.001, fr=0.1, de=0.1), even(0.001), 60))
    assert verdict.decision == "rollback"
    named = {one.slice for one in errors(verdict).slices if one.state == "fail"}
    assert named <= {"fr", "de"}
    assert named


def test_a_good_canary_is_promoted_when_most_of_its_requests_are_judged() -> None:
    verdict = judge(policy(), windows(even(0.002), even(0.002), 60))
    assert verdict.decision == "promote"
    assert verdict.windows_used == 20  # 200 requests in each slice
    assert {one.state for one in errors(verdict).slices} == {"judged"}


def test_a_rare_slice_is_not_waited_for_and_said() -> None:
    common = windows(even(0.002), even(0.002), 60)
    rare = [
        Window.from_dict(
            {
                name: side({**value["slices"]["errors"], "li": (1, 0)})
                for name, value in one.to_dict().items()
                if name in ("canary", "stable")
            }
        )
        for one in common
    ]
    verdict = judge(policy(), rare)
    assert (verdict.decision, verdict.windows_used) == ("promote", 20)
    assert "1 of 9 slices by country is not judged, with fewer than 200 canary requests" in verdict.reason
    few = errors(verdict).slices[-1]
    assert (few.slice, few.state, few.canary) == ("li", "few", {"requests": 20, "bad": 0})


def test_a_slice_with_few_requests_never_rolls_back() -> None:
    """However many of them fail."""
    bad = {**dict.fromkeys(EIGHT, (40, 0)), "li": (1, 1)}
    good = {**dict.fromkeys(EIGHT, (120, 0)), "li": (3, 0)}
    run = [Window.from_dict({"canary": side(bad), "stable": side(good)})] * 30
    assert judge(policy(), run).decision == "promote"
    assert judge(policy(slices={"at_least": 5}, min_requests=5000), run).decision == "rollback"


def test_what_a_promotion_waits_for_is_said_and_the_deadline_ends_it() -> None:
    run = windows(even(0.002), even(0.002), 12)
    waiting = judge(policy(), run)
    assert waiting.decision == "continue"
    assert "8 of 8 slices by country are not judged, with fewer than 200 canary requests" in waiting.reason
    assert "the others have 0 % of them, and 80 % is waited for until the deadline" in waiting.reason
    assert waiting.requests_needed == 8 * 80
    late = judge(policy(), run, final=True)
    assert late.decision == "promote"
    assert "8 of 8 slices by country are not judged" in late.reason


@pytest.mark.parametrize("counts", [None, {}])
def test_slices_of_which_nothing_is_counted_are_no_good_news(counts: Any) -> None:
    """As of a version that was built before there were any. It was to take a few more requests, until the deadline, and
    was promoted then."""
    run = [
        replace(window, canary=replace(window.canary, slices={"errors": counts}))
        for window in windows(even(0.002), even(0.002), 30)
    ]
    for final, begin in ((False, "Keep watching: "), (True, "Cannot tell at the deadline: ")):
        verdict = judge(policy(), run, final=final)
        assert verdict.decision == ("inconclusive" if final else "continue")
        assert verdict.reason.startswith(begin)
        assert "; none of them is counted in a slice by country; " in verdict.reason
        assert verdict.reason.endswith("More requests like these would not settle it.")
        assert verdict.requests_needed is None
    beside = {"name": "beside", "max_rate": 0.02}
    shown = Policy.from_dict({"metrics": [{**policy().to_dict()["metrics"][0], "observe": True}, beside]})
    both = [replace(w, canary=replace(w.canary, bad={**w.canary.bad, "beside": 0}), stable=None) for w in run]
    assert judge(shown, both, final=True).decision == "promote", "what is only shown decides nothing"


def test_window_by_window_gives_the_same_as_all_at_once() -> None:
    run = windows(even(fr=0.06), even(), 40)
    run[5:5] = windows({"pt": 0.3, **even()}, even(), 2)
    one = Judge(policy())
    verdict = one.verdict()
    for window in run:
        verdict = one.add(window)
    assert verdict.to_dict() == judge(policy(), run).to_dict()


def test_a_record_keeps_the_slices_and_replays_to_the_same_verdict() -> None:
    run = windows(even(fr=0.09), even(), 60)
    verdict = judge(policy(), run)
    record = Record.new("r", model="m", service="s/m", version="v", started="2026-03-01T02:00:00+00:00")
    record.record_step(
        10, "2026-03-01T02:00:00+00:00", window_seconds=10, policy=policy(), windows=run, final=True, verdict=verdict
    )
    again = Record.from_json(record.to_json())
    assert again.differences() == []
    assert json.loads(record.to_json())["steps"][0]["verdict"]["metrics"][0]["slices"][0]["slice"] == "fr"
    looks = again.replay(policy(metric={"slices": None}))
    assert looks[-1].verdict.decision == "promote"
    with pytest.raises(EvidenceError, match="'device', and errors was counted by country"):
        again.replay(policy(slices={"by": "device"}))


def test_an_observed_metric_shows_its_slices_and_decides_nothing() -> None:
    watched = {"name": "watched", "max_rate": 0.02, "slices": {"by": "country"}, "observe": True}
    metrics = [{"name": "errors", "max_rate": 0.2}, watched]
    both = Policy.from_dict({"metrics": metrics, "indifference": 2, "min_requests": 2000})

    def renamed(one: Any) -> Any:
        return one | {
            "bad": {"errors": one["bad"]["errors"], "watched": one["bad"]["errors"]},
            "slices": {"watched": one["slices"]["errors"]},
        }

    run = [
        Window.from_dict(
            {name: renamed(value) for name, value in one.to_dict().items() if name in ("canary", "stable")}
        )
        for one in windows(even(fr=0.5), even(), 30)
    ]
    verdict = judge(both, run)
    assert verdict.decision == "promote"
    assert verdict.metrics[1].slices[0].slice == "fr"


def test_no_data_changes_no_slice() -> None:
    run = windows(even(), even(), 5)
    blind = Window.from_dict({"canary": side(None), "stable": side({"fr": (3, 0)})})
    before, after = judge(policy(), run), judge(policy(), [*run, blind])
    assert errors(before).evidence_against == errors(after).evidence_against
    assert errors(after).state == "no_data"


def test_more_slices_than_there_is_room_for_are_counted_together() -> None:
    many = {f"s{i:03}": (200 - i, 0) for i in range(120)}
    run = [Window.from_dict({"canary": side(many), "stable": side(many)})] * 5
    verdict = judge(policy(min_requests=10**6), run)
    assert "beyond the first 50 slices are counted as other" in verdict.reason
    one = Judge(policy(min_requests=10**6))
    one.extend(run)
    assert one._slices[0]._places.keys() == {OTHER, *list(many)[:MOST]}
    assert placed([], {"b": 1, "a": 1, NONE: 5}) == [NONE, "a", "b"]


def test_no_more_money_is_laid_out_than_there_is() -> None:
    """Else many slices that come one after the other would make false alarms of their own."""
    one, spent = SliceEvidence(policy(), policy().metrics[0]), []
    for number in range(1, MOST + 10):
        counts = {f"c{country:02}": (10, 0) for country in range(number)}
        one.now = one.extend([Window.from_dict({"canary": side(counts), "stable": side(counts)})])[0]
        spent.append(float(one.now.weights.sum()))
    assert spent[0] == pytest.approx(0.9), "the first window's slices do not get it all"
    assert spent == sorted(spent)
    assert 0.99 < spent[-1] <= 1


def test_which_slices_is_the_largest_set_that_bears_its_own_bar() -> None:
    weights = np.full(4, 0.25)
    needed = np.log(100)
    # A weight of an eighth: one needs 800, two need 400 each, three need 267 each.
    assert which(np.log([799.0, 1, 1, 1]), weights, needed).tolist() == [False] * 4
    assert which(np.log([801.0, 1, 1, 1]), weights, needed).tolist() == [True, False, False, False]
    assert which(np.log([401.0, 402, 1, 1]), weights, needed).tolist() == [True, True, False, False]
    assert which(np.log([268.0, 268, 268, 1]), weights, needed).tolist() == [True, True, True, False]


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ({"slices": {}}, "policy.metrics[0].slices.by: is missing; the label that tells slices apart"),
        ({"slices": {"by": "country", "at_least": 0}}, "slices.at_least: 0 is not a whole number of at least 1"),
        ({"slices": {"by": "c", "top": 3}}, "slices.top: unknown field; known are by, at_least"),
        ({"max_rate": None, "observe": True}, "slices: mean nothing without a limit"),
    ],
)
def test_slices_that_mean_nothing_are_refused(metric: dict[str, Any], message: str) -> None:
    with pytest.raises(PolicyError) as refused:
        policy(metric=metric)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({"fr": (1, 2)}, "canary.slices.errors.fr: 2 bad of 1 requests cannot be"),
        ({"fr": 3}, "canary.slices.errors.fr: 3 is not [requests, bad]"),
        ({"fr": (None, 0)}, "canary.slices.errors.fr: null; a slice without requests is left out"),
    ],
)
def test_counts_of_slices_that_cannot_be_are_refused(counts: Any, message: str) -> None:
    with pytest.raises(EvidenceError) as refused:
        Window.from_dict({"canary": {"requests": 9, "bad": {"errors": 0}, "slices": {"errors": counts}}})
    assert message in str(refused.value)


def test_slices_of_a_metric_that_has_none_are_refused() -> None:
    with pytest.raises(EvidenceError, match=r"slices.errors: the policy has no such metric with slices"):
        judge(policy(metric={"slices": None}), windows(even(), even(), 1))
