"""Labels: what the canary answers beside what stable answers, judged as one more metric."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from model_release.judging import EvidenceError, Judge, Past, Policy, PolicyError, Side, Verdict, Window, judge
from model_release.judging.record import Record
from model_release.judging.replay import asked_for
from model_release.judging.shift import MOST_LABELS, binned

FACES = ("angry", "fear", "happy", "neutral", "sad")
EVEN = dict.fromkeys(FACES, 0.2)
ANGRY = {"angry": 0.8, "fear": 0.05, "happy": 0.05, "neutral": 0.05, "sad": 0.05}
Labels = Mapping[str, int] | None


def policy(**fields: Any) -> Policy:
    shift = {"name": "predictions", "max_shift": 0.1, **fields.pop("shift", {})}
    return Policy.from_dict({"metrics": [{"name": "errors", "max_rate": 0.1}, shift], "indifference": 2, **fields})


def window(canary: Labels, stable: Labels, **more: Any) -> Window:
    def side(counts: Labels) -> dict[str, Any]:
        total = sum((counts or {}).values())
        return {"requests": total, "bad": {"errors": 0}, "labels": {"predictions": counts}}

    return Window.from_dict({"canary": side(canary), "stable": side(stable), **more})


def drawn(shares: Mapping[str, float], number: int, rng: np.random.Generator) -> dict[str, int]:
    counts = rng.multinomial(number, list(shares.values()))
    return {label: int(count) for label, count in zip(shares, counts, strict=True) if count}


def windows(
    canary: Mapping[str, float], stable: Mapping[str, float], length: int, answers: tuple[int, int] = (30, 200)
) -> list[Window]:
    rng = np.random.default_rng(3)
    return [window(drawn(canary, answers[0], rng), drawn(stable, answers[1], rng)) for _ in range(length)]


def of(verdict: Verdict) -> Any:
    return next(metric for metric in verdict.metrics if metric.name == "predictions")


def test_a_canary_that_answers_as_stable_does_is_promoted_by_both_metrics() -> None:
    verdict = judge(policy(), windows(EVEN, EVEN, 60))
    assert (verdict.decision, of(verdict).state) == ("promote", "pass")
    assert of(verdict).upper < 0.2
    assert 3 < verdict.windows_used < 20


def test_without_enough_answers_errors_alone_do_not_promote() -> None:
    few = [window({"angry": 1}, {"angry": 3}) for _ in range(5)]
    filled = [
        Window.from_dict(
            one.to_dict() | {"canary": {"requests": 900, "bad": {"errors": 0}, "labels": {"predictions": {"angry": 1}}}}
        )
        for one in few
    ]
    verdict = judge(policy(), filled)
    assert (verdict.decision, verdict.metrics[0].state, of(verdict).state) == ("continue", "pass", "undecided")


def test_a_canary_that_answers_otherwise_is_rolled_back_and_the_label_is_named() -> None:
    verdict = judge(policy(), windows(ANGRY, EVEN, 60))
    assert verdict.decision == "rollback"
    assert verdict.reason.startswith("Rolled back: angry ")
    assert " % instead of " in verdict.reason
    assert "the limit is a shift of 10 %" in verdict.reason
    first, *others = of(verdict).labels
    assert (first.label, len(others)) == ("angry", 4)
    assert of(verdict).canary == {"requests": 30 * verdict.windows_used, "bad": first.canary}
    assert of(verdict).lower > 0.3


def test_a_shift_over_many_labels_is_found_although_none_of_them_moves_far() -> None:
    """Ten labels that rise by 0.06 each: 0.6 in all, and every one within the limit."""
    labels = {f"l{i:02}": 0.05 for i in range(20)}
    spread = {label: 0.11 if i < 10 else -0.01 + 0.0 for i, label in enumerate(labels)}
    spread = {label: max(share, 0.0) for label, share in spread.items()}
    total = sum(spread.values())
    verdict = judge(policy(), windows({k: v / total for k, v in spread.items()}, labels, 120))
    assert verdict.decision == "rollback"


def test_a_label_that_stable_never_gives_is_found() -> None:
    strange = {"robot": 0.7} | dict.fromkeys(FACES, 0.06)
    verdict = judge(policy(), windows(strange, EVEN, 60))
    assert verdict.decision == "rollback"
    assert verdict.reason.startswith("Rolled back: robot ")


def test_no_data_is_neither_good_nor_bad_news() -> None:
    blind = [window(None, {"angry": 200}) for _ in range(6)]
    verdict = judge(policy(), windows(EVEN, EVEN, 3) + blind)
    assert (verdict.decision, of(verdict).state) == ("inconclusive", "no_data")
    assert "no data for predictions in the last 6 windows (missing: the canary's labels)" in verdict.reason
    unsaid = [Window.from_dict({"canary": {"requests": 900, "bad": {"errors": 0}}, "stable": None})] * 3
    assert judge(policy(), unsaid).decision != "promote"
    assert judge(policy(), blind[:5], final=True).decision == "inconclusive"


def test_windows_without_answers_change_nothing() -> None:
    quiet = [window({}, {"angry": 5}), window({"angry": 5}, {})]
    before = windows(EVEN, EVEN, 4)
    plain, quieter = judge(policy(), before), judge(policy(), before + quiet * 3)
    assert of(quieter).evidence_for == of(plain).evidence_for
    assert of(quieter).state == "undecided"


def test_without_stable_beside_it_nothing_is_decided_about_labels() -> None:
    alone = [Window(one.canary) for one in windows(EVEN, EVEN, 40)]
    verdict = judge(policy(), alone, final=True)
    assert (verdict.decision, of(verdict).state) == ("inconclusive", "undecided")
    assert "no answers on stable to compare yet" in of(verdict).reason


def test_an_observed_shift_is_shown_and_decides_nothing() -> None:
    observed = policy(shift={"observe": True})
    verdict = judge(observed, windows(ANGRY, EVEN, 60))
    assert (verdict.decision, of(verdict).state, of(verdict).observe) == ("promote", "undecided", True)
    assert observed.needed_against == policy().needed_against / 2


def test_one_that_is_not_critical_bars_the_promotion_only() -> None:
    verdict = judge(policy(shift={"critical": False}), windows(ANGRY, EVEN, 60))
    assert (verdict.decision, of(verdict).state) == ("continue", "fail")
    assert "bars the promotion only" in verdict.reason


def test_window_by_window_says_the_same_and_so_does_json() -> None:
    for shares in (EVEN, ANGRY):
        there = windows(shares, EVEN, 60)
        one = Judge(policy())
        for each in there:
            last = one.add(each)
            if one.decided:
                break
        assert last == judge(policy(), there)
        again = [Window.from_dict(json.loads(json.dumps(each.to_dict()))) for each in there]
        assert judge(Policy.from_dict(json.loads(json.dumps(policy().to_dict()))), again) == last


def test_the_order_of_labels_and_metrics_changes_nothing() -> None:
    there = windows(ANGRY, EVEN, 30)

    def turned(side: Side) -> Side:
        counts = side.labels["predictions"] or {}
        return Side(side.requests, side.bad, labels={"predictions": dict(reversed(list(counts.items())))})

    mirrored = [Window(turned(one.canary), turned(one.stable)) for one in there if one.stable]
    said = policy().to_dict()
    other = Policy.from_dict(said | {"metrics": said["metrics"][::-1]})
    assert judge(other, mirrored) == judge(policy(), there)


def test_stables_past_is_used_from_the_first_window_on() -> None:
    past = Past(labels={"predictions": dict.fromkeys(FACES, 1000)})
    there = windows(ANGRY, EVEN, 60)
    told, untold = judge(policy(), there, past), judge(policy(), there)
    assert told.windows_used <= untold.windows_used
    assert Past.from_dict(json.loads(json.dumps(past.to_dict()))) == past
    assert "labels" not in Past().to_dict()


def test_a_record_keeps_labels_and_replays_to_the_same_verdict() -> None:
    record = Record.new("r", model="faces", service="models/faces", version="v", started="2026-01-01T00:00:00+00:00")
    there = windows(ANGRY, EVEN, 60)
    verdict = judge(policy(), there)
    record.record_step(
        10, "t", window_seconds=10, policy=policy(), windows=there[: verdict.windows_used], final=False, verdict=verdict
    )
    again = Record.from_json(record.to_json())
    assert again.differences() == []
    assert again.replay()[-1].verdict == verdict
    errors_only = Policy.from_dict(policy().to_dict() | {"metrics": [{"name": "errors", "max_rate": 0.1}]})
    assert again.replay(errors_only)[-1].verdict.decision == "promote"
    assert asked_for(there[0], errors_only).canary.labels == {}
    assert "labels" not in judge(errors_only, [asked_for(one, errors_only) for one in there]).to_dict()["metrics"][0]


def test_a_thousand_labels_are_told_apart_and_no_more() -> None:
    many = {f"label {i}": i + 1 for i in range(1500)}
    kept = binned(many | {"": 7})
    assert len(kept) == MOST_LABELS + 1
    assert kept["other"] == 7 + sum(range(1, 501))
    assert sum(kept.values()) == sum(many.values()) + 7
    verdict = judge(policy(), [window({"label 1": 3}, many), window({"new": 3, "newer": 5}, many)])
    assert (verdict.decision, of(verdict).canary["requests"]) == ("continue", 11)
    assert "other" in {label.label for label in of(verdict).labels}


def test_the_look_at_the_deadline_needs_less_than_any_look() -> None:
    there = windows(EVEN, EVEN, 100, (10, 60))
    first = judge(policy(), there).windows_used
    late = [judge(policy(), there[:length], final=True) for length in range(1, first)]
    shown = [verdict for verdict in late if verdict.decision == "promote"]
    assert 0 < len(shown) < first - 1
    assert {(of(verdict).state, "By the look at the deadline" in of(verdict).reason) for verdict in shown} == {
        ("pass", True)
    }


def test_a_promotion_with_a_confidence_of_its_own_is_told_of_labels_too() -> None:
    """Their look at the deadline was told by the policy's usual risk, and they as undecided in what was promoted."""
    p = policy(deadline_confidence=0.6)
    shown = [judge(p, windows(EVEN, EVEN, length), final=True) for length in range(1, 12)]
    doubtful = [verdict for verdict in shown if verdict.decision == "promote" and verdict.confidence is not None]
    assert any("look at the deadline" in of(verdict).reason for verdict in doubtful)
    for verdict in doubtful:
        assert [metric.state for metric in verdict.metrics] == ["pass", "pass"]
        told = [metric.reason for metric in verdict.metrics if "look at the deadline" in metric.reason]
        assert all(reason.endswith("with 60 % confidence") for reason in told)


def test_steps_are_opened_at_half_of_the_evidence_of_labels_too() -> None:
    steps = policy(traffic=0.1, shares=[0.1, 0.3], false_rollback=0.01)
    there = [Window(one.canary, one.stable, share=0.13) for one in windows(EVEN, EVEN, 60)]
    silent = [Window(Side(30, {"errors": 0}), Side(200, {"errors": 0}), share=0.13)] * 5
    opened = next(i for i in range(1, 60) if judge(steps, there[:i]).decision == "open")
    assert 1 < opened < 60
    assert judge(steps, silent).decision == "continue"


def test_a_ramp_goes_on_until_labels_are_doubtful() -> None:
    """Few answers say little of labels: that promotes nothing, and keeps nobody from finding out with more of them."""
    ramp = policy(traffic=0.01, ramp={"budget": 50, "most": 0.35})
    for shares, opened in ((EVEN, True), (ANGRY, False)):
        there = [
            Window(
                one.canary, one.stable, f"2026-03-01T02:{i:02}:00+00:00", f"2026-03-01T02:{i:02}:10+00:00", share=0.01
            )
            for i, one in enumerate(windows(shares, EVEN, 40, (2, 198)))
        ]
        said = [judge(ramp, there[:length]) for length in range(2, 40)]
        doubtful = [verdict for verdict in said if of(verdict).evidence_against >= 10]
        wider = [verdict for verdict in said if verdict.decision == "open"]
        assert (bool(doubtful), not set(map(id, doubtful)) & set(map(id, wider))) == (not opened, True)
        if opened:
            assert min(of(verdict).evidence_for for verdict in wider) < 6


@pytest.mark.parametrize(
    ("shift", "said"),
    [
        ({"max_shift": 0}, "policy.metrics[1].max_shift: 0 is out of range"),
        ({"max_shift": 1.0}, "policy.metrics[1].max_shift: 1.0 is out of range"),
        ({"max_shift": "a lot"}, "policy.metrics[1].max_shift: 'a lot' is not a number"),
        ({"max_rate": 0.1}, "policy.metrics[1].max_rate: limits bad requests, and max_shift labels; one of both"),
        ({"edges": [1]}, "policy.metrics[1].edges: unknown field"),
        ({"name": "errors"}, "policy.metrics[1].name: 'errors' is there twice"),
    ],
)
def test_a_limit_that_cannot_be_is_refused_in_one_line(shift: dict[str, Any], said: str) -> None:
    with pytest.raises(PolicyError) as refused:
        policy(shift=shift)
    assert str(refused.value).startswith(said)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ({"predictions": {"angry": -1}}, "window.canary.labels.predictions.angry: -1 is negative"),
        ({"predictions": {"angry": 0.5}}, "window.canary.labels.predictions.angry: 0.5 is not a whole number"),
        ({"predictions": {"angry": None}}, "window.canary.labels.predictions.angry: null"),
        ({"predictions": 5}, "window.canary.labels.predictions: a mapping"),
        ([], "window.canary.labels: a mapping"),
    ],
)
def test_labels_that_cannot_be_are_refused(labels: Any, said: str) -> None:
    with pytest.raises(EvidenceError) as refused:
        Window.from_dict({"canary": {"requests": 5, "bad": {}, "labels": labels}})
    assert str(refused.value).startswith(said)


def test_labels_of_an_unknown_metric_are_refused() -> None:
    strange = Window(Side(5, {"errors": 0}, labels={"colours": {"red": 5}}))
    with pytest.raises(EvidenceError, match=r"windows\[0\].canary.labels.colours: the policy has no such limit"):
        judge(policy(), [strange])
